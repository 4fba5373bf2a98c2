"""Item by item: flips, paired changes, the cliff."""

import math

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.report.questions.two_ways import MARGIN, compared
from deeper_layers.report.statistics.outcomes import (
    RESAMPLES,
    changes,
    cliff,
    interval,
    leaves_of,
    mcnemar,
    outcomes_of,
    resampled_means,
)
from deeper_layers.results.packing import pack
from deeper_layers.results.places import results_folder
from deeper_layers.results.units import Unit, all_units, has_parts, read_unit

CUTS = [Cut(3, 1), Cut(2, 2)]


def unit_of(right: dict[str, list[int]], chosen: dict[str, list[int]] | None = None) -> Unit:
    outcomes = {}
    for cut, values in right.items():
        packed = {"acc": pack(np.array(values))}
        if chosen:
            packed["chosen"] = pack(np.array(chosen[cut]))
        outcomes[cut] = {"task": packed}
    return Unit("sweep", "task", {}, {}, pd.DataFrame(), {"outcomes": outcomes})


def test_changes_are_counted_in_pairs():
    right = {"0,0": [1, 1, 1, 0, 0, 0, 1, 1], "3,1": [1, 1, 0, 1, 0, 0, 1, 1], "2,2": [0, 0, 0, 0, 0, 0, 1, 1]}
    chosen = {"0,0": [0, 1, 2, 3, 0, 1, 2, 3], "3,1": [0, 1, 3, 0, 1, 1, 2, 3], "2,2": [1, 2, 3, 0, 0, 1, 2, 3]}
    table = changes(unit_of(right, chosen), CUTS)
    assert list(table["change"]) == [0, -3 / 8]
    assert list(table["lost"]) == [1 / 8, 3 / 8] and list(table["gained"]) == [1 / 8, 0]
    # the accuracy is the same, and yet three answers of eight are others
    assert list(table["flipped"]) == [3 / 8, 4 / 8]
    assert list(table["p"]) == [1, 0.25]
    assert (table["low"] <= table["change"]).all() and (table["change"] <= table["high"]).all()
    assert changes(unit_of(right), CUTS)["flipped"].isna().all()
    assert " ".join(table) == "size start items change low high lost gained flipped p"
    assert table[["size", "start", "items"]].values.tolist() == [[1, 3, 8], [2, 2, 8]]


def test_changes_of_one_task_of_a_group_by_another_metric():
    def of_cut(*values):
        a, b = ({name: pack(np.array(row)) for name, row in task.items()} for task in values)
        return {"a": a, "b": b}

    outcomes = {
        "0,0": of_cut({"acc": [1, 1], "more": [0, 0], "chosen": [1, 1]}, {"acc": [0], "more": [0], "chosen": [0]}),
        "3,1": of_cut({"acc": [1, 1], "more": [1, 0], "chosen": [1, 2]}, {"acc": [1], "more": [0], "chosen": [5]}),
    }
    unit = Unit("sweep", "ab", {}, {}, pd.DataFrame(), {"outcomes": outcomes})
    for task, what, items, change, flipped in (
        (None, "acc", 3, 1 / 3, 2 / 3), ("a", "acc", 2, 0, 1 / 2), ("b", "acc", 1, 1, 1),
        ("a", "more", 2, 1 / 2, 1 / 2),
    ):  # fmt: skip
        row = changes(unit, CUTS[:1], what, task=task).iloc[0]
        assert [row["items"], row["change"], row["flipped"]] == pytest.approx([items, change, flipped])
    with pytest.raises(InputError, match="task is 'c', which ab has not"):
        outcomes_of(unit, [Cut(0, 0)], task="c")


def test_what_is_not_there_is_said():
    unit = unit_of({"0,0": [1, 0]})
    with pytest.raises(InputError, match=r"has no Cut\(start=3, size=1\)"):
        outcomes_of(unit, CUTS)
    with pytest.raises(InputError, match="has no outcomes 'exact_match', expected one of acc"):
        outcomes_of(unit, [Cut(0, 0)], "exact_match")


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(3, 9) == mcnemar(9, 3) == pytest.approx(0.1459, abs=1e-4)
    assert 0 <= mcnemar(4000, 3000) < 1e-30


def test_the_cliff_lies_where_half_is_gone():
    draw = np.random.default_rng(0)
    fractions = np.arange(10) / 10
    expected = np.where(fractions < 0.45, 0.85, 0.25)  # falls between 0.4 and 0.5
    right = (draw.random((10, 800)) < expected[:, None]).astype(np.uint8)
    position, low, high = cliff(right, fractions, 0.25, resamples=200)
    assert position == pytest.approx(0.45, abs=0.01)
    assert 0.43 < low <= position <= high < 0.47
    # a curve that stays has none, and one that starts at guessing has nothing to lose
    assert cliff(np.ones((3, 50), dtype=np.uint8), [0, 0.2, 0.4], 0.25, resamples=20) == (math.inf,) * 3
    assert cliff(np.zeros((3, 50), dtype=np.uint8), [0, 0.2, 0.4], 0.25, resamples=20)[0] == 0
    with pytest.raises(InputError, match="rising from 0"):
        cliff(right, fractions[::-1], 0.25)
    for odd in ([0.1, 0.2, 0.4], [0, 0.4, 0.2], [0, 0.2, 0.2], [0, 0.2]):
        with pytest.raises(InputError, match="rising from 0"):
            cliff(np.ones((3, 50), dtype=np.uint8), odd, 0.25)


