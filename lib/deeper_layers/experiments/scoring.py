"""Pruned models on tasks, under any prompt, engine or rule: results of the kind "scores".

Source: Gromov et al., arXiv 2403.17887, figures 1d, 2, 5, 6 and 7.
"""

import functools
import sys
from collections.abc import Callable

import pandas as pd
from tqdm import tqdm

from deeper_layers import sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.choosing import chosen_cuts
from deeper_layers.experiments.measurement import Measurement, each, items_of
from deeper_layers.experiments.parameters import SweepParameters, TaskParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.packing import ITEM_BY_ITEM
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result

CutsOf = dict[str, list[Cut]]  # by rule
Scored = tuple[list[dict], dict]  # rows and details of a result of scores


def cuts_of_tasks(parameters: TaskParameters, source: Source, opened: Callable) -> dict[str, CutsOf]:
    """For each task the cuts of each rule, of the sizes that are asked for, from what is known or is measured now."""
    cuts_of = chooser(parameters, source, opened)
    return {task: cuts_of(parameters.size_list(source.num_layers, task)) for task in parameters.task_list}


def chooser(parameters: TaskParameters, source: Source, opened: Callable) -> Callable[[list[int]], CutsOf]:
    """What gives the cuts of each rule for some sizes, from what is known or is measured now."""
    return lambda sizes: {rule: chosen_cuts(rule, sizes, parameters, source, opened) for rule in parameters.rule_list}


def distinct_cuts(cuts_of: CutsOf) -> list[Cut]:
    """The cuts of some rules, each once, in order."""
    return sorted({cut for cuts in cuts_of.values() for cut in cuts})


def named_cuts(cuts_of: CutsOf) -> dict[str, list[str]]:
    """The same as a key has them."""
    return {rule: [cut.name for cut in cuts] for rule, cuts in cuts_of.items()}


def sweep_tasks(parameters: SweepParameters, source: Source) -> tuple[dict[str, CutsOf], dict[str, Result | None]]:
    """Of each task of a sweep the cuts by rule, and its result: read or measured now; None for what is not measured."""
    # where another engine generates, the accelerator is for it
    opens = parameters if parameters.engine is None else parameters.but(device="cpu")
    opened = functools.cache(lambda: opens.open(source))
    if (cut := parameters.given_cut) is None:
        cuts = cuts_of_tasks(parameters, source, opened)
    else:
        cuts = {task: {GIVEN: [UNPRUNED, cut]} for task in parameters.task_list}
    of_task = functools.partial(score_task, engine=parameters.engine)
    found = each(functools.partial(of_task, task, cuts[task], parameters, source, opened) for task in cuts)
    return cuts, dict(zip(cuts, found, strict=True))


def score_task(
    task: str,
    cuts_of: CutsOf,
    parameters: TaskParameters,
    source: Source,
    opened: Callable,
    wait: bool = True,
    *,
    engine: str | None = None,
    shots: int | None = None,
    order: int | None = None,
    sizes: dict[str, int] | None = None,
) -> Result | None:
    """A task or group under the cuts of some rules: read from results, else measured on what `opened()` returns.

    Cuts that rules share are measured once. `engine` is what generates answers, see `deeper_layers.sweep`. `shots` and
    `order` are of the examples in a prompt, where they are not the usual ones; `sizes` of cuts of sublayers is what
    their rule counts them as. None where nothing is to be measured and
    results hold no such scores. Raises Timeout where another process measures them and `wait` is False.
    """
    prompt = parameters.asked[task].key | ({} if shots is None else {"shots": shots})
    how: dict = {} if order is None else {"num_fewshot": shots, "fewshot_order": order}

    def measure(shards):
        models = opened()
        own = how | ({"engine": engine} if engine else {"family": sweeping.TreeModel(models[0], cuts)})
        rows, details = score(*models, task, cuts, parameters, shards, **own)
        return rows, details | {"sizes": sizes or {}}

    cuts = distinct_cuts(cuts_of)
    asked = {task: prompt if order is None else prompt | {"order": order}}
    settings = {**parameters.key, "tasks": asked, "cuts": named_cuts(cuts_of)} | ({"engine": engine} if engine else {})
    reads = items_of([task], parameters.datasets)
    return Measurement(kind="scores", source=source, settings=settings, reads=reads, measure=measure).result(
        parameters, wait
    )


