"""Statistics of the report against closed forms, brute force, and data that are made up so that the truth is known."""

import functools
import itertools
import math

import numpy as np
import pytest

from deeper_layers_companion.report import estimates, measured
from deeper_layers_companion.report.estimates import Estimate

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
        recovered = estimates.recovery(whole, pruned, healed, guessing=guessing)
        found = estimates.differ(whole, pruned), kept, recovered
        held += [one.low <= value <= one.high for one, value in zip(found, truth)]
    assert ((held / 400 > 0.92) & (held / 400 < 0.98)).all(), held / 400


@pytest.mark.parametrize(
    ("items", "whole", "pruned", "guessing", "held_by_draws"),
    [
        (200, 0.25, 0.01, 0.0, 0.90),  # next to nothing is left
        (120, 0.99, 0.97, 0.25, 0.93),  # next to nothing is lost
        (60, 0.95, 0.93, 0.28, 0.90),
    ],
)
def test_intervals_hold_the_truth_where_few_items_decide_and_draws_do_not(
    items, whole, pruned, guessing, held_by_draws, monkeypatch
):
    """Items are right or wrong for both models alike, nine of ten times."""
    monkeypatch.setattr(estimates, "DRAWS", 300)
    draw, held, truth = (
        np.random.default_rng(1),
        np.zeros(4),
        (pruned - whole, (pruned - guessing) / (whole - guessing)),
    )
    for _ in range(250):
        hard = draw.random(items)
        other = np.where(draw.random(items) < 0.9, hard, draw.random(items))
        right = np.array([hard < whole, other < pruned], dtype=float)
        difference, shares = estimates.differ(right[1], right[0]), estimates.shares_kept(right, guessing)
        drawn = Estimate.of(difference.numbers), Estimate.of(shares.numbers[:, 1])
        found = zip((difference, list(shares)[1], *drawn), itertools.cycle(truth))
        held += [one.low - 1e-9 <= value <= one.high + 1e-9 for one, value in found]
    by_rule, by_draws = held[:2] / 250, held[2:] / 250
    assert (by_rule >= 0.94).all() and by_draws.min() < held_by_draws, (by_rule, by_draws)


def test_where_many_items_decide_intervals_are_those_of_draws_and_nothing_lost_is_no_certainty():
    right = made_up(0.9, 0.6, 0.9, 0.0)
    kept, apart = estimates.shares_kept(right, 0.0), estimates.differ(right, right[0])
    assert kept.few.tolist() == [False, False, True, True] and apart.few.tolist() == [True, False, True, False]
    drawn = Estimate.of(kept.numbers)
    assert kept.low[1] == drawn.low[1] and kept.high[0] == 1.0, "the whole model keeps all of itself"
    assert drawn.low[3] == drawn.high[3] == 0 and kept.low[3] == 0 and 0.01 < kept.high[3] < 0.03
    assert kept.low[2] < 1 < kept.high[2] and apart.low[2] < 0 < apart.high[2]
    one, other = (estimates.wilson_interval(*of) for of in ((0, ITEMS), (right[0].sum(), ITEMS)))
    assert one[1] / right[0].mean() < kept.high[3] < one[1] / other[0], "Wilson's end, over the whole model's"
    few = kept.mean_over(np.array([False, False, True, True]))
    assert (few.low, few.high) == (kept.low[2:].mean(), kept.high[2:].mean())
    some = np.array([False, True, True, False])
    assert kept.mean_over(some).high == Estimate.of(kept.numbers[:, some].mean(axis=1)).high


def test_few_that_differ_have_newcombe_s_interval():
    """Method 10 of 1998, written out for a table of 53, 3, 1 and 43 items."""
    first, second = np.repeat([1, 1, 0, 0], [53, 3, 1, 43]), np.repeat([1, 0, 1, 0], [53, 3, 1, 43])
    found = estimates.differ(second, first)
    (l1, u1), (l2, u2) = (estimates.wilson_interval(right, 100) for right in (56, 54))
    phi = (53 * 43 - 3 - 50) / math.sqrt(56 * 44 * 54 * 46)
    low = -0.02 - math.sqrt((0.54 - l2) ** 2 - 2 * phi * (0.54 - l2) * (u1 - 0.56) + (u1 - 0.56) ** 2)
    high = -0.02 + math.sqrt((u2 - 0.54) ** 2 - 2 * phi * (u2 - 0.54) * (0.56 - l1) + (0.56 - l1) ** 2)
    assert (found.value, found.low, found.high) == pytest.approx((-0.02, low, high), abs=1e-6)


def test_what_was_drawn_at_random_is_drawn_anew():
    """Five picks that differ more than any item does: intervals of their mean hold the mean of all picks."""
    draw, held = np.random.default_rng(3), 0
    for _ in range(300):
        picks = draw.normal(1.0, 0.6, 5)
        drawn = [Estimate.of(pick + np.append(0, draw.normal(0, 0.02, 400))) for pick in picks]
        found = estimates.mean_of_drawn(drawn)
        held += found.low <= 1.0 <= found.high
        assert found.value == pytest.approx(np.mean(picks))
    assert 0.92 < held / 300 < 0.98, held / 300
    assert estimates.mean_of_drawn(drawn[:1]) is drawn[0]


