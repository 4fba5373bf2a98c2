"""Curves of accuracy and what is said of them."""

import math

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.report.statistics import curves
from deeper_layers.report.statistics.curves import (
    above_guessing,
    accuracy_by_rule,
    main_metric,
    of_all_models,
    wilson_interval,
)
from deeper_layers.report.statistics.evidence import Evidence, latest_models
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import measured_cuts
from tests.made_up import LAYERS, distances, unhealed


@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    # by solving (p - value)^2 = z^2 p (1 - p) / items for p, with 50 digits
    [
        (0, 10, 0.0, 0.277532803),
        (10, 10, 0.722467197, 1.0),
        (81, 263, 0.255288519, 0.366209577),
        (50, 100, 0.403831530, 0.596168470),
        (1, 1, 0.206549312, 1.0),
    ],
)
def test_wilson_interval(right, items, low, high):
    found = wilson_interval(right / items, items)
    assert found == pytest.approx((low, high), abs=1e-8)
    assert 0 <= found[0] <= right / items <= found[1] <= 1


def rows(values, items=100, task="a"):
    """Rows of a sweep: (start, size) to accuracy."""
    return pd.DataFrame([
        {"task": task, "metric": metric, "start": start, "size": size, "value": value + shift, "stderr": 0.01,
         "items": items}
        for (start, size), value in values.items()
        for metric, shift in (("acc", 0), ("acc_norm", 0.05))
    ])  # fmt: skip


def test_accuracy_by_rule():
    table = pd.concat([rows({(0, 0): 0.8, (7, 1): 0.7, (3, 1): 0.75, (2, 2): 0.5}), rows({(0, 0): 0.3}, task="b")])
    cuts_of = {"simple": [Cut(0, 0), Cut(7, 1)], "similarity": [Cut(0, 0), Cut(3, 1), Cut(2, 2), Cut(1, 3)]}
    curves = accuracy_by_rule(table, cuts_of, num_layers=10)
    of_a = curves[curves["task"] == "a"]
    assert of_a[["rule", "start", "size", "fraction", "value"]].values.tolist() == [
        ["simple", 0, 0, 0.0, 0.8], ["simple", 7, 1, 0.1, 0.7],
        ["similarity", 0, 0, 0.0, 0.8], ["similarity", 3, 1, 0.1, 0.75], ["similarity", 2, 2, 0.2, 0.5],
    ]  # fmt: skip
    assert curves[curves["task"] == "b"]["rule"].tolist() == ["simple", "similarity"]
    for row in curves.itertuples():
        assert (row.low, row.high) == wilson_interval(row.value, 100)
        assert (row.metric, row.items) == ("acc", 100)
    # nothing measured gives an empty table of the same columns
    empty = accuracy_by_rule(table.iloc[:0], cuts_of, 10)
    assert empty.columns.tolist() == curves.columns.tolist()
    assert empty.dtypes.drop(["task", "rule", "metric"]).equals(curves.dtypes.drop(["task", "rule", "metric"]))


def test_above_guessing():
    whole = {"sure": 0.6, "chance": 0.26, "majority": 0.55, "unsure": 0.3, "worse": 0.1}
    table = pd.concat([rows({(0, 0): value, (7, 1): 0.99}, task=task) for task, value in whole.items()])
    curves = accuracy_by_rule(table, {"simple": [Cut(0, 0), Cut(7, 1)], "similarity": [Cut(0, 0)]}, 10)
    levels = {task: {"chance": 0.25, "majority": 0.3} for task in whole}
    levels["majority"] = {"chance": 0.25, "majority": 0.6}
    assert above_guessing(curves, levels) == ["sure"]
    levels["majority"]["majority"] = 0.4
    assert above_guessing(curves, levels) == ["sure", "majority"]
    at_the_level = pd.DataFrame({"task": ["a", "b"], "size": 0, "low": 0.25, "value": 0.5, "items": 10})
    assert above_guessing(at_the_level, {"a": {"chance": 0.25}}) == ["b"]


def test_losses_are_in_units_of_ln_v():
    def of(shift):
        return pd.DataFrame([
            {"task": "c4", "metric": metric, "start": start, "size": size, "value": 2.0 + size + shift,
             "stderr": 0.1, "items": 7}
            for metric in ("loss", "perplexity") for start, size in ((0, 0), (2, 1), (1, 1), (2, 2), (1, 2))
        ])  # fmt: skip

    cuts_of = {"simple": [Cut(0, 0), Cut(2, 1), Cut(3, 3)], "similarity": [Cut(1, 2)]}
    table = curves.losses_by_line({"pruned": of(0), "healed": of(-0.5)}, cuts_of, 4, 100)
    assert list(table) == ["line", "rule", "size", "start", "fraction", "value", "low", "high", "items", "metric"]
    assert table[["line", "rule", "size", "start", "fraction", "items", "metric"]].values.tolist() == [
        [f"{rule}, {name}", rule, size, start, size / 4, 7, "loss / ln V"]
        for name in ("pruned", "healed")
        for rule, size, start in (("simple", 0, 0), ("simple", 1, 2), ("similarity", 2, 1))
    ]
    half = 1.959964 * 0.1
    for row, value in zip(table.itertuples(), (2, 3, 4, 1.5, 2.5, 3.5), strict=True):
        expected = [part / math.log(100) for part in (value, value - half, value + half)]
        assert [row.value, row.low, row.high] == pytest.approx(expected)


