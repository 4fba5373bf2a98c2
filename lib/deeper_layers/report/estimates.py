"""How sure a number is: one bootstrap of pairs, Wilson's interval for a single accuracy, one vocabulary of verdicts.

Items, or sequences of a text, are drawn anew with repetition, DRAWS times, and models that share them share each draw:
whatever is computed of several models is computed of the same items. The draw hangs on the number of items and a seed
alone, so numbers of different calls are paired too. All intervals hold 95%. A census, such as the losses of every
block, has no interval over blocks.

Letters in shapes: I items or sequences, C cuts (the whole model first, then by size), B blocks of one size from the
first layer on, T calibration sequences, D draws.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from deeper_layers.errors import InputError

DRAWS, PART = 10_000, 250  # draws in all, and at once: of 14,042 items these take 14 MB
MOST_KEPT = 4000  # items of which all draws are kept: 40 MB
TAILS = 0.025, 0.975
ROOM = 0.05  # accuracy that a model must surely have above guessing for anything to be seen
TIED = 1e-12  # means of answers that are the same in another order
SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
AT_FLOOR, NOT_TESTED = "at floor", "not tested"


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its 95% interval, and what was drawn for it.

    Attributes:
        draws: the number of each draw, [D], in the order of all other estimates; empty where none were drawn.
        untold: AT_FLOOR or NOT_TESTED where there is no number; all of them are nan then.
    """

    value: float
    low: float
    high: float
    draws: Float[np.ndarray, " D"] = field(default_factory=lambda: np.empty(0), repr=False)
    untold: str = ""

    @classmethod
    def of(cls, value: float, draws: Float[np.ndarray, " D"]) -> "Estimate":
        """From the number of all items and those of items drawn anew; infinity is a place like any other."""
        low, high = np.quantile(draws[~np.isnan(draws)], TAILS, method="inverted_cdf")
        return cls(float(value), float(low), float(high), draws)

    @classmethod
    def none(cls, untold: str) -> "Estimate":
        return cls(math.nan, math.nan, math.nan, np.full(DRAWS, math.nan), untold)

    def __truediv__(self, unit: int | float) -> "Estimate":
        """The same in other units: layers as a share of all of them."""
        return Estimate(self.value / unit, self.low / unit, self.high / unit, self.draws / unit, self.untold)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two numbers of the same items, draw by draw."""
        untold = self.untold or other.untold
        return Estimate.none(untold) if untold else Estimate.of(self.value - other.value, self.draws - other.draws)

    def against(self, floor: int | float = -math.inf, ceiling: int | float = math.inf) -> str:
        """What the interval says of a claim that the number lies from `floor` to `ceiling`: one of five words.

        Supported where all of the interval does, contradicted where nothing of it does, else inconclusive.
        """
        if self.untold or math.isnan(self.value):
            return self.untold or NOT_TESTED
        if self.high < floor or self.low > ceiling:
            return CONTRADICTED
        return SUPPORTED if floor <= self.low and self.high <= ceiling else INCONCLUSIVE

    def p_value(self) -> float:
        """Two-sided, of the number being 0: twice the share of draws beyond it, which is at least one."""
        beyond = min((self.draws <= 0).sum(), (self.draws >= 0).sum())
        return math.nan if self.untold else min(1.0, 2 * (beyond + 1) / (len(self.draws) + 1))

    def columns(self, name: str = "") -> dict[str, float]:
        """Columns of a frame: value, low and high, or `name`, `name`_low and `name`_high."""
        low, high = (f"{name}_low", f"{name}_high") if name else ("low", "high")
        return {name or "value": self.value, low: self.low, high: self.high}


# ---- draws --------------------------------------------------------------------------------------------------------


def means(table: Float[np.ndarray, "C I"], seed: int = 0) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, "D C"]]:
    """The mean of each row, of all items and of each draw of them. Raises InputError where there are no items."""
    table = np.asarray(table, dtype=float)
    items = table.shape[1]
    if not items:
        raise InputError("there are no items, expected one or more to draw from")
    # sums of whole numbers are exact in 32 bits up to 16 million, and take half the time
    is_exact = (table == np.rint(table)).all() and items * np.abs(table).max() < 2**24
    kind = np.float32 if is_exact else np.float64
    columns = table.T.astype(kind)
    times = _kept_draws(items, seed) if items <= MOST_KEPT else _times_drawn(items, seed)
    drawn = [part.astype(kind) @ columns for part in times]
    return table.mean(axis=1), np.concatenate(drawn).astype(float) / items


@functools.lru_cache(maxsize=8)
def _kept_draws(items: int, seed: int) -> list[UInt8[np.ndarray, "PART I"]]:
    """The same kept for the next question of so many items: to draw takes far longer than to add up."""
    return [times.astype(np.uint8) for times in _times_drawn(items, seed)]


def _times_drawn(items: int, seed: int) -> Iterator[Float[np.ndarray, "PART I"]]:
    """How often each item is in a draw, PART draws at a time."""
    draw = np.random.default_rng(seed)
    rows = np.arange(PART)[:, None] * items
    for _ in range(DRAWS // PART):
        places = draw.integers(0, items, (PART, items), dtype=np.int32) + rows
        yield np.bincount(places.ravel(), minlength=PART * items).reshape(PART, items)


# ---- numbers ------------------------------------------------------------------------------------------------------


def accuracy(right: Float[np.ndarray, " I"]) -> Estimate:
    """The share of items that are right, with Wilson's interval (1927)."""
    from scipy.stats import binomtest  # slow

    found = binomtest(int(np.sum(right)), len(right)).proportion_ci(method="wilson")
    return Estimate(float(np.mean(right)), float(found.low), float(found.high))


