"""Tidy frames in, figures out: each facets by model, and shows itself in a notebook with its data and its picture.

A figure's `name` names its files and its place on a page: a-z, 0-9 and hyphens. A frame without rows gives a sentence
instead. Intervals are 95%. A rule, a topic and a model have the same colour in every figure.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap, to_hex

from deeper_layers.report import paper
from deeper_layers.report.drawing import GREY, HEAT, INK, LINES, MARKERS, PALETTE, Figure, csv_link
from deeper_layers.report.estimates import AT_FLOOR, ends_of
from deeper_layers.report.names import (
    FIRST,
    TITLES,
    TOPICS,
    Said,
    as_html,
    as_table,
    in_order,
    model_title,
    rule_title,
    say,
    topic,
    visible,
)
from deeper_layers.report.statistics import kept_distances
from deeper_layers.report.statistics import nearest as nearest_of

AXES = TITLES["axes"]
PERCENT = ("share", "depth", "start_share")
GUESSES = "At floor: the whole model scores no better than guessing, so nothing can be seen of it."
NEAREST = "l*(n), the most similar block"
TO_THE_LAST = "the block ends at the last layer"
SIZES = ListedColormap(HEAT(np.linspace(0.2, 0.88, 256)), name="sizes")  # the ends vanish on a black or white page
MARKS = {"marker": "circle", "size": 3}, {"marker": "square", "size": 5, "filled": False}  # on a map
BLUE, RED, GREEN, PINK, YELLOW, SKY, _ = PALETTE
# letters are warm, words and what is written cool
COLOURS = {"similarity": BLUE, "simple": RED, "mmlu": RED, "lettered_capitals": YELLOW, "capitals": BLUE}
COLOURS |= {"written_facts": GREEN, "mmlu_continuation": SKY, "gsm8k": PINK}
COLOURS |= {"letters": RED, "words": BLUE, "written": GREEN, "letters, without the question": YELLOW}
COLOURS = {topic(name): colour for name, colour in COLOURS.items()} | {TO_THE_LAST: GREY}


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
):
    """Lines over bands of their intervals, a panel for each `col` and `row`, with lines for guessing and for the whole
    model; `y` is "value", "kept" or any number, its ends are `y`_low and `y`_high (of value low and high).

    Colours are of `hue`, or of the number `shade`; strokes of `stroke`; `apart` tells lines of one look apart. `over`
    are lines beside, of columns `x`, `y` and label: of a panel's model in ink, or, without a column model, thin ones.
    """
    every, rows = rows, rows[np.isfinite(rows[y].astype(float)) & rows[x].notna()]
    if rows.empty:
        return nothing_drawn(every, name)
    panels, (low, high), several = panels_of(rows, col, row), ends_of(y), rows[col].nunique() if col else 1
    columns = several if several in (2, 3) and len(panels) % several == 0 else min(2, len(panels))
    title, along = title or AXES.get(y, y), AXES.get(x, x)
    picture = Figure(name, along, title, [head for head, _ in panels], columns=columns)
    scale = picture.colour_bar(AXES.get(shade, shade), SIZES, (rows[shade].min(), rows[shade].max())) if shade else None
    strokes = dict(zip(rows[stroke].unique(), itertools.cycle(LINES))) if stroke else {}
    over = pd.DataFrame(columns=["label", x, y]) if over is None else over
    hues, top = rows[hue].astype(str).unique(), min(1.03, 1.1 * rows[y].astype(float).max())
    looks = looks_of([*hues, *over["label"].unique()])
    keys = [(of, looks[of]) for of in hues] * (not shade)  # the legend: first what colours are, then what strokes are
    keys += [(of, {"colour": INK, "line": strokes[of]}) for of in strokes] * (len(strokes) > 1)
    for value, look in keys:
        picture.panels[0].line([], [], **look, label=rule_title(str(value)))
    for panel, (_, own) in zip(picture.panels, panels):
        levels, beside = levels_of(own, y), over_of(over, own)
        across = span([own[x], beside[x]], zero=x in AXES)
        heights = span([*(own[end] for end in (y, low, high) if end in own), [*levels.values()], beside[y]])
        heights = (
            [-0.5, 1.3] if y == "kept" else [0.0, top] if levels and heights[1] < 1.1 and x in PERCENT else heights
        )
        panel.reach(across, heights, "x" * (x in PERCENT) + "y" * (y in PERCENT))
        for label, height in levels.items():
            line = "dot" if label == "guessing" else "dash"
            panel.line(across, [height] * 2, colour=GREY, label=label, line=line, width=1)
        for _, line in own.groupby([one for one in (hue, stroke, apart) if one], sort=False, dropna=False):
            line, first = line.sort_values(x), line.iloc[0]
            label = rule_title(str(first[hue]))
            look = looks[str(first[hue])] | {"label": label}
            if stroke:
                look["line"], label = strokes[first[stroke]], f"{label}, {rule_title(str(first[stroke]))}"
            if scale:
                look = {"width": 1, "colour": to_hex(scale.to_rgba(first[shade]))}
            if low in line:
                ends = (line[end].astype(float).clip(*heights) for end in (low, high))
                panel.band(line[x], *ends, colour=look["colour"], label=look.get("label"))
            said = "\n".join([label, *(line[apart].unique().astype(str) if apart else [])])
            panel.line(line[x], line[y], **look, hover=hover_texts(said, line, x, y), size=3)
        for label, line in beside.groupby("label", sort=False):
            look = {"colour": INK, "width": 2, "marker": "circle", "size": 3}
            look = look if "model" in line else {"colour": looks[label]["colour"], "width": 1}
            panel.line(line[x], line[y], **look, label=label, hover=hover_texts(label, line, x, y))
    said = " Bands are 95% intervals." if low in rows else ""
    caption = caption or f"{title} against {along[:1].lower() + along[1:]}."
    return picture.finish(rows, caption + said, alt_text(panels, y, None if scale else hue, x))


def distance_curves(distances: pd.DataFrame):
    """Angular distance against first layer, a line a block size, l*(n) in ink (paper, figure 1c; equation 7)."""
    caption = (
        "Angular distance between what enters and what leaves each block. The line in ink joins the most similar block "
        "of each size among those that keep the last layer; the right end of each line is the block that holds it."
    )
    rows, over = kept_distances(distances), nearest_of(distances).assign(label=NEAREST)
    look = {"hue": "size", "shade": "size", "row": if_several(rows, "corpus"), "over": over}
    return curves(rows, x="start", y="distance", **look, name="distance-curves", caption=caption)


def best_starts(nearest: pd.DataFrame, *, authors: bool = True, name: str = "best-starts"):
    """Start of the most similar block against its size, as shares of all layers, the authors' starts beside."""
    rows = nearest.assign(start_share=nearest["start"] / nearest["layers"])
    last = pd.DataFrame({"label": TO_THE_LAST, "share": [0, 1], "start_share": [1, 0]})
    over = pd.concat([last, *[paper.authors_starts().drop(columns="model")] * authors])
    look = {"hue": "model", "stroke": if_several(rows, "corpus"), "col": None, "row": None}
    caption = "First layer of the most similar block against its size, as shares of all layers."
    return curves(rows, y="start_share", **look, over=over, name=name, caption=caption)


