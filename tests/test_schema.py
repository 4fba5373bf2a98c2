"""Published units with one thing changed, by kind: what does not agree is said in one sentence."""

import copy
import functools
import json
import re

import numpy as np
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.results.packing import pack, pack_halves, unpack
from deeper_layers.results.places import AROUND
from deeper_layers.results.schema import KINDS, check_unit

pytestmark = pytest.mark.quick


@functools.cache
def of_kind(kind: str) -> dict:
    """The smallest published unit of a kind and one model; of sweeps one of a single task.

    Of kinds that name their cuts none is published: they are another kind's, with names.
    """
    if kind in NAMED:
        return named(kind)
    paths = sorted((AROUND / "results" / "Gemma-3-270m").glob(f"{kind}-*.json"), key=lambda path: path.stat().st_size)
    found = (unit for path in paths if (unit := json.loads(path.read_text()))["kind"] == kind)
    unit = next((unit for unit in found if not unit["details"].get("units")), None)
    return pytest.skip(f"no unit of kind {kind} is published of this model") if unit is None else unit


NAMED = {"cuts": "sweep", "candidates": "loss"}


def named(kind: str) -> dict:
    unit = copy.deepcopy(of_kind(NAMED[kind]))
    names = [f"{start},{size}" for start, size in unit["key"]["cuts"]]
    unit["key"] |= {"cuts": names, "engine": None, "samples": 8, "seed": 0}
    unit["rows"] = [row | {"cut": f"{row['start']},{row['size']}"} for row in unit["rows"]]
    details = unit["details"] | {"tokens": 8}
    fields = KINDS[kind][2].model_fields
    return unit | {"kind": kind, "details": {name: value for name, value in details.items() if name in fields}}


def refusal(unit: dict) -> str:
    with pytest.raises(ValueError) as caught:
        check_unit(unit)
    return str(caught.value)


EVERY_BLOCK = ("similarity", "distances")  # of each they have a row


# rows of these say more than a place: see test_geometry_unit.py, test_choices.py
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"geometry", "choice"}))
def test_units_of_every_kind(kind):
    """Whole they are right; with any row missing or moved, doubled, or of another model they are not."""
    unit = of_kind(kind)
    check_unit(unit)
    layers, last = unit["details"]["num_layers"], unit["rows"][-1]

    def having(rows=None, **details):
        return unit | {"rows": rows or unit["rows"], "details": unit["details"] | details}

    assert refusal(having([*unit["rows"], last])) == "two rows are of one thing"
    moved = [*unit["rows"][:-1], last | {"start": 1, "size": layers}]
    assert refusal(having(moved)) == "its rows are not of the cuts of its key"
    if kind not in ("take-away", "healing"):  # what lacks a score of one cut is not told from one not asked for
        some = f"it has {len(unit['rows']) - 1} rows, and {layers} layers"
        assert refusal(having(unit["rows"][:-1])) == (
            some if kind in EVERY_BLOCK else "its rows are not of the cuts of its key"
        )
    shallow = f"it has {len(unit['rows'])} rows, and 1 layers" if kind in EVERY_BLOCK else None
    assert refusal(having(num_layers=1)) == (shallow or "its cuts reach past the 1 layers of its model")


def test_what_is_no_unit_is_said_with_its_place():
    unit = of_kind("loss")
    assert refusal(unit | {"kind": "swept"}) == f"its kind is 'swept', expected one of {', '.join(KINDS)}"
    assert re.fullmatch(
        r"rows: Field required, found \"\{.{59}\"", refusal({k: v for k, v in unit.items() if k != "rows"})
    )
    assert refusal([1]).startswith("it: Input should be a valid dictionary")
    far = unit | {"details": unit["details"] | {"by_sequence": {"x" * 200: ["a"]}}}
    assert re.fullmatch(r"by_sequence\.x{88}: Input should be a valid number, found 'a'", refusal(far))


@pytest.mark.parametrize(("value", "right"), [(0.0, True), (1.0, True), (None, True), (-0.01, False), (1.01, False)])
@pytest.mark.parametrize("metric", ["acc", "acc_norm", "exact_match"])
def test_an_accuracy_is_a_share(metric, value, right):
    unit = copy.deepcopy(of_kind("bits"))
    unit["rows"] = [row | {"metric": metric, "value": value} for row in unit["rows"] if row["metric"] == "acc"]
    if right:
        check_unit(unit)
    else:
        assert refusal(unit) == "an accuracy is not from 0 to 1"


def test_the_same_cuts_for_every_task_and_metric():
    unit = copy.deepcopy(of_kind("bits"))
    for name in ("task", "metric"):
        of_another = [*unit["rows"], unit["rows"][0] | {name: "another"}]
        assert refusal(unit | {"rows": of_another}) == "its rows are not of the cuts of its key"


