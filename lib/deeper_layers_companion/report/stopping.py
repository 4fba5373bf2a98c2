"""When to stop asking: intervals that hold at all planned looks together, and the rule of stopping. No torch.

Items are asked in a random order (`data.order_items`), all cuts together. After planned numbers of items the answer so
far is looked at, and asking stops where it is precise enough. An interval at 95% that is looked at ten times, and
believed where it looks best, fails far more often than one time in twenty. So the level is shared among the planned
looks (Bonferroni): each of K looks fails at most 0.05 / K of the time, and all of them hold together 95% of the time.

Half is gone where a cut keeps at most half of what the whole model scores above guessing. With accuracies a of the cut
and w of the whole model that is 2a - w <= guessing: the sign of one number, with one interval, for each cut.

Letters in shapes: I items asked so far, C cuts (the whole model first, then by size), ... any number of replays, looks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import norm

from deeper_layers.checks import MANY, check_whole_number
from deeper_layers.errors import InputError
from deeper_layers_companion.report.estimates import (
    FLOOR_MARGIN,
    TIE_TOLERANCE,
    Estimate,
    correlate_counts,
    find_first_size,
)
from deeper_layers_companion.results.schema import ACCURACY, HALF_GONE

FIRST_LOOK = 30
LEVEL = 0.95
# why asking stops
PRECISE = "precise enough"
SURELY_AT_FLOOR = "surely at floor"
ALL_ASKED = "all items asked"
OUT_OF_TIME = "out of time"
UP_TO_LIMIT = "limit reached"
Array = np.ndarray
Flags = Bool[Array, "..."] | np.bool  # of several looks, or of one


def plan_looks(limit: int, first: int = FIRST_LOOK) -> tuple[int, ...]:
    """The numbers of items after which the answer is looked at: `first`, twice as many each time, and `limit`, the
    most that are asked. Raises InputError for a number below 1."""
    check_whole_number("limit", limit, 1, MANY)
    check_whole_number("first", first, 1, MANY)
    looks: list[int] = []
    items = first
    while items < limit:
        looks.append(items)
        items *= 2
    return (*looks, limit)


@dataclass(frozen=True)
class StoppingRule:
    """When asking stops; it stands in the result, as `as_settings` gives it.

    Attributes:
        precision: how far the ends of an interval may lie from its number: as a share of the model's layers for half
            gone, as a share of the items for accuracies; None: nothing is ever precise enough.
        looks: numbers of items, rising; the last one is the limit.
        decides: what has to be precise, HALF_GONE or every ACCURACY.
        level: of all looks together.
    """

    precision: float | None
    looks: tuple[int, ...]
    decides: str = HALF_GONE
    level: float = LEVEL

    def __post_init__(self):
        if self.precision is not None and not 0 < self.precision < 1:
            raise InputError(
                f"precision is {self.precision}, expected a share between 0 and 1: 0.05 is usual"
            )
        if self.decides not in (HALF_GONE, ACCURACY):
            raise InputError(
                f"decides is {self.decides!r}, expected {HALF_GONE!r} or {ACCURACY!r}: choose one of them"
            )
        if not self.looks or list(self.looks) != sorted(set(self.looks)):
            raise InputError(
                f"looks is {self.looks}, expected numbers of items that rise: plan_looks gives some"
            )

    @property
    def error(self) -> float:
        """How often an interval of one look may fail, so that all looks together hold at `level`."""
        return (1 - self.level) / len(self.looks)

    def as_settings(self) -> dict:
        """The rule as it stands in a result, which JSON can hold."""
        return asdict(self) | {"looks": list(self.looks)}


# ---- intervals ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """How many of the items asked so far each cut has right: all that intervals need.

    Attributes:
        items: their number; an array where there are several looks.
        right: [..., C], right answers.
        both: [..., C], those that the whole model has right too.
    """

    items: Int[Array, "..."] | np.integer
    right: Shaped[Array, "... C"]
    both: Shaped[Array, "... C"]

    @classmethod
    def of(cls, right: Shaped[Array, "C I"]) -> "Tally":
        """The tally of right (1) and wrong (0) answers to the items asked so far."""
        last = cls.at([right.shape[1]], right)
        return cls(last.items[0], last.right[0], last.both[0])

    @classmethod
    def at(cls, looks: Sequence[int], right: Shaped[Array, "... C I"]) -> "Tally":
        """The tallies at several looks K, from right and wrong answers in the order in which they are asked: items
        [K], right and both [..., K, C]."""
        ends = np.array(looks)
        right = np.asarray(right, dtype=np.int32)
        both = right * right[..., :1, :]
        by_look = [
            np.moveaxis(np.cumsum(counted, axis=-1)[..., ends - 1], -1, -2)
            for counted in (right, both)
        ]
        return cls(ends, *by_look)


def find_accuracy_ends(tally: Tally, z: float) -> tuple[Float[Array, "... C"], ...]:
    """The accuracy of each cut, and the ends of its interval (Wilson 1927) of `z` standard errors."""
    items = np.asarray(tally.items, dtype=float)[..., None]
    share = tally.right / items
    part = z**2 / items
    centre = (share + part / 2) / (1 + part)
    half = z / (1 + part) * np.sqrt((share * (1 - share) + part / 4) / items)
    return share, centre - half, centre + half


def find_margin_ends(tally: Tally, guessing: float, z: float) -> tuple[Float[Array, "... C"], ...]:
    """Of each cut by how much it keeps more than half, 2a - w - guessing, which is at most 0 where half is gone; and
    the ends of its interval: from those of both accuracies and the correlation of their answers (Newcombe 1998; Donner
    and Zou 2012)."""
    items = np.asarray(tally.items, dtype=float)[..., None]
    share, low, high = find_accuracy_ends(tally, z)
    whole = share[..., :1]
    whole_low = low[..., :1]
    whole_high = high[..., :1]
    correlation = correlate_counts(tally.both, tally.right, tally.right[..., :1], items)

    def reach(own: Array, others: Array) -> Array:
        return np.sqrt(np.maximum(own**2 - 2 * correlation * own * others + others**2, 0))

    margin = 2 * share - whole - guessing
    down = reach(2 * (share - low), whole_high - whole)
    up = reach(2 * (high - share), whole - whole_low)
    return margin, margin - down, margin + up


def find_half_gone_ends(
    tally: Tally, sizes: Sequence[int], guessing: float, error: float
) -> tuple[Float[Array, "..."], ...]:
    """Half gone, the first of `sizes` (0, then rising) at which at most half is kept, and the ends of its interval,
    each of which fails at most `error` / 2 of the time; infinity where no size is.

    The lower end is the first size that does not surely keep more than half: only the true size can make it wrong. The
    upper end is the first size that has surely lost half: every smaller size than the true one can make it wrong, and
    so the sizes share its error.
    """
    margin, low, _ = find_margin_ends(tally, guessing, float(norm.isf(error / 2)))
    shared = error / 2 / max(1, len(sizes) - 1)
    _, _, high = find_margin_ends(tally, guessing, float(norm.isf(shared)))
    value = find_first_size(margin[..., 1:] <= TIE_TOLERANCE, sizes[1:])
    lower = find_first_size(low[..., 1:] <= 0, sizes[1:])
    upper = find_first_size(high[..., 1:] <= 0, sizes[1:])
    return value, lower, upper


# ---- looks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """The answer so far, from the items asked; arrays where there are several looks.

    Attributes:
        items: their number.
        accuracies: of each cut, [..., C].
        half_gone: in layers; infinite beyond the largest size. It counts only where the whole model `is_able`.
        is_able: whether the whole model is surely above guessing.
        is_at_floor: whether it surely is not: half gone has no number, however many items are asked.
        is_precise: whether what decides is as precise as the rule wants it.
    """

    items: Int[Array, "..."] | np.integer
    accuracies: Estimate
    half_gone: Estimate
    is_able: Flags
    is_at_floor: Flags
    is_precise: Flags

    @property
    def stops(self) -> Flags:
        """Whether asking stops before the last item."""
        return self.is_precise | self.is_at_floor

    @property
    def reason(self) -> str:
        """Why asking stops at this one look; ALL_ASKED where nothing but the number of items stops it."""
        if self.is_at_floor:
            return SURELY_AT_FLOOR
        return PRECISE if self.is_precise else ALL_ASKED


def look_at(
    tally: Tally, sizes: Sequence[int], layers: int, guessing: float, rule: StoppingRule
) -> Look:
    """The answer so far, and whether it is enough.

    Args:
        tally: of the whole model, then of the cut of each further size.
        sizes: layers dropped: 0, then rising.
        layers: of the whole model.
        guessing: the accuracy of the better way to guess, known from the items.
        rule: it says at which numbers of items to look: only these share the level.
    """
    accuracies = Estimate(*find_accuracy_ends(tally, float(norm.isf(rule.error / 2))))
    half_gone = Estimate(*find_half_gone_ends(tally, sizes, guessing, rule.error))
    floor = guessing + FLOOR_MARGIN
    is_able = accuracies.low[..., 0] > floor
    precision = 0 if rule.precision is None else rule.precision
    if rule.decides == ACCURACY:
        is_at_floor = np.zeros_like(is_able)
        is_precise = find_distance(accuracies).max(axis=-1) <= precision
    else:
        is_at_floor = accuracies.high[..., 0] <= floor
        is_precise = is_able & (find_distance(half_gone) <= precision * layers)
    if rule.precision is None:
        is_precise = np.zeros_like(is_able)
    return Look(tally.items, accuracies, half_gone, is_able, is_at_floor, is_precise)


def find_distance(estimate: Estimate) -> Float[Array, "..."] | np.floating:
    """How far the further end of an interval lies from its number: 0 where it and both ends are infinite, which is
    surely beyond the largest size."""
    ends = np.stack([estimate.low, estimate.high])
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        apart = np.where(ends == estimate.value, 0.0, np.abs(ends - estimate.value))
    return apart.max(axis=0)
