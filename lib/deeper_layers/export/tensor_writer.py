"""Tensors of safetensors files streamed into new ones: bytes where only their names change, edited rows elsewhere.

Two files are written at once, each hashed in a second thread while it is written, and synced when it is whole. A few
megabytes of each are held.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from tqdm import tqdm

from deeper_layers.errors import InputError, in_bytes
from deeper_layers.files import partial_name
from deeper_layers.models.checkpoint_files import INDEX, Shard, Tensor
from deeper_layers.package_index import file_hash

if TYPE_CHECKING:
    import torch

# of some rows of a tensor, and which rows these are, the new rows
Edit = Callable[["torch.Tensor", slice], "torch.Tensor"]
CHUNK = 2**22  # bytes copied at a time
BLOCK = 2**20  # numbers of a tensor edited at a time
AT_ONCE = 2  # files
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

    def edited(self, *edits: Edit, dtype: str | None = None) -> "Entry":
        return replace(self, edits=(*self.edits, *edits), dtype=dtype or self.dtype)


def write_tensors(files: dict[str, list[Entry]], folder: Path, out: Path) -> dict[str, str]:
    """Write safetensors files into a folder, and their index where they are several; the SHA-256 of each, by name.

    A file that is there by its name is whole, from an interrupted run of the same. `out` is named in messages.

    Raises:
        InputError: they don't fit on the disk, a source became shorter, or an edit refuses a tensor.
        OSError: one can't be written.
    """
    sizes = {file: sum(entry.bytes for entry in entries) for file, entries in files.items()}
    more = sum(size for file, size in sizes.items() if not (folder / file).exists())
    if more > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"{out} needs {in_bytes(more)} more, where {in_bytes(free)} are free: free some space, or give a folder on "
            "another disk"
        )
    stop, total = threading.Event(), sum(sizes.values())
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr) as bar,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def write(file: str) -> str:
            if not (folder / file).exists():
                return _write_file(files[file], folder / file, bar, stop)
            bar.update(sizes[file])
            return file_hash(folder / file)

        try:
            hashes = dict(zip(files, pool.map(write, files), strict=True))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if len(files) > 1:
        weight_map = {entry.name: file for file, entries in files.items() for entry in entries}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
        hashes[INDEX] = file_hash(folder / INDEX)
    return hashes


class HashedFile:
    """A file that is hashed in a second thread while it is written, and synced at its end."""

    def __init__(self, path: Path):
        self.file, self.digest, self.beside = open(path, "wb", buffering=0), hashlib.sha256(), ThreadPoolExecutor(1)
        self.hashed = self.beside.submit(int)

    def write(self, block: bytes) -> None:
        """Write all of it. Raises OSError where the disk took a part."""
        self.hashed.result()  # so that few blocks are in memory
        self.hashed = self.beside.submit(self.digest.update, block)
        if self.file.write(block) != len(block):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self) -> str:
        """All is on the disk; the SHA-256."""
        os.fsync(self.file.fileno())
        self.hashed.result()
        return self.digest.hexdigest()

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *_) -> None:
        self.beside.shutdown()
        self.file.close()


def _write_file(entries: list[Entry], out: Path, bar, stop: threading.Event) -> str:
    """Write one file, in the order of its source, which is absent or whole; its SHA-256."""
    shard, place, partial = entries[0].shard, 0, out.with_name(partial_name(out.name))
    entries = sorted(entries, key=lambda entry: entry.tensor.entry["data_offsets"])
    header = {} if shard.metadata is None else {"__metadata__": shard.metadata}
    for entry in entries:
        offsets = [place, place := place + entry.bytes]
        header[entry.name] = entry.tensor.entry | {"dtype": entry.dtype, "data_offsets": offsets}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format aligns data to 8 bytes
    edited = safe_open(shard.path, framework="pt") if any(entry.edits for entry in entries) else nullcontext()
    with edited as reader, open(shard.path, "rb", buffering=0) as source, HashedFile(partial) as target:
        target.write(len(head).to_bytes(8, "little") + head)
        for entry in entries:
            for block in _rows(entry, reader) if entry.edits else _bytes(entry, source):
                if stop.is_set():
                    raise InterruptedError
                target.write(block)
                bar.update(len(block))
        sha256 = target.finish()
    os.replace(partial, out)
    return sha256


def _bytes(entry: Entry, source) -> Iterator[bytes]:
    """A tensor's bytes as they are."""
    left = entry.tensor.bytes
    source.seek(entry.shard.start + entry.tensor.entry["data_offsets"][0])
    while left:
        block = source.read(min(CHUNK, left))
        if not block:
            raise InputError(f"{source.name} ended while it was copied: fetch it again")
        left -= len(block)
        yield block


def _rows(entry: Entry, reader) -> Iterator[bytes]:
    """A tensor's bytes, edited some rows at a time."""
    import torch  # slow: what is copied alone needs none

    for part, values in read_rows(entry, reader):
        for edit in entry.edits:
            values = edit(values, part)
        yield values.reshape(-1).view(torch.uint8).numpy().tobytes()


def read_rows(entry: Entry, reader) -> "Iterator[tuple[slice, torch.Tensor]]":
    """A tensor of an open safetensors file some rows at a time, and which rows they are; a number alone is a row."""
    rows = entry.shape[0] if entry.shape else 1
    whole = reader.get_slice(entry.tensor.name) if entry.shape else reader.get_tensor(entry.tensor.name)[None]
    step = max(1, BLOCK * rows // max(1, math.prod(entry.shape)))
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        yield part, whole[part]
