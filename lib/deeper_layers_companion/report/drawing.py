"""Draw each picture twice, panel by panel: for print (matplotlib, styled by seaborn) and for the site (plotly).

book/assets/plots.js makes the plotly plots: it adds what all plots share, and puts panels beside each other on a wide
screen. The static picture is shown where scripts are off. figures.py decides what is drawn, and its words.
"""

import base64
import io
import json
import os
import re
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.ticker import MaxNLocator, PercentFormatter

from deeper_layers_companion.report.names import as_csv, as_html, as_plotly, shorten
from deeper_layers_companion.results.frames import VECTORS

INK, GREY = "#1a1a1a", "#8a8a8a"  # plots.js gives INK the colour of the page's text
# Okabe and Ito's colours stay distinct under every common colour blindness; markers serve black and white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK]
MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
HEAT = matplotlib.colormaps["viridis"]
PRINT = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # a browser's substitutes are no wider; text stays text, so that pages are light
    "figure.constrained_layout.w_pad": 0.08,  # inches: browsers set the letters a little wider
    "text.parse_math": False,  # names of models and tasks are shown as they are, dollar signs too
}
NOTEBOOK = "DEEPER_LAYERS_NOTEBOOK"  # environment variable: the running notebook, for the command below a figure


class Panel:
    """A panel of a figure. Each method draws an element for print, on `ax`, and for the site, as plotly's data."""

    def __init__(self, ax, title: str, x: str, y: str, height: int, legend: dict):
        ax.set_title("\n".join(map(shorten, title.split("\n"))), loc="left")
        layout = {"title": {"text": as_lines(title)}, "height": height, "xaxis": {"title": x}, "yaxis": {"title": y}}
        self.ax, self.legend, self.live = ax, legend, {"data": [], "layout": layout}

    def draw_line(
        self, x, y, *, colour, label=None, line="solid", width=1.5, marker=None, size=4, filled=True, hover=None
    ) -> None:
        """Draw points and the line through them, one of which may be None; `hover` has a text for each point."""
        look = {"linestyle": LINES.get(line, ""), "marker": MARKERS.get(marker, ""), "color": colour}
        look |= {"linewidth": width, "markersize": size, "markerfacecolor": colour if filled else "none"}
        (artist,) = self.ax.plot(x, y, **look)
        if label is not None:
            self.legend.setdefault(label, artist)
        trace = {"mode": "+".join(["lines"] * bool(line) + ["markers"] * bool(marker)), "hoverinfo": "skip"}
        trace |= {"line": {"color": colour, "width": 1.3 * width, "dash": line}} if line else {}
        if marker:
            trace["marker"] = {"color": colour, "size": size + 3, "symbol": marker + "-open" * (not filled)}
        if hover is not None:
            trace |= {"text": list(map(as_lines, hover)), "hoverinfo": "text"}
            trace["hovertemplate"] = "%{text}<extra></extra>"
        self._add_trace(label, x=round_values(x), y=round_values(y), showlegend=label is not None, **trace)

    def draw_band(self, x, low, high, *, colour, label=None) -> None:
        """Draw a band between two heights, in one piece for each run without gaps."""
        x, low, high = (np.ma.masked_invalid(np.asarray(values, dtype=float)) for values in (x, low, high))
        self.ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        across, up = [], []
        for run in np.ma.clump_unmasked(high - low):
            across += [*round_values(x[run]), *round_values(x[run][::-1]), None]
            up += [*round_values(low[run]), *round_values(high[run][::-1]), None]
        shade = "rgba({:.0f},{:.0f},{:.0f},0.18)".format(*(255 * part for part in to_rgb(colour)))
        look = {"fill": "toself", "fillcolor": shade, "mode": "none", "hoverinfo": "skip", "showlegend": False}
        self._add_trace(label, x=across, y=up, **look)

    def draw_map(self, z: np.ndarray, hover: list[list[str]]) -> None:
        """Draw a map of values from 0 to 1, [rows from 1 on, columns from 0 on]; `hover` has a text for each value."""
        edges = np.arange(z.shape[1] + 1) - 0.5, np.arange(z.shape[0] + 1) + 0.5
        look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "rasterized": True, "zorder": 2}
        self.ax.pcolormesh(*edges, np.ma.masked_invalid(z), **look)
        look = {"x0": 0, "y0": 1, "zmin": 0, "zmax": 1, "showscale": False, "hoverongaps": False, "text": hover}
        look |= {"colorscale": list_colour_stops(HEAT), "hovertemplate": "%{text}<extra></extra>"}  # numbers only
        self._add_trace(None, type="heatmap", z=[round_values(row) for row in z], **look)

    def set_ranges(self, x: Sequence[float], y: Sequence[float], percent: str = "", rows: Sequence[str] = ()) -> None:
        """Set the ranges of the axes; `percent` names axes of shares, `rows` the heights 0, 1, ... from the top."""
        layout = self.live["layout"]
        self.ax.set(xlim=x, ylim=y)
        for axis_name, axis, ends in (("x", self.ax.xaxis, x), ("y", self.ax.yaxis, y)):
            layout[f"{axis_name}axis"]["range"] = list(map(float, ends))
            axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 4, 5, 10]))
            if axis_name in percent:
                axis.set_major_formatter(PercentFormatter(1, decimals=0))
                layout[f"{axis_name}axis"]["tickformat"] = ".0%"
        if rows:
            self.ax.set_yticks(range(len(rows)), list(map(shorten, rows)))
            layout["rows"] = list(map(as_plotly, rows))

    def _add_trace(self, label: str | None, **trace) -> None:
        self.live["data"].append(trace if label is None else {"name": as_plotly(label), **trace})


