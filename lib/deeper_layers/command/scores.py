"""Scores of pruned models as `sweep` and `scan` answer them: a table for each task, and every row."""

from typing import TYPE_CHECKING

from deeper_layers.command.answers import Answer, table
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import TaskParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.store import Result

if TYPE_CHECKING:  # slow
    from deeper_layers.report.estimates import Estimate

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
    parts = [source.described(parameters.quantization)]
    parts += [_tables(unit, cuts[name], source.num_layers) for name, unit in units.items()]
    parts += [*(f"{name}: not measured" for name in missing), "\n".join(paths)]
    content = {
        "model": source.name,
        "layers": source.num_layers,
        "dtype": source.dtype,
        "quantization": parameters.quantization,
        "not_measured": missing,
        "units": paths,
        "rows": rows,
    }
    return Answer("\n\n".join(parts), content)


def _tables(unit: Result, cuts_of: CutsOf, layers: int) -> str:
    """Of each task of a result the scores by cut and rule, and their change from the whole model's; 95% intervals."""
    from deeper_layers.report import estimates, pairing  # slow, as is the next
    from deeper_layers.results.frames import scores_of

    rows, tables = scores_of([unit]), []
    rows = rows[rows["outcome"].notna()].drop_duplicates(["task", "subject", "metric", "cut"])
    for task, own in rows.groupby("task", sort=False):
        own = own[own["metric"] == pairing.main_metrics(own)[task]]
        places, outcomes = pairing.paired(own)
        scores = dict(zip(places["cut"], map(_in_words, estimates.mean_of_items(outcomes)), strict=True))
        changes, has_whole = {}, UNPRUNED.name in scores
        if has_whole:
            drawn = estimates.Estimate.of(estimates.means(outcomes - outcomes[0]))
            changes = dict(zip(places["cut"][1:], map(_in_words, list(drawn)[1:]), strict=True))
        said = f"{task}, {own['metric'].iloc[0]}: {outcomes.shape[1]} items"
        if estimates.are_shares(outcomes):
            level = pairing.guessing(own)
            said += f", guessing {level:.2f}"
            if has_whole and estimates.is_at_floor(outcomes[0], level):
                said += "; the whole model is not surely above it: nothing can be seen here"
        chosen = [(cut, rule if cut.size else "") for rule, cuts in cuts_of.items() for cut in cuts]
        lines = [
            {
                "n": str(cut.size),
                "of layers": f"{cut.size / layers:.0%}",
                "rule": rule,
                "from": (str(cut.start) if cut.size else "") if cut.is_block else cut.name,
                "score": scores[cut.name],
                "change": changes.get(cut.name, ""),
            }
            for cut, rule in sorted(dict.fromkeys(chosen), key=lambda one: one[0].size)
            if cut.name in scores
        ]
        tables.append(f"{said}\n{table(lines)}")
    return "\n\n".join(tables)


def _in_words(estimate: "Estimate") -> str:
    return f"{estimate.value:.3f} ({estimate.low:.2f} to {estimate.high:.2f})"
