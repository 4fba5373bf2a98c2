"""What the figures share: colours and markers by meaning, how rows are split into panels, and texts of points."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from deeper_layers.cuts import describe_layers
from deeper_layers_companion.report import findings
from deeper_layers_companion.report.drawing import GREY, INK, MARKERS, PALETTE
from deeper_layers_companion.report.estimates import AT_FLOOR, interval_columns
from deeper_layers_companion.report.names import (
    FIRST,
    TITLES,
    TOPICS,
    Sentences,
    escape_invisible,
    format_number,
    model_title,
    rule_title,
    sort_models,
    sort_names,
    task_title,
)

AXES = TITLES["axes"]
AT_FLOOR_TEXT = (
    "At floor: the whole model scores no better than guessing, so nothing can be seen of it."
)
TO_THE_LAST = "the block ends at the last layer"
BLUE, RED, GREEN, PINK, YELLOW, SKY, _ = PALETTE
PURPLE = "#AA3377"
FOREST = "#117733"  # Paul Tol's, as distinct
# one colour a meaning on the whole site (site.css has the same): the paper's rules are purple and ink, letters are
# warm, words blue, what is written is green
COLOURS = {
    "similarity": PURPLE,
    "simple": INK,
    "mmlu": RED,
    "lettered_capitals": YELLOW,
    "capitals": BLUE,
}
COLOURS |= {"written_facts": GREEN, "mmlu_continuation": SKY, "gsm8k": FOREST}
COLOURS |= {
    "letters": RED,
    "words": BLUE,
    "written": GREEN,
    "letters, without the question": YELLOW,
    "letters, calibrated": YELLOW,
    "letter, calibrated": YELLOW,
    "words, calibrated": BLUE,
}
# sums: chosen ones are bluish, written ones greenish
COLOURS |= {
    "sums_one_digit": "#6A51C7",
    "sums_two_digits": "#5B7DB1",
    "sums_one_digit_generated": "#999933",
    "sums_two_digits_generated": "#44AA99",
}
COLOURS |= {"not healed": "#A0522D", "healed": "#44AA99"}
FREE = (
    "#6A51C7",
    "#999933",
    "#CC6677",
    "#44AA99",
    "#5B7DB1",
    "#A0522D",
    INK,
)  # mean nothing elsewhere
COLOURS |= dict(zip(FIRST, FREE))
MARKS = {"similarity": "diamond", "simple": "triangle-up"}  # as in the first figure
COLOURS = {task_title(name): colour for name, colour in COLOURS.items()} | {TO_THE_LAST: GREY}


def explain_nothing_drawn(rows: pd.DataFrame, name: str) -> Sentences:
    """The sentence in place of a figure: that nothing was measured, or that the task is at floor."""
    is_at_floor = "no_value_reason" in rows and (rows["no_value_reason"] == AT_FLOOR).any()
    return Sentences([AT_FLOOR_TEXT] if is_at_floor else [], name)


def column_if_several(rows: pd.DataFrame, column: str) -> str | None:
    return column if rows[column].nunique() > 1 else None


def split_panels(
    rows: pd.DataFrame, col: str | None, row: str | None
) -> list[tuple[str, pd.DataFrame]]:
    """The title and the rows of each panel: one for each value of `row` and `col` that has rows."""
    nothing = pd.Series("", rows.index)
    cols = rows[col].astype(str) if col else nothing
    heads = rows[row].astype(str) if row else nothing
    panels = []
    for head in sort_names(heads.unique(), tuple(TOPICS.values())):
        for value in sort_models(cols.unique()):
            selected = rows[(heads == head) & (cols == value)]
            if selected.empty:
                continue
            title = escape_invisible(model_title(value) if col == "model" else value)
            if "no_value_reason" in rows and (selected["no_value_reason"] == AT_FLOOR).all():
                title += ", only guesses"
            if row:
                title = f"{escape_invisible(rule_title(head))}\n{title}"
            panels.append((title, selected))
    return panels


def select_overlay(over: pd.DataFrame, panel_rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `over` for a panel: those of its model and text, and of block sizes that the panel has."""
    if "model" not in over:
        return over
    is_of = over["model"] == panel_rows["model"].iloc[0]
    if "corpus" in panel_rows and "corpus" in over:
        is_of &= over["corpus"] == panel_rows["corpus"].iloc[0]
    return over[is_of & over["size"].isin(panel_rows["size"])]


