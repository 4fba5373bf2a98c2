"""What five large models would cost on large machines, by arithmetic alone.

    python -m benchmarks.large --datasets FOLDER

Of each model only its configuration is known (benchmarks/large/MODEL.json: facts that its authors published). Tokens of
the tasks are counted with the embedded model's tokenizer. Nothing is run; benchmarks/large/costs.json is what the page
"Machines" shows.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from deeper_layers import models
from deeper_layers.cuts import simple_cut
from deeper_layers.experiments import costs
from deeper_layers.files import write_file
from deeper_layers.models.machines import find_machine
from deeper_layers.presets import PRESETS

FOLDER = Path(__file__).with_name("large")
COSTS = FOLDER / "costs.json"
# the settings of each model's healing: the paper's own, or those of its largest
MODELS = {
    "Llama-2-7B": "Llama-2 7B",
    "Llama-2-13B": "Llama-2 13B",
    "Llama-2-70B": "Llama-2 70B",
    "Llama-3.1-405B": "Llama-2 70B",
    "DeepSeek-V3": "Llama-2 70B",
}
MACHINES = ("h100x8", "h200x8", "h100x32")
SAMPLES, LENGTH, DROPPED, DTYPE = 256, 512, 0.3, "bfloat16"
TASK = "boolq"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", required=True, help="a local mirror of the hub")
    options = parser.parse_args()
    asked = counted(options.datasets)
    shapes = {name: dataclasses.asdict(shape_of(name)) for name in MODELS}
    content = {"command": "python -m benchmarks.large --datasets FOLDER", "asked": asked, "shapes": shapes}
    content["costs"] = [row for name in MODELS for row in rows(name, costs.Shape(**shapes[name]), asked)]
    write_file(COSTS, (json.dumps(content, indent=1) + "\n").encode())


def counted(datasets: str) -> dict:
    """Requests and tokens of the task."""
    from deeper_layers.sweeping import harness
    from deeper_layers.sweeping.planning import plan_pieces, tokens_of

    source = models.find_model(hashed=False)
    loaded = harness.load_tasks([TASK], datasets=datasets)
    found = harness.collect_requests(loaded, models.empty_model(source), models.tokenizer_of(source))
    pieces = plan_pieces(found.contexts, found.continuations, found.max_length)
    lengths = [len(s.tokens) for piece in pieces for batch in piece.batches for s in batch]
    return {
        "task": TASK, "requests": len(found.contexts), "tokens": tokens_of(pieces),
        "length": round(sum(lengths) / len(lengths), 1),
    }  # fmt: skip


def shape_of(name: str) -> costs.Shape:
    """The shape of a model, from its configuration."""
    return costs.shape_of(models.empty_model(models.configured(FOLDER / f"{name}.json")))


def rows(name: str, shape: costs.Shape, asked: dict) -> list[dict]:
    """What distances, a sweep over all sizes of the simple rule, and a healing cost on each machine."""
    every_size = [simple_cut(shape.layers, size) for size in range(shape.layers)]
    cut, config = simple_cut(shape.layers, round(DROPPED * shape.layers)), PRESETS[MODELS[name]]
    works = {
        "distances": costs.distances_cost(shape, SAMPLES * LENGTH, LENGTH, DTYPE),
        "sweep": costs.sweep_cost(shape, every_size, asked["tokens"], asked["requests"], asked["length"], DTYPE),
        "healing": costs.healing_cost(shape, cut, config, DTYPE),
    }
    return [
        {
            "model": name, "machine": machine.name, "work": work, "operations": cost.operations, "memory": cost.memory,
            "devices": cost.devices(machine), "seconds": cost.seconds(machine, DTYPE),
        }
        for machine in map(find_machine, MACHINES)
        for work, cost in works.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
