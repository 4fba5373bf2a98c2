"""The largest model under a rule that fits: into so many bytes of weights, or so many parameters."""

import re
from collections.abc import Callable
from pathlib import Path

from deeper_layers import models
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, NotMeasuredError, in_bytes
from deeper_layers.export.llama_cpp import ROUNDED
from deeper_layers.export.pruned_checkpoint import written_sizes
from deeper_layers.models.sources import Source

BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
PARAMETERS = {"K": 1e3, "M": 1e6, "B": 1e9}


def read_size(text: str) -> tuple[float, bool]:
    """A size as "400MB" or "1.5 GiB", in bytes, or as "300M" or "1.1B", in parameters; and whether it is in bytes.

    Raises InputError for any other.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    unit = found[2].upper() if found else ""
    if found is None or unit not in BYTES | PARAMETERS or not float(found[1]):
        raise InputError(f"the size is {text!r:.40}, expected bytes as 400MB or 1.5GB, or parameters as 300M or 1.1B")
    return float(found[1]) * (BYTES | PARAMETERS)[unit], unit in BYTES


def fit_cut(
    source: Source,
    size: str,
    choose: Callable[[int], Cut],
    out: Path,
    *,
    dtype: str = "auto",
    type: str | None = None,
    mtp: bool = True,
    healed: bool = False,
) -> Cut:
    """The smallest cut under a rule with which the files of weights that `prune_checkpoint` writes fit.

    Args:
        source: the model; see `find_model`.
        size: of the weights, headers included, as "400MB", or their number, as "300M"; see `read_size`.
        choose: the rule's cut of so many layers.
        out: what will be written; a GGUF file where it ends in .gguf. It and all others as for `prune_checkpoint`.

    Raises:
        InputError: the size is none, or not even the smallest model fits; or as `written_sizes` and `choose`.
    """
    most, in_file = read_size(size)
    if in_file and type in ROUNDED:
        raise InputError(f"type is {type}, and how large llama.cpp's quantizer makes a file is not known: give q8_0")
    if in_file:
        written = written_sizes(source, out, dtype=dtype, type=type, mtp=mtp, healed=healed)

        def size_of(cut: Cut) -> int:
            return written(cut)[0]

    else:
        size_of = models.sizes_of(source).parameters
    found, last = {}, None
    for number in range(source.num_layers):
        try:
            cut = choose(number)
            found[number] = size_of(cut)
        except NotMeasuredError:
            raise
        except InputError as error:  # a number of layers that this rule or format can't drop
            last = error
            continue
        if found[number] <= most:
            return cut
    if not found and last:
        raise last
    least = f"{min(found.values()):,.0f} parameters" if not in_file else in_bytes(min(found.values()))
    raise InputError(f"no cut of {source.name} fits into {size}: the smallest has {least}; give a larger size or type")
