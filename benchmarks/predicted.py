"""Seconds that were predicted beside those that were measured: distances, a sweep and a healing of each of some models.

    python -m benchmarks.predicted NAME --models embedded,Gemma-3-270m,Qwen2.5-Coder-1.5B-Instruct --datasets FOLDER

Predicted is what `deeper-layers plan MODEL --machine this` says: arithmetic, with the operations a second that two
layers with random weights reach, tried just before. On an idle machine: both sides are seconds of a clock. Tried once
more after: `pace` is by how much the machine itself had become faster meanwhile, which no prediction can know.
"""

import argparse
import functools

from benchmarks import side_by_side
from deeper_layers import data, models, sweeping
from deeper_layers.command.probe import this_machine
from deeper_layers.cuts import simple_cut
from deeper_layers.experiments import costs
from deeper_layers.healing.training import train
from deeper_layers.models.opening import load_model
from deeper_layers.presets import HealingConfig
from deeper_layers.pruning import drop_layers
from deeper_layers.similarity import measure_distances
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.planning import plan_pieces, tokens_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--models", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--task", default="boolq")
    parser.add_argument("--limit", type=int, default=60, help="items of the task")
    parser.add_argument("--sizes", type=int, default=8, help="largest number of layers dropped in the sweep")
    parser.add_argument("--samples", type=int, default=64, help="sequences of the distances")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence of distances and healing")
    parser.add_argument("--steps", type=int, default=6, help="of the healing, of 4 sequences")
    parser.add_argument("--datasets", help="a local mirror of the hub")
    options = parser.parse_args()
    side_by_side.start()
    rows = [row for name in options.models.split(",") for row in of_model(name, options)]
    for row in rows:
        row["measured_over_predicted"] = round(row["measured"] / row["predicted"], 2)
        row |= {name: float(f"{row[name]:.3g}") for name in ("predicted", "measured")}
        print(row, flush=True)
    side_by_side.keep(f"predicted-{options.name}", {"dtype": options.dtype, "rows": rows})


def of_model(name: str, options: argparse.Namespace) -> list[dict]:
    """Distances, sweep and healing of one model: predicted, then run."""
    source = models.find_model(name, dtype=options.dtype)
    empty = models.empty_model(source)
    shape = costs.shape_of(empty)
    model, tokenizer = load_model(source)
    works = (
        ("distances", *_distances(shape, model, tokenizer, options)),
        ("sweep", *_sweep(shape, model, tokenizer, options)),
        ("healing", *_healing(shape, model, tokenizer, options)),
    )
    found = []
    for work, cost, run in works:
        tried = functools.partial(this_machine, empty, options.dtype, training=work == "healing")
        before, (_, seconds, peak), after = tried(), side_by_side.measured(run), tried()  # in this order
        found.append({
            "model": source.name, "work": work, "predicted": cost.seconds(before, options.dtype),
            "measured": seconds, "memory": round(cost.memory), "peak": peak,
            "pace": round(after.throughput[options.dtype] / before.throughput[options.dtype], 2),
        })  # fmt: skip
    return found


def _distances(shape, model, tokenizer, options):
    texts = data.texts("wikipedia", datasets=options.datasets)
    batches = data.text_batches(tokenizer, texts, samples=options.samples, length=options.length, seed=0)
    tokens = sum(batch["input_ids"].numel() for batch in batches)  # padding passes too
    cost = costs.distances_cost(shape, tokens, options.length, options.dtype)
    measure_distances(model, batches[-1:])  # the first pass of a model reads its weights from the file
    return cost, lambda: measure_distances(model, batches)


def _sweep(shape, model, tokenizer, options):
    cuts = [simple_cut(shape.layers, size) for size in range(options.sizes + 1)]
    loaded = harness.load_tasks([options.task], datasets=options.datasets)
    found = harness.collect_requests(loaded, model, tokenizer, limit=options.limit)
    pieces = plan_pieces(found.contexts, found.continuations, found.max_length)
    lengths = [len(s.tokens) for piece in pieces for batch in piece.batches for s in batch]
    asked = tokens_of(pieces), len(found.contexts), sum(lengths) / len(lengths)
    how = {"limit": options.limit, "datasets": options.datasets}
    cost = costs.sweep_cost(shape, cuts, *asked, options.dtype)
    return cost, lambda: sweeping.sweep(model, tokenizer, [options.task], cuts, **how)


def _healing(shape, model, tokenizer, options):
    config = HealingConfig(
        rank=8, learning_rate=1e-3, sequence_length=options.length, steps=options.steps, warmup_steps=1,
        batch_sequences=4, at_once=4, quantization=None, gradient_checkpointing=False,
    )  # fmt: skip
    cut = simple_cut(shape.layers, options.sizes)
    texts = data.texts("wikipedia", split="train", datasets=options.datasets)
    cost = costs.healing_cost(shape, cut, config, options.dtype)
    return cost, lambda: train(drop_layers(model, cut), tokenizer, texts, config)


if __name__ == "__main__":
    main()
