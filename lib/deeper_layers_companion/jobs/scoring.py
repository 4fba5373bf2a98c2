"""Score pruned models on tasks and texts, as the key of a job says: the rows and details of its result.

Source: Gromov et al., arXiv 2403.17887, figures 1d, 2, 3, 5, 6 and 7.
"""

from collections.abc import Callable
from typing import Any

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.packing import ITEM_BY_ITEM, pack_halves
from deeper_layers.sweeping.planning import Requests
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.jobs.job import Job

Measured = tuple[list[dict], dict]  # rows and details
SCORE = ("metric", "value", "stderr", "items")
COMPARED = ("agreement", "overlap", "kl")  # with the whole model, of losses


def score_changed(
    job: Job,
    opened: tuple,
    changed: Callable[[Cut], Any],
    options,
    shards: Shards,
    cuts: list[Cut] | None = None,
) -> Measured:
    """Rows and details of models whose weights change too; `changed` is a function from a cut to the model it leaves.
    Without `cuts`, those of the key."""
    rows = []
    details = {}
    for cut in job.cuts if cuts is None else cuts:
        model = changed(cut)
        of_cut, details = score_models(
            job, (model, opened[1]), [UNPRUNED], options, shards.part(cut.name)
        )
        rows += [row | {"cut": cut.name} for row in of_cut]
    return rows, details


def score_models(job: Job, opened: tuple, cuts: list[Cut], options, shards: Shards) -> Measured:
    """Rows and details of pruned models on the tasks and texts of a key."""
    model, tokenizer = opened
    rows: list[dict] = []
    details: dict = {"levels": {}, "groups": {}, "targets": {}}
    for name, settings in job.key["tasks"].items():
        part = shards.part(name)
        if "length" in settings:
            requests = make_requests(name, settings, model, tokenizer, options.datasets)
            rows += _measure_losses(name, model, cuts, requests, part)
            details["vocabulary"] = model.get_output_embeddings().weight.shape[0]
        else:
            table = sweeping.sweep(
                model, tokenizer, [name], cuts, shards=part, **sweep_options(settings, options)
            )
            rows += list_task_rows(name, table, cuts, details)
    return rows, details


def sweep_options(settings: dict, options) -> dict:
    """The keyword arguments of `deeper_layers.sweep` for the settings of a task."""
    order = {"fewshot_order": settings["order"]} if "order" in settings else {}
    prompt = {"num_fewshot": settings["shots"], "limit": settings["limit"]} | order
    return prompt | {"datasets": options.datasets, "memory": options.memory * 2**30}


def make_requests(text: str, settings: dict, model, tokenizer, datasets: str | None) -> Requests:
    """The requests for the loss on a text: the first sequences of its validation split, "limit" of them, each of
    "length" tokens; if "length" is 0, gold solutions given their problems."""
    limit = settings["limit"]
    length = settings["length"]
    if not length:
        return sweeping.answer_requests(
            model, tokenizer, data.solved_problems(datasets=datasets, documents=limit)
        )
    documents = data.texts(text, split="validation", datasets=datasets)
    sequences = data.token_sequences(tokenizer, documents, length=length, tokens=limit * length)
    if len(sequences) < limit:
        raise InputError(
            f"loss_sequences is {limit}, but the corpus fills {len(sequences)} of {length} tokens: ask for fewer"
        )
    return sweeping.text_requests(sequences)


def _measure_losses(
    text: str, model, cuts: list[Cut], requests: Requests, shards: Shards
) -> list[dict]:
    # a model that was changed stands alone as UNPRUNED: it would only be compared with itself
    compares = UNPRUNED in cuts and len(cuts) > 1
    table, losses = sweeping.request_loss(model, cuts, requests, shards=shards, compares=compares)
    rows = []
    for cut, row in zip(cuts, table.to_dict("records"), strict=True):
        of_cut = {"task": text, "cut": cut.name, "outcome": losses[cut.name]}
        of_cut |= {name: row[name] for name in SCORE}
        if compares:
            of_cut |= {name: row[name] for name in COMPARED}
            of_cut["compared"] = pack_halves(table.attrs["compared"][cut.name])
        rows.append(of_cut)
    return rows


def list_task_rows(task: str, table, cuts: list[Cut], details: dict) -> list[dict]:
    """The rows of a task, or of a group and all its tasks. Levels, groups and targets are added to `details`."""
    outcomes, rows = table.attrs["outcomes"], []  # by cut, task and metric, packed
    details["levels"] |= table.attrs["levels"]
    leaves = sorted(outcomes[cuts[0].name])
    if leaves != [task]:
        details["groups"] |= {name: [] for name in table["task"] if name not in leaves} | {
            task: leaves
        }
    for row in table.to_dict("records"):
        cut = row.get("cut") or Cut(row["start"], row["size"]).name
        task_outcomes = outcomes[cut].get(row["task"], {})
        if "target" in task_outcomes:
            details["targets"][row["task"]] = task_outcomes.pop("target")
        per_item = (
            {"outcome": task_outcomes[row["metric"]]} if row["metric"] in task_outcomes else {}
        )
        # the chosen answers stand only in the first row of a task and cut
        per_item |= {
            name: task_outcomes.pop(name) for name in ITEM_BY_ITEM if name in task_outcomes
        }
        rows.append({name: row[name] for name in ("task", *SCORE)} | {"cut": cut} | per_item)
    return rows
