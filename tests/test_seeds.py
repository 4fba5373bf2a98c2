"""A setting of healing beside the seed: which healings are alike, and what differences over seeds say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.report.questions.two_ways import MARGIN
from deeper_layers.report.statistics import seeds
from deeper_layers.report.statistics.healed import healed_how
from deeper_layers.results.units import Unit, all_units
from tests.test_choices import healed_unit

CUT = Cut(1, 2)
NOISE = np.random.default_rng(0).normal(0, 0.3, 40)


def healed(rank: int, seed: int, loss: float, cut: Cut = CUT, **more):
    unit = healed_unit(cut, loss + NOISE - NOISE.mean())
    key = unit.key | {"healing": unit.key["healing"] | {"rank": rank, "seed": seed, **more}, "data": f"of seed {seed}"}
    return dataclasses.replace(unit, key=key)


UNITS = [healed(rank, seed, 3 + 0.1 * seed + shift) for rank, shift in ((2, 0.2), (8, 0.0)) for seed in range(3)]


def test_published_seeds_differ_by_less_than_two_ways_have_to():
    """As notebooks/03-healing.ipynb says beside its margin: healings that differ in their seed alone, of one rank."""
    found: dict[str, list[Unit]] = {}
    for unit in all_units(kind="healing"):
        how = json.dumps([unit.key["cut"], healed_how(unit, "seed")], sort_keys=True)
        found.setdefault(how, []).append(unit)
    spreads = {}
    for units in found.values():
        loss = [np.mean(unit.details["by_sequence"]) for unit in units]
        rank = units[0].key["healing"]["rank"]
        if len({unit.key["healing"]["seed"] for unit in units}) > 1:
            spreads[rank] = max(spreads.get(rank, 0.0), np.ptp(loss))
    assert max(spreads.values()) < MARGIN
    page = (Path(__file__).parents[1] / "notebooks" / "03-healing.ipynb").read_text(encoding="utf-8")
    widest = spreads.pop(max(spreads, key=lambda rank: spreads[rank]))
    told = f"by up to {max(spreads.values()):.2f} (seeds of another rank, measured later, by up to {widest:.3f})"
    assert told in page


def test_alike_but_for_rank_and_seed():
    like = UNITS[3]
    others = [
        healed(64, 0, 2.9), healed(64, 1, 2.9),  # two seeds alone
        healed(2, 4, 3.0, cut=Cut(2, 2)), healed(2, 5, 3.0, learning_rate=0.2), healed(2, 6, 3.0),
    ]  # fmt: skip
    found = seeds.grid([*UNITS, *others], like, CUT)
    assert {rank: list(of_seeds) for rank, of_seeds in found.items()} == {2: [0, 1, 2], 8: [0, 1, 2]}
    assert found[2][1] is UNITS[1]
    assert seeds.grid(UNITS[2:], like, CUT) == {}, "one rank with three seeds"
    apart = [*UNITS[1:4], *UNITS[4:], healed(2, 3, 3.0)]
    assert seeds.grid(apart, like, CUT) == {}, "three seeds each, and two in common"


def test_differences_over_seeds_are_paired():
    """Seeds move the loss by 0.2, the rank by 0.2 in each: that is told; where the seeds disagree it is not."""
    table = seeds.table(seeds.grid(UNITS, UNITS[3], CUT), beside=8).set_index("value")
    assert table.loc[8, ["seed 0", "seed 1", "seed 2", "mean"]].tolist() == pytest.approx([3, 3.1, 3.2, 3.1])
    assert table.loc[2, ["change", "low", "high"]].tolist() == pytest.approx([0.2] * 3)
    assert table.loc[2, "seen"] == seeds.WORSE and table.loc[8, ["change", "seen"]].isna().all()
    mixed = [*UNITS[3:], *(healed(2, seed, 3.1 + shift) for seed, shift in enumerate((-0.2, 0.0, 0.3)))]
    row = seeds.table(seeds.grid(mixed, UNITS[3], CUT), beside=8).set_index("value").loc[2]
    differences = np.array([2.9, 3.1, 3.4]) - [3, 3.1, 3.2]
    half = 4.302652729911275 * differences.std(ddof=1) / np.sqrt(3)  # of Student's t with two degrees of freedom
    assert (row["low"], row["high"]) == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert row["seen"] == seeds.OPEN
    better = [*UNITS[3:], *(healed(2, seed, 2 + 0.1 * seed + 0.001 * seed) for seed in range(3))]
    assert seeds.table(seeds.grid(better, UNITS[3], CUT), beside=8).set_index("value").loc[2, "seen"] == seeds.BETTER
