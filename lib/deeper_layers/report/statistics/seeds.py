"""Whether a setting of healing matters more than the seed does: each of some values, healed with each of some seeds."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.report.statistics.healed import healed_how
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.results.units import Unit

FEWEST = 3  # seeds that each value needs: two have no interval to speak of
WORSE, BETTER, OPEN = "worse", "better", "can't be told"

Grid = dict[int | float, dict[int, Unit]]  # by value and seed


def grid(units: Iterable[Unit], like: Unit, cut: Cut, setting: str = "rank") -> Grid:
    """Healings of a cut that differ from `like` in one setting and the seed alone: values with enough common seeds.

    Empty where fewer than two values have that many.
    """
    found: Grid = {}
    for unit in units:
        if unit.kind != "healing" or Cut.of_key(unit.key["cut"]) != cut:
            continue
        if healed_how(unit, setting, "seed") == healed_how(like, setting, "seed"):
            how = unit.key["healing"]
            found.setdefault(how[setting], {})[how["seed"]] = unit
    found = {value: of_seeds for value, of_seeds in sorted(found.items()) if len(of_seeds) >= FEWEST}
    common = set.intersection(*map(set, found.values())) if len(found) > 1 else set()
    if len(common) < FEWEST:
        return {}
    return {value: {seed: of_seeds[seed] for seed in sorted(common)} for value, of_seeds in found.items()}


def widest(units: Iterable[Unit], setting: str = "rank") -> Grid:
    """Of all cuts and ways of healing the grid with most healings; empty where there is none."""
    units = list(units)
    grids = [grid(units, unit, Cut.of_key(unit.key["cut"]), setting) for unit in units]
    return max(grids, key=lambda found: sum(map(len, found.values())), default={})


def table(found: Mapping[int | float, Mapping[int, Unit]], beside: int | float) -> pd.DataFrame:
    """A row for each value: its loss by seed and over seeds, and how that differs from the value `beside`.

    Columns value, the loss (nats a token) of each seed as "seed 0", mean; change, low and high (of the mean, beside
    `beside`, seed by seed, 95%, t: so many independent runs as seeds), seen (WORSE where all of the interval lies above
    0, BETTER where below, else OPEN; none for `beside` itself).
    """
    losses = {
        value: np.array([np.mean(unit.details["by_sequence"]) for unit in of_seeds.values()])
        for value, of_seeds in found.items()
    }
    rows = []
    for value, of_seeds in losses.items():
        row: dict = {"value": value} | {f"seed {seed}": loss for seed, loss in zip(found[value], of_seeds)}
        row |= {"mean": of_seeds.mean(), "change": np.nan, "low": np.nan, "high": np.nan, "seen": None}
        if value != beside and beside in losses:
            change, low, high = paired_interval(of_seeds - losses[beside], shares=False)
            seen = WORSE if low > 0 else BETTER if high < 0 else OPEN
            row |= {"change": change, "low": low, "high": high, "seen": seen}
        rows.append(row)
    return pd.DataFrame(rows)
