"""Figures from tidy frames. Each has a panel for each model; a notebook shows it with its data and its picture.

A figure's `name` names its files and its place on a page: a-z, 0-9 and hyphens. A frame without rows gives a sentence
instead. Intervals are 95%. A rule, a topic and a model have the same colour in every figure.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap, to_hex

from deeper_layers.cuts import describe_layers
from deeper_layers_companion.report import findings, paper
from deeper_layers_companion.report.drawing import GREY, HEAT, INK, LINES, MARKERS, PALETTE, Figure, make_csv_link
from deeper_layers_companion.report.estimates import AT_FLOOR, interval_columns
from deeper_layers_companion.report.names import (
    FIRST,
    TITLES,
    TOPICS,
    Sentences,
    as_html,
    as_table,
    escape_invisible,
    format_number,
    model_title,
    rule_title,
    sort_names,
    task_title,
)
from deeper_layers_companion.report.statistics import nearest as find_nearest
from deeper_layers_companion.report.statistics import select_distances

AXES = TITLES["axes"]
PERCENT = ("share", "depth", "start_share")
AT_FLOOR_TEXT = "At floor: the whole model scores no better than guessing, so nothing can be seen of it."
NEAREST = "l*(n), the most similar block"
TO_THE_LAST = "the block ends at the last layer"
SIZES = ListedColormap(HEAT(np.linspace(0.2, 0.88, 256)), name="sizes")  # the ends vanish on a black or white page
MARKS = {"marker": "circle", "size": 3}, {"marker": "square", "size": 5, "filled": False}  # on a map
BLUE, RED, GREEN, PINK, YELLOW, SKY, _ = PALETTE
PURPLE, FOREST = "#AA3377", "#117733"  # Paul Tol's, as distinct
# one colour a meaning on the whole site (site.css has the same): the paper's rules are purple and ink, letters are
# warm, words blue, what is written is green
COLOURS = {"similarity": PURPLE, "simple": INK, "mmlu": RED, "lettered_capitals": YELLOW, "capitals": BLUE}
COLOURS |= {"written_facts": GREEN, "mmlu_continuation": SKY, "gsm8k": FOREST}
COLOURS |= {"letters": RED, "words": BLUE, "written": GREEN, "letters, without the question": YELLOW}
COLOURS |= {"not healed": "#A0522D", "healed": "#44AA99"}
FREE = ("#6A51C7", "#999933", "#CC6677", "#44AA99", "#5B7DB1", "#A0522D", INK)  # mean nothing elsewhere
COLOURS |= dict(zip(FIRST, FREE))
COLOURS = {task_title(name): colour for name, colour in COLOURS.items()} | {TO_THE_LAST: GREY}


def curves(
    rows: pd.DataFrame,
    *,
    x: str = "share",
    y: str = "value",
    hue: str = "rule",
    stroke: str | None = None,
    apart: str | None = None,
    shade: str | None = None,
    col: str | None = "model",
    row: str | None = "topic",
    over: pd.DataFrame | None = None,
    title: str = "",
    name: str = "curves",
    caption: str = "",
    columns: int = 2,
    joined: bool = True,
):
    """Lines over bands of their intervals, a panel for each `col` and `row`, with lines for guessing and for the whole
    model. `y` is "value", "kept" or any column of numbers, with its interval in `interval_columns(y)`.

    The colour stands for `hue`, or the number `shade`, the stroke for `stroke`; `apart` separates lines that look
    alike. `over` are further lines with columns `x`, `y` and label: in ink for the model of a panel, or thin ones
    without a column model. At most `columns` panels stand beside each other. Not `joined` are dots without lines.
    """
    all_rows, rows = rows, rows[np.isfinite(rows[y].astype(float)) & rows[x].notna()]
    if rows.empty:
        return explain_nothing_drawn(all_rows, name)
    panels, (low, high) = split_panels(rows, col, row), interval_columns(y)
    title, along = title or AXES.get(y, y), AXES.get(x, x)
    picture = Figure(name, along, title, [head for head, _ in panels], columns=min(columns, len(panels)))
    scale = picture.add_scale(AXES.get(shade, shade), SIZES, (rows[shade].min(), rows[shade].max())) if shade else None
    strokes = dict(zip(rows[stroke].unique(), itertools.cycle(LINES))) if stroke else {}
    over = pd.DataFrame(columns=["label", x, y]) if over is None else over
    hues, top = rows[hue].astype(str).unique(), min(1.03, 1.1 * rows[y].astype(float).max())
    looks = choose_looks(hues)
    keys = [(key, looks[key] | ({} if joined else {"line": None})) for key in hues] * (
        not shade
    )  # the legend: colours, then strokes
    keys += [(key, {"colour": INK, "line": strokes[key]}) for key in strokes] * (len(strokes) > 1)
    for value, look in keys:
        picture.panels[0].draw_line([], [], **look, label=rule_title(str(value)))
    for panel, (_, part) in zip(picture.panels, panels):
        levels, overlay = find_levels(part, y), select_overlay(over, part)
        across = find_range([part[x], overlay[x]], zero=x in AXES)
        heights = find_range([*(part[end] for end in (y, low, high) if end in part), [*levels.values()], overlay[y]])
        heights = (
            [-0.5, 1.3] if y == "kept" else [0.0, top] if levels and heights[1] < 1.1 and x in PERCENT else heights
        )
        panel.set_ranges(across, heights, "x" * (x in PERCENT) + "y" * (y in PERCENT))
        for label, height in levels.items():
            line = "dot" if label == "guessing" else "dash"
            panel.draw_line(across, [height] * 2, colour=GREY, label=label, line=line, width=1)
        for _, line in part.groupby([by for by in (hue, stroke, apart) if by], sort=False, dropna=False):
            line, first = line.sort_values(x), line.iloc[0]
            label = rule_title(str(first[hue]))
            look = looks[str(first[hue])] | {"label": label}
            if stroke:
                look["line"], label = strokes[first[stroke]], f"{label}, {rule_title(str(first[stroke]))}"
            look |= {} if joined else {"line": None}
            if scale:
                look = {"width": 1, "colour": to_hex(scale.to_rgba(first[shade]))}
            if low in line:
                ends = (line[end].astype(float).clip(*heights) for end in (low, high))
                panel.draw_band(line[x], *ends, colour=look["colour"])
            text = "\n".join([label, *(line[apart].unique().astype(str) if apart else [])])
            panel.draw_line(line[x], line[y], **look, hover=write_hover_texts(text, line, x, y), size=3)
        for label, line in overlay.groupby("label", sort=False):
            look = {"colour": INK, "width": 2, "marker": "circle", "size": 3}
            look = look if "model" in line else {"colour": GREY, "width": 0.8}
            panel.draw_line(line[x], line[y], **look, label=label, hover=write_hover_texts(label, line, x, y))
        for row, words in _find_notes(part, x, y, hue):
            panel.annotate(row[x], row[y], words)
    text = " Bands: 95%." if low in rows else ""
    if "no_value_reason" in rows and (rows["no_value_reason"] == AT_FLOOR).all():
        caption = caption or "These whole models only guess, so their curves tell nothing of layers."
    caption = caption or (findings.state_half_gone(rows) if hue == "rule" and y == "value" else "")
    caption = caption or (findings.state_kept(rows, hue) if y == "kept" else "")
    caption = caption or f"{title}. {findings.state_courses(rows, x, y, hue)}"
    return picture.finish(rows, caption + text, write_alt_text(panels, y, None if scale else hue, x))


def _find_notes(part: pd.DataFrame, x: str, y: str, hue: str) -> list[tuple[pd.Series, str]]:
    """What happens in a panel at a row, in words: half gone, or back, under a rule; back without the last block."""
    if hue == "rule" and x in ("share", "size") and y in ("value", "kept"):
        similar, simple = (part[part["rule"] == rule] for rule in ("similarity", "simple"))
        return findings.find_events(similar) + [event for event in findings.find_events(simple) if "back" in event[1]]
    if hue == "topic" and x in ("share", "size") and y == "kept":
        falls = [event for _, line in part.groupby(hue, sort=False) for event in findings.find_events(line)[:1]]
        return sorted(falls, key=lambda event: event[0]["size"])[:1]
    if x == "middle" and y == "kept":
        found = [findings.find_return(line) for _, line in part.groupby(hue, sort=False)]
        events = [event for events in found for event in events]
        return [(events[0][0], f"back: {' and '.join(words for _, words in events)}")] if events else []
    return []


def distance_curves(distances: pd.DataFrame):
    """Angular distance against first layer, one line a block size, l*(n) in ink (paper, figure 1c; equation 7)."""
    caption = (
        "Angular distance between what enters and what leaves each block. The line in ink joins the most similar block "
        "of each size among those that keep the last layer; the right end of each line is the block that holds it."
    )
    rows, over = select_distances(distances), find_nearest(distances).assign(label=NEAREST)
    caption = f"{findings.state_nearest(over)} {caption}"
    look = {"hue": "size", "shade": "size", "row": column_if_several(rows, "corpus"), "over": over}
    return curves(rows, x="start", y="distance", **look, name="distance-curves", caption=caption)


def best_starts(nearest: pd.DataFrame):
    """The start of the most similar block against its size, as shares of all layers, with the authors' starts."""
    rows = nearest.assign(start_share=nearest["start"] / nearest["layers"])
    last = pd.DataFrame({"label": TO_THE_LAST, "share": [0, 1], "start_share": [1, 0]})
    authors = paper.authors_starts()
    over = pd.concat([last, authors.drop(columns="model")])
    look = {"hue": "model", "col": None, "row": None}
    caption = f"{findings.state_starts(rows, authors)} First layer against size, as shares of all layers."
    return curves(rows, y="start_share", **look, over=over, name="best-starts", caption=caption)


