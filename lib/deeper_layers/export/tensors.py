"""The tensors of a checkpoint: which are which layer's, what is done to those that stay, and how they are written.

For a model of transformers an empty one is built, which says whether the tensors are all there. Code that comes with a
checkpoint is not run: then config.json and the names of the tensors have to say it themselves. What only gets another
name is copied as bytes; all else is worked out for one tensor at a time.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.lineage import writing
from deeper_layers.models import checkpoint_files, configuration
from deeper_layers.models.checkpoint_files import INDEX, NUMBERED, SINGLE, Tensor
from deeper_layers.models.decoder import ends_sublayer, layers_path
from deeper_layers.models.sources import DTYPES
from deeper_layers.package_index import file_hash

# what configurations call the number of layers for multi-token prediction, whose tensors come after the last layer's
PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
MTP = "mtp."  # where these tensors have a name of their own, it begins so
TORCH = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # types of all real numbers


@dataclass
class Entry:
    """A tensor to write: what it is now, the type that it will have, and what is done to it before, in order."""

    tensor: Tensor
    dtype: str
    edits: list[Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """In bytes, where it is written."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.tensor.shape) * (int(bits[0]) if bits else 8) // 8

    def read(self) -> torch.Tensor:
        with safe_open(self.tensor.path, framework="pt") as file:
            return file.get_tensor(self.tensor.name)

    def content(self, name: str) -> memoryview:
        """What is written under a name. Raises InputError where that is not finite, and it was."""
        old = new = self.read()
        for edit in self.edits:
            new = edit(new)
        if self.dtype in TORCH:
            new = new.to(getattr(torch, TORCH[self.dtype]))
        if new is not old and not new.isfinite().all() and old.isfinite().all():
            raise InputError(
                f"{name} would hold numbers that are not finite, or too large for {new.dtype}: give a dtype of a "
                "larger range, or another rule or other adapters"
            )
        return new.reshape(-1).view(torch.uint8).numpy().data


Entries = dict[str, Entry]  # by the names under which they are written


@dataclass(frozen=True)
class Layout:
    """Which tensors of a checkpoint belong to which of its layers."""

    folder: Path
    config: dict  # what config.json holds
    tensors: list[Tensor]  # of all files
    model: PreTrainedModel | None  # an empty one; None where its code comes with it
    layers: int  # L
    prefix: str  # before the number of a layer in the names of tensors, as in "model.layers."
    module: str  # the same in the names of modules, which can be longer
    mtp: int | None  # layers for multi-token prediction, which most number after the others; None: left out

    def numbers(self, cut: Cut) -> dict[int, int]:
        """The new number of everything that is numbered like a layer and stays, by its old one."""
        kept = [*cut.kept(self.layers), *range(self.layers, self.layers + (self.mtp or 0))]
        return {old: new for new, old in enumerate(kept)}

    def entries(self, cut: Cut) -> Entries:
        """The tensors that stay, by their new names."""
        new, found = self.numbers(cut), {}
        for tensor in self.tensors:
            name, number = tensor.name, _number(tensor.name, self.prefix)
            if number in new:
                name = name.replace(f"{self.prefix}{number}.", f"{self.prefix}{new[number]}.", 1)
            elif number is not None or self.mtp is None and name.startswith(MTP):
                continue
            found[name] = Entry(tensor, tensor.dtype)
        return found


@dataclass(frozen=True)
class Changed:
    """What a rule made of the layers that stay.

    Attributes:
        tensors: by "number of the layer in what is left.name in it".
        words: which rule, and what it did.
    """

    tensors: Mapping[str, torch.Tensor]
    words: str


