"""What pruning does to each item: answers that flip, paired changes, where the cliff is.

Two models that answer the same items are compared item by item. An accuracy that stays can hide as many
answers lost as gained (Dutta et al. 2024, arXiv 2407.09141).

Letters in shapes: C cuts, I items.
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.report.statistics import significance
from deeper_layers.report.statistics.joined import joined
from deeper_layers.report.thresholds import KEPT
from deeper_layers.results.packing import unpack
from deeper_layers.results.units import Unit, part_of

RESAMPLES = 2000
PART = 250  # resamples that are multiplied with a table at once
UNKNOWN = 255  # an answer that no model named


def leaves_of(unit: Unit) -> list[Unit]:
    """The units of the tasks of a group, or a task's own unit alone; one for each task, with all cuts that it has.

    Raises InputError where one of them is no longer there.
    """
    if "units" not in unit.details:
        return [unit]
    leaves = [part_of(unit, name) for name in unit.details["units"]]
    for name, leaf in zip(unit.details["units"], leaves, strict=True):
        if leaf is None:
            raise InputError(f"{unit.path.name} stands on {name}, which is missing: measure it again")
    return joined(leaves)


def outcomes_of(
    unit: Unit, cuts: Sequence[Cut], what: str = "acc", *, task: str | None = None
) -> UInt8[np.ndarray, "C I"]:
    """What came out for each item under each cut: 0 or 1 for a metric, a number for "chosen".

    `task` is one of a group's, and None takes the items of all.
    Raises InputError for a cut, a metric or a task that the unit does not have.
    """
    rows, leaves = [], leaves_of(unit)
    for cut in cuts:
        row = []
        for leaf in leaves:
            found = leaf.details["outcomes"].get(cut.name)
            if found is None:
                raise InputError(f"{leaf.path and leaf.path.name} has no {cut}: it was measured for other cuts")
            for name, packed in found.items():
                if task not in (None, name):
                    continue
                if what not in packed:
                    raise InputError(f"{name} has no outcomes {what!r}, expected one of {', '.join(packed)}")
                row.append(unpack(packed[what]))
        if not row:
            raise InputError(f"task is {task!r}, which {unit.name} has not")
        rows.append(np.concatenate(row))
    return np.stack(rows)


def has_outcomes(unit: Unit, what: str, *, task: str | None = None) -> bool:
    """Whether `outcomes_of` finds this under every cut of a unit: what is no 0 or 1 for an item is not kept."""
    by_cut = [of_cut for leaf in leaves_of(unit) for of_cut in leaf.details["outcomes"].values()]
    return all(what in packed for of_cut in by_cut for name, packed in of_cut.items() if task in (None, name))


def changes(unit: Unit, cuts: Sequence[Cut], what: str = "acc", *, task: str | None = None) -> pd.DataFrame:
    """Every pruned model against the whole one, item by item.

    Columns size, start, items, change (of accuracy), low, high (its 95% interval, t, over pairs), lost and
    gained (shares of items that were right and are wrong, or the other way), flipped (share whose answer is
    another one, right or wrong; missing where a task has no choices), p (exact McNemar test).
    """
    cuts = list(cuts)
    right = outcomes_of(unit, [UNPRUNED, *cuts], what, task=task).astype(bool)
    try:
        chosen = outcomes_of(unit, [UNPRUNED, *cuts], "chosen", task=task)
    except InputError:
        chosen = None
    rows = []
    for number, cut in enumerate(cuts, 1):
        before, after = right[0], right[number]
        change, low, high = significance.paired_interval(after.astype(float) - before, shares=True)
        lost, gained = int((before & ~after).sum()), int((~before & after).sum())
        rows.append({
            "size": cut.size, "start": cut.start, "items": len(before), "change": change, "low": low, "high": high,
            "lost": lost / len(before), "gained": gained / len(before),
            "flipped": math.nan if chosen is None else float((chosen[number] != chosen[0]).mean()),
            "p": mcnemar(lost, gained),
        })  # fmt: skip
    return pd.DataFrame(rows)


def mcnemar(lost: int, gained: int) -> float:
    """Probability of a split at least as uneven if losing and gaining were equally likely (exact, two-sided)."""
    from scipy.stats import binomtest  # slow

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def cliff(
    right: UInt8[np.ndarray, "C I"] | Bool[np.ndarray, "C I"],
    fractions: Sequence[int | float] | np.ndarray,
    guessing: float,
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Where accuracy falls: the fraction dropped at which half of what lies above guessing is gone.

    Parameters
    ----------
    right: whether each item is right, the rows in the order of `fractions`, which begin with 0: the whole model.
    guessing: accuracy of guessing, by chance or by the commonest answer.

    Returns the position, by straight lines between the cuts, and its 95% interval from resampled items. A curve
    that does not fall so far has its cliff beyond the last cut: infinity.
    Raises InputError where fractions do not rise from 0.
    """
    fractions = np.asarray(fractions, dtype=float)
    if len(fractions) != len(right) or fractions[0] != 0 or (np.diff(fractions) <= 0).any():
        raise InputError(f"fractions are {fractions.tolist()}, expected one a row, rising from 0 (the whole model)")
    means = resampled_means(right.astype(float), resamples=resamples, seed=seed)
    return interval(crossing(means, fractions, guessing))


def resampled_means(
    table: Float[np.ndarray, "C I"], *, resamples: int | None = None, seed: int = 0
) -> Float[np.ndarray, "R C"]:
    """The mean of each row, [C]: first of all items, then of items drawn anew, with repetition.

    `resamples` None is RESAMPLES. Two tables resampled apart, by other seeds, can be compared number by number.
    """
    items = table.shape[1]
    draws = _draws(items, RESAMPLES if resamples is None else resamples, seed)
    return np.concatenate([table.mean(axis=1)[None], *(times @ table.T / items for times in draws)])