def heat_maps(distances: pd.DataFrame):
    """Distances over first layer and block size, each row rescaled to 0 to 1, l*(n) marked (paper, figure 4)."""
    rows = kept_distances(distances)
    of_size = rows.groupby(["model", "corpus", "size"])["distance"]
    least, most = of_size.transform("min"), of_size.transform("max")
    rows = rows.assign(shade=(rows["distance"] - least) / (most - least).replace(0, np.nan))
    marks = {NEAREST: nearest_of(distances), "the authors' l*(n)": paper.authors_starts()}
    caption = (
        "Angular distance of every block, rescaled in each row from 0 (most similar) to 1. A row's last block holds "
        "the last layer and is never dropped."
    )
    title = "Distance, rescaled in each row"
    return _maps(rows, "corpus", marks, (RED, YELLOW), title, "distance", "d = {:.3f}", "heat-maps", caption)


def block_map(rows: pd.DataFrame, nearest: pd.DataFrame):
    """What each block costs, over first layer and size: 0 is the whole model, 1 guessing. The best block of each size
    is marked, and the most similar one (statistics.nearest)."""
    way = rows["guessing"] - (rows["value"] - rows["cost"])
    rows = rows.assign(shade=(rows["cost"] / way).clip(0, 1))
    marks = {"best of its size": rows[rows["place"] == 1], NEAREST: nearest}
    caption = "Loss that each block adds when it is dropped; white where it was not measured."
    title = "Loss added, as a share of the way to guessing"
    return _maps(rows, "task", marks, ("#ffffff", RED), title, "cost", "{:+.2f} nats a token", "block-map", caption)


