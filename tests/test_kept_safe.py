"""Slicing loses no file that it did not make, and is the same after any kill, fault, or second run beside it."""

import functools
import os
import shutil
import time
from pathlib import Path

import pytest

from deeper_layers.checkpoints import slicing
from deeper_layers.checkpoints.partial_folder import STATE
from deeper_layers.checkpoints.slicing import slice_checkpoint
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.files import whole as files
from deeper_layers.files.whole import write_whole
from tests.faults import FAULTS, calls_of, failing_at, in_child, killed_at, snapshot
from tests.tiny import tiny_model

CUT = Cut(1, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of two shards with two files beside them."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    tiny_model("llama", layers=3).save_pretrained(folder, max_shard_size="130KB")
    assert len(list(folder.glob("*.safetensors"))) == 2
    (folder / "vocab.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def expected(whole, tmp_path_factory):
    return snapshot(slice_checkpoint(whole, CUT, tmp_path_factory.mktemp("expected") / "out"))


@pytest.fixture
def quick(monkeypatch):
    """What a cut makes of a checkpoint is worked out once, and nothing waits for a disk, which outlives a kill."""
    of_cut = functools.cache(lambda cut, folder: slicing_layout(cut, folder, slicing.read_shards(folder)))
    slicing_layout = slicing.layout_after
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(slicing, "layout_after", lambda cut, folder, shards, **_: of_cut(cut, folder))


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        slice_checkpoint(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_finished(whole, out, expected):
    assert slice_checkpoint(whole, CUT, out) == out
    assert snapshot(out) == expected
    assert os.listdir(out.parent) == ["out"], "nothing is left beside it"


# --- kills and faults -----------------------------------------------------------------------------------------


def test_killed_at_any_call_and_finished_it_is_the_same(whole, expected, quick, tmp_path):
    step = functools.partial(slice_checkpoint, whole, CUT, tmp_path / "0" / "out")
    calls, tried = calls_of(step), 0
    assert {"mkdir", "open", "write", "sendfile", "fsync", "replace", "rename", "unlink"} <= set(calls)
    for number, name in enumerate(calls):
        for share in (0.0, 0.5) if name in ("write", "sendfile") else (0.0,):
            out = tmp_path / f"{number}-{share}" / "out"
            out.parent.mkdir()
            assert killed_at(number, lambda out=out: slice_checkpoint(whole, CUT, out), share)
            # until the last rename OUT is at most an empty folder; from there on it is whole
            assert not out.exists() or not os.listdir(out) or len(snapshot(out)) >= len(expected)
            check_finished(whole, out, expected)
            tried += 1
    assert tried > 50


def test_killed_again_and_again_it_ends(whole, expected, quick, tmp_path):
    out, kills = tmp_path / "out", 0
    while killed_at(5 + 3 * kills, lambda: slice_checkpoint(whole, CUT, out), 0.5):
        kills += 1
    assert kills > 5 and snapshot(out) == expected and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("times", [1, 10**6], ids=["once", "from then on"])
def test_a_fault_at_any_call_is_one_line_and_the_next_run_is_the_same(code, times, whole, expected, quick, tmp_path):
    calls = calls_of(functools.partial(slice_checkpoint, whole, CUT, tmp_path / "first" / "out"))
    for number in range(len(calls)):
        out, failed = tmp_path / str(number) / "out", False
        with failing_at(number, code, times):
            try:
                slice_checkpoint(whole, CUT, out)
            except InputError as error:
                failed = True
                assert os.strerror(code) in str(error) and "\n" not in str(error)
        if not failed:  # a folder that is there need not be made
            assert times == 1 and calls[number] == "mkdir" and snapshot(out) == expected
            continue
        out.parent.mkdir(exist_ok=True)
        check_finished(whole, out, expected)


def test_a_full_disk_leaves_nothing_where_nothing_was_written(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(slicing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert "MB are free" in refusal(whole, CUT, tmp_path / "out")
    assert os.listdir(tmp_path) == []


# --- what is not ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [None, "", "{", "[]", "{}", '{"source": "another", "cut": [0, 1]}', '{"format": "deeper-layers slicing 1"}',
     '{"format": "deeper-layers slicing 1", "writes": [1]}', "[" * 10**5],
    ids=lambda state: str(state)[:40],
)  # fmt: skip
def test_a_partial_folder_that_is_not_ours_is_left_alone(state, whole, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    if state is not None:
        (partial / STATE).write_text(state)
    before = snapshot(tmp_path)
    message = refusal(whole, CUT, tmp_path / "out")
    assert str(partial) in message and "move it away" in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("cut", [CUT, Cut(0, 1)], ids=["of the same", "of another"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("thesis.tex", Path.touch),
        (".README.md.old.partial", Path.touch),
        ("more", Path.mkdir),
        ("README.md", Path.mkdir),
        ("config.json", lambda path: path.symlink_to("elsewhere")),
    ],
)
def test_what_someone_put_into_ours_is_left_alone(name, make, cut, whole, expected, quick, tmp_path):
    killed_at(14, lambda: slice_checkpoint(whole, cut, tmp_path / "out"))
    path = tmp_path / "out.partial" / name
    make(path)
    before = sorted((tmp_path / "out.partial").iterdir())
    assert f"holds {name})" in refusal(whole, CUT, tmp_path / "out")
    assert sorted((tmp_path / "out.partial").iterdir()) == before
    os.rename(path, tmp_path / "moved")
    slice_checkpoint(whole, CUT, tmp_path / "out")
    assert snapshot(tmp_path / "out") == expected


def test_a_partial_that_is_a_link_or_a_file(whole, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "elsewhere")
    assert "no folder" in refusal(whole, CUT, tmp_path / "out")
    (tmp_path / "out.partial").unlink()
    (tmp_path / "out.partial").write_text("mine")
    assert "no folder" in refusal(whole, CUT, tmp_path / "out")
    assert (tmp_path / "out.partial").read_text() == "mine" and os.listdir(tmp_path / "elsewhere") == []


def test_source_and_output_never_overlap(whole, tmp_path):
    def place(*parts):
        return Path(shutil.copytree(whole, tmp_path.joinpath(*parts)))

    back = tmp_path.with_name(f"{tmp_path.name}-link")
    back.symlink_to(tmp_path)
    tried = [
        (place("a.partial"), tmp_path / "a"),  # the source is OUT.partial
        (place("b.partial", "source"), tmp_path / "b"),  # or lies in it
        (place("c"), tmp_path / "c" / "out"),  # OUT lies in the source
        (tmp_path / "b.partial" / "source", back / "b"),  # through links
        (back / "a.partial", tmp_path / "a"),
        (tmp_path / "c", back / "c" / "." / "out"),
    ]
    before = snapshot(tmp_path)
    for source, out in tried:
        assert "overlap" in refusal(source, CUT, out)
    shutil.copytree(whole, tmp_path / "d.partial")
    assert "overlap" in refusal(whole, CUT, tmp_path / "d", adapter=tmp_path / "d.partial")
    shutil.rmtree(tmp_path / "d.partial")
    assert snapshot(tmp_path) == before


# --- two at once ----------------------------------------------------------------------------------------------


def test_a_second_slicing_to_the_same_folder_is_refused_at_once(whole, expected, quick, tmp_path, monkeypatch):
    out, copy, said = tmp_path / "out", slicing.copy_tensors, []

    def meanwhile(*arguments):
        for cut in (CUT, Cut(0, 1)):  # of the same and of another cut, and in a process of its own
            started = time.monotonic()
            said.append(refusal(whole, cut, out))
            assert time.monotonic() - started < 1
        status, message = in_child(lambda: slice_checkpoint(whole, Cut(0, 1), out))
        assert status == 1 and "another process writes" in message
        return copy(*arguments)

    monkeypatch.setattr(slicing, "copy_tensors", meanwhile)
    slicing.layout_after(Cut(0, 1), whole, [])
    slice_checkpoint(whole, CUT, out)
    assert said and all("another process writes" in message and "wait" in message for message in said)
    assert snapshot(out) == expected and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["empty", "full", "file", "link"])
def test_an_out_that_came_to_be_meanwhile_is_not_replaced(kind, whole, expected, quick, tmp_path, monkeypatch):
    out, copy = tmp_path / "out", slicing.copy_tensors

    def meanwhile(*arguments):
        if not os.path.lexists(out):
            if kind == "link":
                out.symlink_to("nowhere")
            elif kind == "file":
                out.write_text("mine")
            else:
                out.mkdir()
            if kind == "full":
                (out / "thesis.tex").write_text("years of work")
        return copy(*arguments)

    monkeypatch.setattr(slicing, "copy_tensors", meanwhile)
    assert "came to be meanwhile" in refusal(whole, CUT, out)
    assert not out.is_dir() or out.is_symlink() or os.listdir(out) == ["thesis.tex"] * (kind == "full")
    os.rename(out, tmp_path / "moved")
    monkeypatch.setattr(slicing, "copy_tensors", copy)
    slice_checkpoint(whole, CUT, out)
    assert snapshot(out) == expected


def test_many_at_once_give_one_whole_result(whole, quick, tmp_path):
    """Whoever comes first ends; none gives a mixture of two cuts."""
    made = {cut: slice_checkpoint(whole, cut, tmp_path / f"{cut.start}", name="out") for cut in (CUT, Cut(0, 1))}
    results = {cut: snapshot(folder) for cut, folder in made.items()}

    def contend(cut):
        for _ in range(20):
            try:
                slice_checkpoint(whole, cut, tmp_path / "out")
            except InputError:
                pass

    children = []
    for cut in results:
        child = os.fork()
        if child == 0:
            try:
                contend(cut)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert snapshot(tmp_path / "out") in results.values()
    # one that was beaten at its very end may leave what it wrote, to go on from
    assert set(os.listdir(tmp_path)) - {"out.partial"} == {"0", "1", "out"}


def test_a_source_that_changes_while_it_is_copied(whole, quick, tmp_path, monkeypatch):
    source, copy = Path(shutil.copytree(whole, tmp_path / "source")), slicing.copy_tensors

    def meanwhile(shard, *arguments):
        copy(shard, *arguments)
        os.utime(shard.path, (1, 1))

    monkeypatch.setattr(slicing, "copy_tensors", meanwhile)
    assert "changed while it was copied" in refusal(source, CUT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- places that can't be written -----------------------------------------------------------------------------


def test_places_that_can_not_be_written(whole, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("", ".", "..", "/", tmp_path / "..", "a\0b", tmp_path / "file", tmp_path / "file" / "out",
                tmp_path / ("n" * 300), tmp_path / ("n" * 252), tmp_path / ("n" * 300) / "out", "/proc/none/out",
                "/dev/null/out"):  # fmt: skip
        print(refusal(whole, CUT, out))
    assert sorted(os.listdir(tmp_path)) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_an_orphan_of_a_killed_process_goes_when_its_file_is_written_next(tmp_path):
    path = tmp_path / "[unit].json"
    calls = calls_of(lambda: write_whole(path, b"old"))
    for number in range(len(calls)):
        killed_at(number, lambda: write_whole(path, b"new content"), 0.5)
        assert path.read_bytes() in (b"old", b"new content")
    strange = tmp_path / ".[unit].json.1.partial"
    strange.write_text("not ours")
    other = tmp_path / ".other.json.1.deeper-layers.partial"
    other.write_text("of another file")
    write_whole(path, b"whole")
    left = {path.name: b"whole", strange.name: b"not ours", other.name: b"of another file"}
    assert snapshot(tmp_path) == left


def test_a_file_that_another_process_is_writing_is_no_orphan(tmp_path):
    path = tmp_path / "unit.json"
    with files._held(tmp_path / ".unit.json.123456789.deeper-layers.partial") as file:
        file.write(b"half")
        write_whole(path, b"whole")
        assert (tmp_path / ".unit.json.123456789.deeper-layers.partial").exists()
    write_whole(path, b"whole")
    assert os.listdir(tmp_path) == ["unit.json"]
