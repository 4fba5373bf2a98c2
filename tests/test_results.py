"""Results on disk: measured once, whole or absent, not disturbed by being killed, and never believed when damaged."""

import functools
import io
import json
import os
import re
import subprocess
import time
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from tqdm import tqdm

from deeper_layers import files, results, sweeping
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import Data, Experiment
from deeper_layers.experiments.notebook_parameters import QuestionAnsweringParameters
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.experiments.scoring import score_task
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import Source
from deeper_layers.results import circumstances, places
from deeper_layers.results.packing import pack, pack_halves, unpack, unpack_halves
from deeper_layers.results.shards import Shards, skip
from deeper_layers.results.store import all_results, find_result, key_hash, read_result, result_path, text_of
from deeper_layers.sweeping.planning import Requests
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree_model import TreeModel
from tests import faults
from tests.fuzz import unit_cases
from tests.fuzz.trying import counted

KEY = {
    "model": {"name": "org/some model", "weights": "sha256:0"},
    "dtype": "float32",
    "quantization": None,
    "tasks": {"a": {"shots": None, "limit": 3}},
    "cuts": {"simple": ["0,0", "0,1"]},
    "data": "made up",
}


def measured(key: dict = KEY) -> tuple[list[dict], dict]:
    """Rows and details of a sweep."""
    (task,) = key["tasks"]
    row = {"task": task, "metric": "acc", "value": 2 / 3, "items": 3, "outcome": pack(np.array([0, 1, 1]))}
    cuts = dict.fromkeys(cut for cuts in key["cuts"].values() for cut in cuts)
    rows = [row | {"cut": cut, "stderr": 0.25 if cut == "0,0" else np.nan} for cut in cuts]
    return rows, {"levels": {task: {"chance": 0.25}}}


@pytest.fixture
def measure():
    """Measures what a key asks, and counts how often."""
    return mock.Mock(side_effect=lambda shards, key=KEY: measured(key))


def measure_or_load(key, measure, folder, *, data=None):
    """The result of a key: its data are at hand where they stand in it, and on a hub where `data` reads them."""
    settings = {entry: value for entry, value in key.items() if entry not in ("model", "dtype", "data")}
    source = Source(**key["model"], num_layers=5, dtype=key["dtype"], quantized="none", folder="")
    corpus, fingerprint = ("c4", data) if data else ("wikipedia", lambda: key["data"])
    run = functools.partial(measure, key=key) if isinstance(measure, mock.Mock) else measure
    reads = [Data(corpus, fingerprint)]
    return Experiment(Parameters(results=str(folder)), source).result("scores", settings, reads, run)


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- measure or load -------------------------------------------------------------------------------------


def test_measured_once_then_loaded(tmp_path, measure):
    first, again = (measure_or_load(KEY, measure, tmp_path) for _ in range(2))
    assert measure.call_count == 1 and first.records == again.records and first.provenance == again.provenance
    assert (again.kind, again.name, again.key) == ("scores", "a", KEY) and "outcome" not in again.rows
    assert again.rows[["start", "size"]].values.tolist() == [[0, 0], [0, 1]] and again.rows["stderr"][0] == 0.25
    assert np.isnan(again.rows["stderr"][1]) and "NaN" not in first.path.read_text(), "not-a-number is null in a file"
    assert again.details == measured()[1] | {"num_layers": 5, "weights": "none"}
    assert first.path == result_path("scores", KEY, tmp_path) and first.path.parent.name == "org-some-model"
    assert list(tmp_path.rglob("*")) == [first.path.parent, first.path]  # nothing else is left
    assert sum(line.startswith('{"task"') for line in first.path.read_text().splitlines()) == 2, "one row a line"
    state = again.provenance
    assert state["packages"]["numpy"] == np.__version__ and state["python"].startswith("3.") and state["device"]
    assert state["seconds"] >= 0 == state["seconds_in_earlier_runs"] and state["peak_memory_bytes"] > 10_000_000
    assert (state["dirty"] is None) == (state["commit"] is None)