def score(
    model, tokenizer, task: str, cuts: list[Cut], parameters: TaskParameters, shards: Shards, **how
) -> Scored:  # fmt: skip
    """Rows and details of pruned models on a task or, one after another, on all tasks of a group."""
    options, groups = parameters.sweep_options(task) | how, {}
    if not sweeping.is_group(task):
        tables = [sweeping.sweep(model, tokenizer, [task], cuts, shards=shards, **options)]
        table = tables[0]
    else:
        loaded = sweeping.load_tasks([task], datasets=parameters.datasets)
        bar = tqdm(loaded["tasks"], desc=task, unit="task", file=sys.stderr)
        tables = [
            sweeping.sweep(model, tokenizer, [leaf], cuts, shards=shards.part(leaf), **options) for leaf in bar
        ]  # fmt: skip
        table = pd.concat(tables, ignore_index=True)
        of_groups = sweeping.group_rows(loaded["groups"], table)
        groups = {task: sorted(loaded["tasks"])}
        groups |= {name: [] for name in dict.fromkeys(of_groups["task"]) if name not in loaded["tasks"] | groups}
        table = table if of_groups is table else pd.concat([table, of_groups], ignore_index=True)
    outcomes = {cut.name: {k: v for of in tables for k, v in of.attrs["outcomes"][cut.name].items()} for cut in cuts}
    levels = {name: level for of in tables for name, level in of.attrs["levels"].items()}
    rows, targets = _with_outcomes(table, outcomes)
    return rows, {"levels": levels, "groups": groups, "targets": targets}


def _with_outcomes(table: pd.DataFrame, outcomes: dict[str, dict]) -> tuple[list[dict], dict[str, str]]:
    """Each row with what came out of its items; of all rows of a task once what the right choices are."""
    rows, targets, seen = [], {}, set()
    for row in table.to_dict("records"):
        task, metric = row["task"], row["metric"]
        cut = row.get("cut") or Cut(row["start"], row["size"]).name
        packed = outcomes[cut].get(task, {})
        found = {"task": task, "metric": metric, "cut": cut} | {
            name: row[name] for name in ("value", "stderr", "items")
        }
        if metric in packed:
            found["outcome"] = packed[metric]
        if (task, cut) not in seen:
            found |= {name: packed[name] for name in ITEM_BY_ITEM if name in packed}
        seen.add((task, cut))
        if "target" in packed:
            targets[task] = packed["target"]
        rows.append(found)
    return rows, targets


def score_all(
    model, tokenizer, cuts: list[Cut], parameters: TaskParameters, shards: Shards
) -> Scored:  # fmt: skip
    """Rows and details of pruned models on all tasks of the parameters."""
    every = [score(model, tokenizer, task, cuts, parameters, shards.part(task)) for task in parameters.task_list]
    details: dict = {"levels": {}, "groups": {}, "targets": {}}
    for _, of_task in every:
        for name, found in of_task.items():
            details[name] |= found
    return [row for rows, _ in every for row in rows], details


def tasks_asked(parameters: TaskParameters) -> dict[str, dict]:
    """What is asked of each task, as a key has it."""
    return {task: asked.key for task, asked in parameters.asked.items()}


def as_cut(rows: list[dict], cut: Cut) -> list[dict]:
    """Rows of what was run whole, as those of the cut that it is."""
    return [row | {"cut": cut.name} for row in rows]


def unmeasured(task: str, cuts_of: CutsOf, parameters: TaskParameters, source: Source) -> bool:
    """Whether results lack what `score_task` would measure."""
    return score_task(task, cuts_of, parameters.but(measure=False), source, lambda: None) is None
