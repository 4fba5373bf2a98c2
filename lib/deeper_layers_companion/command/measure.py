"""`deeper-layers distances`, `sweep` and `scan`: angular distances, and pruned models on tasks and texts."""

import math
import shlex
from collections.abc import Iterator

import click

from deeper_layers.cuts import similarity_cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers_companion.command.options import (
    Answer,
    as_dicts,
    exclude,
    exclude_rules,
    format_table,
    is_typed,
    subcommand,
)
from deeper_layers_companion.jobs.job import Job, distances_job, read_cut
from deeper_layers_companion.jobs.listing import list_sweep
from deeper_layers_companion.jobs.notebook_options import EarlyScanParameters
from deeper_layers_companion.jobs.options import Parameters, SweepParameters
from deeper_layers_companion.jobs.plan import try_job
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.store import Result
from deeper_layers_companion.rules.choosing import distance_matrix


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
    session = Session(parameters)
    job = distances_job(session.source, parameters, by_sequence=by_sequence)
    result = session.get(job, "the distances")
    matrix = distance_matrix(result.rows)
    source = session.source
    best = [similarity_cut(matrix, size) for size in range(1, source.num_layers)]
    rows = [
        {"n": cut.size, "l*": cut.start, "distance": matrix[cut.size - 1, cut.start]}
        | {"is": cut.describe(source.num_layers)}
        for cut in best
    ]
    if by_sequence:
        from deeper_layers_companion.report.statistics import (
            nearest,
        )  # slow to import, as is the next
        from deeper_layers_companion.results.frames import tabulate_distances

        for row, pick in zip(
            rows, nearest(tabulate_distances([result])).itertuples(), strict=False
        ):
            row |= {
                "resamples": f"{pick.agrees:.0%}",
                "l* of 95%": f"{pick.low:.0f} to {pick.high:.0f}",
            }
    content = {
        "model": source.name,
        "layers": source.num_layers,
        "dtype": source.dtype,
        "unit": str(result.path),
    }
    content |= {
        "most_similar": [{"start": cut.start, "size": cut.size} for cut in best],
        "rows": as_dicts(result.rows),
    }
    head = (
        f"{source.describe(None)}: the most similar block of n layers begins at layer l*, counted from 0; distances "
        f"in units of pi, mean of {int(result.rows['samples'].max())} sequences of {result.name}"
    )
    return Answer(content, [head, rows, str(result.path)])


@subcommand(SweepParameters, "Score the pruned models on tasks of lm-eval.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    help="say without how many layers every task keeps this share of what the whole model scores above guessing: 0.95",
)
def sweep(parameters: SweepParameters, keep: float | None) -> Answer:
    """Score every pruned model of MODEL on tasks of lm-eval, all from one pass over the data.

    What it costs is printed before it runs; `deeper-layers plan` with the same options prints it and runs nothing. The
    last table says, for each task and rule, without how many layers half of the score above guessing is gone.

    With --precision items are asked in a fixed random order, and the answer is looked at after 30, 60, 120, ... of
    them, up to --limit, until it is precise enough; its 95% intervals hold at all looks together. --within stops by the
    clock, which begins with the first item. The same command with a finer precision, a higher limit or more time goes
    on from there.

    \b
    deeper-layers sweep embedded --tasks capitals --sizes 0-4 --limit 20
    deeper-layers sweep ORGANISATION/NAME --tasks "mmlu:5@20, boolq" --rules simple
    deeper-layers sweep ORGANISATION/NAME --tasks "boolq, gsm8k@150" --keep 0.95
    deeper-layers sweep ORGANISATION/NAME --tasks mmlu --precision 0.05 --within 10min
    deeper-layers sweep embedded --tasks capitals --rules greedy --sizes 0-3 --samples 8 --sequence-length 128
    deeper-layers sweep embedded --tasks capitals --layers "3, 7-9" --mlp 12
    """
    exclude_rules()
    exclude(
        "keep",
        "precision",
        "within",
        why=", as a share is judged on all items up to --limit, by intervals of one look",
    )
    session = Session(parameters)
    return _score([*list_sweep(session)], session, by_rule=True, keep=keep)


