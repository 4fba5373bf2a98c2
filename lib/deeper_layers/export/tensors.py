"""Tensors on their way from the files of a checkpoint into new ones.

What only gets another name is copied as bytes. Zeros, values of a rule, adapters and other data types are worked out
for one tensor at a time, which alone is in memory.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from tqdm import tqdm

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError, in_bytes
from deeper_layers.models.checkpoint_files import INDEX, Shard, Tensor, read_shards
from deeper_layers.models.configuration import text_part
from deeper_layers.package_index import file_hash

if TYPE_CHECKING:  # slow
    import torch

    from deeper_layers.export.adapter_files import Adapter
    from deeper_layers.export.layer_tensors import Layout

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # by their names in torch those in a file
TORCH = {"F64": "float64"} | {name: dtype for dtype, name in DTYPES.items()}  # of all real numbers
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # bytes of these
Edit = Callable[["torch.Tensor"], "torch.Tensor"]
CHUNK = 2**22  # bytes copied at a time


@dataclass
class Entry:
    """A tensor to write: where it lies now, the type that it will have, and what is done to it before, in order."""

    shard: Shard
    tensor: Tensor
    dtype: str
    edits: list[Edit] = field(default_factory=list)

    @property
    def shape(self) -> list[int]:
        return self.tensor.entry["shape"]

    @property
    def size(self) -> int:
        """In bytes, where it is written."""
        return self.tensor.bytes * WIDTHS.get(self.dtype, 1) // WIDTHS.get(self.tensor.entry["dtype"], 1)

    def read(self) -> "torch.Tensor":
        with safe_open(self.shard.path, framework="pt") as file:
            return file.get_tensor(self.tensor.name)

    def content(self, name: str) -> Iterator[bytes]:
        """What is written under a name. Raises InputError where that is not finite, and it was."""
        if not self.edits and self.dtype == self.tensor.entry["dtype"]:
            yield from read_bytes(self.shard.path, self.shard.start + self.tensor.entry["data_offsets"][0], self.size)
            return
        import torch  # slow: what is copied alone needs none

        old = new = self.read()
        for edit in self.edits:
            new = edit(new)
        new = new.to(getattr(torch, TORCH[self.dtype]))
        if not new.isfinite().all() and old.isfinite().all():
            raise InputError(
                f"{name} would hold numbers that are not finite, or too large for {new.dtype}: give a dtype of a "
                "larger range, or another rule or other adapters"
            )
        yield new.reshape(-1).view(torch.uint8).numpy().tobytes()


Entries = dict[str, Entry]  # by the names under which they are written


def read_entries(folder: Path) -> Entries:
    """The tensors of a checkpoint by their names, as they lie in its files. Raises InputError as `read_shards`."""
    found = {}
    for shard in read_shards(folder):
        for tensor in sorted(shard.tensors, key=lambda tensor: tensor.entry["data_offsets"]):
            found[tensor.name] = Entry(shard, tensor, tensor.entry["dtype"])
    return found


@dataclass(frozen=True)
class Changed:
    """What a rule made of the layers that stay.

    Attributes:
        tensors: by "number of the layer in what is left.name in it".
        words: which rule, and what it did.
    """

    tensors: Mapping[str, "torch.Tensor"]
    words: str


def zero_sublayers(entries: Entries, layout: "Layout", cut: Cut) -> None:
    """Zeros in the tensors by which the sublayers of a cut write into the residual."""
    import torch  # slow

    from deeper_layers.models.sublayers import ends_sublayer

    _check_plain(entries, layout, "written as zeros: zero the sublayers of what it was made of")
    new = layout.numbers(cut)
    for part, layers in ((ATTENTION, cut.attention), (MLP, cut.mlp)):
        for layer in layers:
            begin = f"{layout.prefix}{new[layer]}."
            inside = [name for name in entries if name.startswith(begin)]
            ends = [name for name in inside if ends_sublayer(name.removeprefix(begin), part)]
            if not ends:
                said = f"no tensor of a known name that ends the {part} of its layer {layer}"
                raise InputError(f"{layout.folder} has {said}: drop whole layers")
            for name in ends:
                entries[name].edits.append(torch.zeros_like)


def replace_tensors(entries: Entries, layout: "Layout", changed: Changed) -> None:
    """The values of a rule in place of the source's own, in the type of these."""
    for inside, tensor in changed.tensors.items():
        _edit(entries, f"{layout.prefix}{inside}", list(tensor.shape), "the rule", tensor.to)


def add_adapter(entries: Entries, layout: "Layout", adapter: "Adapter") -> None:
    """Low-rank updates added to the weights as `merge_adapters` does, then rounded to the type that was there."""
    for module, (a, b) in adapter.factors.items():
        name = f"{layout.prefix}{module.removeprefix(layout.module)}" if module.startswith(layout.module) else module
        shape = [len(b), a.shape[1]][:: -1 if adapter.settings.get("fan_in_fan_out") else 1]

        def add(old, module=module):
            return (old.float() + adapter.change(module)).to(old.dtype)

        _edit(entries, f"{name}.weight", shape, f"the adapters in {adapter.folder}", add)