def test_found_without_its_data(tmp_path, measure):
    """Where the data takes a hub, a result that agrees in everything else is taken without asking for the data."""
    known = {name: value for name, value in KEY.items() if name != "data"}
    made = measure_or_load(known, measure, tmp_path, data=lambda: "made up")
    again = measure_or_load(known, measure, tmp_path, data=lambda: pytest.fail("asked for the data"))
    assert made.key == KEY and again.path == made.path and measure.call_count == 1
    measure_or_load(known | {"data": "others"}, measure, tmp_path)
    assert measure.call_count == 2


def test_found_for_more_cuts_of_its_rules(tmp_path, measure):
    """What was measured for more cuts answers for fewer: a later run of some sizes costs nothing."""
    few, many = (KEY | {"cuts": {"simple": cuts}} for cuts in (["0,0"], ["0,0", "3,1", "2,2"]))
    wide = measure_or_load(many, measure, tmp_path)
    for key in (few, KEY | {"cuts": {"given": ["2,2"]}}):  # what is given may have been anybody's choice
        assert measure_or_load(key, measure, tmp_path).path == wide.path and measure.call_count == 1
    assert find_result("scores", few | {"tasks": {"a": {"shots": None, "limit": 4}}}, tmp_path) is None
    assert find_result("scores", KEY | {"cuts": {"similarity": ["3,1"]}}, tmp_path) is None, "another rule's"
    # a cut of its own is a measurement of its own, and then the one with the fewest cuts answers
    other = measure_or_load(KEY | {"cuts": {"simple": ["0,0", "1,1"]}}, measure, tmp_path)
    assert measure.call_count == 2 and measure_or_load(few, measure, tmp_path).path == other.path


def test_another_key_is_another_file(tmp_path, measure):
    keys = [
        KEY,
        KEY | {"dtype": "bfloat16"},
        KEY | {"model": KEY["model"] | {"weights": "sha256:1"}},
        KEY | {"seed": 0},
    ]
    keys += [KEY | {"tasks": {"b": {"limit": 3}}}]
    paths = {measure_or_load(key, measure, tmp_path).path for key in keys}
    assert len(paths) == measure.call_count == len(keys)
    assert [one.path for one in all_results(tmp_path)] == sorted(paths)
    assert key_hash(dict(reversed(KEY.items()))) == key_hash(KEY), "the order of its entries is not part of a key"
    assert results.is_measured("b", tmp_path) and not results.is_measured("c", tmp_path)


# --- damaged ---------------------------------------------------------------------------------------------


