"""Figures from tidy frames. Each has a panel for each model; a notebook shows it with its data and its picture.

A figure's `name` names its files and its place on a page: a-z, 0-9 and hyphens. A frame without rows gives a sentence
instead. Intervals are 95%. A rule, a topic and a model have the same colour in every figure.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, to_hex

from deeper_layers_companion.report import findings, paper
from deeper_layers_companion.report.drawing import (
    GREY,
    HEAT,
    INK,
    LINES,
    WHITE,
    Figure,
    Panel,
    make_csv_link,
)
from deeper_layers_companion.report.estimates import AT_FLOOR, interval_columns
from deeper_layers_companion.report.names import (
    Sentences,
    as_html,
    as_table,
    format_number,
    rule_title,
)
from deeper_layers_companion.report.panels import (
    AXES,
    PURPLE,
    TO_THE_LAST,
    YELLOW,
    choose_looks,
    column_if_several,
    explain_nothing_drawn,
    find_levels,
    find_range,
    format_cell,
    select_overlay,
    split_panels,
    write_alt_text,
    write_hover_texts,
)
from deeper_layers_companion.report.statistics import nearest as find_nearest
from deeper_layers_companion.report.statistics import select_distances

PERCENT = ("share", "depth", "start_share")
NEAREST = "l*(n), the most similar block"
SIZES = ListedColormap(
    HEAT(np.linspace(0.2, 0.88, 256)), name="sizes"
)  # the ends vanish on a black or white page
MARKS = (
    {"marker": "circle", "size": 3},
    {"marker": "square", "size": 5, "filled": False},
)  # on a map


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
    alike. `over` are dots in ink for the model of a panel, or thin lines without a column model: rows with `x`, `y` and
    label. At most `columns` panels stand beside each other. Not `joined` are dots without lines.
    """
    all_rows = rows
    rows = rows[np.isfinite(rows[y].astype(float)) & rows[x].notna()]
    if rows.empty:
        return explain_nothing_drawn(all_rows, name)
    panels = split_panels(rows, col, row)
    title = title or AXES.get(y, y)
    along = AXES.get(x, x)
    picture = Figure(
        name, along, title, [head for head, _ in panels], columns=min(columns, len(panels))
    )
    over = pd.DataFrame(columns=["label", x, y]) if over is None else over
    looks = choose_looks(rows[hue].astype(str).unique())
    strokes = dict(zip(rows[stroke].unique(), itertools.cycle(LINES))) if stroke else {}
    scale = None
    if shade:
        scale = picture.add_scale(
            AXES.get(shade, shade), SIZES, (rows[shade].min(), rows[shade].max())
        )
    lines = _Lines(x, y, hue, stroke, apart, shade, joined, looks, strokes, scale)
    lines.add_legend(picture.panels[0])
    top = min(1.03, 1.1 * rows[y].astype(float).max())
    for panel, (_, part) in zip(picture.panels, panels):
        levels = find_levels(part, y)
        overlay = select_overlay(over, part)
        across = find_range([part[x], overlay[x]], zero=x in AXES)
        heights = lines.find_heights(part, [[*levels.values()], overlay[y]])
        if levels and heights[1] < 1.1 and x in PERCENT and y != "kept":
            heights = [0.0, top]
        panel.set_ranges(across, heights, "x" * (x in PERCENT) + "y" * (y in PERCENT))
        for label, height in levels.items():
            line = "dot" if label == "guessing" else "dash"
            panel.draw_line(across, [height] * 2, colour=GREY, label=label, line=line, width=1)
        lines.draw(panel, part, heights)
        lines.draw_over(panel, overlay)
        for row, words in _find_notes(part, x, y, hue):
            panel.annotate(row[x], row[y], words)
    caption = caption or _describe_curves(rows, x, y, hue, title)
    if interval_columns(y)[0] in rows:
        caption += " Bands: 95%."
    return picture.finish(rows, caption, write_alt_text(panels, y, None if scale else hue, x))


