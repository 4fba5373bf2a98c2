"""Rules side by side: what each drops, what is lost with it, how far from the best block that is. No torch.

Letters in shapes: I items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.report.questions.regret import (
    Judged,
    Map,
    in_halves,
    mean_regret,
    place,
    ranks,
    regret,
    scanned_sizes,
)
from deeper_layers.report.statistics import curves, evidence, items, significance, topics
from deeper_layers.report.statistics.joined import joined
from deeper_layers.report.statistics.outcomes import leaves_of, resampled_means
from deeper_layers.results.units import Unit, whole_units
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.rules.rule import Rule

PARTS = ("layers", "attention", "mlp")
Healed = tuple[pd.DataFrame, list[Unit]] | None
INFORMED = "similarity"  # the rule beside which others stand
Scored = dict[str, np.ndarray]  # by rule, which items were right, sizes by items


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
    """Rules by their mean regret, best first: its interval, twice, verdict, rank, the regret and place of each size.

    Those that lack a size come last and have no rank. Numbers are nats a token.
    """
    found = {rule: regrets(every, of_rule) for rule, of_rule in choices.items()}
    means = {rule: mean_regret([of[size] for size in sizes]) for rule, of in found.items() if set(sizes) <= set(of)}
    ranked = ranks(means).set_index("rule") if means else None
    rows = []
    for rule, of_rule in found.items():
        row: dict = dict.fromkeys(("mean", "low", "high", "interval", "verdict", "rank", "ranks"))
        row = {"rule": rule, **row, "mean": np.nan, "low": np.nan, "high": np.nan, "rank": np.nan}
        if ranked is not None and rule in means:
            mean, own = means[rule], ranked.loc[rule]
            row |= {"mean": mean.value, "low": mean.low, "high": mean.high, "verdict": mean.verdict}
            row["interval"] = f"{mean.low:+.3f} to {mean.high:+.3f}"
            row |= {"rank": own["rank"], "ranks": f"{in_halves(own['low'])} to {in_halves(own['high'])}"}
        row |= {f"n = {size}": of_rule[size].value if size in of_rule else np.nan for size in sizes}
        places = [
            place(every, one.cut) for size, one in choices[rule].items()
            if size in sizes and _has_place(every, one.cut, size) and not REGISTERED[rule].changes
        ]  # fmt: skip
        row["place"] = float(np.mean(places)) if len(places) == len(sizes) else np.nan
        rows.append(row)
    return pd.DataFrame(rows).sort_values("mean", kind="stable", na_position="last").reset_index(drop=True)


def dropped_table(
    choices: Mapping[str, Choice], units: Mapping[str, Unit], num_layers: int, weights: Mapping[str, float | None]
) -> pd.DataFrame:
    """What each rule drops at one size, what it needed to know, its price in passes, and the seconds that it took.

    `weights` has the share of the model's parameters that go, by rule, where it is known. The price is that of the rule
    as it is now, over the tokens that the unit names; with a bridge for this size.
    """
    rows = []
    for rule, choice in choices.items():
        unit, own = units.get(rule), REGISTERED[rule]
        details = {} if unit is None else unit.details
        rows.append({
            "rule": rule,
            "drops": choice.cut.describe(num_layers).partition(", keeps")[0].removeprefix("drops "),
            "of the weights": weights.get(rule, np.nan),
            "needs": own.needs or "nothing",
            "changes": own.changes or "nothing",
            "passes x tokens": _price(own, choice.cut.size, num_layers, unit),
            "seconds": details.get("seconds", np.nan),
            "source": own.source,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _price(rule: Rule, size: int, layers: int, unit: Unit | None) -> str | None:
    """Passes of the whole model and over how many tokens, to choose and to fit a bridge; None where that is unknown."""
    if not rule.needs:
        return "0"
    if unit is None:
        return None
    said = f"{rule.passes(size, layers):,.1f} x {unit.details['tokens']:,}"
    if rule.fits:
        fitted = unit.key["calibration"]["bridge_sequences"] * unit.key["sequence_length"]
        said += f" + {rule.fits:,.1f} x {fitted:,}"
    return said


def answer(every: Map, choices: Mapping[str, Mapping[int, Choice]], sizes: list[int], rule: str = INFORMED) -> str:
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


def points_table(units: Iterable[Unit], cuts: Mapping[str, Mapping[int, Cut]]) -> pd.DataFrame:
    """How much less accuracy rules' blocks leave than the best block of their size: where every block was scored.

    `units` are of one model, those that score blocks among them. Columns task (in words), items, n, unpruned (its
    accuracy), knows (it is surely above guessing), rule, block and accuracy (its own), best and highest (the block that
    leaves most, and that accuracy), regret (of accuracy, the best found on one half of the items and judged on the
    other; not below 0, since the block is one of them), low and high (95%, by resampled items), interval.
    """
    rows = []
    for unit in joined(whole_units(_scans(units))):
        right = {cut: right_items(unit, cut) for cut in {Cut.of_key(key) for key in unit.key["cuts"]} | {UNPRUNED}}
        if any(found is None for found in right.values()):
            continue
        try:
            every = Map(unit.details["num_layers"], {cut: 1.0 - found for cut, found in right.items()})
        except InputError:  # not every block of any size
            continue
        best, whole = every.best.set_index("size"), float(right[UNPRUNED].mean())
        knows = curves.surely_above(whole, len(every.whole), curves.levels_of(unit).get(unit.name, {}))
        for size in every.sizes:
            of_size = ((rule, by_size[size]) for rule, by_size in cuts.items() if size in by_size)
            for rule, cut in ((rule, cut) for rule, cut in of_size if _has_place(every, cut, size)):
                found, first = regret(every, size, every.of_cut(cut)).of_a_block, int(best.loc[size, "start"])
                rows.append({
                    "task": curves.asked([unit.name], unit.key["num_fewshot"]), "items": len(every.whole), "n": size,
                    "unpruned": whole, "knows": knows, "rule": rule, "block": cut.start,
                    "accuracy": 1 - every.of_cut(cut).mean(), "best": first, "highest": 1 - best.loc[size, "value"],
                    "regret": found.value, "low": found.low, "high": found.high,
                    "interval": f"{found.low:+.3f} to {found.high:+.3f}",
                })  # fmt: skip
    return pd.DataFrame(rows)


def partly_scored(units: Iterable[Unit]) -> list[str]:
    """Tasks that were scored without some blocks, but without every block of no size: `points_table` has none of them.

    `units` are of one model.
    """
    scored: dict[str, bool] = {}
    for unit in joined(whole_units(_scans(units))):
        title = curves.SUBJECTS.get(unit.name, curves.title(unit.name))
        sizes = scanned_sizes(map(Cut.of_key, unit.key["cuts"]), unit.details["num_layers"])
        scored[title] = scored.get(title, False) or bool(sizes)
    return sorted(title for title, every in scored.items() if not every)


def _scans(units: Iterable[Unit]) -> list[Unit]:
    return [unit for unit in units if unit.kind == "scan" and not unit.key["quantization"]]


def in_points(points: pd.DataFrame, rule: str = INFORMED) -> str:
    """How far a rule's blocks are from the best ones in accuracy, in a sentence, of rows of one `points_table`."""
    rows = points[points["knows"] & (points["rule"] == rule)] if len(points) else points
    if rows.empty:
        return "Not measured: how far that is in accuracy."
    found = "; ".join(
        f"{row['task']} {100 * row['regret']:+.0f} points ({100 * row['low']:+.0f} to {100 * row['high']:+.0f}; "
        f"n = {row['n']}, {row['items']:,} items, {row['unpruned']:.2f} unpruned, {row['accuracy']:.2f} left)"
        for row in rows.to_dict("records")
    )
    return f"How much less accuracy the {rule} rule's block leaves than the best block of its size: {found}."


