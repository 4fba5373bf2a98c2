"""Intervals that are looked at many times, on drawn data: they hold together, and fixed ones do not."""

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from deeper_layers.errors import InputError
from deeper_layers_companion.report import estimates, stopping
from deeper_layers_companion.report.estimates import Estimate
from deeper_layers_companion.report.stopping import Look, StoppingRule, Tally, look_at, plan_looks

pytestmark = pytest.mark.quick
LOOKS = plan_looks(1200)
GUESSING, WHOLE = 0.25, 0.8
SIZES = [0, 1, 2, 3, 4, 5, 6, 7, 8]
HALF = GUESSING + (WHOLE - GUESSING) / 2
# hard for the upper end: from 1 to 7 layers little more than half is kept; and for the lower end: at 2 just half is
FLAT = [WHOLE, *[HALF + 0.01 * (WHOLE - GUESSING)] * 7, 0.3]
EDGE = [WHOLE, 0.78, HALF, 0.35, 0.3, 0.3, 0.27, 0.26, 0.25]
STEEP = [WHOLE, 0.78, 0.75, 0.55, 0.4, 0.3, 0.27, 0.26, 0.25]  # 0.525 is half: gone from 4 on


def draw_answers(chances: list[float], replays: int, items: int, seed: int = 0) -> np.ndarray:
    """Right and wrong answers [R, C, I]: half of an item's luck is common to all cuts."""
    draw = np.random.default_rng(seed)
    common, own = draw.random((replays, 1, items)), draw.random((replays, len(chances), items))
    luck = np.where(draw.random((replays, len(chances), items)) < 0.5, common, own)
    return luck < np.array(chances)[:, None]


def test_looks_double_up_to_the_limit():
    assert plan_looks(20) == (20,) and plan_looks(30) == (30,)
    assert plan_looks(1140) == (30, 60, 120, 240, 480, 960, 1140)
    assert plan_looks(50, first=10) == (10, 20, 40, 50)


def test_a_tally_counts_what_was_asked_until_each_look():
    right = draw_answers(STEEP, 2, 100)
    tally = Tally.at([30, 100], right)
    assert tally.right.shape == (2, 2, 9) and tally.items.tolist() == [30, 100]
    assert tally.right[1, 0].tolist() == right[1, :, :30].sum(axis=1).tolist()
    alone = Tally.of(right[1])
    assert alone.items == 100 and alone.right.tolist() == tally.right[1, 1].tolist()
    assert alone.both.tolist() == (right[1] & right[1, 0]).sum(axis=1).tolist() == tally.both[1, 1].tolist()


def test_the_intervals_of_a_single_look_are_those_of_the_report():
    right = draw_answers(STEEP, 1, 200)[0]
    z = float(norm.isf(0.025))
    found, plain = stopping.find_accuracy_ends(Tally.of(right), z), estimates.estimate_mean(right)
    np.testing.assert_allclose(found, [plain.value, plain.low, plain.high], atol=1e-9)
    margin, low, high = stopping.find_margin_ends(Tally.of(right), GUESSING, z)
    np.testing.assert_allclose(margin, 2 * right.mean(axis=1) - right[0].mean() - GUESSING)
    # beside the draws of the bootstrap
    drawn = Estimate.of(estimates.resample(2.0 * right - right[0]) - GUESSING)
    np.testing.assert_allclose([low[3], high[3]], [drawn.low[3], drawn.high[3]], atol=0.03)


def hold_together(truth, low, high) -> float:
    """The share of the replays [R, K] in which the intervals of all looks hold the truth."""
    return float(((low <= truth) & (truth <= high)).all(axis=1).mean())


@pytest.mark.parametrize("chance", [0.5, 0.9])
def test_accuracies_hold_at_all_looks_together_and_fixed_intervals_do_not(chance):
    tally = Tally.at(LOOKS, draw_answers([chance], 1500, LOOKS[-1]))
    _, low, high = stopping.find_accuracy_ends(tally, float(norm.isf(StoppingRule(0.05, LOOKS).error / 2)))
    assert hold_together(chance, low[..., 0], high[..., 0]) >= 0.95
    _, low, high = stopping.find_accuracy_ends(tally, float(norm.isf(0.025)))
    assert hold_together(chance, low[..., 0], high[..., 0]) < 0.88


