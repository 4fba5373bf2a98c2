"""Two ways of healing one pruned model, pair by pair: what the same sequences and items gain by the second."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from deeper_layers.report.statistics.items import item_metrics, of_topic
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.report.statistics.topics import set_of
from deeper_layers.results.units import Unit

LOSS = "loss on text"
MARGIN = 0.02  # nats a token: another seed of healing moved the loss by less, on every model where that was measured


def compared(first: Unit, second: Unit, known: Collection[str]) -> pd.DataFrame:
    """A row for the loss on text and for each set of items that two units of healing have in common.

    Columns what, items, first and second (nats a token, or accuracies), change, low, high (of the second beside the
    first, with the 95% interval over pairs) and seen: "better" or "worse" where the interval is on one side of 0, for a
    loss beyond `MARGIN` of it; "no difference seen" else, and "not known" for sets that are not in `known`: what the
    whole model does not surely know no healing gives back.
    """
    tasks = [task for task in item_metrics(first) if task in item_metrics(second)]
    topics = {topic: [task for task in tasks if set_of(task) == topic] for topic in map(set_of, tasks)}
    pairs = {LOSS: [unit.details["by_sequence"] for unit in (first, second)]} | {
        topic: [of_topic(unit, names) for unit in (first, second)] for topic, names in topics.items()
    }
    rows = []
    for what, (before, after) in pairs.items():
        is_loss = what == LOSS
        change, low, high = paired_interval(np.asarray(after, float) - np.asarray(before, float), shares=not is_loss)
        gain, margin = ((-high, -low), MARGIN) if is_loss else ((low, high), 0.0)
        seen = "better" if gain[0] > margin else "worse" if gain[1] < -margin else "no difference seen"
        seen = seen if is_loss or what in known else "not known"
        means = [sum(map(float, values)) / len(values) for values in (before, after)]
        rows.append((what, len(before), *means, change, low, high, seen))
    columns = ["what", "items", "first", "second", "change", "low", "high", "seen"]
    return pd.DataFrame(rows, columns=columns)
