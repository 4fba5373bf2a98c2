"""What is to be measured, and what it will cost: from the model's header or configuration, and from results.

A layer-step is one layer run on one token. The count assumes that the model's layers can be run from the middle, which
a sweep tests once the model is open. Values that are not known are null.
"""

import contextlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from deeper_layers import models, sweeping
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.sizes import Sizes
from deeper_layers.models.sources import CONFIG_ONLY, Source
from deeper_layers.presets import PRESETS
from deeper_layers.sweeping.tree import Tree
from deeper_layers_companion import results
from deeper_layers_companion.jobs import listing, price
from deeper_layers_companion.jobs.job import Job, UnknownCut, distances_job, healing_job, scores_job
from deeper_layers_companion.jobs.options import BaseParameters, CutsByRule, Parameters
from deeper_layers_companion.jobs.price import Cost, Machine
from deeper_layers_companion.jobs.scoring import make_requests, sweep_options
from deeper_layers_companion.jobs.select_cuts import select_cuts_by_task
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.table import REGISTERED

Work = Iterator[tuple[str, Cost | str]]  # what is done, and its cost, or why the cost is not known


def plan_notebooks(options_by_notebook: dict[str, BaseParameters]) -> list[dict]:
    """What notebooks will measure of one model, as results lack it, and how many seconds that takes on this machine.
    Rows: notebook, what, seconds, and "unknown", the reason where the seconds are not known, or None."""
    rows: list[dict] = []
    seen: set[str] = set()  # what an earlier notebook measures
    for notebook, options in options_by_notebook.items():
        if not isinstance(options, Parameters):
            continue
        session = Session(options, planning=True)
        costs_by_work = defaultdict(list)
        try:
            listing.get_all(notebook, session)
            for identity, job in session.missing.items():
                for work, cost in price.price_job(job, session) if identity not in seen else ():
                    costs_by_work[work].append(cost)
            seen |= session.missing.keys()
        except InputError as error:  # this notebook will not be made, but others are
            costs_by_work["what this notebook asks for"].append(str(error))
        for work, costs in costs_by_work.items():
            seconds, unknown = _add_seconds(costs, session)
            what = work + f", {len(costs)} times" * (len(costs) > 1)
            rows.append(
                {"notebook": notebook, "what": what, "seconds": seconds, "unknown": unknown}
            )
    return rows


def _add_seconds(costs: list[Cost | str], session: Session) -> tuple[float | None, str | None]:
    """The seconds of all costs on this machine, and the reason where they are not known."""
    total = 0.0
    for cost in costs:
        if isinstance(cost, str):
            return None, cost
        seconds = cost.seconds(price.time_this_machine(session), session.source.dtype)
        if seconds is None:
            return None, None
        total += seconds
    return total, None


def describe_jobs(session: Session, heal: str) -> Iterator[dict]:
    """The jobs of a sweep, and of one healing after the largest block by the preset `heal`, for a scheduler.

    Each has its kind, name and key; "unit", the file of its result, or null where it is to be measured; its
    "operations" and the bytes of "memory" that it needs. Operations that are not known are null, with the reason in
    "unknown".
    """
    source = session.source
    options = session.options
    sizes = _find_sizes([UNPRUNED], session)["sizes"]
    largest = _find_cuts(session)[-1]
    weights = sizes[0]["bytes"] if sizes else 0
    jobs = [distances_job(source, options), *listing.list_sweep(session)]
    if largest.is_of_layers:
        jobs.append(
            healing_job(source, largest, PRESETS[heal], options.corpus, options.quantization)
        )
    for job in jobs:
        result = session.find(job)
        works = [cost for _, cost in _price_if_possible(job, session)]
        costs = [cost for cost in works if isinstance(cost, Cost)]
        unknown = next((cost for cost in works if isinstance(cost, str)), None)
        yield {
            "kind": job.kind,
            "name": Result(job.kind, job.key, {}, [], {}).name,
            "key": job.key,
            "unit": str(result.path) if result else None,
            "operations": None if unknown else sum(cost.operations for cost in costs),
            "memory": max([weights, *(cost.memory for cost in costs)]),
            "unknown": unknown,
        }


def _price_if_possible(job: Job, session: Session) -> Work:
    """As `price_job`; a job that the model can not be asked for has the reason in place of its cost."""
    try:
        yield from price.price_job(job, session)
    except InputError as error:
        yield job.kind, str(error)


