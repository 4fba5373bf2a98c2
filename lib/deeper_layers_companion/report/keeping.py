"""The most layers that a model can lose while every task keeps a share of its score above guessing. No torch."""

from collections.abc import Iterator

import pandas as pd

from deeper_layers_companion.report import statistics
from deeper_layers_companion.report.estimates import TIE_TOLERANCE
from deeper_layers_companion.report.pairing import returns


@returns("rule layers surely probably largest first_lost unjudged")
def find_most_dropped(scores: pd.DataFrame, share: float) -> Iterator[dict]:
    """For each rule the largest number of layers without which every task keeps at least a `share` of what the whole
    model scores above guessing, at that size and at all smaller ones that were measured.

    surely: by the lower ends of the 95% intervals; probably: by the shares themselves; largest: the most layers that
    all tasks were asked without; first_lost: the tasks that keep less at the next size; unjudged: tasks at floor and
    losses, of which nothing can be said. A rule has no row where no task can be judged.
    """
    rows = statistics.curves(scores)
    for rule, of_rule in rows.groupby("rule", sort=False):
        judged = of_rule[of_rule["kept"].notna()]
        if judged.empty:
            continue
        lower = judged.pivot(index="size", columns="task", values="kept_low").dropna()
        kept = judged.pivot(index="size", columns="task", values="kept").loc[lower.index]
        probably = find_last_kept(kept, share)
        beyond = kept[kept.index > probably].head(1)
        yield {
            "rule": rule,
            "layers": of_rule["layers"].iloc[0],
            "surely": find_last_kept(lower, share),
            "probably": probably,
            "largest": int(kept.index.max()),
            "first_lost": [task for task in kept if (beyond[task] < share).any()],
            "unjudged": sorted({*of_rule["task"]} - {*judged["task"]}),
        }


def find_last_kept(kept: pd.DataFrame, share: float) -> int:
    """The largest size, of rising ones, up to which all tasks keep at least a share."""
    is_kept = (kept >= share - TIE_TOLERANCE).all(axis=1).cummin()
    return int(kept.index[is_kept].max())
