"""Scans drawn: a panel a task, a line a model or a form. Rows in, figure out: nothing is computed here."""

from collections.abc import Mapping, Sequence

import pandas as pd

from deeper_layers.report.figures.drawing import GREY, Figure, Picture, styles_of
from deeper_layers.report.figures.tables import course, require

START = "First layer dropped, l / L"
SIZE = "Layers dropped, n"


def panels(
    rows: pd.DataFrame, *, panels: Mapping[str, str], lines: Mapping[str, str], x: str, y: str, caption: str, name: str,
    levels: Mapping[str, float] | None = None, marks: Sequence[float] = (), least: float | None = None,
    log: bool = False, provenance: str = "",
) -> Figure:  # fmt: skip
    """Rows of `deeper_layers.report.questions.scan_rows`, those of `panels` and `lines` in their order.

    A line's look goes by its place in `lines`: figures that are given the same ones, those without rows too, draw each
    alike. `levels` are named heights, drawn grey; `marks` places along the axis, where a panel is divided. What lies
    lower than `least` is cut off, and the caption says so. `log`: on a logarithmic axis, without levels that have no
    place there, unless some height has none. `caption` is HTML.
    """
    rows = require(rows, "rows", "panel", "line", "size", "start", "at", "value", "low", "high", "items", "metric")
    drawn = rows[rows["panel"].isin(panels) & rows["line"].isin(lines)]
    low, high = drawn[["low", "value"]].min(axis=None), drawn[["high", "value"]].max(axis=None)
    cut = least is not None and bool(low < least)
    low = least if cut else low
    log, levels = log and bool(low > 0), levels or {}
    if log:
        levels = {level: height for level, height in levels.items() if height > 0}
    heights = [low, high, *levels.values()]
    if log:
        edge = max((max(heights) / min(heights)) ** 0.04, 1.05)
        bottom, top = min(heights) / edge, max(heights) * edge
    else:
        edge = 0.04 * (max(heights) - min(heights)) or 0.05
        bottom, top = min(heights) - edge, max(heights) + edge
    left, right = float(drawn["at"].min()), float(drawn["at"].max())
    titles = list(panels.values())
    picture = Picture(x, y, titles=titles, columns={1: 1, 2: 2, 4: 2}.get(len(titles), 3), percent=x == START, log=log)
    courses, said = [], "l / L" if x == START else "n"
    for panel, key in enumerate(panels):
        for mark in marks:
            picture.line([mark, mark], [bottom, top], colour=GREY, line="dot", width=0.8, panel=panel)
        for place, (label, height) in enumerate(levels.items()):
            how = {"colour": GREY, "line": ("dash", "dashdot")[place % 2], "width": 1.2}
            picture.line([left, right], [height, height], **how, panel=panel, label=label)
        for (line, label), style in zip(lines.items(), styles_of(lines)):
            own = drawn[(drawn["panel"] == key) & (drawn["line"] == line)].sort_values("at")
            if len(own):
                picture.accuracy(own, style, label, panel, across="at")
                courses.append(f"{panels[key]}, {label}, {course(own.rename(columns={'at': said}), said, 'value')}")
    picture.caption = caption + " The vertical axis is logarithmic." * log
    picture.caption += f" What lies below {least:g} is cut off; the data have it." if cut else ""
    picture.alt = f"Line charts: {y}{', on a logarithmic axis,' * log} against {x}. {'; '.join(courses)}."
    span = 0.02 * (right - left or 1)
    return picture.finish(name, provenance, drawn, x=[left - span, right + span], y=[bottom, top])
