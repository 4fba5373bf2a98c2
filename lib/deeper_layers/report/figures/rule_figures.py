"""Rules side by side, a row each. Rows in, figure out: nothing is computed here."""

from collections.abc import Mapping

import pandas as pd

from deeper_layers.report.figures.drawing import GREY, Figure, Picture, details_of, styles_of, text_of
from deeper_layers.report.figures.tables import require
from deeper_layers.report.names import as_html, as_plotly


def rules_in_rows(
    rows: pd.DataFrame, *, across: str, said: str, model: str, name: str, levels: Mapping[str, float] | None = None,
    provenance: str = "",
) -> Figure:  # fmt: skip
    """A number of each rule with its 95% interval, in the order of the rows.

    `rows` has the columns rule, value, low and high; `across` is what the numbers are, `said` the first sentence of the
    caption, and `levels` numbers to compare with, by what they are.
    """
    rows = require(rows, "rows", "rule", "value", "low", "high")
    rules, levels = rows["rule"].tolist(), levels or {}
    picture = Picture(across, None, inches=(6.6, 1.2 + 0.3 * len(rules)))
    (style,) = styles_of(["rule"])
    places = [place - 0.35 for place in range(len(rules))]  # beside the name, which stands above its number
    for place, low, high in zip(places, rows["low"], rows["high"]):
        picture.line([low, high], [place, place], colour=style["colour"], width=1.5)
    hover = "%{customdata[0]}<br>%{x}, 95% interval %{customdata[1]} to %{customdata[2]}"
    look = {**style, "line": None, "size": 6, "details": details_of(rows, "rule", "low", "high"), "hover": hover}
    picture.line(rows["value"], places, **look)
    for (level, value), line in zip(levels.items(), ("dash", "dot")):
        look = {"colour": GREY, "line": line, "width": 1.2, "label": level, "hover": f"{as_plotly(level)}: {value:.3f}"}
        picture.line([value, value], [-0.9, len(rules) - 0.7], **look)
    shown = [*rows["low"].dropna(), *rows["high"].dropna(), *rows["value"].dropna(), *levels.values()]
    room = 0.05 * ((max(shown) - min(shown)) or 1)
    picture.caption = f"{as_html(said)} {as_html(model)}; 95% intervals; the best rule is on top."
    courses = ", ".join(f"{rule} {text_of(value)}" for rule, value in zip(rules, rows["value"]))
    picture.alt = f"Rules of {model} in rows, {across}: {courses}."
    # names stand at the left, within the panel
    ends = [min(shown) - 0.35 * (max(shown) - min(shown) or 1), max(shown) + room]
    return picture.finish(name, provenance, rows, x=ends, y=[len(rules) - 0.7, -0.9], named_rows=rules)