def drawn_means(table: Float[np.ndarray, "C I"]) -> list[Estimate]:
    """The mean of each row with the interval of its draws."""
    return estimates_of(*means(table))


def each_mean(outcomes: Float[np.ndarray, "C I"]) -> list[Estimate]:
    """The mean of each row of outcomes: Wilson's interval of an accuracy, else one that is drawn."""
    outcomes = np.asarray(outcomes, dtype=float)
    return list(map(accuracy, outcomes)) if are_shares(outcomes) else drawn_means(outcomes)


def are_shares(outcomes: np.ndarray) -> bool:
    """Whether items are right or wrong: losses, parts of an item that add up, and other scores are not."""
    return bool(np.isin(outcomes, (0, 1)).all())


def estimates_of(values: Float[np.ndarray, " C"], draws: Float[np.ndarray, "D C"]) -> list[Estimate]:
    return [Estimate.of(value, drawn) for value, drawn in zip(values, draws.T, strict=True)]


def difference(one: Float[np.ndarray, " I"], other: Float[np.ndarray, " I"]) -> Estimate:
    """Mean of `one` less mean of `other`, of the same items."""
    return drawn_means(np.subtract(one, other, dtype=float)[None])[0]


def shares_kept(right: Float[np.ndarray, "C I"], guessing: float) -> list[Estimate]:
    """Accuracy above guessing over that of the whole model, for each cut; AT_FLOOR where the whole has none to lose.

    It has where its accuracy is surely (Wilson) more than ROOM above guessing.
    """
    if is_at_floor(right[0], guessing):
        return [Estimate.none(AT_FLOOR)] * len(right)
    return estimates_of(*(_shares(mean, guessing, right.shape[1]) for mean in means(right)))


def half_gone(right: Float[np.ndarray, "C I"], sizes: Sequence[int] | pd.Series, guessing: float) -> Estimate:
    """How many layers are dropped when at most half of the accuracy above guessing is first kept.

    It is the first of `sizes` (0 and then rising, a cut each) at which that is so, and infinity where at none: nothing
    is read off between two cuts, so it is at most as fine as they are. AT_FLOOR as in `shares_kept`.
    """
    if is_at_floor(right[0], guessing):
        return Estimate.none(AT_FLOOR)
    found, pruned = [], np.asarray(sizes, dtype=float)[1:]
    for mean in means(right):
        gone = _shares(mean, guessing, right.shape[1])[..., 1:] <= 0.5 + TIED
        found.append(np.where(gone.any(axis=-1), pruned[gone.argmax(axis=-1)], math.inf))
    return Estimate.of(float(found[0]), found[1])


