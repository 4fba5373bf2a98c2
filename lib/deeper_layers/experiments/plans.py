"""What a sweep costs before it runs: from the model's header or configuration, and what results hold.

A layer-step is one layer run on one token. It is counted for a model whose layers can be run from the middle, which a
sweep finds out when it is open. Null is what is not known.
"""

import contextlib
import functools
import statistics
from collections.abc import Mapping

from deeper_layers import data, models, prices, results
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.parameters import Parameters, SweepParameters
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import CONFIGURED, Source
from deeper_layers.presets import PRESETS
from deeper_layers.prices import Cost, Shape
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.sweeping.tree import Tree

USUAL_ANSWER = 256  # tokens at most of an answer, where a task does not say: lm-eval's own
CutsOf = Mapping[str, list[Cut] | None]  # of each rule its cuts; None of one that needs what is not measured


def find_source(parameters: Parameters) -> Source:
    """The model; its weights are read for their hash only where results hold something of its name."""
    own = results.slug(models.model_name(parameters.model))
    known = any((folder / own).is_dir() for folder in results.readable_folders(parameters.results_folder))
    return parameters.source(hashed=known or is_gguf(parameters.model))


def plan_sweep(parameters: SweepParameters, source: Source, machine: str | None = None, heal: str = "small") -> dict:
    """What is known of a sweep before it runs; with a `machine` also seconds and memory there, of a healing too.

    [least, most] stand where the cuts of a rule are not known yet. `machine` is as `prices.find_machine` takes it, or
    "this", which is tried for a moment; `heal` is a preset of `healing.PRESETS`.

    Raises InputError for what is no model or machine, or parameters that do not fit the model.
    """
    from deeper_layers.experiments.choosing import price  # slow

    experiment = Experiment(parameters.but(measure=False), source, lambda: None)
    layers, given = source.num_layers, parameters.given_cut
    if given is not None:
        given.check(layers)
    sizes = {task: parameters.size_list(layers, task) for task in parameters.asked}
    largest = max(map(max, sizes.values()))
    pruned = [simple_cut(layers, size) for size in sorted({size for of_task in sizes.values() for size in of_task})]
    rules = {rule: REGISTERED[rule].needs for rule in parameters.rule_list if given is None and largest}
    cuts: dict[str, CutsOf]
    if given is None:
        cuts = {task: known_cuts(of_task, experiment) for task, of_task in sizes.items()}
    else:
        cuts = dict.fromkeys(sizes, {GIVEN: [UNPRUNED, given]})
    content: dict = {"model": source.name, "layers": layers, "dtype": source.dtype, "weights": source.quantized}
    content |= _sizes(source, pruned if given is None else [UNPRUNED, given], parameters.trust_remote_code)
    content["tokenizer"] = models.find_model(hashed=False).name if source.weights == CONFIGURED else None
    content["distances"] = _distances(experiment) if "distances" in rules.values() else None
    searches = [rule for rule, needs in rules.items() if needs == "losses"]
    content["searches"] = {rule: price(rule, largest, parameters, layers) for rule in searches}
    content["tasks"] = [plan_task(task, sizes[task], cuts[task], experiment) for task in cuts]
    if machine is not None:
        healed = given or simple_cut(layers, largest)
        content["predicted"] = _predicted(content["tasks"], cuts, healed, machine, heal, experiment)
    return content


def _sizes(source: Source, cuts: list[Cut], trust_remote_code: bool) -> dict:
    """Parameters and bytes of the model without the layers of some cuts; or why they are not known."""
    try:
        known = models.sizes_of(source, trust_remote_code=trust_remote_code)
    except InputError as error:
        return {"sizes": None, "sizes_unknown": str(error)}
    rows = []
    for cut in cuts:
        number, bytes_each = known.parameters(cut), prices.ITEMSIZE[source.dtype]
        sizes = {"size": cut.size, "parameters": number, "bytes": number * bytes_each}
        rows.append(sizes | {"file_bytes": known.file_bytes(cut)})
    return {"sizes": rows}


