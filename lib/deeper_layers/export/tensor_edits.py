"""What is done to tensors on their way into a new file: zeros, values of a rule, another data type.

Each function finds, for the names of some tensors, the edit that tensor_writer.py does to their rows.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.export.tensor_writer import REAL_BYTES, Edit, Entry, read_rows
from deeper_layers.models.configuration import text_part

if TYPE_CHECKING:  # slow
    import torch

    from deeper_layers.export.layer_tensors import Layout

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # by their names in torch those in a file
TORCH = {name: dtype for dtype, name in DTYPES.items()}
AS_IT_IS = "auto"
STATED = ("dtype", "torch_dtype")  # entries of config.json


@dataclass(frozen=True)
class Changed:
    """What a rule made of the layers that stay.

    Attributes:
        tensors: by "number of the layer in what is left.name in it".
        words: which rule, and what it did.
    """

    tensors: Mapping[str, "torch.Tensor"]
    words: str

    @property
    def fingerprint(self) -> str:
        """Of all that is written in place of the source's own."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def zero_sublayers(entries: list[Entry], layout: "Layout", cut: Cut) -> dict[str, Edit]:
    """Zeros in the tensors by which the sublayers of a cut write into the residual, which no configuration leaves out.

    Raises InputError where no such tensor of a known name is found, or the weights are quantized.
    """
    from deeper_layers.models.sublayers import ends_sublayer  # slow

    check_plain(entries, layout.config, layout.folder, "written as zeros: zero the sublayers of what it was made of")
    new, found = layout.numbers(cut), {}
    for part, layers in ((ATTENTION, cut.attention), (MLP, cut.mlp)):
        for layer in layers:
            begin = f"{layout.prefix}{new[layer]}."
            inside = [entry.name for entry in entries if entry.name.startswith(begin)]
            ends = [name for name in inside if ends_sublayer(name.removeprefix(begin), part)]
            if not ends:
                raise InputError(
                    f"{layout.folder} has no tensor of a known name that ends the {part} of its layer {layer}: drop "
                    "whole layers"
                )
            found |= dict.fromkeys(ends, lambda values, rows: values.zero_())
    return found


def replace_tensors(entries: list[Entry], layout: "Layout", changed: Changed) -> dict[str, Edit]:
    """The values of a rule in place of the source's own.

    Raises InputError for a tensor that the source has not, or has of another shape or quantized; on the way, for one
    that is not finite in the source's data type.
    """
    held = {entry.name: (entry.shape, entry.dtype) for entry in entries}

    def edit(name: str, tensor: "torch.Tensor") -> Edit:
        shape, dtype = held.get(name, (None, None))
        if shape != list(tensor.shape) or dtype not in TORCH:
            raise InputError(
                f"the rule changed {name} of shape {list(tensor.shape)}, and the source has shape {shape}, type "
                f"{dtype} there: save the changed model with save_pretrained, or choose a rule that drops layers alone"
            )

        def instead(values, rows):
            new = tensor[rows].cpu().to(values.dtype)
            if not new.isfinite().all():
                raise InputError(f"{name} as the rule changed it is not finite in {new.dtype}: choose another rule")
            return new

        return instead

    named = {f"{layout.prefix}{inside}": tensor for inside, tensor in changed.tensors.items()}
    return {name: edit(name, tensor) for name, tensor in named.items()}


def cast_entries(entries: list[Entry], dtype: str) -> list[Entry]:
    """The tensors in another data type; whole numbers stay as they are."""
    import torch  # slow

    def cast(entry: Entry) -> Entry:
        def to_new(values, rows):
            cast_values = values.to(getattr(torch, dtype))
            if is_overflow(values, cast_values):
                largest = f"{values.abs().max().item():g}, too large for it: give bfloat16 or float32"
                raise InputError(f"dtype is {dtype}, and {entry.name} holds {largest}")
            return cast_values

        return entry.edited(to_new, DTYPES[dtype])

    return [cast(entry) if entry.dtype in {*REAL_BYTES} - {DTYPES[dtype]} else entry for entry in entries]


def is_overflow(before: "torch.Tensor", after: "torch.Tensor") -> bool:
    """Whether finite numbers became infinite."""
    return bool(not after.isfinite().all() and before.isfinite().all())


def check_plain(entries: list[Entry], config: dict, folder: Path, what: str) -> None:
    """Raise InputError for a quantized checkpoint, whose numbers mean nothing without their scales."""
    known = any("quantization_config" in part for part in (config, text_part(config)))
    if known or any(entry.dtype.startswith(("F8", "F6", "F4")) for entry in entries):
        raise InputError(f"{folder} holds quantized weights, which can't be {what}")


def smallest_dtype(entries: list[Entry]) -> str:
    """The smallest of DTYPES that holds every real number of a checkpoint in float32 exactly.

    The weights of a GGUF file become float32, and are what they were if it held 16 bits. Those that it held in fewer
    are products of a scale of 16 bits and small whole numbers, which 16 bits seldom hold: then it is float32.
    """
    import torch  # slow

    fitting = {"bfloat16", "float16"}
    for entry in entries:
        for _, block in read_rows(entry) if entry.dtype == "F32" else ():
            fitting = {name for name in fitting if torch.equal(block.to(getattr(torch, name)).float(), block)}
            if not fitting:
                return "float32"
    return min(fitting)


def state_dtype(config: dict, dtype: str) -> dict:
    """A config.json that states a data type where it stated another, and in one place at least."""

    def stated(part: dict) -> dict:
        return part | {name: dtype for name in STATED if name in part}

    config = {name: stated(value) if isinstance(value, dict) else value for name, value in stated(config).items()}
    return config if any(name in config for name in STATED) else config | {"torch_dtype": dtype}
