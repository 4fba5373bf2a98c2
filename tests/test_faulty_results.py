"""Units and shards where a process is killed, a call of the system fails, or another process is at work."""

import functools
import json
import multiprocessing
import os
import re
import stat
import traceback
import warnings

import numpy as np
import pytest

from deeper_layers import files, results
from deeper_layers.errors import InputError
from deeper_layers.results.places import results_folder
from deeper_layers.results.shards import Shards
from deeper_layers.results.units import all_units, read_unit, unit_path
from tests import faults
from tests.test_results import DETAILS, KEY, ROWS, measure_or_load

PARTS = 3


@pytest.fixture(autouse=True)
def same_circumstances(monkeypatch):
    """To ask git takes longer than all the rest."""
    state = results.provenance("a processor")
    monkeypatch.setattr(results, "provenance", lambda _: state)


def measured_by_parts(folder):
    """A unit of three shards, two of them in a folder of their own."""

    def measure(shards):
        for number, part in enumerate([shards, Shards(shards.folder / "task"), Shards(shards.folder / "task")]):
            if part.get(number) is None:
                part.put(number, {"values": np.full(4, number)})
        return ROWS, DETAILS

    return measure_or_load("sweep", "a", KEY, measure, folder)


def what_is_there(folder):
    """All files of results with what is in them, but for times."""
    found = faults.snapshot(folder)
    for name, content in found.items():
        if name.endswith(".json"):
            found[name] = json.loads(content)
            found[name] |= {"provenance": None, "sha256": None}
    return found


def test_killed_before_any_call_a_plain_run_finishes_and_leaves_nothing_over(tmp_path):
    calls = faults.calls_of(lambda: measured_by_parts(tmp_path / "straight"))
    expected, killed = what_is_there(tmp_path / "straight"), 0
    assert len(calls) > 40 and len([name for name in expected if name.endswith(".json")]) == 1
    for number, name in enumerate(calls):
        folder = tmp_path / str(number)
        step = functools.partial(measured_by_parts, folder)
        killed += faults.killed_at(number, step, share=0.5 if name == "write" else 0)
        with warnings.catch_warnings(action="error"):  # nothing half-written is ever read
            all_units(folder)
            step()
        assert what_is_there(folder) == expected, f"killed before call {number}, {name}"
    assert killed == len(calls)


def test_any_call_that_fails_is_one_line_or_nothing_and_a_plain_run_finishes(tmp_path):
    """A full disk, a broken one, one that may not be written to, in turn; for one call or for several."""
    calls = faults.calls_of(lambda: measured_by_parts(tmp_path / "straight"))
    expected, refused = what_is_there(tmp_path / "straight"), 0
    for number in range(len(calls)):
        folder, code = tmp_path / str(number), faults.FAULTS[number % 3]
        with faults.failing_at(number, code, times=1 + number % 2):
            try:
                measured_by_parts(folder)
            except InputError as error:
                assert os.strerror(code) in str(error) and str(folder) in str(error)
                refused += 1
        measured_by_parts(folder)
        assert what_is_there(folder) == expected, f"{os.strerror(code)} at call {number}, {calls[number]}"
    assert refused > len(calls) / 3  # a fault while something is tidied up is none


# ---- several processes -----------------------------------------------------------------------------------


