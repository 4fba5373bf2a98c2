"""The angular distances of a model (paper, figures 1c and 4), and the geometry of the same residuals."""

import functools
import sys
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from deeper_layers import data
from deeper_layers.experiments.experiment import Data, Experiment
from deeper_layers.models.sources import DTYPES
from deeper_layers.results.packing import pack_halves
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import distance_matrix, distance_table


def known_distances(experiment: Experiment, *, of_any_dtype: bool = False) -> np.ndarray:
    """The distances [n, l] of a model, in units of pi; where results hold those of another data type alone, these, if
    `of_any_dtype`, which is said on stderr. Raises NotMeasuredError where nothing is to be measured, and none are."""
    own = experiment.source
    for dtype in dict.fromkeys([own.dtype, *DTYPES]) if of_any_dtype else ():
        if found := measure_distances(experiment.but(measure=False, dtype=dtype)):
            if dtype != own.dtype:
                said = f"the cut is chosen by distances in {dtype}, as results hold none of {own.name} in {own.dtype}"
                print(said, file=sys.stderr)
            return distance_matrix(found.rows)
    return distance_matrix(experiment.required(measure_distances(experiment), "the distances").rows)


def drawn_batches(experiment: Experiment, samples: int | None = None) -> list:
    """The sequences of the distances in batches, or the first so many of them."""
    parameters = experiment.parameters
    documents = data.texts(parameters.corpus, datasets=parameters.datasets)
    drawn = {"samples": samples or parameters.samples, "length": parameters.sequence_length, "seed": parameters.seed}
    return data.text_batches(experiment.opened()[1], documents, **drawn)


def measure_distances(experiment: Experiment, *, by_sequence: bool = False) -> Result | None:
    """The distances of a model, batch by batch; `by_sequence`: those of every sequence are kept beside their means."""

    def measure(shards):
        from deeper_layers import similarity  # torch, where there is something to measure

        batches, (model, _) = drawn_batches(experiment), experiment.opened()

        def run(some):
            return ({"distances": found} for found in similarity.distances_by_batch(model, some))

        found = [of["distances"] for of in in_batches(shards, 0, batches, run, "distances")]
        table = distance_table(*similarity.mean_distances(found))
        details: dict = {"tokens": _tokens(batches)}
        if by_sequence:
            every = [similarity.by_size(of_sequence) for of_batch in found for of_sequence in of_batch]
            places = table["size"] - 1, table["start"]
            details["by_sequence"] = pack_halves(np.stack([matrix[places] for matrix in every]))
        return table.to_dict("records"), details

    return _of_residuals("distances", {"by_sequence": True} if by_sequence else {}, experiment, measure)


def measure_geometry(experiment: Experiment) -> Result | None:
    """The geometry of a model's residuals, on the sequences of its distances."""
    parameters, layers = experiment.parameters, experiment.source.num_layers

    def measure(shards):
        from deeper_layers.rules import geometry  # torch, where there is something to measure

        # of one draw the first: those run again are among the others
        batches, again = (drawn_batches(experiment, some) for some in (None, parameters.skip_sequences))
        record, leave_out = (
            functools.partial(run, experiment.opened()[0], tokens=parameters.tokens)
            for run in (geometry.record_passes, geometry.skip_each_layer)
        )
        passes = list(in_batches(shards, 0, batches, record, "one pass"))
        skips = list(in_batches(shards, len(batches), again, leave_out, "without each layer"))
        bar = functools.partial(tqdm, desc="dimensions", unit="layer", total=layers + 1, mininterval=5, file=sys.stderr)
        of_layers, of_states, pairs = geometry.combine_batches(
            passes, skips, neighbours=parameters.neighbours, progress=bar
        )
        rows = [
            {"metric": name, "start": at, "size": size, "value": float(f"{value:.6g}")}
            for found, size in ((of_layers, 1), (of_states, 0))
            for name, values in found.items()
            for at, value in enumerate(values.tolist())
        ]
        points = sum(batch["residuals"].shape[1] for batch in passes)
        # of each table what stands above the diagonal, row by row
        triangles = {
            name: [[round(value, 4) for value in row[at + 1 :]] for at, row in enumerate(table.tolist()[:-1])]
            for name, table in pairs.items()
        }
        return rows, {"tokens": _tokens(batches), "points": points, "pairs": triangles}

    asked = parameters.model_dump(include={"tokens", "neighbours", "skip_sequences"})
    return _of_residuals("geometry", asked, experiment, measure)


def _of_residuals(kind: str, asked: dict, experiment: Experiment, measure: Callable) -> Result | None:
    parameters = experiment.parameters
    settings = parameters.key | parameters.drawn | asked
    return experiment.result(kind, settings, [Data(parameters.corpus)], measure)


def _tokens(batches: list) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def in_batches(shards: Shards, first: int, batches: list[dict], run: Callable, what: str) -> Iterator[dict]:
    """The arrays that `run` gives for each batch, in their order: from its shard, or now, and then kept there.

    `run` is handed the batches that no shard is of, and gives for each its arrays, one batch after another. `what` says
    what runs, beside the time left; shards count from `first`.
    """
    marks = [{"ids": batch["input_ids"].numpy()} for batch in batches]
    known = [shards.get(number, mark) for number, mark in enumerate(marks, first)]
    running = run(batch for batch, found in zip(batches, known) if found is None)
    there = len(known) - known.count(None)
    with tqdm(desc=what, unit="batch", total=len(known), initial=there, mininterval=5, file=sys.stderr) as bar:
        for number, (found, mark) in enumerate(zip(known, marks), first):
            if found is None:
                found = next(running)
                shards.put(number, found | mark)
                bar.update()
            yield found