class _Lines(NamedTuple):
    """The lines of `curves`: the columns that say how each is drawn, and what stands for their values."""

    x: str
    y: str
    hue: str
    stroke: str | None
    apart: str | None
    shade: str | None
    joined: bool
    looks: dict[str, dict]  # by the values of `hue`
    strokes: dict[str, str]  # by those of `stroke`
    scale: ScalarMappable | None  # the colours of `shade`

    def add_legend(self, panel: Panel) -> None:
        """The entries of the legend: colours, then strokes."""
        for key, look in self.looks.items() if not self.scale else ():
            panel.draw_line([], [], **self.restyle(look), label=rule_title(key))
        if len(self.strokes) > 1:
            for key, line in self.strokes.items():
                panel.draw_line([], [], colour=INK, line=line, label=rule_title(str(key)))

    def restyle(self, look: dict) -> dict:
        """A look, without a line where dots are not joined."""
        return look if self.joined else look | {"line": None}

    def find_heights(self, part: pd.DataFrame, others: list) -> list[float]:
        """The range of a panel in which its lines lie, and other heights."""
        if self.y == "kept":
            return [-0.5, max(1.3, 1.04 * part["kept"].max())]
        ends = [part[end] for end in (self.y, *interval_columns(self.y)) if end in part]
        return find_range([*ends, *others])

    def draw(self, panel: Panel, part: pd.DataFrame, heights: list[float]) -> None:
        """Draw the lines of a panel, each over the band of its intervals."""
        columns = [column for column in (self.hue, self.stroke, self.apart) if column]
        for _, line in part.groupby(columns, sort=False, dropna=False):
            first = line.iloc[0]
            line = line.sort_values(self.x)
            name = str(first[self.hue])
            label = rule_title(name)
            look = self.looks[name] | {"label": label}
            if self.stroke:
                look["line"] = self.strokes[first[self.stroke]]
                label = f"{label}, {rule_title(str(first[self.stroke]))}"
            look = self.restyle(look)
            if self.scale:
                look = {"width": 1, "colour": to_hex(self.scale.to_rgba(first[self.shade]))}
            low, high = interval_columns(self.y)
            if low in line:
                ends = (line[end].astype(float).clip(*heights) for end in (low, high))
                panel.draw_band(line[self.x], *ends, colour=look["colour"])
            if self.apart:
                label = "\n".join([label, *line[self.apart].unique().astype(str)])
            hover = write_hover_texts(label, line, self.x, self.y)
            panel.draw_line(line[self.x], line[self.y], **look, hover=hover, size=3)

    def draw_over(self, panel: Panel, overlay: pd.DataFrame) -> None:
        """Draw what lies over the lines: dots in ink for the panel's model, thin lines of others."""
        look: dict = {"colour": GREY, "width": 0.8}
        if "model" in overlay:
            look = {"colour": INK, "line": None, "marker": "circle", "size": 4}
        for label, line in overlay.groupby("label", sort=False):
            hover = write_hover_texts(label, line, self.x, self.y)
            panel.draw_line(line[self.x], line[self.y], **look, label=label, hover=hover)


def _describe_curves(rows: pd.DataFrame, x: str, y: str, hue: str, title: str) -> str:
    """What curves show, in words."""
    if "no_value_reason" in rows and (rows["no_value_reason"] == AT_FLOOR).all():
        return "These whole models only guess, so their curves tell nothing of layers."
    text = ""
    if hue == "rule" and y == "value":
        text = findings.state_half_gone(rows)
    elif y == "kept":
        text = findings.state_kept(rows, hue)
    return text or f"{title}. {findings.state_courses(rows, x, y, hue)}"


def _find_notes(part: pd.DataFrame, x: str, y: str, hue: str) -> list[tuple[pd.Series, str]]:
    """What happens in a panel at a row, in words: half gone, or back, under a rule; back without the last block."""
    events = []
    if hue == "rule" and x in ("share", "size") and y in ("value", "kept"):
        events += findings.find_events(part[part["rule"] == "similarity"])
        of_simple = findings.find_events(part[part["rule"] == "simple"])
        return events + [event for event in of_simple if "back" in event[1]]
    if hue == "topic" and x in ("share", "size") and y == "kept":
        for _, line in part.groupby(hue, sort=False):
            events += [(at, f"{at[hue]}: {words}") for at, words in findings.find_events(line)[:1]]
        return sorted(events, key=lambda event: event[0]["size"])[:1]
    if x == "middle" and y == "kept":
        for _, line in part.groupby(hue, sort=False):
            events += findings.find_return(line)
        if events:
            return [(events[0][0], f"back: {' and '.join(words for _, words in events)}")]
    return []


