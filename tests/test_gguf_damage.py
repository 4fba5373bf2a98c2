"""GGUF files that are damaged or hostile: one line, and nothing written; and outputs that are in the way: kept."""

import os
import resource
import time

import pytest

from deeper_layers.errors import InputError
from deeper_layers.export import gguf_files
from deeper_layers.export.gguf_files import slice_gguf
from deeper_layers.models.gguf_conversion import inspect_gguf
from deeper_layers.models.sources import find_model
from tests.fuzz.gguf_cases import CUT, Parts, array, number, outcomes, text
from tests.fuzz.trying import counted


def test_damaged_headers(tmp_path):
    """Each is refused in one line, or sliced as gguf reads it: python -m tests.fuzz.gguf_cases tries more."""
    counts, bad = counted(outcomes(range(1400), tmp_path))
    assert bad == []
    assert counts["clear"] > 700 and counts["harmless"] > 70
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def entry(key: str, kind: int, value: bytes):
    def change(parts):
        next(entry for entry in parts.entries if entry[0] == key)[1:] = kind, value

    return change


def added(key: str, kind: int, value: bytes):
    def change(parts):
        parts.entries.append([key, kind, value])
        parts.counts[1] += 1

    return change


def count(place: int, value: int):
    def change(parts):
        parts.counts[place] = value if abs(value) > 1 or value == 0 else parts.counts[place] + value

    return change


def tensor(place: int, field: int, value):
    def change(parts):
        parts.tensors[place][field] = value

    return change


def without(*names: str):
    """Whole but for some tensors: what lay before others no longer does."""

    def change(parts):
        data, kept = b"", []
        ends = [*(offset for *_, offset in parts.tensors[1:]), len(parts.data)]
        for (name, shape, kind, offset), end in zip(parts.tensors, ends):
            if not name.startswith(names):
                kept.append([name, shape, kind, len(data)])
                data += parts.data[offset:end]
        parts.tensors, parts.data, parts.counts[0] = kept, data, len(kept)

    return change


BLOCKS, NESTED = "llama.block_count", b"".join([array(9, [], 1)] * 3000)
DAMAGES = {
    "fewer blocks than tensors": (entry(BLOCKS, 4, number(3)), "block_count is 3, and it has tensors of 4 layers"),
    "more blocks than tensors": (entry(BLOCKS, 4, number(10**9)), "block_count is 1000000000, and it has tensors of 4"),
    "no blocks": (entry(BLOCKS, 4, number(0)), "block_count is 0, expected a whole number from 1"),
    "negative blocks": (entry(BLOCKS, 5, number(2**32 - 1)), "block_count is -1"),
    "blocks in words": (entry(BLOCKS, 8, text("4")), "block_count is '4'"),
    "a list of blocks": (entry(BLOCKS, 9, array(4, [number(4)])), r"block_count is \[4\]"),
    "an architecture that is a number": (entry("general.architecture", 4, number(1)), "no general.architecture"),
    "an architecture of lines": (entry("general.architecture", 8, text("a\nb")), "no general.architecture"),
    "one tensor less": (count(0, -1), "is at|are of none"),
    "one tensor more": (count(0, 1), "not a whole GGUF file"),
    "many tensors": (count(0, 2**63), "it claims 9223372036854775808 tensors"),
    "no tensors": (count(0, 0), "no tensors"),
    "one entry less": (count(1, -1), "not a whole GGUF file"),
    "one entry more": (count(1, 1), "not a whole GGUF file"),
    "many entries": (count(1, 10**12), "it claims 1000000000000 entries"),
    "an entry twice": (added(BLOCKS, 4, number(4)), "block_count' twice"),
    "an entry of an unknown type": (entry(BLOCKS, 13, number(4)), "13 is not a valid GGUFValueType"),
    "a truth value of 2": (added("x", 7, b"\2"), "neither 0 nor 1"),
    "a text of 2^63 bytes": (added("x", 8, b"\0" * 7 + b"\x80"), "needs 9223372036854775808 bytes"),
    "a text that is none": (added("x", 8, b"\1" + b"\0" * 7 + b"\xff"), "can't decode"),
    "a list of 10^12 numbers": (added("x", 9, array(4, [], 10**12)), "claims 1000000000000 items"),
    "a list of 10^12 texts": (added("x", 9, array(8, [], 10**12)), "claims 1000000000000 items"),
    "lists of lists": (added("x", 9, NESTED), "of arrays"),
    "an alignment of 3": (entry("general.alignment", 4, number(3)), "expected a power of 2"),
    "an alignment of 0": (entry("general.alignment", 4, number(0)), "expected a power of 2"),
    "an infinite epsilon": (entry("llama.rope.freq_base", 6, b"\0\0\x80\x7f"), "freq_base is inf"),
    "a vocabulary of 2^31": (entry("llama.vocab_size", 4, number(2**31 - 1)), "vocab_size is 2147483647"),
    "another width": (entry("llama.embedding_length", 4, number(64)), "the model is 64 wide"),
    "fewer tokens": (entry("tokenizer.ggml.tokens", 9, array(8, [text("a")])), "one a row"),
    "tokens that are numbers": (entry("tokenizer.ggml.tokens", 9, array(4, [number(1)] * 12)), "one a row"),
    "overlapping": (tensor(2, 3, 0), "is at 0, expected"),
    "beyond the file": (tensor(2, 3, 2**40), "is at 1099511627776, expected"),
    "not aligned": (tensor(2, 3, 129), "is at 129, expected"),
    "a dimension of 0": (tensor(0, 1, [0]), "which F32 can't have"),
    "a dimension of 2^63": (tensor(0, 1, [2**63]), "after the end of the file|is at"),
    "a product beyond 2^64": (tensor(0, 1, [2**32, 2**32]), "after the end of the file|is at"),
    "no dimensions": (tensor(0, 1, []), "has 0 dimensions"),
    "nine dimensions": (tensor(0, 1, [1] * 9), "has 9 dimensions"),
    "half a block": (tensor(2, 1, [16, 128]), "which Q8_0 can't have"),
    "an unknown type": (tensor(0, 2, 44), "44 is not a valid"),
    "another type": (tensor(0, 2, 1), "is at"),
    "a tensor twice": (tensor(1, 0, "blk.0.attn_norm.weight"), "'blk.0.attn_norm.weight' twice"),
    "block 99": (tensor(1, 0, "blk.99.attn_q.weight"), "tensors of 5 layers, the last one 99"),
    "block x": (tensor(1, 0, "blk.x.attn_q.weight"), "of no layer that has a number"),
    "block -1": (tensor(1, 0, "blk.-1.attn_q.weight"), "of no layer that has a number"),
    "a block less": (without("blk.2."), "tensors of 3 layers, the last one 3"),
    "a projection less": (without("blk.2.attn_q"), "layer 2 has no tensor 'attn_q.weight'"),
    "no embedding": (without("token_embd"), "no tensor 'token_embd.weight'"),
    "no norm": (without("output_norm"), "no tensor 'output_norm.weight'"),
    "a name that is none": (tensor(-1, 0, "outqut_norm.weight"), "'outqut_norm.weight' is none of llama"),
    "turned round": (tensor(5, 1, [32, 64]), "that of layer 0"),
    "one of several": (added("split.count", 2, b"\2\0"), "join them with llama-gguf-split"),
    "of other processors": (lambda parts: setattr(parts, "version", 3 << 24), "byte order of other processors"),
    "something after it": (lambda parts: setattr(parts, "tail", bytes(64)), "64 bytes after its last tensor"),
    "odd kept layers": (added("pruning.kept_layers", 9, array(4, [number(1)])), "expected 4 numbers of layers"),
}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(Parts().content())
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage(damage, tmp_path):
    change, message = DAMAGES[damage]
    parts = Parts()
    change(parts)
    (tmp_path / "damaged.gguf").write_bytes(parts.content())
    begun = time.perf_counter()
    with pytest.raises(InputError, match=message) as caught:
        slice_gguf(tmp_path / "damaged.gguf", CUT, tmp_path / "out.gguf")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and time.perf_counter() - begun < 2
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")  # opened plainly it is waited for
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    for name in ("pipe", "folder", "empty", "loop", "none", "x" * 250, "none/none"):
        with pytest.raises(InputError, match="does not exist|is not a whole GGUF file"):
            inspect_gguf(tmp_path / f"{name}.gguf", None)