def signed(path, change) -> None:
    """Damage that is signed anew, as by somebody who means it."""
    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    path.write_bytes(text_of(content))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00 no text at all"),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "another number": lambda path: path.write_bytes(path.read_bytes().replace(b'"limit": 3', b'"limit": 4')),
    "another name": lambda path: path.rename(path.with_name(path.name.replace("scores-a", "scores-a-b"))),
    "another version": lambda path: signed(path, lambda of: of.update(version=2)),
    "rows of words": lambda path: signed(path, lambda of: of["rows"][0].update(value="0.5")),
    "no time": lambda path: signed(path, lambda of: of["provenance"].pop("measured")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_named_left_out_and_measured_again(damage, tmp_path, measure):
    path = measure_or_load(KEY, measure, tmp_path).path
    DAMAGE[damage](path)
    with pytest.warns(UserWarning, match=r"is not a readable result \(.*left out, and measured again") as caught:
        assert all_results(tmp_path) == []
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with warnings.catch_warnings(action="ignore"):
        assert measure_or_load(KEY, measure, tmp_path).records[0]["value"] == 2 / 3
    assert measure.call_count == 2 and find_result("scores", KEY, tmp_path).path == path


@pytest.mark.parametrize("packed", ["no base 64", pack(np.zeros(4)), pack(np.zeros(10**7))])
def test_outcomes_that_are_not_as_many_as_items_are_in_no_table(packed, tmp_path, measure):
    path = measure_or_load(KEY, measure, tmp_path).path
    signed(path, lambda of: of["rows"][1].update(outcome=packed))
    with pytest.warns(UserWarning, match=path.name) as caught:
        assert results.scores(tmp_path).empty
    assert len(caught) == 1


def test_three_hundred_damaged_results_are_named_or_stand_in_a_table(tmp_path):
    counts, bad = counted(unit_cases.outcomes(range(300), tmp_path))
    assert bad == [] and counts["clear"] > 200


def test_a_result_is_read_once_until_its_file_changes(tmp_path, measure):
    path = measure_or_load(KEY, measure, tmp_path).path
    assert read_result(path) is read_result(path)
    signed(path, lambda of: of["provenance"].update(device="another processor"))
    assert read_result(path).provenance["device"] == "another processor"
    path.unlink()
    os.mkfifo(path)
    with warnings.catch_warnings(action="ignore"):
        assert read_result(path) is None and all_results(tmp_path) == [], "nobody waits for a pipe"


# --- what a result holds ---------------------------------------------------------------------------------


def test_the_commit_of_a_checkout_and_whether_code_differs_from_it(tmp_path, monkeypatch):
    def found():
        state = circumstances.provenance("a processor")
        return state["commit"], state["dirty"]

    monkeypatch.setattr(circumstances, "AROUND", tmp_path)
    code = tmp_path / "lib" / "deeper_layers" / "cuts.py"
    code.parent.mkdir(parents=True)
    code.touch()
    assert found() == (None, None)  # no repository
    git = f"git -C {tmp_path} -c user.name=a -c user.email=a@b"
    subprocess.run(f"{git} init --quiet && {git} add . && {git} commit --quiet -m first", shell=True, check=True)
    (tmp_path / "result.json").touch()
    assert len(found()[0]) == 40 and found()[1] is False
    code.write_text("changed")
    assert found()[1] is True
    code.unlink()
    assert found() == (None, None)  # a repository that is none of ours


def test_numbers_pack_and_unpack():
    for values in ([], [0, 1, 1, 0], [255, 0, 7], np.arange(256), np.array([True, False]), np.zeros(5000, dtype=int)):
        assert np.array_equal(unpack(pack(np.array(values)), len(values)), np.array(values, dtype=np.uint8))
    for wrong in ([-1, 3], [256], [0.5, np.nan]):
        with pytest.raises(ValueError, match="0..255"):
            pack(np.array(wrong))
    exact = -np.random.default_rng(0).lognormal(1, 1.5, (1000, 4))
    exact[3, 2:] = np.nan
    kept = unpack_halves(pack_halves(exact), 1000)
    assert np.array_equal(np.isnan(kept), np.isnan(exact)) and np.nanmax(np.abs(kept / exact - 1)) < 5e-4
    assert unpack_halves(pack_halves(np.array([[-1e9, -0.0]])), 1).tolist() == [[-65504.0, 0.0]]


# --- where they lie --------------------------------------------------------------------------------------


def test_where_results_lie(tmp_path, monkeypatch):
    """A name is relative to where the user stands; no package holds results, nor is any folder called lib ours."""
    monkeypatch.chdir(tmp_path)
    assert places.results_folder("mine").resolve() == tmp_path / "mine"
    assert places.results_folder() == places.AROUND / "results" and places.is_checkout(places.AROUND)
    monkeypatch.setattr(places, "AROUND", tmp_path / "environment")  # as where the package is installed
    (tmp_path / "lib").mkdir()
    assert places.repository() is None and places.results_folder().resolve() == tmp_path / "results"
    (tmp_path / "file").write_text("mine")
    for name in ("file", "file/below", "x" * 5000, "nu\0ll", "~nobody-at-all"):
        with pytest.raises(InputError, match=r"^results is .*: \w+"):
            places.results_folder(name)


@pytest.mark.parametrize("name", ["../..", "", ".hidden", "/etc", "a/../../b", "x" * 999, "é" * 300, "nu\0ll"])
def test_names_stay_below_the_folder_of_results(name, tmp_path):
    key = KEY | {"model": {"name": name, "weights": ""}, "tasks": {name: {}}}
    path = result_path("scores", key, tmp_path)
    assert path.parent.parent == tmp_path and path.resolve() == path and not path.parent.name.startswith(".")
    path.parent.mkdir()
    path.write_text("")


def test_what_can_not_be_written_is_found_before_measuring(tmp_path, monkeypatch):
    path = result_path("scores", KEY, tmp_path)
    path.parent.write_text("mine")
    with pytest.raises(InputError, match="can't write"):
        measure_or_load(KEY, lambda _: pytest.fail("measured"), tmp_path)
    path.parent.unlink()
    path.parent.mkdir()
    path.with_suffix(".partial").write_text("mine")
    with pytest.raises(InputError, match="can't write in .*partial, which is no folder"):
        measure_or_load(KEY, lambda _: pytest.fail("measured"), tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: mock.Mock(free=1000))
    with pytest.raises(InputError, match=r"0\.0 MiB are free for .*, expected at least 16"):
        measure_or_load(KEY, lambda _: pytest.fail("measured"), tmp_path)


# --- shards, kills and faults ----------------------------------------------------------------------------

SAME, LIKE = {"requests": np.arange(3)}, {"logprobs": (float, (2, 3)), "tokens": (np.int32, (None,))}
GOOD = {"requests": np.arange(3), "logprobs": np.zeros((2, 3)), "tokens": np.zeros(5, dtype=np.int32)}


def test_shards_give_back_what_was_put(tmp_path):
    shards = Shards(tmp_path / "unit.partial")
    shards.put(0, GOOD)
    time.sleep(0.01)
    shards.put(1, {"a": np.array([1.5, np.nan])})
    again = Shards(tmp_path / "unit.partial")
    assert again.get(0, SAME, LIKE).keys() == GOOD.keys()
    assert again.get(0, {"requests": np.arange(4)}, LIKE) is None  # of another part: no reason to say a word
    assert np.array_equal(again.get(1)["a"], [1.5, np.nan], equal_nan=True) and again.seconds_before >= 0.01
    again.part("task").put(0, GOOD)
    before = again.seconds_before
    again.part("task").get(0)
    assert again.seconds_before > before, "what a part of it took counts too"
    (tmp_path / "unit.partial" / "notes.txt").write_text("mine")
    (tmp_path / "linked").symlink_to(tmp_path / "unit.partial")
    Shards(tmp_path / "linked").remove()
    assert len(files_below(tmp_path / "unit.partial")) == 4, "what is behind a link stays"
    shards.remove()
    assert files_below(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"more": np.zeros(1)}, "it holds logprobs, more, tokens, expected logprobs, tokens"),
        ({"logprobs": np.zeros((2, 3), dtype=np.float32)}, "float32 of shape (2, 3), expected float64 of (2, 3)"),
        ({"logprobs": np.array([os.getpid, None])}, "allow_pickle"),
        (None, "not a readable shard"),
    ],
)
def test_a_shard_of_odd_arrays_is_named_and_missing(odd, said, tmp_path):
    np.savez(tmp_path / "000000.npz", seconds=1.0, **GOOD | (odd or {}))
    if odd is None:
        (tmp_path / "000000.npz").write_bytes(b"no archive at all")
    with pytest.warns(UserWarning, match=f"000000.npz.*{re.escape(said)}.*measured again|{re.escape(said)}") as caught:
        assert Shards(tmp_path).get(0, SAME, LIKE) is None
    assert len(caught) == 1