def _name_nearest(nearest: pd.DataFrame) -> str:
    """The most similar blocks, with the text that they were found on where it is one."""
    texts = nearest["corpus"].unique()
    return f"{NEAREST}, on {rule_title(texts[0])}" if len(texts) == 1 else NEAREST


def distance_curves(distances: pd.DataFrame):
    """Angular distance against first layer, one line a block size, l*(n) in ink (paper, figure 1c; equation 7)."""
    caption = (
        "A line is a block size: its dot in ink is the block that the rule drops, its right end the block that holds "
        "the last layer."
    )
    rows = select_distances(distances)
    over = find_nearest(distances)
    over = over.assign(label=_name_nearest(over))
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
    caption = (
        f"{findings.state_depths(rows, paper.depth_at_quarter())} Drawn is where each block starts."
    )
    return curves(rows, y="start_share", **look, over=over, name="best-starts", caption=caption)


def heat_maps(distances: pd.DataFrame):
    """Maps of distances over first layer and block size, each row rescaled to 0 to 1, l*(n) marked (figure 4)."""
    rows = select_distances(distances)
    of_size = rows.groupby(["model", "corpus", "size"])["distance"]
    rows["shade"] = of_size.transform(
        lambda values: (values - values.min()) / (values.max() - values.min())
    )
    nearest = find_nearest(distances)
    marks = {_name_nearest(nearest): nearest, "the authors' l*(n)": paper.authors_starts()}
    caption = (
        f"{findings.state_last_block(rows)} Dark blocks turn the residual least; the right end of a row holds the last "
        "layer and is never dropped."
    )
    title = "Distance, rescaled in each row"
    return _draw_map(
        rows,
        "corpus",
        marks,
        (PURPLE, YELLOW),
        title,
        "distance",
        "d = {:.3f}",
        "heat-maps",
        caption,
    )


def block_map(rows: pd.DataFrame, nearest: pd.DataFrame):
    """Maps of the cost of each block, over first layer and size: 0 is the whole model, 1 guessing. Marked are the best
    block of each size, and the most similar one (statistics.nearest)."""
    way = rows["guessing"] - (rows["value"] - rows["cost"])
    rows = rows.assign(shade=(rows["cost"] / way).clip(0, 1))
    marks = {"best of its size": rows[rows["place"] == 1], _name_nearest(nearest): nearest}
    caption = f"{findings.state_agreement(rows, nearest)} Bright blocks cost most; what is blank was not measured."
    title = "Loss added, as a share of the way to guessing"
    return _draw_map(
        rows,
        "task",
        marks,
        (WHITE, PURPLE),
        title,
        "cost",
        "{:+.2f} nats a token",
        "block-map",
        caption,
    )


def _draw_map(rows, text, marks, colours, title, field, form, name, caption):
    """Maps of the column `shade`, 0 to 1, over first layer and size, a panel for each model and `text`; the hover text
    has the column `field` in the form `form`. `marks` are tables of blocks by label: model, start and size."""
    if rows.empty:
        return Sentences([], name)
    panels = split_panels(rows, "model", column_if_several(rows, text))
    look = {"columns": min(2, len(panels)), "tall": 300 if len(panels) > 1 else 420}
    picture = Figure(
        name, AXES["start"], "Layers in the block, n", [head for head, _ in panels], **look
    )
    picture.add_scale(title)
    for panel, (_, part) in zip(picture.panels, panels):
        layers = int(part["layers"].iloc[0])
        blocks = {"index": range(1, layers + 1), "columns": range(layers)}
        table = part.pivot(index="size", columns="start", values=["shade", field])
        shade = table["shade"].reindex(**blocks)
        hover = []
        for size, row in table[field].reindex(**blocks).iterrows():
            heads = [f"layers {start} to {start + size - 1} (n = {size})" for start in row.index]
            hover.append([f"{head}: {form.format(value)}" for head, value in zip(heads, row)])
        panel.set_ranges([-0.5, layers - 0.5], [0.5, layers + 0.5])
        panel.draw_map(shade.to_numpy(dtype=float), hover)
        for (label, marked_rows), colour, look in zip(marks.items(), colours, MARKS):
            marked = select_overlay(marked_rows, part)
            if len(marked):
                at = marked["start"], marked["size"]
                frame = look | {"size": look["size"] + 1.5, "filled": False}  # seen on dark cells
                panel.draw_line(*at, line=None, colour=WHITE, **frame)
                panel.draw_line(*at, line=None, label=label, colour=colour, **look)
    return picture.finish(rows.drop(columns="shade"), caption, write_alt_text(panels, field))


