"""The answer so far, in words: half gone and the score of each cut, with intervals that hold at all looks. No torch."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from tabulate import tabulate

from deeper_layers_companion.report.estimates import Estimate
from deeper_layers_companion.report.names import format_number
from deeper_layers_companion.report.pairing import find_measurements
from deeper_layers_companion.report.stopping import (
    PRECISE,
    SURELY_AT_FLOOR,
    Look,
    StoppingRule,
    Tally,
    find_distance,
    look_at,
)
from deeper_layers_companion.results.schema import ACCURACY

# by whether it surely is at floor
NOT_ABLE = {
    True: "the whole model is surely not above guessing",
    False: "the whole model is not surely above guessing yet",
}


class Seen(NamedTuple):
    """One look at one curve: a task under the cuts of a rule."""

    task: str
    rule: str | None
    metric: str
    cuts: pd.DataFrame  # size and start of each, the whole model first
    layers: int
    guessing: float
    look: Look

    @property
    def sizes(self) -> list[int]:
        return self.cuts["size"].astype(int).tolist()

    @property
    def has_half_gone(self) -> bool:
        """Whether there is one cut of each size, so that half gone has a meaning."""
        return bool(self.cuts["size"].is_unique)


def find_looks(scores: pd.DataFrame, rule: StoppingRule) -> list[Seen]:
    """A look at each curve of the rows of `results.scores` whose items are right or wrong."""
    found: list[Seen] = []
    for curve in find_measurements(scores[scores["metric"] != "loss"]):
        if not curve.has_whole or len(curve.cuts) < 2:
            continue
        sizes = curve.cuts["size"].astype(int).tolist()
        right = curve.outcomes.astype(int)
        look = look_at(Tally.of(right), sizes, curve.layers, curve.guessing, rule)
        _, task, chosen_by = curve.place
        chosen_by = None if pd.isna(chosen_by) else chosen_by
        metric = curve.cuts["metric"].iloc[0]
        found.append(Seen(task, chosen_by, metric, curve.cuts, curve.layers, curve.guessing, look))
    return found


def find_reason(seen: Sequence[Seen]) -> str | None:
    """Why asking stops before the last item; None if it goes on, as one curve at least is not known well enough."""
    if not all(one.look.stops for one in seen):
        return None
    return SURELY_AT_FLOOR if all(one.look.is_at_floor for one in seen) else PRECISE


def describe_half_gone(seen: Seen) -> str:
    """Half gone with its interval, or why it has no number: "4 (3 to 6)"."""
    if not seen.look.is_able:
        return f"not known: {NOT_ABLE[bool(seen.look.is_at_floor)]}"
    return describe_sizes(seen.look.half_gone, seen.sizes)


def describe_sizes(half_gone: Estimate, sizes: Sequence[int]) -> str:
    """A number of layers with its interval; infinity is more than the largest of `sizes`."""
    ends = [float(end) for end in (half_gone.value, half_gone.low, half_gone.high)]
    value, low, high = (
        f"more than {sizes[-1]}" if math.isinf(end) else f"{end:.0f}" for end in ends
    )
    return value if value == low == high else f"{value} ({low} to {high})"


def describe_line(seen: Sequence[Seen], rule: StoppingRule) -> str:
    """The answer so far in one line."""
    if rule.decides == ACCURACY:
        widest = max(float(find_distance(one.look.accuracies).max()) for one in seen)
        return f"every accuracy within {widest:.3f} either way"
    several = len({one.task for one in seen}) > 1
    parts: list[str] = []
    for one in seen:
        words = f"half gone without {describe_half_gone(one)} of {one.layers} layers"
        if one.rule:
            words += f" by {one.rule}"
        if not one.look.is_able:
            words = NOT_ABLE[bool(one.look.is_at_floor)]
        parts.append(f"{one.task}: {words}" if several else words)
    return "; ".join(dict.fromkeys(parts))  # rules share their whole model


def write_tables(seen: Sequence[Seen]) -> Iterator[str]:
    """Yield a table for each task: the score of each cut, a column for each rule, and half gone below."""
    for task in dict.fromkeys(one.task for one in seen):
        of_task = [one for one in seen if one.task == task]
        first = of_task[0]
        head = (
            f"{task}, {first.metric}: {int(first.look.items)} items, guessing {first.guessing:.2f}"
        )
        columns = [_list_scores(one) for one in of_task]
        names = [one.rule or "given" for one in of_task]
        labels = list(dict.fromkeys(itertools.chain.from_iterable(columns)))
        by_size = first.has_half_gone
        rows = []
        for label in labels:
            cells = [column.get(label, "") for column in columns]
            rows.append([_write_label(label, by_size), *cells])
        if by_size:
            rows.append(["half gone", *map(describe_half_gone, of_task)])
        table = tabulate(
            rows, ["n" if by_size else "n, l*", *names], tablefmt="plain", disable_numparse=True
        )
        yield f"{head}\n{table}"


def _list_scores(seen: Seen) -> dict[tuple, str]:
    """By the size of each cut, and its start where sizes are not distinct, its accuracy in words."""
    found: dict[tuple, str] = {}
    for size, start, estimate in zip(seen.cuts["size"], seen.cuts["start"], seen.look.accuracies):
        label = (int(size),) if seen.has_half_gone or not size else (int(size), int(start))
        found[label] = format_number(estimate, digits=3)
    return found


def _write_label(label: tuple, by_size: bool) -> str:
    return str(label[0]) if by_size or len(label) == 1 else f"{label[0]}, {label[1]}"


def tabulate_half_gone(seen: Sequence[Seen]) -> list[dict]:
    """For JSON, as rows of `statistics.half_gone_table`: missing numbers are None, as are those beyond the largest."""
    rows: list[dict] = []
    for one in seen:
        if not one.has_half_gone or not one.look.is_able:
            continue
        ends = [
            float(end)
            for end in (one.look.half_gone.value, one.look.half_gone.low, one.look.half_gone.high)
        ]
        value, low, high = (None if math.isinf(end) else end for end in ends)
        row = {"task": one.task, "rule": one.rule, "value": value, "low": low, "high": high}
        rows.append(row | {"sizes": one.sizes, "largest": one.sizes[-1]})
    return rows