@subcommand(EarlyScanParameters, "Score every block of so many layers, at every start.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="say what each would cost on this machine, less what results hold; the "
    "model is opened, and run on one small batch",
)
def scan(parameters: EarlyScanParameters, dry_run: bool) -> Answer:
    """Score the model without every block of so many layers in turn, from the first to the last.

    Of tasks that are chosen the log-probability of every choice is kept; of texts and solutions the loss is measured.
    With --blocks none the cuts are those of the rules, as `deeper-layers sweep` has them.

    \b
    deeper-layers scan embedded --tasks capitals@20 --dry-run
    deeper-layers scan ORGANISATION/NAME --tasks "mmlu:5@10, mmlu_continuation:5@10, c4@32, gsm8k_solutions@32"
    """
    for name in ("starts",) if parameters.blocks is None else ("rules", "sizes"):
        if is_typed(name):
            raise click.UsageError(
                f"--{name} and --blocks {parameters.blocks or 'none'} exclude each other: leave it"
            )
    session = Session(parameters)
    jobs = [*list_sweep(session)]
    if dry_run:
        return _try_jobs(jobs, session)
    return _score(jobs, session)


def _try_jobs(jobs: list[Job], session: Session) -> Answer:
    """What each job would cost, less those that results hold."""
    units = []
    lines = []
    for job in jobs:
        (name,) = job.key["tasks"]
        if session.find(job):
            lines.append(f"{name}: in results already")
            continue
        plan = try_job(job, session)
        lines.append(f"{name}: {plan}")
        unit = {
            "name": name,
            "seconds": plan.seconds,
            "layer_steps": plan.layer_steps,
            "to_generate": plan.generated,
        }
        units.append(unit)
    return Answer({"units": units}, lines)


def _score(
    jobs: list[Job], session: Session, *, by_rule: bool = False, keep: float | None = None
) -> Answer:
    """Get each job: the answer has a table for each task or text, and for JSON its rows; `by_rule` repeats those of a
    cut for each rule that chose it; `keep` asks how many layers leave such a share of every task. Raises
    NotMeasuredError if there is nothing to show."""
    source = session.source
    quantization = session.options.quantization
    results = [session.get(job) for job in jobs]
    missing = []
    absent = []
    for job, result in zip(jobs, results):
        if result is None:
            missing += job.key["tasks"]
            nearest = session.describe_nearest(job)
            absent += [f"{name}: not measured{nearest}" for name in job.key["tasks"]]
    measured = [result for result in results if result]
    if not measured:
        nearest = session.describe_nearest(jobs[0])
        raise NotMeasuredError(
            f"not measured: {', '.join(missing)}{nearest}; leave out --no-measure to measure it"
        )
    paths = [str(result.path) for result in measured]
    tables = []
    rows = []
    stopped: list[dict] = []
    for job, result in zip(jobs, results):
        if result is None:
            continue
        if job.until is None:
            tables += _make_tables(result, job.key["cuts"])
        else:
            tables += _make_looks(job, result, stopped)
        parts = [result.rows]
        if by_rule:
            chosen_by_rule = job.key["cuts"].items()
            parts = [
                result.rows[result.rows["cut"].isin(names)].assign(rule=rule)
                for rule, names in chosen_by_rule
            ]
        for part in parts:
            rows += as_dicts(part)
    half_gone, half_gone_text = _find_half_gone(
        [result for job, result in zip(jobs, results) if result and not job.until]
    )
    for one in stopped:
        half_gone += one.pop("half_gone")
    content = {
        "model": source.name,
        "layers": source.num_layers,
        "dtype": source.dtype,
        "half_gone": half_gone,
    }
    content |= {"quantization": quantization, "not_measured": missing, "units": paths, "rows": rows}
    content |= {"stopping": stopped} if stopped else {}
    kept_text = ""
    if keep is not None:
        content["keep"], kept_text = _find_most_dropped(measured, keep, session.options.model)
    texts = [
        source.describe(quantization),
        *tables,
        half_gone_text,
        kept_text,
        *absent,
        "\n".join(paths),
    ]
    return Answer(content, [text for text in texts if text])


def _make_looks(job: Job, result: Result, stopped: list[dict]) -> Iterator[str]:
    """Yield the tables of a task whose asking may have stopped early, and why it did; add that to `stopped`, for JSON,
    with its half gone."""
    from deeper_layers_companion.jobs.looks import (
        look_at_result,
        narrow,
    )  # slow to import, as is the next
    from deeper_layers_companion.report import looking

    stopping = result.details["stopping"]
    (task,) = job.key["tasks"]
    seen = look_at_result(narrow(job, result))
    total = sum(stopping["counts"].values())
    stopped.append(
        {"task": task, "of": total} | stopping | {"half_gone": looking.tabulate_half_gone(seen)}
    )
    yield from looking.write_tables(seen)
    yield (
        f"{task}: {stopping['items']:,} of {total:,} items asked ({stopping['reason']}); 95% intervals hold at all "
        f"{len(stopping['rule']['looks'])} planned looks together"
    )


