"""Measurements that differ in nothing but their cuts, taken together: some blocks today and the others tomorrow.

A cut that several of them have counts once, as the unit with most cuts has it, the whole model among them. So each cut
is held against the whole model of one unit: on another processor a few answers may fall out another way.
"""

import dataclasses
import json
from collections.abc import Iterable

import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.results.units import Unit

BY_CUT = ("outcomes", "by_sequence")  # of the details those that have an entry for each cut
ROW = ("task", "metric", "start", "size", "cut")  # by which a row is known


def together(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units in lists of those alike in all but their cuts: that with most cuts first, then those that add some."""
    found: dict[tuple[str, str, str], list[Unit]] = {}
    for unit in units:
        alike = json.dumps(unit.settings("cuts"), sort_keys=True)
        found.setdefault((unit.kind, unit.name, alike), []).append(unit)
    return [_that_add(of_key) for of_key in found.values()]


def joined(units: Iterable[Unit]) -> list[Unit]:
    """For each of the lists of `together` one unit with all of its cuts; its file and provenance are the first's."""
    return [_as_one(of_key) for of_key in together(units)]


def _cuts(unit: Unit) -> list[Cut]:
    return [Cut.of_key(key) for key in unit.key.get("cuts", [])]


def _that_add(units: list[Unit]) -> list[Unit]:
    found, have = [], set()
    for unit in sorted(units, key=lambda unit: -len(_cuts(unit))):
        if not found or set(_cuts(unit)) - have:
            found.append(unit)
            have.update(_cuts(unit))
    return found


def _as_one(units: list[Unit]) -> Unit:
    first, *others = units
    if not others:
        return first
    details = dict(first.details)
    for name in BY_CUT:
        if name in details:
            details[name] = {}
            for unit in reversed(units):  # the first has the last word
                details[name] |= unit.details[name]
    if "units" in details:  # of a group
        details["units"] = [name for unit in units for name in unit.details["units"]]
    cuts = dict.fromkeys(cut for unit in units for cut in _cuts(unit))
    row = [name for name in ROW if name in first.rows]
    rows = pd.concat([unit.rows for unit in units]).drop_duplicates(row, ignore_index=True)
    return dataclasses.replace(first, key=first.key | {"cuts": [cut.key for cut in cuts]}, rows=rows, details=details)