# ---- what is written -------------------------------------------------------------------------------------


def test_an_output_that_is_in_the_way_stays(whole, tmp_path):
    before = whole.read_bytes()
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "link.gguf").symlink_to(whole)
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "none.gguf")
    names = {path.name for path in tmp_path.iterdir()}
    for name in sorted(names):
        with pytest.raises(InputError, match=f"{name} exists: give a name that does not"):
            slice_gguf(whole, CUT, tmp_path / name)
    assert whole.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("out", ["whole.gguf/out.gguf", "/proc/none/out.gguf", "x" * 252 + ".gguf"])
def test_an_output_that_can_not_be(out, whole, tmp_path):
    with pytest.raises(InputError, match="can't write .*: mend that, or name another place"):
        slice_gguf(whole, CUT, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


def test_a_disk_that_becomes_full(whole, tmp_path):
    """A limit on what a process writes fails at the same place as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 100, 3000, 10_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(InputError, match="can't write .*out.gguf"):
                slice_gguf(find_model(str(whole)), CUT, tmp_path / "out.gguf")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]


def test_an_output_that_came_to_be_meanwhile_stays(whole, tmp_path, monkeypatch):
    out, theirs = tmp_path / "out.gguf", b"of another process"
    monkeypatch.setattr(gguf_files, "hash_once", lambda path: out.write_bytes(theirs) and whole_hash)
    whole_hash = find_model(str(whole)).weights.removeprefix("sha256:")
    with pytest.raises(InputError, match="out.gguf exists"):
        slice_gguf(whole, CUT, out)
    assert out.read_bytes() == theirs and {path.name for path in tmp_path.iterdir()} == {"out.gguf", "whole.gguf"}


def test_a_source_that_changes_meanwhile_gives_no_output(whole, tmp_path):
    source = find_model(str(whole))
    content = bytearray(whole.read_bytes())
    content[-40] ^= 1
    whole.write_bytes(content)
    with pytest.raises(InputError, match="was changed after it was read"):
        slice_gguf(source, CUT, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.gguf"]
