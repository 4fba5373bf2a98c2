"""Which units of healing are of one healed model, and which of models healed alike.

What a healed model was asked is no part of what it is: several units may hold the answers of one.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence

import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.report.statistics.items import item_metrics
from deeper_layers.report.statistics.topics import set_of, shots, shots_by_set
from deeper_layers.results.units import Unit

ASKED = ("tasks", "limit", "limits", "data")  # which documents heal follows from the budget and the seed


def healed_how(unit: Unit, *without: str) -> dict:
    """The settings of a healing but its cut, what it was asked, and some of its own."""
    how = {name: value for name, value in unit.key["healing"].items() if name not in without}
    return unit.settings("cut", *ASKED) | {"healing": how}


def way_of(unit: Unit) -> str:
    """The same as JSON, without the model: one key for all models healed in one way."""
    how = healed_how(unit)
    return json.dumps({name: how[name] for name in how if name != "model"}, sort_keys=True)


def asked_alike(healed: Unit, sweeps: Sequence[Unit]) -> bool:
    """Whether a healed model was asked the tasks of some sweeps of one set, with as many examples in their prompts."""
    names = [unit.name for unit in sweeps]
    number = shots(names[0], sweeps[0].key["num_fewshot"])
    return set(names) <= item_metrics(healed).keys() and shots_by_set(healed).get(set_of(names[0])) == number


def by_cut(units: Iterable[Unit]) -> dict[Cut, Unit]:
    """Of healings in one way those of each cut as one unit."""
    of_cuts: dict[Cut, list[Unit]] = {}
    for unit in units:
        of_cuts.setdefault(Cut.of_key(unit.key["cut"]), []).append(unit)
    return {cut: _as_one(of_cut) for cut, of_cut in of_cuts.items()}


def _as_one(units: list[Unit]) -> Unit:
    """The first unit with what all of them were asked and answered."""
    first, *others = units
    if not others:
        return first
    tasks, limits, details = {}, {}, {"outcomes": {}, "levels": {}}
    for unit in reversed(units):
        tasks |= unit.key["tasks"]
        limits |= {task: unit.key.get("limits", {}).get(task, unit.key["limit"]) for task in unit.key["tasks"]}
        for name, found in details.items():
            found |= unit.details[name]
    rows = pd.concat([unit.rows for unit in units]).drop_duplicates(["task", "metric"], ignore_index=True)
    key = first.key | {"tasks": tasks, "limits": limits}
    return dataclasses.replace(first, key=key, rows=rows, details=first.details | details)