@functools.lru_cache(maxsize=16)
def _draws(items: int, resamples: int, seed: int) -> list[UInt8[np.ndarray, "R I"]]:
    """How often each item is drawn in each resample, some resamples at a time: the same for all tables as wide."""
    draw = np.random.default_rng(seed)
    drawn = [np.bincount(draw.integers(0, items, items), minlength=items).astype(np.uint8) for _ in range(resamples)]
    return [np.array(drawn[start : start + PART]) for start in range(0, resamples, PART)]


def interval(found: Float[np.ndarray, " R"]) -> tuple[float, float, float]:
    """The first of resampled values, and the 95% interval of the others; infinity is a place like any other."""
    low, high = np.quantile(found[1:], [0.025, 0.975], method="nearest")
    return float(found[0]), float(low), float(high)


def crossing(
    accuracy: Float[np.ndarray, "*R C"],
    fractions: Float[np.ndarray, " C"],
    guessing: float,
    share: float = 0.5,
    *,
    final: bool = False,
) -> Float[np.ndarray, "*R"]:
    """The fraction dropped at which only a share of what lies above guessing is left; infinity where more stays.

    The first one of a curve that rises again; with `final` the last, from which on no more than that is left.
    """
    level = guessing + share * (accuracy[..., :1] - guessing)
    below, cuts = accuracy < level, accuracy.shape[-1]
    # the first cut below, 0 where there is none; or that after the last cut above, past the end where it is the last
    after = cuts - np.argmax(~below[..., ::-1], axis=-1) if final else np.argmax(below, axis=-1)
    reached = (after > 0) & (after < cuts)
    after = np.clip(after, 1, cuts - 1)[..., None]
    over, under = (np.take_along_axis(accuracy, place, axis=-1) for place in (after - 1, after))
    part = (over - level) / np.where(over > under, over - under, 1.0)
    place = (fractions[after - 1] + part * (fractions[after] - fractions[after - 1]))[..., 0]
    nothing = accuracy[..., 0] <= guessing  # to fall from
    return np.where(nothing, 0.0, np.where(reached, place, math.inf))


def at(
    accuracy: Float[np.ndarray, "R C"], fractions: Float[np.ndarray, " C"], places: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """Each curve at a place of its own, by straight lines between the cuts."""
    after = np.clip(np.searchsorted(fractions, places), 1, len(fractions) - 1)
    part = (places - fractions[after - 1]) / (fractions[after] - fractions[after - 1])
    rows = np.arange(len(accuracy))
    return accuracy[rows, after - 1] + part * (accuracy[rows, after] - accuracy[rows, after - 1])


# ---- what is kept, and what guessing gives --------------------------------------------------------------------


def kept(unit: Unit, cuts: Sequence[Cut], what: str = "acc", *, task: str | None = None) -> pd.DataFrame:
    """Whether each pruned model answers as well as the whole one, by pairs and with a stated margin.

    Columns size, start, items, change, low, high (of accuracy, 95%, see `significance.paired`), seen: "kept" where two
    one-sided tests say that the change lies within KEPT, "lost" where the change surely lies below 0, else
    "undecided"; and needed: how many items would show it kept if nothing had changed at all (power 80%).
    """
    cuts = list(cuts)
    right = outcomes_of(unit, [UNPRUNED, *cuts], what, task=task).astype(float)
    rows = []
    for cut, after in zip(cuts, right[1:], strict=True):
        change, low, high = significance.paired_interval(after - right[0], shares=True)
        seen = "kept" if -KEPT < low and high < KEPT else "lost" if high < 0 else "undecided"
        _, error, items = significance.paired(after - right[0], shares=True)
        needed = significance.items_that_decide(items, error, [KEPT, KEPT])
        rows.append((cut.size, cut.start, right.shape[1], change, low, high, seen, needed))
    return pd.DataFrame(rows, columns=["size", "start", "items", "change", "low", "high", "seen", "needed"])


def sizes_seen(table: pd.DataFrame, seen: str) -> str:
    """The sizes of `kept` that are "kept", "lost" or "undecided", in words: "2 to 6, 9"; "none" where there is none."""
    return in_runs(table.loc[table["seen"] == seen, "size"]) or "none"


def in_runs(numbers: Iterable[int]) -> str:
    """Whole numbers in words, those that follow each other together: "2 to 6, 9"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def right_answers(outcomes: dict[str, dict], task: str) -> UInt8[np.ndarray, " I"]:
    """The number of each item's right choice, as far as one of the models under some cut chose it; UNKNOWN else."""
    answers = None
    for of_cut in outcomes.values():
        packed = of_cut.get(task, {})
        if not {"chosen", "acc"} <= packed.keys():
            return np.empty(0, dtype=np.uint8)
        chosen = unpack(packed["chosen"])
        answers = np.full(len(chosen), UNKNOWN, dtype=np.uint8) if answers is None else answers
        answers = np.where(unpack(packed["acc"]) == 1, chosen, answers)
    return np.empty(0, dtype=np.uint8) if answers is None else answers


def best_constant(answers: Sequence[np.ndarray]) -> float:
    """Accuracy of always naming one choice, the best of them, on items of many tasks; 0 where no choices are known.

    Items whose right choice no model named count as wrong, so the true one may be a little higher.
    """
    every = np.concatenate([*answers, np.empty(0, dtype=np.uint8)])
    counts = np.bincount(every, minlength=UNKNOWN + 1)[:UNKNOWN]
    return float(counts.max() / len(every)) if len(every) else 0.0
