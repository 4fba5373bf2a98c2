"""`deeper-layers scan`: every block of so many layers, at every start, on some tasks, and as loss."""

import functools

import click

from deeper_layers.command.answers import Answer, answering, records, table
from deeper_layers.command.options import MODEL, asking
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.block_parameters import ScanParameters
from deeper_layers.results.units import Unit


@click.command(
    help=f"""
    Score the model without every block of so many layers in turn, from the first to the last.

    Of tasks that are chosen the log-probability of every choice is kept; of texts and solutions the loss is measured.
    With --blocks none the cuts are those of the rules, as `deeper-layers sweep` has them.

    \b
    deeper-layers scan embedded --tasks capitals@20 --dry-run
    deeper-layers scan ORGANISATION/NAME --tasks "mmlu:5@10, mmlu_continuation:5@10, c4@32, gsm8k_solutions@32"

    {MODEL}
    """
)
@click.option("--dry-run", is_flag=True, help="say what each would cost on this machine, less what results hold; the "
              "model is opened, and run on one small batch")  # fmt: skip
@asking(ScanParameters)
@answering
def scan(given: dict, dry_run: bool) -> Answer:
    parameters = ScanParameters(**given)
    if parameters.blocks is None and "starts" in given:
        raise click.UsageError("--starts says where blocks begin, and --blocks none asks for none: give one of them")
    for option in {"sizes", "rules"} & set(given) if parameters.blocks is not None else ():
        raise click.UsageError(
            f"--{option} is of the cuts of rules, and every block of {parameters.blocks} layers was asked for: add "
            f"--blocks none, or leave --{option} out"
        )
    source = parameters.source()
    # slow: what is above may refuse
    from deeper_layers.experiments.scans import scan_cuts, scan_loss_unit, scan_prices
    from deeper_layers.experiments.sweeps import sweep_unit

    opened = functools.cache(lambda: parameters.open(source))
    cuts = scan_cuts(parameters, source, opened)
    if dry_run:
        return _priced(list(cuts), scan_prices(parameters, cuts, source, opened))
    scan_unit = functools.partial(sweep_unit, kind="scan")
    found = {
        name: (scan_loss_unit if name in parameters.text_list else scan_unit)(name, of_name, parameters, source, opened)
        for name, of_name in cuts.items()
    }
    missing = [name for name, unit in found.items() if unit is None]
    units = {name: unit for name, unit in found.items() if unit}
    if not units:
        raise NotMeasuredError(f"not measured: {', '.join(missing)}; leave out --no-measure to measure it")
    parts = [source.described(parameters.quantization)]
    parts += [f"{name}\n{_lines(unit)}\n{unit.path}" for name, unit in units.items()]
    parts += [f"{name}: not measured" for name in missing]
    content = {
        "model": source.name, "layers": source.num_layers, "dtype": source.dtype,
        "quantization": parameters.quantization, "not_measured": missing,
        "units": [str(unit.path) for unit in units.values()],
        "rows": [row for unit in units.values() for row in records(unit.rows)],
    }  # fmt: skip
    return Answer("\n\n".join(parts), content)


def _lines(unit: Unit) -> str:
    """A line for each cut, and in it what was counted."""
    lines: dict[tuple[int, int], dict[str, str]] = {}
    rows = unit.rows[unit.rows["task"].isin([unit.name])]
    for row in (unit.rows if rows.empty else rows).sort_values(["size", "start"]).itertuples():
        cell = lines.setdefault((row.size, row.start), {"n": str(row.size), "from": str(row.start)})
        cell[row.metric if row.task == unit.name else f"{row.task} {row.metric}"] = f"{row.value:.3f}"
    return table(list(lines.values()))


def _priced(asked: list[str], plans: dict) -> Answer:
    """What each unit would run that results lack, and for how long on this machine."""
    lines, units = [], []
    for name in asked:
        if name not in plans:
            lines.append(f"{name}: in results already")
            continue
        left, plan = plans[name]
        whole = left == [name]
        lines.append(f"{name}{'' if whole else f', {len(left)} of its tasks that results lack'}: {plan}")
        units.append({
            "name": name, "tasks": left, "seconds": plan.seconds, "layer_steps": plan.layer_steps,
            "to_generate": plan.generated,
        })  # fmt: skip
    return Answer("\n".join(lines), {"units": units})
