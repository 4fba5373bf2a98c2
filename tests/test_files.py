"""No file of anybody else's is lost: one table of what lies about, and every kill and fault while something is made."""

import contextlib
import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from filelock import Timeout

from deeper_layers import files
from deeper_layers.command.report import check_unchanged, write_notebook, written_before
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export import slicing, tensor_writer
from deeper_layers.export.gguf_files import slice_gguf
from deeper_layers.export.lineage import LINEAGE
from deeper_layers.export.slicing import slice_checkpoint
from tests.faults import FAULTS, calls_of, failing_at, killed_at, snapshot
from tests.test_command import said, typed
from tests.tiny import tiny_model, write_folder, write_gguf

CUT = Cut(1, 1)
ONE = ["--start", 1, "--drop", 1]
SECRET = "AWS_SECRET=1"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of two shards with files beside them, a GGUF file, and what is written of both, to be copied."""
    from deeper_layers.models.opening import load_model

    place = tmp_path_factory.mktemp("models")
    write_folder("llama", place / "tiny")
    model, tokenizer = load_model(str(place / "tiny"))
    write_gguf(model, tokenizer, place / "whole.gguf")
    tiny_model("llama", layers=3).save_pretrained(place / "whole", max_shard_size="130KB")
    (place / "whole" / "vocab.json").write_text("{}")
    slice_checkpoint(place / "whole", CUT, place / "out")
    typed("prune", place / "whole.gguf", place / "out.gguf", *ONE)
    return place


# ---- what lies about -------------------------------------------------------------------------------------------


def file(name: str, text: str = "years of work"):
    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)

    return make


def renamed(name: str, to: str, link: str | None = None):
    """Under another name, with a link in its place where one is given."""

    def make(here: Path) -> None:
        os.rename(here / name, here / to)
        if link:
            (here / name).symlink_to(link)

    return make


def link(name: str, to: str):
    return lambda here: (here / name).symlink_to(to)


def gone(name: str):
    return lambda here: (here / name).unlink()


def same_size(name: str):
    """Another content of as many bytes, at the same time."""

    def make(here: Path) -> None:
        found, content = (here / name).stat(), bytearray((here / name).read_bytes())
        content[-3] ^= 1
        (here / name).write_bytes(content)
        os.utime(here / name, ns=(found.st_atime_ns, found.st_mtime_ns))

    return make


def edited(here: Path) -> None:
    """The mark of OUT with another entry."""
    content = json.loads((here / "out" / LINEAGE).read_text())
    (here / "out" / LINEAGE).write_text(json.dumps(content | {"kept": [0, 1]}))


NEW, OVER = ["whole", "new", *ONE], ["whole", "out", "--start", 0, "--drop", 1, "--overwrite"]
NEW_FILE, OVER_FILE = ["whole.gguf", "new.gguf", *ONE], ["whole.gguf", "out.gguf", *ONE, "--overwrite"]
# what lies there; what is typed; what the one line says, or nothing where all goes well. Nothing that lay there changes
# but an OUT that was replaced, and that is ours and unchanged
CASES = {
    # ---- OUT is there
    "OUT is a folder": (file("new/thesis.tex"), NEW, "new exists"),
    "OUT is a file": (file("new"), NEW, "new exists"),
    "OUT is a link to nothing": (link("new", "nowhere"), NEW, "new exists"),
    "OUT is ours and nobody says to overwrite": (None, ["whole", "out", *ONE], "out exists"),
    "OUT.gguf is a link to nothing": (link("new.gguf", "nowhere"), NEW_FILE, "new.gguf exists"),
    # ---- what is not ours, unchanged, is not replaced
    "OUT is ours": (file("out.old/thesis.tex"), OVER, ""),
    "a file of OUT has as many other bytes": (same_size("out/config.json"), OVER, "config.json in it is not ours"),
    "a tensor in OUT.gguf has as many other bytes": (same_size("out.gguf"), OVER_FILE, "as it was written"),
    "a file came into OUT": (file("out/notes.txt"), OVER, "notes.txt in it is not ours"),
    "a folder came into OUT": (file("out/runs/1"), OVER, "runs in it is not ours"),
    "a file of OUT is gone": (gone("out/vocab.json"), OVER, "vocab.json in it is not ours"),
    "a file of OUT leads elsewhere": (renamed("out/config.json", "mine", "../mine"), OVER, "in it is not ours"),
    "OUT is a link to ours": (renamed("out", "real", "real"), OVER, "it is no folder with"),
    "OUT has no mark": (gone(f"out/{LINEAGE}"), OVER, "it is no folder with a pruning.json"),
    "the mark of OUT was edited": (edited, OVER, "it is no folder with a pruning.json as we write it"),
    "OUT.gguf is a link to ours": (renamed("out.gguf", "real", "real"), OVER_FILE, "as it was written"),
    # ---- what is read is not written to
    "OUT is the source": (None, ["out", "out", *ONE, "--overwrite"], "overlap"),
    "OUT lies in the source, by a link": (link("by", "whole"), ["whole", "by/new", *ONE], "overlap"),
    "OUT.gguf is the source": (None, ["out.gguf", "out.gguf", *ONE, "--overwrite"], "overlap"),
    # ---- names beside OUT
    "the folder for what is under way": (file("new.deeper-layers.partial/thesis.tex"), NEW, "thesis.tex, which is not"),
    "OUT.lock is somebody's": (file("new.lock"), NEW, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_anybody_else_is_lost(case, models, tmp_path, monkeypatch):
    make, words, message = CASES[case]
    monkeypatch.chdir(shutil.copytree(models, tmp_path / "here", symlinks=True))
    if make:
        make(Path.cwd())
    replaced = words[1] if "--overwrite" in words and not message else None
    before = {name: content for name, content in snapshot(Path.cwd()).items() if name.split("/")[0] != replaced}
    if message:
        assert message in said("prune", *words)
        assert snapshot(Path.cwd()) == before
    else:
        typed("prune", *words)
        after = snapshot(Path.cwd())
        assert before.items() <= after.items()
        assert {name.split("/")[0] for name in after.keys() - before.keys()} == {words[1]}


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_appears_meanwhile_in_the_place_of_out_stays(kind, models, tmp_path, monkeypatch):
    out, copy = tmp_path / "out", tensor_writer._content
    make = {"folder": file("out/thesis.tex"), "file": file("out"), "link": link("out", "nowhere")}[kind]

    def meanwhile(*arguments):
        with contextlib.suppress(FileExistsError):  # for each file
            make(tmp_path)
        return copy(*arguments)

    monkeypatch.setattr(tensor_writer, "_content", meanwhile)
    with pytest.raises(InputError, match="out exists"):
        slice_checkpoint(models / "whole", CUT, out)
    assert out.is_symlink() == (kind == "link") and out.is_file() == (kind == "file")
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    make = lambda _: None  # noqa: E731
    assert slice_checkpoint(models / "whole", CUT, out) == out  # and what was copied is not copied again
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_checkpoint_needs_goes_along_and_nothing_else(models, tmp_path):
    source = Path(shutil.copytree(models / "tiny", tmp_path / "source"))
    needed = ["generation_config.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE.txt"]
    strange = [".env", "id_rsa", "training_data.jsonl", "optimizer.pt", "credentials.json"]
    for name in [*needed, *strange, "modeling_own.py"]:
        (source / name).write_text("{}" if name.endswith(".json") else SECRET)
    (source / "checkpoint-500").mkdir()
    home = {"_name_or_path": str(source), "vocab_file": "/home/me/vocab.json"}
    for name in ("config.json", "tokenizer_config.json"):
        (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | home))
    with warnings.catch_warnings(action="default"):
        done = typed("prune", source, tmp_path / "out", *ONE)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found >= set(needed) and not found & {*strange, "modeling_own.py", "checkpoint-500"}
    (line,) = [line for line in done.stderr.splitlines() if "no part of a checkpoint" in line]
    assert all(name in line for name in [*strange, "modeling_own.py", "checkpoint-500/"]) and SECRET not in line
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "out").glob("*.json"))
    with warnings.catch_warnings(action="ignore"):
        typed("prune", source, tmp_path / "with code", *ONE, "--trust-remote-code")
    assert (tmp_path / "with code" / "modeling_own.py").exists()


# ---- kills and faults ------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """What a cut makes of a checkpoint is worked out once, and nothing waits for a disk, which outlives a kill."""
    of_folder, plain = functools.cache(slicing.read_layout), slicing.cut_config
    of_cut = functools.cache(lambda folder, cut: plain(of_folder(folder), cut))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(slicing, "read_layout", lambda folder, **_: of_folder(folder))
    monkeypatch.setattr(slicing, "cut_config", lambda layout, cut: of_cut(layout.folder, cut))


def sliced(models: Path, out: Path, overwrite: bool = False) -> None:
    slice_checkpoint(models / "whole", CUT, out, name="out", overwrite=overwrite)


def of_gguf(models: Path, out: Path) -> None:
    slice_gguf(models / "whole.gguf", CUT, out)


long = pytest.mark.thorough
OVER_OURS = functools.partial(sliced, overwrite=True)


@pytest.mark.parametrize("step", [OVER_OURS, *(pytest.param(step, marks=long) for step in (sliced, of_gguf))])
def test_killed_at_any_call_the_same_again_ends_as_undisturbed(step, models, quick, tmp_path):
    def begun(number: object) -> Path:
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        if step is OVER_OURS:
            slice_checkpoint(models / "whole", Cut(0, 1), out, name="out")
        return out

    first = begun("undisturbed")
    calls = calls_of(lambda: step(models, first))
    expected, tried = snapshot(first.parent), 0
    for number, name in enumerate(calls):
        for share in (0.0, 0.5) if name in ("write", "sendfile") else (0.0,):
            out = begun(f"{number}-{share}")
            before = snapshot(out.parent)
            assert killed_at(number, lambda out=out: step(models, out), share)
            there = {name: content for name, content in snapshot(out.parent).items() if name.split("/")[0] == "out"}
            assert there in (before, expected) or step is OVER_OURS and not out.exists()
            try:
                step(models, out)
            except InputError as error:
                assert "exists" in str(error) and step is not OVER_OURS  # it was killed when all was there
            assert snapshot(out.parent) == expected, (number, name)
            tried += 1
    assert tried > 20


@pytest.mark.parametrize(
    ("code", "times"), [(FAULTS[0], 1), *(pytest.param(code, 10**6, marks=long) for code in FAULTS)]
)
def test_a_fault_at_any_call_is_one_line_and_the_next_run_is_the_same(code, times, models, quick, tmp_path):
    calls = calls_of(lambda: sliced(models, tmp_path / "first" / "out"))
    expected = snapshot(tmp_path / "first")
    for number in range(len(calls)):
        out, failed = tmp_path / str(number) / "out", False
        with failing_at(number, code, times):
            try:
                sliced(models, out)
            except InputError as error:
                failed = True
                assert os.strerror(code) in str(error) and "\n" not in str(error)
        out.parent.mkdir(exist_ok=True)
        if failed or not out.exists():
            sliced(models, out)
        files.clear(out)
        assert snapshot(out.parent) == expected, (number, calls[number])


# ---- two at once -----------------------------------------------------------------------------------------------

SLOW = """
import sys
from pathlib import Path
from deeper_layers import files
with files.{what} as made:
    print("begun", flush=True)
    sys.stdin.readline()
