"""Answers item by item, joined: those of an earlier run or look, and those to further items. No torch."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.stats import sem

from deeper_layers.cuts import Cut
from deeper_layers.packing import ITEM_BY_ITEM, pack, pack_halves, unpack

PACK = {
    "chosen": pack,
    "ended": pack,
    "logprobs": pack_halves,
    "written": lambda tokens: pack_halves(tokens[:, None]),
}
TARGETS = ""  # in place of a cut: the right choices


class Answers:
    """What came out for some first items of an order, which is known elsewhere.

    `vectors` has for each task and cut the vectors [I] or [I, K] by the name of a metric, or of ITEM_BY_ITEM; those of
    a task are in the order of its items.
    """

    def __init__(self) -> None:
        self.items = 0
        self.vectors: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)

    def add(
        self,
        rows: list[dict],
        targets: dict[str, str],
        order: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        """Join the rows of a result, and its right choices, to what is there. Metrics without outcomes are left out.

        `order` has the items in the order in which they are asked, if the rows have those of each task by number.
        """
        places = _find_places(order) if order is not None else {}
        counts: dict[str, int] = {}
        for row in rows:
            task = row["task"]
            cut = row["cut"]
            items = row["items"]
            if "outcome" in row:
                counts[task] = items
                self._append(task, cut, row["metric"], unpack(row["outcome"], items), places)
            for name in PACK.keys() & row.keys():
                self._append(task, cut, name, ITEM_BY_ITEM[name](row[name], items), places)
        for task, packed in targets.items():
            if task in counts:
                self._append(task, TARGETS, "target", unpack(packed, counts[task]), places)
        self.items += sum(counts.values())

    def _append(
        self, task: str, cut: str, name: str, vector: np.ndarray, places: dict[str, np.ndarray]
    ) -> None:
        if task in places:
            vector = vector[places[task]]
        of_cut = self.vectors[task, cut]
        of_cut[name] = _stack(of_cut[name], vector) if name in of_cut else vector

    def write_rows(self, cuts: Sequence[Cut], tasks: Sequence[str]) -> list[dict]:
        """A row for each cut, task and metric: the mean over items, its standard error, and all outcomes."""
        rows: list[dict] = []
        for cut in cuts:
            for task in tasks:
                vectors = self.vectors.get((task, cut.name), {})
                per_item = {name: PACK[name](vectors[name]) for name in PACK if name in vectors}
                metrics = [name for name in vectors if name not in PACK]
                for metric in metrics:
                    rows.append({"task": task, "metric": metric} | _average(vectors[metric]))
                    rows[-1] |= {"cut": cut.name, "outcome": pack(vectors[metric])} | per_item
                    per_item = {}  # they stand in the first row of a task and cut alone
        return rows

    def write_targets(self) -> dict[str, str]:
        """The right choices of each task, packed."""
        return {
            task: pack(of["target"]) for (task, cut), of in self.vectors.items() if cut == TARGETS
        }


def _find_places(order: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
    """By task, where among its items by number each stands that is asked, in the order of asking."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for task, number in order:
        numbers[task].append(number)
    return {task: np.searchsorted(np.sort(asked), asked) for task, asked in numbers.items()}


def _stack(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two vectors, or tables whose rows have missing values where an item has fewer choices than others."""
    if first.ndim == 1:
        return np.concatenate([first, second])
    width = max(first.shape[1], second.shape[1])
    tables = [
        np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=np.nan)
        for table in (first, second)
    ]
    return np.concatenate(tables)


def _average(outcome: np.ndarray) -> dict:
    """The mean, its standard error as lm-eval has it, and the number of items."""
    items = len(outcome)
    error = float(sem(outcome)) if items > 1 else math.nan
    return {"value": float(np.mean(outcome)), "stderr": error, "items": items}
