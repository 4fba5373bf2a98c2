"""GGUF files: metadata and table of tensors, read within bounds, and whether they describe one model.

A header is whatever somebody wrote: counts and lengths in it are claims, and none is followed beyond the bytes that are
there. gguf's own reader takes 5 to 10 seconds for a vocabulary, where this takes 0.2, and trusts every claim.
"""

import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGUFValueType as Kind

from deeper_layers.errors import InputError, unreadable

MOST_BYTES = 2**26  # of a header: four times that of a vocabulary of 262,000 tokens
MOST_DIMENSIONS = 4  # of ggml
NUMBERS = {
    Kind.UINT8: "u1", Kind.INT8: "i1", Kind.UINT16: "<u2", Kind.INT16: "<i2", Kind.UINT32: "<u4", Kind.INT32: "<i4",
    Kind.FLOAT32: "<f4", Kind.BOOL: "?", Kind.UINT64: "<u8", Kind.INT64: "<i8", Kind.FLOAT64: "<f8",
}  # fmt: skip
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)", re.ASCII)
# architectures whose layers all have the same tensors in llama.cpp
UNIFORM = frozenset(
    "falcon gemma gemma2 gemma3 gpt2 gptneox llama olmo phi2 qwen2 qwen2moe qwen3 qwen3moe stablelm starcoder2".split()
)


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
    kind: gguf.GGMLQuantizationType
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


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file, checked. Raises InputError where it is not a whole file of one model."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give the path of a .gguf file")
    try:
        # a pipe would be waited for
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            header = _Reader(file).header()
        _check_model(header)
    except (ValueError, OSError) as error:  # ValueError: also an unknown type, or bytes that are no text
        raise unreadable(path, "a whole GGUF file", error) from error
    return header


def architecture(header: Header) -> str:
    """The name of a model's architecture in llama.cpp."""
    return header.get("general.architecture")


