"""Estimates with 95% intervals: one paired bootstrap, Wilson's interval for a single accuracy, one set of verdicts.

Draws say too little where few items decide: of nothing right in 200 answers each draw is 0. So where fewer than FEW
items do, differences and shares kept have the intervals that follow from Wilson's (`differ`, `shares_kept`).

The bootstrap draws items, or sequences of a text, with replacement, DRAWS times. A drawn number is an array: its first
entry is computed from all items, each other entry from one draw, by the same formula. Models that share items share the
draws, which depend only on the number of items and a seed. A census, such as the losses of every block, has no interval
over blocks.

Letters in shapes: I items or sequences, C cuts (the whole model first, then by size), B blocks of one size from the
first layer on, N = 1 + DRAWS.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped, UInt8
from scipy.stats import binomtest

DRAWS = 10_000  # their number
PARTS = 40  # in which they are summed
TAILS = 0.025, 0.975
FEW = 10  # items that decide a number: with fewer its interval is not that of draws
FLOOR_MARGIN = 0.05  # a model must surely be this much above guessing, or its task is at floor
TIE_TOLERANCE = 1e-12  # means of equal numbers in another order differ by less
SUPPORTED = "supported"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
AT_FLOOR = "at floor"
NOT_TESTED = "not tested"
Number = float | Float[np.ndarray, "..."]  # of looks too, where there are several


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number, or one for each cut, with its 95% interval."""

    value: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan
    # from all items, then from each draw, [N] or [N, C]; empty without draws
    numbers: Float[np.ndarray, "N ..."] = field(default_factory=lambda: np.empty(0), repr=False)
    no_value_reason: str = ""  # why there is no number: AT_FLOOR or NOT_TESTED
    # whether fewer than FEW items decide, so that draws are not its interval
    few: bool | np.bool | Bool[np.ndarray, " C"] = False

    @classmethod
    def of(cls, numbers: Float[np.ndarray, "N ..."]) -> "Estimate":
        """The estimate from the number of all items and of each draw, which may be infinite."""
        return cls(
            numbers[0], *np.nanquantile(numbers[1:], TAILS, axis=0, method="inverted_cdf"), numbers
        )

    @classmethod
    def combine(cls, function: Callable[..., np.ndarray], *estimates: "Estimate") -> "Estimate":
        """The estimate of a function of some estimates of the same items; no_value_reason if one of them is."""
        no_value_reason = next(
            (estimate.no_value_reason for estimate in estimates if estimate.no_value_reason), ""
        )
        if no_value_reason:
            return cls(no_value_reason=no_value_reason)
        return cls.of(function(*(estimate.numbers for estimate in estimates)))

    def __iter__(self) -> Iterator["Estimate"]:
        """The estimates of the single cuts, without their draws."""
        return itertools.starmap(Estimate, zip(self.value, self.low, self.high))

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate.combine(np.subtract, self, other)

    def mean_over(self, is_chosen: np.ndarray | pd.Series) -> "Estimate":
        """The mean over the cuts for which `is_chosen`, [C], is true. Where few items decide each of them, its ends are
        the means of their ends, as if all erred together."""
        mean = Estimate.combine(lambda numbers: numbers[:, is_chosen].mean(axis=1), self)
        if mean.no_value_reason or not np.all(np.broadcast_to(self.few, len(is_chosen))[is_chosen]):
            return mean
        return replace(
            mean, low=self.low[is_chosen].mean(), high=self.high[is_chosen].mean(), few=True
        )

    def at_level(self, level: float) -> "Estimate":
        """The same number with its interval at another level, such as 0.975."""
        if self.no_value_reason:
            return self
        tails = (1 - level) / 2, (1 + level) / 2
        low, high = np.nanquantile(self.numbers[1:], tails, axis=0, method="inverted_cdf")
        return replace(self, low=low, high=high)

    def judge(self, floor: int | float = -math.inf, ceiling: int | float = math.inf) -> str:
        """The verdict on a claim that the number lies from `floor` to `ceiling`: supported if the whole interval lies
        there, contradicted if nothing of it does, else inconclusive."""
        if self.no_value_reason or math.isnan(self.value):
            return self.no_value_reason or NOT_TESTED
        if self.high < floor or self.low > ceiling:
            return CONTRADICTED
        return SUPPORTED if floor <= self.low and self.high <= ceiling else INCONCLUSIVE

    def judge_beyond(self, limit: int | float) -> str:
        """The verdict on a claim that the number is at least a positive `limit`, or at most a negative one: supported
        if it is, and its interval excludes 0; contradicted if the whole interval falls short of the limit."""
        sign = np.sign(limit)
        ends = sign * self.low, sign * self.high
        if self.no_value_reason:
            return self.no_value_reason
        if max(ends) < abs(limit):
            return CONTRADICTED
        return SUPPORTED if min(ends) > 0 and sign * self.value >= abs(limit) else INCONCLUSIVE

    def columns(self, name: str = "value") -> dict:
        """As columns of a frame: value, low and high, or `name`, `name`_low and `name`_high; and no_value_reason."""
        low, high = interval_columns(name)
        return {
            name: self.value,
            low: self.low,
            high: self.high,
            "no_value_reason": self.no_value_reason,
        }