def read_layout(folder: Path, *, mtp: bool = True) -> Layout:
    """The layout of the checkpoint in a folder. `mtp`: layers for multi-token prediction stay where there are any.

    Raises InputError where tensors are not what the configuration says, or it is not sure which of them are layers.
    """
    tensors, config = checkpoint_files.read_tensors(folder), checkpoint_files.read_json(folder / "config.json")
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    groups, layers, model, module = (
        checkpoint_files.numbered_groups(shapes),
        configuration.stated_layers(config) or 0,
        None,
        "",
    )
    configuration.check_configuration(config, folder)
    if not isinstance(config.get("auto_map"), dict):  # else its code comes with it
        known = configuration.read_config(folder)
        layers, model = configuration.layers_of(known), configuration.built_empty(known, folder)
        configuration.check_tensors(model, folder, shapes)
        module = f"{layers_path(model)}."
    chosen = [prefix for prefix, numbers in groups.items() if layers and numbers >= set(range(layers))]
    if model is not None and len(chosen) > 1:  # one that sees images has layers for these too
        filled = {prefix: configuration.unread_without(model, shapes, prefix) for prefix in chosen}
        chosen = [p for p in chosen if filled[p] and all(name.startswith(module) for name in filled[p])]
    if len(chosen) != 1:
        raise InputError(
            f"{folder} has {len(chosen)} groups of tensors that can be its {layers} layers, expected exactly one: which"
            " are layers is not guessed"
        )
    prefix, last = chosen[0], layers + max(predicting(config).values(), default=0)
    odd = [name for name in shapes if name.startswith(prefix) and _number(name, prefix) not in range(last)]
    if model is None:  # else transformers says what it reads of the others, and that is the same after the cut
        odd += [name for name in shapes if NUMBERED.match(name) and not name.startswith((prefix, MTP))]
    if odd:
        raise InputError(
            f"{folder} holds {len(odd)} tensors that may belong to layers beside its {layers} ({min(odd)}, ...): what "
            "becomes of them after a cut is not guessed; leave them out"
        )
    beyond = {number for number in groups[prefix] if number >= layers} or groups.get(f"{MTP}layers.", ())
    return Layout(folder, config, tensors, model, layers, prefix, module or prefix, len(beyond) if mtp else None)


def predicting(config: dict) -> dict[str, int]:
    """What a configuration says of its number of layers for multi-token prediction, under whatever name."""
    text = configuration.text_part(config)
    return {key: text[key] for key in PREDICTING if type(text.get(key)) is int}


def _number(name: str, prefix: str) -> int | None:
    """Of the layer that a tensor is of; None where it is of none."""
    found = NUMBERED.match(name)
    return int(found["number"]) if found and found["prefix"] == prefix else None


# ---- what is done to them ----------------------------------------------------------------------------------------


def zero_sublayers(entries: Entries, layout: Layout, cut: Cut) -> None:
    """Zeros in the tensors by which the sublayers of a cut write into the residual."""
    _check_plain(entries, layout, "written as zeros: zero the sublayers of what it was made of")
    new = layout.numbers(cut)
    for part, layers in ((ATTENTION, cut.attention), (MLP, cut.mlp)):
        for layer in layers:
            begin = f"{layout.prefix}{new[layer]}."
            ends = [n for n in entries if n.startswith(begin) and ends_sublayer(n.removeprefix(begin), part)]
            if not ends:
                said = f"no tensor of a known name that ends the {part} of its layer {layer}"
                raise InputError(f"{layout.folder} has {said}: drop whole layers")
            for name in ends:
                entries[name].edits.append(torch.zeros_like)


def replace_tensors(entries: Entries, layout: Layout, changed: Changed) -> None:
    """The values of a rule in place of the source's own, in the type of these."""
    for inside, tensor in changed.tensors.items():
        _edit(entries, f"{layout.prefix}{inside}", list(tensor.shape), "the rule", tensor.to)


def add_adapter(entries: Entries, layout: Layout, adapter: Adapter) -> None:
    """Low-rank updates added to the weights as `merge_adapters` does, then rounded to the type that was there."""
    for module, (a, b) in adapter.factors.items():
        name = f"{layout.prefix}{module.removeprefix(layout.module)}" if module.startswith(layout.module) else module
        shape = [len(b), a.shape[1]][:: -1 if adapter.settings.get("fan_in_fan_out") else 1]

        def add(old, module=module):
            return (old.float() + adapter.change(module)).to(old.dtype)

        _edit(entries, f"{name}.weight", shape, f"the adapters in {adapter.folder}", add)


def _edit(entries: Entries, name: str, shape: list[int], what: str, edit: Callable) -> None:
    """Have a tensor edited. Raises InputError where there is none of that name and shape, or it is quantized."""
    entry = entries.get(name)
    if entry is None or entry.tensor.shape != shape or entry.dtype not in TORCH:
        there = "no such tensor" if entry is None else f"one of shape {entry.tensor.shape} in {entry.dtype}"
        raise InputError(
            f"{what} changes {name} of shape {shape}, and the checkpoint without these layers has {there}: give what "
            f"was made of this model after this cut, and weights in one of {', '.join(TORCH)}"
        )
    entry.edits.append(edit)