def _maps(rows, text, marks, colours, title, told, form, name, caption):
    """Maps of the column `shade`, 0 to 1, over first layer and size, a panel a model and `text`, whose hover says the
    column `told`; `marks` are blocks by their label, of columns model, start and size."""
    if rows.empty:
        return Said([], name)
    panels = panels_of(rows, "model", if_several(rows, text))
    columns = min(2, len(panels))
    tall = [300 if columns > 1 else 420] * -(-len(panels) // columns)
    picture = Figure(
        name, AXES["start"], "Layers in the block, n", [head for head, _ in panels], columns=columns, tall=tall
    )
    picture.colour_bar(title)
    for panel, (_, own) in zip(picture.panels, panels):
        layers = int(own["layers"].iloc[0])
        blocks = {"index": range(1, layers + 1), "columns": range(layers)}
        shade, raw = (own.pivot(index="size", columns="start", values=of).reindex(**blocks) for of in ("shade", told))
        hover = [
            [f"layers {start} to {start + size - 1} (n = {size}): {form.format(value)}" for start, value in of.items()]
            for size, of in raw.iterrows()
        ]
        panel.reach([-0.5, layers - 0.5], [0.5, layers + 0.5])
        panel.heat(shade.to_numpy(dtype=float), hover)
        for (label, every), colour, look in zip(marks.items(), colours, MARKS):
            if len(found := over_of(every, own)):
                panel.line(found["start"], found["size"], line=None, label=label, colour=colour, **look)
    return picture.finish(rows.drop(columns="shade"), caption, alt_text(panels, told))


def in_rows(rows: pd.DataFrame, *, y: str, x="value", hue: str | None = None, title="", name="in-rows"):
    """A dot with its interval for each name of column `y`: recovery, regret, differences, where half is gone.

    What is infinite stands at the right end, open.
    """
    every, rows, ends = rows, rows[rows[x].notna()], [x, *ends_of(x)]
    if rows.empty:
        return nothing_drawn(every, name)
    rows = rows.assign(**rows.reindex(columns=ends).astype(float))
    panels, title = panels_of(rows, "model", None), title or AXES.get(x, x)
    hues = rows[hue].astype(str) if hue else pd.Series("", rows.index)
    looks, names = looks_of(hues.unique()), [list(own[y].astype(str).unique()) for _, own in panels]
    tall = [max(60, (24 + 12 * (len(looks) - 1)) * len(of_panel) + 20) for of_panel in names]
    picture, endless = Figure(name, title, "", [head for head, _ in panels], tall=tall), np.isinf(rows[x])
    for panel, (_, own), of_panel in zip(picture.panels, panels, names):
        left, right = span([*(own[end] for end in ends), [0.0]])
        beyond = right + 0.03 * (right - left) * endless[own.index].any()  # all of what stands at the end
        heights = [len(of_panel) - 0.4, -0.6]
        panel.reach([left, beyond], heights, "x" * (x == "share"), rows=list(map(rule_title, of_panel)))
        panel.line([0, 0], [len(of_panel), -1], colour=GREY, width=1)
        of_hues = own.groupby(hues[own.index], sort=False)
        for number, (value, line) in enumerate(of_hues):
            beside = 0.16 * (number - (len(of_hues) - 1) / 2)
            line = line.assign(at=[of_panel.index(one) + beside for one in line[y].astype(str)])
            bars = line[line[ends[1]].notna()]
            bars, at = bars[ends[1:]].clip(left, right).assign(gap=np.nan).to_numpy().ravel(), bars["at"].repeat(3)
            panel.line(bars, at, colour=looks[value]["colour"], width=1.2)
            for is_endless, these in line.groupby(endless[line.index]):
                hover = hover_texts(these[y].astype(str).map(rule_title), these, hue or "", x)
                look = looks[value] | {"label": rule_title(value) if hue else None, "filled": not is_endless}
                panel.line(these[x].clip(left, right), these["at"], **look, line=None, hover=hover)
    said = " Bars are 95% intervals." if rows[ends[1:]].notna().any(axis=None) else ""
    said += " Open circles: never, as far as layers were dropped." if endless.any() else ""
    return picture.finish(rows, f"{title}.{said}", alt_text(panels, x))


def table(rows: pd.DataFrame, caption: str = "", *, columns: Sequence[str] | None = None, name: str = ""):
    """A frame as a table that shows itself, rounded: value, low and high become one cell "0.91 (0.85 to 0.97)".

    With a name its rows can be saved as NAME.csv, and what was not measured is an empty cell. Without rows it says so.
    """
    if rows.empty:
        return Said([], name)
    shown = pd.DataFrame(index=rows.index)
    for column in columns or [one for one in rows if not one.endswith(("low", "high"))]:
        ends = [column, *ends_of(column)]
        cells = [cell_text(value) for value in rows[column].tolist()]
        if set(ends) <= set(rows):
            digits = 2 if rows[column].replace([np.inf, -np.inf], np.nan).abs().max() >= 10 else 3
            cells = [say(*of, digits=digits) for of in rows[ends].itertuples(index=False)]
        empty = rows[column].isna() & bool(name)
        shown[column.replace("_", " ")] = pd.Series(cells, rows.index, dtype=object).mask(empty, "")
    made = as_table(shown, caption)
    return made.set_caption(f"{as_html(caption)} {csv_link(rows, name)}") if name else made


# ---- what they share ------------------------------------------------------------------------------------------------


def nothing_drawn(rows: pd.DataFrame, name: str) -> Said:
    """What stands in place of a figure: that nothing was measured, or that what was is at floor."""
    is_at_floor = "untold" in rows and (rows["untold"] == AT_FLOOR).any()
    return Said([GUESSES] if is_at_floor else [], name)


def if_several(rows: pd.DataFrame, column: str) -> str | None:
    return column if rows[column].nunique() > 1 else None


def panels_of(rows: pd.DataFrame, col: str | None, row: str | None) -> list[tuple[str, pd.DataFrame]]:
    """Titles and rows of panels: rows of panels are of one `row`, their columns of one `col`; none is empty."""
    cols, heads = (rows[of].astype(str) if of else pd.Series("", rows.index) for of in (col, row))
    panels = []
    for head in in_order(heads.unique(), tuple(TOPICS.values())):
        for one in in_order(cols.unique(), (*sorted({*cols} - {*FIRST}), *FIRST)):  # a reader's own models first
            found = rows[(heads == head) & (cols == one)]
            title = visible(model_title(one) if col == "model" else one)
            title += ", only guesses" if "untold" in rows and (found["untold"] == AT_FLOOR).all() else ""
            if len(found):
                panels.append((f"{visible(rule_title(head))}\n{title}" if row else title, found))
    return panels


def over_of(over: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Of what is drawn beside the rows of a panel, what is of its model and text and no larger than its blocks."""
    if "model" not in over:
        return over
    is_of = over["model"] == own["model"].iloc[0]
    if "corpus" in own and "corpus" in over:
        is_of &= over["corpus"] == own["corpus"].iloc[0]
    return over[is_of & over["size"].isin(own["size"])]


def looks_of(names: Iterable[str]) -> dict[str, dict]:
    """A colour and a marker for each name: its own where it has one, else one that none here has."""
    names = list(names)
    free = [colour for colour in PALETTE if colour not in map(COLOURS.get, names)] or PALETTE
    colours = dict(zip([name for name in names if name not in COLOURS], itertools.cycle(free))) | COLOURS
    return {name: {"colour": colours[name], "marker": marker} for name, marker in zip(names, itertools.cycle(MARKERS))}


def levels_of(own: pd.DataFrame, y: str) -> dict[str, float]:
    """Heights to compare with: of guessing and of the whole model, where all lines of a panel have the same."""
    if y == "kept":
        return {"the whole model": 1.0, "guessing": 0.0}
    names = {"guessing": "guessing", "whole": "the whole model"} if y == "value" else {}
    found = {label: own[name].dropna().round(4).unique() for name, label in names.items() if name in own}
    return {label: float(values[0]) for label, values in found.items() if len(values) == 1}


def span(values: Sequence[Iterable], *, zero: bool = False) -> list[float]:
    """A range that holds all values, with some room; from 0 on where `zero`."""
    every = np.concatenate([np.asarray(one, dtype=float) for one in values])
    every = every[np.isfinite(every)]
    low, high = float(every.min()), float(every.max())
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    return [0.0 if zero and low >= 0 else low - room, high + room]


def hover_texts(labels: str | pd.Series, line: pd.DataFrame, x: str, y: str) -> list[str]:
    """What is said of each row of a line: its label, the cut, `x`, `y` with its interval, how many items."""
    low, high = ends_of(y)
    found = []
    for label, of in zip([labels] * len(line) if isinstance(labels, str) else labels, line.to_dict("records")):
        said = [label]
        if pd.notna(of.get("size")):
            said.append(f"n = {of['size']}" + (f", l = {of['start']}" if pd.notna(of.get("start")) else ""))
        if x and x not in ("size", "share", "start", "start_share"):
            said.append(f"{x} {cell_text(of[x])}")
        said.append(say(of[y], of.get(low), of.get(high), digits=3))
        found.append("\n".join(said + ([f"{of['items']} items"] if "items" in of else [])))
    return found


def cell_text(value) -> str:
    """A cell of a table: a number rounded, a rule in words, nothing where nothing is known."""
    if isinstance(value, str):
        return rule_title(value) if value in ("similarity", "simple") else value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def alt_text(panels: list[tuple[str, pd.DataFrame]], y: str, hue: str | None = None, x: str = "") -> str:
    """The panels in words: the first and the last point of each line of a colour, or the least and the most."""
    said = []
    for title, own in panels:
        for label, line in own.groupby(own[hue].astype(str), sort=False) if hue else [("", own)]:
            course = f"{line[y].min():.2g} to {line[y].max():.2g}"
            if hue:
                (a, b), (c, d) = line.sort_values(x)[[x, y]].astype(float).iloc[[0, -1]].to_numpy()
                course = f"{b:.2g} at {a:.2g}, {d:.2g} at {c:.2g}"
            said.append(", ".join(filter(None, [title.replace("\n", ", "), rule_title(label), course])))
    return "; ".join(said) + "."
