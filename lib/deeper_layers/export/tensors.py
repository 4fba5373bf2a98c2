"""The tensors of a checkpoint: which layer they belong to, how those that stay are edited, and how they are written.

For a model class of transformers an empty model is built, to check that all tensors are there. Code that comes with a
checkpoint is not run: its layers follow from config.json and the tensors' names. Tensors that are only renamed are
copied as bytes; others are edited one at a time.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.lineage import check_disk_space, show_bytes_written
from deeper_layers.models import checkpoint_files, configuration
from deeper_layers.models.checkpoint_files import INDEX, NUMBERED, SINGLE, Tensor
from deeper_layers.models.decoder import is_output_parameter, layers_path
from deeper_layers.models.sources import DTYPES

# names in configurations for the number of layers for multi-token prediction; their tensors follow the last layer's
MTP_ENTRIES = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
)
MTP_PREFIX = "mtp."  # of these tensors' names where they are not numbered like layers
# all types of real numbers
TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
}


@dataclass
class Entry:
    """A tensor to write: its source, the data type to write it in, and the edits to apply, in order."""

    tensor: Tensor
    dtype: str
    edits: list[Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the tensor as it is written."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.tensor.shape) * (int(bits[0]) if bits else 8) // 8

    def read(self) -> torch.Tensor:
        with safe_open(self.tensor.path, framework="pt") as file:
            return file.get_tensor(self.tensor.name)

    def content(self, name: str) -> memoryview:
        """The bytes to write. Raises InputError, with the name, where edits or casting made a number not finite."""
        old = new = self.read()
        for edit in self.edits:
            new = edit(new)
        if self.dtype in TORCH_NAMES:
            new = new.to(getattr(torch, TORCH_NAMES[self.dtype]))
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
    config: dict  # the content of config.json
    tensors: list[Tensor]  # of all files
    # without weights; None where the checkpoint comes with its own code
    model: PreTrainedModel | None
    layers: int  # L
    prefix: str  # of tensor names, before the number of a layer: "model.layers."
    module: str  # the same prefix in names of modules, which can be longer
    # number of layers for multi-token prediction, mostly numbered after the others; None: left out
    mtp: int | None

    def new_numbers(self, cut: Cut) -> dict[int, int]:
        """The new number of each layer that stays, layers for multi-token prediction included, by its old number."""
        kept = [*cut.kept(self.layers), *range(self.layers, self.layers + (self.mtp or 0))]
        return {old: new for new, old in enumerate(kept)}

    def tensor_name(self, name: str) -> str:
        """The name that tensors have for what has this name in the model."""
        if name.startswith(self.module):
            return f"{self.prefix}{name.removeprefix(self.module)}"
        return name

    def entries(self, cut: Cut) -> Entries:
        """The tensors that stay, by their new names."""
        new_numbers = self.new_numbers(cut)
        entries = {}
        for tensor in self.tensors:
            name = tensor.name
            number = _find_layer(tensor.name, self.prefix)
            if number in new_numbers:
                name = name.replace(
                    f"{self.prefix}{number}.", f"{self.prefix}{new_numbers[number]}.", 1
                )
            elif number is not None or self.mtp is None and name.startswith(MTP_PREFIX):
                continue
            entries[name] = Entry(tensor, tensor.dtype)
        return entries


@dataclass(frozen=True)
class Changed:
    """The tensors that a rule changed in the layers that stay."""

    # by "NUMBER.NAME": the layer in the pruned model, the tensor in that layer
    tensors: Mapping[str, torch.Tensor]
    words: str  # which rule changed them, and how


def read_layout(folder: Path, *, mtp: bool = True) -> Layout:
    """The layout of the checkpoint in a folder. `mtp`: layers for multi-token prediction stay, if there are any.

    Raises InputError where tensors do not match the configuration, or it is not sure which of them are layers.
    """
    tensors = checkpoint_files.list_tensors(folder)
    config = checkpoint_files.read_json(folder / "config.json")
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    groups = checkpoint_files.find_numbered_prefixes(shapes)
    model = None
    module = ""
    layers = configuration.count_stated_layers(config) or 0
    configuration.check_configuration(config, folder)
    if not isinstance(config.get("auto_map"), dict):  # else the checkpoint comes with its own code
        parsed = configuration.read_config(folder)
        layers = configuration.count_layers(parsed)
        model = configuration.build_empty_model(parsed, folder)
        configuration.check_tensors(model, folder, shapes)
        module = f"{layers_path(model)}."
    fitting = [
        prefix for prefix, numbers in groups.items() if layers and numbers >= set(range(layers))
    ]
    if model is not None and len(fitting) > 1:  # a model that sees images has layers for these, too
        unread = {
            prefix: configuration.find_weights_filled_by(model, shapes, prefix)
            for prefix in fitting
        }
        fitting = [prefix for prefix, names in unread.items() if _are_all_in(module, names)]
    if len(fitting) != 1:
        raise InputError(
            f"{folder} has {len(fitting)} groups of tensors that can be its {layers} layers, expected exactly one: "
            "which are layers is not guessed"
        )
    prefix = fitting[0]
    end = layers + max(read_mtp_counts(config).values(), default=0)
    stray = [
        name
        for name in shapes
        if name.startswith(prefix) and _find_layer(name, prefix) not in range(end)
    ]
    # else transformers knows the other numbered tensors, and a cut does not change them
    if model is None:
        stray += [
            name
            for name in shapes
            if NUMBERED.match(name) and not name.startswith((prefix, MTP_PREFIX))
        ]
    if stray:
        raise InputError(
            f"{folder} holds {len(stray)} tensors that may belong to layers beside its {layers} ({min(stray)}, ...): "
            "what becomes of them after a cut is not guessed; leave them out"
        )
    mtp_layers = {number for number in groups[prefix] if number >= layers} or groups.get(
        f"{MTP_PREFIX}layers.", ()
    )
    mtp_count = len(mtp_layers) if mtp else None
    return Layout(folder, config, tensors, model, layers, prefix, module or prefix, mtp_count)


def _are_all_in(module: str, names: set[str]) -> bool:
    """Whether there are names, and all begin with that of a module."""
    return bool(names) and all(name.startswith(module) for name in names)


def read_mtp_counts(config: dict) -> dict[str, int]:
    """The numbers of layers for multi-token prediction that a configuration states, by entry."""
    text = configuration.text_part(config)
    return {key: text[key] for key in MTP_ENTRIES if type(text.get(key)) is int}


def _find_layer(name: str, prefix: str) -> int | None:
    """The number of a tensor's layer; None where it belongs to no layer."""
    match = NUMBERED.match(name)
    return int(match["number"]) if match and match["prefix"] == prefix else None


