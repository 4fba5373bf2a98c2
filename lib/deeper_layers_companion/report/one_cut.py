"""What results say of one cut of a model: its scores beside the whole model's, and which tasks it ruins."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers_companion.report.estimates import (
    Estimate,
    are_shares,
    estimate_mean,
    is_at_floor,
    resample,
)
from deeper_layers_companion.report.names import as_markdown, task_title
from deeper_layers_companion.report.pairing import (
    Vectors,
    add_runs,
    align,
    get_outcomes,
    pick_metric,
    pick_rules,
    score_guessing,
)
from deeper_layers_companion.report.statistics import RULES, WHOLE, lengths, select_distances

NO_RULE = "this cut alone"  # in place of a rule, for a cut that no rule chose
FEWEST = 10  # with fewer items nothing is sure
LEFT = 0.5  # a task is ruined where less than this share of the accuracy above guessing is left
NOT_HEALED = "the same cut, not healed"  # what the scores on the card of a healed checkpoint are of, without its own
ENDS = 0.9  # lengths mean something only if the whole model ends at least this share of its answers
Number = tuple[float, float, float]  # a value, and its interval


@dataclass(frozen=True)
class Score:
    """One task, or one text, under a cut."""

    topic: str  # the title of the task
    asked: str  # the title with the number of examples in the prompt, and of tasks of a group
    metric: str  # "accuracy", or "loss" in nats a token
    items: int
    how: str  # the number format in which it was measured
    whole: Number  # score of the whole model
    pruned: Number  # score without the layers of the cut
    healed: Number | None = None  # score after healing, too
    guessing: float | None = None  # accuracy of the better way to guess
    ruined: bool = False  # whether surely less than LEFT of the accuracy above guessing is left (healed, if it was)
    # the largest number of layers, under the rule that chose this cut, for which neither its cut nor any smaller one
    # that was measured ruins the task; None if the whole model is not surely above guessing
    largest: int | None = None
    smallest: int | None = None  # the smallest measured number that ruins it, where one does
    rule: str | None = None


def is_surely_ruined(before: np.ndarray, after: np.ndarray, level: float) -> bool:
    """Whether surely less than LEFT of the accuracy above `level` is left, by outcomes [I] before and after."""
    return len(before) >= FEWEST and bool(
        Estimate.of(resample(after - LEFT * before)).high < (1 - LEFT) * level
    )


def find_healed(scores: pd.DataFrame, cut: Cut, config: dict, text: str) -> pd.DataFrame:
    """The rows of a model healed after a cut with these settings and text, in the number format with most tasks."""
    rows = scores.query("cut == @cut.name and healing.notna() and repeat == 0")
    settings = rows["healing"].map(json.loads)
    is_alike = [
        run == config | {"text": text, "tokens": run["tokens"]} and run["tokens"] > 0
        for run in settings
    ]
    rows = rows[np.array(is_alike, dtype=bool)]
    formats = rows["dtype"] + rows["bits"].fillna("")
    if rows.empty:
        return rows
    return rows[formats == rows["task"].groupby(formats).nunique().idxmax()]


def find_scores(scores: pd.DataFrame, cut: Cut, healed: pd.DataFrame | None = None) -> list[Score]:
    """The scores of a cut, by task, from the table of one model; with those of a healed model, whose rows are given."""
    scores = add_runs(scores)
    best = {}
    healed_rows = scores[scores.index.isin([] if healed is None else healed.index)]
    by_run = {number: get_outcomes(rows) for number, rows in healed_rows.groupby("run")}
    unhealed = pick_metric(scores.query("healing.isna()"))
    for (number, _), rows in unhealed.groupby(["run", "path"], sort=False):
        settings = rows[["task", "metric", "dtype", "bits", "shots"]]
        task, metric, dtype, bits, shots = settings.iloc[0]
        run = get_outcomes(rows)
        if cut.name not in run or (pd.notna(bits) if healed is None else number not in by_run):
            continue
        wanted = by_run.get(number, run)[cut.name]
        pair = align(run, (WHOLE, cut.name), wanted)
        if not pair:
            continue
        if number in by_run:
            pair += align(by_run[number], [cut.name], wanted)
        outcomes = np.stack(pair)
        estimate = estimate_mean(outcomes)
        is_loss = metric == "loss"
        question = task_title(task) + f", {len(wanted)} subjects" * (len(wanted) > 1)
        score = Score(
            task_title(task),
            question if pd.isna(shots) or is_loss else f"{question}, {shots}-shot",
            "loss" if is_loss else "accuracy",
            outcomes.shape[1],
            dtype if pd.isna(bits) else f"{dtype}, weights in {bits}",
            *zip(
                estimate.value.tolist(), estimate.low.tolist(), estimate.high.tolist(), strict=True
            ),
            **(_judge_task(rows, run, cut, outcomes) if are_shares(outcomes) else {}),
        )
        extent = (score.rule in RULES, score.items, len(run))
        if task not in best or extent > best[task][0]:
            best[task] = extent, score
    return sorted(
        (score for _, score in best.values()), key=lambda score: (score.metric, score.topic)
    )


def _judge_task(
    rows: pd.DataFrame, run: dict[str, Vectors], cut: Cut, outcomes: np.ndarray
) -> dict:
    """The fields guessing, ruined, rule, largest and smallest of a `Score`. `outcomes` are those of the whole model, of
    the pruned one and, if there is one, of the healed one, [2 or 3, I]."""
    level = score_guessing(rows)
    rules = pick_rules(rows.query("cut == @cut.name"))["rule"].tolist()
    rule = next((name for name in (*RULES, *rules) if name in rules), NO_RULE)
    if is_at_floor(outcomes[0], level):
        return {"guessing": level, "rule": rule}
    tried = rows.query("rule == @rule" if rules else "cut in [@WHOLE, @cut.name]")
    largest = 0
    smallest = None
    for name, size in (
        tried.drop_duplicates("cut").sort_values("size")[["cut", "size"]].itertuples(index=False)
    ):
        pair = align(run, (WHOLE, name), run[cut.name])
        if not pair:
            break
        number = int(size) if pd.notna(size) else cut.size
        if name != WHOLE and is_surely_ruined(*pair, level):
            smallest = number
            break
        largest = number
    ruined = is_surely_ruined(outcomes[0], outcomes[-1], level)
    return {
        "guessing": level,
        "ruined": ruined,
        "largest": largest,
        "smallest": smallest,
        "rule": rule,
    }


def write_card_text(
    scores: pd.DataFrame,
    distances: pd.DataFrame,
    cut: Cut,
    healed: pd.DataFrame | None = None,
    cut_scores: list[Score] | None = None,
    is_own: bool = True,
) -> str:
    """The text of a model card about a cut, in Markdown: its distance, its scores, the tasks that it ruins.
    `cut_scores` are the results of `find_scores`, if they are known already; `is_own` is False where the card is of a
    healed checkpoint without scores of its own, and these are of the same cut, not healed."""
    blocks = select_distances(
        distances.query("@cut.is_block and start == @cut.start and size == @cut.size")
    )
    lines = [
        f"Angular distance of the dropped block: {block.distance:.4f} (units of pi; "
        f"{as_markdown(block.corpus)}, {block.dtype})."
        for block in blocks.itertuples()
    ]
    cut_scores = cut_scores or find_scores(scores, cut, healed)
    if cut_scores:
        heads = ["task", "whole model"]
        if healed is not None:
            heads += ["pruned", "healed, this one"]
        else:
            heads.append("this one" if is_own else NOT_HEALED)
        heads += ["guessing", "items", "measured in"]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in cut_scores:
            cells = [
                as_markdown(row.asked),
                *map(format_interval, filter(None, (row.whole, row.pruned, row.healed))),
            ]
            cells += [
                "" if row.guessing is None else f"{row.guessing:.2f}",
                f"{row.items:,}",
                row.how,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            "",
            "With 95% intervals: accuracies with Wilson's, losses (nats a token) drawn anew over sequences.",
        ]
        ruined = [as_markdown(row.topic) for row in cut_scores if row.ruined]
        if ruined:
            text = (
                "surely less than half of what the whole model has above guessing is left on these:"
            )
            text = text.capitalize() if is_own else f"Of {NOT_HEALED}, {text}"
            lines += ["", f"{text} {'; '.join(ruined)}."]
    if healed is None and is_own:
        text = describe_lengths(scores, cut)
        if text:
            lines += ["", *map(as_markdown, text)]
    return "\n".join(lines)


def describe_lengths(scores: pd.DataFrame, cut: Cut) -> list[str]:
    """A sentence for each task: the length of answers without the layers of a cut, and of the whole model's."""
    table = lengths(scores).drop_duplicates(["task", "cut"])
    whole = table.query("cut == @WHOLE and ended >= @ENDS")
    return [
        f"{row.topic}: its answers have {row.tokens:.0f} tokens (median), {row.times:.1f} times those of the whole "
        f"model; {1 - row.ended:.0%} are cut off before they end."
        for row in table[table["task"].isin(whole["task"])].query("cut == @cut.name").itertuples()
    ]


def format_interval(value: Number) -> str:
    """A number with its interval."""
    return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"
