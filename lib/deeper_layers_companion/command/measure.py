"""`deeper-layers distances`, `sweep` and `scan`: angular distances, and pruned models on tasks and texts."""

import math
from collections.abc import Iterable, Iterator

import click

from deeper_layers.errors import NotMeasuredError
from deeper_layers_companion.command.options import Answer, as_dicts, exclude_rules, format_table, is_typed, subcommand
from deeper_layers_companion.experiments.choosing import choose_cuts_for_tasks
from deeper_layers_companion.experiments.distances import find_or_measure_distances
from deeper_layers_companion.experiments.experiment import CutsByRule, Experiment
from deeper_layers_companion.experiments.notebook_parameters import ScanParameters
from deeper_layers_companion.experiments.parameters import Parameters, SweepParameters
from deeper_layers_companion.experiments.scoring import plan_each, score_each
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.choosing import distance_matrix, similarity_cut


@subcommand(Parameters, "Which layers are alike: every angular distance.")
@click.option(
    "--by-sequence",
    is_flag=True,
    help="keep the distances of every sequence too, and say how surely each block is the most similar",
)
def distances(parameters: Parameters, by_sequence: bool) -> Answer:
    """Measure the angular distance between the input and the output of every block of layers, in one pass over text.

    Shown is the most similar block of each size, the one that the paper's rule drops. --json has every block.

    \b
    deeper-layers distances embedded
    deeper-layers distances ORGANISATION/NAME --samples 64 --json > distances.json
    """
    experiment = Experiment(parameters)
    result = experiment.require(find_or_measure_distances(experiment, by_sequence=by_sequence), "the distances")
    matrix, source = distance_matrix(result.rows), experiment.source
    best = [similarity_cut(matrix, size) for size in range(1, source.num_layers)]
    rows = [
        {"n": cut.size, "l*": cut.start, "distance": matrix[cut.size - 1, cut.start]}
        | {"is": cut.describe(source.num_layers)}
        for cut in best
    ]
    if by_sequence:
        from deeper_layers_companion.report.statistics import nearest  # slow to import, as is the next
        from deeper_layers_companion.results.frames import tabulate_distances

        for row, pick in zip(rows, nearest(tabulate_distances([result])).itertuples(), strict=False):
            row |= {"resamples": f"{pick.agrees:.0%}", "l* of 95%": f"{pick.low:.0f} to {pick.high:.0f}"}
    content = {"model": source.name, "layers": source.num_layers, "dtype": source.dtype, "unit": str(result.path)}
    content |= {"most_similar": [{"start": cut.start, "size": cut.size} for cut in best], "rows": as_dicts(result.rows)}
    head = (
        f"{source.describe(None)}: the most similar block of n layers begins at layer l*, counted from 0; distances "
        f"in units of pi, mean of {int(result.rows['samples'].max())} sequences of {result.name}"
    )
    return Answer(content, [head, rows, str(result.path)])


@subcommand(SweepParameters, "Score the pruned models on tasks of lm-eval.")
def sweep(parameters: SweepParameters) -> Answer:
    """Score every pruned model of MODEL on tasks of lm-eval, all from one pass over the data.

    What it costs is printed before it runs; `deeper-layers plan` with the same options prints it and runs nothing. The
    last table says, for each task and rule, without how many layers half of the score above guessing is gone.

    \b
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers sweep ORGANISATION/NAME --tasks "mmlu:5@20, boolq" --rules simple
    deeper-layers sweep embedded --tasks capitals --rules greedy --sizes 0-3 --samples 8 --sequence-length 128
    deeper-layers sweep embedded --tasks capitals --layers "3, 7-9" --mlp 12
    """
    exclude_rules()
    # if another engine generates, leave the accelerator to it
    experiment = Experiment(parameters.replace(device="cpu") if parameters.engine else parameters)
    return _score(choose_cuts_for_tasks(experiment), experiment, by_rule=True)


@subcommand(ScanParameters, "Score every block of so many layers, at every start.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="say what each would cost on this machine, less what results hold; the "
    "model is opened, and run on one small batch",
)
def scan(parameters: ScanParameters, dry_run: bool) -> Answer:
    """Score the model without every block of so many layers in turn, from the first to the last.

    Of tasks that are chosen the log-probability of every choice is kept; of texts and solutions the loss is measured.
    With --blocks none the cuts are those of the rules, as `deeper-layers sweep` has them.

    \b
    deeper-layers scan embedded --tasks capitals@20 --dry-run
    deeper-layers scan ORGANISATION/NAME --tasks "mmlu:5@10, mmlu_continuation:5@10, c4@32, gsm8k_solutions@32"
    """
    for name in ("starts",) if parameters.blocks is None else ("rules", "sizes"):
        if is_typed(name):
            raise click.UsageError(f"--{name} and --blocks {parameters.blocks or 'none'} exclude each other: leave it")
    experiment = Experiment(parameters)
    cuts = choose_cuts_for_tasks(experiment)
    if dry_run:
        plans = plan_each(cuts, experiment)
        units = [
            {"name": name, "seconds": plan.seconds, "layer_steps": plan.layer_steps, "to_generate": plan.generated}
            for name, plan in plans.items()
        ]
        return Answer({"units": units}, [f"{name}: {plans.get(name, 'in results already')}" for name in cuts])
    return _score(cuts, experiment)


