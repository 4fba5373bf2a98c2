"""`deeper-layers plan`: what a sweep will cost, from the model's header and what results hold. Nothing is run."""

import contextlib
import functools
from pathlib import Path

import click

from deeper_layers import data, models, results
from deeper_layers.command.answers import Answer, answering, table
from deeper_layers.command.options import MODEL, Place, asking
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.costs import ITEMSIZE
from deeper_layers.experiments.parameters import GIVEN, SweepParameters, check_given
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.machines import find_machine
from deeper_layers.models.sources import CONFIGURED, Source
from deeper_layers.presets import PRESETS
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.sweeping.tree import Tree


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
        find_machine(machine)  # refused before a model is looked at
    parameters = SweepParameters(**given)
    source = source_of(parameters) if model_config is None else models.configured(model_config, parameters.dtype)
    content = planned(parameters, source)
    text = in_words(content)
    if machine is not None:
        from deeper_layers.command import predicted  # slow

        cuts = {
            task: _cuts(parameters.size_list(source.num_layers, task), parameters, source)
            for task in parameters.task_list
        }
        content["predicted"] = predicted.predicted(content, cuts, machine, heal, parameters, source)
        text += "\n\n" + predicted.in_words(content["predicted"])
    return Answer(text, content)


def planned(parameters: SweepParameters, source: Source) -> dict:
    """What is known of a sweep before it runs; null is what is not.

    A layer-step is one layer run on one token; [least, most] where the cuts of the similarity rule are not known yet.
    It is counted for a model whose layers can be run from the middle, which a sweep finds out when it is open.

    Raises InputError for what is no model, or parameters that do not fit it.
    """
    layers = source.num_layers
    sizes = sorted({size for task in parameters.task_list for size in parameters.size_list(layers, task)})
    given = parameters.given_cut
    if given is not None:
        check_given(given, layers)
    of_sizes = [simple_cut(layers, size) for size in sizes] if given is None else [UNPRUNED, given]
    chosen = parameters.rule_list if given is None and any(sizes) else []
    needs = {rule: REGISTERED[rule].needs for rule in chosen}
    tokens = parameters.samples * parameters.sequence_length
    from deeper_layers.experiments.choosing import price  # slow: what is above may refuse

    content = {
        "model": source.name, "layers": layers, "dtype": source.dtype, "weights": source.quantized,
        **_sizes(source, of_sizes, parameters.trust_remote_code),
        "tokenizer": models.find_model(hashed=False).name if source.weights == CONFIGURED else None,
        "distances": None,
        "searches": {rule: price(rule, max(sizes), parameters, layers) for rule in needs if needs[rule] == "losses"},
        "tasks": [_task(task, parameters, source) for task in parameters.task_list],
    }  # fmt: skip
    if "distances" in needs.values():
        from deeper_layers.experiments.distances import distances_unit

        found = None
        with contextlib.suppress(NotMeasuredError):
            found = distances_unit(parameters.but(measure=False), source, lambda: None)
        content["distances"] = _measured(found) or {"tokens_at_most": tokens, "layer_steps_at_most": tokens * layers}
    return content


def _sizes(source: Source, cuts: list[Cut], trust_remote_code: bool) -> dict:
    """Parameters and bytes of the model without the layers of some cuts; or why they are not known."""
    try:
        known = models.sizes_of(source, trust_remote_code=trust_remote_code)
    except InputError as error:
        return {"sizes": None, "sizes_unknown": str(error)}
    found = []
    for cut in cuts:
        parameters = known.parameters(cut)
        bytes = {"bytes": parameters * ITEMSIZE[source.dtype], "file_bytes": known.file_bytes(cut)}
        found.append({"size": cut.size, "parameters": parameters, **bytes})
    return {"sizes": found}


