"""Which rows of the table of all results belong together: of one measurement, and outcomes of the same items.

A measurement is what was asked of one model and task under the cuts of one rule. Letters in shapes as in estimates.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers.errors import InputError
from deeper_layers.report.estimates import are_shares
from deeper_layers.report.names import topic

PLACE = ["model", "task", "rule"]
HOW = ["dtype", "shots", "order", "limit", "length", "engine"]
RUN = ["model", "dtype", "bits", "task", "shots", "length", "metric"]  # rows alike in these are of the same items
Vectors = dict[str, np.ndarray]  # outcomes by subject, "" where there is none


class Measured(NamedTuple):
    """One measurement of one model, task and rule.

    `place` are its model, task, rule and what else tells it apart; `cuts` has a row for each cut, by size and start,
    with all of `place`, topic, layers, metric, items, guessing (its score, or the loss of it) and whole (the score of
    the whole model); `outcomes` [C, I] is what came out of each cut; `rows` are those of the table.
    """

    place: tuple
    cuts: pd.DataFrame
    outcomes: Float[np.ndarray, "C I"]
    guessing: float
    rows: pd.DataFrame

    @property
    def layers(self) -> int:
        return int(self.cuts["layers"].iloc[0])

    @property
    def has_whole(self) -> bool:
        """Whether items are right or wrong, and the whole model was asked them too."""
        return self.cuts["size"].iloc[0] == 0 and are_shares(self.outcomes)


def measurements(scores: pd.DataFrame, also: Sequence[str] = (), of: pd.DataFrame | None = None) -> Iterator[Measured]:
    """Of each model, task and rule, and of each value of the columns `also`, the one measurement that counts.

    What guessing scores is looked up in `of`, where `scores` are only some of the rows that tell which choices are
    right.
    """
    levels: dict[tuple, float] = {}
    every = scores if of is None else of
    best = best_measured(scores, also) if len(scores) else scores
    for place, rows in best[best["outcome"].notna()].groupby([*PLACE, *also], dropna=False, sort=False):
        cuts, outcomes = paired(rows)
        if cuts["size"].isna().any():
            continue
        task, metric, limit, layers = rows[["task", "metric", "limit", "layers"]].iloc[0]
        asked = (task, metric, str(limit))
        if metric == "loss":
            levels[asked] = float(rows["chance"].max())
        elif asked not in levels:  # it is the same for every model and rule
            alike = every[(every["task"] == task) & (every["metric"] == metric)]
            same = alike if pd.isna(limit) else alike[alike["limit"].eq(limit).fillna(False)]
            levels[asked] = guessing(same if len(same) else rows)
        known = dict(zip([*PLACE, *also], place, strict=True)) | {"topic": topic(task), "layers": layers}
        known |= {"metric": metric, "items": outcomes.shape[1], "guessing": levels[asked]}
        known["whole"] = outcomes[0].mean() if cuts["size"].iloc[0] == 0 else np.nan
        yield Measured(place, cuts.assign(**known), outcomes, levels[asked], rows)


def best_measured(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of `results.scores` that a curve is drawn of: of each model, task and rule one measurement.

    Neither healed nor rounded, by the metric that the task is scored by (acc, or what it counts instead), and the one
    with most items, then most cuts. Each value of the columns `also` has one of its own: with "healing" or "bits" among
    them also what is healed or rounded.
    """
    rows = scores[scores["repeat"] == 0]
    for name in {"healing", "bits"} - set(also):
        rows = rows[rows[name].isna()]
    rows = rows[rows["metric"] == rows["task"].map(main_metrics(rows))]
    place, how = [*PLACE, *also], [name for name in HOW if name not in also]
    extent = rows.groupby([*place, *how], dropna=False).agg(cuts=("cut", "nunique"), items=("items", "sum"))
    extent["items"] /= extent["cuts"]
    best = extent.sort_values(["items", "cuts"]).reset_index().drop_duplicates(place, keep="last")
    return rows.merge(best[[*place, *how]], on=[*place, *how])


