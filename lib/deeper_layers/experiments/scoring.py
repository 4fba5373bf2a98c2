"""Pruned models on tasks, under any prompt, engine or rule: results of the kind "scores".

Source: Gromov et al., arXiv 2403.17887, figures 1d, 2, 5, 6 and 7.
"""

import sys
from collections.abc import Callable

import pandas as pd
from tqdm import tqdm

from deeper_layers import data, results, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.experiments.choosing import choose_cuts
from deeper_layers.experiments.experiment import CutsOf, Experiment
from deeper_layers.experiments.parameters import SweepParameters, TaskParameters
from deeper_layers.files import Timeout
from deeper_layers.results.packing import ITEM_BY_ITEM
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result


def cuts_of_tasks(experiment: Experiment) -> dict[str, CutsOf]:
    """For each task the cuts of each rule, of the sizes that are asked for, from what is known or is measured now."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    if parameters.measure:  # items that can't be read are told of before anything is measured
        tasks = [task for task in parameters.asked if task not in data.CORPORA]
        new = [task for task in tasks if not results.is_measured(task, parameters.results_folder)]
        for items in experiment.items(new):
            items.fingerprint()
    return {task: choose_cuts(parameters.size_list(layers, task), experiment) for task in parameters.asked}


def sweep_tasks(parameters: SweepParameters, source) -> tuple[dict[str, CutsOf], dict[str, Result | None]]:
    """Of each task of a sweep the cuts by rule, and its result: read or measured now; None for what is not measured.

    Tasks that other processes are at work on are waited for when all others are there.
    """
    # where another engine generates, the accelerator is for it
    opens = parameters if parameters.engine is None else parameters.but(device="cpu")
    experiment = Experiment(opens, source)
    if (cut := parameters.given_cut) is None:
        cuts = cuts_of_tasks(experiment)
    else:
        cuts = {task: {GIVEN: [UNPRUNED, cut]} for task in parameters.asked}
    found: dict[str, Result | None] = dict.fromkeys(cuts)
    taken = []
    for task in cuts:
        try:
            found[task] = score_task(task, cuts[task], experiment.at_once(), engine=parameters.engine)
        except Timeout:
            taken.append(task)
    return cuts, found | {task: score_task(task, cuts[task], experiment, engine=parameters.engine) for task in taken}


def score_task(
    task: str,
    cuts_of: CutsOf,
    experiment: Experiment,
    *,
    prompt: dict | None = None,
    engine: str | None = None,
    sizes: dict[str, int] | None = None,
    changed: Callable[[Cut], object] | None = None,
) -> Result | None:
    """A task or group under the cuts of some rules: read from results, else measured.

    Args:
        prompt: number ("shots") and "order" of the examples in it, where they are not the usual ones.
        engine: what generates answers, see `deeper_layers.sweep`.
        sizes: of cuts of sublayers, by name, what their rule counts them as.
        changed: what gives the model that is left after a cut, where a rule changes weights too.

    Returns:
        None where nothing is to be measured and results hold no such scores.
    """
    parameters = experiment.parameters
    asked = parameters.asked[task].key | (prompt or {})
    how = {"engine": engine, "num_fewshot": asked["shots"], "fewshot_order": asked.get("order", 0)}

    def measure(cuts, shards):
        model, tokenizer = experiment.opened()
        if changed is None:
            rows, details = score(model, tokenizer, [task], cuts, parameters, shards, **how)
        else:
            rows, details = [], {}
            for cut in cuts:
                part = shards.part(cut.name)
                whole, details = score(changed(cut), tokenizer, [task], [UNPRUNED], parameters, part, **how)
                rows += as_cut(whole, cut)
        return rows, details | {"sizes": sizes or {}}

    settings, reads = parameters.key | ({"engine": engine} if engine else {}), experiment.items([task])
    if changed is not None:
        settings |= {"calibration": parameters.calibration}
        reads = [experiment.text(parameters.corpus, split="train"), *reads]
    return experiment.scores({task: asked}, cuts_of, reads, measure, **settings)


def as_cut(rows: list[dict], cut: Cut) -> list[dict]:
    """Rows of what was run whole, as those of the cut that it is."""
    return [row | {"cut": cut.name} for row in rows]


def score(
    model, tokenizer, tasks: list[str], cuts: list[Cut], parameters: TaskParameters, shards: Shards, **how
) -> tuple[list[dict], dict]:
    """Rows and details of pruned models on some tasks; of a group on one of its tasks after another."""
    rows: list[dict] = []
    details: dict = {"levels": {}, "groups": {}, "targets": {}}
    family = None if how.get("engine") else sweeping.TreeModel(model, cuts)
    for task in tasks:
        loaded: dict = {"tasks": [task], "groups": {}}
        if sweeping.is_group(task):
            loaded = sweeping.load_tasks([task], datasets=parameters.datasets)
            details["groups"] |= {task: sorted(loaded["tasks"])}
        options = parameters.sweep_options(task) | how
        tables: list[pd.DataFrame] = []
        try:
            for leaf in tqdm(loaded["tasks"], desc=task, unit="task", file=sys.stderr, disable=not loaded["groups"]):
                part = shards.part(leaf)
                tables.append(sweeping.sweep(model, tokenizer, [leaf], cuts, shards=part, family=family, **options))
        except KeyboardInterrupt:
            if tables:
                print(_so_far(task, tables, len(loaded["tasks"])), file=sys.stderr)
            raise
        table = pd.concat(tables, ignore_index=True)
        if loaded["groups"] and (of_groups := sweeping.group_rows(loaded["groups"], table)) is not table:
            inner = (name for name in of_groups["task"] if name not in loaded["tasks"])
            details["groups"] |= {name: [] for name in inner if name not in details["groups"]}
            table = pd.concat([table, of_groups], ignore_index=True)
        packed = {
            (cut, name): of_task
            for of in tables
            for cut, of_cut in of.attrs["outcomes"].items()
            for name, of_task in of_cut.items()
        }
        rows += _with_outcomes(table, packed)
        details["targets"] |= {name: of_task["target"] for (_, name), of_task in packed.items() if "target" in of_task}
        for of in tables:
            details["levels"] |= of.attrs["levels"]
    return rows, details


def _so_far(group: str, tables: list[pd.DataFrame], number: int) -> str:
    """What is known of a group when it is interrupted: by cut the mean of the tasks that were finished."""
    every = pd.concat(tables)
    every = every[every["metric"] == every["metric"].iloc[0]]
    means = every.groupby(["size", "start"], dropna=False)["value"].mean()
    lines = [f"  n = {size}, l = {start}: {value:.3f}" for (size, start), value in means.items()]
    return "\n".join([f"\n{group}: {len(tables)} of {number} tasks, mean of {every['metric'].iloc[0]}", *lines])


def _with_outcomes(table: pd.DataFrame, packed: dict[tuple[str, str], dict]) -> list[dict]:
    """Each row with what came out of its items, by cut and task; what was chosen in the first row of these alone."""
    rows = []
    for row in table.to_dict("records"):
        cut = row.get("cut") or Cut(row["start"], row["size"]).name
        of_task = packed.get((cut, row["task"]), {})
        kept = {"outcome": of_task[row["metric"]]} if row["metric"] in of_task else {}
        kept |= {name: of_task.pop(name) for name in ITEM_BY_ITEM if name in of_task}
        rows.append({name: row[name] for name in ("task", "metric", "value", "stderr", "items")} | {"cut": cut} | kept)
    return rows
