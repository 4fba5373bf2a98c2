"""Find rows of the table of all results that belong together: one measurement, and outcomes of the same items.

A measurement is one model on one task under the cuts of one rule. Letters in shapes as in estimates.py.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from deeper_layers_companion.report.estimates import are_shares
from deeper_layers_companion.report.names import task_title

PLACE = ["model", "task", "rule"]
PROMPT = ["dtype", "shots", "order", "limit", "drawn", "length", "engine"]
RUN_COLUMNS = ["model", "dtype", "bits", "task", "shots", "drawn", "length", "metric"]
Vectors = dict[str, np.ndarray]  # outcomes by subject; "" for a task without subjects


class Measurement(NamedTuple):
    """One measurement of one model, task and rule."""

    place: tuple  # its model, task, rule, and values of further columns
    # a row for each cut, by size and start, with all of `place`, topic, layers, metric, items, guessing (the score or
    # loss of guessing) and whole (the score of the whole model)
    cuts: pd.DataFrame
    outcomes: Float[np.ndarray, "C I"]
    rows: pd.DataFrame  # its rows of the table of all results
    layers: int
    guessing: float

    @property
    def has_whole(self) -> bool:
        """Whether items are right or wrong, and the whole model was measured, too."""
        return bool(self.cuts["size"].iloc[0] == 0) and are_shares(self.outcomes)


def find_measurements(
    scores: pd.DataFrame, also: Sequence[str] = (), all_scores: pd.DataFrame | None = None
) -> Iterator[Measurement]:
    """Yield the measurement that counts for each model, task and rule, and each value of the columns `also`.
    The score of guessing is computed from `all_scores`, or else `scores`: more rows know more right answers."""
    all_rows = scores if all_scores is None else all_scores
    levels = {}
    best = select_best(scores, also)
    for place, rows in best[best["outcome"].notna()].groupby(
        [*PLACE, *also], dropna=False, sort=False
    ):
        cuts, outcomes = pair_outcomes(rows)
        if cuts["size"].isna().any():
            continue
        first = rows.iloc[0]
        task, metric, _, _, layers = question = tuple(
            first[["task", "metric", "limit", "drawn", "layers"]]
        )
        if metric == "loss":
            levels[question] = float(rows["chance"].max())
        elif question not in levels:  # every rule has the same
            pool = all_rows[(all_rows["task"] == task) & (all_rows["metric"] == metric)]
            levels[question] = score_guessing(select_alike(pool, first))
        shared = dict(zip([*PLACE, *also], place, strict=True)) | {
            "topic": task_title(task),
            "layers": layers,
        }
        shared |= {"metric": metric, "items": outcomes.shape[1], "guessing": levels[question]}
        whole = outcomes[0].mean() if cuts["size"].iloc[0] == 0 else np.nan
        yield Measurement(
            place, cuts.assign(**shared, whole=whole), outcomes, rows, int(layers), levels[question]
        )


def select_best(scores: pd.DataFrame, also: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of `results.scores` for curves: for each model, task, rule and value of `also` those of the measurement
    with most items, then most cuts. Only the main metric; healed or rounded models only if `also` names "healing" or
    "bits"."""
    rows = pick_metric(
        scores[
            (scores["repeat"] == 0) & scores[[*{"healing", "bits"} - {*also}]].isna().all(axis=1)
        ]
    )
    place = [*PLACE, *also]
    prompt = [name for name in PROMPT if name not in also]
    extent = rows.groupby([*place, *prompt], dropna=False).agg(
        cuts=("cut", "nunique"), items=("items", "sum")
    )
    extent["items"] /= extent["cuts"]
    best = extent.sort_values(["items", "cuts"]).reset_index().drop_duplicates(place, keep="last")
    return rows.merge(best[[*place, *prompt]], on=[*place, *prompt])


def pair_outcomes(rows: pd.DataFrame) -> tuple[pd.DataFrame, Shaped[np.ndarray, "C I ..."]]:
    """The cuts of one measurement, by size and start, and their outcomes item by item, subjects by name. All cuts must
    have the same items, and each cut one row for each subject: filter the rows first."""
    cuts = rows.drop_duplicates("cut").sort_values(["size", "start"])[
        ["cut", "start", "size", "share"]
    ]
    outcomes = get_outcomes(rows)
    vectors = align(outcomes, list(cuts["cut"]), outcomes[cuts["cut"].iloc[0]])
    return cuts.reset_index(drop=True), np.stack(vectors)


def select_alike(rows: pd.DataFrame, like: pd.Series | dict) -> pd.DataFrame:
    """The rows whose items have the order of those of the row `like`, and its limit, or any if it has none."""
    is_alike = equal(rows["drawn"], like["drawn"])
    return rows[
        is_alike if pd.isna(like["limit"]) else is_alike & equal(rows["limit"], like["limit"])
    ]


def equal(column: pd.Series, value) -> pd.Series:
    """Where a column has a value; a missing one equals those that are missing."""
    return column.isna() if pd.isna(value) else column.eq(value).fillna(False)


