"""Rows of a figure: checked before they are drawn, and told in words for those who can't see it."""

from collections.abc import Collection, Mapping

import pandas as pd

from deeper_layers.errors import InputError

References = Mapping[str, Mapping[str, float | None]]
Tasks = Mapping[str, str] | Collection[str]


def require(rows: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    if missing := [column for column in columns if column not in rows]:
        raise InputError(f"{name} has the columns {list(rows)}; expected {list(columns)}; add {missing}")
    return rows


def accuracy_lines(accuracy: pd.DataFrame, tasks: Tasks, rules: Mapping) -> tuple[dict, dict, pd.DataFrame]:
    """The tasks' names for readers; the rows of each (task, rule), by size; all rows that are drawn.

    Where the rules are several models, the column model says whose a row is.
    """
    columns = ("task", "rule", "size", "start", "fraction", "value", "low", "high", "items", "metric")
    tasks = dict(tasks) if isinstance(tasks, Mapping) else {task: task for task in tasks}
    accuracy = require(accuracy, "accuracy", *columns)
    if not tasks:
        raise InputError(f"tasks is empty; expected some of {sorted(accuracy['task'].unique())}")
    drawn, lines = accuracy[accuracy["task"].isin(tasks) & accuracy["rule"].isin(rules)], {}
    values = drawn[["value", "low", "high"]]
    if (outside := drawn[((values < 0) | (values > 1)).any(axis=1)]).size:
        row = outside.iloc[0].to_dict()
        raise InputError(f"accuracy has the row {row}; expected values in [0, 1]; percentages / 100")
    for task in tasks:
        rows = drawn[drawn["task"] == task]
        metrics, twice = list(rows["metric"].unique()), rows.duplicated(["rule", "size"]).sum()
        if len(metrics) != 1 or twice:
            raise InputError(
                f"accuracy has {len(rows)} rows of task {task!r} with metrics {metrics}, {twice} repeated; "
                f"expected one metric and one row per size under the rules {list(rules)}; keep only those"
            )
        model = rows["model"] if "model" in rows else pd.Series("one", rows.index)
        for rule in rules:
            own = rows["rule"] == rule
            # lines of one model share its sizes; another model has its own, and other fractions for the same sizes
            by_size = rows[model.isin(model[own])].groupby("size")["fraction"]
            if (by_size.nunique() > 1).any():
                raise InputError(
                    f"accuracy has one size at several fractions of the layers for task {task!r}; expected the "
                    "column model to tell models apart; add it"
                )
            fractions = by_size.first()
            line = rows[own].set_index("size").reindex(fractions.index)
            lines[task, rule] = line.assign(fraction=fractions).reset_index()
    return tasks, lines, drawn


def known_levels(references: References, task: str) -> dict[str, float]:
    """The accuracies to compare with that are known."""
    levels = references.get(task, {})
    return {key: levels[key] for key in ("chance", "majority", "unpruned") if pd.notna(levels.get(key))}


def course(rows: pd.DataFrame, x: str, y: str) -> str:
    """The first and the last measured point in words."""
    points = rows[rows[y].notna()]
    if points.empty:
        return "not measured"
    ends = points.iloc[[0, -1]].to_dict("records")
    return " and ".join(f"{row[y]:.2g} at {x} {row[x]:.2g}" for row in ends)


def courses_of(lines: Mapping, tasks: Mapping, rules: Mapping) -> str:
    words = [(tasks[t], rules[r], course(rows, "fraction", "value")) for (t, r), rows in lines.items()]
    return "; ".join(map(", ".join, words))
