"""Safetensors files written tensor by tensor: bytes where only a name changes, edited rows elsewhere.

A few megabytes are held. A file is hashed in a second thread while it is written, and synced when it is whole.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from tqdm import tqdm

from deeper_layers.errors import InputError, in_bytes
from deeper_layers.files import partial_name
from deeper_layers.models.checkpoint_files import INDEX, Shard, Tensor
from deeper_layers.package_index import file_hash

if TYPE_CHECKING:  # slow
    import torch

# of some rows of a tensor, and which rows these are, the new rows
Edit = Callable[["torch.Tensor", slice], "torch.Tensor"]
CHUNK = 2**22  # bytes copied at a time
BLOCK = 2**20  # numbers of a tensor edited at a time
REAL_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # of a number, by its type's name in a safetensors file


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its new name and data type, where it lies now, and what is done to its rows, in order."""

    name: str
    dtype: str
    shard: Shard
    tensor: Tensor
    edits: tuple[Edit, ...] = ()

    @property
    def shape(self) -> list[int]:
        return self.tensor.entry["shape"]

    @property
    def bytes(self) -> int:
        """How many it has where it is written."""
        return math.prod(self.shape) * REAL_BYTES[self.dtype] if self.edits else self.tensor.bytes

    def edited(self, edit: Edit, dtype: str | None = None) -> "Entry":
        return replace(self, edits=(*self.edits, edit), dtype=dtype or self.dtype)


def write_tensors(files: dict[str, list[Entry]], folder: Path, out: Path) -> dict[str, str]:
    """Write safetensors files, each of one file's tensors, and their index where they are several; the SHA-256 of each.

    A file that is there by its name is whole, from an interrupted run of the same. `out` is named in messages.

    Raises:
        InputError: they don't fit on the disk, a source became shorter, or an edit refuses a tensor.
        OSError: one can't be written.
    """
    sizes, hashes = {file: file_bytes(entries) for file, entries in files.items()}, {}
    check_space(out, folder, sum(size for file, size in sizes.items() if not (folder / file).exists()))
    with progress(sum(sizes.values())) as bar:
        for file, entries in files.items():
            if (folder / file).exists():
                bar.update(sizes[file])
                hashes[file] = file_hash(folder / file)
            else:
                partial = folder / partial_name(file)
                hashes[file] = write_hashed(partial, _content(entries), bar)
                os.replace(partial, folder / file)
    if len(files) > 1:
        weight_map = {entry.name: file for file, entries in files.items() for entry in entries}
        total = sum(entry.bytes for entries in files.values() for entry in entries)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
        hashes[INDEX] = file_hash(folder / INDEX)
    return hashes


def file_bytes(entries: list[Entry]) -> int:
    """Bytes of a safetensors file of these tensors, its header included."""
    return len(_head(entries)) + sum(entry.bytes for entry in entries)


def check_space(out: Path, folder: Path, needed: int) -> None:
    """Raise InputError where so many bytes are not free in `folder`, for what will be at `out`."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"{out} needs {in_bytes(needed)} more, where {in_bytes(free)} are free: free some, or name another disk"
        )


def progress(total: int) -> tqdm:
    """A bar of so many bytes."""
    return tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr)


def write_hashed(path: Path, blocks: Iterable[bytes], bar: tqdm) -> str:
    """Write blocks of bytes to a file, and sync it; its SHA-256. Raises OSError where it can't be written."""
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(int)
        for block in blocks:
            hashed.result()  # so that few blocks are in memory
            hashed = beside.submit(digest.update, block)
            if file.write(block) != len(block):  # the disk took a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            bar.update(len(block))
        os.fsync(file.fileno())
    return digest.hexdigest()


def _head(entries: list[Entry]) -> bytes:
    """The beginning of a safetensors file."""
    place, metadata = 0, entries[0].shard.metadata
    header = {} if metadata is None else {"__metadata__": metadata}
    for entry in entries:
        offsets = [place, place := place + entry.bytes]
        header[entry.name] = entry.tensor.entry | {"dtype": entry.dtype, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    return len(text).to_bytes(8, "little") + text


def _content(entries: list[Entry]) -> Iterator[bytes]:
    """A safetensors file, some bytes at a time."""
    yield _head(entries)
    for entry in entries:
        if not entry.edits:
            start = entry.shard.start + entry.tensor.entry["data_offsets"][0]
            yield from read_bytes(entry.shard.path, start, entry.bytes)
            continue
        import torch  # slow: what is copied alone needs none

        for part, values in read_rows(entry):
            for edit in entry.edits:
                values = edit(values, part)
            yield values.reshape(-1).view(torch.uint8).numpy().tobytes()


def read_bytes(path: Path, start: int, length: int) -> Iterator[bytes]:
    """A part of a file, CHUNK bytes at a time. Raises InputError where it ends before."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while length:
            if not (block := file.read(min(CHUNK, length))):
                raise InputError(f"{path} ended while it was copied: fetch it again")
            length -= len(block)
            yield block


def read_rows(entry: Entry) -> "Iterator[tuple[slice, torch.Tensor]]":
    """A tensor as it lies in its file, BLOCK numbers at a time, and which rows they are; a number alone is a row."""
    rows = entry.shape[0] if entry.shape else 1
    step = max(1, BLOCK * rows // max(1, math.prod(entry.shape)))
    with safe_open(entry.shard.path, framework="pt") as reader:
        whole = reader.get_slice(entry.tensor.name) if entry.shape else reader.get_tensor(entry.tensor.name)[None]
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            yield part, whole[part]