def in_rows(
    rows: pd.DataFrame,
    *,
    y: str,
    x="value",
    hue: str | None = None,
    title="",
    name="in-rows",
    caption: str = "",
):
    """A dot with its interval for each name of column `y`: recovery, regret, differences, where half is gone.
    Infinite values are open marks at the right end. The column `words`, if there is one, says each number."""
    all_rows = rows
    rows = rows[rows[x].notna()]
    ends = [x, *interval_columns(x)]
    if rows.empty:
        return explain_nothing_drawn(all_rows, name)
    rows = rows.assign(**rows.reindex(columns=ends).astype(float))
    panels = split_panels(rows, "model", None)
    title = title or AXES.get(x, x)
    hues = rows[hue].astype(str) if hue else pd.Series("", rows.index)
    looks = choose_looks(hues.unique())
    names = [list(panel_rows[y].astype(str).unique()) for _, panel_rows in panels]
    tall = [max(60, (24 + 12 * (len(looks) - 1)) * len(panel_names) + 20) for panel_names in names]
    picture = Figure(name, title, "", [head for head, _ in panels], tall=tall)
    endless = np.isinf(rows[x])
    for panel, (_, panel_rows), panel_names in zip(picture.panels, panels, names):
        left, right = find_range([*(panel_rows[end] for end in ends), [0.0]])
        beyond = (
            right + 0.03 * (right - left) * endless[panel_rows.index].any()
        )  # room for open marks at the end
        heights = [len(panel_names) - 0.4, -0.6]
        percent = "x" * (x == "share" or title.startswith("Share"))
        panel.set_ranges([left, beyond], heights, percent, rows=list(map(rule_title, panel_names)))
        panel.draw_line([0, 0], [len(panel_names), -1], colour=GREY, width=1)
        of_hues = panel_rows.groupby(hues[panel_rows.index], sort=False)
        for number, (value, line) in enumerate(of_hues):
            beside = 0.16 * (number - (len(of_hues) - 1) / 2)
            places = line[y].astype(str).map(panel_names.index) + beside
            line = line.assign(at=places, label=line[y].astype(str).map(rule_title))
            look = looks[value] | {"label": rule_title(value) if hue else None}
            _draw_dots(panel, line, x, hue or "", (left, right), look)
    caption = caption or findings.state_ends(rows, y, x, title)
    if rows[ends[1:]].notna().any(axis=None):
        caption += " Bars: 95%."
    if endless.any():
        caption += " Open marks: more layers than were dropped."
    alt = [f"{head}: {findings.describe_ends(part, y, x)}" for head, part in panels]
    return picture.finish(rows, caption, "; ".join(alt) + ".")


def _draw_dots(
    panel: Panel, line: pd.DataFrame, x: str, hue: str, ends: tuple[float, float], look: dict
) -> None:
    """Draw dots at the heights `at` over their intervals, cut at the ends of the panel; open ones where infinite."""
    low, high = interval_columns(x)
    with_interval = line[line[low].notna()]
    bars = with_interval[[low, high]].clip(*ends).assign(gap=np.nan).to_numpy().ravel()
    panel.draw_line(bars, with_interval["at"].repeat(3), colour=look["colour"], width=1.2)
    for is_endless, dots in line.groupby(np.isinf(line[x])):
        hover = write_hover_texts(dots["label"], dots, hue, x)
        across = dots[x].clip(*ends)
        panel.draw_line(across, dots["at"], **look, filled=not is_endless, line=None, hover=hover)


def table(
    rows: pd.DataFrame, caption: str = "", *, columns: Sequence[str] | None = None, name: str = ""
):
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
            largest = rows[column].replace([np.inf, -np.inf], np.nan).abs().max()
            digits = 2 if largest >= 10 else 3
            cells = [
                format_number(*cell, digits=digits) for cell in rows[ends].itertuples(index=False)
            ]
        empty = rows[column].isna() & bool(name)
        texts[column.replace("_", " ")] = pd.Series(cells, rows.index, dtype=object).mask(empty, "")
    styled = as_table(texts, caption)
    if name:
        return styled.set_caption(f"{as_html(caption)} {make_csv_link(rows, name)}")
    return styled
