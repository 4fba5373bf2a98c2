"""The geometry of a model's residuals, on the sequences of its angular distances."""

import functools
import sys

import numpy as np
from tqdm import tqdm

from deeper_layers.experiments.distances import drawn_batches
from deeper_layers.experiments.experiment import Experiment, in_batches
from deeper_layers.results.store import Result


def measure_geometry(experiment: Experiment) -> Result:
    """The geometry of a model: read from results, else measured, batch by batch; its price is printed before.

    Raises NotMeasuredError where nothing is to be measured and results hold none.
    """
    parameters, layers = experiment.parameters, experiment.source.num_layers

    def measure(shards):
        from deeper_layers.rules import geometry  # torch, where there is something to measure

        # of one draw the first: those run again are among the others
        batches, again = (drawn_batches(experiment, some) for some in (None, parameters.skip_sequences))
        model, _ = experiment.opened()
        tokens = [int(sum(batch["attention_mask"].sum() for batch in some)) for some in (batches, again)]
        print(price(layers, *tokens), file=sys.stderr, flush=True)
        record, leave_out = (
            functools.partial(run, model, tokens=parameters.tokens)
            for run in (geometry.record_passes, geometry.skip_each_layer)
        )
        passes = list(in_batches(shards, 0, batches, record, "one pass"))
        skips = list(in_batches(shards, len(batches), again, leave_out, "without each layer"))
        bar = functools.partial(tqdm, desc="dimensions", unit="layer", total=layers + 1, mininterval=5, file=sys.stderr)
        pairs = geometry.measure_pairs(passes, skips, neighbours=parameters.neighbours)
        rows = _rows(geometry.measure_layers(passes, skips), 1) + _rows(geometry.measure_states(passes, bar), 0)
        return rows, {
            "tokens": tokens[0],
            "points": sum(batch["residuals"].shape[1] for batch in passes),
            "pairs": {name: _triangle(table) for name, table in pairs.items()},
        }

    asked = {name: getattr(parameters, name) for name in ("tokens", "neighbours", "skip_sequences")}
    settings, reads = parameters.key | parameters.drawn | asked, [experiment.text(parameters.corpus)]
    return experiment.required(experiment.result("geometry", settings, reads, measure), "the geometry")


def price(layers: int, tokens: int, again: int) -> str:
    """What a measurement will cost, in words: of how many tokens each layer runs, those run again without one."""
    steps = 2 * tokens * layers + again * layers * (layers + 1) // 2  # of a layer's two runs one is of its attention
    return (
        f"geometry: {tokens:,} tokens through {layers} layers, {again:,} of them again without each layer in turn: at "
        f"most {steps / 1e6:,.1f} million layer-steps, as many as {steps / layers / tokens:.0f} passes"
    )


def _rows(values: dict[str, np.ndarray], size: int) -> list[dict]:
    return [
        {"metric": name, "start": at, "size": size, "value": float(f"{value:.6g}")}
        for name, of_name in values.items()
        for at, value in enumerate(of_name.tolist())
    ]


def _triangle(table: np.ndarray) -> list[list[float]]:
    """What stands above the diagonal, row by row."""
    return [[round(value, 4) for value in row[at + 1 :]] for at, row in enumerate(table.tolist()[:-1])]