@pytest.mark.parametrize(("chances", "truth"), [(FLAT, 8), (EDGE, 2), (STEEP, 4)])
def test_half_gone_holds_at_all_looks_together(chances, truth):
    tally = Tally.at(LOOKS, draw_answers(chances, 1000, LOOKS[-1]))
    rule = StoppingRule(0.05, LOOKS)
    _, low, high = stopping.find_half_gone_ends(tally, SIZES, GUESSING, rule.error)
    assert hold_together(truth, low, high) >= 0.95
    assert (low <= high).all()


def test_half_gone_fails_where_each_look_or_each_size_has_the_whole_level():
    tally = Tally.at(LOOKS, draw_answers(EDGE, 1000, LOOKS[-1]))
    assert hold_together(2, *stopping.find_half_gone_ends(tally, SIZES, GUESSING, 0.05)[1:]) < 0.93
    tally = Tally.at(LOOKS, draw_answers(FLAT, 1000, LOOKS[-1]))
    error = StoppingRule(0.05, LOOKS).error
    _, _, high = stopping.find_margin_ends(tally, GUESSING, float(norm.isf(error / 2)))
    upper = stopping.find_first_size(high[..., 1:] <= 0, SIZES[1:])
    _, _, shared_upper = stopping.find_half_gone_ends(tally, SIZES, GUESSING, error)
    wrong, shared_wrong = ((end < 8).any(axis=1).mean() for end in (upper, shared_upper))
    assert shared_wrong <= 0.025 < wrong


def stop(chances, decides=stopping.HALF_GONE, precision=0.05, layers=30, looks=LOOKS) -> tuple[Look, int]:
    """The first look of one replay at which the rule stops, and its number of items."""
    rule = StoppingRule(precision, looks, decides)
    found = look_at(Tally.at(looks, draw_answers(chances, 1, looks[-1])[0]), SIZES, layers, GUESSING, rule)
    items = looks[int(found.stops.argmax())] if found.stops.any() else looks[-1]
    asked = draw_answers(chances, 1, looks[-1])[0][:, :items]
    return look_at(Tally.of(asked), SIZES, layers, GUESSING, rule), items


def test_a_steep_curve_stops_early_and_a_flat_one_asks_all():
    found, items = stop(STEEP)
    assert found.reason == stopping.PRECISE and items < LOOKS[-1] / 2
    assert found.half_gone.low <= 4 <= found.half_gone.high
    assert max(found.half_gone.high - found.half_gone.value, found.half_gone.value - found.half_gone.low) <= 1
    found, items = stop(FLAT)
    assert (found.reason, items) == (stopping.ALL_ASKED, LOOKS[-1])
    assert stop(STEEP, precision=0.2)[1] <= stop(STEEP, precision=0.05)[1] < stop(STEEP, precision=0.01)[1]


def test_accuracies_decide_where_they_are_asked_for():
    found, items = stop(STEEP, stopping.ACCURACY, precision=0.08)
    assert found.reason == stopping.PRECISE and 120 < items < LOOKS[-1]
    assert stopping.find_distance(found.accuracies).max() <= 0.08


def test_what_is_never_gone_and_what_no_model_knows_stop_too():
    found, items = stop([0.9] * 9)
    assert found.reason == stopping.PRECISE and items <= 60
    assert (found.half_gone.value, found.half_gone.low, found.half_gone.high) == (math.inf,) * 3
    found, items = stop([0.2] * 9)
    assert found.reason == stopping.SURELY_AT_FLOOR and items < LOOKS[-1]
    # a little above guessing is not decided by a few items
    found, items = stop([0.31] * 9)
    assert (found.reason, items, bool(found.is_able)) == (stopping.ALL_ASKED, LOOKS[-1], False)


def test_a_rule_stands_in_a_result_as_json():
    settings = StoppingRule(0.05, plan_looks(120)).as_settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings == {"precision": 0.05, "looks": [30, 60, 120], "decides": "half gone", "level": 0.95}


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"precision": 5}, "precision is 5, expected a share between 0 and 1"),
        ({"looks": (30, 30)}, "expected numbers of items that rise"),
        ({"looks": ()}, "expected numbers of items that rise"),
        ({"decides": "loss"}, "decides is 'loss', expected 'half gone' or 'accuracy'"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(wrong, said):
    with pytest.raises(InputError, match=said):
        StoppingRule(**{"precision": 0.05, "looks": (30, 60)} | wrong)
    with pytest.raises(InputError, match="limit is 0"):
        plan_looks(0)
