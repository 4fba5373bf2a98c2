"""`deeper-layers sweep`: every pruned model of a family on some tasks, or one cut of any shape."""

import functools

import click

from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.options import MODEL, asking
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import GIVEN, SweepParameters, check_given
from deeper_layers.results.units import Unit, part_of

LEVELS = {"chance": "chance", "commonest": "the commonest answer"}
KEPT = 0.05  # a change of accuracy within it counts as nothing lost


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
    from deeper_layers.report import estimates, pairing  # slow, as is the next
    from deeper_layers.results.frames import scores_of

    parts = []
    rows = scores_of([part for name in unit.details["units"] if (part := part_of(unit, name))] or [unit]
                     if "units" in unit.details else [unit])  # fmt: skip
    rows = rows[rows["outcome"].notna()].drop_duplicates(["task", "subject", "metric", "cut"])
    for task, own in rows.groupby("task", sort=False):
        metric = pairing.main_metrics(own)[task]
        own = own[own["metric"] == metric]
        all_cuts, outcomes = pairing.paired(own)
        of_cut = dict(zip(all_cuts["cut"], outcomes, strict=True))
        shares = estimates.are_shares(outcomes)
        known = own[["chance", "commonest"]].iloc[0].dropna() if shares and own["subject"].isna().all() else {}
        level = f", guessing {pairing.guessing(own):.2f}" if shares and own["subject"].notna().all() else ""
        said = "".join(f", {LEVELS[name]} {value:.2f}" for name, value in dict(known).items()) + level
        cells: dict[tuple[int, str], dict[str, str]] = {}
        kept = []
        for rule, of_rule in cuts.items():
            there = [cut for cut in of_rule if cut.name in of_cut]
            if not there:
                continue
            for cut, score in zip(there, estimates.each_mean([of_cut[cut.name] for cut in there]), strict=True):
                # the whole model and one that lacks only sublayers both drop no layer
                key = cut.size, "" if cut.size else _place(cut)
                line = cells.setdefault(key, {"n": str(cut.size), "of layers": f"{cut.size / layers:.0%}"})
                line[rule] = f"{score.value:.3f} ({score.low:.2f} to {score.high:.2f})"
                line["from" + " " * list(cuts).index(rule)] = _place(cut)
            pruned = [cut for cut in there if cut.size]
            if shares and pruned and GIVEN not in cuts and UNPRUNED.name in of_cut:
                whole = of_cut[UNPRUNED.name]
                changes = estimates.drawn_means([of_cut[cut.name] - whole for cut in pruned])
                alike = [
                    cut.size
                    for cut, one in zip(pruned, changes, strict=True)
                    if one.against(-KEPT, KEPT) == "supported"
                ]
                kept.append(f"{', '.join(map(str, alike)) or 'none'} ({rule})")
        within = (
            f"; within {KEPT * 100:.0f} points of the whole model, surely, at n = {', '.join(kept)}" if kept else ""
        )
        parts.append(
            f"{task}, {metric}: {outcomes.shape[1]} items{said}{within}\n"
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
