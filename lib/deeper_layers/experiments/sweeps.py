"""Every pruned model of a family on one task: a measured unit (paper, figures 1d, 2, 5, 6)."""

import functools
import sys
from collections.abc import Callable

import pandas as pd
from tqdm import tqdm

from deeper_layers import sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.choosing import chosen_cuts
from deeper_layers.experiments.measurement import Measurement, each, items_of
from deeper_layers.experiments.parameters import GIVEN, SweepParameters, TaskParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import RULES

VERSION = 2  # part of every unit's key: raise it when a change here or in evaluation changes numbers


def cuts_of_tasks(parameters: TaskParameters, source: Source, opened: Callable) -> dict[str, dict[str, list[Cut]]]:
    """For each task the cuts of each rule, of the sizes that are asked for, from what is known or is measured now."""
    cuts_of = chooser(parameters, source, opened)
    return {task: cuts_of(parameters.size_list(source.num_layers, task)) for task in parameters.task_list}


def swept(
    parameters: SweepParameters, source: Source
) -> tuple[dict[str, dict[str, list[Cut]]], dict[str, Unit | None]]:
    """Of each task of a sweep the cuts by rule, and its unit: read or measured now; None for what is not measured."""
    # where another engine generates, the accelerator is for it
    opens = parameters if parameters.engine is None else parameters.but(device="cpu")
    opened = functools.cache(lambda: opens.open(source))
    if (cut := parameters.given_cut) is None:
        cuts = cuts_of_tasks(parameters, source, opened)
    else:
        cuts = {task: {GIVEN: [UNPRUNED, cut]} for task in parameters.task_list}
    of_task = functools.partial(sweep_unit, engine=parameters.engine)
    units = each(functools.partial(of_task, task, cuts[task], parameters, source, opened) for task in cuts)
    return cuts, dict(zip(cuts, units, strict=True))


def chooser(
    parameters: TaskParameters, source: Source, opened: Callable
) -> Callable[[list[int]], dict[str, list[Cut]]]:
    """What gives the cuts of each rule for some sizes, from what is known or is measured now."""
    return lambda sizes: {rule: chosen_cuts(rule, sizes, parameters, source, opened) for rule in parameters.rule_list}


def sweep_unit(
    task: str, cuts_of: dict[str, list[Cut]], parameters: TaskParameters, source: Source, opened: Callable,
    wait: bool = True, *, engine: str | None = None, kind: str | None = None,
) -> Unit | None:  # fmt: skip
    """One task under the cuts of some rules: read from results, else measured on the model that `opened()` returns.

    `cuts_of` holds the cuts of each rule; those that rules share are measured once. The tasks of a group are
    units of their own, and the group's unit has what lm-eval makes of them: several processes share them. `engine` is
    what generates answers, see `deeper_layers.sweep`. Cuts of other rules than the paper's may have any shape, and what
    another engine writes may differ by a rounding: both are units of kind "cuts", and scans of a kind of
    their own (`kind`). None where nothing is to be measured and results hold no such unit.

    Raises Taken where another process measures it and `wait` is False.
    """
    cuts = distinct_cuts(cuts_of)
    blocks = _of_blocks(cuts_of, engine, kind)
    pruned = functools.cache(lambda: sweeping.TreeModel(opened()[0], cuts))

    def unit(name: str, wait: bool) -> Unit | None:
        run = functools.partial(measure, name)
        return _measurement(name, task, cuts_of, parameters, source, engine, kind, run).unit(parameters, wait)

    def measure(name, shards):
        if sweeping.is_group(name):
            return of_group(name)
        options = parameters.sweep_options(task)
        how: dict = {"family": pruned()} if engine is None else {"engine": engine}
        table = sweeping.sweep(*opened(), [name], cuts, shards=shards, **how, **options)
        if not blocks and "cut" not in table:  # all are blocks
            table["cut"] = _cut_names(table)
        return table, dict(table.attrs)

    def of_group(name):
        loaded = sweeping.load_tasks([name], datasets=parameters.datasets)
        leaves = tqdm(loaded["tasks"], desc=name, unit="task", file=sys.stderr)
        units = [found for found in each(functools.partial(unit, leaf) for leaf in leaves) if found]
        wanted = {cut.name for cut in cuts}  # a task may have been measured for more
        rows = pd.concat([unit.rows[[name in wanted for name in _cut_names(unit.rows)]] for unit in units])
        table = sweeping.group_rows(loaded["groups"], rows)
        levels = {leaf: level for unit in units for leaf, level in unit.details["levels"].items()}
        return table, {"levels": levels, "units": [unit.path.name for unit in units if unit.path]}

    return unit(task, wait)


def unmeasured(
    task: str, cuts_of: dict[str, list[Cut]], parameters: TaskParameters, source: Source, *, kind: str
) -> list[str]:  # fmt: skip
    """What `sweep_unit` would have to measure: the task itself or, of a group, its tasks that results lack."""

    def held(name: str) -> bool:
        wanted = _measurement(name, task, cuts_of, parameters, source, None, kind, None)
        return wanted.unit(parameters.model_copy(update={"measure": False})) is not None

    if held(task):
        return []
    group = sweeping.is_group(task)
    tasks = sweeping.load_tasks([task], datasets=parameters.datasets)["tasks"] if group else [task]
    return [name for name in tasks if not held(name)]


def _measurement(
    name: str, task: str, cuts_of: dict[str, list[Cut]], parameters: TaskParameters, source: Source,
    engine: str | None, kind: str | None, measure: Callable | None,
) -> Measurement:  # fmt: skip
    """Of a task, or of one task of a group, under some cuts; nothing measures it where `measure` is None."""
    cuts, blocks = distinct_cuts(cuts_of), _of_blocks(cuts_of, engine, kind)
    which = (
        {"rule": ", ".join(cuts_of), "cuts": [[cut.start, cut.size] for cut in cuts]}
        if blocks else {"engine": engine, "cuts": [cut.name for cut in cuts]}
    )  # fmt: skip
    return Measurement(
        kind=(kind or "sweep") if blocks else "cuts", name=name, version=VERSION, source=source,
        settings={
            **parameters.key, "task": name, **which, "limit": parameters.limits[task],
            "num_fewshot": parameters.shots[task],
        },
        reads=items_of([name], parameters.datasets), measure=measure, in_parts=lambda: sweeping.is_group(name),
    )  # fmt: skip


def distinct_cuts(cuts_of: dict[str, list[Cut]]) -> list[Cut]:
    """The cuts of some rules, each once, in order."""
    return sorted({cut for cuts in cuts_of.values() for cut in cuts})


def _of_blocks(cuts_of: dict[str, list[Cut]], engine: str | None, kind: str | None) -> bool:
    """Whether a unit names blocks by their place: those of the paper's rules, or all of a scan."""
    return engine is None and kind != "cuts" and (kind is not None or set(cuts_of) <= set(RULES))


def _cut_names(rows: pd.DataFrame) -> list[str]:
    """The cut of each row by its name; without one all are blocks."""
    if "cut" in rows:
        return rows["cut"].tolist()
    return [Cut(*place).name for place in zip(rows["start"], rows["size"])]
