"""Names in rows, best first, a number with its interval in each. Rows in, figure out: nothing is computed here."""

from collections.abc import Mapping

import pandas as pd

from deeper_layers.report.figures.drawing import GREY, Figure, Picture, details_of, styles_of, text_of
from deeper_layers.report.figures.tables import require
from deeper_layers.report.names import as_html, as_plotly

ABOVE = 0.75  # of a row, from its line up: where its numbers stand, beside its name
HEIGHT = 24  # of a row, pixels: of a name, or of three lines of numbers


def in_rows(
    rows: pd.DataFrame, *, across: str, said: str, model: str, name: str, levels: Mapping[str, float] | None = None,
    provenance: str = "",
) -> Figure:  # fmt: skip
    """A number of each name with its 95% interval, in the order of the rows; of several lines each in its colour.

    `rows` has the columns row (the name), value, low and high, and line, where there are several; `across` is what the
    numbers are, `said` the first sentence of the caption, and `levels` numbers to compare with, by what they are.
    """
    rows = require(rows, "rows", "row", "value", "low", "high")
    names, levels = list(dict.fromkeys(rows["row"])), levels or {}
    lines: list[str | None] = list(dict.fromkeys(rows["line"])) if "line" in rows else [None]
    picture = Picture(across, None, inches=(6.6, 1.2 + 0.3 * len(names) * max(1, len(lines) / 3)))
    for number, (line, style) in enumerate(zip(lines, styles_of(list(map(str, lines))))):
        own = rows if line is None else rows[rows["line"] == line]
        y = own["row"].map(names.index) - ABOVE + ABOVE * (number + 0.5) / len(lines)
        for place, low, high in zip(y, own["low"], own["high"]):
            picture.line([low, high], [place, place], colour=style["colour"], width=1.5, label=line)
        hover = "%{customdata[0]}<br>%{x}, 95% interval %{customdata[1]} to %{customdata[2]}"
        hover = hover if line is None else f"{as_plotly(line)}<br>{hover}"
        look = {"line": None, "size": 6, "details": details_of(own, "row", "low", "high"), "hover": hover}
        picture.line(own["value"], y, **{**style, **look}, label=line)
    for (level, value), stroke in zip(levels.items(), ("dash", "dot")):
        look = {"colour": GREY, "line": stroke, "width": 1.2, "label": level}
        picture.line([value] * 2, [-0.9, len(names) - 0.7], **look, hover=f"{as_plotly(level)}: {value:.3f}")
    shown = [*rows["low"].dropna(), *rows["high"].dropna(), *rows["value"].dropna(), *levels.values()]
    room = 0.05 * ((max(shown) - min(shown)) or 1)
    picture.caption = f"{as_html(said)} {as_html(model)}; 95% intervals."
    told = rows["row"] if lines == [None] else rows["row"] + ", " + rows["line"]
    courses = ", ".join(f"{row} {text_of(value)}" for row, value in zip(told, rows["value"]))
    picture.alt = f"{model}, names in rows, {across}: {courses}."
    # names stand at the left, within the panel
    beside = 0.35 if len(lines) == 1 else 0.6
    ends = [min(shown) - beside * (max(shown) - min(shown) or 1), max(shown) + room]
    height = HEIGHT * max(1.0, len(lines) / 3)
    places = {row: place for place, row in enumerate(names)}
    return picture.finish(
        name, provenance, rows, x=ends, y=[len(names) - 0.7, -0.9], named_rows=places, row_height=height
    )