def paired(rows: pd.DataFrame) -> tuple[pd.DataFrame, Float[np.ndarray, "C I"]]:
    """The outcomes of one measurement under one rule: the cuts, by size and start, and what came out item by item.

    The subjects of a group follow each other by name. Raises InputError where rows are of other items, or hold one cut
    twice: filter them first.
    """
    rows = rows.sort_values("subject", na_position="first", kind="stable")
    cuts = rows.drop_duplicates("cut").sort_values(["size", "start"])[["cut", "start", "size", "share"]]
    vectors = {cut: np.concatenate(list(found)) for cut, found in rows.groupby("cut")["outcome"]}
    subjects = {cut: tuple(found.fillna("")) for cut, found in rows.groupby("cut")["subject"]}
    if len(set(subjects.values())) > 1 or len({len(vector) for vector in vectors.values()}) > 1:
        raise InputError("the cuts were not asked the same items, or one of them twice: filter the rows first")
    return cuts.reset_index(drop=True), np.stack([vectors[cut] for cut in cuts["cut"]])


def guessing(rows: pd.DataFrame) -> float:
    """What the better way to guess scores on the items of one task or group: at random, or always naming one choice.

    `rows` are of that task, under any cut and rule and of any model; of several limits the widest counts. Of a group
    the choice is the same for all of its items, and which are right is known as far as a model here chose them. What
    is written is never right by chance.
    """
    asked = [found[found["items"] == found["items"].max()] for _, found in rows.groupby("subject", dropna=False)]
    levels = [0.0, *(level for found in asked for level in found["chance"].dropna().unique())]
    if rows["subject"].isna().all():
        return float(max(levels + list(asked[0]["commonest"].dropna().unique())))
    right = np.concatenate([_right_choices(found) for found in asked])
    return float(max(*levels, np.bincount(right[right >= 0], minlength=1).max() / len(right)))


def _right_choices(rows: pd.DataFrame) -> np.ndarray:
    """The number of the right choice of each item of one task, -1 where no row tells it."""
    if (targets := rows["target"].dropna()).size:
        return targets.iloc[0].astype(int)
    found = np.full(int(rows["items"].iloc[0]), -1)
    for row in rows.dropna(subset=["chosen", "outcome"]).itertuples():
        found[row.outcome == 1] = row.chosen[row.outcome == 1]
    return found


def main_metrics(scores: pd.DataFrame) -> dict[str, str]:
    """The metric that each task is scored by: acc, or what it counts instead."""
    found = {task: list(of.unique()) for task, of in scores.groupby("task")["metric"]}
    return {task: min(of, key=lambda one: (one != "acc", not one.startswith("exact"))) for task, of in found.items()}


def one_rule(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of cuts that a rule chose, one block a size: those of maps of every block are left out."""
    return scores[scores["rule"].notna() & ~scores["rule"].str.startswith("blocks of", na=False)]


# ---- runs -----------------------------------------------------------------------------------------------------------


def by_run(rows: pd.DataFrame) -> dict[tuple, dict[str, dict[str, Vectors]]]:
    """The outcomes of all rows that have some: by what they were asked (RUN), by file, then by cut and subject."""
    found: dict = {}
    names = [*RUN, "path", "cut", "subject"]
    rows = rows[rows["outcome"].notna()].drop_duplicates(names)
    for *values, outcome in zip(*(rows[name] for name in [*names, "outcome"]), strict=True):
        *asked, path, cut, subject = [None if pd.isna(value) else value for value in values]
        found.setdefault(tuple(asked), {}).setdefault(path, {}).setdefault(cut, {})[subject or ""] = outcome
    return found


def joined(of_cut: Vectors, own: Vectors) -> np.ndarray | None:
    """The outcomes of the first items of each subject, as many as `own` has; None where they are not there."""
    parts = [of_cut.get(subject, np.empty(0))[: len(items)] for subject, items in sorted(own.items())]
    return np.concatenate(parts) if sum(map(len, parts)) == sum(map(len, own.values())) else None


def same_items(runs: dict[str, dict[str, Vectors]], own: Vectors, cuts: Sequence[str]) -> list[np.ndarray] | None:
    """The outcomes under some cuts of the items of `own`, which others may have been asked after, of one run.

    Of several runs it is the one with most cuts; None where none holds all of them.
    """
    for run in sorted(runs.values(), key=len, reverse=True):
        found = [joined(run.get(cut, {}), own) for cut in cuts]
        if all(vector is not None for vector in found):
            return found
    return None
