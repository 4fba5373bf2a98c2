"""What `python -m benchmarks.verdicts` draws from lies exactly where its words say."""

import numpy as np
import pytest

from benchmarks.limits import depths, heights, shapes
from deeper_layers.report.claims import decisions
from deeper_layers.report.statistics import outcomes
from deeper_layers.report.thresholds import DEEP, EARLIEST, FLAT, LAST, LATEST, LEFT, SHARP
from tests.made_up import LAYERS


@pytest.mark.parametrize(
    ("whole", "line", "floor", "step"),
    [(0.51, 0.25, 0.25, 1), (0.51, 0.25, 0.25, 2), (0.74, 0.62, 0.5, 1), (0.74, 0.5, 0.5, 1)],
)
def test_curves_on_a_limit_lie_exactly_on_it_and_keep_to_the_others(whole, line, floor, step):
    """By the numbers of the claim, of accuracies without chance: one is at its limit, the others are not."""
    curves = {truth: shares for truth, shares in shapes(whole, line, floor, step).items() if "exactly" in truth}
    assert len(curves) == 4
    for place, shares in enumerate(curves.values()):
        fractions = np.arange(0, LAYERS - 1, step) / LAYERS
        kept = (shares - line) / (whole - line)
        gone, start, end = (outcomes.crossing(shares, fractions, line, share) for share in (0.5, 0.75, 0.25))
        half_way = np.interp(gone / 2, fractions, kept)
        numbers = [
            kept[(fractions > 0) & (fractions < EARLIEST)].min() - LEFT,
            LEFT - kept[fractions >= LATEST].max(),
            half_way - FLAT,
            SHARP - (end - start) / gone,
        ]
        assert numbers[place] == pytest.approx(0, abs=1e-9)
        # a cut that keeps half before any other is dropped is a cliff too near for a shape
        assert min(numbers[:place] + numbers[place + 1 :]) > 0.01 or (place == 0 and step == 2)


def test_the_last_layer_is_drawn_exactly_on_its_limit():
    """Over all sizes or over those to half of the layers, the other one to either side of it."""
    found = [
        (round(float(decisions.height(distances[None])[0] - LAST), 9),
         round(float(decisions.height_to_half(distances[None])[0] - LAST), 9))
        for truth, distances in heights().items() if "exactly" in truth
    ]  # fmt: skip
    assert found == [(0, 0.05), (0, -0.03), (0.03, 0), (-0.03, 0)]


def test_the_most_similar_blocks_are_drawn_on_either_side_of_their_limit():
    """Where two blocks tie, whichever is taken decides between the two places next to the limit."""
    (tied, low, high, *_) = [distances[None] for distances in depths().values()]
    first, last = decisions.depth(low)[0], decisions.depth(high)[0]
    assert first < DEEP < last and last - first == pytest.approx(1 / (LAYERS * (LAYERS // 4)))
    nudged = [tied.copy(), tied.copy()]
    for place, table in zip((11, 12), nudged, strict=True):
        table[0, 3, place] -= 1e-9
    assert [decisions.depth(table)[0] for table in nudged] == [first, last]
