"""Tasks that count no item as right or wrong: shown with their scores, and left out where items are asked for."""

import dataclasses

import numpy as np
import pytest

from deeper_layers.command.sweep import _scores
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.questions import geometry, given_back, one_cut, rivals, two_ways
from deeper_layers.report.statistics.evidence import Evidence
from deeper_layers.report.statistics.items import item_metrics, of_topic
from deeper_layers.results.packing import LOGPROBS, pack, pack_halves
from tests import made_up
from tests.test_choices import healed_unit, scores_unit

CUT, ITEMS = Cut(1, 1), 20
CHOSEN = {"chosen": pack(np.arange(ITEMS) % 4), LOGPROBS: pack_halves(np.full((ITEMS, 4), -1.5)),
          "target": pack(np.zeros(ITEMS))}  # fmt: skip
RIGHT = {"0,0": np.ones(ITEMS), CUT.name: np.zeros(ITEMS)}
PARTS, TOGETHER, WRITTEN = "truthfulqa_mc2", "cola", "wmt14-en-fr"  # what comes out of an item, of all, of a text
OTHERS = {PARTS: ("acc", (0.4137, 0.31)), TOGETHER: ("mcc", (0.8, -0.03)), WRITTEN: ("bleu", (23.4, 3.1))}


def unit_of(task, kind="sweep"):
    """As the harness makes it: what is not 0 or 1 for each item is not packed."""
    metric, values = OTHERS[task]
    unit = scores_unit(task, {cut: {task: items} for cut, items in RIGHT.items()}, kind)
    packed = {} if task == WRITTEN else CHOSEN
    details = unit.details | {"outcomes": {cut: {task: packed} for cut in RIGHT}}
    rows = unit.rows.assign(metric=metric, value=list(values), stderr=0.1)
    details["levels"] = {} if task == WRITTEN else {task: {"chance": 0.25}}
    if kind == "cuts":
        return dataclasses.replace(unit, rows=rows, details=details)
    key = unit.key | {"rule": "similarity", "cuts": [[0, 0], [1, 1]]}
    return dataclasses.replace(unit, key=key, rows=rows.drop(columns="cut"), details=details)


@pytest.mark.parametrize("task", OTHERS)
def test_what_no_item_is_right_in_is_left_out_of_what_a_cut_ruins(task):
    known = made_up.sweep("boolq", [0.9, 0.3])
    own = Evidence([unit_of(task)])
    assert item_metrics(unit_of(task)) == {} and own.topics == [] and own.answers(task, "similarity") is None
    assert Evidence([known, unit_of(task)]).topics == ["BoolQ"]
    assert [score.topic for score in one_cut.scores([known, unit_of(task), unit_of(task, "cuts")], CUT)] == ["BoolQ"]
    assert one_cut.scores([unit_of(task, "cuts")], Cut.of(attention=[1])) == []
    assert task not in one_cut.card_text([known, unit_of(task)], CUT)


@pytest.mark.parametrize("task", OTHERS)
def test_what_no_item_is_right_in_is_shown_with_its_standard_error(task):
    metric, (whole, pruned) = OTHERS[task]
    text = _scores(unit_of(task), {"similarity": [UNPRUNED, CUT]}, 6)
    assert text.startswith(f"{task}, {metric}: {ITEMS} items\n"), "neither guessing nor what is surely kept"
    assert f"{whole:.3f} ({whole - 0.196:.2f} to {whole + 0.196:.2f})" in text and f"{pruned:.3f} (" in text


@pytest.mark.parametrize("task", OTHERS)
def test_rules_and_measures_are_not_compared_by_it(task):
    scan = dataclasses.replace(unit_of(task), kind="scan")
    assert rivals.right_items(unit_of(task), CUT) is None and rivals.points_table([scan], {}).empty
    assert rivals.scored({"similarity": unit_of(task)}, {"similarity": {1: CUT}}, [1]) == {}
    assert geometry.costs([unit_of(task)]) == {}


@pytest.mark.parametrize("task", OTHERS)
def test_healings_are_compared_by_the_other_tasks(task):
    losses = np.linspace(2, 3, 20)
    healed = healed_unit(CUT, losses)
    details = healed.details | {"outcomes": {task: {} if task == WRITTEN else CHOSEN} | healed.details["outcomes"]}
    healed = dataclasses.replace(healed, details=details)
    assert item_metrics(healed) == {"capitals": "acc"} and of_topic(healed, ["capitals"]).tolist() == [1, 0, 0, 0]
    assert two_ways.compared(healed, healed, [])["what"].tolist() == [two_ways.LOSS, "Capitals"]
    losses_of = {CUT.name: given_back.Losses(losses.tolist(), (losses + 1).tolist())}
    found = given_back.before_and_after(losses_of, [unit_of(task)], CUT, healed)
    assert list(found) == [two_ways.LOSS]
    table, _ = rivals.healed_table([healed], {"similarity": {1: rivals.Choice(CUT, losses)}})
    assert table["Capitals"].tolist() == [0.25] and task not in table
    assert one_cut.scores([unit_of(task)], CUT, healed) == []


def test_a_metric_counts_where_it_is_there_for_every_cut():
    """A score that is 0 for every item of a model that gets nothing right is packed for that cut alone."""
    unit = scores_unit("mine", {cut: {"mine": items} for cut, items in RIGHT.items()})
    zeros = pack(np.zeros(ITEMS))
    unit.details["outcomes"] = {"0,0": {"mine": CHOSEN | {"em": pack(RIGHT["0,0"])}},
                                CUT.name: {"mine": CHOSEN | {"f1": zeros, "em": zeros}}}  # fmt: skip
    assert item_metrics(unit) == {"mine": "em"}
    assert rivals.right_items(unit, UNPRUNED).all() and not rivals.right_items(unit, CUT).any()
    del unit.details["outcomes"]["0,0"]["mine"]["em"]
    assert item_metrics(unit) == {} and rivals.right_items(unit, CUT) is None
    group = dataclasses.replace(unit, details={"units": [], "levels": {}, "num_layers": 6})
    assert item_metrics(group) == {}