def test_levels_of_a_group():
    rows = pd.DataFrame({"task": ["a", "all", "all"]})
    levels = {"a": {"chance": 0.25, "majority": 0.3}, "b": {"chance": 0.25}}
    unit = Unit("sweep", "all", {}, {}, rows, {"levels": levels})
    assert curves.levels_of(unit) == {"a": levels["a"], "all": {"chance": 0.25}}
    levels["b"] = {"chance": 0.5}
    assert curves.levels_of(unit)["all"] == {"chance": 0.5}, "the highest"
    assert not curves.surely_above(0.4, 500, curves.levels_of(unit)["all"])


def test_what_a_task_counts():
    rows = pd.DataFrame(
        [("gsm8k", "exact_match,strict-match", 0, 0, 0.1, 10), ("gsm8k", "exact_match,flexible-extract", 0, 0, 0.2, 10),
         ("boolq", "acc", 0, 0, 0.6, 10), ("boolq", "f1", 0, 0, 0.5, 10)],
        columns=["task", "metric", "start", "size", "value", "items"],
    )  # fmt: skip
    curves = accuracy_by_rule(rows, {"simple": [Cut(0, 0)]}, 4).set_index("task")
    assert curves["metric"].to_dict() == {"gsm8k": "exact_match,strict-match", "boolq": "acc"}
    assert main_metric(["f1", "exact_match", "acc"]) == "acc" and main_metric(["f1", "exact_match"]) == "exact_match"
    assert main_metric(["f1", "bleu"]) == "f1"


def scores(task, metric, values, errors, items=20):
    """Rows of a task for the whole model and one layer less."""
    places = [{"start": 0, "size": 0}, {"start": 7, "size": 1}]
    return pd.DataFrame([
        {"task": task, "metric": metric, **place, "value": value, "stderr": error, "items": items}
        for place, value, error in zip(places, values, errors)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "values"), [("mcc", (0.75, -0.03)), ("bleu", (23.4, 0.0)), ("acc", (0.4137, 0.25)), ("acc", (0.5, None))]
)
def test_what_is_no_share_of_items_has_the_interval_of_its_standard_error(metric, values):
    rows = scores("some", metric, values, (0.1, None)).astype({"value": float, "stderr": float})
    whole, pruned = accuracy_by_rule(rows, {"simple": [Cut(0, 0), Cut(7, 1)]}, 10).itertuples()
    assert not curves.are_shares(rows) and curves.are_shares(scores("a", "acc", (0.35, 1.0), (0.1, 0.0)))
    assert (whole.low, whole.high) == pytest.approx((values[0] - 0.1959964, values[0] + 0.1959964))
    assert math.isnan(pruned.low) and math.isnan(pruned.high)
    # levels of guessing are accuracies
    table = accuracy_by_rule(rows, {"simple": [Cut(0, 0), Cut(7, 1)]}, 10)
    assert above_guessing(table, {"some": {"chance": 0.1}}) == []


def test_cuts_are_told_apart_by_rule():
    layers = 10
    similar = [Cut(0, 0), Cut(3, 1), Cut(4, 2), simple_cut(layers, 3)]  # at three layers the rules agree
    simple = [simple_cut(layers, size) for size in range(4)]
    cuts = sorted({*similar, *simple})
    assert measured_cuts(["similarity", "simple"], cuts, layers) == {"similarity": similar, "simple": simple}
    assert measured_cuts(["simple"], simple, layers) == {"simple": simple}
    assert measured_cuts(["similarity"], similar, layers) == {"similarity": similar}


def test_pruned_models_beside_whole_ones_that_are_no_larger():
    points = [
        # kind, n, bytes, low, high
        ("bfloat16", 0, 100, 0.8, 0.9),
        ("bfloat16", 1, 90, 0.62, 0.71),  # below nf4, which is smaller, though their intervals meet
        ("bfloat16", 2, 50, 0.68, 0.78),  # as nf4, which is as large: both intervals and that of the difference meet
        ("bfloat16", 3, 45, 0.5, 0.55),  # above Q2_K, the only one no larger
        ("nf4", 0, 50, 0.7, 0.85),
        ("nf4", 1, 41, 0.33, 0.42),  # as Q2_K
        ("Q2_K", 0, 40, 0.4, 0.45),
        ("Q2_K", 1, 39, 0.4, 0.45),
    ]
    accuracy = pd.DataFrame(points, columns=["rule", "size", "bytes", "low", "high"]).assign(task="capitals")
    accuracy["value"] = (accuracy["low"] + accuracy["high"]) / 2
    (counts,) = curves.beside_whole(accuracy).to_dict("records")
    assert counts == {"task": "capitals", "pruned": 5, "worse": 1, "better": 1, "close": 2, "smaller": 1}
    both = pd.concat([accuracy.assign(task="sums"), accuracy])
    assert curves.beside_whole(both)["task"].tolist() == ["sums", "capitals"]


