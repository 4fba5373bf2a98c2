"""Statistics of the report against closed forms, brute force, and data that are made up so that the truth is known."""

import math

import numpy as np
import pytest

from deeper_layers.report import estimates
from deeper_layers.report.estimates import Estimate

pytestmark = pytest.mark.quick
ITEMS = 200


def made_up(*chances: float) -> np.ndarray:
    """Items that each model, a row, has right with a chance of its own; hard ones are hard for all."""
    hard = np.random.default_rng(0).random(ITEMS)
    return np.array([hard < chance for chance in chances], dtype=float)


@pytest.mark.parametrize(("right", "items"), [(0, 10), (7, 10), (60, 120), (120, 120)])
def test_a_single_accuracy_has_wilson_s_interval(right, items):
    found = estimates.estimate_mean(np.arange(items) < right)
    share, part = right / items, 1.959964**2 / items
    centre, half = share + part / 2, math.sqrt(share * (1 - share) * part + part**2 / 4)
    ends = ((centre - half) / (1 + part), (centre + half) / (1 + part))
    assert (found.value, found.low, found.high) == pytest.approx((share, *ends), abs=1e-6)


def test_draws_are_of_items_and_the_same_for_whoever_shares_them():
    one, other = made_up(0.5, 0.7), made_up(0.7, 0.2)
    value, *draws = estimates.resample(one)
    assert len(draws) == estimates.DRAWS and (value == one.mean(axis=1)).all()
    assert (estimates.resample(other)[1:, 0] == np.array(draws)[:, 1]).all(), "the same items, another call"
    for rows in (one, np.random.default_rng(1).normal(3, 1, (2, ITEMS))):  # accuracies, losses
        assert np.cov(estimates.resample(rows).T) == pytest.approx(np.cov(rows) / ITEMS, rel=0.06, abs=3e-4)


def test_95_of_100_intervals_hold_the_truth(monkeypatch):
    monkeypatch.setattr(estimates, "DRAWS", 1000)
    draw, held = np.random.default_rng(5), np.zeros(3)
    guessing, truth = 0.25, (0.24, (0.58 - 0.25) / (0.82 - 0.25), 0.12 / 0.24)
    for _ in range(400):
        hard = draw.random(300)  # a tenth falls out the other way: 0.82, 0.58 and 0.70 in truth
        right = np.array([hard < 0.9, hard < 0.6, hard < 0.75]) ^ (draw.random((3, 300)) < 0.1)
        whole, pruned, healed = right.astype(float)
        kept = Estimate.of(estimates.shares_kept(np.stack([whole, pruned]), guessing).numbers[:, 1])
        found = Estimate.of(estimates.resample(whole - pruned)), kept, estimates.recovery(whole, pruned, healed)
        held += [one.low <= value <= one.high for one, value in zip(found, truth)]
    assert ((held / 400 > 0.92) & (held / 400 < 0.98)).all(), held / 400


def test_shares_and_half_gone_are_those_of_every_draw_and_untold_of_who_only_guesses():
    right, sizes, guessing = made_up(0.9, 0.85, 0.6, 0.55, 0.7, 0.3), [0, 1, 2, 4, 5, 8], 0.25
    kept, gone = estimates.shares_kept(right, guessing), estimates.half_gone(right, sizes, guessing)
    for number, (whole, *pruned) in enumerate(estimates.resample(right)[:500] - guessing):
        shares = np.array(pruned) / whole
        assert kept.numbers[number] == pytest.approx([1, *shares])
        first = [size for size, share in zip(sizes[1:], shares) if share <= 0.5 + 1e-12]
        assert gone.numbers[number] == min(first, default=math.inf)
    assert estimates.half_gone(right[:2], [0, 1], guessing).high == math.inf
    for found in (estimates.shares_kept(right[5:], guessing), estimates.half_gone(right[[5, 1]], [0, 4], guessing)):
        assert found.judge(0, 1) == "at floor" and math.isnan(found.value) and math.isnan(found.p_value())


def test_recovery_is_the_share_of_the_gap_that_is_closed():
    whole = np.random.default_rng(2).normal(3, 0.5, 64)
    found = estimates.recovery(whole, whole + 2, whole + 1.5)
    assert (found.value, found.low, found.high) == pytest.approx((0.25,) * 3)
    # who heals gets used to the text too: of the half that was won, half is that
    assert estimates.recovery(whole, whole + 2, whole + 1.5, whole - 0.25).value == pytest.approx(0.125)
    assert estimates.recovery(whole, whole + np.resize([1, -1], 64), whole).judge() == "not tested"
    assert estimates.recovery(whole, whole + 2, whole, guessing=4.0).judge() == "not tested", "worse than guessing"


def test_p_values():
    assert estimates.correct_by_holm([0.01, 0.04, 0.03, 0.9, 0.8]) == pytest.approx([0.05, 0.12, 0.12, 1, 1])
    drawn = Estimate.of(np.where(np.arange(1 + estimates.DRAWS) % 100 == 1, -1.0, 1.0))
    assert drawn.p_value() == pytest.approx(0.02, abs=2e-4) and (drawn - drawn).p_value() == 1


def test_verdicts():
    limits = {(0.4, 0.6): "supported", (0.7, 0.9): "contradicted", (0, 0.39): "contradicted"}
    limits |= {(0.5, math.inf): "inconclusive", (-math.inf, 0.5): "inconclusive"}
    for (floor, ceiling), verdict in limits.items():
        assert Estimate(0.5, 0.4, 0.6).judge(floor, ceiling) == verdict
    assert Estimate(math.nan, math.nan, math.nan).judge(0, 1) == "not tested"
    beyond = {0.3: "supported", 0.55: "inconclusive", 0.7: "contradicted", -0.1: "contradicted"}
    assert {limit: Estimate(0.5, 0.4, 0.6).judge_beyond(limit) for limit in beyond} == beyond