def score_guessing(rows: pd.DataFrame) -> float:
    """The score of the better way to guess on one task or group: at random, or always the same choice.

    `rows` are those of the task for any models and cuts; of several limits the largest counts. A right choice of a
    group is known where a model chose it; where asking may have stopped early, the rows have the levels of all of its
    items. Written answers are never right by chance.
    """
    widest = rows[rows["items"] == rows.groupby("subject", dropna=False)["items"].transform("max")]
    commonest = widest["commonest"].max()
    if (rows["subject"].notna() & rows["drawn"].isna()).any():
        right = np.concatenate(
            [_find_right_choices(of_subject) for _, of_subject in widest.groupby("subject")]
        )
        commonest = np.bincount(right[right >= 0], minlength=1).max() / len(right)
    return float(np.nanmax([0.0, widest["chance"].max(), commonest]))


def _find_right_choices(rows: pd.DataFrame) -> np.ndarray:
    """The index of the right choice of each item of one task, -1 where it is not known."""
    if (targets := rows["target"].dropna()).size:
        return targets.iloc[0].astype(int)
    right = np.full(int(rows["items"].iloc[0]), -1)
    for chosen, outcome in rows[["chosen", "outcome"]].dropna().itertuples(index=False):
        right[outcome == 1] = chosen[outcome == 1]
    return right


def pick_metric(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows with the main metric of each task: acc, or another one if the task has no acc."""
    metrics = {task: list(names.unique()) for task, names in scores.groupby("task")["metric"]}
    main = {
        task: min(names, key=lambda m: (m != "acc", not m.startswith("exact")))
        for task, names in metrics.items()
    }
    return scores[scores["metric"] == scores["task"].map(main).astype(str)]


def pick_rules(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows whose cut a rule chose, one for each size, without the maps of every block."""
    return scores[scores["rule"].notna() & ~is_map_row(scores)]


def is_map_row(scores: pd.DataFrame) -> pd.Series:
    """Whether each row belongs to a map of every block of a size."""
    return scores["rule"].str.startswith("blocks of", na=False)


def drop_third_study(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of the third registered study, which has a page of its own: its tasks, its maps in the
    place of the last layers, and its losses on C4, one file with the last layers' cuts among others."""
    is_of_cuts = (scores["rule"] == "reverse") & (scores["limit"] == 128).fillna(False)
    files = scores.loc[
        is_of_cuts & (scores["task"] == "c4") & (scores["size"] > 0), "path"
    ].unique()
    is_loss = scores["path"].isin(files) & (scores["task"] == "c4")
    is_task = scores["task"].str.startswith("answers_")
    return scores[~is_task & ~is_loss & (scores["changed"] != "mapped")].reset_index(drop=True)


# ---- models on the same items ---------------------------------------------------------------------------------------


def add_runs(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows with outcomes, and the number of their run: rows that agree in RUN_COLUMNS have the same items."""
    rows = scores[scores["outcome"].notna()]
    return rows.assign(run=rows.groupby(RUN_COLUMNS, dropna=False).ngroup())


def get_outcomes(rows: pd.DataFrame) -> dict[str, Vectors]:
    """The outcomes of the rows of one run, by cut and subject; of two rows the first counts."""
    outcomes: dict[str, Vectors] = {}
    for cut, subject, outcome in zip(rows["cut"], rows["subject"].fillna(""), rows["outcome"]):
        outcomes.setdefault(cut, {}).setdefault(subject, outcome)
    return outcomes


def align(
    run: dict[str, Vectors], cuts: Sequence[str], wanted: Vectors
) -> list[Shaped[np.ndarray, "I ..."]]:
    """The outcomes of some cuts of a run on the items of `wanted`: the first ones of each subject, as a run may have
    more items; [] if the run lacks some."""
    nothing = np.empty(0)
    items = sum(map(len, wanted.values()))
    outcomes = []
    for cut in cuts:
        held = run.get(cut, {})
        parts = [held.get(subject, nothing)[: len(wanted[subject])] for subject in sorted(wanted)]
        outcomes.append(np.concatenate(parts))
    return outcomes if all(len(vector) == items for vector in outcomes) else []


# ---- tables ---------------------------------------------------------------------------------------------------------


def make_table(names: Sequence[str], parts: Iterable[pd.DataFrame | dict]) -> pd.DataFrame:
    """Rows, or tables, below each other, with columns of these names, even without any rows."""
    rows: list = list(parts)
    if rows and isinstance(rows[0], pd.DataFrame):
        return pd.concat(rows, ignore_index=True)[list(names)]
    return pd.DataFrame(rows, columns=list(names))


def returns(names: str) -> Callable[[Callable[..., Iterable]], Callable[..., pd.DataFrame]]:
    """A decorator: the rows or tables that a function yields are returned as one table with these columns."""

    def decorate(function: Callable[..., Iterable]) -> Callable[..., pd.DataFrame]:
        return functools.wraps(function)(
            lambda *args, **kwargs: make_table(names.split(), function(*args, **kwargs))
        )

    return decorate