def _has_place(every: Map, cut: Cut, size: int) -> bool:
    return size in every.sizes and cut.is_block and cut.size == size and cut.stop < every.layers


# ---- scores on tasks ---------------------------------------------------------------------------------------------


def right_items(unit: Unit, cut: Cut) -> Bool[np.ndarray, " I"] | None:
    """Which items of a task a pruned model got right, those of a group by the names of its tasks; None if unknown.

    A task that counts no item as right or wrong is unknown too.
    """
    found: dict[str, np.ndarray] = {}
    for leaf in leaves_of(unit):
        of_cut, metrics = leaf.details["outcomes"].get(cut.name), items.item_metrics(leaf)
        if of_cut is None or of_cut.keys() - metrics.keys():
            return None
        found |= {task: items.right_items(of_cut, task, metrics[task]) for task in of_cut}
    return np.concatenate([found[task] for task in sorted(found)])


def scored(units: Mapping[str, Unit], cuts: Mapping[str, Mapping[int, Cut]], sizes: list[int]) -> Scored:
    """For each rule, of which all of some sizes were scored on a task, which items were right: sizes by items."""
    found = {}
    for rule, unit in units.items():
        of_sizes = (right_items(unit, cuts[rule][size]) for size in sizes if size in cuts[rule])
        if len(right := [one for one in of_sizes if one is not None]) == len(sizes):
            found[rule] = np.stack(right)
    items = {right.shape for right in found.values()}
    if len(items) > 1:
        raise InputError(f"rules were scored on {sorted(items)} sizes and items: measure them on the same items")
    return found


