"""The header of a GGUF file: its metadata and its table of tensors, read within bounds.

A header is whatever somebody wrote: numbers of entries, lengths and offsets are claims. Nothing is read or reserved
on a claim before the file is known to hold it, and the tensors must lie as llama.cpp demands: one after the other, in
the order of the table, aligned, within the file.
"""

import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, READER_SUPPORTED_VERSIONS, GGMLQuantizationType
from gguf import GGUFValueType as Kind

# far above any model: a header of more would take minutes to read
MOST_BYTES, MOST_ITEMS, MOST_TENSORS, MOST_ENTRIES = 1 << 28, 10_000_000, 100_000, 100_000
MOST_DIMENSIONS = 4  # of ggml
NUMBERS = {
    Kind.UINT8: "u1", Kind.INT8: "i1", Kind.UINT16: "<u2", Kind.INT16: "<i2", Kind.UINT32: "<u4", Kind.INT32: "<i4",
    Kind.FLOAT32: "<f4", Kind.BOOL: "u1", Kind.UINT64: "<u8", Kind.INT64: "<i8", Kind.FLOAT64: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One value of the metadata, a list where its kind is ARRAY; `inner` is the kind of what is in that."""

    value: Any
    kind: Kind
    inner: Kind | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor of the table. The shape is in ggml's order, rows first; the offset is from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def data(self, path: Path) -> np.ndarray:
        """Its bytes in the file, mapped into memory."""
        return np.memmap(path, dtype=np.uint8, mode="r", offset=self.offset, shape=(self.bytes,))


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights."""

    entries: dict[str, Entry]
    tensors: tuple[Tensor, ...]
    alignment: int

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata."""
        return self.entries[key].value if key in self.entries else default


def read_header(path: Path) -> Header:
    """Read it. Raises ValueError, with the reason, where it breaks the format; OSError where there is no file."""
    # a FIFO would be waited for
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        reader = _Reader(file, found.st_size)
        if reader.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = reader.number(Kind.UINT32)
        if version not in READER_SUPPORTED_VERSIONS:
            other = version and version % 65536 == 0
            raise ValueError("it is in the byte order of other processors" if other else f"its version is {version}")
        tensors = reader.count(MOST_TENSORS, 24, "tensors")
        entries: dict[str, Entry] = {}
        for _ in range(reader.count(MOST_ENTRIES, 13, "entries of metadata")):
            key = reader.string()
            if key in entries:
                raise ValueError(f"it has the entry {key!r} twice")
            entries[key] = reader.entry()
        alignment = entries.get("general.alignment", Entry(GGUF_DEFAULT_ALIGNMENT, Kind.UINT32))
        if alignment.kind != Kind.UINT32 or alignment.value.bit_count() != 1:
            raise ValueError(f"its general.alignment is {alignment.value!r}, expected a power of 2")
        table = [reader.tensor() for _ in range(tensors)]
        start = _aligned(reader.position, alignment.value)
        return Header(entries, _placed(table, start, alignment.value, found.st_size), alignment.value)


class _Reader:
    """Reads a header from the front, never past its end."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.end, self.position, self.items = file, min(size, MOST_BYTES), 0, 0

    def take(self, length: int) -> bytes:
        if length > (left := self.end - self.position):
            raise ValueError(f"its header needs {length} bytes from byte {self.position} on, where {left} are left")
        self.position += length
        if len(content := self.file.read(length)) != length:
            raise ValueError("it became shorter while it was read")
        return content

    def number(self, kind: Kind) -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: Kind, length: int) -> list:
        numbers = np.frombuffer(self.take(length * np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind])
        if kind != Kind.BOOL:
            return numbers.tolist()
        if numbers.max(initial=0) > 1:
            raise ValueError("one of its truth values is neither 0 nor 1")
        return numbers.astype(bool).tolist()

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """How many of something follow, each of at least so many bytes."""
        found = self.number(Kind.UINT64)
        if found > most or found * least_bytes > self.end:
            raise ValueError(f"it claims {found} {what}, more than it can hold")
        return found

    def string(self) -> str:
        return self.take(struct.unpack("<Q", self.take(8))[0]).decode()

    def entry(self) -> Entry:
        kind = self.kind()
        if kind != Kind.ARRAY:
            return Entry(self.string() if kind == Kind.STRING else self.number(kind), kind)
        inner = self.kind()
        if inner == Kind.ARRAY:
            raise ValueError("one of its arrays is of arrays, which ggml does not read")
        length = self.count(MOST_ITEMS - self.items, 1, "items of an array")
        self.items += length
        values = [self.string() for _ in range(length)] if inner == Kind.STRING else self.numbers(inner, length)
        return Entry(values, kind, inner)

    def kind(self) -> Kind:
        return Kind(self.number(Kind.UINT32))

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        """Name, shape, type and offset after the start of the weights."""
        name, dimensions = self.string(), self.number(Kind.UINT32)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"its tensor {name!r} has {dimensions} dimensions, expected 1 to {MOST_DIMENSIONS}")
        shape = tuple(self.numbers(Kind.UINT64, dimensions))
        return name, shape, GGMLQuantizationType(self.number(Kind.UINT32)), self.number(Kind.UINT64)


def _placed(table: list, start: int, alignment: int, size: int) -> tuple[Tensor, ...]:
    """The tensors, where each begins in the file; they must fill it from `start` to its end."""
    found, names, place, end = [], set(), start, start
    for name, shape, kind, offset in table:
        block, width = GGML_QUANT_SIZES[kind]
        if name in names:
            raise ValueError(f"it has the tensor {name!r} twice")
        if 0 in shape or shape[0] % block:
            raise ValueError(f"its tensor {name!r} has the shape {list(shape)}, which {kind.name} can't have")
        if start + offset != place:
            raise ValueError(f"its tensor {name!r} is at {offset}, expected {place - start}, after the one before")
        found.append(Tensor(name, shape, kind, place, math.prod(shape) // block * width))
        names.add(name)
        end = place + found[-1].bytes
        if end > size:
            raise ValueError(f"its tensor {name!r} ends at byte {end}, after the end of the file, {size}")
        place = _aligned(end, alignment)
    if not found:
        raise ValueError("it has no tensors")
    if size > place:
        raise ValueError(f"the {size - place} bytes after its last tensor are of none")
    return tuple(found)


def _aligned(position: int, alignment: int) -> int:
    return position + -position % alignment