def _edit(entries: Entries, name: str, shape: list[int], what: str, edit: Edit) -> None:
    """Have a tensor edited. Raises InputError where there is none of that name and shape, or it is quantized."""
    entry = entries.get(name)
    if entry is None or entry.shape != shape or entry.dtype not in TORCH:
        there = "no such tensor" if entry is None else f"one of shape {entry.shape} in {entry.dtype}"
        raise InputError(
            f"{what} changes {name} of shape {shape}, and the checkpoint without these layers has {there}: give what "
            f"was made of this model after this cut, and weights in one of {', '.join(TORCH)}"
        )
    entry.edits.append(edit)


def cast_entries(entries: Entries, layout: "Layout", dtype: str, dequantized: bool) -> str | None:
    """Have real numbers written in a data type, see `slice_checkpoint`; which it is, None where they stay as they are.

    `dequantized`: the checkpoint was made of a GGUF file. Raises InputError for another type, and quantized weights.
    """
    if dtype not in ("auto", *DTYPES):
        raise InputError(f"dtype is {dtype!r:.40}, expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    if dtype == "auto" and not dequantized:
        return None
    _check_plain(entries, layout, "cast: leave dtype out, and they are copied")
    dtype = smallest_dtype(entries) if dtype == "auto" else dtype
    for entry in entries.values():
        entry.dtype = DTYPES[dtype] if entry.dtype in TORCH else entry.dtype
    return dtype


def _check_plain(entries: Entries, layout: "Layout", what: str) -> None:
    """Raise InputError for a quantized checkpoint, whose numbers mean nothing without their scales."""
    types = {entry.dtype[:2] for entry in entries.values()}
    if "quantization_config" in layout.config | text_part(layout.config) or types & {"F8", "F6", "F4"}:
        raise InputError(f"{layout.folder} holds quantized weights, which can't be {what}")


def smallest_dtype(entries: Entries) -> str:
    """The smallest of DTYPES that holds every number of a checkpoint in float32 exactly, as it is made of a GGUF file.

    Of weights in fewer than 16 bits that is float32: they are products of a scale and small whole numbers.
    """
    import torch  # slow

    fitting = [torch.bfloat16, torch.float16]
    for values in (entry.read() for entry in entries.values() if entry.dtype == "F32"):
        fitting = [dtype for dtype in fitting if torch.equal(values.to(dtype).float(), values)]
    return str((*fitting, torch.float32)[0]).removeprefix("torch.")


def write_tensors(files: dict[str, Entries], folder: Path, out: Path) -> dict[str, str]:
    """Write safetensors files, each of tensors by their names; the SHA-256 of each.

    One that is there is whole, from an interrupted run of the same. Each is hashed while the next one is written. `out`
    is named in messages. Raises OSError where one can't be written.
    """
    sizes = {file: file_bytes(entries) for file, entries in files.items() if not (folder / file).exists()}
    check_space(out, folder, sum(sizes.values()))
    hashes = {}
    with progress(sum(sizes.values())) as bar, ThreadPoolExecutor(1) as beside:
        for file, entries in files.items():
            if file in sizes:
                contents, partial = (entry.content(name) for name, entry in entries.items()), f".{file}.partial"
                write_blocks(folder / partial, itertools.chain([_head(entries)], *contents), bar)
                os.replace(folder / partial, folder / file)
            hashes[file] = beside.submit(file_hash, folder / file)
    return {file: found.result() for file, found in hashes.items()}


def file_bytes(entries: Entries) -> int:
    """Bytes of a safetensors file of these tensors, its header included."""
    return len(_head(entries)) + sum(entry.size for entry in entries.values())


def index_text(files: dict[str, Entries]) -> dict[str, str]:
    """The index of these files, by its name, where they are several."""
    weight_map = {name: file for file, entries in files.items() for name in entries}
    total = sum(entry.size for entries in files.values() for entry in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {INDEX: json.dumps(index, indent=2)} if len(files) > 1 else {}


def check_space(out: Path, folder: Path, needed: int) -> None:
    """Raise InputError where so many bytes are not free in `folder`, for what will be at `out`."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"{out} needs {in_bytes(needed)} more, where {in_bytes(free)} are free: free some, or name another disk"
        )


def progress(total: int) -> tqdm:
    """A bar of so many bytes."""
    return tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr)


def write_blocks(path: Path, blocks: Iterable[bytes], bar: tqdm) -> None:
    """Write blocks of bytes to a file, and sync it. Raises OSError where it can't be written."""
    with open(path, "wb") as file:
        for block in blocks:
            bar.update(file.write(block))
        file.flush()
        os.fsync(file.fileno())


def read_bytes(path: Path, start: int, length: int) -> Iterator[bytes]:
    """A part of a file, CHUNK bytes at a time. Raises InputError where it ends before."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while length:
            if not (block := file.read(min(CHUNK, length))):
                raise InputError(f"{path} ended while it was copied: fetch it again")
            length -= len(block)
            yield block


def _head(entries: Entries) -> bytes:
    """The beginning of a safetensors file."""
    place, metadata = 0, next(iter(entries.values())).shard.metadata
    header = {} if metadata is None else {"__metadata__": metadata}
    for name, entry in entries.items():
        offsets = [place, place := place + entry.size]
        header[name] = entry.tensor.entry | {"dtype": entry.dtype, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    return len(text).to_bytes(8, "little") + text