def _distances(experiment: Experiment) -> dict:
    with contextlib.suppress(NotMeasuredError):
        return _measured(measure_distances(experiment))
    tokens = experiment.parameters.samples * experiment.parameters.sequence_length
    return {"tokens_at_most": tokens, "layer_steps_at_most": tokens * experiment.source.num_layers}


def _measured(found: Result) -> dict:
    """Where a result is, and what it took on which machine."""
    state = found.provenance
    seconds = state.get("seconds", 0.0) + state.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(found.path), "seconds": round(seconds, 1), "device": state["device"]}


def known_cuts(sizes: list[int], experiment: Experiment) -> CutsOf:
    """The cuts of each rule of the parameters, as far as results hold what it takes to choose them."""
    from deeper_layers.experiments.choosing import cuts_of_rule  # slow

    found: dict[str, list[Cut] | None] = dict.fromkeys(experiment.parameters.rule_list)
    for rule in found:
        with contextlib.suppress(NotMeasuredError):
            found[rule] = cuts_of_rule(rule, sizes, experiment)
    return found


def plan_task(task: str, sizes: list[int], cuts: CutsOf, experiment: Experiment) -> dict:
    """What a task costs: where results hold it, what it took; else its requests, if they can be known."""
    from deeper_layers.experiments.scoring import score_task  # slow

    parameters, known = experiment.parameters, {rule: of_rule for rule, of_rule in cuts.items() if of_rule}
    plan: dict = {"task": task, "rules": list(cuts), "sizes": [cut.size for cut in cuts.get(GIVEN) or []] or sizes}
    engine = getattr(parameters, "engine", None)  # of sweeps alone
    if len(known) == len(cuts) and (found := score_task(task, known, experiment, engine=engine)):
        items = found.rows.drop_duplicates("task").set_index("task")["items"]
        return plan | _measured(found) | {"items": int(items.get(found.name, items.sum()))}
    names = ("items", "requests", "generated", "longest", "prompts", "tokens", "length", "layer_steps", "unknown")
    plan |= dict.fromkeys(names)
    if not data.is_at_hand(task, parameters.datasets):
        return plan | {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    try:
        return plan | _requests(task, sizes, cuts, experiment)
    except InputError as error:
        return plan | {"unknown": str(error)}


def _requests(task: str, sizes: list[int], cuts: CutsOf, experiment: Experiment) -> dict:
    """What lm-eval asks, tokenized, and the layer-steps of its answers by log-likelihood."""
    from deeper_layers.sweeping import harness  # slow
    from deeper_layers.sweeping.planning import plan_batches, tokens_of

    parameters, layers = experiment.parameters, experiment.source.num_layers
    shots, limit, _ = parameters.asked[task]
    loaded = harness.load_tasks([task], num_fewshot=shots, datasets=parameters.datasets)
    model, tokenizer = _without_weights(experiment.source, parameters.trust_remote_code)
    found = harness.collect_requests(loaded, model, tokenizer, limit=limit)
    written = [instance.args for instance in found.generations]
    batches = plan_batches(found.requests)
    lengths = [len(s.tokens) for batch in batches for s in batch.sequences]
    # a rule that has not chosen yet may agree with others in all, or in nothing
    least = Tree(distinct(cuts), layers).nodes
    most = least + list(cuts.values()).count(None) * sum(layers - size for size in sizes if size)
    steps = [tokens_of(batches) * nodes for nodes in (least, most)]
    known = {
        "items": len({(instance.task_name, instance.doc_id) for instance in found.instances + found.generations}),
        "requests": len(found.requests.contexts),
        "generated": len(written),
        "longest": max((how.get("max_gen_toks", USUAL_ANSWER) for _, how in written), default=None),
        "prompts": sum(len(tokenizer.encode(prompt)) for prompt, _ in written),  # tokens
        "tokens": tokens_of(batches),
        "length": round(statistics.mean(lengths), 1) if lengths else None,
        "layer_steps": steps if lengths else None,
    }
    if lengths and (pace := _pace(experiment)):
        known["about_seconds"] = [round(number / pace, 1) for number in steps]
    return known


def distinct(cuts: CutsOf) -> list[Cut]:
    """The cuts that are known, each once, the whole model first."""
    return sorted({UNPRUNED, *(cut for of_rule in cuts.values() for cut in of_rule or [])})


@functools.lru_cache(maxsize=1)
def _without_weights(source: Source, trust_remote_code: bool) -> tuple:
    if source.weights == CONFIGURED:  # it has no tokenizer: tokens are as the embedded model counts them
        source = models.find_model(hashed=False)
    how = {"trust_remote_code": trust_remote_code}
    return models.empty_model(source, **how), models.tokenizer_of(source, **how)


def _pace(experiment: Experiment) -> float | None:
    """Layer-steps a second of this model on a machine like this one, by the distances that results hold of it."""
    source, paces = experiment.source, []
    for found in results.all_results(experiment.parameters.results_folder, "distances", source.name):
        took, here = _measured(found), models.device_name()
        if found.key["dtype"] == source.dtype and took["seconds"] and took["device"] == here:
            paces.append(found.details["tokens"] * source.num_layers / took["seconds"])
    return statistics.median(paces) if paces else None


def _predicted(
    tasks: list[dict], cuts: dict[str, CutsOf], healed: Cut, machine: str, heal: str, experiment: Experiment
) -> dict:
    """Seconds, memory and bytes of a plan's work on a machine."""
    parameters, dtype = experiment.parameters, experiment.source.dtype
    shape = shape_of(experiment.source, parameters.trust_remote_code)
    there = machine_here(shape, dtype, parameters.device) if machine == "this" else prices.find_machine(machine)
    works = {"distances": distances_cost(experiment, shape)}
    for task in tasks:
        works |= task_costs(task, cuts[task["task"]], shape, dtype)
    unknown = []
    try:
        if healed.attention or healed.mlp:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        works[f"healing without {healed.size} layers, {heal}"] = prices.healing_cost(
            shape, healed, PRESETS[heal], dtype
        )
    except InputError as error:
        unknown.append({"what": "healing", "unknown": str(error)})
    costs = [
        {"what": what, "seconds": cost.seconds(there, dtype), "devices": cost.devices(there)}
        | {name: getattr(cost, name) for name in ("operations", "memory", "weights")}
        for what, cost in works.items()
    ]
    said = {name: getattr(there, name) for name in ("name", "devices", "memory", "throughput", "source")}
    return {"machine": said, "costs": costs + unknown}


@functools.lru_cache(maxsize=1)
def shape_of(source: Source, trust_remote_code: bool) -> Shape:
    return prices.shape_of(models.empty_model(source, trust_remote_code=trust_remote_code))


@functools.lru_cache
def machine_here(shape: Shape, dtype: str, device: str) -> prices.Machine:
    return prices.this_machine(shape.width, shape.inner, dtype, device)


def distances_cost(experiment: Experiment, shape: Shape) -> Cost:
    samples, length = experiment.parameters.samples, experiment.parameters.sequence_length
    return prices.distances_cost(shape, samples * length, length, experiment.source.dtype)


def task_costs(task: dict, cuts: CutsOf, shape: Shape, dtype: str) -> dict[str, Cost]:
    """Of a task that results lack: of its answers by log-likelihood, and of those that are written."""
    unknown = [size for of_rule in cuts.values() if of_rule is None for size in task["sizes"] if size]
    known, found = distinct(cuts), {}
    number = len(known) + len(unknown)
    if task.get("requests"):
        asked = task["tokens"], task["requests"], task["length"], dtype
        found[f"sweep of {task['task']}, {number} models"] = prices.sweep_cost(shape, known, *asked, unknown=unknown)
    if task.get("generated"):
        asked = task["generated"], task["prompts"], task["longest"], dtype
        what = f"answers of {task['task']}, {number} models, each of at most {task['longest']} tokens"
        found[what] = prices.writing_cost(shape, known, *asked, unknown=unknown)
    return found
