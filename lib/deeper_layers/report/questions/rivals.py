"""Rules side by side: what each drops, how far from the best block that is, what it costs to choose. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.report.questions.regret import Judged, Map, mean_regret, place, ranks, regret
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import REGISTERED

PARTS = ("layers", "attention", "mlp")


@dataclass(frozen=True)
class Choice:
    """What a rule drops of one size, and the loss of what it leaves by sequence."""

    cut: Cut
    losses: np.ndarray


def choices_of(unit: Unit) -> dict[int, Choice]:
    """By size, of a unit of what a rule drops."""
    return {
        int(row["size"]): Choice(
            Cut.of(**{part: row[part] for part in PARTS}), np.array(unit.details["by_sequence"][str(row["size"])])
        )
        for row in unit.rows.to_dict("records")
    }


def blocks_of(every: Map, cuts: list[Cut]) -> dict[int, Choice]:
    """The same of a rule whose cuts are blocks of the map, so that nothing needs to be measured for it."""
    found = ((cut, every.of_cut(cut)) for cut in cuts)
    return {cut.size: Choice(cut, losses) for cut, losses in found if losses is not None}


def regrets(every: Map, choices: Mapping[int, Choice]) -> dict[int, Judged]:
    """By size, where the map has that size."""
    return {size: regret(every, size, one.losses) for size, one in choices.items() if size in every.sizes}


def regret_table(every: Map, choices: Mapping[str, Mapping[int, Choice]], sizes: list[int]) -> pd.DataFrame:
    """Rules by their mean regret, best first: its interval, verdict and rank, the regret and place of each size.

    Those that lack a size come last and have no rank. Numbers are nats a token.
    """
    found = {rule: regrets(every, of_rule) for rule, of_rule in choices.items()}
    means = {rule: mean_regret([of[size] for size in sizes]) for rule, of in found.items() if set(sizes) <= set(of)}
    ranked = ranks(means).set_index("rule") if means else None
    rows = []
    for rule, of_rule in found.items():
        row: dict = {"rule": rule, "mean": np.nan, "interval": None, "verdict": None, "rank": np.nan, "ranks": None}
        if ranked is not None and rule in means:
            mean, own = means[rule], ranked.loc[rule]
            row |= {"mean": mean.value, "interval": f"{mean.low:+.3f} to {mean.high:+.3f}", "verdict": mean.verdict}
            row |= {"rank": own["rank"], "ranks": f"{own['low']:.0f} to {own['high']:.0f}"}
        row |= {f"n = {size}": of_rule[size].value if size in of_rule else np.nan for size in sizes}
        places = [
            place(every, one.cut) for size, one in choices[rule].items()
            if size in sizes and _has_place(every, one.cut, size) and not REGISTERED[rule].changes
        ]  # fmt: skip
        row["place"] = float(np.mean(places)) if len(places) == len(sizes) else np.nan
        rows.append(row)
    return pd.DataFrame(rows).sort_values("mean", kind="stable", na_position="last").reset_index(drop=True)


def dropped_table(choices: Mapping[str, Choice], units: Mapping[str, Unit], num_layers: int) -> pd.DataFrame:
    """What each rule drops at one size, what it needed to know, its price in passes, and the seconds that it took."""
    rows = []
    for rule, choice in choices.items():
        details = units[rule].details if rule in units else {}
        rows.append({
            "rule": rule,
            "drops": choice.cut.describe(num_layers).partition(", keeps")[0].removeprefix("drops "),
            "needs": REGISTERED[rule].needs or "nothing",
            "changes": REGISTERED[rule].changes or "nothing",
            "passes": details.get("passes", np.nan),
            "tokens": details.get("tokens", np.nan),
            "seconds": details.get("seconds", np.nan),
            "source": REGISTERED[rule].source,
        })  # fmt: skip
    return pd.DataFrame(rows)


def answer(every: Map, choices: Mapping[str, Mapping[int, Choice]], sizes: list[int], rule: str = "similarity") -> str:
    """How far a rule is from the best block, in a sentence with its numbers."""
    found = regrets(every, choices.get(rule, {}))
    if not set(sizes) <= set(found):
        return "Not measured: the regret of this rule at every size."
    mean = mean_regret([found[size] for size in sizes])
    words = ", ".join(map(str, sizes))
    return (
        f"Over n = {words} the {rule} rule costs {mean.value:+.3f} nats a token more than the best block of its size "
        f"({mean.low:+.3f} to {mean.high:+.3f}): {mean.verdict}."
    )


def _has_place(every: Map, cut: Cut, size: int) -> bool:
    return size in every.sizes and cut.is_block and cut.size == size and cut.stop < every.layers
