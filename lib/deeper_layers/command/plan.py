"""`deeper-layers plan`: what a sweep will cost. Nothing is run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import click

from deeper_layers import models, prices
from deeper_layers.command.options import Answer, Rows, is_typed, subcommand
from deeper_layers.experiments.parameters import SweepParameters
from deeper_layers.experiments.plans import find_source, plan_sweep
from deeper_layers.presets import PRESETS


@subcommand(
    SweepParameters,
    "What a run will cost; nothing is loaded.",
    """
    Say what a sweep with the same options will cost, and how large each pruned model is; no weights are loaded.

    Parameters come from the header or the configuration, what is measured already from results. For tasks that are
    not, lm-eval is asked for its requests where their items are at hand. What is not known is said to be so.

    \b
    deeper-layers plan embedded
    deeper-layers plan ORGANISATION/NAME --tasks "mmlu:5@20" --sizes 0-8 --datasets MIRROR
    deeper-layers plan --model-config config.json --machine h100x8
    """,
    but=("measure",),
    needed=False,
)
@click.option(
    "--model-config",
    type=click.Path(path_type=Path),
    help="in place of MODEL: its config.json, which is all that is known of it",
)
@click.option("--machine", help='also seconds and memory there: "this", or a device and how many, like h100x8')
@click.option(
    "--heal", type=click.Choice(list(PRESETS)), default="small", show_default=True, help="with --machine, of a healing"
)
def plan(parameters: SweepParameters, model_config: Path | None, machine: str | None, heal: str) -> Answer:
    if is_typed("model") == is_typed("model_config"):
        raise click.UsageError("expected MODEL, or --model-config with a config.json, and not both")
    if machine not in (None, "this"):
        prices.find_machine(machine)  # refused before a model is looked at
    source = find_source(parameters) if model_config is None else models.configured(model_config, parameters.dtype)
    content = plan_sweep(parameters, source, machine, heal)
    return Answer(content, _parts(content))


def _parts(content: dict) -> Iterator[str | Rows]:
    """The plan as a person reads it."""
    dtype, tasks, distances = content["dtype"], content["tasks"], content["distances"]
    yield f"{content['model']}: {content['layers']} layers, {content['weights']} weights, opened in {dtype}"
    if content["sizes"] is None:
        yield f"sizes: not known ({content['sizes_unknown']})"
    else:
        whole = content["sizes"][0]["parameters"]
        yield [
            {"n": row["size"], "layers": content["layers"] - row["size"], "parameters": row["parameters"]}
            | {"share": f"{row['parameters'] / whole:.0%}", f"in {dtype}": _megabytes(row["bytes"])}
            | {"as a GGUF file": _megabytes(row["file_bytes"])}
            for row in content["sizes"]
        ]
    if distances and "unit" not in distances:
        asked = {"tokens": distances["tokens_at_most"], "layer_steps": [distances["layer_steps_at_most"]]}
        distances = asked | {"unknown": "at most"}
    yield [_task(task) for task in [{"task": "distances"} | distances] * bool(distances) + tasks]
    if content["searches"]:
        from deeper_layers.experiments.choosing import priced  # slow

        for rule, price in content["searches"].items():
            yield f"{priced(rule, price)}, and less where results hold some"
    if content["tokenizer"] is not None:
        yield f"Tokens are as {content['tokenizer']} counts them: of this model only its config.json is known."
    if any("about_seconds" in task for task in tasks):
        yield "Seconds are at the pace of its distances, which results hold of a machine like this one."
    if any("unit" not in task for task in tasks):
        yield (
            "A layer-step is one layer run on one token. How long it takes depends on the machine: a sweep tries it "
            "when the model is open, and says so before it runs."
        )
    if found := content.get("predicted"):
        yield from _predicted(found, dtype)


def _task(task: dict) -> dict:
    note = task.get("unknown")
    if "unit" in task:
        note = f"in results, measured in {task['seconds']:,.0f} s on: {task['device']}"
    return {
        "to measure": task["task"],
        "items": task.get("items"),
        "requests": task.get("requests"),
        "distinct tokens": task.get("tokens"),
        "layer-steps": _range(task.get("layer_steps"), "{:,}".format),
        "about": _range(task.get("about_seconds"), prices.duration),
        "answers to write, each": task.get("generated"),
        "of at most tokens": task.get("longest"),
        "": note,
    }


def _predicted(found: dict, dtype: str) -> Iterator[str | Rows]:
    machine, unknown = found["machine"], [row for row in found["costs"] if "unknown" in row]
    yield [
        {f"on {machine['name']}": row["what"], "about": prices.duration(row["seconds"])}
        | {"operations": f"{row['operations']:.1e}", "memory": f"{row['memory'] / 1e9:,.1f} GB"}
        | {"weights": f"{row['weights'] / 1e9:,.1f} GB", "devices": row["devices"]}
        for row in found["costs"]
        if row not in unknown
    ]
    yield from (f"{row['what']}: not known ({row['unknown']})" for row in unknown)
    yield "Devices are what one copy of the model needs; as many copies as there is room for share the work."
    if machine["name"] == "this":
        reached = ", ".join(f"{of} {number / 1e9:,.0f}" for of, number in machine["throughput"].items())
        yield f"Predicted in {dtype} from the median of short products, {machine['source']}."
        yield f"Reached, billions of operations a second: {reached}."
    else:
        yield f"Arithmetic, not measured: {prices.REACHED:.0%} of the matrix throughput of the {machine['source']}."


def _range(ends: list | None, shown: Callable) -> str:
    return " to ".join(dict.fromkeys(map(shown, ends or [])))


def _megabytes(bytes: int | float | None) -> str:
    return f"{bytes / 1e6:,.0f} MB" if bytes else ""