def heat_maps(distances: pd.DataFrame):
    """Maps of distances over first layer and block size, each row rescaled to 0 to 1, l*(n) marked (figure 4)."""
    rows = select_distances(distances)
    of_size = rows.groupby(["model", "corpus", "size"])["distance"]
    rows["shade"] = of_size.transform(lambda values: (values - values.min()) / (values.max() - values.min()))
    marks = {NEAREST: find_nearest(distances), "the authors' l*(n)": paper.authors_starts()}
    caption = (
        f"{findings.state_last_block(rows)} Angular distance of every block, rescaled in each row from 0 (most "
        "similar) to 1. A row's last block holds "
        "the last layer and is never dropped."
    )
    title = "Distance, rescaled in each row"
    return _draw_map(rows, "corpus", marks, (PURPLE, YELLOW), title, "distance", "d = {:.3f}", "heat-maps", caption)


def block_map(rows: pd.DataFrame, nearest: pd.DataFrame):
    """Maps of the cost of each block, over first layer and size: 0 is the whole model, 1 guessing. Marked are the best
    block of each size, and the most similar one (statistics.nearest)."""
    way = rows["guessing"] - (rows["value"] - rows["cost"])
    rows = rows.assign(shade=(rows["cost"] / way).clip(0, 1))
    marks = {"best of its size": rows[rows["place"] == 1], NEAREST: nearest}
    caption = f"{findings.state_agreement(rows, nearest)} Loss that each block adds; white where it was not measured."
    title = "Loss added, as a share of the way to guessing"
    return _draw_map(
        rows, "task", marks, ("#ffffff", PURPLE), title, "cost", "{:+.2f} nats a token", "block-map", caption
    )


