"""One picture drawn twice: for print (matplotlib, styled by seaborn) and for the site (plotly), panel by panel.

The plotly half is brought to life by book/assets/plots.js, which adds what all plots share and puts panels beside each
other where the screen is wide; the static half stands in where scripts are off. What is drawn, and in which words, is
decided in figures.py.
"""

import base64
import io
import json
import math
import os
import re
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import PercentFormatter

from deeper_layers.errors import InputError
from deeper_layers.report.names import as_csv, as_html, as_plotly, clipped
from deeper_layers.results.columns import VECTORS

INK, GREY = "#1a1a1a", "#8a8a8a"  # plots.js gives INK the colour of the page's text
# Okabe and Ito's colours stay distinct under every common colour blindness; markers serve black and white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
HEAT = matplotlib.colormaps["viridis"]
PRINT = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # the widest of what stands in for it: letters stay letters, so that a page is light
    "text.parse_math": False,  # names of models and tasks are shown as they are, dollar signs too
}
HOVER = "%{text}<extra></extra>"
NOTEBOOK = "DEEPER_LAYERS_NOTEBOOK"  # environment: the name of the notebook that runs, for the command below a figure


class Figure:
    """One picture, twice: every element is drawn for print and for the site. It shows itself in a notebook, with its
    rows and the command that makes it.

    `name` identifies the figure on its page and names its files: a-z, 0-9 and single hyphens; `titles`: one for each
    panel, filled row by row; `tall`: the height of each row in pixels; `percent`: the axes, "x" or "y" or both, that
    are shares.
    """

    @matplotlib.rc_context(PRINT)
    def __init__(self, name: str, x: str, y: str, titles: Sequence[str], *, columns=1, tall=(), percent=""):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise InputError(f"figure name {name!r}; expected a-z, 0-9 and single hyphens; rename it")
        self.name, self.percent, self.scale, self.legend = name, percent, None, {}
        rows = math.ceil(len(titles) / columns)
        tall = list(tall) or [340 if len(titles) == 1 else 200 if columns > 1 else 240] * rows
        size = 6.6 if columns < 3 else 2.5 * columns, (sum(tall) + 60 * rows) / 90
        self.static = matplotlib.figure.Figure(size, layout="constrained")
        ratios = {"height_ratios": tall}
        axes = self.static.subplots(rows, columns, squeeze=False, gridspec_kw=ratios).flatten()
        for spare in axes[len(titles) :]:
            spare.remove()
        self.axes, self.columns, self.panels = axes[: len(titles)], columns, []
        for panel, (ax, title) in enumerate(zip(self.axes, titles, strict=True)):
            ax.set_title("\n".join(map(clipped, title.split("\n"))), loc="left")
            ax.set(xlabel=x if panel + columns >= len(titles) else None, ylabel=None if panel % columns else y)
            layout = {"title": {"text": in_lines(title)}, "height": tall[panel // columns]}
            self.panels.append({"data": [], "layout": layout | {"xaxis": {"title": x}, "yaxis": {"title": y}}})

    @matplotlib.rc_context(PRINT)
    def finish(self, data: pd.DataFrame, caption: str, alt: str) -> "Figure":
        """With the rows drawn, a caption, which may hold <em> <strong> <b> <i> <code> <sub> <sup> <br>, and the picture
        in words, for readers who do not see it."""
        vectors = [name for name in VECTORS if name in data and data[name].dtype == object]
        self.data, self.caption, self.alt = data.drop(columns=vectors), caption, alt
        if self.legend:
            names = list(map(clipped, self.legend))
            columns = max(1, min(4, len(names), 80 // (4 + max(map(len, names)))))
            self.static.legend(self.legend.values(), names, loc="outside upper center", ncols=columns)
            wide, high = self.static.get_size_inches()
            self.static.set_size_inches(wide, high + 0.2 * (math.ceil(len(names) / columns) - 1))
        # Laid out once and for all, in two passes as the second corrects the first: with a pass for each time it
        # is saved, the picture's bytes would change.
        self.static.draw_without_rendering()
        self.static.draw_without_rendering()
        self.static.set_layout_engine("none")
        return self

    @property
    def live(self) -> dict:
        """The panels (plotly's data and layout of each), how many lie beside each other, and the scale of colours."""
        return {"panels": self.panels, "columns": self.columns, "scale": self.scale}

    def svg(self) -> bytes:
        """The static picture; the same rows give the same bytes."""
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.static.savefig(buffer, format="svg", dpi=200, metadata=nothing)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: a picture that needs no script, and the live plot's data for plots.js."""
        # In JSON "<" occurs only inside strings, so escaping all of them changes nothing, and no label can end the
        # script; browsers reject NaN.
        live = json.dumps(self.live, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        caption = re.sub(r"<(?!/?(?:em|strong|b|i|code|sub|sup|br)>)", "&lt;", self.caption)
        image = base64.b64encode(self.svg()).decode()
        notebook = os.environ.get(NOTEBOOK)
        made = f"papermill notebooks/{notebook}.ipynb out.ipynb -p model ORG/NAME"
        made = f' <code class="command">{as_html(made)}</code>' if notebook else ""
        return (
            f'<figure class="measured" id="{self.name}"><div class="plot">'
            f'<img alt="{as_html(self.alt)}" src="data:image/svg+xml;base64,{image}"></div>'
            f'<script type="application/json" class="plotly-data">{live}</script><figcaption>{caption}'
            f'<span class="downloads">{csv_link(self.data, self.name)} '
            f'<a class="picture" download="{self.name}.svg" hidden>picture (SVG)</a>'
            f"{made}</span></figcaption></figure>"
        )

    # ---- elements ---------------------------------------------------------------------------------------------------

    def line(
        self,
        x,
        y,
        *,
        colour,
        panel=0,
        label=None,
        line: str | None = "solid",
        width=1.5,
        marker=None,
        size=4,
        filled=True,
        hover=None,
    ):
        """Points and the line through them, one of which may be None; `hover` are texts, one a point."""
        look = {"color": colour, "linestyle": LINES[line] if line else "", "linewidth": width}
        dots = {"marker": MARKERS[marker] if marker else "", "markersize": size}
        (drawn,) = self.axes[panel].plot(x, y, **look, **dots, markerfacecolor=colour if filled else "none")
        if label is not None:
            self.legend.setdefault(label, drawn)
        trace = {"mode": "+".join(["lines"] * bool(line) + ["markers"] * bool(marker)) or "none", "hoverinfo": "skip"}
        trace |= {"line": {"color": colour, "width": 1.3 * width, "dash": line}} if line else {}
        if marker:
            trace["marker"] = {"color": colour, "size": size + 3, "symbol": marker + "-open" * (not filled)}
        if hover is not None:
            trace |= {"text": list(map(in_lines, hover)), "hoverinfo": "text", "hovertemplate": HOVER}
        self._trace(panel, label, x=values_of(x), y=values_of(y), showlegend=label is not None, **trace)

    def band(self, x, low, high, *, colour, panel=0, label=None):
        """A band between two heights, in one piece for each run of them that has no gap."""
        x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
        known = np.isfinite(low) & np.isfinite(high)
        self.axes[panel].fill_between(x, low, high, where=known, color=colour, alpha=0.18, linewidth=0)
        across, up, places = [], [], np.flatnonzero(known)
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            across += [*values_of(x[run]), *values_of(x[run][::-1]), None]
            up += [*values_of(low[run]), *values_of(high[run][::-1]), None]
        shade = "rgba({:.0f},{:.0f},{:.0f},0.18)".format(*(255 * part for part in to_rgb(colour)))
        look = {"fill": "toself", "fillcolor": shade, "mode": "none", "hoverinfo": "skip", "showlegend": False}
        self._trace(panel, label, x=across, y=up, **look)

    @matplotlib.rc_context(PRINT)
    def heat(self, z: np.ndarray, *, hover, title: str, panel=0, x0=0, y0=0):
        """A map of values from 0 to 1, [rows from `y0`, columns from `x0` on]; `hover` are texts of its shape."""
        edges = np.arange(z.shape[1] + 1) + x0 - 0.5, np.arange(z.shape[0] + 1) + y0 - 0.5
        look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "rasterized": True, "zorder": 2}
        self.colour_bar(self.axes[panel].pcolormesh(*edges, np.ma.masked_invalid(z), **look), title)
        look = {"x0": x0, "y0": y0, "zmin": 0, "zmax": 1, "showscale": False, "hoverongaps": False, "text": hover}
        look |= {"colorscale": self.scale["stops"], "hovertemplate": HOVER}  # of numbers alone
        self._trace(panel, None, type="heatmap", z=[values_of(row) for row in z], **look)

    @matplotlib.rc_context(PRINT)
    def colour_bar(self, mappable, title: str):
        """The scale of all colours; only the first call draws it."""
        if self.scale is None:
            self.static.colorbar(mappable, ax=self.axes.tolist(), label=title)
            stops = [[stop, to_hex(mappable.cmap(stop))] for stop in np.linspace(0, 1, 11).round(1).tolist()]
            self.scale = {"title": title, "stops": stops, "ends": values_of(mappable.get_clim())}

    def reach(self, panel: int, x: Sequence[int | float], y: Sequence[int | float], rows: Sequence[str] = ()):
        """Ranges of the axes of a panel; `rows` are names of the heights 0, 1, 2, ..., from the top."""
        ax, layout = self.axes[panel], self.panels[panel]["layout"]
        ax.set(xlim=x, ylim=y)
        for which, axis, ends in (("x", ax.xaxis, x), ("y", ax.yaxis, y)):
            layout[f"{which}axis"]["range"] = list(map(float, ends))
            if which in self.percent:
                axis.set_major_formatter(PercentFormatter(1, decimals=0))
                layout[f"{which}axis"]["tickformat"] = ".0%"
        if rows:
            ax.set_yticks(range(len(rows)), list(map(clipped, rows)))
            layout["rows"] = list(map(as_plotly, rows))

    def _trace(self, panel, label, **trace):
        self.panels[panel]["data"].append(trace if label is None else {"name": as_plotly(label), **trace})


def csv_link(rows: pd.DataFrame, name: str) -> str:
    """A link that saves rows as NAME.csv; they lie in it."""
    content = base64.b64encode(as_csv(rows).encode(errors="backslashreplace")).decode()
    return f'<a download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{content}">data (CSV)</a>'


def in_lines(text: str) -> str:
    """Text of several lines in a live plot; each may hold names of others."""
    return "<br>".join(map(as_plotly, text.split("\n")))


def values_of(values) -> list[float | int | None]:
    """Four significant digits are more than a screen shows; JSON has no NaN, so missing is null."""
    found = [float(f"{value:.4g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=float)]
    return [int(value) if value is not None and value.is_integer() else value for value in found]