def recovery(
    whole: Float[np.ndarray, " I"],
    pruned: Float[np.ndarray, " I"],
    healed: Float[np.ndarray, " I"],
    whole_healed: Float[np.ndarray, " I"] | None = None,
    *,
    guessing: float = math.inf,
) -> Estimate:
    """The share of the gap between pruned and whole model that healing closes: 1 - gap after / gap before.

    After healing the gap is that to the whole model healed alike, as whoever heals gets used to the text too; without
    one to the whole model as it was, which is at least as large where healing helps. Losses or scores, all of the same
    items. NOT_TESTED where the cut did not surely open a gap, or left a loss above that of guessing: that has no upper
    end, and what ruins more would seem to be healed better.
    """
    value, draws = means(np.stack([whole, pruned, healed, whole if whole_healed is None else whole_healed]))
    gap = Estimate.of(value[1] - value[0], draws[:, 1] - draws[:, 0])
    if gap.low <= 0 <= gap.high or value[1] > guessing:
        return Estimate.none(NOT_TESTED)
    gaps = np.where(gap.draws == 0, np.nan, gap.draws)  # in a draw or two of ten thousand nothing is lost
    return Estimate.of(1 - (value[2] - value[3]) / gap.value, 1 - (draws[:, 2] - draws[:, 3]) / gaps)


def regret(blocks: Float[np.ndarray, "B I"], own: Float[np.ndarray, " I"]) -> Estimate:
    """How much more a cut costs than the best block of its size, in units of `blocks`, the costs of each.

    The best block is found on one half of the items and judged on the other, both ways round: else it would be
    flattered by the items that chose it.
    """
    return _regret(blocks, np.concatenate([blocks, [own]]), len(blocks), np.full(DRAWS, len(blocks)))


def regret_of_nearest(blocks: Float[np.ndarray, "B I"], distances: Float[np.ndarray, "B T"]) -> Estimate:
    """The same of the block with the least mean distance, whose choice is drawn anew with the calibration sequences.

    `distances` are those of the blocks of `blocks` on each calibration sequence.
    """
    near, drawn = means(distances, seed=2)  # other sequences than those of the costs, so another draw
    return _regret(blocks, blocks, int(near.argmin()), drawn.argmin(axis=1))


def regret_of_block(blocks: Float[np.ndarray, "B I"], pick: int) -> float:
    """The regret of a block, without an interval."""
    halves = [blocks[:, half::2].mean(axis=1)[None] for half in (0, 1)]
    return float(_over_best(halves, np.array([pick]), len(blocks))[0])


def _regret(blocks: np.ndarray, costs: np.ndarray, pick: int, picks: np.ndarray) -> Estimate:
    (one, drawn), (other, drawn_other) = (means(costs[:, half::2], seed=half) for half in (0, 1))
    value = _over_best([one[None], other[None]], np.array([pick]), len(blocks))
    return Estimate.of(value[0], _over_best([drawn, drawn_other], picks, len(blocks)))


def _over_best(halves: Sequence[np.ndarray], pick: np.ndarray, blocks: int) -> np.ndarray:
    """How much more picks cost, [D], than the best of the first blocks, by mean costs on each half of the items."""
    found = []
    for chosen, judged in (halves, halves[::-1]):
        best = chosen[:, :blocks] <= chosen[:, :blocks].min(axis=1, keepdims=True) + TIED
        least = (judged[:, :blocks] * best).sum(axis=1) / best.sum(axis=1)
        found.append(judged[np.arange(len(judged)), pick] - least)
    return np.mean(found, axis=0)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of some numbers of the same items, draw by draw."""
    untold = next((one.untold for one in estimates if one.untold), "")
    if untold or not estimates:
        return Estimate.none(untold or NOT_TESTED)
    return Estimate.of(np.mean([one.value for one in estimates]), np.mean([one.draws for one in estimates], axis=0))


def mcnemar(one: Float[np.ndarray, " I"], other: Float[np.ndarray, " I"]) -> float:
    """The exact p-value, two-sided, of two models being right equally often on the same items."""
    from scipy.stats import binomtest  # slow

    lost, gained = int((one > other).sum()), int((one < other).sum())
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def holm(p: Sequence[float]) -> Float[np.ndarray, " N"]:
    """p-values corrected for being that many, in their order (Holm 1979)."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return corrected


def is_at_floor(right: Float[np.ndarray, " I"], guessing: float) -> bool:
    """Whether an accuracy is not surely more than ROOM above guessing."""
    return bool(accuracy(right).low <= guessing + ROOM)


def _shares(accuracies: np.ndarray, guessing: float, items: int) -> np.ndarray:
    above = accuracies - guessing
    return above / np.maximum(above[..., :1], 1 / items)  # a draw may leave the whole model at guessing
