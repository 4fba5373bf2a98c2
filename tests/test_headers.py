"""Headers of safetensors that say what is not so: each one is refused in one line."""

import json
import os
import struct
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import LARGEST, SINGLE, read_header
from tests.tiny import tiny_model

pytestmark = pytest.mark.quick


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


TWICE = '{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8)),) * 2)
HEADERS = {
    "overlapping": ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "of the same bytes": ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
    "with a gap": ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
    "not from the beginning": ({"a": entry(8, 16)}, 16),
    "negative": ({"a": entry(-8, 0)}, 0),
    "into the header": ({"a": entry(-8, 8, (4,))}, 8),
    "backwards": ({"a": entry(8, 0)}, 8),
    "beyond the end": ({"a": entry(0, 16, (4,))}, 8),
    "bytes left over": ({"a": entry(0, 8)}, 9),
    "one byte less": ({"a": entry(0, 8)}, 7),
    "a shape of more bytes": ({"a": entry(0, 8, (3,))}, 8),
    "a shape of fewer bytes": ({"a": entry(0, 8, (1,))}, 8),
    "a shape beyond all numbers": ({"a": entry(0, 8, (2**40, 2**40))}, 8),
    "a negative shape": ({"a": entry(0, 8, (-1, -2))}, 8),
    "a shape of fractions": ({"a": entry(0, 8, (2.0,))}, 8),
    "a shape of truths": ({"a": entry(0, 8, (True, 2))}, 8),
    "a shape of words": ({"a": entry(0, 8, ("2",))}, 8),
    "a shape that is none": ({"a": entry(0, 8) | {"shape": None}}, 8),
    "another type's bytes": ({"a": entry(0, 8, (2,), "F16")}, 8),
    "an unknown type": ({"a": entry(0, 8, (2,), "Q4")}, 8),
    "a type that is a number": ({"a": entry(0, 8, (2,), 4)}, 8),
    "no type": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "no place": ({"a": {"shape": [2], "dtype": "F32"}}, 8),
    "three places": ({"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, 8),
    "places that are words": ({"a": entry("0", "8")}, 8),
    "an entry that is a list": ({"a": ["F32", [2], [0, 8]]}, 8),
    "an entry that is a number": ({"a": 7}, 8),
    "an entry that is nothing": ({"a": None}, 8),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, 8),
    "metadata that is a list": ({"__metadata__": [], "a": entry(0, 8)}, 8),
    "a name twice": (TWICE, 8),
    "a list": ("[1, 2]", 0),
    "a number": ("12", 0),
    "nothing": ("", 0),
    "no JSON": ("{not JSON", 0),
    "no text": (b'{"\xff": 1}', 0),
    "half a character": (f'{{"\\ud800": {json.dumps(entry(0, 8))}}}', 8),
    "not a number": ('{"a": NaN}', 0),
    "a number of 6,000 digits": ('{"a": %s}' % ("9" * 6000), 0),
    "deep lists": ("[" * 10**6, 0),
    "deep objects": ('{"a":' * 10**5, 0),
    "deep entries": ('{"a":' + "[" * 10**5 + "]" * 10**5 + "}", 0),
}


def write_header(path: Path, header, bytes: int, length: int | None = None) -> None:
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * bytes)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_says_what_is_not_so(name, tmp_path):
    write_header(tmp_path / "a.safetensors", *HEADERS[name])
    with pytest.raises(InputError, match="a.safetensors is not a whole safetensors file .*fetch it again") as caught:
        read_header(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 7 * 2**30, LARGEST + 1])
def test_a_header_of_an_impossible_length(length, tmp_path):
    path = tmp_path / "a.safetensors"
    write_header(path, {"a": entry(0, 8)}, 8, length)
    os.truncate(path, 8 * 2**30)  # of zeros that take no place
    started = time.monotonic()
    with pytest.raises(InputError, match=f"its header would have {length:,} bytes"):
        read_header(path)
    assert time.monotonic() - started < 1


def test_every_byte_of_a_header_may_be_damaged(tmp_path):
    """What is taken all the same is read as the format's own library reads it."""
    tiny_model("llama", layers=3).save_pretrained(tmp_path)
    path, taken = tmp_path / SINGLE, 0
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(8), *range(8, end, max(1, end // 150))]:
        for byte in (0x22, 0x2D, 0x39):
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                found = read_header(path)
            except InputError:
                continue
            shapes = {name: list(tensor.shape) for name, tensor in load_file(path).items()}
            assert {tensor.name: tensor.entry["shape"] for tensor in found.tensors} == shapes
            taken += 1
    assert taken < 500  # in names, and in blanks
