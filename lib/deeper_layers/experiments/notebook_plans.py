"""What notebooks will measure of one model, and how long that takes here: arithmetic, before anything runs."""

import dataclasses
from collections.abc import Callable, Iterator

from deeper_layers import prices
from deeper_layers.cuts import simple_cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments import losses
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.geometry import measure_geometry
from deeper_layers.experiments.notebook_parameters import (
    ComparedHealingsParameters,
    ScanParameters,
    TakeAwayParameters,
    WhichLayersParameters,
)
from deeper_layers.experiments.parameters import Parameters, Shown, TaskParameters
from deeper_layers.experiments.plans import (
    USUAL_ANSWER,
    CutsOf,
    distances_cost,
    distinct,
    find_source,
    known_cuts,
    machine_here,
    plan_task,
    shape_of,
    task_costs,
)
from deeper_layers.prices import Cost, Shape


def plan_notebooks(asked: dict[str, Shown]) -> list[dict]:
    """What notebooks will measure of one model and results lack, and how long that takes here, as far as it is known.

    `asked` has by notebook its parameters. Rows: notebook, what, seconds, and "unknown", why there are none, or None.
    """
    rows, seen = [], set()
    for name, parameters in asked.items():
        if not isinstance(parameters, Parameters):
            continue
        source = find_source(parameters)
        experiment = Experiment(parameters.but(measure=False), source, lambda: None)
        try:
            shape = shape_of(source, parameters.trust_remote_code)
            works = list(_works(experiment, shape))
        except InputError as error:  # it will not be made, and others are
            works = [("what this notebook asks for", str(error))]
        for what, cost in works:
            if (source.dtype, what) in seen:  # an earlier notebook measures it
                continue
            seen.add((source.dtype, what))
            row = {"notebook": name, "what": what, "seconds": None, "unknown": None}
            if isinstance(cost, Cost):
                row["seconds"] = cost.seconds(machine_here(shape, source.dtype, parameters.device), source.dtype)
            else:
                row["unknown"] = cost
            rows.append(row)
    return rows


def _works(experiment: Experiment, shape: Shape) -> Iterator[tuple[str, Cost | str]]:
    """What a notebook measures and its cost, or why that is not known."""
    parameters, layers, dtype = experiment.parameters, experiment.source.num_layers, experiment.source.dtype
    if _is_missing(measure_distances, experiment):
        yield "distances", distances_cost(experiment, shape)
    if isinstance(parameters, TaskParameters):
        yield from _of_tasks(experiment, shape)
    if isinstance(parameters, ComparedHealingsParameters):
        sizes, rules = parameters.size_list(layers), len(parameters.rule_list)
        yield from _of_loss(known_cuts(sizes, experiment), sizes, experiment, shape)
        for config in parameters.configs():
            costs = [prices.healing_cost(shape, simple_cut(layers, size), config, dtype) for size in sizes]
            yield f"at most {len(costs) * rules} healings, {config.tokens:,} tokens each", _sum(costs, rules)
    if isinstance(parameters, WhichLayersParameters):
        sizes, length = parameters.size_list(layers), parameters.sequence_length
        yield from _of_loss(losses.blocks(sizes, layers), sizes, experiment, shape)
        if _is_missing(measure_geometry, experiment):
            passes = 2 * parameters.samples + parameters.skip_sequences * (layers + 1) // 2
            yield "geometry", prices.distances_cost(shape, passes * length, length, dtype)
        yield from _of_loss(dict.fromkeys(parameters.rule_list), parameters.shares(layers), experiment, shape)
    if isinstance(parameters, TakeAwayParameters):
        yield "the same in other kinds of weights", "each kind takes about as long as the first"
        if experiment.source.is_gguf:
            cut, config = simple_cut(layers, parameters.drop), parameters.healing().config()
            yield f"healing without {cut.size} layers", prices.healing_cost(shape, cut, config, dtype)


def _of_tasks(experiment: Experiment, shape: Shape) -> Iterator[tuple[str, Cost | str]]:
    parameters, layers, dtype = experiment.parameters, experiment.source.num_layers, experiment.source.dtype
    for task in parameters.asked:
        chosen = parameters.shares(layers) if isinstance(parameters, WhichLayersParameters) else None
        sizes = chosen or parameters.size_list(layers, task)
        if isinstance(parameters, ScanParameters) and parameters.blocks is not None:
            cuts = losses.scan_cuts(experiment)[task]
        else:
            cuts = known_cuts(sizes, experiment)
        if task in getattr(parameters, "texts", ()):
            yield f"loss on {task}", _loss_cost(parameters.texts[task], cuts, sizes, shape, dtype)
            continue
        plan = plan_task(task, sizes, cuts, experiment)
        if plan.get("unknown"):
            yield task, plan["unknown"]
        yield from task_costs(plan, cuts, shape, dtype).items()


def _is_missing(measure: Callable, experiment: Experiment) -> bool:
    try:
        return measure(experiment) is None
    except NotMeasuredError:
        return True


def _of_loss(cuts: CutsOf, sizes: list[int], experiment: Experiment, shape: Shape) -> Iterator[tuple[str, Cost]]:
    """The loss on text of some cuts, where results lack it."""
    ((text, asked),) = experiment.parameters.loss.items()
    known = {rule: of_rule for rule, of_rule in cuts.items() if of_rule}
    if len(known) < len(cuts) or losses.score_text(text, asked, known, experiment) is None:
        cost = _loss_cost(asked, cuts, sizes, shape, experiment.source.dtype)
        yield f"loss on {text} under {', '.join(list(cuts)[:3])}{' and others' * (len(cuts) > 3)}", cost


def _loss_cost(text: dict, cuts: CutsOf, sizes: list[int], shape: Shape, dtype: str) -> Cost:
    length = text["length"] or USUAL_ANSWER
    unknown = [size for of_rule in cuts.values() if of_rule is None for size in sizes if size]
    tokens = text["limit"] * length
    return prices.sweep_cost(shape, distinct(cuts), tokens, tokens, length, dtype, unknown=unknown)


def _sum(costs: list[Cost], times: int) -> Cost:
    """Of some work one after another, and all that so many times."""
    total = {name: times * sum(getattr(cost, name) for cost in costs) for name in ("operations", "batches")}
    return dataclasses.replace(max(costs, key=lambda cost: cost.memory), **total)
