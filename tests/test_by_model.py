"""Rules by model, and how far their blocks are from the best in points, on scores and losses made by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.experiments.losses import blocks
from deeper_layers.report.questions import rivals
from deeper_layers.report.questions.by_model import (
    agreement,
    points_by_model,
    ranks_table,
    regrets_by_model,
    regrets_drawn,
)  # fmt: skip
from deeper_layers.results.units import Unit
from tests.test_choices import scores_unit, unit_of_choice
from tests.test_regret import LAYERS, SEQUENCES, unit_of

SIZES = [1, 2]
ITEMS = 40


def of_model(unit: Unit, name: str, **key) -> Unit:
    return dataclasses.replace(unit, key=unit.key | {"model": {"name": name, "weights": name}} | key)


def distances_of(name: str, start: int, **key) -> Unit:
    """Of a model whose most similar blocks begin at `start`."""
    rows = [(first, size, 0.1 + 0.01 * abs(first - start), 0.01, 9)
            for size in range(1, LAYERS + 1) for first in range(LAYERS - size + 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["start", "size", "distance", "stderr", "samples"])
    key = {"corpus": "wikipedia", "seed": 0, **key}
    return of_model(Unit("similarity", "wikipedia", key, {}, table, {"num_layers": LAYERS}), name)


def map_of(name: str, **key) -> Unit:
    """The map of a model whose early blocks cost least."""
    of_sequence = np.random.default_rng(0).normal(3, 1, SEQUENCES)
    cuts = blocks(range(3), LAYERS)
    unit = unit_of({cut: of_sequence + 0.3 * cut.size + 0.1 * cut.start for cut in cuts})
    unit = of_model(unit, name, text="c4", cuts=[cut.key for cut in cuts], **key)
    return dataclasses.replace(unit, kind="blocks")


def choice_of(name: str, loss: float, **key) -> Unit:
    losses = np.random.default_rng(0).normal(3, 1, SEQUENCES) + loss
    return of_model(unit_of_choice([Cut.of([2]), Cut.of([1, 3])], [losses, losses]), name, **key)


def test_a_rule_may_be_best_for_one_model_and_last_for_another():
    units = [
        distances_of("a", 0), map_of("a"), choice_of("a", 5.0),
        distances_of("b", 3), map_of("b"), choice_of("b", -5.0),
    ]  # fmt: skip
    tables = regrets_by_model(units, units[1], units[0], [units[2]], lambda layers: SIZES)
    assert tables["a"]["rule"].tolist() == ["similarity", "simple", "llm-drop"]
    assert tables["b"]["rule"].tolist() == ["llm-drop", "similarity", "simple"]
    assert tables["a"].set_index("rule").loc["similarity", "mean"] == pytest.approx(0, abs=1e-9)
    assert tables["b"].set_index("rule").loc["similarity", "mean"] == pytest.approx(0.3, abs=1e-9)
    shown = ranks_table(tables).set_index("rule")
    assert shown.loc["similarity"].tolist() == ["1 (1 to 1), +0.000", "2 (2 to 2), +0.300"]
    assert shown.loc["llm-drop", "a"].startswith("3 (3 to 3), +4.")
    assert shown.index.tolist() == ["similarity", "llm-drop", "simple"], "by the mean of the ranks"
    rows = regrets_drawn(tables)
    assert (
        rows["row"].tolist() == [rule for rule in shown.index for _ in "ab"] and rows["line"].tolist() == ["a", "b"] * 3
    )
    assert rows["value"][1] == pytest.approx(0.3) and (rows["low"] <= rows["value"]).all()


@pytest.mark.parametrize(("other", "told"), [
    (range(8), "goes the same way: Spearman's correlation +1.00"),
    (range(8, 0, -1), "turns round: Spearman's correlation -1.00"),
    ([3, 7, 1, 6, 2, 8, 4, 5], "may go either way: Spearman's correlation +0."),
])  # fmt: skip
def test_whether_rules_stand_in_the_same_order(other, told):
    def table(means):
        rules = [f"rule {number}" for number in range(8)]
        rows = pd.DataFrame({"rule": rules, "mean": list(means), "rank": 1.0})
        more = pd.DataFrame({"rule": ["random-0", "rule 0 again"], "mean": [0.0, list(means)[0]], "rank": 1.0})
        return pd.concat([rows, more], ignore_index=True)

    (said,) = agreement({"a": table(range(8)), "b": table(other)})
    assert said.startswith(f"From a to b the order of 8 rules {told}")
    (few,) = agreement({"a": table(range(8)).head(5), "b": table(other)})
    assert few == "a and b have 5 rules in common, too few to compare their order."


def test_only_what_was_measured_in_the_same_way_is_compared():
    here = [distances_of("a", 0), map_of("a"), choice_of("a", 5.0)]
    shares = lambda layers: SIZES  # noqa: E731

    def compared(*others: Unit) -> dict:
        return regrets_by_model([*here, *others], here[1], here[0], [here[2]], shares)

    assert list(compared()) == ["a"]
    assert list(compared(distances_of("b", 0), map_of("b", sequences=9))) == ["a"], "another text"
    assert list(compared(distances_of("b", 0, seed=1), map_of("b"))) == ["a"], "another draw"
    assert list(compared(distances_of("b", 0))) == ["a"], "no map"
    other = compared(distances_of("b", 0), map_of("b"), choice_of("b", 5.0, calibration={}))["b"]
    assert other["rule"].tolist() == ["similarity", "simple"], "a rule that looked at another text"
    assert regrets_by_model(here, here[1], here[0], [], lambda layers: [1, 4]) == {}, "a size that the map has not"


@pytest.fixture
def scan():
    """Of each block of two layers the first answers are right: all but 5 for each layer that it begins after."""
    right = {Cut(start, 2).name: {"capitals": np.arange(ITEMS) < ITEMS - 5 * start} for start in range(LAYERS - 1)}
    draw = np.random.default_rng(0).permutation(ITEMS)  # so that both halves are alike
    right = {"0,0": {"capitals": np.ones(ITEMS, dtype=bool)}} | right
    right = {cut: {task: found[draw] for task, found in of.items()} for cut, of in right.items()}
    unit = scores_unit("capitals", right, kind="scan", cuts=[list(Cut.named(cut).key) for cut in right])
    return dataclasses.replace(unit, details=unit.details | {"levels": {"capitals": {"chance": 0.25}}})


def test_points_are_the_accuracy_that_the_best_block_would_have_left(scan):
    cuts = {"similarity": {2: Cut(0, 2)}, "simple": {2: Cut(3, 2), 1: Cut(4, 1)}, "last": {2: Cut(4, 2)}}
    table = rivals.points_table([scan], cuts).set_index("rule")
    assert table.index.tolist() == ["similarity", "simple"], "only blocks that keep the last layer, of a size scanned"
    assert table["accuracy"].tolist() == pytest.approx([1.0, 1 - 15 / ITEMS]) and table["best"].tolist() == [0, 0]
    assert table["regret"].tolist() == pytest.approx([0, 15 / ITEMS])
    assert table.loc["similarity", "interval"] == "+0.000 to +0.000"
    assert table.loc["simple", "low"] < 15 / ITEMS < table.loc["simple", "high"]
    assert table["knows"].all() and table["items"].tolist() == [ITEMS] * 2
    said = rivals.in_points(table.reset_index(), "simple")
    assert "Capitals +38 points (" in said and f"n = 2, {ITEMS} items, 1.00 unpruned, 0.62 left)" in said
    half = {cut: {"capitals": np.arange(ITEMS) % 4 == 0} for cut in scan.details["outcomes"]}
    keys = [list(Cut.named(cut).key) for cut in half]
    nothing = scores_unit("capitals", half, kind="scan", cuts=keys)
    nothing = dataclasses.replace(nothing, details=nothing.details | {"levels": {"capitals": {"chance": 0.25}}})
    nothing = rivals.points_table([nothing], cuts)
    assert not nothing["knows"].any() and rivals.in_points(nothing).startswith("Not measured")
    assert rivals.in_points(pd.DataFrame()).startswith("Not measured")


def test_points_need_every_block(scan):
    fewer = scan.key["cuts"][:-1]
    one = dataclasses.replace(scan, key=scan.key | {"cuts": fewer})
    assert rivals.points_table([one], {"similarity": {2: Cut(0, 2)}}).empty
    quantized = dataclasses.replace(scan, key=scan.key | {"quantization": "nf4"})
    assert rivals.points_table([quantized], {"similarity": {2: Cut(0, 2)}}).empty


def test_tasks_without_some_blocks_are_named(scan):
    one = dataclasses.replace(scan, key=scan.key | {"cuts": scan.key["cuts"][:-1]})
    quantized = dataclasses.replace(one, key=one.key | {"quantization": "nf4"})
    assert rivals.partly_scored([one]) == ["Capitals"] and rivals.partly_scored([one, scan]) == []
    assert rivals.partly_scored([quantized]) == rivals.partly_scored([]) == []


def test_blocks_scanned_on_two_days_are_all_of_them(scan):
    """Each day the whole model and some blocks, that of start 2 on both."""

    def day(starts):
        names = ["0,0", *(f"{start},2" for start in starts)]
        outcomes = {name: scan.details["outcomes"][name] for name in names}
        key = scan.key | {"cuts": [list(Cut.named(name).key) for name in names]}
        return dataclasses.replace(scan, key=key, details=scan.details | {"outcomes": outcomes})

    days, cuts = [day(range(2, LAYERS - 1)), day(range(3))], {"similarity": {2: Cut(0, 2)}, "simple": {2: Cut(3, 2)}}
    pd.testing.assert_frame_equal(rivals.points_table(days, cuts), rivals.points_table([scan], cuts))
    assert rivals.partly_scored(days) == [] and rivals.partly_scored(days[:1]) == ["Capitals"]


def test_one_item_has_no_half_to_be_judged_on(scan):
    outcomes = {cut: {"capitals": np.ones(1)} for cut in scan.details["outcomes"]}
    one = scores_unit("capitals", outcomes, kind="scan", cuts=scan.key["cuts"])
    assert rivals.points_table([one], {"similarity": {2: Cut(0, 2)}}).empty


def test_each_model_has_the_blocks_of_its_own_distances(scan):
    units = [distances_of("a", 1), of_model(scan, "a"), distances_of("b", 2), of_model(scan, "b")]
    table = points_by_model(units, units[0])
    assert table.groupby("model")["block"].first().to_dict() == {"a": 1, "b": 2}
    assert points_by_model(units[1:2], units[0]).empty and points_by_model([], units[0]).empty
