"""Rows of sweeps as curves, with intervals: what the figures of accuracy are drawn from."""

import collections
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.report import paper
from deeper_layers.report.statistics import outcomes
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import measured_cuts

Z = 1.959964  # a normal variable lies within so many standard deviations with 95%
TITLES = {
    "capitals": "Capitals",
    "sums": "Sums",
    "sums_one_digit": "Sums, one digit",
    "sums_two_digits": "Sums, two digits",
    "embedded_piqa": "PIQA",
    "embedded_boolq": "BoolQ",
    "embedded_mmlu": "MMLU",
    "piqa": "PIQA",
    "boolq": "BoolQ",
    "mmlu": "MMLU",
    "mmlu_humanities": "MMLU, humanities",
    "mmlu_social_sciences": "MMLU, social sciences",
    "mmlu_stem": "MMLU, STEM",
    "mmlu_other": "MMLU, other",
    "gsm8k": "GSM8K",
    "sums_generated": "Sums, written",
    "sums_one_digit_generated": "Sums, one digit, written",
    "sums_two_digits_generated": "Sums, two digits, written",
    "lettered_capitals": "Capitals, by letter",
    "written_facts": "Facts, written",
    "mmlu_continuation": "MMLU as cloze",
    "c4": "C4",
    "gsm8k_solutions": "GSM8K, gold solutions",
}
# the tasks of the subjects of MMLU, each with what asks them all; other sets begin with "mmlu_" too
SUBJECTS = {f"mmlu_{name}": "MMLU" for name in paper.MMLU_SUBJECTS} | {
    f"mmlu_{name}_continuation": "MMLU as cloze" for name in paper.MMLU_SUBJECTS
}
COLUMNS = ["task", "rule", "size", "start", "fraction", "value", "low", "high", "items", "metric"]


def title(task: str) -> str:
    """A task as people call it; its own name where there is no other."""
    subject = task.removeprefix("mmlu_").removesuffix("_continuation").replace("_", " ")
    return TITLES.get(task) or (f"{SUBJECTS[task]}, {subject}" if task in SUBJECTS else task)


def asked(tasks: Iterable[str], shots: int | None = None) -> str:
    """Tasks and the examples in their prompts as people call them; several subjects of MMLU by their number."""
    tasks = list(tasks)
    subjects = collections.Counter(SUBJECTS[task] for task in tasks if task in SUBJECTS)
    titles = [title(task) for task in tasks if subjects[SUBJECTS.get(task)] < 2]
    titles += [f"{topic}, {of_subjects(count)}" for topic, count in subjects.items() if count > 1]
    return ", ".join([*titles, f"{shots}-shot"] if shots else titles)


def of_subjects(count: int) -> str:
    """How many of the subjects of MMLU."""
    every = len(paper.MMLU_SUBJECTS)
    return f"all {count} subjects" if count == every else f"{count} of {every} subjects"


def wilson_interval(value: float, items: int) -> tuple[float, float]:
    """95% interval of a share `value` among `items` (Wilson 1927), which stays inside 0..1."""
    centre = (value + Z * Z / (2 * items)) / (1 + Z * Z / items)
    half = Z / (1 + Z * Z / items) * math.sqrt(value * (1 - value) / items + Z * Z / (4 * items * items))
    # rounding must not put the value itself outside
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


def are_shares(rows: pd.DataFrame) -> bool:
    """Whether rows of one metric, with value and items, are shares of the items: all count a whole number of them.

    Parts of an item that add up (truthfulqa_mc2), scores of all items together (mcc, BLEU) and means over tasks don't.
    """
    counts = rows["value"] * rows["items"]
    return bool(rows["value"].between(0, 1).all() and ((counts - counts.round()).abs() < 1e-6).all())


def accuracy_by_rule(rows: pd.DataFrame, cuts_of: dict[str, list[Cut]], num_layers: int) -> pd.DataFrame:
    """The rows of a sweep as curves: one row for each task, rule and size, with its 95% interval.

    Columns task, rule, size, start, fraction (size / L), value, low, high, items, metric. A cut that was not
    measured has no row. The metric is a task's "acc", or what it counts instead (exact_match). The interval is Wilson's
    for shares of items (`are_shares`), else that of the standard error, missing where that is.
    """
    wanted = {task: main_metric(list(of_task["metric"])) for task, of_task in rows.groupby("task")}
    table = rows[rows["metric"] == rows["task"].map(wanted)]
    shares = {task: are_shares(of_task) for task, of_task in table.groupby("task")}
    curves = []
    for rule, cuts in cuts_of.items():
        for cut in cuts:
            for row in of_cut(table, cut).itertuples():
                if shares[row.task]:
                    low, high = wilson_interval(row.value, int(row.items))
                else:
                    low, high = row.value - Z * row.stderr, row.value + Z * row.stderr
                curves.append((
                    row.task, rule, cut.size, cut.start, cut.size / num_layers,
                    row.value, low, high, int(row.items), row.metric,
                ))  # fmt: skip
    return _typed(curves, COLUMNS)


