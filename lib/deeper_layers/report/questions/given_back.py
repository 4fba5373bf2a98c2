"""What healing gives back of what a cut took, by the tokens spent on it: of the loss on text, and of every task.

The share given back is (healed - pruned) / (whole - pruned): 0 where healing changes nothing, 1 where the healed model
is as good as the whole one. It is told where the cut surely took something, of the same sequences and items.

Letters in shapes: I items or sequences.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers.cuts import Cut
from deeper_layers.report.questions.rivals import right_items
from deeper_layers.report.questions.two_ways import LOSS
from deeper_layers.report.statistics.evidence import of_topic, topic_of
from deeper_layers.report.statistics.outcomes import leaves_of, resampled_means
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.results.units import Unit

TOLD = 0.99  # of draws show that the cut took something, or no share of it is told
COLUMNS = ["what", "size", "start", "tokens", "items", "whole", "pruned", "healed", "value", "low", "high"]


def by_tokens(units: Iterable[Unit], like: Unit) -> dict[int, dict[Cut, Unit]]:
    """Healings that differ from `like` in nothing but the cut and the number of updates, by the tokens of training."""
    found: dict[int, dict[Cut, Unit]] = {}
    for unit in units:
        if unit.kind == "healing" and _settings(unit) == _settings(like):
            found.setdefault(unit.details["healing"]["tokens"], {})[Cut.of_key(unit.key["cut"])] = unit
    return dict(sorted(found.items()))


def table(unhealed: Unit, swept: Sequence[Unit], healed: Mapping[int, Mapping[Cut, Unit]]) -> pd.DataFrame:
    """A row for the loss and for each task, cut and number of tokens: those of COLUMNS, in the order of cuts.

    `unhealed` has the losses of the pruned models, `swept` their scores. The columns whole, pruned and healed are nats
    a token, or accuracies; value, low and high the share given back with its 95% interval, by resampled sequences or
    items, and missing where the cut did not surely take anything.
    """
    rows = []
    for tokens, of_cuts in healed.items():
        for cut, unit in of_cuts.items():
            for what, values in _measured(unhealed, swept, cut, unit).items():
                means = (float(of_model.mean()) for of_model in values)
                share = back(values, shares=what != LOSS)
                rows.append((what, cut.size, cut.start, tokens, len(values[0]), *means, *share))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(["what", "size", "start", "tokens"], ignore_index=True)


def back(values: Sequence[Float[np.ndarray, " I"]], *, shares: bool) -> tuple[float, float, float]:
    """The share given back with its interval, of what whole, pruned and healed model have.

    `shares`: of outcomes from 0 to 1, of which more is better; else of losses. Not a number where nothing was surely
    lost: by a paired test, and in all but 1% of the draws.
    """
    better = np.stack(values) if shares else -np.stack(values)  # more of it is better
    _, surely_lost, _ = paired_interval(better[0] - better[1], shares=shares)
    whole, pruned, healed = resampled_means(better).T
    told = whole > pruned  # items drawn anew may show no loss, and a share of nothing is no number
    if surely_lost <= 0 or told.mean() < TOLD:
        return (np.nan,) * 3
    share = (healed - pruned)[told] / (whole - pruned)[told]
    low, high = np.quantile(share[1:], [0.025, 0.975])
    return float(share[0]), float(low), float(high)


def _measured(
    unhealed: Unit, swept: Sequence[Unit], cut: Cut, healed: Unit
) -> dict[str, tuple[Float[np.ndarray, " I"], ...]]:
    """Of the loss and of each task what whole, pruned and healed model have, item by item; of the same items only."""
    by_cut = unhealed.details["by_sequence"]
    found = {}
    if cut.name in by_cut and len(by_cut[cut.name]) == len(healed.details["by_sequence"]):
        found[LOSS] = tuple(map(np.array, (by_cut["0,0"], by_cut[cut.name], healed.details["by_sequence"])))
    for unit in swept:
        whole, pruned = right_items(unit, Cut(0, 0)), right_items(unit, cut)
        if whole is None or pruned is None:
            continue
        names = sorted(task for leaf in leaves_of(unit) for task in leaf.details["outcomes"][cut.name])
        if not set(names) <= set(healed.details["outcomes"]):
            continue
        after = of_topic(healed, names)
        if len(after) == len(whole):
            found[topic_of(unit.name)] = tuple(right.astype(float) for right in (whole, pruned, after))
    return found


def _settings(unit: Unit) -> dict:
    # which documents are read, and how many steps the warm-up takes, follow from the budget
    key = {name: value for name, value in unit.key.items() if name not in ("cut", "data")}
    budget = ("steps", "warmup_steps")
    return key | {"healing": {name: value for name, value in key["healing"].items() if name not in budget}}
