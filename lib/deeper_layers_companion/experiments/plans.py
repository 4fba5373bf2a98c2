"""The cost of work before it runs, from the model's header or configuration and from results. Nothing is measured.

A layer-step is one layer run on one token. The count assumes that the model's layers can be run from the middle, which
a sweep tests once the model is open. Values that are not known are null.
"""

import functools
import statistics
from collections import defaultdict
from collections.abc import Container, Iterator

from deeper_layers import data, models
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import CONFIG_ONLY, Source
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.sweeping.tree import Tree
from deeper_layers_companion import prices, results
from deeper_layers_companion.experiments.choosing import UnknownCut, choose_cuts_for_tasks, list_unknown_cuts
from deeper_layers_companion.experiments.distances import find_or_measure_distances
from deeper_layers_companion.experiments.experiment import CutsByRule, Experiment, sort_cuts
from deeper_layers_companion.experiments.parameters import BaseParameters, Parameters
from deeper_layers_companion.experiments.scoring import score
from deeper_layers_companion.prices import Cost, Machine, Shape
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.results.store import Result, cut_names
from deeper_layers_companion.rules.choosing import REGISTERED

USUAL_ANSWER = 256  # lm-eval's limit of tokens in an answer, for tasks that set none
REQUEST_COUNTS = ("items", "requests", "generated", "longest", "prompts", "tokens", "length", "unknown")
Work = Iterator[tuple[str, Cost | str]]  # what is done, and its cost, or why the cost is not known


def make_planning_experiment(parameters: Parameters, source: Source | None = None) -> Experiment:
    """An experiment that measures nothing, and collects the results that are missing. Weights are hashed only if there
    are results under the model's name."""
    if source is None:
        model_folder = results.slugify(models.model_name(parameters.model))
        is_known = any((folder / model_folder).is_dir() for folder in results.readable_folders(parameters.folder))
        source = parameters.find_source(hashed=is_known or is_gguf(parameters.model))
    return Experiment(parameters.replace(measure=False), source, lambda: None, missing={})


def plan_notebooks(parameters_by_notebook: dict[str, BaseParameters]) -> list[dict]:
    """What notebooks will measure of one model, as results lack it, and how many seconds that takes on this machine.
    Rows: notebook, what, seconds, and "unknown", the reason where the seconds are not known, or None."""
    rows: list[dict] = []
    seen: dict[str, object] = {}  # what an earlier notebook measures
    for notebook, parameters in parameters_by_notebook.items():
        if not isinstance(parameters, Parameters):
            continue
        experiment, costs_by_work = make_planning_experiment(parameters), defaultdict(list)
        try:
            parameters.run(experiment)
            for work, cost in _list_missing_work(experiment, but=seen):
                costs_by_work[work].append(cost)
            seen |= experiment.missing or {}
        except InputError as error:  # this notebook will not be made, but others are
            costs_by_work["what this notebook asks for"].append(str(error))
        for work, costs in costs_by_work.items():
            what, dtype = work + f", {len(costs)} times" * (len(costs) > 1), experiment.source.dtype
            unknown = next((cost for cost in costs if isinstance(cost, str)), None)
            seconds = [None] if unknown else [cost.seconds(_time_this_machine(experiment), dtype) for cost in costs]
            total = None if None in seconds else sum(seconds)
            rows.append({"notebook": notebook, "what": what, "seconds": total, "unknown": unknown})
    return rows


def _list_missing_work(experiment: Experiment, but: Container[str] = ()) -> Work:
    """Yield the work for all missing results, with its cost, except for those in `but`."""
    for name, (kind, key) in (experiment.missing or {}).items():
        if name not in but:
            yield from _list_work(kind, key, experiment)


def _list_work(kind: str, key: dict, experiment: Experiment) -> Work:
    """Yield the work for the result of this key, with its cost."""
    shape, dtype, layers = _find_shape(experiment), experiment.source.dtype, experiment.source.num_layers
    if kind in ("distances", "geometry"):
        repeated = key["samples"] + key["skip_sequences"] * (layers + 1) // 2 if kind == "geometry" else 0
        length = key["sequence_length"]
        yield kind, prices.distances_cost(shape, (key["samples"] + repeated) * length, length, dtype)
        return
    if kind == "healing" or "answer_tokens" in key:  # a file for llama.cpp is healed, too
        config = HealingConfig(**key["healing"])
        cut = max(map(_parse_cut, cut_names(key) or [key["cut"]]), key=lambda cut: cut.size)
        yield f"healing, {config.tokens:,} tokens", prices.healing_cost(shape, cut, config, dtype)
    choice = key.get("choice")
    cuts = list_unknown_cuts(choice["rule"], choice["sizes"]) if choice else list(map(_parse_cut, cut_names(key)))
    for task, settings in key.get("tasks", {}).items():
        if "length" in settings:
            length = settings["length"] or USUAL_ANSWER
            tokens = settings["limit"] * length
            yield f"loss on {task}", prices.sweep_cost(shape, cuts, tokens, tokens, length, dtype)
            continue
        facts, model_count = _count_requests(task, settings, experiment), f"{len(cuts)} models"
        if facts["unknown"]:
            yield task, facts["unknown"]
        if facts["requests"]:
            of_requests = facts["tokens"], facts["requests"], facts["length"]
            yield f"sweep of {task}, {model_count}", prices.sweep_cost(shape, cuts, *of_requests, dtype)
        if facts["generated"]:
            what = f"answers of {task}, {model_count}, each of at most {facts['longest']} tokens"
            of_answers = facts["generated"], facts["prompts"], facts["longest"]
            yield what, prices.writing_cost(shape, cuts, *of_answers, dtype)


