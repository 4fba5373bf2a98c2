"""How sure a number is: one bootstrap of pairs, Wilson's interval for a single accuracy, one vocabulary of verdicts.

Items, or sequences of a text, are drawn anew with repetition, DRAWS times. A number that is drawn is an array whose
first entry is of all items and each other one of a draw: whatever is computed of the first is computed of all. Models
that share items share each draw, which hangs on the number of items and a seed alone. All intervals hold 95%. A census,
such as the losses of every block, has no interval over blocks.

Letters in shapes: I items or sequences, C cuts (the whole model first, then by size), B blocks of one size from the
first layer on, N = 1 + DRAWS.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped, UInt8
from scipy.stats import binomtest

DRAWS, PARTS = 10_000, 40  # draws in all, and in how many parts they are added up
TAILS = 0.025, 0.975
ROOM = 0.05  # accuracy that a model must surely have above guessing for anything to be seen
TIED = 1e-12  # means of answers that are the same in another order
SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
AT_FLOOR, NOT_TESTED = "at floor", "not tested"
Number = float | Float[np.ndarray, " C"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number, or one for each cut, with its 95% interval."""

    value: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan
    # of all items, then of each draw, [N] or [N, C]; empty where none were drawn
    numbers: Float[np.ndarray, "N ..."] = field(default_factory=lambda: np.empty(0), repr=False)
    untold: str = ""  # AT_FLOOR or NOT_TESTED where there is no number

    @classmethod
    def of(cls, numbers: Float[np.ndarray, "N ..."]) -> "Estimate":
        """From the number of all items and of each draw; infinity is a place like any other."""
        return cls(numbers[0], *np.nanquantile(numbers[1:], TAILS, axis=0, method="inverted_cdf"), numbers)

    @classmethod
    def combined(cls, function: Callable[..., np.ndarray], *estimates: "Estimate") -> "Estimate":
        """What `function` makes of the numbers of some estimates of the same items; untold where one of them is."""
        untold = next((one.untold for one in estimates if one.untold), "")
        return cls(untold=untold) if untold else cls.of(function(*(one.numbers for one in estimates)))

    def __iter__(self) -> Iterator["Estimate"]:
        """Those of single cuts, without their draws."""
        return itertools.starmap(Estimate, zip(self.value, self.low, self.high))

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate.combined(np.subtract, self, other)

    def against(self, floor: int | float = -math.inf, ceiling: int | float = math.inf) -> str:
        """What the interval says of a claim that the number lies from `floor` to `ceiling`: supported where all of it
        does, contradicted where nothing of it does, else inconclusive."""
        if self.untold or math.isnan(self.value):
            return self.untold or NOT_TESTED
        if self.high < floor or self.low > ceiling:
            return CONTRADICTED
        return SUPPORTED if floor <= self.low and self.high <= ceiling else INCONCLUSIVE

    def beyond(self, limit: int | float) -> str:
        """What it says of a claim that the number is at least `limit`, which lies above 0, or at most one below 0:
        supported where the number is, and its interval lies beyond 0, contradicted where all of that falls short."""
        value, *ends = (np.sign(limit) * number for number in (self.value, self.low, self.high))
        if self.untold or max(ends) < abs(limit):
            return self.untold or CONTRADICTED
        return SUPPORTED if min(ends) > 0 and value >= abs(limit) else INCONCLUSIVE

    def p_value(self) -> float:
        """Two-sided, of the number being 0: twice the share of draws beyond it, which is at least one."""
        beyond = min((self.numbers[1:] <= 0).sum(), (self.numbers[1:] >= 0).sum())
        return math.nan if self.untold else min(1.0, 2 * (beyond + 1) / len(self.numbers))

    def columns(self, name: str = "value") -> dict:
        """Columns of a frame: value, low and high, or `name`, `name`_low and `name`_high; and untold."""
        return dict(zip((name, *ends_of(name)), (self.value, self.low, self.high))) | {"untold": self.untold}


def ends_of(column: str) -> tuple[str, str]:
    """The columns of the interval of a number."""
    return ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")


# ---- draws --------------------------------------------------------------------------------------------------------


def means(table: Float[np.ndarray, "... I"], seed: int = 0) -> Float[np.ndarray, "N ..."]:
    """The mean over items: of all, then of each draw."""
    table = np.asarray(table, dtype=float)
    items = table.shape[-1]
    columns = table.reshape(-1, items).T
    drawn = [times.astype(float) @ columns / items for times in np.array_split(_times_drawn(items, seed), PARTS)]
    return np.concatenate([table.mean(axis=-1)[None], np.concatenate(drawn).reshape(-1, *table.shape[:-1])])


