"""Damaged GGUF files, each the same for its number, and what comes of slicing them.

`python -m tests.fuzz.gguf_cases` tries many, see trying.py.
"""

import random
import struct
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import gguf
import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.gguf_files import KEPT, MARK, ORIGIN, slice_gguf
from tests.fuzz import trying

LAYERS, CUT, WIDTH, TOKENS, WIDE = 4, Cut(1, 2), 32, 12, 64
ODD = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31, 32, 33, 64, 127, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40,
       2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]  # fmt: skip
NAMES = ["blk.99.attn_q.weight", "blk.x.attn_q.weight", "blk..attn_q.weight", "blk.-1.attn_q.weight", "blk", "",
         "blk.1", "blk.01.attn_q.weight", "blk.1.attn_q.weight", "BLK.1.attn_q.weight", "output.weight", "\0" * 9,
         "blk.4.attn_q.weight", "blk.٣.attn_q.weight", "../token_embd.weight", "x" * 300]  # fmt: skip


class Parts:
    """A small Llama of 4 layers, each value of its header by itself, so that any of them can be another."""

    def __init__(self):
        draw = np.random.default_rng(0)
        numbers = {"block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": WIDE, "context_length": 64,
                   "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": TOKENS}  # fmt: skip
        self.magic, self.version, self.tail = b"GGUF", 3, b""
        self.entries: list[list] = [["general.architecture", 8, text("llama")], ["general.alignment", 4, number(32)]]
        self.entries += [[f"llama.{key}", 4, number(value)] for key, value in numbers.items()]
        self.entries += [
            ["llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)],
            ["tokenizer.ggml.tokens", 9, array(8, [text(f"t{i}") for i in range(TOKENS)])],
            ["tokenizer.ggml.token_type", 9, array(5, [number(1)] * TOKENS)],
            ["tokenizer.ggml.add_bos_token", 7, b"\1"],
            ["llama.rope.freq_base", 6, struct.pack("<f", 1e4)],
        ]
        shapes = {"attn_norm": [WIDTH], "attn_q": [WIDTH, WIDTH], "ffn_down": [WIDE, WIDTH]}
        shapes = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
        shapes |= {"token_embd": [WIDTH, TOKENS], "output_norm": [WIDTH]}
        self.tensors, self.data, offset = [], b"", 0
        for name, shape in shapes.items():
            quantized = name.endswith("ffn_down")
            values = draw.standard_normal(shape[::-1], dtype=np.float32)
            kind = gguf.GGMLQuantizationType.Q8_0 if quantized else gguf.GGMLQuantizationType.F32
            content = gguf.quants.quantize(values, kind).tobytes()
            self.tensors.append([f"{name}.weight", list(shape), int(kind), offset])
            self.data += content + bytes(-len(content) % 32)
            offset = len(self.data)
        self.counts = [len(self.tensors), len(self.entries)]

    def content(self) -> bytes:
        """The file."""
        head = self.magic + struct.pack("<IQQ", self.version, *self.counts)
        for key, kind, value in self.entries:
            head += text(key) + struct.pack("<I", kind) + value
        for name, shape, kind, offset in self.tensors:
            head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        return head + bytes(-len(head) % 32) + self.data + self.tail


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def array(kind: int, values: list[bytes], length: int | None = None) -> bytes:
    return struct.pack("<IQ", kind, len(values) if length is None else length) + b"".join(values)


def damage(draw: random.Random) -> tuple[str, bytes]:
    """What was done to a file, and the file."""
    parts = Parts()
    what = draw.choice(
        ["counts", "entry value", "entry kind", "entry", "tensor", "swap", "bytes", "cut", "array", "head"]
    )
    entry, tensor = draw.choice(parts.entries), draw.choice(parts.tensors)
    if what == "counts":
        parts.counts[draw.randrange(2)] = draw.choice([*ODD, parts.counts[0] - 1, parts.counts[0] + 1])
    elif what == "entry value":
        kind = draw.choice([0, 1, 4, 5, 6, 7, 8, 10, 11, 12])
        value = draw.choice([draw.choice(ODD), draw.choice(ODD), -draw.choice(ODD)])
        size = {0: 1, 1: 1, 7: 1, 10: 8, 11: 8, 12: 8}.get(kind, 4)
        entry[1:] = kind, text(str(value)) if kind == 8 else (value % 2 ** (8 * size)).to_bytes(size, "little")
    elif what == "entry kind":
        entry[1] = draw.choice([*range(15), 2**31])
    elif what == "entry":
        place = draw.randrange(len(parts.entries))
        if draw.random() < 0.5:
            del parts.entries[place]
        else:
            parts.entries.insert(place, draw.choice([entry, ["", 4, number(1)], ["x" * 70_000, 4, number(1)]]))
        parts.counts[1] = len(parts.entries)
    elif what == "array":
        inner = draw.choice([*range(14), entry[1]])
        entry[1:] = (
            9,
            array(inner, [number(draw.choice([0, 1, 4]))] * draw.choice([0, 1, 4]), draw.choice([None, *ODD])),
        )
        if draw.random() < 0.2:
            entry[2] = array(9, []) * draw.choice([1, 50, 3000])  # arrays of arrays of arrays
    elif what == "tensor":
        field = draw.randrange(4)
        if field == 0:
            tensor[0] = draw.choice([*NAMES, draw.choice(parts.tensors)[0]])
        elif field == 1:
            tensor[1] = draw.choice([
                [draw.choice(ODD)], [draw.choice(ODD), tensor[1][0]], tensor[1][::-1], [], tensor[1] * 2, tensor[1] * 9,
                [*tensor[1], 1], [*tensor[1], 0], [2**32, 2**32],
            ])  # fmt: skip
        elif field == 2:
            tensor[2] = draw.choice([*range(45), 2**31])
        else:
            tensor[3] = draw.choice([*ODD, tensor[3] + 1, tensor[3] + 32, max(tensor[3] - 32, 0), len(parts.data)])
    elif what == "swap":
        other, field = draw.choice(parts.tensors), draw.randrange(4)
        tensor[field], other[field] = other[field], tensor[field]
    elif what == "head":
        parts.version = draw.choice([*(n for n in ODD if n < 2**32), 3 << 24, 2])
        parts.magic = draw.choice([b"GGUF", b"GGUF", b"ggjt", b"\0\0\0\0"])
        parts.tail = draw.choice([b"", bytes(1), bytes(32), parts.data])
    content = bytearray(parts.content())
    header = len(content) - len(parts.data)
    if what == "cut":
        del content[draw.choice([draw.randrange(header), draw.randrange(len(content)), len(content) - 1]) :]
    elif what == "bytes":
        for _ in range(draw.choice([1, 1, 2, 8])):
            content[draw.randrange(header)] = draw.choice([0, 1, 255, draw.randrange(256)])
    return what, bytes(content)


def outcome(path: Path, out: Path) -> str:
    """ "clear" where a damaged file is refused, "harmless" where it is sliced as it is; else what was wrong."""
    try:
        slice_gguf(path, CUT, out)
    except InputError as error:
        return "clear" if str(error) and "\n" not in str(error) and not out.exists() else f"unclear: {error}"
    except BaseException:
        return f"unclear: {traceback.format_exc()}"
    return "harmless" if is_slice(gguf.GGUFReader(path), gguf.GGUFReader(out)) else "wrong: another model"


def is_slice(before: gguf.GGUFReader, after: gguf.GGUFReader) -> bool:
    """Whether a file has what another has, read by gguf, but for the layers of the cut: the plain way to say it."""
    kept = CUT.kept(int(before.fields["llama.block_count"].contents()))
    expected = {}
    for tensor in before.tensors:
        head, number, *rest = tensor.name.split(".")
        if head == "blk" and int(number) not in kept:
            continue
        name = f"blk.{kept.index(int(number))}.{'.'.join(rest)}" if head == "blk" else tensor.name
        expected[name] = tensor
    values = {key: field.contents() for key, field in before.fields.items() if not key.startswith("GGUF.")}
    found = {key: field.contents() for key, field in after.fields.items() if not key.startswith("GGUF.")}
    values = {key: value for key, value in values.items() if value != [] and key != "general.size_label"}
    for key, value in values.items():
        if isinstance(value, list) and key.startswith("llama.") and len(value) == values["llama.block_count"]:
            values[key] = [value[index] for index in kept]
    values["llama.block_count"] = len(kept)
    tensors = {tensor.name: tensor for tensor in after.tensors}
    return (
        {key: value for key, value in found.items() if key not in (KEPT, MARK, ORIGIN)} == values
        and found[KEPT] == kept
        and tensors.keys() == expected.keys()
        and all(
            tensors[name].tensor_type == tensor.tensor_type
            and list(tensors[name].shape) == list(tensor.shape)
            and tensors[name].data.tobytes() == tensor.data.tobytes()
            for name, tensor in expected.items()
        )
    )


def outcomes(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """For each number what was damaged, and what came of it."""
    path, out = folder / "damaged.gguf", folder / "out.gguf"
    for number in numbers:
        what, content = damage(random.Random(number))
        path.write_bytes(content)
        yield number, what, outcome(path, out)
        out.unlink(missing_ok=True)


if __name__ == "__main__":
    trying.main(outcomes)