def plan_sweep(
    session: Session,
    machine: str | None = None,
    heal: str = "small",
    tokens: int = 4096,
    batch: int = 1,
) -> dict:
    """What is known of a sweep before it runs; with a `machine`, also seconds and memory there, for a healing too.

    The bytes of a pruned model are those of its weights, and of its KV cache for `batch` sequences of `tokens` each.
    [least, most] stand where the cuts of a rule are not known yet. The session is planning, with `SweepParameters`.
    `machine` is a name for `price.find_machine`, or "this", which is timed briefly; `heal` names one of PRESETS. Raises
    InputError for an unknown machine, or options that do not fit the model.
    """
    options = session.options
    source = session.source
    layers = session.source.num_layers
    cuts_by_task = select_cuts_by_task(session)
    pruned = _find_cuts(session)
    largest = pruned[-1].size
    needs = (
        {}
        if options.given_cut or not largest
        else {rule: REGISTERED[rule].needs for rule in options.rule_list}
    )
    measure_distances = distances_job(source, options)
    distances = None
    drawn = 0
    full = options.samples * options.sequence_length
    if set(needs.values()) & {"distances", "losses"}:
        drawn = price.count_calibration_tokens(measure_distances.key, session)
    if "distances" in needs.values():
        result = session.find(measure_distances)
        names = (
            ["tokens_at_most", "layer_steps_at_most"]
            if drawn == full
            else ["tokens", "layer_steps"]
        )
        distances = dict(zip(names, [drawn, drawn * layers], strict=True))
        distances = _read_cost(result) if result else distances
    searches = {}
    for rule, need in needs.items():
        if need == "losses":
            passes, heads = REGISTERED[rule].price(largest, layers)
            searches[rule] = {"passes": round(passes, 1), "heads": heads, "tokens_at_most": drawn}
    jobs = {task: scores_job(source, options, [task], cuts) for task, cuts in cuts_by_task.items()}
    tasks = [_plan_task(task, cuts, jobs[task], session) for task, cuts in cuts_by_task.items()]
    sized = _choose_sized_cuts(pruned, cuts_by_task, session)
    sizes = _find_sizes(sized, session)
    if sizes["sizes"]:
        caches = price.measure_caches(session, tokens, batch)
        for row, cut in zip(sizes["sizes"], sized, strict=True):
            row["cache_bytes"] = round(sum(caches[layer] for layer in cut.kept(layers)))
            row["memory_bytes"] = row["bytes"] + row["cache_bytes"]
    content: dict = {
        "model": source.name,
        "layers": layers,
        "dtype": source.dtype,
        "weights": source.quantized,
        "tokenizer": models.find_model(hashed=False).name
        if source.weights == CONFIG_ONLY
        else None,
        "distances": distances,
        "searches": searches,
        "tasks": tasks,
        "cache": {"tokens": tokens, "batch": batch},
    } | sizes
    if machine is not None:
        missing = [job for job in jobs.values() if session.find(job) is None]
        content["predicted"] = _predict_costs(
            [measure_distances, *missing], pruned[-1], machine, heal, session
        )
    return content


def _choose_sized_cuts(
    pruned: list[Cut], cuts_by_task: dict[str, CutsByRule], session: Session
) -> list[Cut]:
    """For each size the cut that the first rule makes, which is unknown until its inputs are measured."""
    first = session.options.rule_list[0]
    by_size: dict[int, Cut] = {}
    for cuts_by_rule in cuts_by_task.values():
        by_size |= {cut.size: cut for cut in cuts_by_rule.get(first, ())}
    return [by_size.get(cut.size, cut) for cut in pruned]


def _find_sizes(pruned: list[Cut], session: Session) -> dict:
    """The parameters and bytes of each pruned model, or the reason why they are not known; of a GGUF file also the
    bytes of the file that `prune` writes, [least, most] of all blocks where the cut is not known."""
    source = session.source
    try:
        count = models.find_sizes(source, trust_remote_code=session.options.trust_remote_code)
        measure_file: Callable = lambda cut: None  # noqa: E731
        if source.gguf and count.file_bytes:
            measure_file = _make_file_measure(source, source.gguf, count.file_bytes)
        sizes = []
        for cut in pruned:
            parameters = count.parameters(cut)
            row = {
                "size": cut.size,
                "parameters": parameters,
                "bytes": parameters * price.ITEMSIZE[source.dtype],
            }
            sizes.append(row | {"file_bytes": measure_file(cut)})
        return {"sizes": sizes}
    except InputError as error:
        return {"sizes": None, "sizes_unknown": str(error)}


def _make_file_measure(
    source: Source, path: Path, stored: Sizes
) -> Callable[[Cut], int | list[int] | None]:
    """A function from a cut to the bytes of the GGUF file without it, [least, most] of all blocks of an unknown one;
    None where no such file can be written. `stored` are the bytes of the layers in the file."""
    from deeper_layers.export.gguf_files import plan_gguf  # slow, as is the next
    from deeper_layers.models.gguf_reading import read_gguf

    header = read_gguf(path)

    def find_bytes(candidates: list[Cut]) -> int | None:
        """The bytes after the first of these cuts that llama.cpp would not take for another model."""
        for cut in candidates:
            with contextlib.suppress(InputError):
                return plan_gguf(source, header, cut, None).bytes
        return None

    def measure(cut: Cut) -> int | list[int] | None:
        if not cut.size:
            return path.stat().st_size
        if not isinstance(cut, UnknownCut):
            return find_bytes([cut])
        blocks = [Cut(start, cut.size) for start in range(source.num_layers - cut.size)]
        blocks.sort(key=stored.parameters)
        least = find_bytes(blocks)
        most = find_bytes(blocks[::-1])
        return least if least is None or most is None or least == most else [least, most]

    return measure


