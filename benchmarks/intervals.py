"""Intervals on data that are drawn: how often they hold the truth, which is known there. `benchmarks.verdicts` runs it.

Letters in shapes: N block sizes, L layers.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.claims import decisions, healing_decisions
from deeper_layers.report.questions import dissociation, early_cliff, geometry, given_back, regret
from deeper_layers.report.statistics import curves, outcomes, significance
from deeper_layers.report.statistics.evidence import Evidence
from tests import made_up

SHARED = 0.7  # of an item's luck, the same under every cut
LAYERS, SEQUENCES = made_up.LAYERS, 64
BEST = 8  # the start of the block that costs least


def coverage(name: str, what: str, items: int, draw: Callable, sets: int) -> dict:
    """How many of `sets` intervals hold the truth: `draw` makes one of a seed, with the truth."""
    held = 0
    for seed in range(sets):
        low, high, truth = draw(np.random.default_rng(seed), items)
        held += bool(low <= truth <= high)
    return {"interval": name, "of": what, "items": items, "held": held / sets}


def luck(draw, cuts: int, items: int) -> np.ndarray:
    """Uniform numbers, [C, I], of which those of an item go together."""
    shared = draw.random((cuts, items)) < SHARED
    return np.where(shared, draw.random(items), draw.random((cuts, items)))


def wilson(share: float) -> Callable:
    def one(draw, items):
        return *curves.wilson_interval(float((draw.random(items) < share).mean()), items), share

    return one


def pairs(before: float, after: float, interval: Callable) -> Callable:
    def one(draw, items):
        first, second = (luck(draw, 2, items) < [[before], [after]]).astype(float)
        return *interval(first, second)[1:], after - before

    return one


def losses(draw, items):
    return *significance.paired_interval(0.1 + 0.3 * draw.gamma(2, size=items), shares=False)[1:], 0.1 + 0.3 * 2


def cliff(shares: list[float], guessing: float) -> Callable:
    fractions = np.arange(len(shares)) / LAYERS
    truth = float(outcomes.crossing(np.array(shares), fractions, guessing))

    def one(draw, items):
        right = luck(draw, len(shares), items) < np.array(shares)[:, None]
        return *outcomes.cliff(right, fractions, guessing)[1:], truth

    return one


def bend(draw, items):
    fractions = np.linspace(0, 0.5, 7)
    truth = 3 + 2 * (fractions / 0.5) ** 1.5
    table = truth[:, None] + by_sequence(draw, len(truth), items)
    found = outcomes.interval(healing_decisions.bend(outcomes.resampled_means(table), fractions))
    return *found[1:], float(healing_decisions.bend(truth[None], fractions)[0])


def by_sequence(draw, cuts: int, items: int) -> np.ndarray:
    """What sequences add to a loss: mostly the same under every cut."""
    return 0.4 * draw.standard_normal(items) + 0.15 * draw.standard_normal((cuts, items))


def true_distances(near: float, depth: float, far: float | None = None) -> np.ndarray:
    """Distances [n, l] with blocks with the last layer at so much of the range of their size, or above it by far.

    `near` of sizes to half of the layers, `far` of larger ones, or the same. Of the largest only two blocks count, so
    there it is 1. The least distance of each size lies near such a depth.
    """
    found, sizes = np.full((LAYERS, LAYERS), np.nan), LAYERS - 2
    for size in range(1, LAYERS + 1):
        height = near if far is None or size <= LAYERS // 2 else far
        starts = np.arange(LAYERS - size + 1)
        row = 0.1 + 0.3 * np.abs((starts + size / 2) / LAYERS - depth) + 0.01 * size
        if size < sizes and height <= 1:
            row[-1] = row[1:-1].min() + height * np.ptp(row[1:-1])
        elif size <= sizes:
            row[-1] = row.max() + 0.1
        row[0] = 0.5
        found[size - 1, : len(row)] = row
    return found


def measured_distances(draw, truth: np.ndarray, items: int, *, each: bool = False) -> list:
    """Units of distances of so many sequences, each of which moves all of them; with `each` one by sequence too."""
    unit = made_up.distances(lambda start, size: 0.0)
    places = unit.rows["size"].to_numpy() - 1, unit.rows["start"].to_numpy()
    found = truth[places] + 0.02 * (draw.standard_normal((items, 1)) + draw.standard_normal((items, len(unit.rows))))
    unit.rows["distance"], unit.rows["stderr"] = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(items)
    unit.rows["samples"] = items
    return [unit, made_up.of_each_sequence(unit, found)] if each else [unit]


def distances(statistic: Callable, *, each: bool = False) -> Callable:
    truth = true_distances(0.95, 0.77)

    def one(draw, items):
        units = measured_distances(draw, truth, items, each=each)
        found, *_ = decisions.resampled_distances(Evidence(units), statistic)
        return *outcomes.interval(found)[1:], float(statistic(truth[None])[0])

    return one


def normal(before, after):
    """What pages had before 29 November 2026, to show what the adjustment is for."""
    differences = after - before
    half = curves.Z * differences.std(ddof=1) / np.sqrt(len(differences))
    return differences.mean(), differences.mean() - half, differences.mean() + half


def adjusted(before, after):
    return significance.paired_interval(after - before, shares=True)


def forms(draw, items):
    """D of the middle blocks: what is kept of letters less that of words."""
    cuts = [UNPRUNED, *(cut for place in (dissociation.MIDDLE, dissociation.LATE)
                                  for cut in dissociation.all_blocks(LAYERS, place))]  # fmt: skip

    def kept(whole, pruned):
        right = luck(draw, len(cuts), items) < np.array([whole, *[pruned] * (len(cuts) - 1)])[:, None]
        return dissociation.Kept(cuts, right, np.zeros(items, dtype=int), 0.25)

    found = dissociation.differences(kept(0.5, 0.35), kept(0.45, 0.4), LAYERS)[dissociation.MIDDLE]
    return *dissociation.interval(found, 1)[1:], 0.1 / 0.25 - 0.15 / 0.2


def late_words(draw, items):
    """W of a loss: what late blocks cost more than middle ones."""
    table = np.array([3.5] * 5 + [3.2] * 4)[:, None] + by_sequence(draw, 9, items)
    means = outcomes.resampled_means(table, resamples=dissociation.RESAMPLES)
    return *dissociation.interval(means[:, :5].mean(axis=1) - means[:, 5:].mean(axis=1), 1)[1:], 0.3


def early(draw, items):
    """C of the early cliff: what is kept of letters less that of words, mean over 1 to 8 layers dropped."""
    cuts = [UNPRUNED, *(Cut(1, size) for size in early_cliff.SIZES)]
    letters = np.array([0.5, 0.45, 0.39, 0.35, 0.32, 0.3, 0.28, 0.27, 0.27])
    words = np.array([0.45, 0.44, 0.43, 0.41, 0.4, 0.38, 0.36, 0.34, 0.33])
    # of a question that is hard by letter the words are hard too
    right = luck(draw, 2 * len(cuts), items).reshape(2, len(cuts), items) < np.stack([letters, words])[:, :, None]
    of_letters, of_words = (dissociation.Kept(cuts, one, np.zeros(items, dtype=int), 0.25) for one in right)
    found = (of_letters.at(cuts[1:]) - of_words.at(cuts[1:])).mean(axis=1)
    truth = ((letters[1:] - 0.25) / 0.25 - (words[1:] - 0.25) / 0.2).mean()
    return *dissociation.interval(found, 1)[1:], truth


def over_seeds(draw, seeds):
    """The difference between two ranks, each healed with the same few seeds."""
    return *significance.paired_interval(0.1 + 0.02 * draw.standard_normal(seeds), shares=False)[1:], 0.1


def share_back(draw, items):
    """The share of a loss that healing gives back."""
    means = np.array([3.0, 5.0, 3.6])
    values = list(means[:, None] + by_sequence(draw, 3, items))
    return *given_back.back(values, np.inf, shares=False)[1:], 0.7


def share_back_beside(draw, items):
    """The same beside the whole model healed alike: what that gains by healing is taken off, as given_back.py does."""
    means = np.array([3.0, 5.0, 3.5, 2.9])
    whole, pruned, healed, adapted = means[:, None] + by_sequence(draw, 4, items)
    return *given_back.back([whole, pruned, healed + (whole - adapted)], np.inf, shares=False)[1:], 0.7


def accuracy_back(whole: float, pruned: float, healed: float, guessing: float) -> Callable:
    """The share of an accuracy that healing gives back."""

    def one(draw, items):
        values = (luck(draw, 3, items) < np.array([whole, pruned, healed])[:, None]).astype(float)
        return *given_back.back(list(values), guessing, shares=True)[1:], (healed - pruned) / (whole - pruned)

    return one


def regret_of(start: int) -> Callable:
    """The regret of the block of four layers from `start` on, among all of its size."""
    losses = 3.5 + 0.1 * np.abs(np.arange(LAYERS - 3) - BEST)

    def one(draw, items):
        costs = {Cut(place, 4): loss + row for place, (loss, row) in
                 enumerate(zip(losses, by_sequence(draw, len(losses), items), strict=True))}  # fmt: skip
        every = regret.Map(LAYERS, {Cut(0, 0): 3 + by_sequence(draw, 1, items)[0]} | costs)
        found = regret.regret(every, 4, costs[Cut(start, 4)])
        return found.low, found.high, losses[start] - losses.min()

    return one


def mean_regret_of(after: int) -> Callable:
    """The mean, over four sizes, of the regrets of blocks that begin so many layers after the best of their size."""
    best = {2: 10, 4: 8, 5: 8, 7: 6}

    def one(draw, items):
        places = [Cut(start, size) for size in best for start in range(LAYERS - size + 1)]
        losses = [3.5 + 0.1 * abs(cut.start - best[cut.size]) for cut in places]
        whole, *rows = by_sequence(draw, 1 + len(places), items)
        costs = {cut: loss + row for cut, loss, row in zip(places, losses, rows, strict=True)}
        every = regret.Map(LAYERS, {UNPRUNED: 3 + whole} | costs)
        found = regret.mean_regret([regret.regret(every, n, costs[Cut(start + after, n)]) for n, start in best.items()])
        return found.low, found.high, 0.1 * after

    return one


def correlation(real: float) -> Callable:
    """The rank correlation, given n, of a measure and a cost of blocks: means over layers that have such a one."""
    truth = 6 / np.pi * np.arcsin(real / 2)  # of the ranks of two normal numbers

    def one(draw, layers):
        of_layers = draw.standard_normal((2, layers))
        of_layers[1] = real * of_layers[0] + np.sqrt(1 - real**2) * of_layers[1]
        summed = np.concatenate([np.zeros((2, 1)), of_layers.cumsum(axis=1)], axis=1)
        size, start = np.array([(n, start) for n in (3, 6, 7, 9) for start in range(layers - n + 1)]).T
        measure, cost = (summed[:, start + size] - summed[:, start]) / size
        table = pd.DataFrame({"start": start, "size": size, "distance": measure, "cost": cost})
        blocks, costs = table.drop(columns="cost"), table.drop(columns="distance")
        found, *_ = geometry.predictions(blocks, costs, "", resamples=outcomes.RESAMPLES)
        return found.low, found.high, truth

    return one


GENTLE = [0.5, 0.49, 0.46, 0.42, 0.35, 0.3, 0.27, 0.25, 0.25, 0.25]
AT_ONCE = [0.44, 0.36, 0.1, 0.04, 0.02, 0.02]  # as GSM8K falls
KINDS = [
    *(("Wilson", f"an accuracy of {share:.0%}", items, wilson(share))
      for items in (120, 150, 1140) for share in (0.25, 0.5, 0.9)),
    *((name, f"a change of accuracy from {before:.0%} to {after:.0%}", items, pairs(before, after, interval))
      for name, interval in (("paired, normal", normal), ("paired, adjusted", adjusted))
      for items in (120, 1140) for before, after in ((0.5, 0.45), (0.95, 0.95), (0.9, 0.4))),
    ("paired, t", "a difference of losses", SEQUENCES, losses),
    *(("resampled items", "a cliff", items, cliff(GENTLE, 0.25)) for items in (150, 1140)),
    ("resampled items", "a cliff between the first two cuts", 150, cliff(AT_ONCE, 0.0)),
    ("resampled sequences", "the bend of a loss", SEQUENCES, bend),
    ("drawn distances", "the place of the last layer", 256, distances(decisions.height)),
    ("drawn distances", "the depth of the most similar blocks", 256, distances(decisions.depth)),
    ("resampled sequences", "the place of the last layer", 256, distances(decisions.height, each=True)),
    ("resampled sequences", "the depth of the most similar blocks", 256, distances(decisions.depth, each=True)),
    ("resampled items", "D, what is kept of letters less that of words", 570, forms),
    ("resampled items", "C, what is kept of letters less that of words under a rule (97.5% on its page)", 1140, early),
    ("resampled sequences", "W, what late blocks cost more than middle ones", 32, late_words),
    ("t over seeds", "a difference between ranks", 3, over_seeds),
    ("resampled sequences", "the share of a loss given back", SEQUENCES, share_back),
    ("resampled sequences", "the share of a loss given back, beside the whole model healed alike", SEQUENCES,
     share_back_beside),
    *(("resampled items", f"the share of an accuracy given back, of what falls from {whole:.0%} to {pruned:.0%}", items,
       accuracy_back(whole, pruned, healed, guessing))
      for items, whole, pruned, healed, guessing in (
          (50, 0.48, 0.12, 0.12, 0.0), (50, 0.48, 0.02, 0.02, 0.0), (120, 0.95, 0.5, 0.75, 0.25),
          (570, 0.5, 0.35, 0.44, 0.25))),
    *(("resampled halves", f"the regret of a block that costs {(at - BEST) / 10} nats too much", 32, regret_of(at))
      for at in (9, 12)),
    *(("resampled halves", f"the mean regret over four sizes, of blocks that cost {after / 10:g} nats too much", 32,
       mean_regret_of(after)) for after in (0, 1)),
    *(("resampled runs", f"a rank correlation of {real} over blocks of so many layers", 28, correlation(real))
      for real in (0.0, 0.8)),
]  # fmt: skip