def test_time_left_does_not_count_what_shards_hold():
    bar = tqdm(total=8, file=io.StringIO())
    skip(bar, 6)
    bar.start_t -= 10  # ten seconds later nothing new is done ...
    assert bar.n == bar.last_print_n == 6 and "<?" in str(bar)
    bar.update(1)  # ... then half of what was left
    left = bar.format_dict
    assert (left["n"] - left["initial"]) / left["elapsed"] == pytest.approx(0.1, rel=0.1)
    bar.close()


def measured_by_parts(folder):
    """A result of three shards, two of them in a folder of their own."""

    def measure(shards):
        for number, part in enumerate([shards, Shards(shards.folder / "task"), Shards(shards.folder / "task")]):
            if part.get(number) is None:
                part.put(number, {"values": np.full(4, number)})
        return measured()

    return measure_or_load(KEY, measure, folder)


def what_is_there(folder):
    """All files of results with what is in them, but for times."""
    found = faults.snapshot(folder)
    for name, content in found.items():
        if name.endswith(".json"):
            found[name] = json.loads(content) | {"provenance": None, "sha256": None}
    return found


def test_any_call_that_fails_is_one_line_or_nothing_and_a_plain_run_finishes(tmp_path, monkeypatch):
    """A full disk, a broken one, one that may not be written to, in turn; for one call or for several."""
    state = results.provenance("a processor")  # to ask git takes longer than all the rest
    monkeypatch.setattr(results, "provenance", lambda _: state)
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