def _parse_cut(name: str) -> Cut:
    rule, _, size = name.rpartition(" ")
    return UnknownCut(0, int(size), rule=rule) if rule in REGISTERED else Cut.named(name)


def plan_sweep(experiment: Experiment, machine: str | None = None, heal: str = "small") -> dict:
    """What is known of a sweep before it runs; with a `machine`, also seconds and memory there, for a healing too.

    [least, most] stand where the cuts of a rule are not known yet. The experiment comes from
    `make_planning_experiment`, with `SweepParameters`. `machine` is a name for `prices.find_machine`, or "this", which
    is timed briefly; `heal` names one of PRESETS. Raises InputError for an unknown machine, or parameters that do not
    fit the model.
    """
    parameters, source, layers = experiment.parameters, experiment.source, experiment.source.num_layers
    cuts, given = choose_cuts_for_tasks(experiment), parameters.given_cut
    sizes = [size for task in parameters.parsed_tasks for size in parameters.list_sizes(layers, task)]
    pruned = [UNPRUNED, given] if given else [simple_cut(layers, size) for size in sorted({*sizes})]
    needs = {rule: REGISTERED[rule].needs for rule in parameters.rule_list if any(sizes) and not given}
    distances, tokens = None, parameters.samples * parameters.sequence_length
    if "distances" in needs.values():
        result = find_or_measure_distances(experiment)
        distances = _read_cost(result) if result else {"tokens_at_most": tokens, "layer_steps_at_most": tokens * layers}
    experiment.missing = {"distances": ("distances", parameters.sequence_settings)}  # they are priced in any case
    tasks = [_plan_task(task, cuts_by_rule, experiment) for task, cuts_by_rule in cuts.items()]
    content: dict = {
        "model": source.name,
        "layers": layers,
        "dtype": source.dtype,
        "weights": source.quantized,
        "tokenizer": models.find_model(hashed=False).name if source.weights == CONFIG_ONLY else None,
        "distances": distances,
        "searches": {
            rule: {"passes": round(passes, 1), "heads": heads, "tokens_at_most": tokens}
            for rule, need in needs.items()
            if need == "losses"
            for passes, heads in [REGISTERED[rule].price(max(sizes), layers)]
        },
        "tasks": tasks,
    }
    try:
        count = models.find_sizes(source, trust_remote_code=parameters.trust_remote_code)
        in_file, width = count.file_bytes, prices.ITEMSIZE[source.dtype]
        content["sizes"] = [
            {"size": cut.size, "parameters": count.parameters(cut), "bytes": count.parameters(cut) * width}
            | {"file_bytes": in_file and in_file.parameters(cut)}
            for cut in pruned
        ]
    except InputError as error:
        content |= {"sizes": None, "sizes_unknown": str(error)}
    if machine is not None:
        content["predicted"] = _predict_costs(experiment, pruned[-1], machine, heal)
    return content


def _plan_task(task: str, cuts_by_rule: CutsByRule, experiment: Experiment) -> dict:
    """The cost of a task: if results hold it, what it took; else the counts of its requests, as far as known."""
    parameters, layers = experiment.parameters, experiment.source.num_layers
    sizes = [cut.size for cut in cuts_by_rule.get(GIVEN, ())] or parameters.list_sizes(layers, task)
    plan: dict = {"task": task, "rules": list(cuts_by_rule), "sizes": sizes}
    if result := score([task], cuts_by_rule, experiment):
        items = result.rows.drop_duplicates("task").set_index("task")["items"]
        return plan | _read_cost(result) | {"items": int(items.get(result.name, items.sum()))}
    plan |= {"layer_steps": None} | _count_requests(task, parameters.parsed_tasks[task], experiment)
    if plan["length"]:  # unknown cuts may equal cuts of other rules, or none of them
        cuts = sort_cuts(cuts_by_rule)
        known_cuts = [cut for cut in cuts if not isinstance(cut, UnknownCut)]
        plan["layer_steps"] = steps = [plan["tokens"] * Tree(some, layers).nodes for some in (known_cuts, cuts)]
        if pace := _find_pace(experiment):
            plan["about_seconds"] = [round(number / pace, 1) for number in steps]
    return plan


