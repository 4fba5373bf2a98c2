"""One picture drawn twice: for print (matplotlib, styled by seaborn) and for the site (plotly).

The plotly half is brought to life by book/assets/plots.js; the static half stands in where scripts are off. What is
drawn, and in which words, is decided in figures.py.
"""

import base64
import html
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import NullLocator, PercentFormatter

from deeper_layers.errors import InputError
from deeper_layers.report.names import as_csv, as_html, as_plotly, clipped, visible

INK, GREY = "#1a1a1a", "#8a8a8a"
# Okabe and Ito's colours stay distinct under every common colour blindness; markers serve black and white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"]
LETTERS = dict(zip(MARKERS, "os^DvP", strict=True))  # matplotlib's
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
HEAT = matplotlib.colormaps["viridis"]
PRINT = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # the widest of what stands in for it: letters stay letters, so that a page is light
    "text.parse_math": False,  # names of models and tasks are shown as they are, dollar signs too
}
NOTEBOOK = "DEEPER_LAYERS_NOTEBOOK"  # environment: the name of the notebook that runs, for the command below a figure


@dataclass(frozen=True)
class Figure:
    """One picture, twice: it shows itself in a notebook, with its rows and the command that makes it."""

    name: str  # identifies the figure on its page and names its files: a-z, 0-9 and single hyphens
    static: matplotlib.figure.Figure = field(repr=False)
    interactive: go.Figure = field(repr=False)  # layout.meta holds what differs between wide and narrow screens
    caption: str  # may hold <em> <strong> <b> <i> <code> <sub> <sup> <br>; every other tag is shown as text
    alt: str  # the picture in words, for readers who do not see it
    data: pd.DataFrame = field(repr=False)  # the rows drawn

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise InputError(f"figure name {self.name!r}; expected a-z, 0-9 and single hyphens; rename it")

    @property
    def command(self) -> str:
        notebook = os.environ.get(NOTEBOOK)
        return f"papermill notebooks/{notebook}.ipynb out.ipynb -p model ORG/NAME" if notebook else ""

    def saying(self, more: str) -> "Figure":
        """The same picture with a sentence more in its caption, plain text."""
        return replace(self, caption=f"{self.caption} {html.escape(visible(more), quote=False)}".strip())

    def svg(self) -> bytes:
        """The static picture; the same rows give the same bytes."""
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.static.savefig(buffer, format="svg", dpi=200, metadata=nothing)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: a picture that needs no script, and the live plot's data for plots.js."""
        # allow_nan=False: a missing value must be null by now, browsers reject NaN. In JSON "<" occurs only
        # inside strings, so escaping all of them changes nothing, and no label can end the script.
        plot = json.dumps(self.interactive.to_plotly_json(), separators=(",", ":"), allow_nan=False)
        plot = plot.replace("<", "\\u003c")
        caption = re.sub(r"<(?!/?(?:em|strong|b|i|code|sub|sup|br)>)", "&lt;", self.caption)
        image = base64.b64encode(self.svg()).decode()
        rows = base64.b64encode(as_csv(self.data).encode(errors="backslashreplace")).decode()
        made = f' <code class="command">{as_html(self.command)}</code>' if self.command else ""
        return (
            f'<figure class="measured" id="{self.name}"><div class="plot">'
            f'<img alt="{as_html(self.alt)}" src="data:image/svg+xml;base64,{image}"></div>'
            f'<script type="application/json" class="plotly-data">{plot}</script><figcaption>{caption}'
            f'<span class="downloads"><a download="{self.name}.csv" href="data:text/csv;charset=utf-8;base64,{rows}">'
            f'data (CSV)</a> <a class="picture" download="{self.name}.svg" hidden>picture (SVG)</a>{made}</span>'
            "</figcaption></figure>"
        )


def save(figure: Figure, folder: str | Path) -> tuple[Path, Path]:
    """Write NAME.svg (the static picture) and NAME.csv (its rows; missing is empty), return both paths."""
    picture, rows = (Path(folder) / f"{figure.name}.{suffix}" for suffix in ("svg", "csv"))
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(figure.svg())
    rows.write_text(as_csv(figure.data), encoding="utf-8", errors="backslashreplace")
    return picture, rows


