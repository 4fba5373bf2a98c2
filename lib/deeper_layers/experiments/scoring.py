"""Pruned models on tasks, under any prompt, engine or rule, and their losses on text: results of the kind "scores".

Source: Gromov et al., arXiv 2403.17887, figures 1d, 2, 3, 5, 6 and 7.
"""

from collections.abc import Callable, Iterable

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import CutsOf, Data, Experiment, distinct_cuts, named
from deeper_layers.results.packing import ITEM_BY_ITEM
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result
from deeper_layers.sweeping.planning import Requests

NUMBERS = ("metric", "value", "stderr", "items")


def score_each(cuts: dict[str, CutsOf], experiment: Experiment) -> dict[str, Result | None]:
    """The scores of each task or text by itself, under its cuts by rule: see `score`."""
    return {name: score([name], cuts_of, experiment) for name, cuts_of in cuts.items()}


def plan_each(cuts: dict[str, CutsOf], experiment: Experiment) -> dict[str, "sweeping.Plan"]:
    """Of each task and text that results lack what it would run and how long. Only a small batch is run."""
    parameters, plans = experiment.parameters, {}
    for name, found in score_each(cuts, experiment.but(measure=False)).items():
        if found is None:
            opened, asked, distinct = experiment.opened(), parameters.questions[name], distinct_cuts(cuts[name])
            if "length" in asked:
                family = sweeping.TreeModel(opened[0], distinct)
                plans[name] = sweeping.plan_requests(family, requests_of(name, asked, *opened, parameters.datasets))
            else:
                plans[name] = sweeping.plan(*opened, [name], distinct, **_options(asked, parameters))
    return plans


def score(
    names: Iterable[str],
    cuts_of: CutsOf,
    experiment: Experiment,
    *,
    prompt: dict | None = None,
    changed: Callable[[Cut], object] | None = None,
    reads: Iterable[Data] = (),
    details: dict | None = None,
    **settings,
) -> Result | None:
    """Tasks, groups and texts of `parameters.questions` under the cuts of some rules: read from results, else measured.

    Args:
        prompt: number ("shots") and "order" of the examples in it, where they are not the usual ones.
        changed: what gives the model that is left after a cut, where weights change too; it depends on `reads`.
        details: what is kept besides.
        settings: what else determines the numbers.

    Returns None where nothing is to be measured and results hold no such scores.
    """
    parameters = experiment.parameters
    asked = {name: parameters.questions[name] | (prompt or {}) for name in names}
    engine = {"engine": parameters.engine} if getattr(parameters, "engine", None) else {}
    settings |= parameters.key | {"tasks": asked, "cuts": named(cuts_of)} | engine

    def measure(shards):
        how = {"changed": changed} | engine
        rows, found = answered(asked, experiment.opened(), distinct_cuts(cuts_of), parameters, shards, **how)
        return rows, found | (details or {})

    return experiment.result("scores", settings, [*reads, *data_of(asked)], measure)


def answered(
    asked: dict[str, dict],
    opened: tuple,
    cuts: list[Cut],
    parameters,
    shards: Shards,
    *,
    changed: Callable[[Cut], object] | None = None,
    **engine,
) -> tuple[list[dict], dict]:
    """Rows and details of pruned models on tasks and texts, of which it is `asked` as a key has it; see `score`."""
    (model, tokenizer), rows, details = opened, [], {"levels": {}, "groups": {}, "targets": {}}
    if changed is not None:
        for cut in cuts:
            whole = (changed(cut), tokenizer), [UNPRUNED], parameters, shards.part(cut.name)
            of_cut, details = answered(asked, *whole, **engine)
            rows += [row | {"cut": cut.name} for row in of_cut]
        return rows, details
    for name, of_name in asked.items():
        part = shards.part(name)
        if "length" in of_name:
            requests = requests_of(name, of_name, *opened, parameters.datasets)
            table, losses = sweeping.request_loss(model, cuts, requests, shards=part)
            for cut, row in zip(cuts, table.to_dict("records"), strict=True):
                of_cut = {"task": name, "cut": cut.name, "outcome": losses[cut.name]}
                rows.append(of_cut | {of: row[of] for of in NUMBERS})
            details["vocabulary"] = model.get_output_embeddings().weight.shape[0]
        else:
            how = _options(of_name, parameters) | engine | {"shards": part}
            rows += _task_rows(name, opened, cuts, details, **how)
    return rows, details


def _options(asked: dict, parameters) -> dict:
    """What `deeper_layers.sweep` is told besides the model, the task and the cuts."""
    order = {"fewshot_order": asked["order"]} if "order" in asked else {}
    prompt = {"num_fewshot": asked["shots"], "limit": asked["limit"]} | order
    return prompt | {"datasets": parameters.datasets, "memory": parameters.memory * 2**30}


def data_of(asked: dict[str, dict]) -> list[Data]:
    """What is read of texts, and then of tasks by name, by what is asked of each."""
    texts = [
        Data(name, {"split": "validation"} if of_text["length"] else {"documents": of_text["limit"]})
        for name, of_text in asked.items()
        if "length" in of_text
    ]
    return texts + [Data(name) for name in sorted(asked) if "length" not in asked[name]]


def requests_of(text: str, asked: dict, model, tokenizer, datasets: str | None) -> Requests:
    """What is predicted of a text, as `sweeping.request_loss` takes it: the first so many sequences ("limit") of its
    validation split, of so many tokens ("length"), or gold solutions, given their problems."""
    limit, length = asked["limit"], asked["length"]
    if not length:
        return sweeping.answer_requests(model, tokenizer, data.solved_problems(datasets=datasets, documents=limit))
    documents = data.texts(text, split="validation", datasets=datasets)
    found = data.sequences(tokenizer, documents, length=length, tokens=limit * length)
    if len(found) < limit:
        raise InputError(
            f"loss_sequences is {limit}, but the corpus fills {len(found)} of {length} tokens: ask for fewer"
        )
    return sweeping.text_requests(found)


def _task_rows(task: str, opened: tuple, cuts: list[Cut], details: dict, **options) -> list[dict]:
    """The rows of a task, or of a group and all that are in it; `details` are added to."""
    table = sweeping.sweep(*opened, [task], cuts, **options)
    outcomes, rows = table.attrs["outcomes"], []  # by cut, task and metric, packed
    details["levels"] |= table.attrs["levels"]
    leaves = sorted(outcomes[cuts[0].name])
    if leaves != [task]:
        details["groups"] |= {name: [] for name in table["task"] if name not in leaves} | {task: leaves}
    for row in table.to_dict("records"):
        cut = row.get("cut") or Cut(row["start"], row["size"]).name
        of_task = outcomes[cut].get(row["task"], {})
        if "target" in of_task:
            details["targets"][row["task"]] = of_task.pop("target")
        kept = {"outcome": of_task[row["metric"]]} if row["metric"] in of_task else {}
        # what was chosen, in the first row of a task and cut alone
        kept |= {name: of_task.pop(name) for name in ITEM_BY_ITEM if name in of_task}
        rows.append({name: row[name] for name in ("task", *NUMBERS)} | {"cut": cut} | kept)
    return rows
