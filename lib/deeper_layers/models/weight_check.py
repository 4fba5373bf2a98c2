"""A model without weights, as its configuration describes it, and whether a checkpoint holds what it needs.

What a checkpoint's tensors are called in the model, which of them are tied, joined or not needed is for transformers
to say: it loads them, without their contents, into the empty model.
"""

import copy
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from deeper_layers.errors import InputError, first_line
from deeper_layers.models.checkpoint_files import read_json, read_shards
from deeper_layers.models.configuration import auto_class, read_config

# endings of what a quantized weight is stored as: which is not read without which
TOGETHER = {
    ".qweight": ".scales",
    ".weight_packed": ".weight_scale",
    ".weight_scale_inv": ".weight",
    ".weight.absmax": ".weight.quant_map",
    ".weight.quant_map": ".weight.absmax",
    ".SCB": ".weight",
    "_blocks": "_scales",
}
PACKED = 64  # weights in one number of a tensor, at most
TABLES = 2**30  # numbers that transformers works out: of no model more
Shapes = dict[str, tuple[int, ...]]


def check_folder(folder: Path) -> None:
    """Raise InputError unless a folder holds the weights that its configuration asks for, before any is read.

    Of a model whose code comes with it nothing is known, since that is not run.
    """
    shapes = {tensor.name: tuple(tensor.entry["shape"]) for shard in read_shards(folder) for tensor in shard.tensors}
    if "auto_map" not in read_json(folder / "config.json"):
        config = read_config(str(folder), None, trust_remote_code=False)
        check_tensors(built_empty(config, folder), folder, shapes)


def built_empty(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """A model on the device "meta". Raises InputError where none can be built."""
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=False)
    except Exception as error:  # what strangers write into a configuration fails at any line that reads it
        raise InputError(
            f"can't build an empty model from {folder / 'config.json'} ({first_line(error)}): repair it"
        ) from error


def check_tensors(model: PreTrainedModel, folder: Path, shapes: Shapes) -> None:
    """Raise InputError unless the tensors of these names and shapes are what an empty model needs.

    More of them may be there. Quantized weights have names and shapes of their own: then there has to be something
    of each part of the model. A checkpoint of a model without its head, as transformers knows it, may lack that.
    """
    quantized, wrong = getattr(model.config, "quantization_config", None) is not None, []
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if asked > PACKED * (held := sum(map(math.prod, shapes.values()))) + TABLES:
        wrong = [f"it describes {asked:,} numbers, and they are {held:,}"]
    else:
        try:
            wrong = _differences(model, shapes, _loaded(model, shapes, shapes), quantized)
        except Exception as error:  # what joins tensors may not know those of a quantized model
            wrong = [] if quantized else [first_line(error)]
    for name in shapes if quantized else ():
        parts = [name.removesuffix(one) + other for one, other in TOGETHER.items() if name.endswith(one)]
        wrong += [f"it lacks {part}, a part of a quantized weight" for part in parts if part not in shapes]
    if wrong:
        more = f" and {len(wrong) - 1} more" * (len(wrong) > 1)
        raise InputError(
            f"the weights in {folder} are not those that its config.json asks for ({wrong[0]}{more}): give a "
            "checkpoint whose configuration and weights belong together"
        )


def unread_without(model: PreTrainedModel, shapes: Shapes, prefix: str) -> set[str]:
    """What of an empty model only tensors whose names begin so fill: what they are of, in the model's own words."""
    try:
        others = [name for name in shapes if not name.startswith(prefix)]
        all_missing, missing = (set(_loaded(model, shapes, names)["missing_keys"]) for names in (shapes, others))
    except Exception:  # as above
        return set()
    return missing - all_missing


def _differences(model: PreTrainedModel, shapes: Shapes, report: dict, quantized: bool) -> list[str]:
    """What a report of loading says that a model lacks, or has in another shape."""
    parts = (name.split(".") for name in report["unexpected_keys"] if quantized)
    packed = {".".join(words[:length]) for words in parts for length in range(1, len(words))}
    inside = f"{model.base_model_prefix}."
    if any(name.startswith(inside) for name in shapes):
        inside = ""  # else the model without its head was saved
    lacking = {name: f"it lacks {name}" for name in report["missing_keys"] if name.startswith(inside.lstrip("."))}
    for name, found, expected in report["mismatched_keys"]:
        lacking[name] = f"{name} has the shape {list(found)}, expected {list(expected)}"
    return [said for name, said in sorted(lacking.items()) if name.rpartition(".")[0] not in packed]


def _loaded(model: PreTrainedModel, shapes: Shapes, names: Iterable[str]) -> dict:
    """What transformers reports of tensors without contents, loaded into a model without contents."""
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    with torch.device("meta"):
        tensors = {name: torch.empty(shapes[name]) for name in names}
    how: dict = {"device_map": {"": "meta"}, "ignore_mismatched_sizes": True, "output_loading_info": True}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        _, report = type(model).from_pretrained(None, config=config, state_dict=tensors, **how)  # ty: ignore[not-iterable]
        return report
    finally:
        logging.set_verbosity(verbosity)
