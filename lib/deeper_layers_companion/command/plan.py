"""`deeper-layers plan`: the cost of a sweep. Nothing is run."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from deeper_layers import models
from deeper_layers.presets import PRESETS
from deeper_layers.sweeping.planning import BATCH_TOKENS
from deeper_layers_companion.command.options import (
    LISTS,
    Answer,
    exclude,
    exclude_rules,
    is_typed,
    subcommand,
)
from deeper_layers_companion.jobs import price
from deeper_layers_companion.jobs.options import SweepParameters
from deeper_layers_companion.jobs.plan import describe_jobs, plan_sweep
from deeper_layers_companion.jobs.session import Session

# columns of the table of distances and tasks; "seconds" and "device" are for what results hold already
COLUMNS = "task items requests tokens tokens_at_most layer_steps layer_steps_at_most about_seconds generated longest"
COLUMNS = [*COLUMNS.split(), "seconds", "device", "unknown"]


@subcommand(
    SweepParameters, "What a run will cost; nothing is loaded.", but=("measure",), needed=False
)
@click.option(
    "--model-config",
    type=click.Path(path_type=Path),
    help="in place of MODEL: its config.json, which is all that is known of it",
)
@click.option(
    "--machine", help='also seconds and memory there: "this", or a device and how many, like h100x8'
)
@click.option(
    "--heal",
    type=click.Choice(list(PRESETS)),
    default="small",
    show_default=True,
    help="with --machine, of a healing",
)
@click.option(
    "--drop",
    type=click.IntRange(min=1),
    help="number of layers to drop: the same as --sizes with one number",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="in each sequence of the KV cache",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="sequences at once, for the KV cache",
)
@click.option(
    "--jobs",
    is_flag=True,
    help="print each job as a line of JSON, with what it needs, for a scheduler",
)
def plan(
    parameters: SweepParameters,
    model_config: Path | None,
    machine: str | None,
    heal: str,
    drop: int | None,
    tokens: int,
    batch: int,
    jobs: bool,
) -> Answer:
    """Say what a sweep with the same options will cost, and how large each pruned model is; no weights are loaded.

    Parameters come from the header or the configuration, what is measured already from results. For tasks that are
    not, lm-eval is asked for its requests where their items are at hand. What is not known is said to be so.

    \b
    deeper-layers plan embedded
    deeper-layers plan embedded --drop 8 --tokens 32768 --batch 4
    deeper-layers plan ORGANISATION/NAME --tasks "mmlu:5@20" --sizes 0-8 --datasets MIRROR
    deeper-layers plan --model-config config.json --machine h100x8
    """
    if is_typed("model") == is_typed("model_config"):
        raise click.UsageError("expected MODEL, or --model-config with a config.json, and not both")
    exclude_rules()
    exclude("drop", "sizes", *LISTS)
    if drop is not None:
        parameters = parameters.replace(sizes=str(drop))
    source = model_config and models.source_of_config(model_config, parameters.dtype)
    session = Session(parameters, source, planning=True)
    if jobs:
        lines = list(describe_jobs(session, heal))
        return Answer({"jobs": lines}, ["\n".join(map(json.dumps, lines))])
    content = plan_sweep(session, machine, heal, tokens, batch)
    return Answer(content, _make_parts(content))


def _select_columns(row: dict) -> dict:
    return {name: row.get(name) for name in COLUMNS}


def _make_parts(content: dict) -> Iterator[str | Sequence[dict]]:
    """Yield the plan as texts and tables, whose columns have the names of the JSON."""
    yield f"{content['model']}: {content['layers']} layers, {content['weights']} weights, opened in {content['dtype']}"
    yield content["sizes"] or f"sizes: not known ({content['sizes_unknown']})"
    if content["sizes"]:
        cache = content["cache"]
        held = f"{cache['batch']:,} sequences" if cache["batch"] > 1 else "1 sequence"
        yield f"memory_bytes: weights, and the KV cache of {held} of {cache['tokens']:,} tokens (cache_bytes)."
    rows = content["tasks"]
    if content["distances"]:
        rows = [{"task": "distances"} | content["distances"], *rows]
    yield list(map(_select_columns, rows))
    yield [{"search of at most": rule} | cost for rule, cost in content["searches"].items()]
    yield (
        "A layer-step is one layer run on one token. How long it takes depends on the machine: a sweep tries it when "
        "the model is open, and says so before it runs; here it is at the pace of distances that results hold."
    )
    if content["tokenizer"] is not None:
        yield f"Tokens are as {content['tokenizer']} counts them: of this model only its config.json is known."
    predicted = content.get("predicted")
    if predicted:
        machine = predicted["machine"]
        rows = []
        for cost in predicted["costs"]:
            about = cost.get("unknown") or price.duration(cost["seconds"])
            row = {f"on {machine['name']}": cost["what"], "about": about}
            row |= {
                f"{name}, 10^9": cost[name] / 1e9
                for name in ("operations", "memory", "weights")
                if name in cost
            }
            rows.append(row | {name: cost.get(name) for name in ("devices", "bound_by")})
        yield rows
        yield "Devices are what one copy of the model needs; as many copies as there is room for share the work."
        share = f"{price.REACHED:.0%} of the matrix throughput of the"
        if machine["name"] == "this":
            share = "the median of short products,"
        yield f"Arithmetic, not measured: {share} {machine['source']}."
        yield from _describe_launches(predicted)


def _describe_launches(predicted: dict) -> Iterator[str]:
    """How large a batch has to be, where launches cost something."""
    microseconds = 1e6 * predicted["machine"]["launch_seconds"]
    if not microseconds:
        return
    if predicted["launches"] is None:
        yield "How many operators a pass has is not known for this model, so launches are left out."
        return
    yield (
        f"A pass launches {predicted['launches']:,} operators of {microseconds:.0f} microseconds each. From "
        f"{predicted['smallest_batch']:,} tokens in a batch on its products take longer than that; a sweep's have "
        f"up to {BATCH_TOKENS:,}."
    )