class Picture:
    """A picture under way: every element is drawn twice, for print and for the site.

    `titles`: one for each panel, filled row by row; `tall`: the height of each row in pixels; `percent`: the axes, "x"
    or "y" or both, that are shares; `log`: heights on a logarithmic axis.
    """

    @matplotlib.rc_context(PRINT)
    def __init__(
        self, x, y, titles: Sequence[str] = ("",), *, columns=1, tall: Sequence[int] = (), percent="", log=False
    ):
        self.x_title, self.y_title, self.titles, self.columns = x, y, list(titles), columns
        self.percent, self.log, self.scale = percent, log, {}
        self.rows = math.ceil(len(self.titles) / columns)
        self.tall = list(tall) or [340 if len(self.titles) == 1 else 200 if columns > 1 else 240] * self.rows
        self.numbers = ["", *map(str, range(2, len(self.titles) + 1))]  # plotly's names: xaxis, xaxis2, xaxis3
        self.traces, self.notes, self.legend = [], [], {}
        self.ranges = [{"x": None, "y": None} for _ in self.titles]
        self.named_rows: dict[int, list[str]] = {}
        size = 6.6 if columns < 3 else 2.5 * columns, (sum(self.tall) + 60 * self.rows) / 90
        self.static = matplotlib.figure.Figure(size, layout="constrained")
        ratios = {"height_ratios": self.tall}
        self.axes = self.static.subplots(self.rows, columns, squeeze=False, gridspec_kw=ratios).flatten()
        for spare in self.axes[len(self.titles) :]:
            spare.remove()
        for panel, (ax, title) in enumerate(zip(self.axes, self.titles, strict=False)):
            ax.set_title("\n".join(map(clipped, title.split("\n"))), loc="left")
            ax.set_ylabel(y if panel % columns == 0 else None)
            if panel + columns >= len(self.titles):  # nothing below
                ax.set_xlabel(x)

    def line(self, x, y, *, colour, panel=0, label=None, line: str | None = "solid", width=1.5, marker=None, size=4,
             filled=True, hover=None):  # fmt: skip
        """Points and the line through them, one of which may be None; `hover` are texts, one a point."""
        look = {"color": colour, "linestyle": LINES[line] if line else "", "linewidth": width}
        dots = {"marker": LETTERS[marker] if marker else "", "markersize": size}
        (drawn,) = self.axes[panel].plot(x, y, **look, **dots, markerfacecolor=colour if filled else "none")
        first = label is not None and label not in self.legend  # one entry, however many panels have the line
        if first:
            self.legend[label] = drawn
        trace = {"mode": "+".join(["lines"] * bool(line) + ["markers"] * bool(marker)) or "none"}
        trace |= {"line": {"color": colour, "width": 1.3 * width, "dash": line}} if line else {}
        if marker:
            trace["marker"] = {"color": colour, "size": size + 3, "symbol": marker + "-open" * (not filled)}
        if colour == INK:
            trace["meta"] = "ink"  # plots.js gives it the colour of the page's text
        told = {"text": list(map(in_lines, hover or ())), "hovertemplate": "%{text}<extra></extra>"}
        trace |= told if hover else {"hoverinfo": "skip"}
        self._trace(panel, label, x=values_of(x), y=values_of(y), showlegend=first, **trace)

    def band(self, x, low, high, *, colour, panel=0, label=None):
        """A band between two heights, in one piece for each run of them that has no gap."""
        x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
        known, outline = np.isfinite(low) & np.isfinite(high), {"x": [], "y": []}
        self.axes[panel].fill_between(x, low, high, where=known, color=colour, alpha=0.18, linewidth=0)
        for run in np.split(np.flatnonzero(known), np.flatnonzero(np.diff(np.flatnonzero(known)) > 1) + 1):
            outline["x"] += [*values_of(x[run]), *values_of(x[run][::-1]), None]
            outline["y"] += [*values_of(low[run]), *values_of(high[run][::-1]), None]
        look = {"fill": "toself", "fillcolor": shade(colour), "mode": "none", "hoverinfo": "skip", "showlegend": False}
        self._trace(panel, label, **outline, **look)

    def bars(self, x, y, low, high, *, colour, panel=0, label=None):
        """Intervals along the axis x."""
        ends, heights = [], []
        for place, left, right in zip(y, low, high, strict=True):
            if math.isfinite(left) and math.isfinite(right):
                ends += [left, right, math.nan]
                heights += [place, place, math.nan]
        self.axes[panel].plot(ends, heights, color=colour, linewidth=1.2)
        look = {"mode": "lines", "line": {"color": colour, "width": 2}, "hoverinfo": "skip", "showlegend": False}
        self._trace(panel, label, x=values_of(ends), y=values_of(heights), **look)

    def level(self, height, label, *, panel=0, line="dash", colour=GREY):
        """A line at one height, from one side to the other; drawn when the panel's range is known."""
        self.notes.append(("level", panel, height, label, line, colour))

    @matplotlib.rc_context(PRINT)
    def heat(self, z: np.ndarray, *, hover, title: str, panel=0, x0=0, y0=0, top=1.0):
        """A map of values from 0 to `top`, [rows from `y0`, columns from `x0` on]; `hover` are texts of its shape."""
        edges = np.arange(z.shape[1] + 1) + x0 - 0.5, np.arange(z.shape[0] + 1) + y0 - 0.5
        look = {"cmap": HEAT, "vmin": 0, "vmax": top, "rasterized": True, "zorder": 2}
        mesh = self.axes[panel].pcolormesh(*edges, np.ma.masked_invalid(z), **look)
        self.colour_bar(mesh, title)
        look = {"x0": x0, "y0": y0, "coloraxis": "coloraxis", "hoverongaps": False, "text": hover}  # numbers alone
        look |= {"hovertemplate": "%{text}<extra></extra>", **self._place(panel)}
        self.traces.append(go.Heatmap(z=[values_of(row) for row in z], **look))

    @matplotlib.rc_context(PRINT)
    def colour_bar(self, mappable, title: str):
        """The scale of all colours; only the first call draws it."""
        if self.scale:
            return
        self.static.colorbar(mappable, ax=self.axes[: len(self.titles)].tolist(), label=title)
        low, high = mappable.get_clim()
        stops = [[stop, to_hex(mappable.cmap(stop))] for stop in np.linspace(0, 1, 11).round(1).tolist()]
        bar = {"title": {"text": title, "side": "top"}, "orientation": "h", "thickness": 12}
        self.scale = {"colorscale": stops, "cmin": low, "cmax": high, "colorbar": bar}
        # plotly shows the bar only if a trace refers to it
        marker = {"color": [low], "coloraxis": "coloraxis"}
        self._trace(0, None, x=[None], y=[None], mode="markers", marker=marker, showlegend=False)

    def reach(self, panel: int, x: Sequence[int | float], y: Sequence[int | float], rows: Sequence[str] = ()):
        """Ranges of the axes of a panel; `rows` are names of the heights 0, 1, 2, ..., from the top."""
        self.ranges[panel] = {"x": list(map(float, x)), "y": list(map(float, y))}
        self.named_rows[panel] = list(rows)

    def _place(self, panel: int) -> dict[str, str]:
        return {"xaxis": f"x{self.numbers[panel]}", "yaxis": f"y{self.numbers[panel]}"}

    def _trace(self, panel, label, **trace):
        name = None if label is None else as_plotly(label)
        # plotly keeps groups in an object, which has properties of its own: none is called so
        group = None if label is None else f"{name} "
        self.traces.append(go.Scatter(name=name, legendgroup=group, **self._place(panel), **trace))

    @matplotlib.rc_context(PRINT)
    def finish(self, name: str, data: pd.DataFrame, caption: str, alt: str) -> Figure:
        for _, panel, height, label, line, colour in self.notes:
            self.line(
                self.ranges[panel]["x"], [height] * 2, colour=colour, panel=panel, label=label, line=line, width=1
            )
        layout = {"template": {}, "coloraxis": self.scale, "hovermode": "closest", "font": {"color": INK}}
        layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        axis, notes = {"zeroline": False, "gridcolor": "rgba(128,128,128,0.25)", "linecolor": GREY}, []
        for panel, (number, title, reach) in enumerate(zip(self.numbers, self.titles, self.ranges, strict=True)):
            ax, rows = self.axes[panel], self.named_rows.get(panel, [])
            ax.set(xlim=reach["x"], ylim=reach["y"])
            across = {**axis, "range": reach["x"], "anchor": f"y{number}", "nticks": 6}
            up = {**axis, "range": reach["y"], "anchor": f"x{number}"}
            for which, side, shown in (("x", ax.xaxis, across), ("y", ax.yaxis, up)):
                if which in self.percent:
                    side.set_major_formatter(PercentFormatter(1, decimals=0))
                    shown["tickformat"] = ".0%"
            if self.log:
                ticks = ticks_of(*reach["y"])
                ax.set_yscale("log")
                ax.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
                ax.yaxis.set_minor_locator(NullLocator())
                up |= {"type": "log", "range": [math.log10(end) for end in reach["y"]]}
                up |= {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}
            if rows:  # each above its height: a narrow screen has no room beside the panel
                ax.set_yticks([])
                up |= {"showgrid": False, "showticklabels": False}
                for place, row in enumerate(rows):
                    ax.annotate(
                        clipped(row), (reach["x"][0], place), (3, 3), textcoords="offset points", va="bottom", size=8
                    )
                    spot = {"x": reach["x"][0], "xref": f"x{number}", "y": place, "yref": f"y{number}"}
                    notes.append({"text": as_plotly(row), **spot, "xanchor": "left", "yanchor": "bottom"})
            layout |= {f"xaxis{number}": across, f"yaxis{number}": up}
            corner = {"xref": f"x{number} domain", "yref": f"y{number} domain", "x": 0, "y": 1}
            if title:
                notes.append({"text": f"<b>{in_lines(title)}</b>", **corner, "xanchor": "left", "yanchor": "bottom"})
        if self.legend:
            self._put_legend()
        # Laid out once and for all, in two passes as the second corrects the first: with a pass for each time it
        # is saved, the picture's bytes would change.
        self.static.draw_without_rendering()
        self.static.draw_without_rendering()
        self.static.set_layout_engine("none")
        wide, narrow = self._arrange(self.columns), self._arrange(1, narrow=True)
        layout |= {
            "annotations": [{**note, "showarrow": False} for note in notes],
            "meta": {"wide": wide, "narrow": narrow},
        }
        plot = go.Figure(self.traces, layout)
        plot.update_layout({key.replace(".", "_"): value for key, value in wide.items()})
        return Figure(name, self.static, plot, caption, alt, data)

    def _put_legend(self):
        wide, high = self.static.get_size_inches()
        names = list(map(clipped, self.legend))
        for columns in range(min(len(names), 4), 0, -1):
            legend = self.static.legend(self.legend.values(), names, loc="outside upper center", ncols=columns)
            if columns == 1 or legend.get_tightbbox().width <= wide * self.static.dpi:
                break
            legend.remove()
        self.static.set_size_inches(wide, high + 0.2 * max(0, math.ceil(len(names) / columns) - 1))

    def _arrange(self, columns: int, narrow=False) -> dict:
        """Changes to plotly's layout that put the panels into so many columns; lengths in pixels."""
        tall = [self.tall[panel // self.columns] for panel in range(len(self.titles))][:: columns if columns > 1 else 1]
        deep = 18 * any("\n" in title for title in self.titles)
        space, gap = (65 if any(self.titles[1:]) else 40) + deep, 0.1  # gap: between columns, as a share of the width
        plot = sum(tall) + space * (len(tall) - 1)
        top, bottom = (25 if narrow else 45) + 20 * any(self.titles) + deep, 55
        changes, below = {}, 0
        if self.scale:
            changes = {"coloraxis.colorbar.y": short(-60 / plot), "coloraxis.colorbar.yanchor": "top"}
            below = 75
        lines = math.ceil(len(self.legend) / (1 if narrow else 3))
        if narrow:
            legend = {"y": short(-(bottom + below + 8) / plot), "yanchor": "top"}
            bottom += 24 * lines
        else:
            legend = {"y": short(1 + (25 * any(self.titles) + deep + 4) / plot), "yanchor": "bottom"}
            top += 20 * max(0, lines - 1)
        changes["legend"] = {"orientation": "h", **legend}
        changes["margin"] = {"l": 48 if narrow else 60, "r": 10 if narrow else 30, "t": top, "b": bottom + below}
        changes["height"] = plot + top + bottom + below
        changes["dragmode"] = False if narrow else "zoom"  # on a phone, dragging scrolls the page
        width, panels = (1 + gap) / columns - gap, len(self.titles)
        for panel, number in enumerate(self.numbers):
            row, column = divmod(panel, columns)
            left, over = column * (width + gap), plot - sum(tall[:row]) - space * row
            changes[f"xaxis{number}.domain"] = [short(left), short(min(left + width, 1))]
            changes[f"yaxis{number}.domain"] = [short(max((over - tall[row]) / plot, 0)), short(over / plot)]
            changes[f"xaxis{number}.title.text"] = self.x_title if panel + columns >= panels else ""
            changes[f"yaxis{number}.title.text"] = self.y_title if column == 0 else ""
        return changes


def in_lines(text: str) -> str:
    """Text of several lines in a live plot; each may hold names of others."""
    return "<br>".join(map(as_plotly, text.split("\n")))


def shade(colour: str) -> str:
    return "rgba({:.0f},{:.0f},{:.0f},0.18)".format(*(255 * part for part in to_rgb(colour)))


def ticks_of(bottom: float, top: float) -> list[float]:
    """Round numbers between the ends of a logarithmic axis, 1, 2 and 5 times or, of many, just a power of ten."""
    steps = (1, 2, 5) if top < 1000 * bottom else (1,)
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    found = [tick for power in powers for step in steps if bottom <= (tick := step * 10.0**power) <= top]
    return found or [bottom, top]


def short(value) -> float | int | None:
    """Four significant digits are more than a screen shows; JSON has no NaN, so missing is null."""
    if pd.isna(value) or math.isinf(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")


def values_of(values) -> list[float | int | None]:
    return [short(value) for value in values]