def layers_of(header: Header) -> int:
    """The number of a model's layers."""
    return header.get(f"{architecture(header)}.block_count")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor is of; None for one of no layer. Raises ValueError for blk without one."""
    if name.partition(".")[0] != "blk":
        return None
    if (found := LAYER.fullmatch(name)) is None:
        raise ValueError(f"its tensor {name!r} is of no layer that has a number")
    return int(found[1])


class _Reader:
    """Reads a header from the front. Raises ValueError, with the reason, where it breaks the format."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.left = min(self.size, MOST_BYTES)

    def header(self) -> Header:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := self.number(Kind.UINT32)) not in gguf.READER_SUPPORTED_VERSIONS:
            raise ValueError(f"its version is {version}, or it is in the byte order of other processors")
        tensors, number = self.count(), self.count()
        entries: dict[str, Entry] = {}
        for _ in range(number):
            if (key := self.string()) in entries:
                raise ValueError(f"it has the entry {key!r} twice")
            entries[key] = self.entry()
        alignment = entries.get("general.alignment", Entry(gguf.GGUF_DEFAULT_ALIGNMENT, Kind.UINT32))
        if alignment.kind != Kind.UINT32 or alignment.value.bit_count() != 1:
            raise ValueError(f"its general.alignment is {alignment.value!r}, expected a power of 2")
        table = [self.tensor() for _ in range(tensors)]
        return Header(entries, self.placed(table, alignment.value), alignment.value)

    def take(self, length: int) -> bytes:
        self.left -= length
        if self.left < 0 or len(content := self.file.read(length)) != length:
            raise ValueError("its header ends too early, or is longer than that of any model")
        return content

    def numbers(self, kind: Kind, length: int) -> list:
        return np.frombuffer(self.take(length * np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind]).tolist()

    def number(self, kind: Kind) -> Any:
        return self.numbers(kind, 1)[0]

    def kind(self) -> Kind:
        return Kind(self.number(Kind.UINT32))

    def count(self) -> int:
        """How many of something follow, each of at least a byte."""
        if (found := int.from_bytes(self.take(8), "little")) > self.left:
            raise ValueError(f"it claims {found} of something, more than it can hold")
        return found

    def string(self) -> str:
        return self.take(int.from_bytes(self.take(8), "little")).decode()

    def entry(self) -> Entry:
        kind = self.kind()
        if kind != Kind.ARRAY:
            value = self.string() if kind == Kind.STRING else self.number(kind)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"one of its entries is {value}, expected a finite number")
            return Entry(value, kind)
        inner, length = self.kind(), self.count()
        if inner == Kind.ARRAY:
            raise ValueError("one of its arrays is of arrays, which ggml does not read")
        values = [self.string() for _ in range(length)] if inner == Kind.STRING else self.numbers(inner, length)
        return Entry(values, kind, inner)

    def tensor(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        """Name, shape, type and offset after the start of the weights."""
        name, dimensions = self.string(), self.number(Kind.UINT32)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"its tensor {name!r} has {dimensions} dimensions, expected 1 to {MOST_DIMENSIONS}")
        shape = tuple(self.numbers(Kind.UINT64, dimensions))
        return name, shape, gguf.GGMLQuantizationType(self.number(Kind.UINT32)), self.number(Kind.UINT64)

    def placed(self, table: list, alignment: int) -> tuple[Tensor, ...]:
        """The tensors, each where it lies: as llama.cpp demands one after another, aligned, up to the file's end."""
        found: dict[str, Tensor] = {}
        start = end = self.file.tell() + -self.file.tell() % alignment
        for name, shape, kind, offset in table:
            block, width = gguf.GGML_QUANT_SIZES[kind]
            if name in found or 0 in shape or shape[0] % block or start + offset != end:
                raise ValueError(f"its tensor {name!r} is there twice, has no shape of its type, or lies elsewhere")
            found[name] = Tensor(name, shape, kind, end, math.prod(shape) // block * width)
            if (end := end + found[name].bytes) > self.size:
                raise ValueError(f"its tensor {name!r} ends at byte {end}, after the end of the file, {self.size}")
            end += -end % alignment
        if not found or self.size > end:
            raise ValueError("it has no tensors, or bytes after the last one")
        return tuple(found.values())


def _check_model(header: Header) -> None:
    """Raise ValueError unless the tensors are those of one model, as the metadata describe it."""
    arch = header.get("general.architecture")
    if not isinstance(arch, str) or not re.fullmatch(r"[\w.-]+", arch):
        raise ValueError("it names no general.architecture")
    if header.get("split.count", 0) not in (0, 1):
        raise ValueError("it is one of several files: join them with llama-gguf-split --merge")
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if (number := layer_of(name)) is not None:
            layers.setdefault(number, {})[name.split(".", 2)[2]] = shape
    if (
        type(stated := header.get(f"{arch}.block_count")) is not int
        or stated != len(layers)
        or max(layers, default=-1) != stated - 1
    ):
        raise ValueError(f"its {arch}.block_count is {stated!r:.40}, and it has tensors of {len(layers)} layers")
    vary = any(key.startswith(f"{arch}.") and entry.inner for key, entry in header.entries.items())
    for number, tensors in layers.items() if arch in UNIFORM else ():
        if tensors.keys() != layers[0].keys() or not vary and tensors != layers[0]:
            raise ValueError(f"its layers 0 and {number} have unlike tensors")
    rows, tokens = shapes.get("token_embd.weight", (0,))[-1], header.get("tokenizer.ggml.tokens")
    rows = rows if tokens is None else len(tokens) if isinstance(tokens, list) else -1
    width = header.get(f"{arch}.embedding_length", shapes.get("token_embd.weight", (0,))[0])
    expected = {"token_embd.weight": (width, rows), "output.weight": (width, rows), "output_norm.weight": (width,)}
    for name, shape in expected.items():
        if name in shapes and (shapes[name] != shape or header.get(f"{arch}.vocab_size", rows) != rows):
            raise ValueError(f"its tensor {name!r} has the shape {list(shapes[name])}, expected {list(shape)}")
    if arch in UNIFORM:
        known = gguf.MODEL_TENSORS[next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)]
        names = {gguf.TENSOR_NAMES[tensor] for tensor in known}
        found = {name.rpartition(".")[0] for name in shapes if layer_of(name) is None}
        if strange := sorted(found - names | {"token_embd", "output_norm"} & names - found):
            raise ValueError(f"its tensor {strange[0]!r} is missing, or none of {arch}")