def in_words(content: dict) -> str:
    """The plan as a person reads it."""
    head = f"{content['model']}: {content['layers']} layers, {content['weights']} weights, opened in {content['dtype']}"
    parts = [head, _sizes_in_words(content)]
    if found := content["distances"]:
        parts.append("distances: " + (_place(found) if "unit" in found else (
            f"to be measured on at most {found['tokens_at_most']:,} tokens, "
            f"{_steps(found['layer_steps_at_most'])} layer-steps"
        )))  # fmt: skip
    if content["searches"]:
        from deeper_layers.experiments.choosing import priced

        said = (priced(rule, price) for rule, price in content["searches"].items())
        parts += [f"{price}, and less where results hold some" for price in said]
    parts.append("\n".join(f"{task['task']}: {_task_in_words(task)}" for task in content["tasks"]))
    if content["tokenizer"] is not None:
        parts.append(f"Tokens are as {content['tokenizer']} counts them: of this model only its config.json is known.")
    if any("unit" not in task for task in content["tasks"]):
        parts.append(
            "A layer-step is one layer run on one token. How long it takes depends on the machine: a sweep tries it "
            "when the model is open, and says so before it runs."
        )
    return "\n\n".join(parts)


def _sizes_in_words(content: dict) -> str:
    if content["sizes"] is None:
        return f"sizes: not known ({content['sizes_unknown']})"
    lines, whole = [], content["sizes"][0]
    for row in content["sizes"]:
        line = {"n": str(row["size"]), "layers": str(content["layers"] - row["size"])}
        line["parameters"] = f"{row['parameters']:,}"
        line["share"] = f"{row['parameters'] / whole['parameters']:.0%}"
        line[f"in {content['dtype']}"] = f"{row['bytes'] / 1e6:,.0f} MB"
        if row["file_bytes"]:
            line["as a GGUF file"] = f"{row['file_bytes'] / 1e6:,.0f} MB"
        lines.append(line)
    return table(lines)


def source_of(parameters: SweepParameters) -> Source:
    """The model; its weights are read for their hash only where results hold something of its name."""
    own = results.slug(models.model_name(parameters.model))
    known = any((folder / own).is_dir() for folder in results.readable_folders(parameters.results_folder))
    source = models.find_model(
        parameters.model, revision=parameters.revision, dtype=parameters.dtype,
        trust_remote_code=parameters.trust_remote_code, hashed=known or is_gguf(parameters.model),
    )  # fmt: skip
    return parameters.known(source)