def score_table(found: Scored, sizes: list[int], guessing: float = 0.0) -> pd.DataFrame:
    """Rules by their mean accuracy over sizes, best first, each beside the paper's rule, item by item.

    Columns rule, mean, low and high (95%, by resampled items), rank and ranks (1 is best, with its 95% interval),
    change (of the mean, to that of the paper's rule), interval (95%, t, pairs), p (Holm's correction for all rules),
    seen (none for the rule itself), and the accuracy of each size. Seen is "better" or "worse" where that is sure and
    the better one of both is surely above `guessing`; "guessing" where it is not, since to be less wrong than a guess
    is no knowledge; else "no difference seen".
    """
    means = {rule: right.mean(axis=0) for rule, right in found.items()}  # of each item, over sizes
    if not means:
        return pd.DataFrame()
    drawn = pd.DataFrame(resampled_means(np.stack(list(means.values()))), columns=list(means))
    values, draws = drawn.iloc[0], drawn.iloc[1:]
    placed, places = values.rank(ascending=False), draws.rank(axis=1, ascending=False)
    rows, p = [], {}
    for rule, mean in means.items():
        low, high = draws[rule].quantile([0.025, 0.975])
        first, last = places[rule].quantile([0.025, 0.975])
        row: dict = {"rule": rule, "mean": values[rule], "low": low, "high": high, "rank": placed[rule]}
        row |= {"ranks": f"{in_halves(first)} to {in_halves(last)}", "change": np.nan}
        row |= {"interval": None, "p": np.nan, "seen": None}
        if rule != INFORMED and INFORMED in means:
            differences = mean - means[INFORMED]
            change, low, high = significance.paired_interval(differences, shares=True)
            row |= {"change": change, "interval": f"{low:+.3f} to {high:+.3f}"}
            p[rule] = min(1.0, 2 * min(significance.tails(differences, 0.0, shares=True)))
        row |= {f"n = {size}": float(right.mean()) for size, right in zip(sizes, found[rule], strict=True)}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("rule")
    for rule, corrected in zip(p, significance.holm(list(p.values())), strict=True):
        sure = corrected < significance.ALPHA
        knows = max(table.loc[[rule, INFORMED], "low"]) > guessing
        seen = "no difference seen" if not sure else "better" if table.loc[rule, "change"] > 0 else "worse"
        seen = seen if knows else "guessing"
        table.loc[rule, ["p", "seen"]] = [corrected, seen]
    return table.reset_index().sort_values("mean", ascending=False, kind="stable").reset_index(drop=True)


