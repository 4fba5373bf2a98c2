"""A model without weights, as its configuration describes it, and whether a checkpoint holds what it needs.

What a checkpoint's tensors are called in the model, which of them are tied, joined or not needed is for transformers
to say: it loads them, without their contents, into the empty model.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from deeper_layers.errors import InputError, first_line
from deeper_layers.models.checkpoint_files import read_json, read_shards
from deeper_layers.models.configuration import UNUSABLE, auto_class, read_config

# endings of what a quantized weight is stored as, neither of which is read without the other
TOGETHER = (
    (".qweight", ".scales"), (".weight_packed", ".weight_scale"), (".weight_scale_inv", ".weight"),
    (".weight.absmax", ".weight.quant_map"), (".weight.quant_map", ".weight.absmax"), (".SCB", ".weight"),
    ("_blocks", "_scales"),
)  # fmt: skip
PACKED = 64  # weights in one number of a tensor, at most
BUFFERS = 2**30  # numbers in tables that transformers works out: none has more

Shapes = dict[str, tuple[int, ...]]


def check_folder(folder: Path) -> None:
    """Raise InputError unless a folder holds the weights that its configuration asks for, before any is read.

    Of a model whose code comes with it nothing is known, since that is not run.
    """
    shapes = {tensor.name: tuple(tensor.entry["shape"]) for shard in read_shards(folder) for tensor in shard.tensors}
    if "auto_map" not in read_json(folder / "config.json"):
        config = read_config(str(folder), None, trust_remote_code=False)
        check_tensors(built_empty(config, folder, len(shapes)), folder, shapes)


def built_empty(config: PreTrainedConfig, folder: Path, tensors: int) -> PreTrainedModel:
    """A model on the device "meta". Raises InputError where none can be built, or one of far more parts than tensors.

    A part of the model is at most a few tensors of the checkpoint, and one tensor at most a few parts of the model: a
    configuration that asks for more is not followed to its end.
    """
    try:
        with torch.device("meta"), _at_most(1_000 + 8 * tensors):
            return auto_class(config).from_config(config, trust_remote_code=False)
    except UNUSABLE as error:
        raise InputError(
            f"can't build an empty model from {folder / 'config.json'} ({first_line(error)}): repair it"
        ) from error


def check_tensors(model: PreTrainedModel, folder: Path, shapes: Shapes) -> None:
    """Raise InputError unless the tensors of these names and shapes are what an empty model needs.

    More of them may be there. Quantized weights have names and shapes of their own: then there has to be something
    of each part of the model. A checkpoint of a model without its head, as transformers knows it, may lack that.
    """
    quantized = getattr(model.config, "quantization_config", None) is not None
    pairs = ((name, name.removesuffix(one) + other) for name in shapes for one, other in TOGETHER if name.endswith(one))
    torn = [other for _, other in pairs if quantized and other not in shapes]
    asked, held = sum(p.numel() for p in model.parameters()), sum(map(math.prod, shapes.values()))
    wrong = f"it describes {asked:,} weights, and they are {held:,}"
    if asked <= PACKED * held and sum(b.numel() for b in model.buffers()) <= BUFFERS:
        try:
            wrong = _wrong(model, shapes, _loaded(model, shapes, shapes), quantized)
        except UNUSABLE as error:  # what joins tensors may not know those of a quantized model
            wrong = None if quantized else first_line(error)
        wrong = f"it lacks {torn[0]}, a part of a quantized weight" if torn else wrong
    if wrong:
        raise InputError(
            f"the weights in {folder} are not those that its config.json asks for ({wrong}): give a checkpoint whose "
            "configuration and weights belong together"
        )


def _wrong(model: PreTrainedModel, shapes: Shapes, report: dict, quantized: bool) -> str | None:
    """What a report of loading says that a model lacks, or has in another shape."""
    parts = (name.split(".") for name in report["unexpected_keys"] if quantized)
    packed = {".".join(words[:length]) for words in parts for length in range(1, len(words))}
    inside = f"{model.base_model_prefix}."
    if any(name.startswith(inside) for name in shapes):
        inside = ""  # else the model without its head was saved
    names = (name for name in report["missing_keys"] if name.startswith(inside.lstrip(".")))
    if lost := [name for name in names if name.rpartition(".")[0] not in packed]:
        return f"it lacks {min(lost)}" + f" and {len(lost) - 1} more" * (len(lost) > 1)
    for name, found, expected in sorted(report["mismatched_keys"]):
        if name.rpartition(".")[0] not in packed:
            return f"{name} has the shape {list(found)}, expected {list(expected)}"
    return None


def unread_without(model: PreTrainedModel, shapes: Shapes, prefix: str) -> set[str]:
    """What of an empty model only tensors whose names begin so fill: what they are of, in the model's own words."""
    try:
        others = [name for name in shapes if not name.startswith(prefix)]
        all_missing, missing = (set(_loaded(model, shapes, names)["missing_keys"]) for names in (shapes, others))
    except UNUSABLE:
        return set()
    return missing - all_missing


def _loaded(model: PreTrainedModel, shapes: Shapes, names: Iterable[str]) -> dict:
    """What transformers reports of tensors without contents, loaded into a model without contents."""
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    with torch.device("meta"):
        tensors = {name: torch.empty(shapes[name]) for name in names}
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        _, report = type(model).from_pretrained(  # ty: ignore[not-iterable]
            None, config=config, state_dict=tensors, device_map={"": "meta"}, ignore_mismatched_sizes=True,
            output_loading_info=True,
        )  # fmt: skip
        return report
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _at_most(number: int) -> Iterator[None]:
    """Inside, no more parameters than that are made."""
    made = 0

    def count(*_):
        nonlocal made
        made += 1
        if made > number:
            raise ValueError(f"it describes a model of more than {number:,} parts, many more than there are tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