def _find_most_dropped(measured: list[Result], share: float, model: str) -> tuple[list[dict], str]:
    """For each rule how many layers leave a share of every task, for JSON; and in words, with the command to type."""
    from deeper_layers_companion.report.keeping import (
        find_most_dropped,
    )  # slow to import, as is the next
    from deeper_layers_companion.results.frames import tabulate_scores

    found = as_dicts(find_most_dropped(tabulate_scores(measured), share))
    if not found:
        return (
            found,
            f"Of no task can it be said whether {share:.0%} is kept: the whole model is not surely above guessing",
        )
    return found, "\n".join(_describe_most_dropped(row, share, model) for row in found)


def _describe_most_dropped(row: dict, share: float, model: str) -> str:
    line = (
        f"{share:.0%} of every task is kept without {row['surely']} of {row['layers']} layers surely, without "
        f"{row['probably']} probably ({row['rule']}; of at most {row['largest']}, by 95% intervals)"
    )
    if row["first_lost"]:
        line += f"; the next size costs more of {', '.join(row['first_lost'])}"
    if row["unjudged"]:
        line += f"; not judged: {', '.join(row['unjudged'])}"
    size = row["surely"] or row["probably"]
    if not size:
        return line
    rule = ["--rule", row["rule"]] if row["rule"] != "similarity" else []
    return f"{line}\n  {shlex.join(['deeper-layers', 'prune', model, 'OUT', '--drop', str(size), *rule])}"


def _find_half_gone(measured: list[Result]) -> tuple[list[dict], str]:
    """For each task and rule the number of layers without which half of the score above guessing is gone, with its
    interval, for JSON (null: more than the largest that was measured); and a table in words, "" without rows."""
    from deeper_layers_companion.report.statistics import (
        half_gone_table,
    )  # slow to import, as is the next
    from deeper_layers_companion.results.frames import tabulate_scores

    rows = half_gone_table(tabulate_scores(measured)).query("no_value_reason == ''")
    columns = ["task", "rule", "value", "low", "high", "sizes", "largest"]
    content = as_dicts(rows[columns].replace(math.inf, math.nan))
    if rows.empty:
        return content, ""
    table = format_table(as_dicts(rows[["task", "rule"]].assign(layers=rows["words"])))
    return (
        content,
        f"Half of what the whole model scores above guessing is gone without so many layers:\n{table}",
    )


def _make_tables(result: Result, cuts_by_rule: dict[str, list[str]]) -> Iterator[str]:
    """Yield a table for each task: scores by cut and rule, and their change from the whole model; 95% intervals."""
    import pandas as pd  # slow to import, as are the next

    from deeper_layers_companion.report import estimates, pairing
    from deeper_layers_companion.report.names import format_number
    from deeper_layers_companion.results.frames import tabulate_scores

    rows = (
        tabulate_scores([result])
        .dropna(subset="outcome")
        .drop_duplicates(["task", "subject", "metric", "cut"])
    )
    chosen = set()
    for rule, names in cuts_by_rule.items():
        chosen.update((name, rule if read_cut(name).size else "") for name in names)
    rules = pd.DataFrame(sorted(chosen), columns=["cut", "rule"])
    for task, task_rows in pairing.pick_metric(rows).groupby("task", sort=False):
        table, outcomes = pairing.pair_outcomes(task_rows)
        head = f"{task}, {task_rows['metric'].iloc[0]}: {outcomes.shape[1]} items"
        table["score"] = [
            format_number(estimate, digits=3) for estimate in estimates.estimate_mean(outcomes)
        ]
        changes = estimates.Estimate.of(
            estimates.resample(outcomes - outcomes[0])
        )  # the whole model is the first
        table["change"] = [
            "",
            *(format_number(estimate, digits=3) for estimate in list(changes)[1:]),
        ]
        if estimates.are_shares(outcomes):
            guessing = pairing.score_guessing(task_rows)
            head += f", guessing {guessing:.2f}"
            if estimates.is_at_floor(outcomes[0], guessing):
                head += "; the whole model is not surely above it: nothing can be seen here"
        yield f"{head}\n{format_table(as_dicts(table.merge(rules, on='cut')))}"