def _count_requests(task: str, settings: dict, experiment: Experiment) -> dict:
    """Counts of lm-eval's requests for a task, tokenized; or only "unknown", the reason why there are no counts."""
    parameters = experiment.parameters
    where = experiment.source, parameters.datasets, parameters.trust_remote_code
    return dict.fromkeys(REQUEST_COUNTS) | _load_and_count_requests(task, settings["shots"], settings["limit"], *where)


@functools.lru_cache
def _load_and_count_requests(
    task: str, shots: int | None, limit: int | None, source: Source, datasets: str | None, trust_remote_code: bool
) -> dict:
    if not data.is_available_offline(task, datasets):
        return {"unknown": "its items are on the hub: name a mirror with --datasets to have them counted"}
    from deeper_layers.sweeping import harness  # slow to import
    from deeper_layers.sweeping.planning import count_tokens, plan_batches

    try:
        loaded = harness.load_tasks([task], num_fewshot=shots, datasets=datasets)
        # a configuration alone has no tokenizer: use that of the embedded model
        counted = models.find_model(hashed=False) if source.weights == CONFIG_ONLY else source
        tokenizer = models.load_tokenizer(counted, trust_remote_code=trust_remote_code)
        gathered = harness.collect_requests(loaded, _build_empty(counted, trust_remote_code), tokenizer, limit=limit)
    except InputError as error:
        return {"unknown": str(error)}
    generations = [instance.args for instance in gathered.generations]
    batches = plan_batches(gathered.requests)
    lengths = [len(s.tokens) for batch in batches for s in batch.sequences]
    return {
        "items": len({(instance.task_name, instance.doc_id) for instance in gathered.instances + gathered.generations}),
        "requests": len(gathered.requests.pairs),
        "generated": len(generations),
        "longest": max((kwargs.get("max_gen_toks", USUAL_ANSWER) for _, kwargs in generations), default=None),
        "prompts": sum(len(tokenizer.encode(prompt)) for prompt, _ in generations),  # tokens
        "tokens": count_tokens(batches),
        "length": round(statistics.mean(lengths), 1) if lengths else None,
    }


def _read_cost(result: Result) -> dict:
    """The path of a result, the seconds that it took, and the device."""
    provenance = result.provenance
    seconds = provenance["seconds"] + provenance.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(result.path), "seconds": round(seconds, 1), "device": provenance["device"]}


def _find_pace(experiment: Experiment) -> float | None:
    """Layer-steps a second of this model on this kind of device, from its measured distances; None without them."""
    source, device = experiment.source, models.device_name()
    distances = results.read_results(experiment.parameters.folder, "distances", source.name)
    paces = [
        result.details["tokens"] * source.num_layers / run["seconds"]
        for result, run in zip(distances, map(_read_cost, distances))
        if run["seconds"] and (result.key["dtype"], run["device"]) == (source.dtype, device)
    ]
    return statistics.median(paces) if paces else None


def _predict_costs(experiment: Experiment, healed: Cut, machine: str, heal: str) -> dict:
    """Seconds, memory and bytes, on a machine, of the missing results and of a healing."""
    shape, dtype, unknown = _find_shape(experiment), experiment.source.dtype, []
    target = _time_this_machine(experiment) if machine == "this" else prices.find_machine(machine)
    works = {work: cost for work, cost in _list_missing_work(experiment) if isinstance(cost, Cost)}
    try:
        if not healed.is_of_layers:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        cost = prices.healing_cost(shape, healed, PRESETS[heal], dtype)
        works[f"healing without {healed.size} layers, {heal}"] = cost
    except InputError as error:
        unknown = [{"what": "healing", "unknown": str(error)}]
    costs = [
        {"what": work, "seconds": cost.seconds(target, dtype), "devices": cost.devices(target)}
        | {name: getattr(cost, name) for name in ("operations", "memory", "weights")}
        for work, cost in works.items()
    ]
    machine_facts = {name: getattr(target, name) for name in ("name", "devices", "memory", "throughput", "source")}
    return {"machine": machine_facts, "costs": costs + unknown}


@functools.lru_cache(maxsize=2)
def _build_empty(source: Source, trust_remote_code: bool):
    return models.load_empty_model(source, trust_remote_code=trust_remote_code)


def _find_shape(experiment: Experiment) -> Shape:
    return prices.read_shape(_build_empty(experiment.source, experiment.parameters.trust_remote_code))


def _time_this_machine(experiment: Experiment) -> Machine:
    shape = _find_shape(experiment)
    return prices.measure_this_machine(shape.width, shape.inner, experiment.source.dtype, experiment.parameters.device)