def of_cut(rows: pd.DataFrame, cut: Cut) -> pd.DataFrame:
    """The rows of a cut, by its name where they have one: some are no blocks then."""
    if "cut" in rows:
        return rows[rows["cut"] == cut.name]
    return rows[(rows["start"] == cut.start) & (rows["size"] == cut.size)]


def losses_by_line(
    rows_of: dict[str, pd.DataFrame], cuts_of: dict[str, list[Cut]], num_layers: int, vocabulary: int
) -> pd.DataFrame:
    """Losses on text as curves, in units of ln V: a row for each set of rows, rule and size, with its 95% interval.

    Columns line ("similarity, healed": a rule and the name of a set of rows), rule, size, start, fraction,
    value, low, high, items, metric. The interval is that of the mean over sequences.
    """
    curves, unit = [], math.log(vocabulary)
    for (name, rows), (rule, cuts) in itertools.product(rows_of.items(), cuts_of.items()):
        for cut in cuts:
            for row in of_cut(rows[rows["metric"] == "loss"], cut).itertuples():
                half = Z * row.stderr
                curves.append((
                    f"{rule}, {name}", rule, cut.size, cut.start, cut.size / num_layers, row.value / unit,
                    (row.value - half) / unit, (row.value + half) / unit, int(row.items), "loss / ln V",
                ))  # fmt: skip
    return _typed(curves, ["line", *COLUMNS[1:]])


def above_guessing(accuracy: pd.DataFrame, levels: dict[str, dict[str, float]]) -> list[str]:
    """Tasks on which the whole model is surely better than chance and than always naming the commonest answer.

    Those are shares of items, and what is none is not compared with them.
    """
    whole = accuracy[accuracy["size"] == 0].drop_duplicates("task")
    sure = [row.task for row in whole.itertuples() if row.low > max(levels.get(row.task, {}).values(), default=0)]
    return [task for task in sure if are_shares(accuracy[accuracy["task"] == task])]


def surely_above(share: float, items: int, levels: dict[str, float]) -> bool:
    """Whether a share of right answers is surely (95%, Wilson) above every level of guessing of its task."""
    return wilson_interval(share, items)[0] > max(levels.values(), default=0.0)


def beside_whole(accuracy: pd.DataFrame) -> pd.DataFrame:
    """For each task, how many pruned models are worth their bytes beside whole models that are no larger.

    `accuracy` as `accuracy_by_rule` has it, with kinds of weights for rules and the column bytes. Columns task,
    pruned, worse (surely below a whole model that is no larger), better (surely above all such), close (neither),
    smaller (there is no such model). Sure is what the 95% interval of a difference of shares says (Newcombe 1998).
    """
    found = []
    for task, own in accuracy.groupby("task", sort=False):
        whole, pruned = own[own["size"] == 0], own[own["size"] > 0]
        counts = {"pruned": len(pruned), "worse": 0, "better": 0, "close": 0, "smaller": 0}
        for row in pruned.itertuples():
            rivals = whole[whole["bytes"] <= row.bytes]
            changes = [_difference(row, rival) for rival in rivals.itertuples()]
            worse, better = any(high < 0 for _, high in changes), all(low > 0 for low, _ in changes)
            counts["smaller" if rivals.empty else "worse" if worse else "better" if better else "close"] += 1
        found.append({"task": task, **counts})
    return pd.DataFrame(found)


def _difference(one, other) -> tuple[float, float]:
    """95% interval of a difference of two shares, each with its own interval (Newcombe 1998, method 10).

    Wider than one of pairs would be: for items that were the same it is on the safe side.
    """
    change = one.value - other.value
    return (change - math.hypot(one.value - one.low, other.high - other.value),
            change + math.hypot(one.high - one.value, other.value - other.low))  # fmt: skip