def side_by_side(
    regrets: pd.DataFrame | None, scores: Mapping[str, pd.DataFrame], whole: Mapping[str, float]
) -> pd.DataFrame:
    """Rules by all that was measured of them, in words: the mean regret of the loss, and mean accuracies.

    `regrets` is a `regret_table`, `scores` has by title of the task a `score_table`, empty where nothing was measured.
    `whole` has accuracies of the unpruned model, which make the first row. Behind an accuracy stands whether it is
    surely better or worse than that of the paper's rule. In the order of the regrets, then of the first task that has
    a rule.
    """
    columns: dict[str, dict[str, str]] = {}
    if regrets is not None:
        known = regrets.dropna(subset="mean")
        columns["regret, nats"] = {row["rule"]: f"{row['mean']:+.3f}" for row in known.to_dict("records")}
    for title, table in scores.items():
        columns[title] = {
            row["rule"]: f"{row['mean']:.3f}" + (f" {row['seen']}" if row["seen"] in ("better", "worse") else "")
            for row in table.to_dict("records")
        }
    rules = dict.fromkeys(rule for of_rules in columns.values() for rule in of_rules)
    rows = [{"rule": rule} | {title: of.get(rule, "not measured") for title, of in columns.items()} for rule in rules]
    unpruned = dict.fromkeys(columns, "") | {title: f"{accuracy:.3f}" for title, accuracy in whole.items()}
    return pd.DataFrame([{"rule": "none: unpruned"} | unpruned, *rows] if rows else [])


# ---- healed ------------------------------------------------------------------------------------------------------


def healed_table(units: Iterable[Unit], choices: Mapping[str, Mapping[int, Choice]]) -> Healed:
    """What rules leave after healing, all healed in one way: that of which there are most; None where there is none.

    A row for each rule and size, by size and loss: rule, n, unhealed and loss (nats a token), change and interval (of
    the loss, to that of the paper's rule, sequence by sequence, 95%, t), and the accuracy of each set of items; and the
    unit of each row. The unhealed loss is that of the choice, on as many sequences of the text as the map has. Rules
    that change weights are left out: of the same layers, without what they change, a healing says nothing of them.
    """
    by_size = {
        rule: {one.cut.size: one for one in of.values() if one.cut.size}
        for rule, of in choices.items() if not REGISTERED[rule].changes
    }  # fmt: skip
    chosen = [(rule, one) for rule, of in by_size.items() for one in of.values() if one.cut.is_of_layers]
    ways = evidence.Evidence(list(units)).ways.values()
    way = max(ways, key=lambda way: sum(one.cut in way for _, one in chosen), default={})
    rows, used = [], []
    for rule, one in chosen:
        cut = one.cut
        if (unit := way.get(cut)) is None:
            continue
        losses = np.array(unit.details["by_sequence"])
        row: dict = {"rule": rule, "n": cut.size, "unhealed": one.losses.mean(), "loss": losses.mean()}
        row |= {"change": np.nan, "interval": None}
        same_size = by_size.get(INFORMED, {}).get(cut.size)
        other = None if same_size is None else way.get(same_size.cut)
        if rule != INFORMED and other is not None:
            differences = losses - np.array(other.details["by_sequence"])
            change, low, high = significance.paired_interval(differences, shares=False)
            row |= {"change": change, "interval": f"{low:+.3f} to {high:+.3f}"}
        tasks = list(items.item_metrics(unit))
        for asked in dict.fromkeys(map(topics.set_of, tasks)):
            own = [task for task in tasks if topics.set_of(task) == asked]
            row[asked] = float(items.of_topic(unit, own).mean())
        rows.append(row)
        used.append(unit)
    return (pd.DataFrame(rows).sort_values(["n", "loss"], kind="stable", ignore_index=True), used) if rows else None
