"""`deeper-layers plan`: what a sweep will cost. Nothing is run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import click

from deeper_layers import models, prices
from deeper_layers.command.answers import Answer, answering, table
from deeper_layers.command.options import MODEL, Place, asking
from deeper_layers.experiments.parameters import SweepParameters
from deeper_layers.experiments.plans import find_source, plan_sweep
from deeper_layers.presets import PRESETS


@click.command(
    help=f"""
    Say what a sweep with the same options will cost, and how large each pruned model is; no weights are loaded.

    Parameters come from the header or the configuration, what is measured already from results. For tasks that are
    not, lm-eval is asked for its requests where their items are at hand. What is not known is said to be so.

    \b
    deeper-layers plan embedded
    deeper-layers plan ORGANISATION/NAME --tasks "mmlu:5@20" --sizes 0-8 --datasets MIRROR
    deeper-layers plan --model-config config.json --machine h100x8

    {MODEL}
    """
)
@click.option(
    "--model-config", type=Place(), help="in place of MODEL: its config.json, which is all that is known of it"
)
@click.option("--machine", help='also seconds and memory there: "this", or a device and how many, like h100x8')
@click.option(
    "--heal", type=click.Choice(list(PRESETS)), default="small", show_default=True, help="with --machine, of a healing"
)
@asking(SweepParameters, but=("measure",), needed=False)
@answering
def plan(given: dict, model_config: Path | None, machine: str | None, heal: str) -> Answer:
    if ("model" in given) == (model_config is not None):
        raise click.UsageError("expected MODEL, or --model-config with a config.json, and not both")
    if machine not in (None, "this"):
        prices.find_machine(machine)  # refused before a model is looked at
    parameters = SweepParameters(**given)
    source = find_source(parameters) if model_config is None else models.configured(model_config, parameters.dtype)
    content = plan_sweep(parameters, source, machine, heal)
    return Answer(in_words(content), content)


def in_words(content: dict) -> str:
    """The plan as a person reads it."""
    return "\n\n".join(_parts(content))


def _parts(content: dict) -> Iterator[str]:
    yield f"{content['model']}: {content['layers']} layers, {content['weights']} weights, opened in {content['dtype']}"
    yield _sizes(content)
    if found := content["distances"]:
        yield "distances: " + (
            _place(found)
            if "unit" in found
            else f"to be measured on at most {found['tokens_at_most']:,} tokens, "
            f"{_number(found['layer_steps_at_most'])} layer-steps"
        )
    if content["searches"]:
        from deeper_layers.experiments.choosing import priced  # slow

        for rule, price in content["searches"].items():
            yield f"{priced(rule, price)}, and less where results hold some"
    yield "\n".join(f"{task['task']}: {_task(task)}" for task in content["tasks"])
    if content["tokenizer"] is not None:
        yield f"Tokens are as {content['tokenizer']} counts them: of this model only its config.json is known."
    if any("about_seconds" in task for task in content["tasks"]):
        yield "Seconds are at the pace of its distances, which results hold of a machine like this one."
    if any("unit" not in task for task in content["tasks"]):
        yield (
            "A layer-step is one layer run on one token. How long it takes depends on the machine: a sweep tries it "
            "when the model is open, and says so before it runs."
        )
    if found := content.get("predicted"):
        yield _predicted(found, content["dtype"])


def _sizes(content: dict) -> str:
    if content["sizes"] is None:
        return f"sizes: not known ({content['sizes_unknown']})"
    rows, whole = [], content["sizes"][0]["parameters"]
    for row in content["sizes"]:
        cells = {"n": str(row["size"]), "layers": str(content["layers"] - row["size"])}
        cells |= {"parameters": f"{row['parameters']:,}", "share": f"{row['parameters'] / whole:.0%}"}
        for head, name in ((f"in {content['dtype']}", "bytes"), ("as a GGUF file", "file_bytes")):
            cells |= {head: f"{row[name] / 1e6:,.0f} MB"} if row[name] else {}
        rows.append(cells)
    return table(rows)


def _task(task: dict) -> str:
    if "unit" in task:
        return f"{task['items']:,} items, {_place(task)}"
    if task["unknown"]:
        return f"not known before it runs ({task['unknown']})"
    parts = [f"{task['items']:,} items"]
    if task["requests"]:
        counted = f"{task['requests']:,} requests, {task['tokens']:,} distinct tokens"
        parts.append(f"{counted}, {_range(task['layer_steps'], _number)} layer-steps")
    if "about_seconds" in task:
        parts.append(f"about {_range(task['about_seconds'], prices.duration)}")
    if task["generated"]:
        parts.append(
            f"{task['generated']:,} answers to write for each pruned model, of at most {task['longest']} tokens"
        )
    return "; ".join(parts)


def _predicted(found: dict, dtype: str) -> str:
    machine, rows, notes = found["machine"], [], []
    for row in found["costs"]:
        if "unknown" in row:
            notes.append(f"{row['what']}: not known ({row['unknown']})")
            continue
        rows.append(
            {
                f"on {machine['name']}": row["what"],
                "about": prices.duration(row["seconds"]),
                "operations": f"{row['operations']:.1e}",
                "memory": f"{row['memory'] / 1e9:,.1f} GB",
                "weights": f"{row['weights'] / 1e9:,.1f} GB",
                "devices": str(row["devices"]),
            }
        )
    if machine["name"] == "this":
        reached = ", ".join(f"{of} {number / 1e9:,.0f}" for of, number in machine["throughput"].items())
        notes.append(f"Predicted in {dtype} from the median of short products, {machine['source']}.")
        notes.append(f"Reached, billions of operations a second: {reached}.")
    else:
        notes.append(
            f"Arithmetic, not measured: {prices.REACHED:.0%} of the matrix throughput of the {machine['source']}."
        )
    notes.append("Devices are what one copy of the model needs; as many copies as there is room for share the work.")
    return "\n".join([table(rows), *notes])


def _place(found: dict) -> str:
    return f"in results, measured in {found['seconds']:,.0f} s on: {found['device']}"


def _range(ends: list, shown: Callable) -> str:
    return " to ".join(dict.fromkeys(map(shown, ends)))


def _number(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number / 1e6:,.1f} million"
