"""Statistics of the report against closed forms, brute force, and data that are made up so that the truth is known."""

import math

import numpy as np
import pandas as pd
import pytest

from deeper_layers import results
from deeper_layers.errors import InputError
from deeper_layers.report import estimates, pairing
from deeper_layers.report.estimates import Estimate
from deeper_layers.results.places import AROUND

pytestmark = pytest.mark.quick


def made_up(*chances: float, items: int = 200) -> np.ndarray:
    """Items that each model, a row, has right with a chance of its own; hard ones are hard for all."""
    hard = np.random.default_rng(0).random(items)
    return np.array([hard < chance for chance in chances], dtype=float)


def test_a_single_accuracy_has_wilson_s_interval():
    for right, items in ((0, 10), (7, 10), (60, 120), (120, 120)):
        found = estimates.mean_of_items((np.arange(items) < right).astype(float))
        z, share = 1.959964, right / items
        centre = (share + z * z / (2 * items)) / (1 + z * z / items)
        half = z / (1 + z * z / items) * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
        assert (found.value, found.low, found.high) == pytest.approx((share, centre - half, centre + half), abs=1e-6)


def test_draws_are_of_items_and_the_same_for_whoever_shares_them():
    one, other = made_up(0.5, 0.7), made_up(0.7, 0.2)
    value, draws = estimates.means(one)[0], estimates.means(one)[1:]
    assert draws.shape == (estimates.DRAWS, 2) and (value == one.mean(axis=1)).all()
    assert (draws[:, 1] == estimates.means(other)[1:, 0]).all(), "the same items, another call"
    assert (np.rint(draws * 200) == pytest.approx(draws * 200)) and not (draws[:, 0] == draws[:, 1]).any()
    # of shares the standard error is known
    assert draws.std(axis=0) == pytest.approx(np.sqrt(value * (1 - value) / 200), rel=0.03)
    assert np.cov(draws.T)[0, 1] == pytest.approx(np.cov(one)[0, 1] / 200, rel=0.05)
    losses = np.random.default_rng(1).normal(3, 1, (3, 50))
    assert estimates.means(losses).std(axis=0) == pytest.approx(losses.std(axis=1) / math.sqrt(50), rel=0.03)


def test_95_of_100_intervals_hold_the_truth(monkeypatch):
    monkeypatch.setattr(estimates, "DRAWS", 1000)
    draw, held = np.random.default_rng(5), np.zeros(3)
    guessing, truth = 0.25, (0.24, (0.58 - 0.25) / (0.82 - 0.25), 0.12 / 0.24)
    for _ in range(400):
        hard = draw.random(300)  # a tenth falls out the other way: 0.82, 0.58 and 0.70 in truth
        right = np.array([hard < 0.9, hard < 0.6, hard < 0.75]) ^ (draw.random((3, 300)) < 0.1)
        whole, pruned, healed = right.astype(float)
        kept = Estimate.of(estimates.shares_kept(np.stack([whole, pruned]), guessing).numbers[:, 1])
        found = Estimate.of(estimates.means(whole - pruned)), kept, estimates.recovery(whole, pruned, healed)
        held += [one.low <= value <= one.high for one, value in zip(found, truth)]
    assert ((held / 400 > 0.92) & (held / 400 < 0.98)).all(), held / 400


def test_shares_and_half_gone_are_those_of_every_draw():
    right, sizes, guessing = made_up(0.9, 0.85, 0.6, 0.55, 0.7, 0.3), [0, 1, 2, 4, 5, 8], 0.25
    kept, gone = estimates.shares_kept(right, guessing), estimates.half_gone(right, sizes, guessing)
    for number, accuracies in enumerate(estimates.means(right)[:500]):
        shares = [(accuracy - guessing) / (accuracies[0] - guessing) for accuracy in accuracies]
        assert kept.numbers[number] == pytest.approx(shares)
        first = next((size for size, share in zip(sizes[1:], shares[1:]) if share <= 0.5 + 1e-12), math.inf)
        assert gone.numbers[number] == first
    assert kept.low[0] == kept.high[0] == 1 and gone.value in (2, 4, 8)
    assert estimates.half_gone(right[:2], [0, 1], guessing).high == math.inf


def test_nothing_is_told_of_a_model_that_only_guesses():
    right = made_up(0.3, 0.1)
    for found in (estimates.shares_kept(right, 0.25), estimates.half_gone(right, [0, 4], 0.25)):
        assert found.against(0, 1) == "at floor" and math.isnan(found.value) and math.isnan(found.p_value())


