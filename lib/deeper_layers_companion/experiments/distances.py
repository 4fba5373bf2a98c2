"""The angular distances of a model (paper, figures 1c and 4), and the geometry of the same residuals."""

import functools
import sys
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from deeper_layers import data
from deeper_layers.models.sources import DTYPES
from deeper_layers.packing import pack_halves
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion.experiments.experiment import Data, Experiment
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.choosing import distance_matrix, distance_table


def require_distance_matrix(experiment: Experiment, *, any_dtype: bool = False) -> np.ndarray:
    """The distances [n, l] of a model, in units of pi. With `any_dtype` and none in the model's data type, results in
    another one serve, and stderr says so. Raises NotMeasuredError if there are none, and none may be measured."""
    source = experiment.source
    for dtype in dict.fromkeys([source.dtype, *DTYPES]) if any_dtype else ():
        if result := find_or_measure_distances(experiment.replace(measure=False, dtype=dtype)):
            if dtype != source.dtype:
                lack = f"results hold none of {source.name} in {source.dtype}"
                print(f"the cut is chosen by distances in {dtype}, as {lack}", file=sys.stderr)
            return distance_matrix(result.rows)
    return distance_matrix(experiment.require(find_or_measure_distances(experiment), "the distances").rows)


def draw_batches(experiment: Experiment, samples: int | None = None) -> list:
    """The sequences of the distances in batches; with `samples`, the first so many of them."""
    parameters = experiment.parameters
    documents = data.texts(parameters.corpus, datasets=parameters.datasets)
    options = {"samples": samples or parameters.samples, "length": parameters.sequence_length, "seed": parameters.seed}
    return data.text_batches(experiment.open_model()[1], documents, **options)


def find_or_measure_distances(experiment: Experiment, *, by_sequence: bool = False) -> Result | None:
    """The distances of a model, averaged over sequences; `by_sequence` also keeps the distances of every sequence."""

    def measure(shards):
        from deeper_layers import similarity  # imports torch

        batches, (model, _) = draw_batches(experiment), experiment.open_model()

        def run(some_batches):
            return ({"distances": distances} for distances in similarity.distances_by_batch(model, some_batches))

        distances = [of["distances"] for of in run_in_batches(shards, 0, batches, run, "distances")]
        table = distance_table(*similarity.mean_distances(distances))
        details: dict = {"tokens": _count_tokens(batches)}
        if by_sequence:
            stop = table["start"] + table["size"]
            details["by_sequence"] = pack_halves(np.concatenate(distances)[:, table["start"], stop])
        return table.to_dict("records"), details

    return _find_or_measure("distances", {"by_sequence": True} if by_sequence else {}, experiment, measure)


def find_or_measure_geometry(experiment: Experiment) -> Result | None:
    """The geometry of a model's residuals, on the sequences of its distances."""
    parameters = experiment.parameters

    def measure(shards):
        from deeper_layers_companion.rules import geometry  # imports torch

        # both come from one draw, so the sequences that are run without each layer are among the others
        batches, skip_batches = (draw_batches(experiment, samples) for samples in (None, parameters.skip_sequences))
        record, leave_out = (
            functools.partial(run, experiment.open_model()[0], tokens=parameters.tokens)
            for run in (geometry.record_passes, geometry.skip_each_layer)
        )
        passes = list(run_in_batches(shards, 0, batches, record, "one pass"))
        skips = list(run_in_batches(shards, len(batches), skip_batches, leave_out, "without each layer"))
        layer_metrics, state_metrics, pairs = geometry.combine_batches(passes, skips, neighbours=parameters.neighbours)
        rows = [
            {"metric": name, "start": index, "size": size, "value": float(f"{value:.6g}")}
            for values_by_metric, size in ((layer_metrics, 1), (state_metrics, 0))
            for name, values in values_by_metric.items()
            for index, value in enumerate(values.tolist())
        ]
        points = sum(batch["residuals"].shape[1] for batch in passes)
        # the entries of each table above the diagonal, row by row
        triangles = {
            name: [[round(value, 4) for value in row[index + 1 :]] for index, row in enumerate(table.tolist()[:-1])]
            for name, table in pairs.items()
        }
        return rows, {"tokens": _count_tokens(batches), "points": points, "pairs": triangles}

    settings = parameters.model_dump(include={"tokens", "neighbours", "skip_sequences"})
    return _find_or_measure("geometry", settings, experiment, measure)


def _find_or_measure(kind: str, more: dict, experiment: Experiment, measure: Callable) -> Result | None:
    parameters = experiment.parameters
    settings = parameters.base_settings | parameters.sequence_settings | more
    return experiment.find_or_measure(kind, settings, [Data(parameters.corpus)], measure)


def _count_tokens(batches: list) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def run_in_batches(shards: Shards, first: int, batches: list[dict], run: Callable, description: str) -> Iterator[dict]:
    """Yield the arrays of each batch, in order: read from its shard, or computed now and written to its shard.

    `run` takes an iterator over the batches without a shard, and yields the arrays of each. `description` stands beside
    the progress bar. Shards are numbered from `first`.
    """
    marks = [{"ids": batch["input_ids"].numpy()} for batch in batches]
    stored = [shards.get(number, mark) for number, mark in enumerate(marks, first)]
    computed = run(batch for batch, arrays in zip(batches, stored) if arrays is None)
    done = len(stored) - stored.count(None)
    with tqdm(desc=description, unit="batch", total=len(stored), initial=done, mininterval=5, file=sys.stderr) as bar:
        for number, (arrays, mark) in enumerate(zip(stored, marks), first):
            if arrays is None:
                arrays = next(computed)
                shards.put(number, arrays | mark)
                bar.update()
            yield arrays
