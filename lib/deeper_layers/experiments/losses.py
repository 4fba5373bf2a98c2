"""Losses on text of pruned models, not healed, and scans of every block: results of the kind "scores".

Source: Gromov et al., arXiv 2403.17887, figure 3 (losses of pruned models).
"""

from collections.abc import Iterable, Sequence

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import CutsOf, Data, Experiment, distinct_cuts
from deeper_layers.experiments.lists import numbers_in
from deeper_layers.experiments.notebook_parameters import OF_BLOCKS
from deeper_layers.experiments.scoring import cuts_of_tasks, score_task
from deeper_layers.results.store import Result
from deeper_layers.sweeping.planning import Requests

BLOCKS = "blocks of {}"  # what the rule of every block of a size is called


def blocks(sizes: Iterable[int], num_layers: int, starts: Sequence[int] = ()) -> CutsOf:
    """The whole model and every contiguous block of some sizes, that with the last layer too; or of some starts.

    Raises InputError for a block that the model does not have.
    """
    found = {}
    for size in (size for size in sizes if size):
        cuts = [Cut(start, size) for start in starts or range(num_layers - size + 1)]
        for cut in cuts:
            cut.check(num_layers)
        found[BLOCKS.format(size)] = [UNPRUNED, *cuts]
    return found


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


def loss_data(text: str, asked: dict, experiment: Experiment) -> Data:
    """What is read for `requests_of`."""
    part = {"split": "validation"} if asked["length"] else {"documents": asked["limit"]}
    return experiment.text(text, **part)


def loss_rows(text: str, model, cuts: list[Cut], requests: Requests, **how) -> list[dict]:
    """Rows of losses, one for each cut in order, with the loss of each sequence; `how` is of `request_loss`."""
    rows, by_cut = sweeping.request_loss(model, cuts, requests, **how)
    return [
        {"task": text, "cut": cut.name, "outcome": by_cut[cut.name]}
        | {name: row[name] for name in ("metric", "value", "stderr", "items")}
        for row, cut in zip(rows.to_dict("records"), cuts, strict=True)
    ]


def score_text(text: str, asked: dict, cuts_of: CutsOf, experiment: Experiment) -> Result | None:
    """Losses of pruned models; None where nothing is to be measured and results hold no such losses.

    What it will cost is printed before it runs. Of blocks, of which there are hundreds, each part is done in minutes.
    """
    parameters = experiment.parameters

    def measure(cuts, shards):
        model, tokenizer = experiment.opened()
        of_blocks = any(rule.startswith(BLOCKS.format("")) for rule in cuts_of)
        how = {"shards": shards, "batch_tokens": OF_BLOCKS if of_blocks else None}
        rows = loss_rows(text, model, cuts, requests_of(text, asked, model, tokenizer, parameters.datasets), **how)
        return rows, {"vocabulary": model.get_output_embeddings().weight.shape[0]}

    return experiment.scores({text: asked}, cuts_of, [loss_data(text, asked, experiment)], measure, **parameters.key)


def scan_cuts(experiment: Experiment) -> dict[str, CutsOf]:
    """For each task and text the cuts that are asked for, by what they have in common; the whole model is one of them.

    Raises InputError where the model is too small for such blocks, or has no such starts.
    """
    parameters, layers = experiment.parameters, experiment.source.num_layers
    if parameters.blocks is None:
        return cuts_of_tasks(experiment)
    if parameters.blocks >= layers:
        raise InputError(f"blocks is {parameters.blocks}, expected less than the model's {layers} layers")
    return dict.fromkeys(parameters.asked, blocks([parameters.blocks], layers, numbers_in(parameters.starts)))


def scan(cuts: dict[str, CutsOf], experiment: Experiment) -> dict[str, Result | None]:
    """The result of each task and text, read or measured now; None for what is not measured."""
    texts = experiment.parameters.texts
    return {
        name: score_text(name, texts[name], cuts_of, experiment)
        if name in texts
        else score_task(name, cuts_of, experiment)
        for name, cuts_of in cuts.items()
    }


def plan_scan(cuts: dict[str, CutsOf], experiment: Experiment) -> dict[str, "sweeping.Plan"]:
    """Of each task and text that results lack what it would run and how long. Only a small batch is run."""
    parameters, plans = experiment.parameters, {}
    for name, found in scan(cuts, experiment.but(measure=False)).items():
        if found is None:
            (model, tokenizer), distinct = experiment.opened(), distinct_cuts(cuts[name])
            if asked := parameters.texts.get(name):
                requests = requests_of(name, asked, model, tokenizer, parameters.datasets)
                plans[name] = sweeping.plan_requests(sweeping.TreeModel(model, distinct), requests)
            else:
                plans[name] = sweeping.plan(model, tokenizer, [name], distinct, **parameters.sweep_options(name))
    return plans