def test_models_stand_side_by_side_with_the_most_items_they_have(tmp_path):
    def unit(model, items, value, day="2026-01-01"):
        rows = pd.DataFrame(
            [
                {"task": "boolq", "metric": "acc", "start": c.start, "size": c.size, "value": value, "items": items}
                for c in (Cut(0, 0), Cut(3, 1), Cut(8, 1))
            ]
        )
        cuts = [[0, 0], [3, 1], [8, 1]]
        key = {"model": {"name": model, "weights": "w"}, "rule": "similarity, simple", "cuts": cuts}
        # of fewer items the commonest answer is a larger share
        details = {"num_layers": 10, "levels": {"boolq": {"chance": 0.5, "majority": 0.6 + 1 / items}}}
        return Unit("sweep", "boolq", key, {"measured": day}, rows, details)

    units = [unit("A", 10, 0.1), unit("A", 50, 0.5), unit("A", 50, 0.6, "2026-02-01"), unit("B", 20, 0.2)]
    table = of_all_models(units, "similarity")
    assert list(table["model"]) == ["A", "A", "B", "B"]
    assert list(table["value"]) == [0.6, 0.6, 0.2, 0.2] and list(table["start"]) == [0, 3, 0, 3]
    # the level of the ten items of A, which count no more, is not there
    assert table.attrs["levels"] == {"boolq": {"chance": 0.5, "majority": 0.65}}
    assert of_all_models([], "simple").empty
    units[0].key["quantization"], units[1].key["quantization"] = None, "nf4"  # of more items, and quantized
    assert list(of_all_models(units[:2], "similarity")["value"]) == [0.1, 0.1]


def test_a_group_stands_for_its_tasks_where_it_is_in_the_rows():
    rows = pd.DataFrame({"task": ["mmlu", "mmlu_stem", "mmlu_other", "mmlu"]})
    assert curves.own_tasks(Unit("sweep", "mmlu", {}, {}, rows, {})) == ["mmlu"]
    assert curves.own_tasks(Unit("sweep", "others", {}, {}, rows, {})) == ["mmlu", "mmlu_stem", "mmlu_other"]


def test_of_many_models_those_measured_last_are_shown():
    def unit(model, day, kind="sweep"):
        return Unit(kind, "boolq", {"model": {"name": model, "weights": "w"}}, {"measured": day}, pd.DataFrame())

    units = [unit(f"model {day}", f"2026-01-{day:02}") for day in range(1, 16)]
    units += [unit("model 1", "2026-02-01"), unit("no sweep", "2026-03-01", "similarity")]
    shown, left_out = latest_models(units, 12)
    assert {each.key["model"]["name"] for each in shown} == {"model 1", *(f"model {day}" for day in range(5, 16))}
    assert left_out == ["model 2", "model 3", "model 4", "no sweep"]
    assert latest_models(units, 20) == (units, []) and latest_models([], 12) == ([], [])


def test_losses_of_one_rule_are_not_taken_for_those_of_the_other():
    simple = unhealed({"simple": np.linspace(3, 5, 8)})
    of_simple, nothing = (Evidence([simple]).unhealed_losses(rule) for rule in ("simple", "similarity"))
    assert of_simple.cuts == [simple_cut(LAYERS, size) for size in range(0, 16, 2)] and nothing is None
    # of 14 layers the most similar block is that of simple
    both = [simple, distances(lambda start, size: abs(start - 5) / LAYERS)]
    assert Evidence(both).unhealed_losses("similarity").cuts == [Cut(0, 0), simple_cut(LAYERS, 14)]
    own = unhealed({"similarity": [3, 4], "simple": [3, 5]})
    assert Evidence([own]).unhealed_losses("similarity").cuts == [Cut(0, 0), Cut(1, 2)]


def test_subjects_of_mmlu_are_told_by_their_number():
    assert curves.asked(["boolq", "mmlu_anatomy", "mmlu_astronomy"], 5) == "BoolQ, MMLU, 2 of 57 subjects, 5-shot"
    assert curves.of_subjects(57) == "all 57 subjects"
    assert curves.asked(["mmlu_anatomy", "mine"]) == "MMLU, anatomy, mine"
    assert curves.title("mmlu_high_school_physics") == "MMLU, high school physics"
    assert curves.asked(["mmlu_stem", "mmlu_other"], 0) == "MMLU, STEM, MMLU, other"
