"""What a task counts item by item, and which items a model got right.

Not every task has such a metric: some count parts of an item (truthfulqa_mc2), others score all items together (mcc,
BLEU). Of those there are rows and no outcomes.

Letters in shapes: I items.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from deeper_layers.report.statistics.curves import main_metric
from deeper_layers.results.packing import LOGPROBS, unpack
from deeper_layers.results.units import Unit

NO_METRICS = ("chosen", "target", LOGPROBS)  # what is kept of items beside what they count as


def item_metrics(unit: Unit) -> dict[str, str]:
    """By task the metric that is 0 or 1 for each item, under every cut of a unit; a task without one is left out."""
    outcomes = unit.details.get("outcomes", {})
    first, *others = [outcomes] if unit.kind == "healing" else outcomes.values() or [{}]
    found = {}
    for task, packed in first.items():
        # a score of a model that gets nothing right may be 0 for every item, under that cut alone
        names = [name for name in packed if all(name in other.get(task, {}) for other in others)]
        if metrics := [name for name in names if name not in NO_METRICS]:
            found[task] = main_metric(metrics)
    return found


def right_items(outcomes: dict, task: str, metric: str) -> Bool[np.ndarray, " I"]:
    """Which items of a task a model got right, from its outcomes by task."""
    return unpack(outcomes[task][metric]).astype(bool)


def of_topic(unit: Unit, names: Iterable[str]) -> Bool[np.ndarray, " I"]:
    """Which items a healed model got right, of some tasks that `item_metrics` has."""
    metrics = item_metrics(unit)
    return np.concatenate([right_items(unit.details["outcomes"], name, metrics[name]) for name in names])
