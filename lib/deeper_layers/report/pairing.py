"""Which rows of the table of all results belong together: of one measurement, and outcomes of the same items.

A measurement is what was asked of one model and task under the cuts of one rule. Letters in shapes as in estimates.py.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers.report.estimates import are_shares
from deeper_layers.report.names import topic

PLACE = ["model", "task", "rule"]
HOW = ["dtype", "shots", "order", "limit", "length", "engine"]
RUN = ["model", "dtype", "bits", "task", "shots", "length", "metric"]
Vectors = dict[str, np.ndarray]  # outcomes by subject, "" where there is none


class Measured(NamedTuple):
    """One measurement of one model, task and rule."""

    place: tuple  # its model, task, rule and what else tells it apart
    # a row for each cut, by size and start, with all of `place`, topic, layers, metric, items, guessing (its score, or
    # the loss of it) and whole (the score of the whole model)
    cuts: pd.DataFrame
    outcomes: Float[np.ndarray, "C I"]  # what came out of each cut
    rows: pd.DataFrame  # of the table of all results
    layers: int
    guessing: float

    @property
    def has_whole(self) -> bool:
        """Whether items are right or wrong, and the whole model was asked them too."""
        return self.cuts["size"].iloc[0] == 0 and are_shares(self.outcomes)


def measurements(scores: pd.DataFrame, also: Sequence[str] = (), of: pd.DataFrame | None = None) -> Iterator[Measured]:
    """Of each model, task and rule, and of each value of the columns `also`, the one measurement that counts.

    What guessing scores is looked up in `of`, where `scores` are only some of the rows that tell what is right.
    """
    every, levels = scores if of is None else of, {}
    best = best_measured(scores, also)
    for place, rows in best[best["outcome"].notna()].groupby([*PLACE, *also], dropna=False, sort=False):
        cuts, outcomes = paired(rows)
        if cuts["size"].isna().any():
            continue
        task, metric, limit, layers = asked = tuple(rows[["task", "metric", "limit", "layers"]].iloc[0])
        if metric == "loss":
            levels[asked] = float(rows["chance"].max())
        elif asked not in levels:  # it is the same for every rule
            alike = every[(every["task"] == task) & (every["metric"] == metric)]
            levels[asked] = guessing(alike if pd.isna(limit) else alike[alike["limit"].eq(limit).fillna(False)])
        known = dict(zip([*PLACE, *also], place, strict=True)) | {"topic": topic(task), "layers": layers}
        known |= {"metric": metric, "items": outcomes.shape[1], "guessing": levels[asked]}
        whole = outcomes[0].mean() if cuts["size"].iloc[0] == 0 else np.nan
        yield Measured(place, cuts.assign(**known, whole=whole), outcomes, rows, int(layers), levels[asked])


def best_measured(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of `results.scores` that a curve is drawn of: of each model, task, rule and value of `also` the one
    measurement with most items, then most cuts.

    By the metric that the task is scored by; healed or rounded only where `also` names "healing" or "bits".
    """
    rows = by_main_metric(scores[(scores["repeat"] == 0) & scores[[*{"healing", "bits"} - {*also}]].isna().all(axis=1)])
    place, how = [*PLACE, *also], [name for name in HOW if name not in also]
    extent = rows.groupby([*place, *how], dropna=False).agg(cuts=("cut", "nunique"), items=("items", "sum"))
    extent["items"] /= extent["cuts"]
    best = extent.sort_values(["items", "cuts"]).reset_index().drop_duplicates(place, keep="last")
    return rows.merge(best[[*place, *how]], on=[*place, *how])


def paired(rows: pd.DataFrame) -> tuple[pd.DataFrame, Float[np.ndarray, "C I"]]:
    """The cuts of one measurement, by size and start, and what came out item by item, subjects by name.

    All cuts are of the same items, and none is there twice: filter the rows first.
    """
    rows = rows.sort_values("subject", na_position="first", kind="stable")
    cuts = rows.drop_duplicates("cut").sort_values(["size", "start"])[["cut", "start", "size", "share"]]
    vectors = {cut: np.concatenate(list(found)) for cut, found in rows.groupby("cut")["outcome"]}
    return cuts.reset_index(drop=True), np.stack([vectors[cut] for cut in cuts["cut"]])