# ---- edits -------------------------------------------------------------------------------------------------------


def zero_sublayers(entries: Entries, layout: Layout, cut: Cut) -> None:
    """Set the tensors to zero by which a cut's sublayers write into the residual."""
    _check_plain(entries, layout, "written as zeros: zero the sublayers of what it was made of")
    new_numbers = layout.new_numbers(cut)
    for part, layers in ((ATTENTION, cut.attention), (MLP, cut.mlp)):
        for layer in layers:
            prefix = f"{layout.prefix}{new_numbers[layer]}."
            outputs = [
                n
                for n in entries
                if n.startswith(prefix) and is_output_parameter(n.removeprefix(prefix), part)
            ]
            if not outputs:
                problem = f"no tensor of a known name that ends the {part} of its layer {layer}"
                raise InputError(f"{layout.folder} has {problem}: drop whole layers")
            for name in outputs:
                entries[name].edits.append(torch.zeros_like)


def replace_tensors(entries: Entries, layout: Layout, changed: Changed) -> None:
    """Replace the source's values by those of a rule, in the source's data type."""
    for path, tensor in changed.tensors.items():
        _add_edit(entries, f"{layout.prefix}{path}", list(tensor.shape), "the rule", tensor.to)


def add_adapter(entries: Entries, layout: Layout, adapter: Adapter) -> None:
    """Add low-rank updates to the weights, as `merge_adapters` does, and round to the source's data type."""
    for module, (a, b) in adapter.factors.items():
        shape = [len(b), a.shape[1]][:: -1 if adapter.settings.get("fan_in_fan_out") else 1]

        def add(old, module=module):
            return (old.float() + adapter.compute_update(module)).to(old.dtype)

        _add_edit(
            entries,
            f"{layout.tensor_name(module)}.weight",
            shape,
            f"the adapters in {adapter.folder}",
            add,
        )


def replace_weights(entries: Entries, layout: Layout, adapter: Adapter) -> bool:
    """Replace the weights of modules that were trained with all of them. Returns whether the head shared its weights
    with the embedding before: now it has a tensor of its own, and the configuration has to say so."""
    is_untied = False
    for name, weights in adapter.weights.items():
        name = layout.tensor_name(name)
        if name not in entries:
            shared = _find_embedding(layout, name)
            if shared in entries:
                entries[name] = dataclasses.replace(entries[shared], edits=[])
                is_untied = True
        shape = list(weights.shape)
        _add_edit(
            entries,
            name,
            shape,
            f"what was trained in {adapter.folder}",
            lambda _, weights=weights: weights,
        )
    return is_untied


def _find_embedding(layout: Layout, head: str) -> str | None:
    """The name of the embedding's weights, where the head's weights, of this name, are the same."""
    if (
        layout.model is None
        or not layout.model.config.get_text_config(decoder=True).tie_word_embeddings
    ):
        return None
    inputs = layout.model.get_input_embeddings()
    outputs = layout.model.get_output_embeddings()
    names = {id(module): f"{name}.weight" for name, module in layout.model.named_modules()}
    return names[id(inputs)] if names[id(outputs)] == head else None


