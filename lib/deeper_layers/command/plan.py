"""`deeper-layers plan`: what a sweep will cost, from the model's header and what results hold. Nothing is run."""

import functools
from pathlib import Path

import click

from deeper_layers import data, models, results
from deeper_layers.command.answers import Answer, answering, table
from deeper_layers.command.options import Place, asking
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import QuestionAnsweringParameters
from deeper_layers.family.tree import Tree
from deeper_layers.healing.presets import PRESETS
from deeper_layers.models.sources import CONFIGURED, Source
from deeper_layers.results.units import Unit

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@click.command
@click.option(
    "--model-config", type=Place(), help="in place of MODEL: its config.json, which is all that is known of it"
)
@click.option("--machine", help='also seconds and memory there: "this", or a device and how many, like h100x8')
@click.option("--heal", default="small", show_default=True, help=f"with --machine, of a healing: {', '.join(PRESETS)}")
@asking(QuestionAnsweringParameters, but=("measure",), needed=False)
@answering
def plan(given: dict, model_config: Path | None, machine: str | None, heal: str) -> Answer:
    """Say what a sweep with the same options will cost, and how large each pruned model is; no weights are loaded.

    Parameters come from the header or the configuration, what is measured already from results. For tasks that are
    not, lm-eval is asked for its requests where their items are at hand. What is not known is said to be so.

    \b
    deeper-layers plan embedded
    deeper-layers plan ORGANISATION/NAME --tasks "mmlu:5@20" --sizes 0-8 --datasets MIRROR
    deeper-layers plan --model-config config.json --machine h100x8
    """
    if ("model" in given) == (model_config is not None):
        raise click.UsageError("expected MODEL, or --model-config with a config.json, and not both")
    parameters = QuestionAnsweringParameters(**given)
    source = _source(parameters) if model_config is None else models.configured(model_config, parameters.dtype)
    content = planned(parameters, source)
    text = in_words(content)
    if machine is not None:
        from deeper_layers.command import predicted  # slow

        content["predicted"] = predicted.predicted(content, machine, heal, parameters, source)
        text += "\n\n" + predicted.in_words(content["predicted"])
    return Answer(text, content)


def planned(parameters: QuestionAnsweringParameters, source: Source | None = None) -> dict:
    """What is known of a sweep before it runs; null is what is not.

    A layer-step is one layer run on one token; [least, most] where the cuts of the similarity rule are not known yet.
    It is counted for a model whose layers can be run from the middle, which a sweep finds out when it is open.

    Raises InputError for what is no model, or parameters that do not fit it.
    """
    source = source or _source(parameters)
    layers = source.num_layers
    sizes = sorted({size for task in parameters.task_list for size in parameters.size_list(layers, task)})
    found = _distances(parameters, source)
    tokens = parameters.samples * parameters.sequence_length
    content = {
        "model": source.name, "layers": layers, "dtype": source.dtype, "weights": source.quantized,
        **_sizes(source, sizes, parameters.trust_remote_code),
        "distances": None,
        "tasks": [_task(task, parameters, source, found) for task in parameters.task_list],
    }  # fmt: skip
    if "similarity" in parameters.rule_list:
        content["distances"] = _measured(found) or {"tokens_at_most": tokens, "layer_steps_at_most": tokens * layers}
    return content


def _sizes(source: Source, sizes: list[int], trust_remote_code: bool) -> dict:
    """Parameters and bytes of the model without so many layers, those before the last; or why they are not known."""
    try:
        known = models.sizes_of(source, trust_remote_code=trust_remote_code)
    except InputError as error:
        return {"sizes": None, "sizes_unknown": str(error)}
    found = []
    for size in sizes:
        cut = simple_cut(source.num_layers, size)
        parameters = known.parameters(cut)
        bytes = {"bytes": parameters * ITEMSIZE[source.dtype], "file_bytes": known.file_bytes(cut)}
        found.append({"size": size, "parameters": parameters, **bytes})
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
    parts.append("\n".join(f"{task['task']}: {_task_in_words(task)}" for task in content["tasks"]))
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


def _source(parameters: QuestionAnsweringParameters) -> Source:
    """The model; its weights are read for their hash only where results hold something of its name."""
    own = results.slug(models.model_name(parameters.model))
    known = any((folder / own).is_dir() for folder in results.readable_folders(parameters.results_folder))
    source = models.find_model(
        parameters.model, revision=parameters.revision, dtype=parameters.dtype,
        trust_remote_code=parameters.trust_remote_code, hashed=known or parameters.model.endswith(".gguf"),
    )  # fmt: skip
    return parameters.known(source)


def _distances(parameters: QuestionAnsweringParameters, source: Source) -> Unit | None:
    from deeper_layers.experiments.distances import distances_unit

    try:
        return distances_unit(parameters.but(measure=False), source, lambda: None)
    except InputError:
        return None


def _task(task: str, parameters: QuestionAnsweringParameters, source: Source, distances: Unit | None) -> dict:
    """What a task costs: where results hold it, what it took; else its requests, if they can be known."""
    sizes, rules = parameters.size_list(source.num_layers, task), parameters.rule_list
    cuts = _cuts(rules, sizes, source.num_layers, distances)
    plan = {"task": task, "rules": rules, "sizes": sizes}
    if None not in cuts.values():
        from deeper_layers.experiments.sweeps import sweep_unit

        unit = sweep_unit(task, cuts, parameters.but(measure=False), source, lambda: None)
        if unit is not None:
            return plan | _measured(unit) | {"items": _items(unit)}
    plan |= dict.fromkeys(("items", "requests", "generated", "tokens", "length", "layer_steps", "unknown"))
    if not data.is_at_hand(task, parameters.datasets):
        return plan | {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    try:
        return plan | _requests(task, cuts, sizes, parameters, source)
    except InputError as error:
        return plan | {"unknown": str(error)}


def _cuts(rules: list[str], sizes: list[int], layers: int, distances: Unit | None) -> dict[str, list[Cut] | None]:
    """The cuts of each rule; None for those of a rule whose distances are not measured."""
    from deeper_layers.rules.choosing import cuts_of_rule
    from deeper_layers.rules.similarity import distance_matrix

    matrix = None if distances is None else distance_matrix(distances.rows)
    return {
        rule: None if rule == "similarity" and matrix is None else cuts_of_rule(rule, sizes, layers, matrix)
        for rule in rules
    }


def _requests(task: str, cuts: dict, sizes: list[int], parameters: QuestionAnsweringParameters, source: Source) -> dict:
    """What lm-eval asks, tokenized, and the layer-steps of its answers by log-likelihood."""
    from deeper_layers.evaluation import harness
    from deeper_layers.family.planning import plan_pieces, tokens_of

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
    """How many layers one token passes in a family, at least and at most: the nodes of its tree, where the similarity
    rule may put its cuts anywhere below the last layer."""
    known = {cut for of_rule in cuts.values() if of_rule for cut in of_rule if cut.size}
    least = Tree([Cut(0, 0), *sorted(known)], layers).nodes
    if None not in cuts.values():
        return least, least
    pruned = [size for size in sizes if size]
    # where another rule is asked too, the similarity rule may agree with it
    return least + (0 if known else len(pruned)), least + sum(layers - size for size in pruned)


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
