"""What work costs before it runs: from the model's header or configuration, and what results hold. Nothing is measured.

A layer-step is one layer run on one token. It is counted for a model whose layers can be run from the middle, which a
sweep finds out when it is open. Null is what is not known.
"""

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple

from deeper_layers import data, models, prices, results
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.choosing import Unchosen, cuts_of_tasks, unchosen
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import CutsOf, Experiment, distinct_cuts
from deeper_layers.experiments.parameters import Parameters, Shown
from deeper_layers.experiments.scoring import score
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import CONFIGURED, Source
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.prices import Cost, Machine, Shape
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result, cut_names
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.sweeping.tree import Tree

USUAL_ANSWER = 256  # tokens at most of an answer, where a task does not say: lm-eval's own
FACTS = ("items", "requests", "generated", "longest", "prompts", "tokens", "length", "unknown")
Works = Iterator[tuple[str, Cost | str]]  # what each takes, or why that is not known


def planned(parameters: Parameters, source: Source | None = None) -> Experiment:
    """An experiment that measures nothing, and notes what results lack.

    Weights are read for their hash only where results hold something of the model's name.
    """
    if source is None:
        own = results.slug(models.model_name(parameters.model))
        known = any((folder / own).is_dir() for folder in results.readable_folders(parameters.folder))
        source = parameters.source(hashed=known or is_gguf(parameters.model))
    return Experiment(parameters.but(measure=False), source, lambda: None, lacking=[])


def plan_notebooks(asked: dict[str, Shown]) -> list[dict]:
    """What notebooks will measure of one model and results lack, and how long that takes here, as far as it is known.

    `asked` has by notebook its parameters. Rows: notebook, what, seconds, and "unknown", why there are none, or None.
    """
    rows: list[dict] = []
    seen: set[str] = set()  # an earlier notebook measures it
    for notebook, parameters in asked.items():
        if not isinstance(parameters, Parameters):
            continue
        experiment, found = planned(parameters), defaultdict(list)
        try:
            parameters.run(experiment)
            lacking = {json.dumps(one, sort_keys=True): one for one in experiment.lacking or ()}
            for one in (one for name, one in lacking.items() if name not in seen):
                for what, cost in _works(*one, experiment):
                    found[what].append(cost)
            seen |= lacking.keys()
        except InputError as error:  # it will not be made, and others are
            found["what this notebook asks for"].append(str(error))
        for what, costs in found.items():
            times, unknown = f", {len(costs)} times" * (len(costs) > 1), [of for of in costs if isinstance(of, str)]
            dtype = experiment.source.dtype
            seconds = [] if unknown else [cost.seconds(_this_machine(experiment), dtype) for cost in costs]
            known = None if unknown or None in seconds else sum(seconds)
            rows.append({"notebook": notebook, "what": what + times, "seconds": known, "unknown": (*unknown, None)[0]})
    return rows


def _works(kind: str, key: dict, experiment: Experiment) -> Works:
    """What has to be done for a result, by its key."""
    shape, dtype, layers = _shape(experiment), experiment.source.dtype, experiment.source.num_layers
    if kind in ("distances", "geometry"):
        again = key["samples"] + key["skip_sequences"] * (layers + 1) // 2 if kind == "geometry" else 0
        length = key["sequence_length"]
        yield kind, prices.distances_cost(shape, (key["samples"] + again) * length, length, dtype)
        return
    if kind == "healing" or "answer_tokens" in key:  # of a file on its way, healed in between
        config = HealingConfig(**key["healing"])
        cut = max(map(_cut, cut_names(key) or [key["cut"]]), key=lambda cut: cut.size)
        yield f"healing, {config.tokens:,} tokens", prices.healing_cost(shape, cut, config, dtype)
    choice = key.get("choice")
    cuts = unchosen(choice["rule"], choice["sizes"]) if choice else sorted(map(_cut, cut_names(key)), key=astuple)
    for task, asked in key.get("tasks", {}).items():
        if "length" in asked:
            length = asked["length"] or USUAL_ANSWER
            tokens = asked["limit"] * length
            yield f"loss on {task}", prices.sweep_cost(shape, cuts, tokens, tokens, length, dtype)
            continue
        facts, together = _facts(task, asked, experiment), f"{len(cuts)} models"
        if facts["unknown"]:
            yield task, facts["unknown"]
        if facts["requests"]:
            of_requests = facts["tokens"], facts["requests"], facts["length"]
            yield f"sweep of {task}, {together}", prices.sweep_cost(shape, cuts, *of_requests, dtype)
        if facts["generated"]:
            what = f"answers of {task}, {together}, each of at most {facts['longest']} tokens"
            of_answers = facts["generated"], facts["prompts"], facts["longest"]
            yield what, prices.writing_cost(shape, cuts, *of_answers, dtype)


