"""What work costs before it runs: from the model's header or configuration, and what results hold. Nothing is measured.

A layer-step is one layer run on one token. It is counted for a model whose layers can be run from the middle, which a
sweep finds out when it is open. Null is what is not known.
"""

import functools
import json
import statistics
from collections.abc import Iterator
from dataclasses import astuple

from deeper_layers import data, models, prices, results
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.choosing import Unchosen, choose_cuts, price, unchosen
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import CutsOf, Experiment, distinct_cuts
from deeper_layers.experiments.parameters import Parameters, Shown, SweepParameters
from deeper_layers.experiments.scoring import score
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import CONFIGURED, Source
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.prices import Cost, Shape
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result, cut_names
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.sweeping.tree import Tree

USUAL_ANSWER = 256  # tokens at most of an answer, where a task does not say: lm-eval's own


def find_source(parameters: Parameters) -> Source:
    """The model; its weights are read for their hash only where results hold something of its name."""
    own = results.slug(models.model_name(parameters.model))
    known = any((folder / own).is_dir() for folder in results.readable_folders(parameters.results_folder))
    return parameters.source(hashed=known or is_gguf(parameters.model))


def plan_notebooks(asked: dict[str, Shown]) -> list[dict]:
    """What notebooks will measure of one model and results lack, and how long that takes here, as far as it is known.

    `asked` has by notebook its parameters. Rows: notebook, what, seconds, and "unknown", why there are none, or None.
    """
    rows: dict[tuple[str, str], dict] = {}
    seen = set()
    for notebook, parameters in asked.items():
        if not isinstance(parameters, Parameters):
            continue
        experiment = Experiment(parameters.but(measure=False), find_source(parameters), lambda: None, lacking=[])
        works: list[tuple[str, Cost | str]] = []
        try:
            parameters.run(experiment)
            for kind, key in experiment.lacking or ():
                if (one := json.dumps([kind, key], sort_keys=True)) not in seen:  # else an earlier notebook measures it
                    works += _costs(kind, key, experiment)
                    seen.add(one)
        except InputError as error:  # it will not be made, and others are
            works.append(("what this notebook asks for", str(error)))
        for what, cost in works:
            row = rows.setdefault((notebook, what), {"seconds": 0.0, "unknown": None, "times": 0})
            row["times"] += 1
            if isinstance(cost, Cost):
                seconds = cost.seconds(_machine(experiment), experiment.source.dtype)
                row["seconds"] = None if None in (seconds, row["seconds"]) else row["seconds"] + seconds
            else:
                row |= {"seconds": None, "unknown": cost}
    return [
        {"notebook": notebook, "what": what + f", {row['times']} times" * (row["times"] > 1)} | row
        for (notebook, what), row in rows.items()
    ]


def _costs(kind: str, key: dict, experiment: Experiment) -> Iterator[tuple[str, Cost | str]]:
    """What a result takes, by its key, or why that is not known."""
    shape, dtype, layers = _shape(experiment), experiment.source.dtype, experiment.source.num_layers
    if kind in ("distances", "geometry"):
        again = key["samples"] + key["skip_sequences"] * (layers + 1) // 2 if kind == "geometry" else 0
        length = key["sequence_length"]
        yield kind, prices.distances_cost(shape, (key["samples"] + again) * length, length, dtype)
        return
    if kind == "healing" or "answer_tokens" in key:  # of a file on its way, healed in between
        config = HealingConfig(**key["healing"])
        cut = max(map(_cut, cut_names(key) or [key["cut"]]))
        yield f"healing, {config.tokens:,} tokens", prices.healing_cost(shape, cut, config, dtype)
    choice, tasks = key.get("choice"), key.get("tasks", {})
    cuts = unchosen(choice["rule"], choice["sizes"]) if choice else sorted(map(_cut, cut_names(key)), key=astuple)
    for name, asked in tasks.items():
        if "length" in asked:
            length = asked["length"] or USUAL_ANSWER
            tokens = asked["limit"] * length
            yield f"loss on {name}", prices.sweep_cost(shape, cuts, tokens, tokens, length, dtype)
        else:
            facts = _facts(name, asked, experiment)
            yield from [(name, facts["unknown"])] if facts["unknown"] else []
            yield from _task_costs(name, facts, cuts, shape, dtype).items()