def interval_columns(column: str) -> tuple[str, str]:
    """The names of the columns with the ends of a number's interval."""
    return ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")


# ---- draws --------------------------------------------------------------------------------------------------------


def resample(table: Float[np.ndarray, "... I"], seed: int = 0) -> Float[np.ndarray, "N ..."]:
    """The mean over all items, then over the items of each draw."""
    table = np.asarray(table, dtype=float)
    items = table.shape[-1]
    columns = table.reshape(-1, items).T
    draws = [
        counts.astype(float) @ columns / items
        for counts in np.array_split(_draw_counts(items, seed), PARTS)
    ]
    return np.concatenate(
        [table.mean(axis=-1)[None], np.concatenate(draws).reshape(-1, *table.shape[:-1])]
    )


@functools.lru_cache(
    maxsize=8
)  # drawing takes far longer than adding up; the draws of 14,042 items take 140 MB
def _draw_counts(items: int, seed: int) -> UInt8[np.ndarray, "DRAWS I"]:
    """How often each draw has each item."""
    random = np.random.default_rng(seed)
    places = (random.integers(0, items, items, dtype=np.int32) for _ in range(DRAWS))
    return np.stack(
        [np.bincount(draw_places, minlength=items).astype(np.uint8) for draw_places in places]
    )


def estimate_mean(outcomes: Shaped[np.ndarray, "... I"]) -> Estimate:
    """The mean over items, with Wilson's interval for an accuracy, else with that of the bootstrap."""
    outcomes = np.asarray(outcomes, dtype=float)
    if not are_shares(outcomes):
        return Estimate.of(resample(outcomes))
    return Estimate(
        outcomes.mean(axis=-1), *wilson_interval(outcomes.sum(axis=-1), outcomes.shape[-1])
    )


def wilson_interval(right, items) -> tuple:
    """The ends of the interval of each accuracy (Wilson 1927), from arrays of whole numbers of one shape."""
    ends = np.vectorize(
        lambda k, n: binomtest(round(k), int(n)).proportion_ci(method="wilson"), otypes=[float] * 2
    )
    return tuple(end[()] for end in ends(right, items))


def are_shares(outcomes: np.ndarray) -> bool:
    """Whether all outcomes are 0 or 1, wrong or right, unlike losses and other scores."""
    return bool(np.isin(outcomes, (0, 1)).all())


# ---- where few items decide ---------------------------------------------------------------------------------------


def differ(second: Shaped[np.ndarray, "*rows I"], first: Shaped[np.ndarray, "... I"]) -> Estimate:
    """The mean of `second` minus that of `first`, of the same items. Of right and wrong answers that differ on fewer
    than FEW items the interval is Newcombe's for paired shares (1998, method 10)."""
    second = np.asarray(second, dtype=float)
    first = np.asarray(first, dtype=float)
    estimate = Estimate.of(resample(second - first))
    few = are_shares(second) and are_shares(first) and (second != first).sum(axis=-1) < FEW
    if not np.any(few):
        return estimate
    value, low, high = _find_wilson_ends(second)
    first_value, first_low, first_high = _find_wilson_ends(first)
    correlation = _correlate(second, first)

    def join(own: Number, other: Number) -> Number:
        return np.sqrt(np.maximum(own**2 - 2 * correlation * own * other + other**2, 0))

    difference = value - first_value
    low_end = difference - join(value - low, first_high - first_value)
    high_end = difference + join(high - value, first_value - first_low)
    low_end = np.where(few, low_end, estimate.low)[()]
    high_end = np.where(few, high_end, estimate.high)[()]
    return replace(estimate, low=low_end, high=high_end, few=few)


