"""Loss on text of a family of pruned models, not healed: a measured unit (paper, figure 3; the map of every block)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from deeper_layers import data, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.block_parameters import OF_BLOCKS, WhichLayersParameters
from deeper_layers.experiments.common_parameters import Parameters
from deeper_layers.experiments.measurement import Data, Measurement, text_of
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit

VERSION = 2  # part of every unit's key: raise it when a change here or in sweeping.losses changes numbers


def blocks(sizes: Iterable[int], num_layers: int) -> list[Cut]:
    """The whole model and every contiguous block of some sizes, that with the last layer too."""
    every = (Cut(start, size) for size in sizes if size for start in range(num_layers - size + 1))
    return [UNPRUNED, *every]


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
    """What losses are of: what names and determines it, what is read for it, and how it is asked of a model."""

    key: dict
    reads: Data
    requests: Callable  # of the model and its tokenizer


def of_corpus(key: dict, datasets: str | None) -> Predicted:
    """The fixed sequences of a corpus; `key` has its text, sequences and sequence_length, as `loss_sequences` does."""
    return Predicted(
        key,
        text_of(key["text"], datasets, split="validation"),
        lambda _, tokenizer: sweeping.text_requests(loss_sequences(tokenizer, datasets, **key)),
    )


def loss_unit(
    cuts: list[Cut], parameters: HealingParameters | WhichLayersParameters, source: Source, opened: Callable,
    *, kind: str = "loss",
) -> Unit:  # fmt: skip
    """The loss of pruned models before healing: read from results, else measured on what `opened()` returns.

    Raises NotMeasuredError where nothing is to be measured and results hold no such unit.
    """
    unit = predicted_unit(kind, cuts, of_corpus(parameters.loss_key, parameters.datasets), parameters, source, opened)
    if unit is None:
        raise NotMeasuredError(f"not measured: the loss of {source.name} on {parameters.text} in {source.dtype}")
    return unit


def map_unit(parameters: WhichLayersParameters, source: Source, opened: Callable) -> Unit:
    """The loss without every block of the sizes that are asked for, as `loss_unit` gives it, of a kind of its own."""
    cuts = blocks(parameters.size_list(source.num_layers), source.num_layers)
    return loss_unit(cuts, parameters, source, opened, kind="blocks")


def predicted_unit(
    kind: str, cuts: list[Cut], predicted: Predicted, parameters: Parameters, source: Source, opened: Callable
) -> Unit | None:
    """Losses of pruned models; None where nothing is to be measured and results hold no such unit.

    What it will cost is printed before it runs. Of blocks, of which there are hundreds, each part is done in minutes.
    """
    batch_tokens = OF_BLOCKS if kind == "blocks" else None

    def measure(shards):
        model, tokenizer = opened()
        requests = predicted.requests(model, tokenizer)
        rows, of_sequences = sweeping.request_loss(model, cuts, requests, shards=shards, batch_tokens=batch_tokens)
        rows.insert(0, "task", predicted.key["text"])
        return rows, {"by_sequence": of_sequences, "vocabulary": model.get_output_embeddings().weight.shape[0]}

    return Measurement(
        kind=kind, name=predicted.key["text"], version=VERSION, source=source, reads=[predicted.reads], measure=measure,
        settings={**parameters.key, **predicted.key, "cuts": [[cut.start, cut.size] for cut in cuts]},
    ).unit(parameters)  # fmt: skip