def _find_cuts(session: Session) -> list[Cut]:
    """One cut of each size that is asked for, or the given one, after the whole model."""
    options = session.options
    layers = session.source.num_layers
    if options.given_cut:
        return [UNPRUNED, options.given_cut]
    sizes: set[int] = set()
    for task in options.parsed_tasks:
        sizes.update(options.list_sizes(layers, task))
    return [simple_cut(layers, size) for size in sorted(sizes)]


def _plan_task(task: str, cuts_by_rule: CutsByRule, job: Job, session: Session) -> dict:
    """The cost of a task: if results hold it, what it took; else the counts of its requests, as far as known."""
    options = session.options
    layers = session.source.num_layers
    sizes = [cut.size for cut in cuts_by_rule.get(GIVEN, ())] or options.list_sizes(layers, task)
    plan: dict = {"task": task, "rules": list(cuts_by_rule), "sizes": sizes}
    if result := session.find(job):
        items = result.rows.drop_duplicates("task").set_index("task")["items"]
        return plan | _read_cost(result) | {"items": int(items.get(result.name, items.sum()))}
    settings = job.key["tasks"][task]
    plan |= {"layer_steps": None} | price.count_requests(task, settings, session)
    if plan["length"]:  # unknown cuts may equal cuts of other rules, or none of them
        known_cuts = [cut for cut in job.cuts if not isinstance(cut, UnknownCut)]
        bounds = known_cuts, job.cuts
        plan["layer_steps"] = [plan["tokens"] * Tree(cuts, layers).nodes for cuts in bounds]
        if machine := _find_measured_machine(session):
            works = [price.price_task(task, settings, cuts, session) for cuts in bounds]
            plan["about_seconds"] = [_sum_seconds(costs, machine, session) for costs in works]
    return plan


def _sum_seconds(works: Work, machine: Machine, session: Session) -> float:
    """The seconds of all work whose cost is known, on a machine with room for it."""
    costs = [cost for _, cost in works if isinstance(cost, Cost)]
    return round(sum(cost.seconds(machine, session.source.dtype) or 0 for cost in costs), 1)


def _read_cost(result: Result) -> dict:
    """The path of a result, the seconds that it took, and the device."""
    provenance = result.provenance
    seconds = provenance["seconds"] + provenance.get("seconds_in_earlier_runs", 0.0)
    return {"unit": str(result.path), "seconds": round(seconds, 1), "device": provenance["device"]}


def _find_measured_machine(session: Session) -> Machine | None:
    """A machine as fast as this kind of device was at this model's distances; None if results hold none of them."""
    source = session.source
    device = models.device_name()
    shape = price.find_shape(session)
    paces = []
    for result in results.read_results(session.options.folder, "distances", source.name):
        run = _read_cost(result)
        tokens = result.details["tokens"]
        if run["seconds"] and (result.key["dtype"], run["device"]) == (source.dtype, device):
            cost = price.distances_cost(shape, tokens, result.key["sequence_length"], source.dtype)
            paces.append(cost.operations / run["seconds"])
    if not paces:
        return None
    throughput = {source.dtype: statistics.median(paces)}
    return Machine(device, math.inf, 0.0, throughput, "distances in results")


def _predict_costs(jobs: list[Job], healed: Cut, machine: str, heal: str, session: Session) -> dict:
    """Seconds, memory and bytes, on a machine, of jobs and of a healing."""
    shape = price.find_shape(session)
    dtype = session.source.dtype
    unknown = []
    target = price.time_this_machine(session) if machine == "this" else price.find_machine(machine)
    works: dict[str, Cost] = {}
    for job in jobs:
        works |= {
            work: cost for work, cost in price.price_job(job, session) if isinstance(cost, Cost)
        }
    try:
        if not healed.is_of_layers:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        cost = price.healing_cost(shape, healed, PRESETS[heal], dtype)
        works[f"healing without {healed.size} layers, {heal}"] = cost
    except InputError as error:
        unknown = [{"what": "healing", "unknown": str(error)}]
    costs = []
    for work, cost in works.items():
        of_work = {
            "what": work,
            "seconds": cost.seconds(target, dtype),
            "devices": cost.devices(target),
            "bound_by": cost.bound(target, dtype),
        }
        of_work |= {name: getattr(cost, name) for name in ("operations", "memory", "weights")}
        costs.append(of_work)
    machine_facts = {
        name: getattr(target, name)
        for name in ("name", "devices", "memory", "throughput", "source", "launch_seconds")
    }
    return {
        "machine": machine_facts,
        "costs": costs + unknown,
        "launches": shape.launches,
        "smallest_batch": price.smallest_batch(shape, target, dtype),
    }


def try_job(job: Job, session: Session) -> "sweeping.Plan":
    """What the one task or text of a job would cost here: the model is opened, and run on one small batch."""
    model, tokenizer = session.open()
    ((name, settings),) = job.key["tasks"].items()
    if "length" in settings:
        requests = make_requests(name, settings, model, tokenizer, session.options.datasets)
        return sweeping.plan_requests(sweeping.TreeModel(model, job.cuts), requests)
    return sweeping.plan(
        model, tokenizer, [name], job.cuts, **sweep_options(settings, session.options)
    )