def test_shares_and_half_gone_are_those_of_every_draw_and_untold_of_who_only_guesses():
    right, sizes, guessing = made_up(0.9, 0.85, 0.6, 0.55, 0.7, 0.3), [0, 1, 2, 4, 5, 8], 0.25
    kept, gone = estimates.shares_kept(right, guessing), estimates.half_gone(right, sizes, guessing)
    for number, (whole, *pruned) in enumerate(estimates.resample(right)[:500] - guessing):
        shares = np.array(pruned) / whole
        assert kept.numbers[number] == pytest.approx([1, *shares])
        first = [size for size, share in zip(sizes[1:], shares) if share <= 0.5 + 1e-12]
        assert gone.numbers[number] == min(first, default=math.inf)
        back, found = np.array(shares) > 0.5 + 1e-12, estimates.find_half_gone(kept, sizes)[1].numbers[number]
        last = max((index for index in range(5) if back[index]), default=-1)
        assert found == (sizes[1:] + [math.inf])[last + 1], "gone for good after the last size that keeps half"
    assert estimates.half_gone(right[:2], [0, 1], guessing).high == math.inf
    for found in (estimates.shares_kept(right[5:], guessing), estimates.half_gone(right[[5, 1]], [0, 4], guessing)):
        assert found.judge(0, 1) == "at floor" and math.isnan(found.value)


def test_where_the_whole_model_has_nothing_right_in_a_draw_it_counts_as_one_item():
    """Of three items, nothing of which is right by guessing; two draws of 54 hold only the third."""
    right = np.array([[1.0, 1, 0], [1, 0, 0]])
    whole, pruned = np.rint(3 * estimates.resample(right)).T
    assert set(whole[1:]) == {0, 1, 2, 3}
    assert estimates.shares_kept(right, 0.0).numbers[:, 1] == pytest.approx(pruned / np.maximum(whole, 1))


def test_recovery_is_the_share_of_the_gap_that_is_closed():
    whole, recover = np.random.default_rng(2).normal(3, 0.5, 64), functools.partial(estimates.recovery, guessing=9.0)
    found = recover(whole, whole + 2, whole + 1.5)
    assert (found.value, found.low, found.high) == pytest.approx((0.25,) * 3)
    # who heals gets used to the text too: of the half that was won, half is that
    assert recover(whole, whole + 2, whole + 1.5, whole - 0.25).value == pytest.approx(0.125)
    assert recover(whole, whole + np.resize([1, -1], 64), whole).judge() == "not tested"
    assert recover(whole, whole - 2, whole - 1).judge() == "not tested", "the cut took nothing: it gave"
    assert recover(whole, whole + 2, whole, guessing=4.0).judge() == "not tested", "worse than guessing"


@pytest.mark.parametrize(
    ("whole", "pruned", "no_value_reason"),
    [
        (0.9, 0.5, ""),
        (0.4, 0.2, "at floor"),  # below guessing, as SmolLM2 on BoolQ
        (0.4, 0.7, "at floor"),
        (0.7, 0.9, "not tested"),  # the cut gave
        (0.9, 0.895, "not tested"),  # one item of two hundred decides
    ],
)
def test_nothing_is_recovered_of_what_was_not_known_or_not_taken(whole, pruned, no_value_reason):
    found = estimates.recovery(*made_up(whole, pruned, 0.7), guessing=0.5)
    assert found.no_value_reason == no_value_reason and math.isnan(found.value) == bool(no_value_reason)


def test_verdicts():
    limits = {(0.4, 0.6): "supported", (0.7, 0.9): "contradicted", (0, 0.39): "contradicted"}
    limits |= {(0.5, math.inf): "inconclusive", (-math.inf, 0.5): "inconclusive"}
    for (floor, ceiling), verdict in limits.items():
        assert Estimate(0.5, 0.4, 0.6).judge(floor, ceiling) == verdict
    assert Estimate(math.nan, math.nan, math.nan).judge(0, 1) == "not tested"
    beyond = {0.3: "supported", 0.55: "inconclusive", 0.7: "contradicted", -0.1: "contradicted"}
    assert {limit: Estimate(0.5, 0.4, 0.6).judge_beyond(limit) for limit in beyond} == beyond


@pytest.mark.parametrize(("acceptance", "ahead"), [(0.0, 3), (0.3, 1), (0.626, 3), (0.9, 8), (1.0, 4)])
def test_acceptance_of_a_token_is_told_from_the_share_taken(acceptance, ahead):
    """In a round tokens are accepted up to the first refused one, as here by hand."""
    taken = 0.0
    for number in range(1, ahead + 1):
        taken += number * acceptance**number * (1 - acceptance if number < ahead else 1)
    assert measured.find_acceptance(taken / ahead, ahead) == pytest.approx(acceptance, abs=1e-6)
