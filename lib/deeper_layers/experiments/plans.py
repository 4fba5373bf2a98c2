"""What a sweep costs before it runs: from the model's header or configuration, and from what results hold.

A layer-step is one layer run on one token. It is counted for a model whose layers can be run from the middle, which a
sweep finds out when it is open. Null is what is not known.
"""

import contextlib
import functools
import statistics

from deeper_layers import data, models, prices, results
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.parameters import SweepParameters
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import CONFIGURED, Source
from deeper_layers.presets import PRESETS
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.sweeping.tree import Tree

CutsOf = dict  # of each rule its cuts; None of one that needs what is not measured


def find_source(parameters: SweepParameters) -> Source:
    """The model; its weights are read for their hash only where results hold something of its name."""
    own = results.slug(models.model_name(parameters.model))
    known = any((folder / own).is_dir() for folder in results.readable_folders(parameters.results_folder))
    how = {name: getattr(parameters, name) for name in ("revision", "dtype", "trust_remote_code")}
    source = models.find_model(parameters.model, hashed=known or is_gguf(parameters.model), **how)
    return parameters.known(source)


def plan_sweep(parameters: SweepParameters, source: Source, machine: str | None = None, heal: str = "small") -> dict:
    """What is known of a sweep before it runs; with a `machine` also seconds and memory there, of a healing too.

    [least, most] stand where the cuts of a rule are not known yet. `machine` is as `prices.find_machine` takes it, or
    "this", which is tried for a moment; `heal` is a preset of `healing.PRESETS`.

    Raises InputError for what is no model or machine, or parameters that do not fit the model.
    """
    layers, given = source.num_layers, parameters.given_cut
    if given is not None:
        given.check(layers)
    sizes = sorted({size for task in parameters.task_list for size in parameters.size_list(layers, task)})
    pruned = [simple_cut(layers, size) for size in sizes] if given is None else [UNPRUNED, given]
    cuts = {task: _cuts(parameters.size_list(layers, task), parameters, source) for task in parameters.task_list}
    needs = {rule: REGISTERED[rule].needs for rule in parameters.rule_list if given is None and any(sizes)}
    from deeper_layers.experiments.choosing import price  # slow: what is above may refuse

    content: dict = {"model": source.name, "layers": layers, "dtype": source.dtype, "weights": source.quantized}
    content |= _sizes(source, pruned, parameters.trust_remote_code)
    content["tokenizer"] = models.find_model(hashed=False).name if source.weights == CONFIGURED else None
    content["distances"] = _distances(parameters, source) if "distances" in needs.values() else None
    content["searches"] = {
        rule: price(rule, max(sizes), parameters, layers) for rule in needs if needs[rule] == "losses"
    }
    content["tasks"] = [_task(task, cuts[task], parameters, source) for task in cuts]
    if machine is not None:
        healed = given or simple_cut(layers, max(sizes))
        content["predicted"] = _predicted(content, cuts, healed, machine, heal, parameters, source)
    return content


def _sizes(source: Source, cuts: list[Cut], trust_remote_code: bool) -> dict:
    """Parameters and bytes of the model without the layers of some cuts; or why they are not known."""
    try:
        known = models.sizes_of(source, trust_remote_code=trust_remote_code)
    except InputError as error:
        return {"sizes": None, "sizes_unknown": str(error)}
    itemsize, found = prices.ITEMSIZE[source.dtype], [(cut, known.parameters(cut)) for cut in cuts]
    return {
        "sizes": [
            {"size": cut.size, "parameters": number, "bytes": number * itemsize, "file_bytes": known.file_bytes(cut)}
            for cut, number in found
        ]
    }


def _distances(parameters: SweepParameters, source: Source) -> dict:
    from deeper_layers.experiments.distances import distances_unit

    with contextlib.suppress(NotMeasuredError):
        return _measured(distances_unit(parameters.but(measure=False), source, lambda: None))
    tokens = parameters.samples * parameters.sequence_length
    return {"tokens_at_most": tokens, "layer_steps_at_most": tokens * source.num_layers}


def _measured(unit: Result) -> dict:
    """Where a result is, and what it took on which machine."""
    state = unit.provenance
    seconds = state.get("seconds", 0.0) + state.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(unit.path), "seconds": round(seconds, 1), "device": state["device"]}


def _cuts(sizes: list[int], parameters: SweepParameters, source: Source) -> CutsOf:
    if (given := parameters.given_cut) is not None:
        return {GIVEN: [UNPRUNED, given]}
    from deeper_layers.experiments.choosing import chosen_cuts

    found: CutsOf = dict.fromkeys(parameters.rule_list)
    for rule in found:
        with contextlib.suppress(NotMeasuredError):
            found[rule] = chosen_cuts(rule, sizes, parameters.but(measure=False), source, lambda: None)
    return found