def _cut(name: str) -> Cut:
    rule, _, size = name.rpartition(" ")
    return Unchosen(0, int(size), rule=rule) if rule in REGISTERED else Cut.named(name)


def plan_sweep(parameters: SweepParameters, source: Source, machine: str | None = None, heal: str = "small") -> dict:
    """What is known of a sweep before it runs; with a `machine` also seconds and memory there, of a healing too.

    [least, most] stand where the cuts of a rule are not known yet. `machine` is as `prices.find_machine` takes it, or
    "this", which is tried for a moment; `heal` is a preset of `healing.PRESETS`.

    Raises InputError for what is no model or machine, or parameters that do not fit the model.
    """
    experiment = Experiment(parameters.but(measure=False), source, lambda: None, lacking=[])
    layers, given = source.num_layers, parameters.given_cut
    sizes = {task: parameters.size_list(layers, task) for task in parameters.asked}
    all_sizes = sorted({size for of_task in sizes.values() for size in of_task})
    pruned, rules = [simple_cut(layers, size) for size in all_sizes], {}
    if given is not None:
        given.check(layers)
        pruned, cuts = [UNPRUNED, given], dict.fromkeys(sizes, {GIVEN: [UNPRUNED, given]})
    else:
        cuts = {task: choose_cuts(of_task, experiment) for task, of_task in sizes.items()}
        rules = {rule: REGISTERED[rule].needs for rule in parameters.rule_list if any(all_sizes)}
    distances = None
    if "distances" in rules.values():
        tokens = parameters.samples * parameters.sequence_length
        distances = {"tokens_at_most": tokens, "layer_steps_at_most": tokens * layers}
        distances = _measured(found) if (found := measure_distances(experiment)) else distances
    content: dict = {
        "model": source.name,
        "layers": layers,
        "dtype": source.dtype,
        "weights": source.quantized,
        "tokenizer": models.find_model(hashed=False).name if source.weights == CONFIGURED else None,
        "distances": distances,
        "searches": {
            rule: price(rule, all_sizes[-1], experiment) for rule, needs in rules.items() if needs == "losses"
        },
        "tasks": [_plan_task(task, sizes[task], of_task, experiment) for task, of_task in cuts.items()],
    }
    try:
        known, bytes_each = models.sizes_of(source, trust_remote_code=parameters.trust_remote_code), prices.ITEMSIZE
        numbers = [(cut, known.parameters(cut)) for cut in pruned]
        content["sizes"] = [
            {"size": cut.size, "parameters": number, "bytes": number * bytes_each[source.dtype]}
            | {"file_bytes": known.file_bytes(cut)}
            for cut, number in numbers
        ]
    except InputError as error:
        content |= {"sizes": None, "sizes_unknown": str(error)}
    if machine is not None:
        content["predicted"] = _predicted(content["tasks"], cuts, pruned[-1], machine, heal, experiment)
    return content


