"""Scores of pruned models as `sweep` and `scan` answer them: a table for each task, and every row."""

from deeper_layers.command.answers import Answer, table
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import TaskParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.schema import GIVEN
from deeper_layers.results.store import Result

KEPT = 0.05  # a change of accuracy within it counts as nothing lost
CutsOf = dict[str, list[Cut]]  # of each rule


def answer_scores(
    parameters: TaskParameters,
    source: Source,
    cuts: dict[str, CutsOf],
    found: dict[str, Result | None],
    rows: list[dict],
) -> Answer:
    """What was found of each task or text; `rows` are all of it for scripts. Raises NotMeasuredError for nothing."""
    missing, units = [name for name in found if found[name] is None], {name: u for name, u in found.items() if u}
    if not units:
        raise NotMeasuredError(f"not measured: {', '.join(missing)}; leave out --no-measure to measure it")
    parts = [source.described(parameters.quantization)]
    parts += [_tables(unit, cuts[name], source.num_layers) for name, unit in units.items()]
    parts += [f"{name}: not measured" for name in missing]
    paths = [str(unit.path) for unit in units.values()]
    content = {
        "model": source.name,
        "layers": source.num_layers,
        "dtype": source.dtype,
        "quantization": parameters.quantization,
        "not_measured": missing,
        "units": paths,
        "rows": rows,
    }
    return Answer("\n\n".join([*parts, "\n".join(paths)]), content)


def _tables(unit: Result, cuts_of: CutsOf, layers: int) -> str:
    """Of each task of a result its scores with their intervals, by cut and rule, below what guessing scores."""
    from deeper_layers.report import estimates, pairing  # slow, as is the next
    from deeper_layers.results.frames import scores_of

    rows, tables = scores_of([unit]), []
    rows = rows[rows["outcome"].notna()].drop_duplicates(["task", "subject", "metric", "cut"])
    for task, own in rows.groupby("task", sort=False):
        own = own[own["metric"] == pairing.main_metrics(own)[task]]
        places, outcomes = pairing.paired(own)
        of_cut = dict(zip(places["cut"], outcomes, strict=True))
        scores = dict(zip(of_cut, estimates.each_mean(outcomes), strict=True))
        said = f"{task}, {own['metric'].iloc[0]}: {outcomes.shape[1]} items"
        if estimates.are_shares(outcomes):
            level, whole = pairing.guessing(own), of_cut.get(UNPRUNED.name)
            said += f", guessing {level:.2f}"
            if whole is not None and estimates.is_at_floor(whole, level):
                said += "; the whole model is not surely above it: nothing can be seen here"
            elif whole is not None and GIVEN not in cuts_of:
                said += _kept(of_cut, cuts_of)
        lines: dict[Cut, dict[str, str]] = {}
        for number, (rule, cuts) in enumerate(cuts_of.items()):
            for cut in (cut for cut in cuts if cut.name in scores):
                shared = len(cuts_of) > 1 and cut.size  # a line has the cuts of one size of all rules
                line = lines.setdefault(Cut(0, cut.size) if shared else cut, {"n": str(cut.size)})
                line["of layers"] = f"{cut.size / layers:.0%}"
                line[rule] = f"{scores[cut.name].value:.3f} ({scores[cut.name].low:.2f} to {scores[cut.name].high:.2f})"
                line["from" + " " * number] = (str(cut.start) if cut.size else "") if cut.is_block else cut.name
        tables.append(f"{said}\n{table([lines[key] for key in sorted(lines, key=lambda cut: (cut.size, cut))])}")
    return "\n\n".join(tables)


def _kept(of_cut: dict, cuts_of: CutsOf) -> str:
    """The numbers of layers without which a model scores as the whole one does, by rule."""
    from deeper_layers.report import estimates

    kept = []
    for rule, cuts in cuts_of.items():
        pruned = [cut for cut in cuts if cut.size and cut.name in of_cut]
        if not pruned or len({cut.size for cut in pruned}) < len(pruned):  # of every block of one size none is told
            continue
        changes = estimates.drawn_means([of_cut[cut.name] - of_cut[UNPRUNED.name] for cut in pruned])
        alike = [str(cut.size) for cut, one in zip(pruned, changes) if one.against(-KEPT, KEPT) == "supported"]
        kept.append(f"{', '.join(alike) or 'none'} ({rule})")
    return f"; within {KEPT * 100:.0f} points of the whole model, surely, at n = {', '.join(kept)}" if kept else ""