def cast_entries(entries: Entries, layout: Layout, dtype: str, dequantized: bool) -> str | None:
    """Have real numbers written in a data type, see `slice_checkpoint`; which it is, None where they stay as they are.
    `dequantized`: the checkpoint was made of a GGUF file."""
    if dtype not in ("auto", *DTYPES):
        raise InputError(f"dtype is {dtype!r:.40}, expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    if dtype == "auto" and not dequantized:
        return None
    _check_plain(entries, layout, "cast: leave dtype out, and they are copied")
    dtype = smallest_dtype(entries) if dtype == "auto" else dtype
    for entry in entries.values():
        if entry.dtype in TORCH:
            entry.dtype = next(name for name, of in TORCH.items() if of == dtype)
    return dtype


def smallest_dtype(entries: Entries) -> str:
    """The smallest data type that holds every number of a checkpoint in float32 exactly. Of what had fewer than 16 bits
    that is float32: it is products of a scale and small whole numbers."""
    fitting = [torch.bfloat16, torch.float16]
    for values in (entry.read() for entry in entries.values() if entry.dtype == "F32"):
        fitting = [dtype for dtype in fitting if torch.equal(values.to(dtype).float(), values)]
    return str((*fitting, torch.float32)[0]).removeprefix("torch.")


def _check_plain(entries: Entries, layout: Layout, what: str) -> None:
    """Raise InputError for a quantized checkpoint, whose numbers mean nothing without their scales."""
    types = {entry.dtype[:2] for entry in entries.values()}
    if "quantization_config" in layout.config | configuration.text_part(layout.config) or types & {"F8", "F6", "F4"}:
        raise InputError(f"{layout.folder} holds quantized weights, which can't be {what}")


# ---- written -----------------------------------------------------------------------------------------------------


def as_files(entries: Entries) -> dict[str, Entries]:
    """The files to write, by name: as the tensors are divided in the source."""
    groups: dict[Path, Entries] = {}
    for name, entry in entries.items():
        groups.setdefault(entry.tensor.path, {})[name] = entry
    if len(groups) == 1:
        return {SINGLE: entries}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": some for i, some in enumerate(groups.values(), 1)}


def index_text(files: dict[str, Entries]) -> dict[str, str]:
    """The index of these files, by its name, where they are several."""
    weight_map = {name: file for file, entries in files.items() for name in entries}
    total = sum(entry.size for entries in files.values() for entry in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {INDEX: json.dumps(index, indent=2)} if len(files) > 1 else {}


def file_bytes(entries: Entries) -> int:
    """Bytes of a safetensors file of these tensors, its header included."""
    return len(_head(entries)) + sum(entry.size for entry in entries.values())


def write_tensors(files: dict[str, Entries], folder: Path, out: Path) -> dict[str, str]:
    """Write files for what will be at `out`; their SHA-256. Each is hashed while the next one is written.

    One that is there is whole, from an interrupted run of the same.
    """
    hashes = {}
    missing = {file: entries for file, entries in files.items() if not (folder / file).exists()}
    with writing(sum(map(file_bytes, missing.values())), folder, out) as bar, ThreadPoolExecutor(1) as beside:
        for file in files.keys() - missing.keys():
            hashes[file] = beside.submit(file_hash, folder / file)
        for file, entries in missing.items():
            with open(partial := folder / f".{file}.partial", "wb") as made:
                bar.update(made.write(_head(entries)))
                for name, entry in entries.items():
                    bar.update(made.write(entry.content(name)))
                made.flush()
                os.fsync(made.fileno())
            os.replace(partial, folder / file)
            hashes[file] = beside.submit(file_hash, folder / file)
    return {file: hashes[file].result() for file in files}


def _head(entries: Entries) -> bytes:
    """The beginning of a safetensors file."""
    place, metadata = 0, next(iter(entries.values())).tensor.metadata
    header: dict = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    for name, entry in entries.items():
        offsets = [place, place := place + entry.size]
        header[name] = {"dtype": entry.dtype, "shape": entry.tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    return len(text).to_bytes(8, "little") + text