def _find_wilson_ends(right: Float[np.ndarray, "*rows I"]) -> tuple:
    """The accuracy, and the ends of its interval."""
    estimate = estimate_mean(right)
    return estimate.value, estimate.low, estimate.high


def _correlate(
    second: Float[np.ndarray, "*rows I"], first: Float[np.ndarray, "... I"]
) -> np.ndarray:
    """The correlation of answers to the same items; see `correlate_counts`."""
    both = (second * first).sum(axis=-1)
    return correlate_counts(both, second.sum(axis=-1), first.sum(axis=-1), first.shape[-1])


def correlate_counts(both, right, first_right, items) -> np.ndarray:
    """The correlation phi of answers to the same items, corrected for continuity as Newcombe has it, from the numbers
    of items that both, one and the other have right; 0 where one of the two has all items right, or all wrong."""
    product = items * both - right * first_right  # ad - bc, times the number of items
    corrected = np.where(product > 0, np.maximum(product - items / 2, 0), product)
    spread = np.sqrt(right * (items - right) * first_right * (items - first_right))
    return np.divide(corrected, spread, out=np.zeros(np.shape(corrected)), where=spread > 0)


def _find_ratio_ends(
    above: Float[np.ndarray, "3 C"],
    whole_above: Float[np.ndarray, "3 C"],
    correlation: Float[np.ndarray, " C"],
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """The interval of a ratio from those of its parts (Donner and Zou 2012: variance estimates recovered); each part is
    a value with low and high, and the lower one below is positive."""
    value, low, high = above
    whole, whole_low, whole_high = whole_above

    def solve(end, reach, sign):
        """The ratio R at which the interval of value - R * whole ends at 0."""
        own = np.abs(end - value)
        scale = whole**2 - reach**2
        middle = value * whole - correlation * own * reach
        return (
            middle + sign * np.sqrt(np.maximum(middle**2 - scale * (value**2 - own**2), 0))
        ) / scale

    down = whole - whole_low
    up = whole_high - whole
    low_end = solve(low, np.where(low >= 0, up, down), -1)
    high_end = solve(high, np.where(high >= 0, down, up), 1)
    return low_end, high_end


# ---- numbers ------------------------------------------------------------------------------------------------------


def is_at_floor(right: Float[np.ndarray, " I"], guessing: float) -> bool:
    """Whether the lower end of an accuracy's interval is at most FLOOR_MARGIN above guessing."""
    return bool(estimate_mean(right).low <= guessing + FLOOR_MARGIN)


def shares_kept(right: Float[np.ndarray, "C I"], guessing: float | np.ndarray) -> Estimate:
    """The accuracy above guessing of each cut, as a share of the whole model's; AT_FLOOR if that is at floor.
    `guessing` may be one number for each draw and cut, [N, C].

    Where a cut leaves fewer than FEW items right, or differs from the whole model on fewer, the interval follows from
    Wilson's of both accuracies (`_find_ratio_ends`), with guessing held fixed."""
    if is_at_floor(right[0], np.ravel(guessing)[0]):
        return Estimate(no_value_reason=AT_FLOOR)
    above = resample(right) - guessing
    kept = Estimate.of(
        above / np.maximum(above[:, :1], 1 / right.shape[1])
    )  # in a draw the whole model may only guess
    few = (right.sum(axis=1) < FEW) | ((right != right[0]).sum(axis=1) < FEW)
    few[0] = False  # what the whole model keeps of itself is sure
    if not few.any():
        return kept
    level = np.broadcast_to(guessing, above.shape)[0]
    own = np.stack(_find_wilson_ends(right)) - level
    of_whole = np.stack(_find_wilson_ends(np.broadcast_to(right[0], right.shape))) - level
    low, high = _find_ratio_ends(own, of_whole, _correlate(right, right[0]))
    return replace(
        kept, low=np.where(few, low, kept.low), high=np.where(few, high, kept.high), few=few
    )


def half_gone(
    right: Float[np.ndarray, "C I"], sizes: Sequence[int] | pd.Series, guessing: float
) -> Estimate:
    """The first of `sizes` (0, then rising, one for each cut) at which at most half of the accuracy above guessing is
    kept; infinity if there is none. AT_FLOOR as in `shares_kept`."""
    return find_half_gone(shares_kept(right, guessing), sizes)[0]


def find_half_gone(kept: Estimate, sizes: Sequence[int] | pd.Series) -> tuple[Estimate, Estimate]:
    """The first size at which at most half is kept, and the first from which it stays so, from `shares_kept`."""

    def find_first(numbers: np.ndarray) -> np.ndarray:
        return find_first_size(numbers[:, 1:] <= 0.5 + TIE_TOLERANCE, sizes[1:])

    def find_last(numbers: np.ndarray) -> np.ndarray:
        is_gone = (
            numbers[:, :0:-1] <= 0.5 + TIE_TOLERANCE
        )  # from the largest size down to the smallest
        stays_gone = np.logical_and.accumulate(is_gone, axis=1)[:, ::-1]
        return find_first_size(stays_gone, sizes[1:])

    return Estimate.combine(find_first, kept), Estimate.combine(find_last, kept)


def find_first_size(
    is_so: Bool[np.ndarray, "... C"], sizes: Sequence[int] | pd.Series
) -> Float[np.ndarray, "..."]:
    """The first size at which `is_so` is true; infinity if there is none."""
    return np.where(
        is_so.any(axis=-1), np.asarray(sizes, dtype=float)[is_so.argmax(axis=-1)], math.inf
    )


def recovery(whole, pruned, healed, whole_healed=None, *, guessing: float) -> Estimate:
    """The share of the gap between pruned and whole model that healing closes: 1 - gap after / gap before, from losses
    or right answers to the same items, [I] each.

    The gap after healing is that to the whole model healed in the same way, as healing adapts any model to its text.
    Without `whole_healed` it is the gap to the whole model itself, which is larger where healing helps. NOT_TESTED if
    the cut did not surely take something, or left a loss above guessing: a ruined model would seem to recover best.
    AT_FLOOR if the whole model's answers are no better than `guessing`.
    """
    is_accuracy = are_shares(np.stack([whole, pruned, healed]))
    if is_accuracy and is_at_floor(whole, guessing):
        return Estimate(no_value_reason=AT_FLOOR)
    aim_outcomes = whole if whole_healed is None else whole_healed
    before, pruned_means, after, aim = resample(np.stack([whole, pruned, healed, aim_outcomes])).T
    change = differ(pruned, whole)
    is_cost_sure = change.high < 0 if is_accuracy else change.low > 0
    if not is_cost_sure or (not is_accuracy and pruned_means[0] > guessing):
        return Estimate(no_value_reason=NOT_TESTED)
    gap = pruned_means - before
    gaps = np.where(gap == 0, np.nan, gap)  # in a few draws of ten thousand nothing is lost
    return Estimate.of(1 - (after - aim) / gaps)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several estimates of the same items, draw by draw."""
    return Estimate.combine(lambda *numbers: np.mean(numbers, axis=0), *estimates)


def mean_of_drawn(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of what was drawn at random, such as the picks of a random rule or seeds of healing, which are drawn
    anew too. Five picks are too few to resample, so each draw of items moves their mean by its standard error times
    Student's t."""
    if len(estimates) == 1:
        return estimates[0]

    def average(*numbers: np.ndarray) -> np.ndarray:
        error = np.std(numbers, axis=0, ddof=1) / math.sqrt(len(numbers))
        moves = np.random.default_rng(0).standard_t(len(numbers) - 1, len(error))
        moves[0] = 0.0  # the number itself
        return np.mean(numbers, axis=0) + moves * error

    return Estimate.combine(average, *estimates)


def mcnemar_p_value(first: Float[np.ndarray, " I"], second: Float[np.ndarray, " I"]) -> float:
    """The exact two-sided p-value of two models being right equally often on the same items."""
    lost = int((first > second).sum())
    gained = int((first < second).sum())
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
