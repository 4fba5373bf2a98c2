"""GGUF files: metadata and table of tensors, read within bounds, and whether they describe one model.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header is whatever somebody wrote: no length in
it is followed beyond the bytes that are there. gguf's own reader takes 5 to 10 seconds for a vocabulary, where this
takes 0.2, and trusts every length.
"""

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGUFValueType as Kind

from deeper_layers.errors import InputError, unreadable

MOST_BYTES = 2**26  # of a header: four times that of a vocabulary of 262,000 tokens
CODES = "BbHhIif?--Qqd"  # struct's letter of each kind of value, by its number; a text and an array have none
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)", re.ASCII)
# architectures whose layers all have the same tensors in llama.cpp
UNIFORM = frozenset(
    "bloom cohere2 command-r falcon falcon-h1 gemma gemma2 gemma3 gpt-oss gpt2 gptneox granite llama nemotron olmo "
    "olmo2 phi2 qwen2 qwen2moe qwen3 qwen3moe smollm3 stablelm starcoder starcoder2".split()
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
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
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
        if (version := self.number("I")) not in gguf.READER_SUPPORTED_VERSIONS:
            raise ValueError(f"its version is {version}, or it is in the byte order of other processors")
        tensors, number = self.numbers("Q", 2)
        entries: dict[str, Entry] = {}
        for _ in range(number):
            if (key := self.text()) in entries:
                raise ValueError(f"it has the entry {key!r} twice")
            entries[key] = self.entry()
        alignment = entries.get("general.alignment", Entry(gguf.GGUF_DEFAULT_ALIGNMENT, Kind.UINT32))
        if alignment.kind != Kind.UINT32 or alignment.value.bit_count() != 1:
            raise ValueError(f"its general.alignment is {alignment.value!r}, expected a power of 2")
        return Header(entries, self.tensors(tensors, alignment.value), alignment.value)

    def take(self, length: int) -> bytes:
        self.left -= length
        if self.left < 0 or len(content := self.file.read(length)) != length:
            raise ValueError("its header ends too early, or is longer than that of any model")
        return content

    def numbers(self, code: str, length: int) -> tuple:
        content = self.take(length * struct.calcsize(f"<{code}"))
        return struct.unpack(f"<{length}{code}", content)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        return self.take(int.from_bytes(self.take(8), "little")).decode()  # of which a vocabulary has many

    def entry(self) -> Entry:
        kind = Kind(self.number("I"))
        if kind != Kind.ARRAY:
            value = self.text() if kind == Kind.STRING else self.number(CODES[kind])
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"one of its entries is {value}, expected a finite number")
            return Entry(value, kind)
        inner, length = Kind(self.number("I")), self.number("Q")
        if inner == Kind.ARRAY:
            raise ValueError("one of its arrays is of arrays, which ggml does not read")
        if inner == Kind.STRING:
            return Entry([self.text() for _ in range(length)], kind, inner)
        return Entry(list(self.numbers(CODES[inner], length)), kind, inner)

    def tensors(self, number: int, alignment: int) -> tuple[Tensor, ...]:
        """The tensors, each where it lies: as llama.cpp demands one after another, aligned, up to the file's end."""
        table = []
        for _ in range(number):
            name, shape = self.text(), self.numbers("Q", self.number("I"))
            table.append((name, shape, gguf.GGMLQuantizationType(self.number("I")), self.number("Q")))
        found: dict[str, Tensor] = {}
        start = end = self.file.tell() + -self.file.tell() % alignment
        for name, shape, kind, offset in table:
            block, width = gguf.GGML_QUANT_SIZES[kind]
            elements = math.prod(shape)
            if name in found or not 1 <= len(shape) <= 4 or not elements or shape[0] % block or start + offset != end:
                raise ValueError(f"its tensor {name!r} is there twice, has no shape of its type, or lies elsewhere")
            found[name] = Tensor(name, shape, kind, end, elements // block * width)
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
    layers: dict[int, set[str]] = {}
    others: dict[str, tuple[int, ...]] = {}
    for tensor in header.tensors:
        if (layer := layer_of(tensor.name)) is None:
            others[tensor.name.rpartition(".")[0]] = tensor.shape
        else:
            layers.setdefault(layer, set()).add(tensor.name.split(".", 2)[2])
    stated, tokens = header.get(f"{arch}.block_count"), header.get("tokenizer.ggml.tokens")
    if type(stated) is not int or stated != len(layers) or max(layers, default=-1) != stated - 1:
        raise ValueError(f"its {arch}.block_count is {stated!r:.40}, and it has tensors of {len(layers)} layers")
    shape = header.get(f"{arch}.embedding_length"), len(tokens) if isinstance(tokens, list) else None
    if None not in shape and others.get("token_embd", shape) != shape:
        raise ValueError(f"its embedding has the shape {others['token_embd']}, expected {shape}")
    if arch not in UNIFORM:
        return
    if unlike := [number for number, names in layers.items() if names != layers[0]]:
        raise ValueError(f"its layers 0 and {unlike[0]} have unlike tensors")
    known = gguf.MODEL_TENSORS[next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)]
    names = {gguf.TENSOR_NAMES[tensor] for tensor in known}
    if strange := sorted(others.keys() - names | {"token_embd", "output_norm"} & names - others.keys()):
        raise ValueError(f"its tensor {strange[0]!r} is missing, or none of {arch}")
