"""The geometry of a model's residuals, on the sequences of its angular distances: a measured unit."""

import functools
import sys
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.distances import drawn_batches
from deeper_layers.experiments.measurement import Measurement, in_batches, text_of
from deeper_layers.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.store import Result


def geometry_unit(parameters: WhichLayersParameters, source: Source, opened: Callable) -> Result:
    """The geometry of a model: read from results, else measured on the model that `opened()` returns.

    What it will cost is said before it runs; each batch that has run is kept, and an interrupted measurement goes on
    after it. Raises NotMeasuredError where nothing is to be measured and results hold no such unit.
    """

    def measure(shards):
        from deeper_layers.rules import geometry  # torch, where there is something to measure

        # of one draw the first: those run again are among the others
        batches, again = (drawn_batches(parameters, opened, some) for some in (None, parameters.skip_sequences))
        model, _ = opened()
        tokens = [int(sum(batch["attention_mask"].sum() for batch in some)) for some in (batches, again)]
        layers, kept = source.num_layers, {"tokens": parameters.tokens}
        print(price(layers, *tokens), file=sys.stderr, flush=True)
        passes = list(in_batches(
            shards, 0, batches, functools.partial(geometry.record_passes, model, **kept), _of_pass(layers), "one pass"
        ))  # fmt: skip
        skips = list(in_batches(
            shards, len(batches), again, functools.partial(geometry.skip_each_layer, model, **kept), _of_skips(layers),
            "without each layer",
        ))  # fmt: skip
        bar = functools.partial(tqdm, desc="dimensions", unit="layer", total=layers + 1, mininterval=5, file=sys.stderr)
        pairs = geometry.measure_pairs(passes, skips, neighbours=parameters.neighbours)
        rows = _rows(geometry.measure_layers(passes, skips), 1) + _rows(geometry.measure_states(passes, bar), 0)
        points = sum(batch["residuals"].shape[1] for batch in passes)
        return rows, {
            "tokens": tokens[0], "points": points, "pairs": {name: _triangle(table) for name, table in pairs.items()}
        }  # fmt: skip

    unit = Measurement(
        kind="geometry", source=source, measure=measure,
        settings={
            **parameters.key, **parameters.drawn, "tokens": parameters.tokens, "neighbours": parameters.neighbours,
            "skip_sequences": parameters.skip_sequences,
        },
        reads=[text_of(parameters.corpus, parameters.datasets)],
    ).result(parameters)  # fmt: skip
    if unit is None:
        raise NotMeasuredError(f"not measured: the geometry of {source.name} in {source.dtype}")
    return unit


def price(layers: int, tokens: int, again: int) -> str:
    """What a measurement will cost, in words: of how many tokens each layer runs, those run again without one."""
    steps = 2 * tokens * layers + again * layers * (layers + 1) // 2  # of a layer's two runs one is of its attention
    return (
        f"geometry: {tokens:,} tokens through {layers} layers, {again:,} of them again without each layer in turn: at "
        f"most {steps / 1e6:,.1f} million layer-steps, as many as {steps / layers / tokens:.0f} passes"
    )


def _of_pass(layers: int) -> dict[str, tuple]:
    """Types and shapes of what a pass records of a batch."""
    of_tokens, of_sequences = (None, layers, 3), (None, layers + 1)
    return {
        "residuals": (np.float32, (layers + 1, None, None)),
        "cosines": (np.float64, of_tokens),
        "norms": (np.float64, of_tokens),
        "entropy": (np.float64, of_sequences),
        "lens": (np.float64, (*of_sequences, 2)),
    }


def _of_skips(layers: int) -> dict[str, tuple]:
    """Types and shapes of what is recorded of a batch without each layer."""
    return {"later": (np.float64, (None, layers, layers)), "output": (np.float64, (None, layers))}


def _rows(values: dict[str, np.ndarray], size: int) -> list[dict]:
    return [
        {"metric": name, "start": at, "size": size, "value": float(f"{value:.6g}")}
        for name, of_name in values.items() for at, value in enumerate(of_name.tolist())
    ]  # fmt: skip


def _triangle(table: np.ndarray) -> list[list[float]]:
    """What stands above the diagonal, row by row."""
    return [[round(value, 4) for value in row[at + 1 :]] for at, row in enumerate(table.tolist()[:-1])]
