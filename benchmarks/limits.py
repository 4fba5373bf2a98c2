"""Accuracies and distances that lie exactly on a limit of a claim, by words for what is true of them, and clear ones.

`benchmarks.verdicts` draws what would be measured of them. Letters in shapes: N block sizes, L layers.
"""

import numpy as np

from benchmarks.intervals import LAYERS, true_distances
from deeper_layers.report.claims import decisions
from deeper_layers.report.thresholds import EARLIEST, FLAT, LAST, LATEST

CLEAR, OTHERWISE = "clearly as the claim has it", "clearly otherwise"


def shapes(whole: float, line: float, floor: float, step: int = 1) -> dict[str, np.ndarray]:
    """Accuracies without 0, `step`, ... layers, by what is true of them beside a line of guessing; at last `floor`."""
    sizes, known = np.arange(0, LAYERS - 1, step), whole - line
    last, half = 8 - step, line + known / 2  # dropped before all is lost at once
    slope = 0.0
    for _ in range(100):  # so that a tenth is gone half way to where the line from `last` to the floor crosses the half
        left = whole - slope * last
        slope = 0.2 * known / (last + step * (left - half) / (left - floor))
    early, late = sizes[sizes < EARLIEST * LAYERS][-1], sizes[sizes >= LATEST * LAYERS][0]
    # straight from `begin` layers on, 3/4, 1/2 and 1/4 of it are left at 1.5, 2 and 2.5 times as many
    begin, end = (4, 12) if floor == line else (3.5, 9)
    falling = whole - known * np.maximum(sizes - begin, 0) / (2 * begin)
    found = {
        f"a cut before {EARLIEST:.0%} keeps exactly half": np.where(sizes < early, whole, floor),
        f"a cut from {LATEST:.0%} on keeps exactly half": np.where(sizes <= last, whole, floor),
        f"exactly {FLAT:.0%} is left half way": np.where(sizes <= last, whole - slope * sizes, floor),
        "the fall is exactly as long as half of the way": np.where(sizes <= end, falling, floor),
        CLEAR: np.where(sizes <= last, whole, floor),
        OTHERWISE: np.maximum(whole - (whole - floor) * sizes / (8 * step), floor),
    }
    for place, shares in zip((early, late), found.values(), strict=False):
        shares[sizes == place] = half
    return found


def heights() -> dict[str, np.ndarray]:
    """Distances [n, l] by where the last layer lies: over all sizes, and over those to half of the layers."""
    limit, sizes, to_half = float(LAST), LAYERS - 2, LAYERS // 2

    def last(near, over_all):
        far = (over_all * sizes - to_half * near - 1) / (sizes - 1 - to_half)  # of the largest size it is 1
        return true_distances(near, 0.52, far)

    at = f"the last layer lies exactly at {LAST:.0%} of the range over"
    return {
        f"{at} all sizes, and above it over those to half of the layers": last(limit + 0.05, limit),
        f"{at} all sizes, and below it over those to half of the layers": last(limit - 0.03, limit),
        f"{at} sizes to half of the layers, and above it over all": last(limit, limit + 0.03),
        f"{at} sizes to half of the layers, and below it over all": last(limit, limit - 0.03),
        CLEAR: true_distances(2.0, 0.52),
        OTHERWISE: true_distances(0.2, 0.52),
    }


def depths() -> dict[str, np.ndarray]:
    """Distances [n, l] by where the most similar blocks lie: of so many layers no mean of places is exactly DEEP."""
    near = true_distances(2.0, 0.66)
    tied, deeper = near.copy(), near.copy()
    tied[3, 12] = near[3, 11]  # of 4 layers two blocks are the most similar
    deeper[3, 12] = near[3, 11] - 0.01
    low, high = (f"{decisions.depth(truth[None])[0]:.1%}" for truth in (near, deeper))  # nothing lies between
    return {
        f"two blocks are exactly as similar: with one of them all lie at {low}, with the other at {high}": tied,
        f"the most similar blocks lie at {low}": near,
        f"the most similar blocks lie at {high}": deeper,
        CLEAR: true_distances(2.0, 0.81),
        OTHERWISE: true_distances(2.0, 0.42),
    }
