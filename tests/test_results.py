"""Results on disk: measured once, whole or absent, not disturbed by being killed, and never believed when damaged."""

import contextlib
import functools
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.sources import Source
from deeper_layers.packing import pack, pack_halves, unpack, unpack_halves
from deeper_layers.sweeping.planning import Requests
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion import results
from deeper_layers_companion.jobs.job import Data, Job
from deeper_layers_companion.jobs.options import Parameters
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results import places
from deeper_layers_companion.results.contradictions import find_contradictions
from deeper_layers_companion.results.schema import check_content
from deeper_layers_companion.results.store import (
    find_result,
    hash_key,
    read_result,
    read_results,
    result_path,
    serialize,
)
from tests import faults

KEY = {
    "model": {"name": "org/some model", "weights": "sha256:0"},
    "dtype": "float32",
    "quantization": None,
    "tasks": {"a": {"shots": None, "limit": 3}},
    "cuts": {"simple": ["0,0", "0,1"]},
    "data": "made up",
}
DETAILS = {"levels": {"a": {"chance": 0.25}}}


class Text(Data):
    def fingerprint(self, datasets):
        return self.part["hash"]


class Measure:
    """Measures what a key asks, or reads it in a folder of results; how often it was measured is counted."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def __call__(self, key: dict = KEY, parts: int = 0):
        source = Source(**key["model"], num_layers=5, dtype=key["dtype"], quantized="none", folder="")
        reads = (Text("wikipedia", {"hash": key["data"]}),)

        def measure(job, shards):
            self.count += 1
            for number in range(parts):
                part = Shards(shards.folder / "task") if number else shards
                if part.get(number) is None:
                    part.put(number, {"values": np.full(4, number)})
            (task,) = key["tasks"]
            row = {"task": task, "metric": "acc", "value": 2 / 3, "items": 3, "outcome": pack(np.array([0, 1, 1]))}
            cuts = dict.fromkeys(cut for cuts in key["cuts"].values() for cut in cuts)
            return [row | {"cut": cut, "stderr": np.nan if cut == "0,1" else 0.25} for cut in cuts], DETAILS

        session = Session(Parameters(results=str(self.folder)), source)
        session.measure = measure
        return session.get(Job("scores", {name: value for name, value in key.items() if name != "data"}, reads))


@pytest.fixture
def measure(tmp_path):
    return Measure(tmp_path)


# --- measure or load -------------------------------------------------------------------------------------


def test_measured_once_then_loaded(tmp_path, measure):
    first, again = measure(), measure()
    assert measure.count == 1 and first.records == again.records and first.provenance == again.provenance
    assert (again.kind, again.name, again.key) == ("scores", "a", KEY) and "outcome" not in again.rows
    assert again.rows[["start", "size"]].values.tolist() == [[0, 0], [0, 1]]
    assert again.rows["stderr"].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)
    assert "NaN" not in first.path.read_text() and first.path.read_text().count('\n{"task"') == 2, "one row a line"
    assert again.details == DETAILS | {"num_layers": 5, "weights": "none"}
    assert first.path == result_path("scores", KEY, tmp_path) and first.path.parent.name == "org-some-model"
    assert list(tmp_path.rglob("*")) == [first.path.parent, first.path], "nothing else is left"
    assert again.provenance["packages"]["numpy"] == np.__version__ and again.provenance["peak_memory_bytes"] > 10**7


def test_the_key_of_what_was_measured_names_data_that_lie_on_a_hub(measure, monkeypatch):
    monkeypatch.setattr("deeper_layers.data.is_available_offline", lambda *_: False)
    assert measure().key == measure().key == KEY and measure.count == 1


def test_found_for_more_cuts_of_its_rules(tmp_path, measure):
    """What was measured for more cuts answers for fewer: a later run of some sizes costs nothing."""
    few, many, others = (KEY | {"cuts": {"simple": ["0,0", *cuts]}} for cuts in ([], ["3,1", "2,2"], ["1,1"]))
    wide = measure(many)
    for key in (few, KEY | {"cuts": {"given": ["2,2"]}}):  # what is given may have been anybody's choice
        assert measure(key).path == wide.path and measure.count == 1
    assert find_result("scores", few | {"tasks": {"a": {"shots": None, "limit": 4}}}, tmp_path) is None
    assert find_result("scores", KEY | {"cuts": {"similarity": ["3,1"]}}, tmp_path) is None, "another rule's"
    assert measure(others).path == measure(few).path != wide.path, "the one with the fewest cuts answers"


def test_another_key_is_another_file(tmp_path, measure):
    others = {"dtype": "bfloat16"}, {"model": KEY["model"] | {"weights": "1"}}, {"seed": 0}, {"tasks": {"b": {}}}
    paths = [measure(KEY | other).path for other in ({}, *others)]
    assert len(set(paths)) == measure.count == 5 and [one.path for one in read_results(tmp_path)] == sorted(paths)
    assert hash_key(dict(reversed(KEY.items()))) == hash_key(KEY), "the order of its entries is not part of a key"
    assert results.is_measured("b", tmp_path) and not results.is_measured("c", tmp_path)


# --- damaged ---------------------------------------------------------------------------------------------


def signed(change):
    """Damage that is signed anew, as by somebody who means it."""

    def damage(path) -> None:
        content = json.loads(path.read_text())
        content.pop("sha256")
        change(content)
        path.write_bytes(serialize(content))

    return damage


def with_outcomes(packed: str):
    return signed(lambda of: of["rows"][1].update(outcome=packed))


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "another name": lambda path: path.rename(path.with_name(path.name.replace("scores-a", "scores-a-b"))),
    "another version": signed(lambda of: of.update(version=2)),
    "more outcomes than items": with_outcomes(pack(np.zeros(4))),
    "outcomes that unpack to much": with_outcomes(pack(np.zeros(10**7))),
    "a cut of layers that the model lacks": signed(lambda of: of["rows"][1].update(cut="3,4")),
    "a cut of all layers": signed(lambda of: of["rows"][1].update(cut="0,5")),
    "the attention of a layer that it lacks": signed(lambda of: of["rows"][1].update(cut="attention 5")),
    "a rule's cut of layers that it lacks": signed(lambda of: of["details"].update(cuts={"simple": ["5,1"]})),
    "a group that holds itself": signed(lambda of: of["details"].update(groups={"a": ["b", "a"]})),
    "groups that hold each other": signed(lambda of: of["details"].update(groups={"c": ["b"], "b": ["c"]})),
    "an accuracy beyond 1": signed(lambda of: of["rows"][0].update(value=1.25)),
    "an accuracy below 0": signed(lambda of: of["rows"][0].update(value=-0.25, metric="exact_match,strict-match")),
    "a loss below 0": signed(lambda of: of["rows"][0].update(value=-0.25, metric="loss")),
    "a standard error below 0": signed(lambda of: of["rows"][0].update(stderr=-0.25)),
}


def test_a_block_that_ends_beyond_the_model_is_no_result():
    content = json.loads(min((places.AROUND / "results").glob("*/distances-*.json")).read_bytes())
    layers = content["details"]["num_layers"]
    content["rows"][0] |= {"start": layers - 2, "size": 2}
    check_content(content)
    content["rows"][0]["start"] += 1
    with pytest.raises(ValueError, match=f"a block ends after layer {layers}, and the model has {layers}"):
        check_content(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_named_and_left_out_of_all_tables_and_measured_again(damage, tmp_path, measure):
    good, path = measure(KEY | {"seed": 1}).path, measure().path
    DAMAGE[damage](path)
    with pytest.warns(UserWarning, match=r"is not a readable result \(.*left out; remove it") as caught:
        assert set(results.scores(tmp_path)["path"]) == {f"org-some-model/{good.name}"}
    assert len(caught) == 1 and "scores-a" in str(caught[0].message) and "\n" not in str(caught[0].message)
    if "outcomes" not in damage:
        with warnings.catch_warnings(action="ignore"):
            assert measure().records[0]["value"] == 2 / 3
        assert measure.count == 3 and find_result("scores", KEY, tmp_path).path == path


def of_first(**changes):
    return lambda rows: rows[0].update(changes)


def one_of_three(**changes):
    return of_first(value=1 / 3, outcome=pack(np.array([0, 0, 1])), **changes)


def losses(*outcome: float):
    """All rows as the loss of sequences, 2 / 3 in all."""
    return lambda rows: [row.update(metric="loss", outcome=[*outcome]) for row in rows]


MORE, HALF = {"cuts": {"simple": ["0,0", "0,1", "1,1"]}}, {"dtype": "bfloat16"}
LONG, OWN = ({"tasks": {"a": {"limit": 3, "length": length}}} for length in (32, 0))
# entries of the keys of one file or two, what is changed in the rows of the last, and words of the line; "": none
CONTRADICTIONS = [
    ([{}], of_first(), ""),
    ([{}], of_first(value=0.5), "acc of a, cut 0,0, is 0.5, and the mean of its items is 0.666"),
    ([LONG], losses(0.5, 0.5, 1.0), ""),
    ([LONG], losses(0.5, 0.5, 0.5), "loss of a, cut 0,0, is 0.6666666666666666, and the mean of its items is 0.5"),
    ([OWN], losses(0.5, 0.5, 0.9), ""),
    ([OWN], losses(0.5, 0.5, 0.6), "and its items are from 0.5 to 0.6: leave the file out"),
    ([{}], lambda rows: rows.append(rows[1]), "2 rows are of task a, metric acc, cut 0,1, expected one"),
    ([MORE], of_first(cut="1,1"), "2 rows are of task a, metric acc, cut 1,1, expected one"),
    ([{}], lambda rows: rows.append(rows[1] | {"cut": "2,1"}), "a row is of the cut 2,1, for which the key does not"),
    ([MORE], lambda rows: rows.pop(), "the key asks for the cut 1,1, and no row is of it"),
    ([{}, MORE], of_first(), ""),
    ([{}, MORE], one_of_three(), "acc of a, cut 0,0, is | 66 on 3 items | 0.3333333333333333 on"),
    ([{}, MORE], of_first(items=2, value=0.5, outcome=pack(np.array([0, 1]))), "66 on 3 items | 0.5 on 2 items"),
    ([{}, MORE], of_first(value=None), "None on 3 items | leave one of them out"),
    ([LONG, LONG | MORE], losses(0.5, 0.5, 1.0), ""),
    ([{}, MORE | {"seed": 1}], one_of_three(), ""),
    ([{}, MORE | {"data": "other"}], one_of_three(), ""),
    ([HALF, HALF | MORE], one_of_three(), ""),
]


@pytest.mark.parametrize(("keys", "change", "words"), CONTRADICTIONS)
def test_what_contradicts_itself_or_another_file_is_told(keys, change, words, tmp_path, measure):
    paths = [measure(KEY | entries).path for entries in keys]
    signed(lambda of: change(of["rows"]))(paths[-1])
    told = list(find_contradictions(read_results(tmp_path), results.scores(tmp_path)))
    assert bool(told) == bool(words)
    for line in told:
        assert paths[-1].name in line and "leave" in line
    for part in words.split(" | "):
        assert not words or part in told[0]


def test_a_result_is_read_once_until_its_file_changes(measure):
    path = measure().path
    assert read_result(path) is read_result(path)
    signed(lambda of: of["provenance"].update(device="another processor"))(path)
    assert read_result(path).provenance["device"] == "another processor"


# --- what a result holds, and where ----------------------------------------------------------------------


def test_numbers_pack_and_unpack():
    for values in ([], [0, 1, 1, 0], np.arange(256), np.array([True, False]), np.zeros(5000, dtype=int)):
        assert np.array_equal(unpack(pack(np.array(values)), len(values)), values)
    for wrong in ([-1, 3], [256], [0.5, np.nan]):
        with pytest.raises(ValueError, match="0..255"):
            pack(np.array(wrong))
    exact = -np.random.default_rng(0).lognormal(1, 1.5, (1000, 4))
    exact[3, 2:] = np.nan
    assert unpack_halves(pack_halves(exact), 1000) == pytest.approx(exact, rel=5e-4, nan_ok=True)


def test_results_lie_where_the_user_stands_or_in_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.results_folder("mine").resolve() == tmp_path / "mine"
    assert places.results_folder() == places.AROUND / "results" and places.is_checkout(places.AROUND)
    with monkeypatch.context() as patch:
        patch.setenv(places.VARIABLE, "others")
        assert places.results_folder().resolve() == tmp_path / "others"
    monkeypatch.setattr(places, "AROUND", tmp_path / "environment")  # as where the package is installed
    (tmp_path / "lib").mkdir()  # no folder of that name is ours
    assert places.repository() is None and places.results_folder().resolve() == tmp_path / "results"


def test_published_results_are_searched_beside_the_default_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(places.VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setattr(places, "PUBLISHED", tmp_path / "published")
    assert places.readable_folders() == [tmp_path / "mine"], "there are none"
    path = Measure(tmp_path / "published")().path
    assert places.readable_folders() == [tmp_path / "mine", tmp_path / "published"]
    assert find_result("scores", KEY).path == path and [one.path for one in read_results()] == [path]
    assert places.readable_folders(tmp_path / "another") == [tmp_path / "another"]
    monkeypatch.setenv(places.VARIABLE, str(tmp_path / "published"))
    assert places.readable_folders() == [tmp_path / "published"], "each once"


def test_a_model_of_results_is_known_by_its_name_and_data_type(tmp_path, measure):
    measure()
    found = results.find_recorded_model("org/some model", folder=tmp_path)
    assert (found.name, found.weights, found.num_layers, found.dtype) == ("org/some model", "sha256:0", 5, "float32")
    assert results.find_recorded_model("org/some model", "float32", tmp_path) == found
    assert results.find_recorded_model("org/some model", "bfloat16", tmp_path) is None
    assert results.find_recorded_model("org/another", folder=tmp_path) is None


@pytest.mark.parametrize("name", ["../..", "", ".hidden", "/etc", "é" * 300, "nu\0ll"])
def test_names_stay_below_the_folder_of_results(name, tmp_path):
    key = KEY | {"model": {"name": name, "weights": ""}, "tasks": {name: {}}}
    path = result_path("scores", key, tmp_path)
    assert path.parent.parent == tmp_path and path.resolve() == path and not path.parent.name.startswith(".")
    path.parent.mkdir()
    path.touch()


def test_what_can_not_be_written_is_found_before_measuring(tmp_path, measure):
    (tmp_path / "org-some-model").write_text("mine")
    with pytest.raises(InputError, match="can't write"):
        measure()
    assert measure.count == 0


# --- shards, kills and faults ----------------------------------------------------------------------------

SAME = {"requests": np.arange(3)}
GOOD = {"requests": np.arange(3), "logprobs": np.zeros((2, 3)), "tokens": np.zeros(5, dtype=np.int32)}


def test_shards_give_back_what_was_put_and_remove_no_more(tmp_path):
    Shards(tmp_path / "unit.partial").put(0, GOOD)
    again = Shards(tmp_path / "unit.partial")
    assert again.get(0, SAME).keys() == GOOD.keys() and again.seconds_before > 0
    assert again.get(0, {"requests": np.arange(4)}) is None, "of another part: no reason to say a word"
    again.part("task").put(0, {"a": np.array([1.5, np.nan])})
    before = again.seconds_before
    assert np.array_equal(again.part("task").get(0)["a"], [1.5, np.nan], equal_nan=True)
    assert again.seconds_before > before, "what a part of it took counts too"
    (tmp_path / "unit.partial" / "notes.txt").write_text("mine")
    (tmp_path / "linked").symlink_to(tmp_path / "unit.partial")
    Shards(tmp_path / "linked").remove()
    assert again.get(0, SAME), "what is behind a link stays"
    again.remove()
    assert [path.name for path in (tmp_path / "unit.partial").rglob("*")] == ["notes.txt"]


def test_a_shard_of_odd_arrays_is_named_and_missing(tmp_path):
    np.savez(tmp_path / "000000.npz", seconds=1.0, **GOOD | {"logprobs": np.array([os.getpid, None])})
    with pytest.warns(UserWarning, match="allow_pickle") as caught:
        assert Shards(tmp_path).get(0, SAME) is None
    assert len(caught) == 1 and "000000.npz" in str(caught[0].message)


def test_what_was_asked_otherwise_is_not_taken_up(opened, tmp_path):
    """Answers to other prompts of as many tokens, as after a change of a task's examples, are no part of a sweep."""
    model = TreeModel(opened[0], [Cut(0, 0), Cut(1, 2)])
    asked = [Requests([([1, 2, 3], [7, 8]), ([4, last], [9])], 8) for last in (5, 6)]
    taken = [loglikelihoods(model, some, shards=Shards(tmp_path))[0] for some in asked]
    fresh = [loglikelihoods(model, some)[0] for some in asked]
    assert np.array_equal(taken, fresh) and not np.array_equal(*fresh)


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["fails", "is killed"])
def test_whatever_call_of_a_measurement_fails_or_is_killed_a_plain_run_finishes_it(way, tmp_path, monkeypatch):
    """A full disk, a broken one, one that may not be written to, in turn; for one call or for several."""
    state = results.provenance("a processor")  # to ask git takes longer than all the rest
    monkeypatch.setattr(results, "provenance", lambda _: state)
    calls = faults.calls_of(lambda: Measure(tmp_path / "straight")(parts=3))
    (expected,), taken_up = read_results(tmp_path / "straight"), 0
    for number, name in enumerate(calls):
        folder, code = tmp_path / str(number), faults.FAULTS[number % 3]
        step = functools.partial(Measure(folder), parts=3)
        if way == "is killed":
            assert faults.killed_at(number, step)
        else:
            with faults.failing_at(number, code, times=1 + number % 2):
                with contextlib.suppress(InputError):  # none where something is tidied
                    step()
        found, about = step(), f"{os.strerror(code)} at {name}"
        assert (found.key, found.records) == (expected.key, expected.records), about
        assert [*folder.rglob("*")] == [found.path.parent, found.path], about
        taken_up += found.provenance["seconds_in_earlier_runs"] > 0
    assert taken_up > 1
