"""GGUF files that are damaged or hostile: one line, and nothing written; and outputs that are in the way: kept."""

import os
import resource
import time

import pytest

from deeper_layers.errors import InputError
from deeper_layers.export import gguf_files
from deeper_layers.export.gguf_files import slice_gguf
from deeper_layers.models.sources import find_model
from tests.fuzz.gguf_cases import CUT, Parts, array, number, outcomes, text
from tests.fuzz.trying import counted


@pytest.mark.parametrize("numbers", [range(200), pytest.param(range(200, 2000), marks=pytest.mark.thorough)])
def test_damaged_headers(numbers, tmp_path):
    """Each is refused in one line, or sliced as gguf reads it: python -m tests.fuzz.gguf_cases tries more."""
    counts, bad = counted(outcomes(numbers, tmp_path))
    assert bad == []
    assert counts["clear"] > len(numbers) / 2 and counts["harmless"] > len(numbers) / 20
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


def tensor(place: int, field: int, value):
    def change(parts):
        parts.tensors[place][field] = value

    return change


def count(place: int, value: int):
    return lambda parts: parts.counts.__setitem__(place, value)


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
    "block_count is": [entry(BLOCKS, 4, number(3)), entry(BLOCKS, 4, number(10**9)), 
                       entry(BLOCKS, 5, number(2**32 - 1)),
                       entry(BLOCKS, 8, text("4")), entry(BLOCKS, 9, array(4, [number(4)])), without("blk.2."),
                       tensor(1, 0, "blk.99.attn_q.weight")],
    "no general.architecture": [entry("general.architecture", 4, number(1)), 
                                entry("general.architecture", 8, text("a b"))],
    "ends too early": [count(0, 2**63), count(1, 10**12), added("x", 9, array(8, [], 10**12)),
                       added("x", 8, b"\0" * 7 + b"\x80"), added("x", 9, array(4, [], 12_000))],
    "'llama.block_count' twice": [added(BLOCKS, 4, number(4))],
    "is not a valid": [entry(BLOCKS, 13, number(4)), tensor(0, 2, 44)],
    "of arrays": [added("x", 9, NESTED)],
    "expected a power of 2": [entry("general.alignment", 4, number(3)), entry("general.alignment", 4, number(0))],
    "has the shape": [entry("llama.embedding_length", 4, number(64)),
                      entry("tokenizer.ggml.tokens", 9, array(8, [text("a")]))],
    "or lies elsewhere": [tensor(2, 3, 0), tensor(2, 3, 2**40), tensor(2, 3, 129), tensor(0, 1, [0]), tensor(0, 2, 1),
                          tensor(0, 1, []), tensor(0, 1, [1] * 9), tensor(2, 1, [16, 128]),
                          tensor(1, 0, "blk.0.attn_norm.weight")],
    "of no layer that has a number": [tensor(1, 0, "blk.x.attn_q.weight"), tensor(1, 0, "blk.-1.attn_q.weight")],
    "have unlike tensors": [without("blk.2.attn_q")],
    "is missing, or none of llama": [without("token_embd"), without("output_norm"),
                                     tensor(-1, 0, "outqut_norm.weight")],
    "join them with llama-gguf-split": [added("split.count", 2, b"\2\0")],
    "byte order of other processors": [lambda parts: setattr(parts, "version", 3 << 24)],
    "bytes after the last one": [lambda parts: setattr(parts, "tail", bytes(64))],
    "expected 4 numbers of layers": [added("pruning.kept_layers", 9, array(4, [number(1)]))],
}  # fmt: skip


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(Parts().content())
    return path


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damage(message, tmp_path):
    for change in DAMAGES[message]:
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
            find_model(str(tmp_path / f"{name}.gguf"))


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
    with pytest.raises(InputError, match="can't write .*: mend that|overlap"):
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
