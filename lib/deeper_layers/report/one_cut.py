"""What results hold of one cut of a model: its scores beside the whole model's, and which tasks it ruins."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.report.estimates import Estimate, are_shares, is_at_floor, mean_of_items, means
from deeper_layers.report.lengths import lengths_in_words
from deeper_layers.report.names import as_markdown, topic
from deeper_layers.report.pairing import Vectors, by_run, guessing, joined, main_metrics, one_rule, same_items
from deeper_layers.report.statistics import RULES, kept_distances

ALONE = "this cut alone"  # the rule of one whose smaller ones are not asked about
FEW = 10  # items: of fewer nothing is sure
LEFT = 0.5  # of what lies above guessing: less of it is left where a task is ruined
Number = tuple[float, float, float]  # with its interval


@dataclass(frozen=True)
class Score:
    """One task, or one text, under a cut.

    Attributes:
        topic: as people call it.
        asked: the same with the number of examples in the prompt, and of tasks of a group.
        metric: "accuracy", or "loss" in nats a token.
        items: how many were asked.
        how: the number format in which it was measured.
        whole, pruned, healed: of the whole model, without the layers of the cut, and healed after it.
        guessing: accuracy of the better way to guess.
        ruined: whether surely less than LEFT of what lies above guessing is left; of the healed model, where there is.
        largest: the largest number of layers, under the rule whose cut this is, such that neither its cut nor any
            smaller one that was measured ruins the task; None where the whole model is not surely above guessing.
    """

    topic: str
    asked: str
    metric: str
    items: int
    how: str
    whole: Number
    pruned: Number
    healed: Number | None = None
    guessing: float | None = None
    ruined: bool = False
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
    own = scores[(scores["cut"] == cut.name) & scores["healing"].notna() & (scores["repeat"] == 0)]

    def is_alike(healing: str) -> bool:
        how = json.loads(healing)
        return how == config | {"text": text, "tokens": how["tokens"]} and how["tokens"] > 0

    own = own[own["healing"].map(is_alike).astype(bool)]
    formats = own["dtype"] + own["bits"].fillna("")
    return own if own.empty else own[formats == own["task"].groupby(formats).nunique().idxmax()]


def scores_of(scores: pd.DataFrame, cut: Cut, healed: pd.DataFrame | None = None) -> list[Score]:
    """What the table of one model says of a cut, by task; of a healed one too, where its rows are given."""
    unhealed, found = scores[scores["healing"].isna() & scores["outcome"].notna()], {}
    metrics, of_healed = main_metrics(unhealed), {} if healed is None else by_run(healed)
    for key, runs in by_run(unhealed).items():
        _, dtype, bits, task, shots, _, metric = key
        # a healed model has one kind of run of what was asked
        repaired = next((run[cut.name] for run in of_healed.get(key, {}).values()), None)
        if metric != metrics[task] or (repaired is None if healed is not None else bits is not None):
            continue
        for path, run in runs.items():
            own = repaired or run.get(cut.name)
            pair = same_items({path: run}, own, (UNPRUNED.name, cut.name)) if own else None
            if pair is None:
                continue
            mended = [] if repaired is None else [np.concatenate([repaired[subject] for subject in sorted(repaired)])]
            outcomes = np.stack([*pair, *mended])
            told = mean_of_items(outcomes)
            shown = topic(task) + f", {len(own)} subjects" * (len(own) > 1)
            shown += "" if shots is None or metric == "loss" else f", {shots}-shot"
            judged: dict = {}
            if are_shares(outcomes):
                of_run = unhealed[["path", "task", "metric"]].eq([path, task, metric]).all(axis=1)
                judged = _judged(unhealed[of_run], run, cut, outcomes)
            one = Score(
                topic(task),
                shown,
                "loss" if metric == "loss" else "accuracy",
                outcomes.shape[1],
                dtype if bits is None else f"{dtype}, weights in {bits}",
                *zip(told.value.tolist(), told.low.tolist(), told.high.tolist(), strict=True),
                **judged,
            )
            extent = (one.rule in RULES, one.items, len(run))
            if task not in found or extent > found[task][0]:
                found[task] = extent, one
    return sorted((one for _, one in found.values()), key=lambda one: (one.metric, one.topic))


def _judged(rows: pd.DataFrame, run: dict[str, Vectors], cut: Cut, outcomes: np.ndarray) -> dict:
    """What guessing scores, whether the task is ruined, by which rule the cut is, and up to which size none of it is.

    `outcomes` are of the whole model, the pruned one and, where it was healed, that, [2 or 3, I].
    """
    level, ruined, largest = guessing(rows), False, None
    chose = one_rule(rows[rows["cut"] == cut.name])["rule"].tolist()
    rule = next((name for name in (*RULES, *chose) if name in chose), ALONE)
    if not is_at_floor(outcomes[0], level):
        ruined, largest = surely_ruined(outcomes[0], outcomes[-1], level), 0
        every = rows[rows["rule"] == rule] if chose else rows[rows["cut"].isin([UNPRUNED.name, cut.name])]
        for name, size in every.drop_duplicates("cut").sort_values("size")[["cut", "size"]].itertuples(index=False):
            whole, after = (joined(run[of], run[cut.name]) for of in (UNPRUNED.name, name))
            if after is None or (name != UNPRUNED.name and surely_ruined(whole, after, level)):
                break
            largest = int(size) if pd.notna(size) else cut.size
    return {"guessing": level, "ruined": ruined, "largest": largest, "rule": rule}


def card_text(scores: pd.DataFrame, distances: pd.DataFrame, cut: Cut, healed: pd.DataFrame | None = None) -> str:
    """What results hold about a cut, in Markdown, for a model card: its distance, its scores, what it ruins."""
    own = kept_distances(distances if cut.is_block else distances[:0])
    own = own[(own["start"] == cut.start) & (own["size"] == cut.size)]
    lines = [
        f"Angular distance of the dropped block: {row.distance:.4f} (units of pi; {as_markdown(row.corpus)}, {dtype})."
        for row, dtype in zip(own.itertuples(), own["dtype"], strict=True)
    ]
    if found := scores_of(scores, cut, healed):
        heads = ["task", "whole model", *(["this one"] if healed is None else ["pruned", "healed, this one"])]
        heads += ["guessing", "items", "measured in"]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for one in found:
            numbers = [one.whole, one.pruned, *([] if healed is None else [one.healed])]
            cells = [as_markdown(one.asked), *(in_words(number) for number in numbers if number)]
            cells += ["" if one.guessing is None else f"{one.guessing:.2f}", f"{one.items:,}", one.how]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "With 95% intervals: accuracies with Wilson's, losses (nats a token) drawn anew over sequences."]
        if ruined := [as_markdown(one.topic) for one in found if one.ruined]:
            said = "Surely less than half of what the whole model has above guessing is left on these:"
            lines += ["", f"{said} {'; '.join(ruined)}."]
    if healed is None and (said := lengths_in_words(scores, cut)):
        lines += ["", *map(as_markdown, said)]
    return "\n".join(lines)


def in_words(value: Number) -> str:
    """A number with its interval."""
    return f"{value[0]:.3f} ({value[1]:.2f} to {value[2]:.2f})"