def _cut(name: str) -> Cut:
    rule, _, size = name.rpartition(" ")
    return Unchosen(0, int(size), rule=rule) if rule in REGISTERED else Cut.named(name)


def plan_sweep(experiment: Experiment, machine: str | None = None, heal: str = "small") -> dict:
    """What is known of a sweep before it runs; with a `machine` also seconds and memory there, of a healing too.

    [least, most] stand where the cuts of a rule are not known yet. The experiment is `planned`, of `SweepParameters`;
    `machine` is as `prices.find_machine` takes it, or "this", which is tried for a moment; `heal` is a preset of
    `healing.PRESETS`.

    Raises InputError for what is no machine, or parameters that do not fit the model.
    """
    parameters, source, layers = experiment.parameters, experiment.source, experiment.source.num_layers
    cuts, given = cuts_of_tasks(experiment), parameters.given_cut
    sizes = [size for task in parameters.asked for size in parameters.size_list(layers, task)]
    pruned = [UNPRUNED, given] if given else [simple_cut(layers, size) for size in sorted({*sizes})]
    needs = {rule: REGISTERED[rule].needs for rule in parameters.rule_list if any(sizes) and not given}
    distances, tokens = None, parameters.samples * parameters.sequence_length
    if "distances" in needs.values():
        found = measure_distances(experiment)
        distances = _took(found) if found else {"tokens_at_most": tokens, "layer_steps_at_most": tokens * layers}
    experiment.lacking = [("distances", parameters.drawn)]
    tasks = [_plan_task(task, of_task, experiment) for task, of_task in cuts.items()]
    content: dict = {
        "model": source.name,
        "layers": layers,
        "dtype": source.dtype,
        "weights": source.quantized,
        "tokenizer": models.find_model(hashed=False).name if source.weights == CONFIGURED else None,
        "distances": distances,
        "searches": {
            rule: {"passes": round(passes, 1), "heads": heads, "tokens_at_most": tokens}
            for rule, of_rule in needs.items()
            if of_rule == "losses"
            for passes, heads in [REGISTERED[rule].price(max(sizes), layers)]
        },
        "tasks": tasks,
    }
    try:
        known, width = models.sizes_of(source, trust_remote_code=parameters.trust_remote_code), source.dtype
        content["sizes"] = [
            {"size": cut.size, "parameters": (number := known.parameters(cut))}
            | {"bytes": number * prices.ITEMSIZE[width], "file_bytes": known.of_file and known.of_file.parameters(cut)}
            for cut in pruned
        ]
    except InputError as error:
        content |= {"sizes": None, "sizes_unknown": str(error)}
    if machine is not None:
        content["predicted"] = _predicted(experiment, pruned[-1], machine, heal)
    return content