def test_processes_on_one_unit_never_mind_each_other(tmp_path):
    """Six at once, from the first shard to the end: each gets the unit, and nothing is left."""
    context = multiprocessing.get_context("fork")
    start, said = context.Barrier(6), context.Queue()

    def work():
        start.wait()
        with warnings.catch_warnings(action="error"):
            try:
                said.put([measured_by_parts(tmp_path).path.name for _ in range(3)])
            except BaseException:
                said.put(traceback.format_exc())

    with warnings.catch_warnings(action="ignore"):
        workers = [context.Process(target=work) for _ in range(6)]
        for worker in workers:
            worker.start()
    assert [said.get(timeout=60) for _ in workers] == [[unit_path("sweep", "a", KEY).name] * 3] * 6
    for worker in workers:
        worker.join()
    measured_by_parts(tmp_path)
    (unit,) = all_units(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [unit.path]


def test_what_is_left_beside_a_unit_goes_and_what_is_somebody_elses_does_not(tmp_path):
    unit = measured_by_parts(tmp_path)
    # a folder of work in progress that another process left beside the unit, with a file of somebody else in it
    shards = Shards(unit.path.with_suffix(".partial"))
    shards.put(0, {"values": np.arange(2)})
    measured_by_parts(tmp_path)
    assert not shards.folder.exists()
    shards.put(0, {"values": np.arange(2)})
    (shards.folder / "notes.txt").write_text("mine")
    measured_by_parts(tmp_path)
    assert [path.name for path in shards.folder.iterdir()] == ["notes.txt"]


def test_shards_behind_a_link_are_not_removed(tmp_path):
    Shards(tmp_path / "elsewhere").put(0, {"values": np.arange(2)})
    (tmp_path / "unit.partial").symlink_to(tmp_path / "elsewhere")
    Shards(tmp_path / "unit.partial").remove()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["000000.npz"]


# ---- places ----------------------------------------------------------------------------------------------


def test_what_can_hold_no_results_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name in (
        tmp_path / "file",
        tmp_path / "pipe",
        tmp_path / "file" / "below",
        "x" * 5000,
        "nu\0ll",
        "~nobody-at-all",
    ):
        with pytest.raises(InputError, match=r"^results is .*: \w+") as caught:
            results_folder(name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_where_a_folder_is_expected_is_found_before_measuring(tmp_path):
    path = unit_path("sweep", "a", KEY, tmp_path)
    path.parent.write_text("mine")
    with pytest.raises(InputError, match="can't write"):
        measure_or_load("sweep", "a", KEY, lambda _: pytest.fail("measured"), tmp_path)
    path.parent.unlink()
    path.parent.mkdir()
    path.with_suffix(".partial").write_text("mine")
    with pytest.raises(InputError, match="can't write in .*partial, which is no folder"):
        measured_by_parts(tmp_path)
    assert path.with_suffix(".partial").read_text() == "mine"


def test_a_full_disk_is_found_before_measuring(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"0\.0 MiB are free for .*, expected at least 16"):
        measure_or_load("sweep", "a", KEY, lambda _: pytest.fail("measured"), tmp_path)


def test_a_pipe_a_folder_or_a_link_to_nothing_is_no_unit_and_is_not_waited_for(tmp_path):
    path = measured_by_parts(tmp_path).path
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(path / "nowhere", path)):
        path.unlink(missing_ok=True) if not path.is_dir() else path.rmdir()
        make(path)
        with warnings.catch_warnings(action="ignore"):
            assert read_unit(path) is None and all_units(tmp_path) == []


def test_names_stay_below_the_folder_of_results(tmp_path):
    for name in (
        "..",
        "../..",
        "",
        ".",
        ".hidden",
        "/etc",
        "a/../../b",
        "x" * 999,
        "é" * 300,
        "a\\qb",
        "<script>",
        "nu\0ll",
    ):
        path = unit_path("sweep", name, KEY | {"model": {"name": name, "weights": ""}}, tmp_path)
        assert path.parent.parent == tmp_path and path.resolve() == path and not path.parent.name.startswith(".")
        path.parent.mkdir()
        path.write_text("")
        path.unlink()


# ---- shards ----------------------------------------------------------------------------------------------

SAME, LIKE = {"requests": np.arange(3)}, {"logprobs": (float, (2, 3)), "tokens": (np.int32, (None,))}
GOOD = {"requests": np.arange(3), "logprobs": np.zeros((2, 3)), "tokens": np.zeros(5, dtype=np.int32)}


def pickled(path):
    np.savez(path, requests=np.arange(3), logprobs=np.array([os.getpid, None]), tokens=GOOD["tokens"])


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def test_what_is_odd_in_a_shard_is_said(tmp_path):
    shards, path = Shards(tmp_path), tmp_path / "000000.npz"
    names = "it holds logprobs, more, requests, tokens, expected logprobs, requests, tokens"
    for arrays, said in (
        ({"more": np.zeros(1)}, names),
        ({"logprobs": np.zeros((2, 3), dtype=np.float32)}, "float32 of shape (2, 3), expected float64 of (2, 3)"),
        ({"tokens": np.zeros((5, 1), dtype=np.int32)}, "tokens is int32 of shape (5, 1), expected int32 of (None,)"),
        ({"logprobs": np.full((2, 3), np.nan)}, "logprobs holds not-a-number"),
        ({"seconds": np.array(-1.0)}, "it took -1.0 seconds"),
    ):
        np.savez(path, **GOOD | arrays)
        with pytest.warns(UserWarning, match=re.escape(f"{said}): it is measured again")):
            assert shards.get(0, SAME, LIKE) is None
    np.savez_compressed(path, **GOOD)
    with pytest.warns(UserWarning, match="it is compressed"):
        assert shards.get(0, SAME, LIKE) is None
    np.savez(path, **GOOD)  # how long it took is not known
    assert shards.get(0, SAME, LIKE) is not None and shards.seconds_before == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: np.savez(path, **GOOD | {"logprobs": np.zeros((3, 2))}),
        lambda path: np.savez(path, **GOOD | {"logprobs": np.zeros((2, 3), dtype=np.float32)}),
        lambda path: np.savez(path, **GOOD | {"logprobs": np.zeros((2, 3), dtype=complex)}),
        lambda path: np.savez(path, **GOOD | {"logprobs": np.full((2, 3), np.nan)}),
        lambda path: np.savez(path, **GOOD | {"tokens": np.zeros((5, 1), dtype=np.int32)}),
        lambda path: np.savez(path, **GOOD | {"more": np.zeros(1)}),
        lambda path: np.savez(path, requests=np.arange(3), logprobs=np.zeros((2, 3))),
        lambda path: np.savez(path, **GOOD | {"seconds": np.array(np.nan)}),
        lambda path: np.savez(path, **GOOD | {"seconds": np.array([1.0, 2.0])}),
        lambda path: np.savez_compressed(path, **GOOD),
        pickled,
        pipe,
    ],
)
def test_a_shard_of_odd_arrays_is_named_and_missing(spoil, tmp_path):
    shards = Shards(tmp_path)
    shards.put(0, GOOD)
    assert shards.get(0, SAME, LIKE).keys() == GOOD.keys()
    assert shards.get(0, {"requests": np.arange(4)}, LIKE) is None  # of another part: no reason to say a word
    spoil(tmp_path / "000000.npz")
    with pytest.warns(UserWarning, match="000000.npz is not a readable shard .*: it is measured again") as caught:
        assert shards.get(0, SAME, LIKE) is None
    assert len(caught) == 1
    if not stat.S_ISFIFO((tmp_path / "000000.npz").stat().st_mode):
        shards.put(0, GOOD)
        assert shards.get(0, SAME, LIKE) is not None
