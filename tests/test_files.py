"""No file of anybody else's is lost: one table of what lies about, and every kill and fault while something is made."""

import contextlib
import errno
import functools
import itertools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from filelock import Timeout

from deeper_layers import files
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export import gguf_files, lineage, slicing, tensors
from deeper_layers.export.gguf_files import slice_gguf
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers_companion.command.report import write_notebook
from tests.faults import FAULTS, calls_of, failing_at, killed_at, snapshot
from tests.fuzz.damage import instead, link, put, write
from tests.test_command import said, typed
from tests.tiny import tiny_model

CUT = Cut(1, 1)
ONE = ["--start", 1, "--drop", 1]
SHARD = "model-00001-of-00002.safetensors"
SECRET = "AWS_SECRET=1"


@pytest.fixture(scope="module")
def models(tiny_gguf, tmp_path_factory):
    """A folder of two shards with files beside them, a GGUF file, and what is written of both, to be copied."""
    place = tmp_path_factory.mktemp("models")
    shutil.copyfile(tiny_gguf, place / "whole.gguf")
    tiny_model("llama", layers=3).save_pretrained(place / "whole", max_shard_size="130KB")
    write("whole/vocab.json", "{}")(place)
    for name in ("whole", "whole.gguf"):
        typed("prune", place / name, place / name.replace("whole", "out"), *ONE)
    return place


# ---- what lies about -------------------------------------------------------------------------------------------


