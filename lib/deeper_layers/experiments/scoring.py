"""Pruned models on tasks, under any prompt, engine or rule, and their losses on text: results of the kind "scores".

Source: Gromov et al., arXiv 2403.17887, figures 1d, 2, 3, 5, 6 and 7.
"""

from collections.abc import Callable, Iterable, Sequence

from deeper_layers import data, results, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.choosing import choose_cuts
from deeper_layers.experiments.experiment import CutsOf, Data, Experiment, distinct_cuts, named
from deeper_layers.experiments.parameters import numbers_in
from deeper_layers.files import Timeout
from deeper_layers.results.packing import ITEM_BY_ITEM
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result
from deeper_layers.sweeping.planning import Requests

BLOCKS = "blocks of {}"  # what the rule of every block of a size is called
OF_BLOCKS = 512  # tokens of a batch where many blocks run together: a part of the work is done in minutes


def cuts_of_tasks(experiment: Experiment) -> dict[str, CutsOf]:
    """For each task the cuts of each rule, of the sizes that are asked for, from what is known or is measured now."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    if parameters.measure:  # items that can't be read are told of before anything is measured
        tasks = [task for task in parameters.asked if task not in data.CORPORA]
        new = [task for task in tasks if not results.is_measured(task, parameters.results_folder)]
        for items in experiment.items(new):
            items.fingerprint()
    return {task: choose_cuts(parameters.size_list(layers, task), experiment) for task in parameters.asked}


def blocks(sizes: Iterable[int], num_layers: int, starts: Sequence[int] = ()) -> CutsOf:
    """The whole model and every contiguous block of some sizes, that with the last layer too; or of some starts.

    Raises InputError for a block that the model does not have.
    """
    found = {}
    for size in (size for size in sizes if size):
        found[BLOCKS.format(size)] = [UNPRUNED]
        for start in starts or range(num_layers - size + 1):
            cut = Cut(start, size)
            cut.check(num_layers)
            found[BLOCKS.format(size)].append(cut)
    return found


def scan_cuts(experiment: Experiment) -> dict[str, CutsOf]:
    """For each task and text the blocks that are asked for, the whole model among them; or as `cuts_of_tasks`.

    Raises InputError where the model is too small for such blocks, or has no such starts.
    """
    parameters, layers = experiment.parameters, experiment.source.num_layers
    if parameters.blocks is None:
        return cuts_of_tasks(experiment)
    if parameters.blocks >= layers:
        raise InputError(f"blocks is {parameters.blocks}, expected less than the model's {layers} layers")
    return dict.fromkeys(parameters.asked, blocks([parameters.blocks], layers, numbers_in(parameters.starts)))


def sweep_tasks(parameters, source) -> tuple[dict[str, CutsOf], dict[str, Result | None]]:
    """Of each task of `SweepParameters` the cuts by rule, and its scores, as `score_each` has them."""
    # where another engine generates, the accelerator is for it
    experiment = Experiment(parameters if parameters.engine is None else parameters.but(device="cpu"), source)
    cut = parameters.given_cut
    cuts = cuts_of_tasks(experiment) if cut is None else dict.fromkeys(parameters.asked, {GIVEN: [UNPRUNED, cut]})
    return cuts, score_each(cuts, experiment, engine=parameters.engine)


def score_each(cuts: dict[str, CutsOf], experiment: Experiment, **how) -> dict[str, Result | None]:
    """The scores of each task or text by itself, under its cuts by rule: see `score`.

    Those that other processes are at work on are waited for when all others are there.
    """
    found: dict[str, Result | None] = dict.fromkeys(cuts)
    taken = []
    for name in cuts:
        try:
            found[name] = score([name], cuts[name], experiment.but(waits=False), **how)
        except Timeout:
            taken.append(name)
    return found | {name: score([name], cuts[name], experiment, **how) for name in taken}


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
                options = _options(asked, parameters) | _batches(cuts[name])
                plans[name] = sweeping.plan(*opened, [name], distinct, **options)
    return plans


def score(
    names: Iterable[str],
    cuts_of: CutsOf,
    experiment: Experiment,
    *,
    prompt: dict | None = None,
    engine: str | None = None,
    changed: Callable[[Cut], object] | None = None,
    reads: Iterable[Data] = (),
    details: dict | None = None,
    **settings,
) -> Result | None:
    """Tasks, groups and texts under the cuts of some rules: read from results, else measured.

    Args:
        names: of `parameters.questions`, which says what is asked of each.
        prompt: number ("shots") and "order" of the examples in it, where they are not the usual ones.
        engine: what generates answers, see `deeper_layers.sweep`.
        changed: what gives the model that is left after a cut, where weights change too; it depends on `reads`.
        details: what is kept besides.
        settings: what else determines the numbers.

    Returns:
        None where nothing is to be measured and results hold no such scores.
    """
    asked = {name: experiment.parameters.questions[name] | (prompt or {}) for name in names}
    settings |= experiment.parameters.key | {"tasks": asked, "cuts": named(cuts_of)}

    def measure(shards):
        how: dict = {"changed": changed, "engine": engine} | _batches(cuts_of)
        cuts, parameters = distinct_cuts(cuts_of), experiment.parameters
        rows, found = answered(asked, experiment.opened(), cuts, parameters, shards, **how)
        return rows, found | (details or {})

    settings |= {"engine": engine} if engine else {}
    return experiment.result("scores", settings, [*reads, *data_of(asked, experiment)], measure)


def answered(
    asked: dict[str, dict],
    opened: tuple,
    cuts: list[Cut],
    parameters,
    shards: Shards,
    *,
    changed: Callable[[Cut], object] | None = None,
    engine: str | None = None,
    **batches,
) -> tuple[list[dict], dict]:
    """Rows and details of pruned models on tasks and texts, of which it is `asked` as a key has it; see `score`."""
    (model, tokenizer), rows, details = opened, [], {"levels": {}, "groups": {}, "targets": {}}
    if changed is not None:
        for cut in cuts:
            whole = (changed(cut), tokenizer), [UNPRUNED], parameters, shards.part(cut.name)
            of_cut, details = answered(asked, *whole, engine=engine, **batches)
            rows += as_cut(of_cut, cut)
        return rows, details
    for name, of_name in asked.items():
        if "length" in of_name:
            requests = requests_of(name, of_name, *opened, parameters.datasets)
            rows += _loss_rows(name, model, cuts, requests, shards=shards.part(name), **batches)
            details["vocabulary"] = model.get_output_embeddings().weight.shape[0]
        else:
            options = _options(of_name, parameters) | batches | {"engine": engine, "shards": shards.part(name)}
            rows += _task_rows(name, opened, cuts, options, details)
    return rows, details


def as_cut(rows: list[dict], cut: Cut) -> list[dict]:
    """Rows of what was run whole, as those of the cut that it is."""
    return [row | {"cut": cut.name} for row in rows]


def _options(asked: dict, parameters) -> dict:
    """What `deeper_layers.sweep` is told besides the model, the task and the cuts."""
    order = {"fewshot_order": asked["order"]} if "order" in asked else {}
    prompt = {"num_fewshot": asked["shots"], "limit": asked["limit"]} | order
    return prompt | {"datasets": parameters.datasets, "memory": parameters.memory * 2**30}


def _batches(cuts_of: CutsOf) -> dict:
    return {"batch_tokens": OF_BLOCKS} if any(rule.startswith(BLOCKS.format("")) for rule in cuts_of) else {}


def data_of(asked: dict[str, dict], experiment: Experiment) -> list[Data]:
    """What is read of texts, and then of tasks, by what is asked of each."""
    texts = {name: of_text for name, of_text in asked.items() if "length" in of_text}
    found = [
        experiment.text(name, **({"split": "validation"} if of_text["length"] else {"documents": of_text["limit"]}))
        for name, of_text in texts.items()
    ]
    return found + experiment.items(asked.keys() - texts)


# ---- losses on text ---------------------------------------------------------------------------------------------


def requests_of(text: str, asked: dict, model, tokenizer, datasets: str | None) -> Requests:
    """What is predicted of a text, as `sweeping.request_loss` takes it; `asked` has its "limit" and its "length".

    The first so many sequences of a corpus' validation split, of so many tokens, or gold solutions, given their
    problems. Raises InputError where the corpus has too few.
    """
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


def _loss_rows(text: str, model, cuts: list[Cut], requests: Requests, **how) -> list[dict]:
    """A row for each cut in order, with the loss of each sequence."""
    rows, by_cut = sweeping.request_loss(model, cuts, requests, **how)
    return [
        {"task": text, "cut": cut.name, "outcome": by_cut[cut.name]}
        | {name: row[name] for name in ("metric", "value", "stderr", "items")}
        for row, cut in zip(rows.to_dict("records"), cuts, strict=True)
    ]


# ---- tasks of lm-eval -------------------------------------------------------------------------------------------


def _task_rows(task: str, opened: tuple, cuts: list[Cut], options: dict, details: dict) -> list[dict]:
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
        rows.append({name: row[name] for name in ("task", "metric", "value", "stderr", "items")} | {"cut": cut} | kept)
    return rows