def test_losses_of_sequences_are_those_of_the_rows():
    unit = copy.deepcopy(of_kind("loss"))
    losses = unit["details"]["by_sequence"]
    cut = next(iter(losses))
    losses[cut].append(1.0)
    assert refusal(unit) == "its losses are not as many as its rows have items"
    losses[cut].pop()
    check_unit(unit)
    losses["0,99"] = losses.pop(cut)
    assert refusal(unit) == "its losses of sequences are not of its cuts"


@pytest.mark.parametrize("kind", ["sweep", "shots", "healing"])
def test_outcomes_are_those_of_the_rows(kind):
    unit = copy.deepcopy(of_kind(kind))
    outcomes = unit["details"]["outcomes"]
    if kind == "healing":  # of its one cut
        of_cut = outcomes
    else:
        of_cut = outcomes.pop(cut := next(iter(outcomes)))
        assert refusal(unit) == "its outcomes are not of its cuts"
        outcomes["0,99"] = of_cut
        assert refusal(unit) == "its outcomes are not of its cuts"
        del outcomes["0,99"]
        outcomes[cut] = {**of_cut, "another": {}}
        assert "its outcomes are of other tasks for some cuts" in refusal(unit)
        outcomes[cut] = of_cut
    check_unit(unit)
    task = next(iter(of_cut))
    items = len(unpack(next(iter(of_cut[task].values()))))
    for length in (items - 1, items + 1, 10**6):
        of_cut[task]["more"] = pack(np.zeros(length))
        assert refusal(unit) == f"its outcomes of {task} are not as many as there are items"
    of_cut[task]["more"] = pack(np.zeros(items))
    of_cut[task]["logprobs"] = pack_halves(np.zeros((items, 4)))
    check_unit(unit)
    for wrong in (pack(np.zeros(items)), pack(np.zeros(0)), pack_halves(np.zeros((items + 1, 4)))):
        of_cut[task]["logprobs"] = wrong
        assert refusal(unit) == f"its outcomes of {task} are not as many as there are items"
    del of_cut[task]["logprobs"]
    if kind != "shots":  # whose groups have rows, and not their tasks
        for each in outcomes.values() if kind == "sweep" else [outcomes]:
            each[task] = {name: pack(np.zeros(items + 1)) for name in each[task]}
        assert refusal(unit) == f"its outcomes of {task} are not as many as there are items"


def test_a_sweep_is_of_its_task_and_holds_outcomes_or_the_units_of_a_group():
    unit = of_kind("sweep")
    assert refusal(unit | {"name": "another"}) == "its name is not that of its task"
    renamed = {cut: {"another": of_cut[unit["name"]]} for cut, of_cut in unit["details"]["outcomes"].items()}
    assert refusal(unit | {"details": unit["details"] | {"outcomes": renamed}}) == "its name is not that of its task"
    both = unit["details"] | {"units": ["x.json"]}
    neither = {name: value for name, value in unit["details"].items() if name != "outcomes"}
    for details in (both, neither):
        said = refusal(unit | {"details": details})
        assert said == "it holds both outcomes and the units of a group, or neither"
    check_unit(unit | {"details": neither | {"units": ["x.json"]}})
    check_unit(of_kind("shots") | {"name": "whatever"})


def test_a_take_away_is_of_the_whole_model_and_of_its_cut():
    unit = copy.deepcopy(of_kind("take-away"))
    assert {(row["start"], row["size"]) for row in unit["rows"]} == {(0, 0), tuple(unit["key"]["cut"])}
    unit["rows"][0] |= {"start": 0, "size": 1}
    assert refusal(unit) == "its rows are not of the cuts of its key"


def test_cuts_of_any_shape_are_named():
    unit = copy.deepcopy(of_kind("candidates"))
    layers, last = unit["details"]["num_layers"], len(unit["rows"]) - 1
    cut = Cut.of([2, 5], mlp=[3])

    def with_cut(name, start=cut.start, size=cut.size):
        rows = [*unit["rows"][:last], unit["rows"][last] | {"cut": name, "start": start, "size": size}]
        return unit | {"rows": rows, "key": unit["key"] | {"cuts": [*unit["key"]["cuts"][:last], name]}}

    check_unit(with_cut(cut.name))
    assert refusal(with_cut(cut.name, start=3)) == "its rows are not of the cuts of its key"
    assert "Input should" in refusal(with_cut("layers two")) or "pattern" in refusal(with_cut("layers two"))
    assert "is no name of a cut, expected 'layers 2 5'" in refusal(with_cut("layers 5 2"))
    assert "past the" in refusal(with_cut(f"mlp {layers}", 0, 0))