def test_resamples_are_as_many_as_are_asked_for_and_follow_from_the_seed():
    table = np.random.default_rng(0).random((2, 9))
    found = resampled_means(table, resamples=7)
    assert found.shape == (8, 2) and resampled_means(table).shape == (RESAMPLES + 1, 2)
    np.testing.assert_allclose(found[0], table.mean(axis=1))
    draw = np.random.default_rng(0)
    expected = [table[:, draw.integers(0, 9, 9)].mean(axis=1) for _ in range(7)]
    np.testing.assert_allclose(found[1:], expected)
    other = resampled_means(table, resamples=7, seed=1)
    assert np.array_equal(other[0], found[0]) and not np.array_equal(other[1:], found[1:])


def test_the_interval_leaves_out_one_in_forty_on_each_side():
    found = np.concatenate([[7.0], np.random.default_rng(0).permutation(1000.0 + np.arange(1000))])
    assert interval(found) == (7.0, 1025.0, 1974.0)
    # infinity is a place like any other
    assert interval(np.array([0.5, *[0.25] * 950, *[np.inf] * 50])) == (0.5, 0.25, np.inf)


def test_coverage_of_the_interval():
    """Of 40 repetitions about 38 intervals hold the true place; fewer than 33 is rarer than one in a thousand."""
    fractions, held = np.arange(6) / 6, 0
    truth = np.array([0.9, 0.85, 0.7, 0.45, 0.3, 0.25])
    place = 2 / 6 + (0.7 - 0.575) / (0.7 - 0.45) / 6
    for seed in range(40):
        draw = np.random.default_rng(seed)
        right = (draw.random((6, 200)) < truth[:, None]).astype(np.uint8)
        _, low, high = cliff(right, fractions, 0.25, resamples=200, seed=seed)
        held += low <= place <= high
    assert held >= 33


def test_committed_units_agree_with_their_rows():
    unit = next(unit for unit in all_units(results_folder(), "sweep") if unit.name == "capitals")
    cuts = [Cut(row.start, row.size) for row in unit.rows.itertuples()]
    right = outcomes_of(unit, cuts)
    np.testing.assert_allclose(right.mean(axis=1), unit.rows["value"], atol=1e-9)
    assert leaves_of(unit) == [unit]


def test_a_group_stands_on_the_units_of_its_tasks():
    unit = next(unit for unit in all_units(results_folder(), "sweep") if "units" in unit.details)
    leaves = leaves_of(unit)
    assert [leaf.path.name for leaf in leaves] == unit.details["units"] and len(leaves) > 1
    cut = Cut(*unit.key["cuts"][0])
    assert outcomes_of(unit, [cut]).shape == (1, sum(int(leaf.rows["items"].iloc[0]) for leaf in leaves))
    unit.details["units"] = ["gone.json"]
    with pytest.raises(InputError, match=f"{unit.path.name} stands on gone.json, which is missing"):
        leaves_of(unit)


def test_a_group_written_elsewhere_stands_on_the_published_units_of_its_tasks(tmp_path):
    """As in a folder of one's own beside an installed library, which comes with the published ones."""
    published = next(unit for unit in all_units(results_folder(), "sweep") if "units" in unit.details)
    path = tmp_path / "results" / published.path.parent.name / published.path.name
    path.parent.mkdir(parents=True)
    path.write_bytes(published.path.read_bytes())
    unit = read_unit(path)
    assert has_parts(unit)
    assert [leaf.path.name for leaf in leaves_of(unit)] == unit.details["units"]
    unit.details["units"].append("gone.json")
    assert not has_parts(unit)


def test_two_ways_of_healing_are_compared_in_pairs_of_what_both_have():
    def healed(losses, right, **others):
        outcomes = {task: {"acc": pack(np.array(values))} for task, values in (right | others).items()}
        return Unit("healing", "2-2", {}, {}, pd.DataFrame(), {"by_sequence": losses, "outcomes": outcomes})

    losses = (3 + np.random.default_rng(0).standard_normal(64)).round(5)
    few, none, all_right = [1, 0] * 10, [0] * 20, [1] * 20
    subjects = {"mmlu_anatomy": few, "mmlu_virology": none, "gsm8k": few}
    first = healed(losses.tolist(), subjects, capitals=few)
    second = healed((losses - 0.5).tolist(), subjects | {"mmlu_virology": all_right, "gsm8k": none}, sums=few)
    both = ["MMLU", "GSM8K"]
    table = compared(first, second, both).set_index("what")
    assert list(table.index) == ["loss on text", "MMLU", "GSM8K"] and list(table["items"]) == [64, 40, 20]
    assert list(table["seen"]) == ["better", "better", "worse"]
    assert table.loc["MMLU", "first"] == 0.25 and table.loc["MMLU", "change"] == 0.5
    assert table.loc["loss on text", "change"] == pytest.approx(-0.5)
    assert compared(first, second, ["GSM8K"])["seen"].tolist() == ["better", "not known", "worse"]
    back = compared(second, first, both).set_index("what")
    assert list(back["seen"]) == ["worse", "worse", "better"]
    for change in (0.0, 0.9 * MARGIN, -0.9 * MARGIN):  # however sure, no more than another seed changes
        near = compared(first, healed((losses + change).tolist(), subjects), both)
        assert set(near["seen"]) == {"no difference seen"}