def _plan_task(task: str, sizes: list[int], cuts_of: CutsOf, experiment: Experiment) -> dict:
    """What a task costs: where results hold it, what it took; else its requests, if they can be known."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    sizes = [cut.size for cut in cuts_of.get(GIVEN, [])] or sizes
    plan: dict = {"task": task, "rules": list(cuts_of), "sizes": sizes}
    if found := score([task], cuts_of, experiment, engine=parameters.engine):
        items = found.rows.drop_duplicates("task").set_index("task")["items"]
        return plan | _measured(found) | {"items": int(items.get(found.name, items.sum()))}
    plan |= {"layer_steps": None} | _facts(task, parameters.asked[task], experiment)
    if plan["length"]:
        # a rule that has not chosen yet may agree with others in all, or in nothing
        cuts = distinct_cuts(cuts_of | {"": [UNPRUNED]})
        known = [cut for cut in cuts if not isinstance(cut, Unchosen)]
        plan["layer_steps"] = steps = [plan["tokens"] * Tree(some, layers).nodes for some in (known, cuts)]
        if pace := _pace(experiment):
            plan["about_seconds"] = [round(number / pace, 1) for number in steps]
    return plan


def _facts(task: str, asked: dict, experiment: Experiment) -> dict:
    """What lm-eval asks, tokenized; nothing but "unknown", the reason, where that can't be known."""
    names = ("items", "requests", "generated", "longest", "prompts", "tokens", "length", "unknown")
    parameters, facts = experiment.parameters, dict.fromkeys(names)
    if not data.is_at_hand(task, parameters.datasets):
        return facts | {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    place = experiment.source, parameters.datasets, parameters.trust_remote_code
    try:
        return facts | _counted(task, asked["shots"], asked["limit"], *place)
    except InputError as error:
        return facts | {"unknown": str(error)}


@functools.lru_cache
def _counted(
    task: str, shots: int | None, limit: int | None, source: Source, datasets: str | None, trust_remote_code: bool
) -> dict:
    from deeper_layers.sweeping import harness  # slow
    from deeper_layers.sweeping.planning import plan_batches, tokens_of

    loaded = harness.load_tasks([task], num_fewshot=shots, datasets=datasets)
    if source.weights == CONFIGURED:  # it has no tokenizer: tokens are as the embedded model counts them
        source = models.find_model(hashed=False)
    tokenizer = models.tokenizer_of(source, trust_remote_code=trust_remote_code)
    found = harness.collect_requests(loaded, _empty(source, trust_remote_code), tokenizer, limit=limit)
    written = [instance.args for instance in found.generations]
    batches = plan_batches(found.requests)
    lengths = [len(s.tokens) for batch in batches for s in batch.sequences]
    return {
        "items": len({(instance.task_name, instance.doc_id) for instance in found.instances + found.generations}),
        "requests": len(found.requests.contexts),
        "generated": len(written),
        "longest": max((how.get("max_gen_toks", USUAL_ANSWER) for _, how in written), default=None),
        "prompts": sum(len(tokenizer.encode(prompt)) for prompt, _ in written),  # tokens
        "tokens": tokens_of(batches),
        "length": round(statistics.mean(lengths), 1) if lengths else None,
    }


def _task_costs(task: str, facts: dict, cuts: list[Cut], shape: Shape, dtype: str) -> dict[str, Cost]:
    """Of a task that results lack: of its answers by log-likelihood, and of those that are written."""
    found, number = {}, len(cuts)
    if facts.get("requests"):
        asked = facts["tokens"], facts["requests"], facts["length"], dtype
        found[f"sweep of {task}, {number} models"] = prices.sweep_cost(shape, cuts, *asked)
    if facts.get("generated"):
        asked = facts["generated"], facts["prompts"], facts["longest"], dtype
        what = f"answers of {task}, {number} models, each of at most {facts['longest']} tokens"
        found[what] = prices.writing_cost(shape, cuts, *asked)
    return found


def _measured(found: Result) -> dict:
    """Where a result is, and what it took on which machine."""
    state = found.provenance
    seconds = state.get("seconds", 0.0) + state.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(found.path), "seconds": round(seconds, 1), "device": state["device"]}


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
    shape, dtype = _shape(experiment), experiment.source.dtype
    there = _machine(experiment) if machine == "this" else prices.find_machine(machine)
    works: dict = dict(_costs("distances", experiment.parameters.drawn, experiment))
    for task in tasks:
        of_task = distinct_cuts(cuts[task["task"]] | {"": [UNPRUNED]})
        works |= _task_costs(task["task"], task, of_task, shape, dtype)
    try:
        if healed.attention or healed.mlp:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        of_healing = prices.healing_cost(shape, healed, PRESETS[heal], dtype)
        works[f"healing without {healed.size} layers, {heal}"] = of_healing
        unknown = []
    except InputError as error:
        unknown = [{"what": "healing", "unknown": str(error)}]
    costs = [
        {"what": what, "seconds": cost.seconds(there, dtype), "devices": cost.devices(there)}
        | {name: getattr(cost, name) for name in ("operations", "memory", "weights")}
        for what, cost in works.items()
    ]
    said = {name: getattr(there, name) for name in ("name", "devices", "memory", "throughput", "source")}
    return {"machine": said, "costs": costs + unknown}


@functools.lru_cache(maxsize=2)
def _empty(source: Source, trust_remote_code: bool):
    return models.empty_model(source, trust_remote_code=trust_remote_code)


def _shape(experiment: Experiment) -> Shape:
    return prices.shape_of(_empty(experiment.source, experiment.parameters.trust_remote_code))


@functools.lru_cache
def _machine_of(shape: Shape, dtype: str, device: str) -> prices.Machine:
    return prices.this_machine(shape.width, shape.inner, dtype, device)


def _machine(experiment: Experiment) -> prices.Machine:
    return _machine_of(_shape(experiment), experiment.source.dtype, experiment.parameters.device)