def of_all_models(units: list[Unit], rule: str) -> pd.DataFrame:
    """Curves of every model under one rule: the columns of `accuracy_by_rule`, and before them model.

    Of several units of a task and model one counts: not quantized before quantized, then that with most items,
    with most cuts, the latest. attrs["levels"] holds for each task the highest levels of guessing of these units.
    """
    tables: dict[tuple[str, str], tuple] = {}
    for unit in units:
        rules, layers = unit.key["rule"].split(", "), unit.details["num_layers"]
        cuts = measured_cuts(rules, [Cut(*cut) for cut in unit.key["cuts"]], layers)
        if rule not in cuts:
            continue
        table = accuracy_by_rule(unit.rows, {rule: cuts[rule]}, layers)
        for task in own_tasks(unit):
            of_task = table[table["task"] == task]
            place = unit.key["model"]["name"], task
            plain = unit.key.get("quantization") is None
            rank = plain, int(of_task["items"].max()), len(of_task), unit.provenance["measured"]
            if place not in tables or tables[place][0] < rank:
                tables[place] = rank, of_task.assign(model=place[0]), {task: levels_of(unit)[task]}
    if not tables:
        return _typed([], ["model", *COLUMNS])
    together = pd.concat([table for _, table, _ in tables.values()])[["model", *COLUMNS]]
    together.attrs["levels"] = highest_levels(levels for _, _, levels in tables.values())
    return together


def by_bytes(kinds: Iterable[Unit]) -> pd.DataFrame:
    """A model in several kinds of weights: the columns of `accuracy_by_rule`, the rule being the kind, and bytes."""
    tables = []
    for unit in kinds:
        cuts = {unit.name: [Cut(*cut) for cut in unit.key["cuts"]]}
        table = accuracy_by_rule(unit.rows, cuts, unit.details["num_layers"])
        sizes = unit.rows.drop_duplicates("size").set_index("size")["bytes"]
        tables.append(table.assign(bytes=table["size"].map(sizes)))
    return pd.concat(tables)


def own_tasks(unit: Unit) -> list[str]:
    """A unit's task, or its group where lm-eval aggregates one; else the tasks of the group."""
    tasks = list(unit.rows["task"].unique())
    return [unit.name] if unit.name in tasks else tasks


def levels_of(unit: Unit) -> dict[str, dict[str, float]]:
    """The levels of guessing for each task in a unit's rows, of a group those of all its items."""
    levels = unit.details["levels"]
    tasks = unit.rows["task"].unique()
    of_all = {} if set(tasks) <= set(levels) else levels_of_all(unit)  # reads the units of all tasks
    return {task: levels.get(task, of_all) for task in tasks}


def levels_of_all(unit: Unit) -> dict[str, float]:
    """The levels of guessing on all items of a unit: a group has none of its own."""
    levels = unit.details["levels"]
    return levels[unit.name] if unit.name in levels else levels_together(list(levels.values()), _answers(unit))


def levels_together(levels: Sequence[dict[str, float]], answers: Sequence[np.ndarray]) -> dict[str, float]:
    """The levels of guessing on the items of several tasks as one, from those of each and the right choices, if known.

    The highest chance, and always naming one choice on all items: the commonest answer of each task is another one.
    """
    if len(levels) < 2:
        return dict(*levels)
    constant = {"majority": outcomes.best_constant(answers)} if answers and all(map(len, answers)) else {}
    return {"chance": max(level.get("chance", 0.0) for level in levels)} | constant


def _answers(group: Unit) -> list[np.ndarray]:
    """The right choices of the multiple-choice tasks of a group; none where they are not known."""
    if "units" in group.details and group.path is None:  # never written: its tasks lie nowhere
        return []
    try:
        leaves = outcomes.leaves_of(group)
    except InputError:  # the tasks are no longer there
        return []
    pairs = [(leaf.details.get("outcomes", {}), name) for leaf in leaves for name in leaf.details["levels"]]
    return [outcomes.right_answers(of_cuts, name) for of_cuts, name in pairs]


def highest_levels(models: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The levels of guessing of several models as one: where they were asked different items, the highest."""
    highest: dict[str, dict[str, float]] = {}
    for levels in models:
        for task, level in levels.items():
            known = highest.setdefault(task, {})
            known |= {name: max(value, known.get(name, value)) for name, value in level.items()}
    return highest


def main_metric(metrics: list[str]) -> str:
    """What a task is scored by: "acc", or what it counts instead (exact_match)."""
    exact = [metric for metric in metrics if metric.startswith("exact_match")]
    return "acc" if "acc" in metrics else (exact or metrics)[0]


def _typed(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    """A table whose numbers are numbers even where it has no row: one without would make others lose their type."""
    kinds = {"size": int, "start": int, "items": int, "fraction": float, "value": float, "low": float, "high": float}
    return pd.DataFrame(rows, columns=columns).astype({name: kinds[name] for name in columns if name in kinds})
