"""Tests behind the verdicts: paired intervals, equivalence, Holm's correction, and how many items would decide.

scipy owns the distributions; of it scipy.special, which takes no time to import. One-sided tests are at half of ALPHA,
so that what a 95% interval shows and what its test says is the same.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri, stdtr, stdtrit

ALPHA = 0.05  # of wrong verdicts in either direction together
POWER = 0.80  # with which the number of items that is named would decide


def paired(differences: Float[np.ndarray, " I"], *, shares: bool) -> tuple[float, float, int]:
    """Mean, standard error and number of paired differences, as the tests take them.

    `shares`: of outcomes from 0 to 1. Then one item won and one lost are added (Bonett and Price 2012), without which
    items that all came out the same would leave no doubt at all.
    """
    if shares:
        differences = np.concatenate([differences, [1.0, -1.0]])
    items = len(differences)
    return float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(items), items


def paired_interval(differences: Float[np.ndarray, " I"], *, shares: bool) -> tuple[float, float, float]:
    """The mean of paired differences and its 95% interval (t); see `paired` for `shares`."""
    mean, error, items = paired(differences, shares=shares)
    half = -float(stdtrit(items - 1, ALPHA / 2)) * error
    value = float(differences.mean())
    return value, min(value, mean - half), max(value, mean + half)


def tails(differences: Float[np.ndarray, " I"], limit: float, *, shares: bool) -> tuple[float, float]:
    """One-sided p-values of a mean of paired differences (t): that it is `limit` or less, that it is `limit` or more.

    A small first one says that the mean lies above the limit, a small second one that it lies below.
    """
    mean, error, items = paired(differences, shares=shares)
    if not error:
        return float(mean <= limit), float(mean >= limit)
    score = (mean - limit) / error
    return float(stdtr(items - 1, -score)), float(stdtr(items - 1, score))


def holm(p: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979) for as many tests as there are."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected


def items_that_decide(items: int, error: float, distances: Sequence[int | float], tests: int = 1) -> float:
    """How many items would decide with a power of 80% if the value is where it was found; infinity where none would.

    `error` is the standard error from `items`, `distances` those of the value to each limit that it has to be told
    from: between two limits both tests have to succeed at once. `tests` is how many tests share ALPHA.
    """
    nearest = min(distances)
    if not (math.isfinite(error) and math.isfinite(nearest)) or nearest <= 1e-9:
        return math.inf
    bar, far = -float(ndtri(ALPHA / 2 / tests)), len(distances) - 1

    def power(precision: float) -> float:
        return sum(float(ndtr(distance * precision - bar)) for distance in distances) - far

    # of one limit the first has a power of 80%, of more all have it at the second
    low, high = ((float(ndtri(1 - (1 - POWER) / among)) + bar) / nearest for among in (1, len(distances)))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return items * (high * error) ** 2
