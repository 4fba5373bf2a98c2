"""Loss on text of pruned models, not healed, and scans of every block: results of the kind "scores".

Source: Gromov et al., arXiv 2403.17887, figure 3 (losses of pruned models).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.measurement import Data, Measurement, text_of
from deeper_layers.experiments.notebook_parameters import OF_BLOCKS, ScanParameters
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.experiments.scoring import CutsOf, chooser, distinct_cuts, named_cuts, score_task, unmeasured
from deeper_layers.models.sources import Source
from deeper_layers.results.store import Result

BLOCKS = "blocks of {}"  # what the rule of every block of a size is called


def blocks(sizes: Iterable[int], num_layers: int) -> CutsOf:
    """The whole model and every contiguous block of some sizes, that with the last layer too."""
    starts = {size: range(num_layers - size + 1) for size in sizes if size}
    return {BLOCKS.format(size): [UNPRUNED, *(Cut(start, size) for start in of)] for size, of in starts.items()}


def loss_sequences(tokenizer, datasets: str | None, *, text: str, sequences: int, sequence_length: int) -> list:
    """The fixed sequences of a corpus' validation split on which losses are measured, each [T] whole numbers.

    Raises InputError where the corpus has too few.
    """
    documents = data.texts(text, split="validation", datasets=datasets)
    found = data.sequences(tokenizer, documents, length=sequence_length, tokens=sequences * sequence_length)
    if len(found) < sequences:
        raise InputError(
            f"loss_sequences is {sequences}, but the corpus fills {len(found)} of {sequence_length} tokens: ask for "
            "fewer"
        )
    return found


class Predicted(NamedTuple):
    """What losses are of: its name, what identifies it, what is read for it, and how it is asked of a model."""

    text: str
    asked: dict
    reads: Data
    requests: Callable  # of the model and its tokenizer


def of_corpus(key: dict, datasets: str | None) -> Predicted:
    """The fixed sequences of a corpus; `key` has its text, sequences and sequence_length, as `loss_sequences` does."""
    return Predicted(
        key["text"],
        {"limit": key["sequences"], "length": key["sequence_length"]},
        text_of(key["text"], datasets, split="validation"),
        lambda _, tokenizer: sweeping.text_requests(loss_sequences(tokenizer, datasets, **key)),
    )


def of_text(text: str, parameters: ScanParameters) -> Predicted:
    """The same of a corpus of a scan, or the gold solutions of GSM8K, given its problems."""
    wanted = parameters.sequences(text)
    if text != data.SOLUTIONS:
        key = {"text": text, "sequences": wanted, "sequence_length": parameters.loss_length}
        return of_corpus(key, parameters.datasets)

    def requests(model, tokenizer):
        solved = data.solved_problems(datasets=parameters.datasets, documents=wanted)
        return sweeping.answer_requests(model, tokenizer, solved)

    asked = {"limit": wanted, "length": 0}  # a solution is as long as it is
    return Predicted(text, asked, text_of(text, parameters.datasets, documents=wanted), requests)


def score_text(
    predicted: Predicted, cuts_of: CutsOf, parameters: Parameters, source: Source, opened: Callable
) -> Result | None:
    """Losses of pruned models; None where nothing is to be measured and results hold no such losses.

    What it will cost is printed before it runs. Of blocks, of which there are hundreds, each part is done in minutes.
    """
    batch_tokens = OF_BLOCKS if BLOCKS.format(1)[:-1] in "".join(cuts_of) else None

    def measure(shards):
        model, tokenizer = opened()
        requests = predicted.requests(model, tokenizer)
        cuts = distinct_cuts(cuts_of)
        rows, by_cut = sweeping.request_loss(model, cuts, requests, shards=shards, batch_tokens=batch_tokens)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        return loss_rows(predicted.text, rows, by_cut, cuts), {"vocabulary": vocabulary}

    settings = {**parameters.key, "tasks": {predicted.text: predicted.asked}, "cuts": named_cuts(cuts_of)}
    return Measurement(
        kind="scores", source=source, settings=settings, reads=[predicted.reads], measure=measure
    ).result(parameters)  # fmt: skip


def loss_rows(text: str, rows, by_cut: dict[str, list[float]], cuts: list[Cut]) -> list[dict]:
    """Rows of losses, one a cut in order, with the loss of each sequence."""
    return [
        {"task": text, "cut": cut.name, "outcome": by_cut[cut.name]}
        | {name: row[name] for name in ("metric", "value", "stderr", "items")}
        for row, cut in zip(rows.to_dict("records"), cuts, strict=True)
    ]


def scan_cuts(parameters: ScanParameters, source: Source, opened: Callable) -> dict[str, CutsOf]:
    """For each task and text the cuts that are asked for, by what they have in common; the whole model is one of them.

    Raises InputError where the model is too small for such blocks, or has no such starts.
    """
    layers = source.num_layers
    if parameters.blocks is None:
        cuts_of = chooser(parameters, source, opened)
        return {name: cuts_of(parameters.size_list(layers, name)) for name in parameters.asked}
    cuts = [Cut(start, parameters.blocks) for start in parameters.block_list(layers)]
    return dict.fromkeys(parameters.asked, {BLOCKS.format(parameters.blocks): [UNPRUNED, *cuts]})


def scan(
    cuts: dict[str, CutsOf], parameters: ScanParameters, source: Source, opened: Callable
) -> dict[str, Result | None]:
    """The result of each task and text, read or measured now; None for what is not measured."""
    return {
        name: score_text(of_text(name, parameters), cuts_of, parameters, source, opened)
        if name in parameters.text_list
        else score_task(name, cuts_of, parameters, source, opened)
        for name, cuts_of in cuts.items()
    }


def plan_scan(
    parameters: ScanParameters, cuts: dict[str, CutsOf], source: Source, opened: Callable
) -> dict[str, "sweeping.Plan"]:
    """Of each task and text that results lack what it would run and how long: a `Plan`. Only a small batch is run."""
    plans = {}
    for name, cuts_of in cuts.items():
        distinct = distinct_cuts(cuts_of)
        if name not in parameters.text_list:
            if unmeasured(name, cuts_of, parameters, source):
                plans[name] = sweeping.plan(*opened(), [name], distinct, **parameters.sweep_options(name))
        elif score_text(of_text(name, parameters), cuts_of, parameters.but(measure=False), source, opened) is None:
            model, tokenizer = opened()
            requests = of_text(name, parameters).requests(model, tokenizer)
            plans[name] = sweeping.plan_requests(sweeping.TreeModel(model, distinct), requests)
    return plans
