"""`deeper-layers sweep`: every pruned model of a family on some tasks."""

import functools

import click

from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.options import asking
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import QuestionAnsweringParameters
from deeper_layers.results.units import Unit

LEVELS = {"chance": "chance", "majority": "the commonest answer"}


@click.command
@asking(QuestionAnsweringParameters)
@answering
def sweep(given: dict) -> Answer:
    """Score every pruned model of MODEL on tasks of lm-eval, all from one pass over the data.

    What it costs is printed before it runs; `deeper-layers plan` with the same options prints it and runs nothing.

    \b
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers sweep ORGANISATION/NAME --tasks "mmlu:5@20, boolq" --rules simple
    """
    parameters = QuestionAnsweringParameters(**given)
    source = parameters.source()
    from deeper_layers.experiments.sweeps import cuts_of_tasks, sweep_unit  # slow: what is above may refuse

    opened = functools.cache(lambda: parameters.open(source))
    cuts = cuts_of_tasks(parameters, source, opened)
    found = {task: sweep_unit(task, cuts[task], parameters, source, opened) for task in cuts}
    missing = [task for task, unit in found.items() if unit is None]
    units = {task: unit for task, unit in found.items() if unit}
    if not units:
        raise InputError(f"not measured: {', '.join(missing)}; leave out --no-measure to measure it")
    layers = source.num_layers
    parts = [f"{source.name}, {layers} layers, {source.quantized} weights, measured in {source.dtype}"]
    parts += [_scores(unit, cuts[task], layers) for task, unit in units.items()]
    parts += [f"{task}: not measured" for task in missing]
    parts += ["\n".join(str(unit.path) for unit in units.values())]
    content = {
        "model": source.name, "layers": layers, "dtype": source.dtype, "not_measured": missing,
        "units": [str(unit.path) for unit in units.values()],
        "rows": [row for task, unit in units.items() for row in _rows(unit, cuts[task])],
    }  # fmt: skip
    return Answer("\n\n".join(parts), content)


def _scores(unit: Unit, cuts: dict[str, list[Cut]], layers: int) -> str:
    """The tables of a unit, one for each of its tasks: accuracy and its interval, by size and rule."""
    from deeper_layers.report import curves, outcomes

    accuracy, levels, parts = curves.accuracy_by_rule(unit.rows, cuts, layers), curves.levels_of(unit), []
    for task in curves.own_tasks(unit):
        own = accuracy[accuracy["task"] == task]
        first = own.iloc[0]
        guessing = "".join(f", {LEVELS[name]} {level:.2f}" for name, level in levels.get(task, {}).items())
        cells: dict[int, dict[str, str]] = {}
        for row in own.itertuples():
            line = cells.setdefault(row.size, {"n": str(row.size), "of layers": f"{row.fraction:.0%}"})
            line[row.rule] = f"{row.value:.3f} ({row.low:.2f} to {row.high:.2f})"
            line["from" + " " * list(cuts).index(row.rule)] = "" if row.size == 0 else str(row.start)
        kept = []
        for rule, of_rule in cuts.items():
            pruned = [cut for cut in of_rule if cut.size]
            table_of = outcomes.kept(unit, pruned, first["metric"], task=None if task == unit.name else task)
            kept.append(f"{outcomes.sizes_seen(table_of, 'kept')} ({rule})")
        parts.append(
            f"{task}, {first['metric']}: {first['items']} items{guessing}; within "
            f"{outcomes.KEPT * 100:.0f} points of the whole model, surely, at n = {', '.join(kept)}\n"
            + table([cells[size] for size in sorted(cells)])
        )
    return "\n\n".join(parts)


def _rows(unit: Unit, cuts_of: dict[str, list[Cut]]) -> list[dict]:
    """Every row of a unit under the rule that chose its cut; under each, where several did."""
    import pandas as pd  # slow

    found = []
    for rule, cuts in cuts_of.items():
        asked = pd.DataFrame({"start": [cut.start for cut in cuts], "size": [cut.size for cut in cuts]})
        found += records(unit.rows.merge(asked).assign(rule=rule))
    return found