def _add_edit(entries: Entries, name: str, shape: list[int], cause: str, edit: Callable) -> None:
    """Add an edit to a tensor. Raises InputError where no tensor has this name and shape, or it is quantized."""
    entry = entries.get(name)
    if entry is None or entry.tensor.shape != shape or entry.dtype not in TORCH_NAMES:
        if entry:
            present = f"one of shape {entry.tensor.shape} in {entry.dtype}"
        else:
            present = "no such tensor"
        raise InputError(
            f"{cause} changes {name} of shape {shape}, and the checkpoint without these layers has {present}: give "
            f"what was made of this model after this cut, and weights in one of {', '.join(TORCH_NAMES)}"
        )
    entry.edits.append(edit)


def cast_entries(entries: Entries, layout: Layout, dtype: str, dequantized: bool) -> str | None:
    """Have real numbers written in a data type, see `slice_checkpoint`. Returns that type; None where types stay.
    `dequantized`: the checkpoint was made of a GGUF file."""
    if dtype not in ("auto", *DTYPES):
        raise InputError(
            f"dtype is {dtype!r:.40}, expected 'auto' or one of {', '.join(map(repr, DTYPES))}"
        )
    if dtype == "auto" and not dequantized:
        return None
    _check_plain(entries, layout, "cast: leave dtype out, and they are copied")
    if dtype == "auto":
        dtype = find_smallest_dtype(entries)
    for entry in entries.values():
        if entry.dtype in TORCH_NAMES:
            entry.dtype = next(
                name for name, torch_name in TORCH_NAMES.items() if torch_name == dtype
            )
    return dtype


def find_smallest_dtype(entries: Entries) -> str:
    """The smallest data type that holds every float32 number of a checkpoint exactly. For weights that had fewer than
    16 bits it is float32, as they are products of a scale and small whole numbers."""
    fitting = [torch.bfloat16, torch.float16]
    for entry in entries.values():
        if entry.dtype == "F32":
            values = entry.read()
            fitting = [dtype for dtype in fitting if torch.equal(values.to(dtype).float(), values)]
    return str((*fitting, torch.float32)[0]).removeprefix("torch.")


def _check_plain(entries: Entries, layout: Layout, what: str) -> None:
    """Raise InputError for a quantized checkpoint, whose numbers have no meaning without their scales."""
    types = {entry.dtype[:2] for entry in entries.values()}
    if "quantization_config" in layout.config | configuration.text_part(layout.config) or types & {
        "F8",
        "F6",
        "F4",
    }:
        raise InputError(f"{layout.folder} holds quantized weights, which can't be {what}")


# ---- files -------------------------------------------------------------------------------------------------------


def group_files(entries: Entries) -> dict[str, Entries]:
    """The entries of each file to write, by file name: tensors are divided into files as in the source."""
    groups: dict[Path, Entries] = {}
    for name, entry in entries.items():
        groups.setdefault(entry.tensor.path, {})[name] = entry
    if len(groups) == 1:
        return {SINGLE: entries}
    return {
        f"model-{i:05d}-of-{len(groups):05d}.safetensors": group
        for i, group in enumerate(groups.values(), 1)
    }


def format_index(files: dict[str, Entries]) -> dict[str, str]:
    """The index of several files, as text by its file name; nothing for a single file."""
    if len(files) < 2:
        return {}
    weight_map = {}
    total = 0
    for file, entries in files.items():
        weight_map |= dict.fromkeys(entries, file)
        total += sum(entry.size for entry in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {INDEX: json.dumps(index, indent=2)}


def count_file_bytes(entries: Entries) -> int:
    """Bytes of a safetensors file of these tensors, its header included."""
    return len(_format_header(entries)) + sum(entry.size for entry in entries.values())


def write_tensors(files: dict[str, Entries], folder: Path, out: Path) -> None:
    """Write the files into `folder`, which will become `out`. One that exists is complete, from an interrupted run."""
    missing = {file: entries for file, entries in files.items() if not (folder / file).exists()}
    needed = sum(map(count_file_bytes, missing.values()))
    check_disk_space(needed, folder, out)
    with show_bytes_written(needed) as bar:
        for file, entries in missing.items():
            partial = folder / f".{file}.partial"
            with open(partial, "wb") as stream:
                bar.update(stream.write(_format_header(entries)))
                for name, entry in entries.items():
                    bar.update(stream.write(entry.content(name)))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, folder / file)


def _format_header(entries: Entries) -> bytes:
    """The header of a safetensors file."""
    offset = 0
    metadata = next(iter(entries.values())).tensor.metadata
    header: dict = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    for name, entry in entries.items():
        end = offset + entry.size
        header[name] = {
            "dtype": entry.dtype,
            "shape": entry.tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    return len(text).to_bytes(8, "little") + text