def _score(cuts: dict[str, CutsByRule], experiment: Experiment, *, by_rule: bool = False) -> Answer:
    """Score the cuts on each task or text: the answer has a table for each, and for JSON its rows; `by_rule` repeats
    those of a cut for each rule that chose it. Raises NotMeasuredError if there is nothing to show."""
    source, quantization = experiment.source, experiment.parameters.quantization
    measured = {name: result for name, result in score_each(cuts, experiment).items() if result}
    missing = [name for name in cuts if name not in measured]
    if not measured:
        raise NotMeasuredError(f"not measured: {', '.join(missing)}; leave out --no-measure to measure it")
    paths, tables, rows = [str(result.path) for result in measured.values()], [], []
    for name, result in measured.items():
        tables += _make_tables(result, cuts[name])
        parts = [result.rows]
        if by_rule:
            names = {rule: [cut.name for cut in rule_cuts] for rule, rule_cuts in cuts[name].items()}
            parts = [result.rows[result.rows["cut"].isin(chosen)].assign(rule=rule) for rule, chosen in names.items()]
        rows += [row for part in parts for row in as_dicts(part)]
    half_gone, half_gone_text = _find_half_gone(measured.values())
    content = {"model": source.name, "layers": source.num_layers, "dtype": source.dtype, "half_gone": half_gone}
    content |= {"quantization": quantization, "not_measured": missing, "units": paths, "rows": rows}
    absent = [f"{name}: not measured" for name in missing]
    texts = [source.describe(quantization), *tables, half_gone_text, *absent, "\n".join(paths)]
    return Answer(content, [text for text in texts if text])


def _find_half_gone(measured: Iterable[Result]) -> tuple[list[dict], str]:
    """For each task and rule the number of layers without which half of the score above guessing is gone, with its
    interval, for JSON (null: more than the largest that was measured); and a table in words, "" without rows."""
    from deeper_layers_companion.report.statistics import half_gone_table  # slow to import, as is the next
    from deeper_layers_companion.results.frames import tabulate_scores

    rows = half_gone_table(tabulate_scores([*measured])).query("untold == ''")
    columns = ["task", "rule", "value", "low", "high", "sizes", "largest"]
    content = as_dicts(rows[columns].replace(math.inf, math.nan))
    if rows.empty:
        return content, ""
    table = format_table(as_dicts(rows[["task", "rule"]].assign(layers=rows["words"])))
    return content, f"Half of what the whole model scores above guessing is gone without so many layers:\n{table}"


def _make_tables(result: Result, cuts_by_rule: CutsByRule) -> Iterator[str]:
    """Yield a table for each task: scores by cut and rule, and their change from the whole model; 95% intervals."""
    import pandas as pd  # slow to import, as are the next

    from deeper_layers_companion.report import estimates, pairing
    from deeper_layers_companion.report.names import format_number
    from deeper_layers_companion.results.frames import tabulate_scores

    rows = tabulate_scores([result]).dropna(subset="outcome").drop_duplicates(["task", "subject", "metric", "cut"])
    chosen = {(cut.name, rule if cut.size else "") for rule, cuts in cuts_by_rule.items() for cut in cuts}
    rules = pd.DataFrame(sorted(chosen), columns=["cut", "rule"])
    for task, task_rows in pairing.pick_metric(rows).groupby("task", sort=False):
        table, outcomes = pairing.pair_outcomes(task_rows)
        head = f"{task}, {task_rows['metric'].iloc[0]}: {outcomes.shape[1]} items"
        table["score"] = [format_number(estimate, digits=3) for estimate in estimates.estimate_mean(outcomes)]
        changes = estimates.Estimate.of(estimates.resample(outcomes - outcomes[0]))  # the whole model is the first
        table["change"] = ["", *(format_number(estimate, digits=3) for estimate in list(changes)[1:])]
        if estimates.are_shares(outcomes):
            guessing = pairing.score_guessing(task_rows)
            head += f", guessing {guessing:.2f}"
            if estimates.is_at_floor(outcomes[0], guessing):
                head += "; the whole model is not surely above it: nothing can be seen here"
        yield f"{head}\n{format_table(as_dicts(table.merge(rules, on='cut')))}"
