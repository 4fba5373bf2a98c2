"""Rows in, figure out: what residuals look like, layer by layer. Rows and figures as in paper_figures.py."""

from collections.abc import Mapping

import pandas as pd

from deeper_layers.report.figures.drawing import Figure, Picture, details_of, styles_of
from deeper_layers.report.figures.tables import course, require
from deeper_layers.report.names import as_html, as_plotly

LAYER, STATE = "Layer, l", "Residual that enters layer l; the last one leaves the last layer"


def by_layer(
    rows: pd.DataFrame, *, lines: Mapping[str, str], across: str, up: str, model: str, name: str,
    provenance: str = "",
) -> Figure:  # fmt: skip
    """Measures against depth, a line each.

    `rows` has the columns metric, start (layer, or state between layers) and value; `lines` says which metrics are
    drawn and under which names, `across` and `up` what the axes are.
    """
    rows = require(rows, "rows", "metric", "start", "value")
    picture, courses = Picture(across, up), []
    data = rows[rows["metric"].isin(lines)]
    for (metric, label), style in zip(lines.items(), styles_of(lines)):
        own = data[data["metric"] == metric].sort_values("start")
        hover = f"{as_plotly(label)}<br>l = %{{customdata[0]}}: %{{y}}"
        look = {"label": label, "details": details_of(own, "start"), "hover": hover}
        picture.line(own["start"], own["value"], **style, **look)
        courses.append(f"{label}, {course(own, 'start', 'value')}")
    low, high = data["value"].min(), data["value"].max()
    room = 0.05 * ((high - low) or 1)
    picture.caption = f"{as_html(model)}: {'; '.join(map(as_html, lines.values()))}, by depth."
    picture.alt = f"Line chart for {model}, by depth: {'; '.join(courses)}."
    ends = [0 if low >= 0 else low - room, high + room]
    return picture.finish(name, provenance, data, x=[-0.5, data["start"].max() + 0.5], y=ends)
