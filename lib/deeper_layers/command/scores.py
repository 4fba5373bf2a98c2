"""Scores of pruned models as `sweep` and `scan` answer them: a table for each task, and every row."""

from collections.abc import Iterator

from deeper_layers.command.options import Answer, table
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import TaskParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.store import Result

CutsOf = dict[str, list[Cut]]  # of each rule


def answer_scores(
    parameters: TaskParameters,
    source: Source,
    cuts: dict[str, CutsOf],
    found: dict[str, Result | None],
    rows: list[dict],
) -> Answer:
    """What was found of each task or text; `rows` are all of it for scripts. Raises NotMeasuredError for nothing."""
    units = {name: unit for name, unit in found.items() if unit}
    missing = [name for name in found if name not in units]
    if not units:
        raise NotMeasuredError(f"not measured: {', '.join(missing)}; leave out --no-measure to measure it")
    paths = [str(unit.path) for unit in units.values()]
    tables = [one for name, unit in units.items() for one in _tables(unit, cuts[name], source.num_layers)]
    parts = [source.described(parameters.quantization), *tables, *(f"{name}: not measured" for name in missing)]
    content = {"model": source.name, "layers": source.num_layers, "dtype": source.dtype}
    content |= {"quantization": parameters.quantization, "not_measured": missing, "units": paths, "rows": rows}
    return Answer(content, [*parts, "\n".join(paths)])


def _tables(unit: Result, cuts_of: CutsOf, layers: int) -> Iterator[str]:
    """Of each task of a result the scores by cut and rule, and their change from the whole model's; 95% intervals."""
    from deeper_layers.report import estimates, pairing  # slow, as are the next
    from deeper_layers.report.names import say
    from deeper_layers.results.frames import scores_of

    rows = scores_of([unit]).dropna(subset="outcome").drop_duplicates(["task", "subject", "metric", "cut"])
    chosen = [(cut, rule if cut.size else "") for rule, cuts in cuts_of.items() for cut in cuts]
    for task, own in rows.groupby("task", sort=False):
        own = own[own["metric"] == pairing.main_metrics(own)[task]]
        places, outcomes = pairing.paired(own)
        scores = zip(places["cut"], estimates.mean_of_items(outcomes))
        lines = {cut: {"score": say(one, digits=3)} for cut, one in scores}
        said = f"{task}, {own['metric'].iloc[0]}: {outcomes.shape[1]} items"
        if has_whole := UNPRUNED.name in lines:
            changes = estimates.Estimate.of(estimates.means(outcomes - outcomes[0]))
            for cut, one in zip(places["cut"][1:], list(changes)[1:]):
                lines[cut]["change"] = say(one, digits=3)
        if estimates.are_shares(outcomes):
            level = pairing.guessing(own)
            said += f", guessing {level:.2f}"
            if has_whole and estimates.is_at_floor(outcomes[0], level):
                said += "; the whole model is not surely above it: nothing can be seen here"
        shown = [
            {"n": cut.size, "of layers": f"{cut.size / layers:.0%}", "rule": rule}
            | {"from": (str(cut.start) if cut.size else "") if cut.is_block else cut.name}
            | lines[cut.name]
            for cut, rule in sorted(dict.fromkeys(chosen), key=lambda one: one[0].size)
            if cut.name in lines
        ]
        yield f"{said}\n{table(shown)}"