def test_what_was_asked_otherwise_is_not_taken_up(tiny_folder, tmp_path, monkeypatch):
    """Answers to other prompts of as many tokens, as after a change of a task's examples, are no part of a sweep."""
    family, ran = TreeModel(load_model(str(tiny_folder))[0], [Cut(0, 0), Cut(1, 2)]), []
    every = TreeModel.answer
    monkeypatch.setattr(TreeModel, "answer", lambda family, pieces, *more: (
        ran.append(sum(len(piece.requests) for piece in pieces)) or every(family, pieces, *more)
    ))  # fmt: skip

    def answered(contexts, folder):
        shards = Shards(tmp_path / folder)
        return loglikelihoods(family, Requests(contexts, [[7, 8], [9]], 8), shards=shards)[0]

    first = answered([[1, 2, 3], [4, 5]], "one")
    assert np.array_equal(answered([[1, 2, 3], [4, 5]], "one"), first) and ran == [2, 0]
    other = answered([[1, 2, 3], [4, 6]], "one")
    assert np.array_equal(other, answered([[1, 2, 3], [4, 6]], "two")) and not np.array_equal(other, first)


CUTS = {"simple": [simple_cut(5, n) for n in range(4)], "similarity": [Cut(0, 0), Cut(1, 1), Cut(1, 2), Cut(0, 3)]}


def swept(model, folder):
    """The result of a group in many small shards."""
    parameters = QuestionAnsweringParameters(model=str(model), results=str(folder), tasks="sums", limit=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "sweep", functools.partial(sweeping.sweep, batch_tokens=24))
        return score_task("sums", CUTS, Experiment(parameters))


def test_a_group_is_one_result_and_killed_twice_it_goes_on_to_the_same(tiny_folder, tmp_path):
    """In the middle of the sweep, between two shards and while one is written."""
    calls = faults.calls_of(lambda: swept(tiny_folder, tmp_path / "uninterrupted"))
    (expected,) = all_results(tmp_path / "uninterrupted")
    assert expected.details["groups"] == {"sums": ["sums_one_digit", "sums_two_digits"]} and len(expected.records) == 14
    assert results.scores(tmp_path / "uninterrupted")["task"].unique().tolist() == expected.details["groups"]["sums"]
    writes = [number for number, name in enumerate(calls) if name == "write"]
    killed, finished = tmp_path / "killed", [0]
    for number, share in ((writes[len(writes) // 4], 0), (writes[len(writes) // 4 + 1], 0.5)):
        assert faults.killed_at(number, lambda: swept(tiny_folder, killed), share)
        finished.append(len(list(killed.rglob("*.npz"))))
        assert finished[-1] >= finished[-2] + 2  # each run went on, none lost a shard
        assert not list(killed.glob("*/*.json"))
    result = swept(tiny_folder, killed)
    assert result.key == expected.key and result.details == expected.details and result.records == expected.records
    pd.testing.assert_frame_equal(result.rows, expected.rows, check_exact=True)
    assert result.provenance["seconds_in_earlier_runs"] > 0
    assert files_below(killed) == [result.path.name] and list(result.path.parent.iterdir()) == [result.path]
