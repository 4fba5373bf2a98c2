"""Which rows of the table of all results belong together: of one measurement, and outcomes of the same items."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from deeper_layers.report.estimates import Estimate, accuracy, best_measured, guessing, means, paired

PLACE = ["model", "task", "rule"]
RUN = ["model", "dtype", "bits", "task", "shots", "length", "metric"]  # rows alike in these are of the same items


class Measured(NamedTuple):
    """One measurement of one model, task and rule.

    `place` has its model, task, rule and what else tells it apart; `cuts` are by size and start; `outcomes` [C, I] is
    what came out of each; `guessing` what guessing scores, or the loss of it; `rows` are those of the table.
    """

    place: dict
    cuts: pd.DataFrame
    outcomes: np.ndarray
    guessing: float
    rows: pd.DataFrame

    @property
    def layers(self) -> int:
        return int(self.rows["layers"].iloc[0])


def measurements(scores: pd.DataFrame, also: Sequence[str] = (), of: pd.DataFrame | None = None) -> Iterator[Measured]:
    """Of each model, task, rule and whatever else tells curves apart the one measurement that counts.

    What guessing scores is looked up in `of`, where `scores` are only some of the rows that tell which choices are
    right.
    """
    levels: dict[tuple[str, str, str], float] = {}
    for place, found in rows_measured(scores, also):
        cuts, outcomes = paired(found)
        if cuts["size"].isna().any():
            continue
        is_loss = found["metric"].iloc[0] == "loss"
        asked = (place["task"], found["metric"].iloc[0], str(found["limit"].iloc[0]))
        if not is_loss and asked not in levels:  # it is the same for every model and rule
            levels[asked] = guessing_of(scores if of is None else of, place["task"], found)
        level = float(found["chance"].max()) if is_loss else levels[asked]
        yield Measured(place, cuts, outcomes, level, found)


def records(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def rows_measured(scores: pd.DataFrame, also: Sequence[str] = ()) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The rows of the one measurement that counts of each model, task, rule and of whatever tells curves apart."""
    best = best_measured(scores, also) if len(scores) else scores
    best = best[best["outcome"].notna()]
    for place, found in best.groupby([*PLACE, *also], dropna=False, sort=False):
        yield dict(zip([*PLACE, *also], place, strict=True)), found


def guessing_of(scores: pd.DataFrame, task: str, own: pd.DataFrame) -> float:
    """What guessing scores on the items of a measurement, of which other rows may tell which choices are right."""
    own_limit = own["limit"].iloc[0]
    alike = scores[(scores["task"] == task) & (scores["metric"] == own["metric"].iloc[0])]
    same = alike[alike["limit"].eq(own_limit).fillna(False)] if not pd.isna(own_limit) else alike
    return guessing(same if len(same) else own)


def are_shares(outcomes: np.ndarray) -> bool:
    """Whether items are right or wrong: losses, parts of an item that add up, and other scores are not."""
    return bool(np.isin(outcomes, (0, 1)).all())


def each_mean(outcomes: np.ndarray | Sequence[np.ndarray]) -> list[Estimate]:
    """The mean of each row of outcomes, [C, I]: Wilson's interval of an accuracy, else one that is drawn."""
    outcomes = np.asarray(outcomes, dtype=float)
    return list(map(accuracy, outcomes)) if are_shares(outcomes) else drawn_means(outcomes)


def changes(whole: np.ndarray, others: np.ndarray | Sequence[np.ndarray]) -> list[Estimate]:
    """The mean of each less that of the whole model, of the same items."""
    return drawn_means(np.asarray(others, dtype=float) - whole)


def drawn_means(table: np.ndarray) -> list[Estimate]:
    """The mean of each row, [C, I], with the interval of its draws."""
    values, draws = means(table)
    return [Estimate.of(value, drawn) for value, drawn in zip(values, draws.T, strict=True)]


Run = dict[str, dict[str, dict[str, np.ndarray]]]  # outcomes of what was asked alike by run, cut and subject


def of_key(values: Sequence) -> tuple:
    return tuple(None if pd.isna(value) else value for value in values)


def runs_of(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of one run: those of one file, or of the files of a group's subjects asked together."""
    path = rows["path"].fillna("")
    cuts = path.map(rows["cut"].groupby(path).nunique()).astype(str)
    kind = pd.Series([one.rpartition("/")[2].partition("-")[0] for one in path], rows.index, dtype="str")
    together = kind + cuts
    for name in ("limit", "order"):
        together = together + " " + rows[name].fillna(-1).astype(str)
    return path.where(rows["subject"].isna(), together)


def by_run(rows: pd.DataFrame) -> dict[tuple, Run]:
    """The outcomes of all rows that have some, by what they were asked (RUN), then by run."""
    found: dict[tuple, Run] = {}
    rows = rows[rows["outcome"].notna()]
    rows = rows.assign(run=runs_of(rows)).drop_duplicates([*RUN, "run", "cut", "subject"])
    columns = [rows[name] for name in (*RUN, "run", "cut", "subject", "outcome")]
    for *asked, run, cut, subject, outcome in zip(*columns, strict=True):
        of_run = found.setdefault(of_key(asked), {}).setdefault(run, {})
        of_run.setdefault(cut, {})["" if pd.isna(subject) else subject] = outcome
    return found


def joined(of_cut: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> np.ndarray | None:
    """The outcomes of the first items of each subject, as many as `own` has; None where they are not there."""
    parts = [of_cut[subject][: len(own[subject])] for subject in sorted(own) if subject in of_cut]
    lengths = [len(own[subject]) for subject in sorted(own)]
    return np.concatenate(parts) if [len(part) for part in parts] == lengths else None


def same_items(run: Run, own: dict[str, np.ndarray], cuts: Sequence[str]) -> list[np.ndarray] | None:
    """The outcomes under some cuts of the items of `own`, which others may have been asked after, of one run.

    Of several runs it is the one with most cuts; None where none holds all of them.
    """
    for of_file in sorted(run.values(), key=len, reverse=True):
        found = [joined(of_file.get(cut, {}), own) for cut in cuts]
        if all(vector is not None for vector in found):
            return found
    return None