class Figure:
    """One picture in both forms. A notebook shows it with its rows and the command that makes it.

    `name` identifies the figure on its page and names its files: a-z, 0-9 and single hyphens. `titles` has one title
    for each panel, row by row; `tall` are the heights of the rows in pixels, or that of each.
    """

    @matplotlib.rc_context(PRINT)
    def __init__(self, name: str, x: str, y: str, titles: Sequence[str], *, columns: int = 1, tall=0):
        rows = -(-len(titles) // columns)
        tall = np.broadcast_to(tall or (340 if len(titles) == 1 else 200 if columns > 1 else 240), rows).tolist()
        self.name, self.columns, self.scale, self.legend = name, columns, None, {}
        size = 6.6 if columns < 3 else 2.5 * columns, (sum(tall) + 60 * rows) / 90
        self.static = matplotlib.figure.Figure(size, layout="constrained")
        axes = self.static.subplots(rows, columns, squeeze=False, height_ratios=tall).flatten()
        for spare in axes[len(titles) :]:
            spare.remove()
        places = enumerate(zip(axes, titles))
        self.panels = [Panel(ax, title, x, y, tall[index // columns], self.legend) for index, (ax, title) in places]
        for index, panel in enumerate(self.panels):
            panel.ax.set(xlabel=x if index + columns >= len(titles) else None, ylabel=None if index % columns else y)

    @matplotlib.rc_context(PRINT)
    def add_scale(self, title: str, colours=HEAT, ends: Sequence = (0, 1)) -> ScalarMappable:
        """Add the scale of the colours to the figure, and return it."""
        scale = ScalarMappable(Normalize(*ends), colours)
        self.static.colorbar(scale, ax=[panel.ax for panel in self.panels], label=title, ticks=list(ends))
        self.scale = {"title": title, "stops": list_colour_stops(colours), "ends": round_values(ends)}
        return scale

    @matplotlib.rc_context(PRINT)
    def finish(self, data: pd.DataFrame, caption: str, alt: str) -> "Figure":
        """Add the rows that were drawn, a caption, which may hold <em> <strong> <b> <i> <code> <sub> <sup> <br>, and
        the alternative text; then lay out the figure."""
        vectors = [name for name in VECTORS if name in data and data[name].dtype == object]
        self.data, self.caption, self.alt = data.drop(columns=vectors), caption, alt
        if names := list(map(shorten, self.legend)):
            columns = max(1, min(4, len(names), 80 // (4 + max(map(len, names)))))
            self.static.legend(self.legend.values(), names, loc="outside upper center", ncols=columns)
            wide, high = self.static.get_size_inches()
            self.static.set_size_inches(wide, high + 0.2 * (-(-len(names) // columns) - 1))
        for _ in range(2):  # the second layout corrects the first
            self.static.draw_without_rendering()
        self.static.set_layout_engine("none")
        return self

    def svg(self) -> bytes:
        """The static picture; the same rows give the same bytes."""
        buffer, nothing = io.BytesIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            self.static.savefig(buffer, format="svg", dpi=200, metadata=nothing)
        return buffer.getvalue()

    @property
    def live(self) -> dict:
        """The panels (plotly's data and layout of each), the number of columns, and the scale of colours."""
        return {"panels": [panel.live for panel in self.panels], "columns": self.columns, "scale": self.scale}

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows: a picture that needs no script, and the live plot's data for plots.js."""
        # In JSON "<" occurs only inside strings. Escaped, no label can end the script. Browsers reject NaN.
        live = json.dumps(self.live, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        caption = re.sub(r"<(?!/?(?:em|strong|b|i|code|sub|sup|br)>)", "&lt;", self.caption)
        notebook = as_html(os.environ.get(NOTEBOOK, ""))
        command = f"papermill notebooks/{notebook}.ipynb out.ipynb -p model ORG/NAME"
        made = f' <code class="command">{command}</code>' if notebook else ""
        return (
            f'<figure class="measured" id="{self.name}"><div class="plot"><img alt="{as_html(self.alt)}" '
            f'src="data:image/svg+xml;base64,{base64.b64encode(self.svg()).decode()}"></div>'
            f'<script type="application/json" class="plotly-data">{live}</script><figcaption>{caption}'
            f'<span class="downloads">{make_csv_link(self.data, self.name)} '
            f'<a class="picture" download="{self.name}.svg" hidden>picture (SVG)</a>{made}</span></figcaption></figure>'
        )


def make_csv_link(rows: pd.DataFrame, name: str) -> str:
    """A link that saves rows as NAME.csv; its address holds the rows."""
    content = base64.b64encode(as_csv(rows).encode(errors="backslashreplace")).decode()
    return f'<a download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{content}">data (CSV)</a>'


def as_lines(text: str) -> str:
    """Text of several lines for plotly, escaped."""
    return "<br>".join(map(as_plotly, text.split("\n")))


def list_colour_stops(colours) -> list:
    """A colour map as plotly's list of stops."""
    return [[stop, to_hex(colours(stop))] for stop in np.linspace(0, 1, 11).round(1).tolist()]


def round_values(values) -> list[float | int | None]:
    """Values for JSON: four significant digits, more than a screen shows; None where missing, as JSON has no NaN."""
    rounded = [float(f"{value:.4g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=float)]
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]
