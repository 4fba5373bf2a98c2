"""What results hold of one cut of a model: its scores beside the whole model's, and which tasks it ruins."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deeper_layers.cuts import Cut
from deeper_layers.report.estimates import Estimate, are_shares, is_at_floor, mean_of_items, means
from deeper_layers.report.names import as_markdown, topic
from deeper_layers.report.pairing import Vectors, asked_alike, by_main_metric, guessing, one_rule, vectors, with_runs
from deeper_layers.report.statistics import RULES, WHOLE, kept_distances, lengths

ALONE = "this cut alone"  # the rule of one whose smaller ones are not asked about
FEW = 10  # items: of fewer nothing is sure
LEFT = 0.5  # of what lies above guessing: less of it is left where a task is ruined
ENDS = 0.9  # of its answers the whole model ends, or a task's limit is all that is seen
Number = tuple[float, float, float]  # with its interval


@dataclass(frozen=True)
class Score:
    """One task, or one text, under a cut."""

    topic: str  # as people call it
    asked: str  # the same with the number of examples in the prompt, and of tasks of a group
    metric: str  # "accuracy", or "loss" in nats a token
    items: int  # how many were asked
    how: str  # the number format in which it was measured
    whole: Number  # of the whole model
    pruned: Number  # without the layers of the cut
    healed: Number | None = None  # and healed after it
    guessing: float | None = None  # accuracy of the better way to guess
    ruined: bool = False  # whether surely less than LEFT of what lies above guessing is left, where healed of that
    # the largest number of layers, under the rule whose cut this is, such that neither its cut nor any smaller one that
    # was measured ruins the task; None where the whole model is not surely above guessing
    largest: int | None = None
    rule: str | None = None

    @property
    def left(self) -> Number:
        """Of the checkpoint itself."""
        return self.healed or self.pruned


def surely_ruined(before: np.ndarray, after: np.ndarray, level: float) -> bool:
    """Whether of what a model scores above `level` surely less than LEFT stays, by which items are right, [I]."""
    return len(before) >= FEW and bool(Estimate.of(means(after - LEFT * before)).high < (1 - LEFT) * level)


def healed_alike(scores: pd.DataFrame, cut: Cut, config: dict, text: str) -> pd.DataFrame:
    """The rows of a model healed after a cut, with these settings, on this text: those of most tasks in one format."""
    own = scores.query("cut == @cut.name and healing.notna() and repeat == 0")
    settings = own["healing"].map(json.loads)
    alike = [how == config | {"text": text, "tokens": how["tokens"]} and how["tokens"] > 0 for how in settings]
    own = own[np.array(alike, dtype=bool)]
    formats = own["dtype"] + own["bits"].fillna("")
    return own if own.empty else own[formats == own["task"].groupby(formats).nunique().idxmax()]


def find_scores(scores: pd.DataFrame, cut: Cut, healed: pd.DataFrame | None = None) -> list[Score]:
    """What the table of one model says of a cut, by task; of a healed one too, where its rows in it are given."""
    scores, found = with_runs(scores), {}
    own = scores[scores.index.isin([] if healed is None else healed.index)]
    mended = {of: vectors(rows) for of, rows in own.groupby("run")}
    for (of, _), rows in by_main_metric(scores.query("healing.isna()")).groupby(["run", "path"], sort=False):
        task, metric, dtype, bits, shots = rows[["task", "metric", "dtype", "bits", "shots"]].iloc[0]
        run = vectors(rows)
        if cut.name not in run or (pd.notna(bits) if healed is None else of not in mended):
            continue
        own = mended.get(of, run)[cut.name]
        if not (pair := asked_alike(run, (WHOLE, cut.name), own)):
            continue
        outcomes = np.stack(pair + (asked_alike(mended[of], [cut.name], own) if of in mended else []))
        told, is_loss = mean_of_items(outcomes), metric == "loss"
        asked = topic(task) + f", {len(own)} subjects" * (len(own) > 1)
        one = Score(
            topic(task),
            asked if pd.isna(shots) or is_loss else f"{asked}, {shots}-shot",
            "loss" if is_loss else "accuracy",
            outcomes.shape[1],
            dtype if pd.isna(bits) else f"{dtype}, weights in {bits}",
            *zip(told.value.tolist(), told.low.tolist(), told.high.tolist(), strict=True),
            **(_judged(rows, run, cut, outcomes) if are_shares(outcomes) else {}),
        )
        extent = (one.rule in RULES, one.items, len(run))
        if task not in found or extent > found[task][0]:
            found[task] = extent, one
    return sorted((one for _, one in found.values()), key=lambda one: (one.metric, one.topic))


def _judged(rows: pd.DataFrame, run: dict[str, Vectors], cut: Cut, outcomes: np.ndarray) -> dict:
    """What guessing scores, whether the task is ruined, by which rule the cut is, and up to which size none of it is.
    `outcomes` are of the whole model, the pruned one and, where it was healed, that, [2 or 3, I]."""
    level, chose = guessing(rows), one_rule(rows.query("cut == @cut.name"))["rule"].tolist()
    rule = next((name for name in (*RULES, *chose) if name in chose), ALONE)
    if is_at_floor(outcomes[0], level):
        return {"guessing": level, "rule": rule}
    tried, largest = rows.query("rule == @rule" if chose else "cut in [@WHOLE, @cut.name]"), 0
    for name, size in tried.drop_duplicates("cut").sort_values("size")[["cut", "size"]].itertuples(index=False):
        both = asked_alike(run, (WHOLE, name), run[cut.name])
        if not both or (name != WHOLE and surely_ruined(*both, level)):
            break
        largest = int(size) if pd.notna(size) else cut.size
    ruined = surely_ruined(outcomes[0], outcomes[-1], level)
    return {"guessing": level, "ruined": ruined, "largest": largest, "rule": rule}


def card_text(
    scores: pd.DataFrame,
    distances: pd.DataFrame,
    cut: Cut,
    healed: pd.DataFrame | None = None,
    found: list[Score] | None = None,
) -> str:
    """What results hold about a cut, in Markdown, for a model card: its distance, its scores, what it ruins.

    `found` are what `find_scores` gives, where it was asked before.
    """
    own = kept_distances(distances.query("@cut.is_block and start == @cut.start and size == @cut.size"))
    lines = [
        f"Angular distance of the dropped block: {of.distance:.4f} (units of pi; {as_markdown(of.corpus)}, {of.dtype})."
        for of in own.itertuples()
    ]
    if found := found or find_scores(scores, cut, healed):
        heads = ["task", "whole model", *(["this one"] if healed is None else ["pruned", "healed, this one"])]
        heads += ["guessing", "items", "measured in"]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for one in found:
            cells = [as_markdown(one.asked), *map(in_words, filter(None, (one.whole, one.pruned, one.healed)))]
            cells += ["" if one.guessing is None else f"{one.guessing:.2f}", f"{one.items:,}", one.how]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "With 95% intervals: accuracies with Wilson's, losses (nats a token) drawn anew over sequences."]
        if ruined := [as_markdown(one.topic) for one in found if one.ruined]:
            said = "Surely less than half of what the whole model has above guessing is left on these:"
            lines += ["", f"{said} {'; '.join(ruined)}."]
    if healed is None and (said := lengths_in_words(scores, cut)):
        lines += ["", *map(as_markdown, said)]
    return "\n".join(lines)


def lengths_in_words(scores: pd.DataFrame, cut: Cut) -> list[str]:
    """A sentence for each task: how long answers are without the layers of a cut, beside the whole model's."""
    found = lengths(scores).drop_duplicates(["task", "cut"])
    whole = found.query("cut == @WHOLE and ended >= @ENDS")
    return [
        f"{one.topic}: its answers have {one.tokens:.0f} tokens (median), {one.times:.1f} times those of the whole "
        f"model; {1 - one.ended:.0%} are cut off before they end."
        for one in found[found["task"].isin(whole["task"])].query("cut == @cut.name").itertuples()
    ]


def in_words(value: Number) -> str:
    """A number with its interval."""
    return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"
