"""The angular distances of a model (paper, figures 1c and 4)."""

import contextlib
import dataclasses
import sys

import numpy as np

from deeper_layers import data
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.experiment import Experiment, in_batches
from deeper_layers.models.sources import DTYPES
from deeper_layers.results.packing import pack_halves
from deeper_layers.results.store import Result
from deeper_layers.rules.similarity import distance_table


def with_distances(experiment: Experiment) -> Experiment:
    """The experiment; or, where results hold distances in another data type alone, in that, which is said on stderr."""
    own, parameters = experiment.source, experiment.parameters.but(measure=False)
    for dtype in dict.fromkeys([own.dtype, *DTYPES]):
        known = Experiment(parameters, dataclasses.replace(own, dtype=dtype), experiment.opened)
        with contextlib.suppress(NotMeasuredError):
            measure_distances(known)
            if dtype != own.dtype:
                said = f"the cut is chosen by distances in {dtype}, as results hold none of {own.name} in {own.dtype}"
                print(said, file=sys.stderr)
            return known
    return experiment


def drawn_batches(experiment: Experiment, samples: int | None = None) -> list:
    """The sequences of the distances in batches, or the first so many of them.

    Raises InputError, before the model is opened, where the corpus has too few.
    """
    parameters = experiment.parameters
    documents = data.texts(parameters.corpus, datasets=parameters.datasets)
    if len(documents) < parameters.samples:
        raise InputError(
            f"samples is {parameters.samples}, but the corpus has {len(documents)} documents: ask for fewer"
        )
    _, tokenizer = experiment.opened()
    drawn = {"samples": samples or parameters.samples, "length": parameters.sequence_length, "seed": parameters.seed}
    return data.text_batches(tokenizer, documents, **drawn)


def measure_distances(experiment: Experiment, *, by_sequence: bool = False) -> Result:
    """The distances of a model: read from results, else measured, batch by batch.

    `by_sequence`: the distances of every sequence are kept beside their means.
    Raises NotMeasuredError where nothing is to be measured and results hold none.
    """

    def measure(shards):
        from deeper_layers import similarity  # torch, where there is something to measure

        batches, (model, _) = drawn_batches(experiment), experiment.opened()

        def run(some):
            return ({"distances": found} for found in similarity.distances_by_batch(model, some))

        found = (of["distances"] for of in in_batches(shards, 0, batches, run, "distances"))
        found = list(found) if by_sequence else found  # else memory does not grow with the sequences
        table = distance_table(*similarity.mean_distances(found))
        details = {"tokens": int(sum(batch["attention_mask"].sum() for batch in batches))}
        if by_sequence:
            every = [similarity.by_size(of_sequence) for of_batch in found for of_sequence in of_batch]
            places = table["size"] - 1, table["start"]
            details["by_sequence"] = pack_halves(np.stack([matrix[places] for matrix in every]))
        return table.to_dict("records"), details

    parameters = experiment.parameters
    settings = parameters.key | parameters.drawn | ({"by_sequence": True} if by_sequence else {})
    reads = [experiment.text(parameters.corpus)]
    return experiment.required(experiment.result("distances", settings, reads, measure), "the distances")
