"""The angular distances of a model: a result (paper, figures 1c and 4)."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable

import numpy as np

from deeper_layers import data
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.measurement import Measurement, in_batches, text_of
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.results.packing import pack_halves
from deeper_layers.results.store import Result
from deeper_layers.rules.similarity import distance_table


def distances_to_choose(parameters: Parameters, source: Source, opened: Callable) -> Result:
    """Distances by which a cut is chosen: of the weights in their data type, or where results hold those of another
    one, in that, which a line on stderr says; else measured.

    Raises NotMeasuredError where nothing is to be measured and results hold none.
    """
    kept = parameters.but(measure=False)
    for dtype in (source.dtype, *(dtype for dtype in DTYPES if dtype != source.dtype)):
        with contextlib.suppress(NotMeasuredError):
            unit = distances_unit(kept, dataclasses.replace(source, dtype=dtype), opened)
            if dtype != source.dtype:
                said = f"the cut is chosen by distances in {dtype}, as results hold none of {source.name} in"
                print(f"{said} {source.dtype}", file=sys.stderr)
            return unit
    return distances_unit(parameters, source, opened)


def drawn_batches(parameters: Parameters, opened: Callable, samples: int | None = None) -> list:
    """The sequences of the distances in batches, or the first so many of them.

    Raises InputError, before the model is opened, where the corpus has too few.
    """
    documents = data.texts(parameters.corpus, datasets=parameters.datasets)
    if len(documents) < parameters.samples:
        raise InputError(
            f"samples is {parameters.samples}, but the corpus has {len(documents)} documents: ask for fewer"
        )
    _, tokenizer = opened()
    samples, length = samples or parameters.samples, parameters.sequence_length
    return data.text_batches(tokenizer, documents, samples=samples, length=length, seed=parameters.seed)


def distances_unit(parameters: Parameters, source: Source, opened: Callable, *, by_sequence: bool = False) -> Result:
    """The distances of a model: read from results, else measured on the model that `opened()` returns.

    Each batch that has run is kept, and an interrupted measurement goes on after it. `by_sequence`: the distances of
    every sequence are kept beside their means.
    Raises NotMeasuredError where nothing is to be measured and results hold no such unit.
    """

    def measure(shards):
        from deeper_layers import similarity  # torch, where there is something to measure

        batches = drawn_batches(parameters, opened)
        model, _ = opened()
        states = source.num_layers + 1
        like = {"distances": (np.float64, (None, states, states))}

        def run(some):
            return ({"distances": found} for found in similarity.distances_by_batch(model, some))

        found = (of["distances"] for of in in_batches(shards, 0, batches, run, like, "distances"))
        found = list(found) if by_sequence else found  # else memory does not grow with the sequences
        table = distance_table(*similarity.mean_distances(found))
        details = {"tokens": int(sum(batch["attention_mask"].sum() for batch in batches))}
        if by_sequence:
            every = [similarity.by_size(of_sequence) for of_batch in found for of_sequence in of_batch]
            places = table["size"] - 1, table["start"]
            details["by_sequence"] = pack_halves(np.stack([matrix[places] for matrix in every]))
        return table.to_dict("records"), details

    settings = {**parameters.key, **parameters.drawn} | ({"by_sequence": True} if by_sequence else {})
    reads = [text_of(parameters.corpus, parameters.datasets)]
    unit = Measurement(kind="distances", source=source, settings=settings, reads=reads, measure=measure).result(
        parameters
    )
    if unit is None:
        raise NotMeasuredError(f"not measured: the distances of {source.name} in {source.dtype}")
    return unit