NEW, NEW_FILE = ["whole", "new", *ONE], ["whole.gguf", "new.gguf", *ONE]
# what lies there; what is typed; what the one line says, or nothing where all goes well. Nothing that lay there changes
CASES = {
    # ---- OUT is there
    "OUT is a folder": (write("new/thesis.tex"), NEW, "new exists"),
    "OUT is a link to nothing": (link("new", "nowhere"), NEW, "new exists"),
    "OUT.gguf is a folder": (write("new.gguf/thesis.tex"), NEW_FILE, "new.gguf exists"),
    "OUT was written here": (None, ["whole", "out", *ONE], "out exists, and nothing is overwritten"),
    "OUT.gguf was written here": (None, ["whole.gguf", "out.gguf", *ONE], "out.gguf exists, and nothing is"),
    # ---- what is read is not written to
    "OUT is the source": (None, ["out", "out", *ONE], "out exists"),
    "OUT lies in the source, by a link": (link("by", "whole"), ["whole", "by/new", *ONE], "overlap"),
    "OUT.gguf is the source": (None, ["out.gguf", "out.gguf", *ONE], "out.gguf exists"),
    # ---- names beside OUT
    "the folder for what is under way": (write("new.deeper-layers.partial/mine"), NEW, "mine, which is not ours"),
    "OUT.lock is somebody's": (write("new.lock"), NEW, ""),
    "what is made in it is somebody's": (write("new.deeper-layers.partial/made/thesis.tex"), NEW, "holds made"),
    "what an earlier version was killed in replacing": (
        lambda here: [write(f"new.deeper-layers.partial/{name}")(here) for name in ("of.json", "before/thesis.tex")],
        NEW,
        "holds before",
    ),
    "it is a file": (write("new.deeper-layers.partial"), NEW, "is no folder of ours"),
    "it is a link to a folder": (link("new.deeper-layers.partial", "whole"), NEW, "is no folder of ours"),
    "the lock is somebody's": (write("new.deeper-layers.lock", "text"), NEW, "is no lock of ours"),
    "the lock is a folder": (write("new.deeper-layers.lock/mine"), NEW, "is no lock of ours"),
    "the lock is a link": (link("new.deeper-layers.lock", "nowhere"), NEW, "is no lock of ours"),
    # ---- OUT can't be
    "OUT has a long name": (None, ["whole", "n" * 300, *ONE], "name too long"),
    "OUT lies in a file": (write("file"), ["whole", "file/out", *ONE], "file is no folder"),
    "OUT lies where nothing can": (None, ["whole.gguf", "/proc/none/out.gguf", *ONE], "can't write"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_anybody_else_is_lost(case, models, tmp_path, monkeypatch):
    make, words, message = CASES[case]
    monkeypatch.chdir(shutil.copytree(models, tmp_path / "here", symlinks=True))
    if make:
        make(Path())
    before = snapshot(Path())
    if message:
        assert message in said("prune", *words)
        assert snapshot(Path()) == before
    else:
        typed("prune", *words)
        after = snapshot(Path())
        assert before.items() <= after.items()
        assert {name.split("/")[0] for name in after.keys() - before.keys()} == {words[1]}


def touched(here: Path) -> None:
    for path in (*here.glob("whole/*.safetensors"), here / "whole.gguf"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize("source", ["whole", "whole.gguf"])
@pytest.mark.parametrize("change", [write("new/thesis.tex"), link("new", "nowhere"), touched])
def test_what_happens_meanwhile_is_seen_and_what_appears_stays(source, change, models, tmp_path, monkeypatch):
    here, changes = Path(shutil.copytree(models, tmp_path / "here")), iter([change])

    def meanwhile(needed, *places):
        for one in changes:
            one(here)
        return lineage.check_disk_space(needed, *places)

    for module in (tensors, gguf_files):
        monkeypatch.setattr(module, "check_disk_space", meanwhile)
    with pytest.raises(InputError, match="new exists|changed while it was copied|was changed after it was read"):
        (slice_gguf if source.endswith("gguf") else slice_checkpoint)(here / source, CUT, here / "new")
    after = {name: content for name, content in snapshot(here).items() if ".partial" not in name}
    change(here)
    assert after == {name: content for name, content in snapshot(here).items() if ".partial" not in name}


def test_what_a_checkpoint_needs_goes_along_and_nothing_else(tiny_folder, tmp_path):
    source = Path(shutil.copytree(tiny_folder, tmp_path / "source"))
    needed = ["generation_config.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "LICENSE.txt"]
    strange = [".env", "id_rsa", "credentials.json", "modeling_own.py", "checkpoint-500/optimizer.pt"]
    for name in [*needed, *strange]:
        write(name, "{}" if name.endswith(".json") else SECRET)(source)
    for name in ("config.json", "tokenizer_config.json"):
        put(name, "_name_or_path", str(source))(source)
        put(name, "vocab_file", "/home/me/vocab.json")(source)
    with warnings.catch_warnings(action="default"):
        done = typed("prune", source, tmp_path / "out", *ONE)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    left = {name.partition("/")[0] for name in strange}
    assert found >= set(needed) and not found & left
    (line,) = [line for line in done.stderr.splitlines() if "no part of a checkpoint" in line]
    assert all(name in line for name in left) and SECRET not in line
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


def sliced(models: Path, out: Path) -> None:
    slice_checkpoint(models / "whole", CUT, out, name="out")


def failing(number: int, step) -> None:
    """A full disk, a broken one, one that may not be written to, in turn; for one call or for good."""
    code = FAULTS[number % 3]
    with failing_at(number, code, (1, 10**6)[number % 2]):
        try:
            step()
        except InputError as error:
            assert os.strerror(code) in str(error) or code == errno.EACCES  # of which tempfile makes another


# what is there before, and what is done
STEPS = {
    "a folder": (None, sliced),
    "a GGUF file": (None, lambda models, out: slice_gguf(models / "whole.gguf", CUT, out)),
    "a result": (lambda _, out: files.write_file(out, b"old"), lambda _, out: files.write_file(out, b"the next")),
}
OFTEN = [("a folder", killed_at), ("a folder", failing), ("a result", killed_at), ("a GGUF file", killed_at)]


@pytest.mark.parametrize(
    ("name", "disturb"),
    [
        pytest.param(*case, marks=[] if case in OFTEN else pytest.mark.thorough)
        for case in itertools.product(STEPS, (killed_at, failing))
    ],
)
def test_killed_or_failing_at_any_call_the_same_again_ends_as_undisturbed(name, disturb, models, quick, tmp_path):
    begin, step = STEPS[name]

    def begun(number: str) -> Path:
        out = tmp_path / number / "out"
        out.parent.mkdir()
        if begin:
            begin(models, out)
        return out

    first = begun("undisturbed")
    calls = calls_of(lambda: step(models, first))
    expected = snapshot(first.parent)
    for number, call in enumerate(calls):
        out = begun(str(number))
        before = snapshot(out.parent)
        disturb(number, lambda out=out: step(models, out))
        files.remove_leftovers(out.parent)
        there = {name: content for name, content in snapshot(out.parent).items() if name.split("/")[0] == "out"}
        assert there in (before, expected)
        with contextlib.suppress(InputError):  # it exists: it was killed when all was there
            step(models, out)
        assert snapshot(out.parent) == expected, (number, call)


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_is_written_is_on_the_disk_before_it_has_its_name(is_folder, tmp_path, monkeypatch):
    """After a power failure a name without its content would be a damaged file, or an OUT that can't be made again."""
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda number: (events.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number))
    )
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("renamed"), rename(old, new)))
    with files.atomic_dir(tmp_path / "out", is_folder=is_folder) as made:
        names = ["a", "b/c", "b/.d"] if is_folder else [""]
        for name in names:
            write(name, "text")(made) if is_folder else made.write_text("text")
        written = {str(made / name) if name else str(made) for name in names}
    assert set(events[: events.index("renamed")]) == written and events.count("renamed") == 1


# ---- two at once -----------------------------------------------------------------------------------------------

SLOW = """
import sys
from pathlib import Path
from deeper_layers import files
with files.{what}(Path({path!r})) as made:
    print("begun", flush=True)
    sys.stdin.readline()
"""


def in_another_process(what: str, path: Path) -> subprocess.Popen:
    words = [sys.executable, "-c", SLOW.format(what=what, path=str(path))]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "begun\n"
    return child