def _draw_map(rows, text, marks, colours, title, field, form, name, caption):
    """Maps of the column `shade`, 0 to 1, over first layer and size, a panel for each model and `text`; the hover text
    has the column `field` in the form `form`. `marks` are tables of blocks by label: model, start and size."""
    if rows.empty:
        return Sentences([], name)
    panels = split_panels(rows, "model", column_if_several(rows, text))
    look = {"columns": min(2, len(panels)), "tall": 300 if len(panels) > 1 else 420}
    picture = Figure(name, AXES["start"], "Layers in the block, n", [head for head, _ in panels], **look)
    picture.add_scale(title)
    for panel, (_, part) in zip(picture.panels, panels):
        layers = int(part["layers"].iloc[0])
        blocks = {"index": range(1, layers + 1), "columns": range(layers)}
        shade, raw = (part.pivot(index="size", columns="start", values=of).reindex(**blocks) for of in ("shade", field))
        hover = [
            [f"layers {start} to {start + size - 1} (n = {size}): {form.format(value)}" for start, value in row.items()]
            for size, row in raw.iterrows()
        ]
        panel.set_ranges([-0.5, layers - 0.5], [0.5, layers + 0.5])
        panel.draw_map(shade.to_numpy(dtype=float), hover)
        for (label, marked_rows), colour, look in zip(marks.items(), colours, MARKS):
            if len(marked := select_overlay(marked_rows, part)):
                panel.draw_line(marked["start"], marked["size"], line=None, label=label, colour=colour, **look)
    return picture.finish(rows.drop(columns="shade"), caption, write_alt_text(panels, field))