@functools.lru_cache(maxsize=8)  # to draw takes far longer than to add up; all draws of 14,042 items take 140 MB
def _times_drawn(items: int, seed: int) -> UInt8[np.ndarray, "DRAWS I"]:
    """How often each item is in a draw."""
    draw = np.random.default_rng(seed)
    places = (draw.integers(0, items, items, dtype=np.int32) for _ in range(DRAWS))
    return np.stack([np.bincount(of, minlength=items).astype(np.uint8) for of in places])


def mean_of_items(outcomes: Shaped[np.ndarray, "... I"]) -> Estimate:
    """The mean over items: with Wilson's interval of an accuracy, else with one that is drawn."""
    outcomes = np.asarray(outcomes, dtype=float)
    if not are_shares(outcomes):
        return Estimate.of(means(outcomes))
    return Estimate(outcomes.mean(axis=-1), *wilson(outcomes.sum(axis=-1), outcomes.shape[-1]))


def wilson(right, items) -> tuple:
    """The ends of the interval of each accuracy (Wilson 1927), of whole numbers in arrays of one shape."""
    ends = np.vectorize(lambda k, n: binomtest(round(k), int(n)).proportion_ci(method="wilson"), otypes=[float] * 2)
    return tuple(end[()] for end in ends(right, items))


def are_shares(outcomes: np.ndarray) -> bool:
    """Whether items are right or wrong: losses, parts of an item that add up, and other scores are not."""
    return bool(np.isin(outcomes, (0, 1)).all())


# ---- numbers ------------------------------------------------------------------------------------------------------


def is_at_floor(right: Float[np.ndarray, " I"], guessing: float) -> bool:
    """Whether an accuracy is not surely (Wilson) more than ROOM above guessing."""
    return bool(mean_of_items(right).low <= guessing + ROOM)


def shares_kept(right: Float[np.ndarray, "C I"], guessing: float | np.ndarray) -> Estimate:
    """Accuracy above guessing, or above that of each draw [N, C], over that of the whole model, for each cut; AT_FLOOR
    where the whole is at floor."""
    if is_at_floor(right[0], np.ravel(guessing)[0]):
        return Estimate(untold=AT_FLOOR)
    above = means(right) - guessing
    return Estimate.of(above / np.maximum(above[:, :1], 1 / right.shape[1]))  # a draw may leave the whole at guessing


def half_gone(right: Float[np.ndarray, "C I"], sizes: Sequence[int] | pd.Series, guessing: float) -> Estimate:
    """How many layers are dropped when at most half of the accuracy above guessing is first kept: one of `sizes` (0 and
    then rising, a cut each), infinity where at none. AT_FLOOR as in `shares_kept`."""
    kept = shares_kept(right, guessing)
    return Estimate.combined(lambda numbers: first_size(numbers[:, 1:] <= 0.5 + TIED, sizes[1:]), kept)


def first_size(is_so: np.ndarray, sizes: Sequence[int] | pd.Series) -> Float[np.ndarray, " N"]:
    """The first size at which something [N, C] is so; infinity where at none."""
    return np.where(is_so.any(axis=1), np.asarray(sizes, dtype=float)[is_so.argmax(axis=1)], math.inf)


def recovery(whole, pruned, healed, whole_healed=None, *, guessing: float = math.inf) -> Estimate:
    """The share of the gap between pruned and whole model that healing closes, 1 - gap after / gap before, by losses or
    scores of the same items, [I] each.

    After healing the gap is that to the whole model healed alike, as whoever heals gets used to the text too; without
    one to the whole model as it was, which is at least as large where healing helps. NOT_TESTED where the cut did not
    surely open a gap, or left a loss above that of guessing: what ruins more would seem to be healed better.
    """
    aims = whole if whole_healed is None else whole_healed
    before, cut, after, aim = means(np.stack([whole, pruned, healed, aims])).T
    gap = Estimate.of(cut - before)
    if gap.low <= 0 <= gap.high or cut[0] > guessing:
        return Estimate(untold=NOT_TESTED)
    gaps = np.where(gap.numbers == 0, np.nan, gap.numbers)  # in a draw or two of ten thousand nothing is lost
    return Estimate.of(1 - (after - aim) / gaps)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of some numbers of the same items, draw by draw."""
    return Estimate.combined(lambda *numbers: np.mean(numbers, axis=0), *estimates)


def mcnemar(one: Float[np.ndarray, " I"], other: Float[np.ndarray, " I"]) -> float:
    """The exact p-value, two-sided, of two models being right equally often on the same items."""
    lost, gained = int((one > other).sum()), int((one < other).sum())
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def holm(p: Sequence[float] | pd.Series) -> Float[np.ndarray, " N"]:
    """p-values corrected for being that many, in their order (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(1, np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1))
    return np.maximum.accumulate(corrected)[np.argsort(order)]