def _task(task: str, cuts: CutsOf, parameters: SweepParameters, source: Source) -> dict:
    """What a task costs: where results hold it, what it took; else its requests, if they can be known."""
    sizes = parameters.size_list(source.num_layers, task)
    plan: dict = {"task": task, "rules": list(cuts)}
    plan["sizes"] = sizes if GIVEN not in cuts else [cut.size for cut in cuts[GIVEN] or []]
    if None not in cuts.values():
        from deeper_layers.experiments.scoring import score_task

        asked = parameters.but(measure=False)
        if unit := score_task(task, cuts, asked, source, lambda: None, engine=parameters.engine):
            items = unit.rows.drop_duplicates("task").set_index("task")["items"]
            return plan | _measured(unit) | {"items": int(items.get(unit.name, items.sum()))}
    plan |= dict.fromkeys(("items", "requests", "generated", "tokens", "length", "layer_steps", "unknown"))
    if not data.is_at_hand(task, parameters.datasets):
        return plan | {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    try:
        return plan | _requests(task, cuts, sizes, parameters, source)
    except InputError as error:
        return plan | {"unknown": str(error)}


def _requests(task: str, cuts: CutsOf, sizes: list[int], parameters: SweepParameters, source: Source) -> dict:
    """What lm-eval asks, tokenized, and the layer-steps of its answers by log-likelihood."""
    from deeper_layers.sweeping import harness
    from deeper_layers.sweeping.planning import plan_pieces, tokens_of

    asked = parameters.asked[task]
    loaded = harness.load_tasks([task], num_fewshot=asked.shots, datasets=parameters.datasets)
    model, tokenizer = _without_weights(source, parameters.trust_remote_code)
    found = harness.collect_requests(loaded, model, tokenizer, limit=asked.limit)
    pieces = plan_pieces(found.requests)
    tokens, lengths = tokens_of(pieces), [len(s.tokens) for piece in pieces for batch in piece.batches for s in batch]
    steps = [tokens * nodes for nodes in _layers_of_a_token(cuts, sizes, source.num_layers)]
    known = {
        "items": len({(instance.task_name, instance.doc_id) for instance in found.instances + found.generations}),
        "requests": len(found.requests.contexts),
        "generated": len(found.generations),
        "tokens": tokens,
        "length": round(sum(lengths) / len(lengths), 1) if lengths else None,
        "layer_steps": steps,
    }
    if lengths and (pace := _pace(source, parameters)):
        known["about_seconds"] = [round(number / pace, 1) for number in steps]
    return known


@functools.lru_cache(maxsize=1)
def _without_weights(source: Source, trust_remote_code: bool) -> tuple:
    if source.weights == CONFIGURED:  # it has no tokenizer: tokens are as the embedded model counts them
        source = models.find_model(hashed=False)
    how = {"trust_remote_code": trust_remote_code}
    return models.empty_model(source, **how), models.tokenizer_of(source, **how)


def _pace(source: Source, parameters: SweepParameters) -> float | None:
    """Layer-steps a second of this model on a machine like this one, by the distances that results hold of it."""
    units = results.all_results(parameters.results_folder, "distances", source.name)
    paces = [
        unit.details["tokens"] * source.num_layers / _measured(unit)["seconds"]
        for unit in units
        if unit.key["dtype"] == source.dtype
        and _measured(unit)["seconds"]
        and unit.provenance["device"] == models.device_name()
    ]
    return statistics.median(paces) if paces else None


def _layers_of_a_token(cuts: CutsOf, sizes: list[int], layers: int) -> tuple[int, int]:
    """How many layers one token passes, at least and at most: the nodes of the tree of cuts, where a rule may put its
    cuts anywhere below the last layer."""
    known = {cut for of_rule in cuts.values() if of_rule for cut in of_rule} - {UNPRUNED}
    least = Tree([UNPRUNED, *sorted(known)], layers).nodes
    if None not in cuts.values():
        return least, least
    pruned, unknown = [size for size in sizes if size], sum(of_rule is None for of_rule in cuts.values())
    # where another rule is asked too, it may agree with it
    return least + (0 if known else len(pruned)), least + unknown * sum(layers - size for size in pruned)


def _predicted(
    content: dict,
    cuts: dict[str, CutsOf],
    healed: Cut,
    machine: str,
    heal: str,
    parameters: SweepParameters,
    source: Source,
) -> dict:
    """Seconds, memory and bytes of a plan's work on a machine."""
    shape = prices.shape_of(models.empty_model(source, trust_remote_code=parameters.trust_remote_code))
    there = (
        prices.this_machine(shape.width, shape.inner, parameters.device)
        if machine == "this"
        else prices.find_machine(machine)
    )
    found, dtype, length = [], source.dtype, parameters.sequence_length

    def add(what: str, cost: prices.Cost) -> None:
        numbers = {name: getattr(cost, name) for name in ("operations", "memory", "weights")}
        found.append({"what": what, "seconds": cost.seconds(there, dtype), **numbers, "devices": cost.devices(there)})

    add("distances", prices.distances_cost(shape, parameters.samples * length, length, dtype))
    for task in content["tasks"]:
        if task.get("requests"):
            of_rules = cuts[task["task"]].values()
            known = {UNPRUNED}.union(*(of_rule for of_rule in of_rules if of_rule))
            unknown = [size for of_rule in of_rules if of_rule is None for size in task["sizes"] if size]
            asked = task["tokens"], task["requests"], task["length"], dtype
            cost = prices.sweep_cost(shape, sorted(known), *asked, unknown=unknown)
            add(f"sweep of {task['task']}, {len(known) + len(unknown)} models", cost)
    try:
        if healed.attention or healed.mlp:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        cost = prices.healing_cost(shape, healed, PRESETS[heal], dtype)
        add(f"healing without {healed.size} layers, {heal}", cost)
    except InputError as error:
        found.append({"what": "healing", "unknown": str(error)})
    said = {name: getattr(there, name) for name in ("name", "devices", "memory", "source")}
    return {"machine": said, "costs": found}
