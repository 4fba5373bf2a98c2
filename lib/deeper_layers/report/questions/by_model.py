"""Rules by model: which one ranks first may turn round from one model to the next. No torch.

Compared is what was measured in one way: units whose settings are those of a page, all but the model and what follows
from the number of its layers.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.report.questions import rivals
from deeper_layers.report.questions.regret import Map, in_halves
from deeper_layers.report.statistics.curves import Z
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import RULES, cuts_of_rule
from deeper_layers.rules.similarity import distance_matrix

FEWEST, LARGEST = 6, 1 - 1e-9  # rules to compare; of correlations, as artanh of 1 is no number
OWN = ("model", "cuts", "sizes", "rule")  # of a model and how many layers it has, or of one rule


def regrets_by_model(
    units: Iterable[Unit], blocks: Unit, distances: Unit, choices: Iterable[Unit], shares: Callable[[int], list[int]]
) -> dict[str, pd.DataFrame]:
    """By name of the model its rules' regrets, as `rivals.regret_table` has them: where its map was measured.

    `blocks`, `distances` and `choices` are units of a page, whose settings count; `shares` says of a number of layers
    how many each rule drops.
    """
    ways, found = [_way(unit) for unit in choices], {}
    of_kind = _by_kind(units)
    for near in (unit for unit in of_kind.get(distances.kind, []) if _way(unit) == _way(distances)):
        own = [unit for unit in of_kind.get(blocks.kind, []) if _same_model(unit, near) and _way(unit) == _way(blocks)]
        sizes = shares(layers := near.details["num_layers"])
        if not own:
            continue
        try:
            every = Map.of(max(own, key=lambda unit: len(unit.key["cuts"])))
        except InputError:  # not every block
            continue
        if not set(sizes) <= set(every.sizes):
            continue
        of_rules = {
            rule: rivals.blocks_of(every, cuts) for rule, cuts in _own_cuts(near, sizes).items()
        } | {
            unit.key["rule"]: rivals.choices_of(unit) for unit in of_kind.get("choice", [])
            if _same_model(unit, near) and _way(unit) in ways and unit.key["sizes"] == sizes
        }  # fmt: skip
        found[near.key["model"]["name"]] = rivals.regret_table(every, of_rules, sizes).assign(layers=layers)
    return found


def regrets_drawn(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean regrets as rows of a figure: row (the rule), line (the model), value, low and high, nats a token.

    In the order of `ranks_table`.
    """
    rows = pd.concat(
        table.dropna(subset="rank").assign(line=model).rename(columns={"rule": "row", "mean": "value"})
        for model, table in tables.items()
    )[["row", "line", "value", "low", "high"]]
    order = ranks_table(tables)["rule"].tolist()
    return rows.sort_values("row", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def ranks_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each rule, a column for each model: the rank with its 95% interval, and the mean regret, nats a token.

    In the order of the mean of the ranks, as shares of the number of rules that have one.
    """
    columns, shares = {}, {}
    for model, table in tables.items():
        ranked = table.dropna(subset="rank").set_index("rule")
        columns[model] = {
            rule: f"{in_halves(row['rank'])} ({row['ranks']}), {row['mean']:+.3f}" for rule, row in ranked.iterrows()
        }
        shares[model] = ranked["rank"] / len(ranked)
    order = pd.DataFrame(shares).mean(axis=1).sort_values(kind="stable").index
    return pd.DataFrame([{"rule": rule} | {m: of.get(rule) for m, of in columns.items()} for rule in order])


def agreement(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Of each two models whether rules stand in the same order, in a sentence with Spearman's correlation.

    Of the mean regrets of the rules that both have: random draws, which are no rule, left out, and one of those that
    regret the same in both. The 95% interval is over rules, on Fisher's scale (its error that of Bonett and Wright
    2000), as if they were drawn from many.
    """
    means = {model: table.dropna(subset="rank").set_index("rule")["mean"] for model, table in tables.items()}
    said = []
    for one, other in itertools.combinations(means, 2):
        both = pd.concat([means[one], means[other]], axis=1, join="inner").drop_duplicates()
        both = both[[not rule.startswith("random-") for rule in both.index]]
        if len(both) < FEWEST:
            said.append(f"{one} and {other} have {len(both)} rules in common, too few to compare their order.")
            continue
        found = float(both.rank().corr().iloc[0, 1])
        half = Z * math.sqrt((1 + found**2 / 2) / (len(both) - 3))
        low, high = (math.tanh(math.atanh(min(max(found, -LARGEST), LARGEST)) + side) for side in (-half, half))
        told = "goes the same way" if low > 0 else "turns round" if high < 0 else "may go either way"
        said.append(
            f"From {one} to {other} the order of {len(both)} rules {told}: Spearman's correlation {found:+.2f} "
            f"({low:+.2f} to {high:+.2f})."
        )
    return said


def points_by_model(units: Iterable[Unit], distances: Unit) -> pd.DataFrame:
    """`rivals.points_table` of every model of the paper's rules, with the column model before the others.

    `distances` is a unit of a page, whose settings count.
    """
    of_kind, found = _by_kind(units), []
    for near in (unit for unit in of_kind.get(distances.kind, []) if _way(unit) == _way(distances)):
        own = [unit for unit in of_kind.get("scan", []) if _same_model(unit, near)]
        cuts = _own_cuts(near, range(1, near.details["num_layers"]))
        table = rivals.points_table(own, {rule: {cut.size: cut for cut in of} for rule, of in cuts.items()})
        table.insert(0, "model", near.key["model"]["name"])
        found.append(table)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _own_cuts(distances: Unit, sizes: Iterable[int]) -> dict[str, list[Cut]]:
    """Of the paper's rules, by a model's distances."""
    layers, matrix = distances.details["num_layers"], distance_matrix(distances.rows)
    return {rule: cuts_of_rule(rule, list(sizes), layers, matrix) for rule in RULES}


def _by_kind(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.kind, []).append(unit)
    return found


def _way(unit: Unit) -> dict:
    return unit.settings(*OWN)


def _same_model(one: Unit, other: Unit) -> bool:
    return one.key["model"] == other.key["model"]