def test_what_one_process_makes_no_other_does_until_it_is_killed(models, tmp_path):
    path = tmp_path / "out"
    with (
        in_another_process("atomic_dir", path) as writes,
        in_another_process("locked", tmp_path / "unit.json") as locks,
    ):
        with pytest.raises(InputError, match="another process writes .*out: wait until it ends"):
            sliced(models, path)
        with pytest.raises(Timeout), files.locked(tmp_path / "unit.json"):
            pass
        for living in (writes, locks):
            living.kill()
            living.wait()
        sliced(models, path)
        with files.locked(tmp_path / "unit.json"), pytest.raises(Timeout), files.locked(tmp_path / "unit.json"):
            pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_is_waited_for_where_that_is_said(tmp_path, capsys):
    with in_another_process("locked", tmp_path / "unit.json") as living:
        living.stdin.close()  # in a moment it ends
        with files.locked(tmp_path / "unit.json", "waiting for it"):
            pass
    assert capsys.readouterr().err in ("", "waiting for it\n") and os.listdir(tmp_path) == []


def test_a_folder_for_the_moment_is_of_one_process_and_goes(tmp_path):
    with in_another_process("temporary_dir", tmp_path / "x") as living:
        with files.temporary_dir(tmp_path / "x"):
            assert len(list(tmp_path.glob("x-*/made"))) == 2
        living.kill()
    with files.temporary_dir(tmp_path / "x"):
        assert len(list(tmp_path.glob("x-*/made"))) == 1
    assert os.listdir(tmp_path) == []


def test_where_a_file_system_has_no_locks(models, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "as some file systems say")

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.locked(tmp_path / "c.json"):
        files.write_file(tmp_path / "c.json", b"1")
    sliced(models, tmp_path / "out")
    assert {name for name in os.listdir(tmp_path) if not name.endswith(".lock")} == {"c.json", "out"}


@pytest.mark.parametrize(
    ("make", "out", "message"),
    [
        (write("new/thesis.tex"), "new", "holds files and no report.json"),
        (write("out/01-similarity.ipynb"), "out", "was changed since report wrote it"),
        (instead("out/01-similarity.ipynb"), "out", ""),
    ],
)
def test_a_report_replaces_its_own_notebooks_alone(make, out, message, tmp_path):
    path = tmp_path / out / "01-similarity.ipynb"
    write_notebook(tmp_path / "out" / path.name, b"of ours")
    make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        write_notebook(path, b"the next")
    mine = () if message else (f"{out}/{path.name}", f"{out}/report.json")
    assert {name: text for name, text in snapshot(tmp_path).items() if name not in mine} == {
        name: text for name, text in before.items() if name not in mine
    }
    assert message or path.read_bytes() == b"the next"


@pytest.mark.parametrize("disturb", [killed_at, failing])
def test_a_report_that_is_killed_or_fails_leaves_a_whole_notebook_and_the_next_goes_on(disturb, quick, tmp_path):
    def begun(number: str) -> Path:
        write_notebook(tmp_path / number / "01-similarity.ipynb", b"of before")
        return tmp_path / number / "01-similarity.ipynb"

    def step(path: Path) -> None:
        write_notebook(path, b"the next")

    first = begun("undisturbed")
    calls = calls_of(lambda: step(first))
    assert len(calls) > 10
    for number, call in enumerate(calls):
        path = begun(str(number))
        with contextlib.suppress(OSError):  # the command says it in one line
            disturb(number, lambda path=path: step(path))
        assert path.read_bytes() in (b"of before", b"the next"), (number, call)
        files.remove_leftovers(path.parent)  # as a report does first
        step(path)
        assert snapshot(path.parent) == snapshot(first.parent), (number, call)


# ---- what an interrupted process left --------------------------------------------------------------------------


def left_behind(path: Path, description: dict | None) -> None:
    """A folder half made under a description, as a killed process leaves it."""

    def killed():
        with files.atomic_dir(path, description=description) as folder:
            (folder / "half").touch()
            os._exit(0)

    child = os.fork()
    if child == 0:
        killed()
    os.waitpid(child, 0)
    assert not path.exists() and list(path.parent.glob(f"{path.name}.*.partial/made/half"))


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, None, False),
        (None, {"a": 1}, False),
        (None, None, False),
    ],
)
def test_what_was_half_made_is_gone_on_with_under_the_same_description_alone(before, now, kept, tmp_path):
    left_behind(tmp_path / "out", before)
    with contextlib.suppress(KeyboardInterrupt), files.atomic_dir(tmp_path / "out", description=now) as folder:
        assert [path.name for path in folder.iterdir()] == ["half"] * kept
        (folder / "more").touch()
        raise KeyboardInterrupt
    with files.atomic_dir(tmp_path / "out", description=now) as folder:  # now it is that of this description
        assert (folder / "more").exists() == (now is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
