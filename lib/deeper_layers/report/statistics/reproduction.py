"""Published numbers beside the same measured again: whether each lies within the published interval."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.report.statistics.curves import Z, accuracy_by_rule, of_cut, title
from deeper_layers.report.statistics.outcomes import outcomes_of
from deeper_layers.results.units import Unit

COLUMNS = ["what", "size", "start", "published", "low", "high", "again", "within"]


def distances_again(published: Unit | None, again: Unit, cuts: Sequence[Cut]) -> pd.DataFrame:
    """The distance of every cut's block, published and measured again on fewer sequences.

    Columns as COLUMNS; the interval is the published distance's, as wide as the standard errors of both say (95%).
    What was not published is missing, and lies within nothing.
    """
    rows = []
    for cut in cuts:
        found = [_distance(unit, cut) for unit in (published, again)]
        (value, error), (new, its_error) = found
        half = Z * math.hypot(error, its_error)
        rows.append(("Angular distance", cut.size, cut.start, value, value - half, value + half, new))
    return _judged(rows)


def accuracies_again(published: Unit | None, again: Unit, cuts: Sequence[Cut]) -> pd.DataFrame:
    """Accuracy under every cut, published and measured again on the same items; columns as COLUMNS.

    The interval is the published one (95%, Wilson). What was not published is missing.
    """
    layers, cuts = again.details["num_layers"], list(cuts)
    new = accuracy_by_rule(again.rows, {"": cuts}, layers)
    old = new.iloc[:0] if published is None else accuracy_by_rule(published.rows, {"": cuts}, layers)
    columns = ["task", "size", "start", "value"]
    table = new[columns].merge(old[[*columns, "low", "high"]], "left", ["task", "size", "start"], suffixes=("_new", ""))
    return _judged([
        (title(row.task), row.size, row.start, row.value, row.low, row.high, row.value_new)
        for row in table.itertuples(index=False)
    ])  # fmt: skip


def same_answers(published: Unit, again: Unit, cuts: Sequence[Cut]) -> tuple[int, int]:
    """How many answers are the published ones, item by item, and of how many."""
    old, new = (outcomes_of(unit, cuts, "chosen") for unit in (published, again))
    return int((old == new).sum()), int(np.size(new))


def _distance(unit: Unit | None, cut: Cut) -> tuple[float, float]:
    """Mean distance of a cut's block and its standard error."""
    if unit is None:
        return math.nan, math.nan
    row = of_cut(unit.rows, cut).iloc[0]
    return float(row["distance"]), float(row["stderr"])


def _judged(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS[:-1])
    return table.assign(within=table["again"].between(table["low"], table["high"]))
