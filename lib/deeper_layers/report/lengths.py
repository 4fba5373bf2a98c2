"""How long answers become: tokens of what pruned models write, and how many answers are cut off before they end."""

import numpy as np
import pandas as pd

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.estimates import NOT_TESTED, Estimate, mean_of_items
from deeper_layers.report.names import topic
from deeper_layers.report.pairing import main_metrics

ENDS = 0.9  # of its answers the whole model ends, or a task's limit is all that is seen


def lengths(scores: pd.DataFrame) -> pd.DataFrame:
    """Written answers by cut: model, task, topic, rule, cut, size, items, value (share right), at_most (if all that was
    cut off were right), ended (share that ended by itself), of_ended (share right of these, with its interval), tokens
    (median), times (median over that of the whole model)."""
    own = scores[scores["written"].notna() & scores["healing"].isna() & scores["bits"].isna() & (scores["repeat"] == 0)]
    own = own[own["metric"] == own["task"].map(main_metrics(own))]
    asked = ["model", "task", "dtype", "shots", "limit"]
    whole = own[own["cut"] == UNPRUNED.name].drop_duplicates(asked).set_index(asked)["written"].map(np.median)
    usual_of = whole.to_dict()
    rows = []
    for one in own.sort_values([*asked, "rule", "size"], na_position="first").itertuples():
        right, ended = one.outcome == 1, one.ended == 1
        row = {name: getattr(one, name) for name in ("model", "task", "rule", "cut", "size", "items")}
        row |= {"topic": topic(one.task), "value": right.mean(), "at_most": (right | ~ended).mean()}
        row |= {"ended": ended.mean(), "tokens": float(np.median(one.written))}
        usual = usual_of.get(tuple(getattr(one, name) for name in asked), np.nan)
        row |= {"times": row["tokens"] / usual}
        told = mean_of_items(right[ended]) if ended.any() else Estimate.none(NOT_TESTED)
        rows.append(row | told.columns("of_ended"))
    names = ["model", "task", "topic", "rule", "cut", "size", "items", "value", "at_most", "ended", "of_ended"]
    return pd.DataFrame(rows, columns=[*names, "of_ended_low", "of_ended_high", "tokens", "times"])


def lengths_in_words(scores: pd.DataFrame, cut: Cut) -> list[str]:
    """A sentence for each task: how long answers are without the layers of a cut, beside the whole model's."""
    found = lengths(scores).drop_duplicates(["task", "cut"])
    ends = found[(found["cut"] == UNPRUNED.name) & (found["ended"] >= ENDS)]["task"]
    return [
        f"{one.topic}: its answers have {one.tokens:.0f} tokens (median), {one.times:.1f} times those of the whole "
        f"model; {1 - one.ended:.0%} are cut off before they end."
        for one in found[(found["cut"] == cut.name) & found["task"].isin(ends)].itertuples()
    ]