"""


def in_another_process(what: str) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(what=what)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "begun\n"
    return child


def test_a_second_run_to_the_same_place_is_refused_until_the_first_is_killed(models, tmp_path):
    out = tmp_path / "out"
    with in_another_process(f"atomic_dir(Path({str(out)!r}))") as living:
        with pytest.raises(InputError, match="another process writes .*out: wait until it ends"):
            sliced(models, out)
        living.send_signal(signal.SIGKILL)
        living.wait()
        sliced(models, out)
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_is_of_one_process_until_it_ends_or_is_killed(tmp_path, capsys):
    path = tmp_path / "unit.json"
    with in_another_process(f"locked(Path({str(path)!r}))") as living:
        with pytest.raises(Timeout), files.locked(path):
            pass
        living.send_signal(signal.SIGKILL)
        living.wait()
        with files.locked(path), pytest.raises(Timeout), files.locked(path):
            pass
    with in_another_process(f"locked(Path({str(path)!r}))") as living:
        living.stdin.close()  # in a moment it ends
        with files.locked(path, "waiting for it"):
            pass
    assert capsys.readouterr().err in ("", "waiting for it\n") and os.listdir(tmp_path) == []


def test_many_at_once_give_one_whole_result(models, quick, tmp_path):
    """Whoever comes first ends; none gives a mixture of two cuts."""
    cuts = [CUT, Cut(0, 1)]
    whole = [snapshot(slice_checkpoint(models / "whole", cut, tmp_path / str(cut), name="out")) for cut in cuts]

    def contend(cut):
        for _ in range(20):
            with contextlib.suppress(InputError):
                slice_checkpoint(models / "whole", cut, tmp_path / "out")

    children = [multiprocessing.get_context("fork").Process(target=contend, args=(cut,)) for cut in cuts]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert snapshot(tmp_path / "out") in whole
    assert sorted(os.listdir(tmp_path)) == sorted(["out", *map(str, cuts)])


def test_a_source_that_changes_while_it_is_copied(models, tmp_path, monkeypatch):
    source, copy = Path(shutil.copytree(models / "whole", tmp_path / "source")), tensor_writer._content

    def meanwhile(entries, *arguments):
        os.utime(entries[0].shard.path, (1, 1))
        return copy(entries, *arguments)

    monkeypatch.setattr(tensor_writer, "_content", meanwhile)
    with pytest.raises(InputError, match="changed while it was copied"):
        slice_checkpoint(source, CUT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- places ----------------------------------------------------------------------------------------------------


def test_places_that_can_not_be_written(models, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("", ".", "/", "a\0b", tmp_path / "file" / "out", tmp_path / ("n" * 300), "/proc/none/out"):
        with pytest.raises(InputError) as caught:
            slice_checkpoint(models / "whole", CUT, out)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_where_a_file_system_has_no_locks(models, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "as some file systems say")

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.locked(tmp_path / "c.json"):
        files.write_file(tmp_path / "c.json", b"1")
    sliced(models, tmp_path / "out")
    assert {name for name in os.listdir(tmp_path) if not name.endswith(".lock")} == {"c.json", "out"}


def test_a_folder_for_the_moment_is_of_one_process_and_goes(tmp_path):
    with in_another_process(f"passing_dir(Path({str(tmp_path / 'x')!r}))") as killed:
        with files.passing_dir(tmp_path / "x") as mine:
            (mine / "a").write_text("")
            assert len(list(tmp_path.glob("x-*/made"))) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    with files.passing_dir(tmp_path / "x"):
        assert len(list(tmp_path.glob("x-*/made"))) == 1
    assert os.listdir(tmp_path) == []


def test_a_result_is_replaced_whole_at_any_kill(tmp_path):
    path = tmp_path / "[unit].json"
    for number in range(len(calls_of(lambda: files.write_file(path, b"old")))):
        killed_at(number, lambda: files.write_file(path, b"new content"), 0.5)
        assert path.read_bytes() in (b"old", b"new content")
    files.write_file(path, b"whole")
    assert snapshot(tmp_path) == {path.name: b"whole"}


# ---- report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "out", "message"),
    [
        (file("new/thesis.tex"), "new", "holds files and no report.json"),
        (file("out/01-similarity.ipynb", "mine"), "out", "was changed since report wrote it"),
        (gone("out/01-similarity.ipynb"), "out", ""),
        (file("notebooks/01-similarity.ipynb"), "notebooks", "holds files and no report.json"),
    ],
)
def test_a_report_replaces_its_own_notebooks_alone(make, out, message, tmp_path):
    write_notebook(tmp_path / "out" / "01-similarity.ipynb", b"of ours", written_before(tmp_path / "out"))
    if make:
        make(tmp_path)
    before, path = snapshot(tmp_path), tmp_path / out / "01-similarity.ipynb"

    def report():
        hashes = written_before(path.parent)
        check_unchanged(path, hashes)
        write_notebook(path, b"the next", hashes)

    if message:
        with pytest.raises(InputError, match=message):
            report()
        assert snapshot(tmp_path) == before
    else:
        report()
        mine = {f"{out}/01-similarity.ipynb", f"{out}/report.json"}
        assert path.read_bytes() == b"the next"
        assert {name: text for name, text in before.items() if name not in mine}.items() <= snapshot(tmp_path).items()