def in_rows(rows: pd.DataFrame, *, y: str, x="value", hue: str | None = None, title="", name="in-rows", caption=""):
    """A dot with its interval for each name of column `y`: recovery, regret, differences, where half is gone.
    Infinite values are open circles at the right end. The column `words`, if there is one, says each number."""
    all_rows, rows, ends = rows, rows[rows[x].notna()], [x, *interval_columns(x)]
    if rows.empty:
        return explain_nothing_drawn(all_rows, name)
    rows = rows.assign(**rows.reindex(columns=ends).astype(float))
    panels, title = split_panels(rows, "model", None), title or AXES.get(x, x)
    hues = rows[hue].astype(str) if hue else pd.Series("", rows.index)
    looks, names = choose_looks(hues.unique()), [list(panel_rows[y].astype(str).unique()) for _, panel_rows in panels]
    tall = [max(60, (24 + 12 * (len(looks) - 1)) * len(panel_names) + 20) for panel_names in names]
    picture, endless = Figure(name, title, "", [head for head, _ in panels], tall=tall), np.isinf(rows[x])
    for panel, (_, panel_rows), panel_names in zip(picture.panels, panels, names):
        left, right = find_range([*(panel_rows[end] for end in ends), [0.0]])
        beyond = right + 0.03 * (right - left) * endless[panel_rows.index].any()  # room for open circles at the end
        heights = [len(panel_names) - 0.4, -0.6]
        percent = "x" * (x == "share" or title.startswith("Share"))
        panel.set_ranges([left, beyond], heights, percent, rows=list(map(rule_title, panel_names)))
        panel.draw_line([0, 0], [len(panel_names), -1], colour=GREY, width=1)
        of_hues = panel_rows.groupby(hues[panel_rows.index], sort=False)
        for number, (value, line) in enumerate(of_hues):
            beside = 0.16 * (number - (len(of_hues) - 1) / 2)
            line = line.assign(at=[panel_names.index(name_of_row) + beside for name_of_row in line[y].astype(str)])
            bars = line[line[ends[1]].notna()]
            bars, at = bars[ends[1:]].clip(left, right).assign(gap=np.nan).to_numpy().ravel(), bars["at"].repeat(3)
            panel.draw_line(bars, at, colour=looks[value]["colour"], width=1.2)
            for is_endless, dots in line.groupby(endless[line.index]):
                hover = write_hover_texts(dots[y].astype(str).map(rule_title), dots, hue or "", x)
                look = looks[value] | {"label": rule_title(value) if hue else None, "filled": not is_endless}
                panel.draw_line(dots[x].clip(left, right), dots["at"], **look, line=None, hover=hover)
    note = " Bars: 95%." if rows[ends[1:]].notna().any(axis=None) else ""
    note += " Open circles: more layers than were dropped." if endless.any() else ""
    alt = [f"{head}: {findings.describe_ends(part, y, x)}" for head, part in panels]
    return picture.finish(rows, (caption or findings.state_ends(rows, y, x, title)) + note, "; ".join(alt) + ".")


def table(rows: pd.DataFrame, caption: str = "", *, columns: Sequence[str] | None = None, name: str = ""):
    """A frame as a table for a notebook, rounded: value, low and high become one cell "0.91 (0.85 to 0.97)".

    With a name, its rows can be saved as NAME.csv, and missing values are empty cells. Without rows it is a sentence.
    """
    if rows.empty:
        return Sentences([], name)
    texts = pd.DataFrame(index=rows.index)
    for column in columns or [head for head in rows if not head.endswith(("low", "high"))]:
        ends = [column, *interval_columns(column)]
        cells = [format_cell(value) for value in rows[column].tolist()]
        if set(ends) <= set(rows):
            digits = 2 if rows[column].replace([np.inf, -np.inf], np.nan).abs().max() >= 10 else 3
            cells = [format_number(*cell, digits=digits) for cell in rows[ends].itertuples(index=False)]
        empty = rows[column].isna() & bool(name)
        texts[column.replace("_", " ")] = pd.Series(cells, rows.index, dtype=object).mask(empty, "")
    styled = as_table(texts, caption)
    return styled.set_caption(f"{as_html(caption)} {make_csv_link(rows, name)}") if name else styled


# ---- shared helpers -------------------------------------------------------------------------------------------------


def explain_nothing_drawn(rows: pd.DataFrame, name: str) -> Sentences:
    """The sentence in place of a figure: that nothing was measured, or that the task is at floor."""
    is_at_floor = "no_value_reason" in rows and (rows["no_value_reason"] == AT_FLOOR).any()
    return Sentences([AT_FLOOR_TEXT] if is_at_floor else [], name)


