"""Score pruned models on tasks, under any prompt, engine or rule, and measure their losses on text: kind "scores".

Source: Gromov et al., arXiv 2403.17887, figures 1d, 2, 3, 5, 6 and 7.
"""

from collections.abc import Callable, Iterable

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.packing import ITEM_BY_ITEM
from deeper_layers.sweeping.planning import Requests
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.experiments.experiment import CutsByRule, Data, Experiment, name_cuts, sort_cuts
from deeper_layers_companion.results.store import Result

MEASURED = ("metric", "value", "stderr", "items")


def score_each(cuts: dict[str, CutsByRule], experiment: Experiment) -> dict[str, Result | None]:
    """One result for each task or text, with its cuts by rule: see `score`."""
    return {name: score([name], cuts_by_rule, experiment) for name, cuts_by_rule in cuts.items()}


def plan_each(cuts: dict[str, CutsByRule], experiment: Experiment) -> dict[str, "sweeping.Plan"]:
    """The plan of each task and text that results lack: what would run, and how long. Only a small batch is run."""
    parameters, plans = experiment.parameters, {}
    for name, result in score_each(cuts, experiment.replace(measure=False)).items():
        if result is None:
            opened, settings, distinct = experiment.open_model(), parameters.task_settings[name], sort_cuts(cuts[name])
            if "length" in settings:
                tree = sweeping.TreeModel(opened[0], distinct)
                plans[name] = sweeping.plan_requests(tree, make_requests(name, settings, *opened, parameters.datasets))
            else:
                plans[name] = sweeping.plan(*opened, [name], distinct, **_make_sweep_options(settings, parameters))
    return plans


def score(
    names: Iterable[str],
    cuts_by_rule: CutsByRule,
    experiment: Experiment,
    *,
    prompt: dict | None = None,
    changed: Callable[[Cut], object] | None = None,
    reads: Iterable[Data] = (),
    details: dict | None = None,
    **settings,
) -> Result | None:
    """Score tasks, groups and texts under the cuts of each rule: read from results, else measured.

    Args:
        prompt: the number ("shots") and "order" of the examples in the prompt, if not the usual ones.
        changed: a function from a cut to the model it leaves, where weights change too; `reads` are the data it uses.
        details: further details to keep.
        settings: further settings that determine the numbers.

    Returns None if nothing is to be measured and results hold no such scores.
    """
    parameters = experiment.parameters
    tasks = {name: parameters.task_settings[name] | (prompt or {}) for name in names}
    engine = {"engine": parameters.engine} if getattr(parameters, "engine", None) else {}
    settings |= parameters.base_settings | {"tasks": tasks, "cuts": name_cuts(cuts_by_rule)} | engine

    def measure(shards):
        kwargs = {"changed": changed} | engine
        rows, more = score_models(tasks, experiment.open_model(), sort_cuts(cuts_by_rule), parameters, shards, **kwargs)
        return rows, more | (details or {})

    return experiment.find_or_measure("scores", settings, [*reads, *list_data(tasks)], measure)


def score_models(
    tasks: dict[str, dict],
    opened: tuple,
    cuts: list[Cut],
    parameters,
    shards: Shards,
    *,
    changed: Callable[[Cut], object] | None = None,
    **engine,
) -> tuple[list[dict], dict]:
    """Rows and details of pruned models on tasks and texts, whose settings are those of a key; see `score`."""
    (model, tokenizer), rows, details = opened, [], {"levels": {}, "groups": {}, "targets": {}}
    if changed is not None:
        for cut in cuts:
            uncut = (changed(cut), tokenizer), [UNPRUNED], parameters, shards.part(cut.name)
            of_cut, details = score_models(tasks, *uncut, **engine)
            rows += [row | {"cut": cut.name} for row in of_cut]
        return rows, details
    for name, task_settings in tasks.items():
        part = shards.part(name)
        if "length" in task_settings:
            requests = make_requests(name, task_settings, *opened, parameters.datasets)
            table, losses = sweeping.request_loss(model, cuts, requests, shards=part)
            for cut, row in zip(cuts, table.to_dict("records"), strict=True):
                of_cut = {"task": name, "cut": cut.name, "outcome": losses[cut.name]}
                rows.append(of_cut | {of: row[of] for of in MEASURED})
            details["vocabulary"] = model.get_output_embeddings().weight.shape[0]
        else:
            options = _make_sweep_options(task_settings, parameters) | engine | {"shards": part}
            rows += _score_task(name, opened, cuts, details, **options)
    return rows, details


def _make_sweep_options(settings: dict, parameters) -> dict:
    """The keyword arguments of `deeper_layers.sweep` for the settings of a task."""
    order = {"fewshot_order": settings["order"]} if "order" in settings else {}
    prompt = {"num_fewshot": settings["shots"], "limit": settings["limit"]} | order
    return prompt | {"datasets": parameters.datasets, "memory": parameters.memory * 2**30}


def list_data(tasks: dict[str, dict]) -> list[Data]:
    """The data that are read: texts first, then tasks by name."""
    texts = [
        Data(name, {"split": "validation"} if settings["length"] else {"documents": settings["limit"]})
        for name, settings in tasks.items()
        if "length" in settings
    ]
    return texts + [Data(name) for name in sorted(tasks) if "length" not in tasks[name]]


def make_requests(text: str, settings: dict, model, tokenizer, datasets: str | None) -> Requests:
    """The requests for the loss on a text: the first sequences of its validation split, "limit" of them, each of
    "length" tokens; if "length" is 0, gold solutions given their problems."""
    limit, length = settings["limit"], settings["length"]
    if not length:
        return sweeping.answer_requests(model, tokenizer, data.solved_problems(datasets=datasets, documents=limit))
    documents = data.texts(text, split="validation", datasets=datasets)
    sequences = data.token_sequences(tokenizer, documents, length=length, tokens=limit * length)
    if len(sequences) < limit:
        raise InputError(
            f"loss_sequences is {limit}, but the corpus fills {len(sequences)} of {length} tokens: ask for fewer"
        )
    return sweeping.text_requests(sequences)


def _score_task(task: str, opened: tuple, cuts: list[Cut], details: dict, **options) -> list[dict]:
    """The rows of a task, or of a group and all its tasks. Levels, groups and targets are added to `details`."""
    table = sweeping.sweep(*opened, [task], cuts, **options)
    outcomes, rows = table.attrs["outcomes"], []  # by cut, task and metric, packed
    details["levels"] |= table.attrs["levels"]
    leaves = sorted(outcomes[cuts[0].name])
    if leaves != [task]:
        details["groups"] |= {name: [] for name in table["task"] if name not in leaves} | {task: leaves}
    for row in table.to_dict("records"):
        cut = row.get("cut") or Cut(row["start"], row["size"]).name
        task_outcomes = outcomes[cut].get(row["task"], {})
        if "target" in task_outcomes:
            details["targets"][row["task"]] = task_outcomes.pop("target")
        per_item = {"outcome": task_outcomes[row["metric"]]} if row["metric"] in task_outcomes else {}
        # the chosen answers stand only in the first row of a task and cut
        per_item |= {name: task_outcomes.pop(name) for name in ITEM_BY_ITEM if name in task_outcomes}
        rows.append({name: row[name] for name in ("task", *MEASURED)} | {"cut": cut} | per_item)
    return rows