def _task(task: str, parameters: SweepParameters, source: Source) -> dict:
    """What a task costs: where results hold it, what it took; else its requests, if they can be known."""
    sizes = parameters.size_list(source.num_layers, task)
    cuts = _cuts(sizes, parameters, source)
    plan = {"task": task, "rules": list(cuts), "sizes": sizes if GIVEN not in cuts else [c.size for c in cuts[GIVEN]]}
    if None not in cuts.values():
        from deeper_layers.experiments.sweeps import sweep_unit

        unit = sweep_unit(task, cuts, parameters.but(measure=False), source, lambda: None, engine=parameters.engine)
        if unit is not None:
            return plan | _measured(unit) | {"items": _items(unit)}
    plan |= dict.fromkeys(("items", "requests", "generated", "tokens", "length", "layer_steps", "unknown"))
    if not data.is_at_hand(task, parameters.datasets):
        return plan | {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    try:
        return plan | _requests(task, cuts, sizes, parameters, source)
    except InputError as error:
        return plan | {"unknown": str(error)}


def _cuts(sizes: list[int], parameters: SweepParameters, source: Source) -> dict[str, list[Cut] | None]:
    """The cuts of each rule; None for those of a rule that needs what is not measured."""
    if (given := parameters.given_cut) is not None:
        return {GIVEN: [UNPRUNED, given]}
    from deeper_layers.experiments.choosing import chosen_cuts

    found: dict[str, list[Cut] | None] = {}
    for rule in parameters.rule_list:
        try:
            found[rule] = chosen_cuts(rule, sizes, parameters.but(measure=False), source, lambda: None)
        except NotMeasuredError:
            found[rule] = None
    return found


def _requests(task: str, cuts: dict, sizes: list[int], parameters: SweepParameters, source: Source) -> dict:
    """What lm-eval asks, tokenized, and the layer-steps of its answers by log-likelihood."""
    from deeper_layers.sweeping import harness
    from deeper_layers.sweeping.planning import plan_pieces, tokens_of

    asked = parameters.asked[task]
    loaded = harness.load_tasks([task], num_fewshot=asked.shots, datasets=parameters.datasets)
    model, tokenizer = _without_weights(source, parameters.trust_remote_code)
    found = harness.collect_requests(loaded, model, tokenizer, limit=asked.limit)
    pieces = plan_pieces(found.contexts, found.continuations, found.max_length)
    tokens, lengths = tokens_of(pieces), [len(s.tokens) for piece in pieces for batch in piece.batches for s in batch]
    least, most = _layers_of_a_token(cuts, sizes, source.num_layers)
    items = {(instance.task_name, instance.doc_id) for instance in found.instances + found.generations}
    return {
        "items": len(items), "requests": len(found.contexts), "generated": len(found.generations), "tokens": tokens,
        "length": round(sum(lengths) / len(lengths), 1) if lengths else None,
        "layer_steps": [tokens * least, tokens * most],
    }  # fmt: skip


@functools.lru_cache(maxsize=1)
def _without_weights(source: Source, trust_remote_code: bool) -> tuple:
    if source.weights == CONFIGURED:  # it has no tokenizer: tokens are as the embedded model counts them
        source = models.find_model(hashed=False)
    how = {"trust_remote_code": trust_remote_code}
    return models.empty_model(source, **how), models.tokenizer_of(source, **how)


def _layers_of_a_token(cuts: dict[str, list[Cut] | None], sizes: list[int], layers: int) -> tuple[int, int]:
    """How many layers one token passes in a family, at least and at most: the nodes of its tree, where a rule may put
    its cuts anywhere below the last layer."""
    known = {cut for of_rule in cuts.values() if of_rule for cut in of_rule} - {UNPRUNED}
    least = Tree([UNPRUNED, *sorted(known)], layers).nodes
    if None not in cuts.values():
        return least, least
    pruned, unknown = [size for size in sizes if size], sum(of_rule is None for of_rule in cuts.values())
    # where another rule is asked too, it may agree with it
    return least + (0 if known else len(pruned)), least + unknown * sum(layers - size for size in pruned)


def _measured(unit: Unit | None) -> dict | None:
    """Where a unit is, and what it took on which machine."""
    if unit is None:
        return None
    state = unit.provenance
    seconds = state.get("seconds", 0.0) + state.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(unit.path), "seconds": round(seconds, 1), "device": state["device"]}


def _items(unit: Unit) -> int:
    """Items of a task, or of all tasks of a group."""
    items = unit.rows.drop_duplicates("task").set_index("task")["items"]
    return int(items.get(unit.name, items.sum()))


def _place(found: dict) -> str:
    return f"in results, measured in {found['seconds']:,.0f} s on: {found['device']}"


def _task_in_words(task: dict) -> str:
    if "unit" in task:
        return f"{task['items']:,} items, {_place(task)}"
    if task["unknown"]:
        return f"not known before it runs ({task['unknown']})"
    parts = [f"{task['items']:,} items"]
    if task["requests"]:
        least, most = task["layer_steps"]
        steps = _steps(most) if least == most else f"{_steps(least)} to {_steps(most)}"
        parts.append(f"{task['requests']:,} requests, {task['tokens']:,} distinct tokens, {steps} layer-steps")
    if task["generated"]:
        parts.append(f"{task['generated']:,} answers to write for each pruned model, whose length is not known before")
    return "; ".join(parts)


def _steps(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number / 1e6:,.1f} million"