def test_recovery_is_the_share_of_the_gap_that_is_closed():
    whole = np.random.default_rng(2).normal(3, 0.5, 64)
    pruned, adapted = whole + 2, whole - 0.25
    alone = estimates.recovery(whole, pruned, pruned - 0.5)
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.25,) * 3)
    # who heals gets used to the text too: of the half that was won, half is that
    assert estimates.recovery(whole, pruned, pruned - 0.5, adapted).value == pytest.approx(0.125)
    assert estimates.recovery(whole, whole + np.resize([1, -1], 64), whole).against() == "not tested"
    assert estimates.recovery(whole, pruned, whole, guessing=4.0).against() == "not tested", "worse than guessing"


def test_regret_is_that_of_the_choice_and_draws_it_anew():
    costs = np.array([[3.0], [1.0], [2.0]]) + np.random.default_rng(3).normal(0, 0.2, 32)
    over = estimates.over_best(np.vstack([costs, costs[1] - 0.5]), 3)
    assert (over[:, 1] == 0).all() and over[0, 0] == pytest.approx(2, abs=0.2)
    assert over[:, 3] == pytest.approx(-0.5), "no block, and better than any"
    sure = np.array([[0.4], [0.3], [0.2]]) + np.zeros(16)
    found = estimates.regret_of_nearest(costs, sure)
    assert found.value == pytest.approx(1, abs=0.1) and 0.9 < found.low < found.high < 1.1
    torn = sure + np.resize([0.2, -0.2], 16) * np.array([[0], [-1], [1]])
    torn[2, 0] -= 1.5  # the third is nearest by one sequence alone
    found = estimates.regret_of_nearest(costs, torn)
    assert found.value == pytest.approx(1, abs=0.1) and found.low == 0, "in other sequences the second one is"
    both = estimates.mean_of([found, Estimate.of(over[:, 0])])
    assert both.value == pytest.approx(1.5, abs=0.1) and both.against(0, 5) == "supported"
    with pytest.raises(InputError, match="no items"):
        estimates.over_best(costs[:, :1], 3)


def test_p_values():
    assert estimates.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert estimates.holm([0.6, 0.7]) == pytest.approx([1, 1]) and len(estimates.holm([])) == 0
    one, other = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0.0]), np.array([0, 0, 0, 0, 0, 1, 1, 1, 0.0])
    assert estimates.mcnemar(one, other) == pytest.approx(2 * (1 + 6) / 2**6)  # 5 lost, 1 gained
    assert estimates.mcnemar(one, one) == 1
    drawn = Estimate.of(np.where(np.arange(1 + estimates.DRAWS) % 100 == 1, -1.0, 1.0))
    assert drawn.p_value() == pytest.approx(0.02, abs=2e-4) and (drawn - drawn).p_value() == 1


@pytest.mark.parametrize(
    ("low", "high", "floor", "ceiling", "verdict"),
    [
        (0.4, 0.6, 0.3, 0.7, "supported"),
        (0.4, 0.6, 0.4, 0.6, "supported"),
        (0.0, 0.2, 0.3, 0.7, "contradicted"),
        (0.4, 0.6, 0, 0.39, "contradicted"),
        (0.4, 0.6, 0.5, math.inf, "inconclusive"),
        (0.4, 0.6, -math.inf, 0.5, "inconclusive"),
        (math.nan, math.nan, 0, 1, "not tested"),
    ],
)
def test_verdicts(low, high, floor, ceiling, verdict):
    assert Estimate((low + high) / 2, low, high).against(floor, ceiling) == verdict


def test_rows_of_one_measurement_are_paired_and_what_guessing_scores_is_known():
    measured = results.scores(AROUND / "results", "Qwen2.5-Coder-1.5B-Instruct")
    best = pairing.best_measured(measured)
    cuts, right = pairing.paired(best.query("task == 'mmlu' and rule == 'similarity'"))
    assert right.shape == (27, 1140) and cuts["cut"][0] == "0,0"
    assert pairing.guessing(best.query("task == 'mmlu' and limit == 20")) == pytest.approx(291 / 1140)
    rows = measured.query("task == 'boolq' and rule == 'similarity'")
    assert pairing.guessing(rows) == 0.625 and pairing.guessing(measured.query("task == 'written_facts'")) == 0
    with pytest.raises(InputError, match="same items"):
        pairing.paired(pd.concat([rows, rows.head(1)]))