def choose_looks(names: Iterable[str]) -> dict[str, dict]:
    """A colour and a marker for each name: its fixed ones if it has them, else those that no other name here has."""
    names = list(names)
    free = [colour for colour in FREE if colour not in map(COLOURS.get, names)] or FREE
    colours = (
        dict(zip([name for name in names if name not in COLOURS], itertools.cycle(free))) | COLOURS
    )
    free_markers = [marker for marker in MARKERS if marker not in map(MARKS.get, names)]
    others = [name for name in names if name not in MARKS]
    markers = dict(zip(others, itertools.cycle(free_markers))) | MARKS
    return {name: {"colour": colours[name], "marker": markers[name]} for name in names}


def find_levels(panel_rows: pd.DataFrame, y: str) -> dict[str, float]:
    """The heights of guessing and of the whole model, by label, if all lines of a panel share them."""
    if y == "kept":
        return {"the whole model": 1.0, "guessing": 0.0}
    names = {"guessing": "guessing", "whole": "the whole model"} if y == "value" else {}
    levels = {
        label: panel_rows[name].dropna().round(4).unique()
        for name, label in names.items()
        if name in panel_rows
    }
    return {label: float(values[0]) for label, values in levels.items() if len(values) == 1}


def find_range(values: Sequence[Iterable], *, zero: bool = False) -> list[float]:
    """A range that holds all values, with some room; it starts at 0 if `zero`."""
    numbers = np.concatenate([np.asarray(part, dtype=float) for part in values])
    numbers = numbers[np.isfinite(numbers)]
    low = float(numbers.min())
    high = float(numbers.max())
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    return [0.0 if zero and low >= 0 else low - room, high + room]


def write_hover_texts(labels: str | pd.Series, line: pd.DataFrame, x: str, y: str) -> list[str]:
    """The hover text of each row of a line: its label, the cut, `x`, `y` with its interval, the number of items."""
    low, high = interval_columns(y)
    texts = []
    if isinstance(labels, str):
        labels = [labels] * len(line)
    for label, row in zip(labels, line.to_dict("records")):
        lines = [label]
        size = row.get("size")
        start = row.get("start")
        if pd.notna(start):
            dropped = range(int(start), int(start + size))
            lines.append(f"{describe_layers(dropped)} dropped" if dropped else "the whole model")
        elif pd.notna(size) and size:
            lines.append(f"{size} layers dropped")
        if x and x not in ("size", "share", "start", "start_share"):
            lines.append(f"{x} {format_cell(row[x])}")
        lines.append(
            row.get("words") or format_number(row[y], row.get(low), row.get(high), digits=3)
        )
        if "items" in row:
            lines.append(f"{row['items']} items")
        texts.append("\n".join(lines))
    return texts


def format_cell(value) -> str:
    """The text of a cell: a rounded number, the title of a rule, or "" for a missing value."""
    if isinstance(value, str):
        return rule_title(value) if value in ("similarity", "simple") else value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def write_alt_text(
    panels: list[tuple[str, pd.DataFrame]], y: str, hue: str | None = None, x: str = ""
) -> str:
    """The panels in words: the course of each line by `hue`, else the least and the most value of a map."""
    parts = []
    for title, panel_rows in panels:
        lines = [("", panel_rows)]
        if hue:
            lines = panel_rows.groupby(panel_rows[hue].astype(str), sort=False)
        for label, line in lines:
            if hue:
                course = findings.describe_shape(
                    *line.sort_values(x)[[x, y]].astype(float).to_numpy().T
                )
            else:  # of a map, or of very many lines
                ends = line.sort_values(y).iloc[[0, -1]].to_dict("records")
                place = x or "start"
                course = " to ".join(f"{row[y]:.2g} at {place} {row[place]}" for row in ends)
            parts.append(
                ", ".join(filter(None, [title.replace("\n", ", "), rule_title(label), course]))
            )
    return "; ".join(parts) + "."