def guessing(rows: pd.DataFrame) -> float:
    """What the better way to guess scores on the items of one task or group: at random, or always naming one choice.

    `rows` are of that task, of any model and cut; of several limits the widest counts. Which choices of a group are
    right is known as far as a model here chose them. What is written is never right by chance.
    """
    widest = rows[rows["items"] == rows.groupby("subject", dropna=False)["items"].transform("max")]
    commonest = widest["commonest"].max()
    if rows["subject"].notna().any():
        right = np.concatenate([_right_choices(of_subject) for _, of_subject in widest.groupby("subject")])
        commonest = np.bincount(right[right >= 0], minlength=1).max() / len(right)
    return float(np.nanmax([0.0, widest["chance"].max(), commonest]))


def _right_choices(rows: pd.DataFrame) -> np.ndarray:
    """The number of the right choice of each item of one task, -1 where no row tells it."""
    if (targets := rows["target"].dropna()).size:
        return targets.iloc[0].astype(int)
    found = np.full(int(rows["items"].iloc[0]), -1)
    for row in rows.dropna(subset=["chosen", "outcome"]).itertuples():
        found[row.outcome == 1] = row.chosen[row.outcome == 1]
    return found


def by_main_metric(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows by the metric that each task is scored by: acc, or what it counts instead."""
    found = {task: list(of.unique()) for task, of in scores.groupby("task")["metric"]}
    main = {task: min(of, key=lambda one: (one != "acc", not one.startswith("exact"))) for task, of in found.items()}
    return scores[scores["metric"] == scores["task"].map(main).astype(str)]


def one_rule(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of cuts that a rule chose, one block a size: those of maps of every block are left out."""
    return scores[scores["rule"].notna() & ~of_maps(scores)]


def of_maps(scores: pd.DataFrame) -> pd.Series:
    """Whether rows are of every block of a size."""
    return scores["rule"].str.startswith("blocks of", na=False)


# ---- some models of the same items ----------------------------------------------------------------------------------


def with_runs(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows with outcomes, and the number of their run: those alike in RUN are of the same items."""
    found = scores[scores["outcome"].notna()]
    return found.assign(run=found.groupby(RUN, dropna=False).ngroup())


def vectors(rows: pd.DataFrame) -> dict[str, Vectors]:
    """The outcomes of rows of one run, by cut and subject."""
    subjects = rows[::-1].assign(subject=rows["subject"].fillna(""))  # of two the first one counts
    return {cut: dict(zip(own["subject"], own["outcome"])) for cut, own in subjects.groupby("cut", sort=False)}


def asked_alike(run: dict[str, Vectors], cuts: Sequence[str], own: Vectors) -> list[Float[np.ndarray, " I"]]:
    """The outcomes under some cuts of a run of the items of `own`: of each subject the first ones, as others may have
    been asked after them; nothing where some are not there."""
    nothing, items = np.empty(0), sum(map(len, own.values()))
    found = [
        np.concatenate([run.get(cut, {}).get(subject, nothing)[: len(own[subject])] for subject in sorted(own)])
        for cut in cuts
    ]
    return found if all(len(one) == items for one in found) else []


# ---- tables ---------------------------------------------------------------------------------------------------------


def table_of(names: Sequence[str], parts: Iterable[pd.DataFrame | dict]) -> pd.DataFrame:
    """Rows, or tables of them, below each other, with columns of these names, also where there is none."""
    found: list = list(parts)
    if found and isinstance(found[0], pd.DataFrame):
        return pd.concat(found, ignore_index=True)[list(names)]
    return pd.DataFrame(found, columns=list(names))


def gives(names: str) -> Callable[[Callable[..., Iterable]], Callable[..., pd.DataFrame]]:
    """What a function yields, rows or tables of them, becomes one table with columns of these names."""

    def as_one_table(function: Callable[..., Iterable]) -> Callable[..., pd.DataFrame]:
        return functools.wraps(function)(lambda *of, **named: table_of(names.split(), function(*of, **named)))

    return as_one_table
