"""`deeper-layers sweep`: every pruned model of a family on some tasks, or one cut of any shape."""

import functools

import click

from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.options import MODEL, asking
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import GIVEN, SweepParameters, check_given
from deeper_layers.results.units import Unit

LEVELS = {"chance": "chance", "majority": "the commonest answer"}


@click.command(
    help=f"""
    Score every pruned model of MODEL on tasks of lm-eval, all from one pass over the data.

    What it costs is printed before it runs; `deeper-layers plan` with the same options prints it and runs nothing.

    \b
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers sweep ORGANISATION/NAME --tasks "mmlu:5@20, boolq" --rules simple
    deeper-layers sweep embedded --tasks capitals --rules greedy --sizes 0-3 --samples 8 --sequence-length 128
    deeper-layers sweep embedded --tasks capitals --layers "3, 7-9" --mlp 12

    {MODEL}
    """
)
@asking(SweepParameters)
@answering
def sweep(given: dict) -> Answer:
    parameters = SweepParameters(**given)
    source = parameters.source()
    layers, cut = source.num_layers, parameters.given_cut
    if cut is not None:
        check_given(cut, layers)
    from deeper_layers.experiments.measurement import each  # slow: what is above may refuse
    from deeper_layers.experiments.sweeps import cuts_of_tasks, sweep_unit

    # where another engine generates, the accelerator is for it
    opens = parameters if parameters.engine is None else parameters.but(device="cpu")
    opened = functools.cache(lambda: opens.open(source))
    if cut is None:
        cuts = cuts_of_tasks(parameters, source, opened)
    else:
        cuts = {task: {GIVEN: [UNPRUNED, cut]} for task in parameters.task_list}
    of_task = functools.partial(sweep_unit, engine=parameters.engine)
    units_of = (functools.partial(of_task, task, cuts[task], parameters, source, opened) for task in cuts)
    found = dict(zip(cuts, each(units_of)))
    missing = [task for task, unit in found.items() if unit is None]
    units = {task: unit for task, unit in found.items() if unit}
    if not units:
        raise NotMeasuredError(f"not measured: {', '.join(missing)}; leave out --no-measure to measure it")
    parts = [source.described(parameters.quantization)]
    parts += [_scores(unit, cuts[task], layers) for task, unit in units.items()]
    parts += [f"{task}: not measured" for task in missing]
    parts += ["\n".join(str(unit.path) for unit in units.values())]
    content = {
        "model": source.name, "layers": layers, "dtype": source.dtype,
        "quantization": parameters.quantization, "not_measured": missing,
        "units": [str(unit.path) for unit in units.values()],
        "rows": [row for task, unit in units.items() for row in _rows(unit, cuts[task])],
    }  # fmt: skip
    return Answer("\n\n".join(parts), content)


def _scores(unit: Unit, cuts: dict[str, list[Cut]], layers: int) -> str:
    """The tables of a unit, one for each of its tasks: its score with the interval, by size and rule."""
    import pandas as pd  # slow, as is the next

    from deeper_layers.report.statistics import curves, outcomes

    levels, parts = curves.levels_of(unit), []
    found = [
        curves.accuracy_by_rule(unit.rows, {rule: [cut]}, layers).assign(place=_place(cut))
        for rule in cuts for cut in cuts[rule]
    ]  # fmt: skip
    accuracy = pd.concat([rows for rows in found if len(rows)])
    for task in curves.own_tasks(unit):
        own = accuracy[accuracy["task"] == task]
        first, of_group = own.iloc[0], None if task == unit.name else task
        known = levels.get(task, {}) if curves.are_shares(own) else {}  # others are no accuracies
        guessing = "".join(f", {LEVELS[name]} {level:.2f}" for name, level in known.items())
        cells: dict[tuple[int, str], dict[str, str]] = {}
        for row in own.itertuples():
            # the whole model and one that lacks only sublayers both drop no layer
            key = row.size, "" if row.size else row.place
            line = cells.setdefault(key, {"n": str(row.size), "of layers": f"{row.fraction:.0%}"})
            line[row.rule] = f"{row.value:.3f} ({row.low:.2f} to {row.high:.2f})"
            line["from" + " " * list(cuts).index(row.rule)] = row.place
        kept = []
        for rule, of_rule in cuts.items() if GIVEN not in cuts else ():
            pruned = [cut for cut in of_rule if cut.size]
            if not pruned or not outcomes.has_outcomes(unit, first["metric"], task=of_group):
                continue
            table_of = outcomes.kept(unit, pruned, first["metric"], task=of_group)
            kept.append(f"{outcomes.sizes_seen(table_of, 'kept')} ({rule})")
        points = f"{outcomes.KEPT * 100:.0f} points"
        said = f"; within {points} of the whole model, surely, at n = {', '.join(kept)}" if kept else ""
        parts.append(
            f"{task}, {first['metric']}: {first['items']} items{guessing}{said}\n"
            + table([cells[key] for key in sorted(cells)])
        )
    return "\n\n".join(parts)


def _place(cut: Cut) -> str:
    """The first layer of a block; of any other cut what it drops."""
    if cut.is_block:
        return str(cut.start) if cut.size else ""
    return cut.name


def _rows(unit: Unit, cuts_of: dict[str, list[Cut]]) -> list[dict]:
    """Every row of a unit under the rule that chose its cut; under each, where several did."""
    import pandas as pd  # slow

    found, named = [], "cut" in unit.rows
    for rule, cuts in cuts_of.items():
        places = {"cut": [cut.name for cut in cuts]} if named else {
            "start": [cut.start for cut in cuts], "size": [cut.size for cut in cuts]
        }  # fmt: skip
        asked = pd.DataFrame(places)
        found += records(unit.rows.merge(asked).assign(rule=rule))
    return found
