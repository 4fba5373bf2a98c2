"""GGUF files: metadata and table of tensors, read within bounds, and whether they describe one model.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header is whatever somebody wrote: no length in
it is followed beyond the bytes that are there.
"""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Kind
from gguf.gguf_writer import GGUFValue

from deeper_layers.errors import telling

MOST_BYTES = 2**26  # of a header: four times that of a vocabulary of 262,000 tokens
BEYOND = "it ends too early, has a longer header than any model"
LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.")
ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
# architectures whose layers all have the same tensors in llama.cpp
UNIFORM = frozenset(
    "bloom cohere2 command-r falcon falcon-h1 gemma gemma2 gemma3 gpt-oss gpt2 gptneox granite llama nemotron olmo "
    "olmo2 phi2 qwen2 qwen2moe qwen3 qwen3moe smollm3 stablelm starcoder starcoder2".split()
)


class Header(gguf.GGUFReader):
    """What a GGUF file says before its weights, and where these lie: read by gguf, and never beyond the file."""

    data_offset = 0  # until the header is read

    def __init__(self, path: Path):
        super().__init__(path)
        fields = list(self.fields.values())[3:]  # after three that gguf adds
        self.entries = {field.name: GGUFValue(_value(field), *field.types) for field in fields}
        self.alignment = int(self.alignment)
        self.architecture = self.get("general.architecture")
        self.layers = self.get(f"{self.architecture}.block_count")

    @property
    def quantized(self) -> str:
        """The types of its matrices."""
        return "+".join(sorted({tensor.tensor_type.name for tensor in self.tensors if len(tensor.shape) > 1}))

    @property
    def config(self) -> dict:
        """What it says of layers as config.json would, for `wrong_in`."""
        own, pattern = f"{self.architecture}.", "attention.sliding_window_pattern"
        # as files of OLMo 3 name it
        is_olmo3 = self.architecture == "olmo2" and f"{own}attention.sliding_window" in self.entries
        kind = "olmo3" if is_olmo3 else self.architecture.replace("-", "_")
        return {"model_type": kind, "num_hidden_layers": self.layers, pattern: self.get(own + pattern)}

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata."""
        return self.entries[key].value if key in self.entries else default

    def _get(self, offset, dtype, count=1, override_order=None):
        most = len(self.data) if self.data_offset else min(len(self.data), MOST_BYTES)
        if offset + np.dtype(dtype).itemsize * int(count) > most or self.byte_order == "S":
            raise ValueError(f"{BEYOND}, or in the byte order of other processors")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        """A list is read at once: value by value, as gguf does it, a vocabulary takes 10 seconds."""
        if raw_type != Kind.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        inner, place = Kind(self._get(orig_offs, np.uint32)[0]), orig_offs + 12
        length = int(self._get(orig_offs + 4, np.uint64)[0])
        if inner != Kind.STRING:
            values = self._get(place, self.gguf_scalar_to_np[inner], length)
            return 12 + values.nbytes, [values], [0], [Kind.ARRAY, inner]
        content, texts = self.data[:MOST_BYTES].data, []
        for _ in range(length):
            start = place + 8
            place = start + int.from_bytes(content[place:start], "little")
            if place > len(content):
                raise ValueError(BEYOND)
            texts.append(str(content[start:place], "utf-8"))
        return place - orig_offs, [texts], [0], [Kind.ARRAY, inner]


def _value(field: gguf.ReaderField) -> Any:
    return field.parts[-1] if isinstance(field.parts[-1], list) else field.contents()


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file, checked. Raises InputError where it is not a whole file of one model."""
    with telling(f"{path} is not a whole GGUF file"):
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("there is no such file")
        _check_model(header := Header(path))
    return header


def placed(name: str) -> tuple[int | None, str]:
    """The layer that a tensor is of, None where it is of none, and its name in that."""
    found = LAYER.match(name)
    return (int(found[1]), name[found.end() :]) if found else (None, name)


def _check_model(header: Header) -> None:
    """Raise ValueError unless the tensors are those of one model, as the metadata describe it, and lie as llama.cpp
    demands: one after another, aligned, up to the file's end."""
    arch, stated, end = header.architecture, header.layers, int(header.data_offset)
    if not re.fullmatch(r"[\w.-]+", arch):
        raise ValueError("it names no general.architecture")
    if header.get("split.count", 0) not in (0, 1):
        raise ValueError("it is one of several files: join them with llama-gguf-split --merge")
    if odd := [key for key, entry in header.entries.items() if entry.value != entry.value]:
        raise ValueError(f"its {odd[0]} is no number")
    parts: dict[int | None, dict[str, list[int]]] = {None: {}}
    for tensor in header.tensors:
        if not 1 <= len(tensor.shape) <= 4 or not tensor.n_elements or tensor.data_offset != end:
            raise ValueError(f"its tensor {tensor.name!r} has no numbers, or lies elsewhere")
        end += tensor.n_bytes + -tensor.n_bytes % header.alignment
        number, name = placed(tensor.name)
        parts.setdefault(number, {})[name] = tensor.shape.tolist()
    if len(header.data) > end:
        raise ValueError("it has bytes after the last tensor")
    others = {name.rpartition(".")[0]: shape for name, shape in parts.pop(None).items()}
    if type(stated) is not int or stated != len(parts) or parts.keys() != {*range(stated)}:
        raise ValueError(f"its {arch}.block_count is {stated!r:.40}, and it has tensors of {len(parts)} layers")
    width, tokens = header.get(f"{arch}.embedding_length"), header.get("tokenizer.ggml.tokens")
    if width and tokens and (shape := others.get("token_embd")) not in (None, [width, len(tokens)]):
        raise ValueError(f"its embedding has the shape {shape}, expected {[width, len(tokens)]}")
    if arch not in UNIFORM:
        return
    if unlike := [number for number, tensors in parts.items() if tensors.keys() != parts[0].keys()]:
        raise ValueError(f"its layers 0 and {unlike[0]} have unlike tensors")
    names = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[ARCHITECTURES[arch]]}
    if strange := sorted(others.keys() - names | {"token_embd", "output_norm"} & names - others.keys()):
        raise ValueError(f"its tensor {strange[0]!r} is missing, or none of {arch}")