def column_if_several(rows: pd.DataFrame, column: str) -> str | None:
    return column if rows[column].nunique() > 1 else None


def split_panels(rows: pd.DataFrame, col: str | None, row: str | None) -> list[tuple[str, pd.DataFrame]]:
    """The title and the rows of each panel: one for each value of `row` and `col` that has rows."""
    cols, heads = (rows[column].astype(str) if column else pd.Series("", rows.index) for column in (col, row))
    panels = []
    for head in sort_names(heads.unique(), tuple(TOPICS.values())):
        for value in sort_names(cols.unique(), (*sorted({*cols} - {*FIRST}), *FIRST)):  # a reader's own models first
            selected = rows[(heads == head) & (cols == value)]
            title = escape_invisible(model_title(value) if col == "model" else value)
            title += (
                ", only guesses"
                if "no_value_reason" in rows and (selected["no_value_reason"] == AT_FLOOR).all()
                else ""
            )
            if len(selected):
                panels.append((f"{escape_invisible(rule_title(head))}\n{title}" if row else title, selected))
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
    """A colour and a marker for each name: its fixed colour if it has one, else one that no other name here has."""
    names = list(names)
    free = [colour for colour in FREE if colour not in map(COLOURS.get, names)] or FREE
    colours = dict(zip([name for name in names if name not in COLOURS], itertools.cycle(free))) | COLOURS
    return {name: {"colour": colours[name], "marker": marker} for name, marker in zip(names, itertools.cycle(MARKERS))}


def find_levels(panel_rows: pd.DataFrame, y: str) -> dict[str, float]:
    """The heights of guessing and of the whole model, by label, if all lines of a panel share them."""
    if y == "kept":
        return {"the whole model": 1.0, "guessing": 0.0}
    names = {"guessing": "guessing", "whole": "the whole model"} if y == "value" else {}
    levels = {label: panel_rows[name].dropna().round(4).unique() for name, label in names.items() if name in panel_rows}
    return {label: float(values[0]) for label, values in levels.items() if len(values) == 1}


def find_range(values: Sequence[Iterable], *, zero: bool = False) -> list[float]:
    """A range that holds all values, with some room; it starts at 0 if `zero`."""
    numbers = np.concatenate([np.asarray(part, dtype=float) for part in values])
    numbers = numbers[np.isfinite(numbers)]
    low, high = float(numbers.min()), float(numbers.max())
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    return [0.0 if zero and low >= 0 else low - room, high + room]


def write_hover_texts(labels: str | pd.Series, line: pd.DataFrame, x: str, y: str) -> list[str]:
    """The hover text of each row of a line: its label, the cut, `x`, `y` with its interval, the number of items."""
    low, high = interval_columns(y)
    texts = []
    for label, row in zip([labels] * len(line) if isinstance(labels, str) else labels, line.to_dict("records")):
        lines = [label]
        size, start = (row.get(column) for column in ("size", "start"))
        if pd.notna(start):
            dropped = range(int(start), int(start + size))
            lines.append(f"{describe_layers(dropped)} dropped" if dropped else "the whole model")
        elif pd.notna(size) and size:
            lines.append(f"{size} layers dropped")
        if x and x not in ("size", "share", "start", "start_share"):
            lines.append(f"{x} {format_cell(row[x])}")
        lines.append(row.get("words") or format_number(row[y], row.get(low), row.get(high), digits=3))
        texts.append("\n".join(lines + ([f"{row['items']} items"] if "items" in row else [])))
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


def write_alt_text(panels: list[tuple[str, pd.DataFrame]], y: str, hue: str | None = None, x: str = "") -> str:
    """The panels in words: the course of each line by `hue`, else the least and the most value of a map."""
    parts = []
    for title, panel_rows in panels:
        for label, line in panel_rows.groupby(panel_rows[hue].astype(str), sort=False) if hue else [("", panel_rows)]:
            ends = line.sort_values(y).iloc[[0, -1]]  # of a map, or of very many lines
            place = x or "start"
            course = " to ".join(f"{row[y]:.2g} at {place} {row[place]}" for row in ends.to_dict("records"))
            if hue:
                course = findings.describe_shape(*line.sort_values(x)[[x, y]].astype(float).to_numpy().T)
            parts.append(", ".join(filter(None, [title.replace("\n", ", "), rule_title(label), course])))
    return "; ".join(parts) + "."