def _plan_task(task: str, cuts_of: CutsOf, experiment: Experiment) -> dict:
    """What a task costs: where results hold it, what it took; else its requests, if they can be known."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    sizes = [cut.size for cut in cuts_of.get(GIVEN, ())] or parameters.size_list(layers, task)
    plan: dict = {"task": task, "rules": list(cuts_of), "sizes": sizes}
    if found := score([task], cuts_of, experiment):
        items = found.rows.drop_duplicates("task").set_index("task")["items"]
        return plan | _took(found) | {"items": int(items.get(found.name, items.sum()))}
    plan |= {"layer_steps": None} | _facts(task, parameters.asked[task], experiment)
    if plan["length"]:  # a rule that has not chosen yet may agree with others in all, or in nothing
        cuts = distinct_cuts(cuts_of)
        known = [cut for cut in cuts if not isinstance(cut, Unchosen)]
        plan["layer_steps"] = steps = [plan["tokens"] * Tree(some, layers).nodes for some in (known, cuts)]
        if pace := _pace(experiment):
            plan["about_seconds"] = [round(number / pace, 1) for number in steps]
    return plan


def _facts(task: str, asked: dict, experiment: Experiment) -> dict:
    """What lm-eval asks, tokenized; nothing but "unknown", the reason, where that can't be known."""
    parameters = experiment.parameters
    how = experiment.source, parameters.datasets, parameters.trust_remote_code
    return dict.fromkeys(FACTS) | _counted(task, asked["shots"], asked["limit"], *how)


@functools.lru_cache
def _counted(
    task: str, shots: int | None, limit: int | None, source: Source, datasets: str | None, trust_remote_code: bool
) -> dict:
    if not data.is_at_hand(task, datasets):
        return {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    from deeper_layers.sweeping import harness  # slow
    from deeper_layers.sweeping.planning import plan_batches, tokens_of

    try:
        loaded = harness.load_tasks([task], num_fewshot=shots, datasets=datasets)
        # a configuration alone has no tokenizer: tokens are as the embedded model counts them
        known = models.find_model(hashed=False) if source.weights == CONFIGURED else source
        tokenizer = models.tokenizer_of(known, trust_remote_code=trust_remote_code)
        found = harness.collect_requests(loaded, _empty(known, trust_remote_code), tokenizer, limit=limit)
    except InputError as error:
        return {"unknown": str(error)}
    written = [instance.args for instance in found.generations]
    batches = plan_batches(found.requests)
    lengths = [len(s.tokens) for batch in batches for s in batch.sequences]
    return {
        "items": len({(instance.task_name, instance.doc_id) for instance in found.instances + found.generations}),
        "requests": len(found.requests.pairs),
        "generated": len(written),
        "longest": max((how.get("max_gen_toks", USUAL_ANSWER) for _, how in written), default=None),
        "prompts": sum(len(tokenizer.encode(prompt)) for prompt, _ in written),  # tokens
        "tokens": tokens_of(batches),
        "length": round(statistics.mean(lengths), 1) if lengths else None,
    }


def _took(found: Result) -> dict:
    """Where a result is, and what it took on which machine."""
    state = found.provenance
    seconds = state["seconds"] + state.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(found.path), "seconds": round(seconds, 1), "device": state["device"]}


def _pace(experiment: Experiment) -> float | None:
    """Layer-steps a second of this model on a machine like this one, by the distances that results hold of it."""
    source, here = experiment.source, models.device_name()
    held = results.all_results(experiment.parameters.folder, "distances", source.name)
    paces = [
        found.details["tokens"] * source.num_layers / took["seconds"]
        for found, took in zip(held, map(_took, held))
        if took["seconds"] and (found.key["dtype"], took["device"]) == (source.dtype, here)
    ]
    return statistics.median(paces) if paces else None


def _predicted(experiment: Experiment, healed: Cut, machine: str, heal: str) -> dict:
    """Seconds, memory and bytes on a machine of what results lack, and of a healing."""
    shape, dtype, unknown = _shape(experiment), experiment.source.dtype, []
    there = _this_machine(experiment) if machine == "this" else prices.find_machine(machine)
    works = {
        what: cost
        for kind, key in experiment.lacking or ()
        for what, cost in _works(kind, key, experiment)
        if isinstance(cost, Cost)
    }
    try:
        if not healed.is_of_layers:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        of_healing = prices.healing_cost(shape, healed, PRESETS[heal], dtype)
        works[f"healing without {healed.size} layers, {heal}"] = of_healing
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


def _this_machine(experiment: Experiment) -> Machine:
    shape = _shape(experiment)
    return prices.this_machine(shape.width, shape.inner, experiment.source.dtype, experiment.parameters.device)
