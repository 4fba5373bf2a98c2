"""One picture drawn twice: for print (matplotlib, styled by seaborn) and for the site (plotly).

The plotly half is brought to life by book/assets/plots.js; the static half stands in where scripts are off.
What is drawn, and in which words, is decided in `deeper_layers.report.figures.paper_figures`.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.ticker import NullLocator, PercentFormatter

from deeper_layers.errors import InputError
from deeper_layers.report.names import as_csv, as_html, as_plotly, clipped, visible

INK, GREY = "#1a1a1a", "#8a8a8a"
# Okabe and Ito's colours stay distinct under every common colour blindness; markers serve black and white.
STYLES = [
    {"colour": "#0072B2", "marker": "circle", "line": "solid"},
    {"colour": "#D55E00", "marker": "square", "line": "dashdot"},
    {"colour": "#009E73", "marker": "triangle-up", "line": "solid"},
    {"colour": "#CC79A7", "marker": "diamond", "line": "dashdot"},
    {"colour": "#E69F00", "marker": "triangle-down", "line": "solid"},
    {"colour": "#56B4E9", "marker": "cross", "line": "dashdot"},
]
# plotly's names of markers and lines: matplotlib's letter, the marker as a character
MARKERS = {"circle": "o●", "square": "s■", "triangle-up": "^▲"}
MARKERS |= {"diamond": "D◆", "triangle-down": "v▼", "cross": "P✚"}
MOST_ENTRIES = 16  # of a legend: with more of them a picture grows
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", None: ""}
SHARES = [0, 1.03]  # the axis of a share: a marker at 1 is not cut in two
HEAT = matplotlib.colormaps["viridis"]
# One colour per block size. The ends of viridis are cut off: they vanish on a black and on a white page.
SIZES = ListedColormap(HEAT(np.linspace(0.2, 0.88, 256)), name="sizes")
PRINT = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture is the same on every machine
    "text.parse_math": False,  # names of models and tasks are shown as they are, dollar signs too
}


@dataclass(frozen=True)
class Figure:
    """One picture, twice."""

    name: str  # identifies the figure on its page and names its files: a-z, 0-9 and single hyphens
    static: matplotlib.figure.Figure = field(repr=False)
    interactive: go.Figure = field(repr=False)  # layout.meta holds what differs between wide and narrow screens
    caption: str  # may hold <em> <strong> <b> <i> <code> <sub> <sup> <br>; every other tag is shown as text
    provenance: str  # where the rows come from, plain text
    alt: str  # the picture in words, for readers who do not see it
    data: pd.DataFrame = field(repr=False)  # the rows drawn

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise InputError(f"figure name {self.name!r}; expected a-z, 0-9 and single hyphens; rename it")

    def saying(self, more: str) -> "Figure":
        """The same picture with a sentence more in its caption, plain text."""
        return replace(self, caption=f"{self.caption} {html.escape(visible(more), quote=False)}")

    def svg(self) -> bytes:
        """The static picture; the same rows give the same bytes."""
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
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
        return (
            f'<figure class="measured" id="{self.name}"><div class="plot">'
            f'<img alt="{as_html(self.alt)}" src="data:image/svg+xml;base64,{image}"></div>'
            f'<script type="application/json" class="plotly-data">{plot}</script><figcaption>{caption}'
            f'<small class="provenance">{as_html(self.provenance)}</small>{self._downloads()}</figcaption></figure>'
        )

    def _downloads(self) -> str:
        """Links to the picture and its rows as files; that to the picture gets its address from plots.js."""
        rows = base64.b64encode(as_csv(self.data).encode(errors="backslashreplace")).decode()
        return (
            '<span class="downloads">Download: '
            f'<a class="picture" download="{self.name}.svg" hidden>picture (SVG)</a> '
            f'<a download="{self.name}.csv" href="data:text/csv;charset=utf-8;base64,{rows}">data (CSV)</a></span>'
        )


def save(figure: Figure, folder: str | Path) -> tuple[Path, Path]:
    """Write NAME.svg (the static picture) and NAME.csv (its rows; missing is empty), return both paths."""
    picture, rows = (Path(folder) / f"{figure.name}.{suffix}" for suffix in ("svg", "csv"))
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(figure.svg())
    rows.write_text(as_csv(figure.data), encoding="utf-8", errors="backslashreplace")
    return picture, rows


class Picture:
    """A picture under way: every element is drawn twice, for print and for the site."""

    @matplotlib.rc_context(PRINT)
    def __init__(self, x, y, *, titles=("",), columns=1, inches=None, percent=False, log=False, room=0):
        """Axis titles x and y, a panel per title; `room` is space right of the panels, in pixels.

        `log`: heights on a logarithmic axis.
        """
        self.x_title, self.y_title, self.titles, self.columns = x, y, titles, columns
        self.percent, self.log, self.room, self.named, self.height = percent, log, room, False, 0
        self.numbers = ["", *map(str, range(2, len(titles) + 1))]  # plotly's names: xaxis, xaxis2, xaxis3
        self.traces, self.notes, self.bands, self.legend, self.ends, self.scale = [], [], [], {}, {}, None
        rows = math.ceil(len(titles) / columns)
        inches = inches or ((6.6, 4.4) if len(titles) == 1 else (2.4 * columns + 0.8, 2.1 * rows + 0.9))
        self.static = matplotlib.figure.Figure(inches, layout="constrained")
        self.axes = self.static.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for spare in self.axes[len(titles) :]:
            spare.remove()
        for panel, (ax, title) in enumerate(zip(self.axes, titles)):
            ax.set_title(clipped(title), loc="left")
            ax.set_ylabel(y if panel % columns == 0 else None)
            if panel + columns >= len(titles):  # nothing below
                ax.set_xlabel(x)
                ax.tick_params(labelbottom=True)
            if percent:
                ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    def line(
        self, x, y, *, colour, panel=0, label=None, line="solid", width=1.5, marker=None, size=4, filled=True,
        marked=None, details=None, hover=None,
    ):  # fmt: skip
        """Points and the line through them, one of which may be None; `hover` shows a point's `details`.

        `marked`: the positions that have a marker in print, None for all.
        """
        look = {"color": colour, "linestyle": LINES[line], "linewidth": width, "markevery": marked}
        dots = {"marker": MARKERS[marker][0] if marker else "", "markersize": size}
        (drawn,) = self.axes[panel].plot(x, y, **look, **dots, markerfacecolor=colour if filled else "none")
        first = label is not None and label not in self.legend  # one entry, however many panels have the line
        if first:
            self.legend[label] = drawn
        trace = {"mode": "+".join(["lines"] * bool(line) + ["markers"] * bool(marker)), "customdata": details}
        if line:
            trace["line"] = {"color": colour, "width": 1.3 * width, "dash": line}
        if marker:
            trace["marker"] = {"color": colour, "size": size + 3, "symbol": marker + "-open" * (not filled)}
        if colour == INK:
            trace["meta"] = "ink"  # plots.js gives it the colour of the page's text
        trace |= {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
        self._trace(panel, label, x=values_of(x), y=values_of(y), showlegend=first, **trace)

    def _trace(self, panel, label, **trace):
        place = {"xaxis": f"x{self.numbers[panel]}", "yaxis": f"y{self.numbers[panel]}"}
        name = None if label is None else as_plotly(label)
        # plotly keeps groups in an object, which has properties of its own: none is called so
        group = None if label is None else f"{name} "
        self.traces.append(go.Scatter(name=name, legendgroup=group, **place, **trace))

    def accuracy(self, rows, style, label, panel=0, aside=0.0, across="fraction", unit=None):
        """A line of accuracies over a band of their intervals, or a whisker where a point has no neighbours.

        `aside`: how far right of its place it is drawn; `across`: the column along the axis x, whose values hover
        shows where it has a `unit`.
        """
        x, low, high = rows[across] + aside, rows["low"], rows["high"]
        self.axes[panel].fill_between(x, low, high, color=style["colour"], alpha=0.2, linewidth=0)
        outline, lonely, missing = {"x": [], "y": []}, [], low.isna() | high.isna()
        # plotly would fill across gaps: each unbroken run of intervals becomes a polygon of its own
        for _, run in rows[~missing].assign(x=x).groupby(missing.cumsum()):
            if len(run) == 1:  # a band of no width
                lonely.append(run)
                continue
            outline["x"] += [*values_of(run["x"]), *values_of(run["x"][::-1]), None]
            outline["y"] += [*values_of(run["low"]), *values_of(run["high"][::-1]), None]
        shade = "rgba({:.0f},{:.0f},{:.0f},0.2)".format(*(255 * part for part in to_rgb(style["colour"])))
        look = {"fill": "toself", "fillcolor": shade, "mode": "none", "hoverinfo": "skip"}
        self._trace(panel, label, **outline, **look, showlegend=False)
        hover = (
            f"{as_plotly(label)}<br>"
            f"n = %{{customdata[0]}}, l = %{{customdata[1]}}{f'<br>%{{x}} {unit}' if unit else ''}<br>"
            "%{customdata[2]} %{y}, 95% interval %{customdata[3]} to %{customdata[4]}<br>%{customdata[5]} items"
        )
        look = {**style, "size": 4 if self.columns == 1 else 2.5, "panel": panel, "label": label}
        details = details_of(rows, "size", "start", "metric", "low", "high", "items")
        self.line(x, rows["value"], **look, details=details, hover=hover)
        for run in lonely:
            look = {"colour": style["colour"], "panel": panel, "label": label}
            self.line(run["x"].repeat(2), [*run["low"], *run["high"]], **look)
        for height in rows["value"].dropna().iloc[-1:]:
            self.ends[label] = (height, style)

    @matplotlib.rc_context(PRINT)
    def name_lines(self):
        """Names to the right of the panel, where the lines of `accuracy` end, in place of the legend.

        A narrow screen has no room there and gets the legend.
        """
        floor = -1
        for label, (height, style) in sorted(self.ends.items(), key=lambda item: item[1][0]):
            height = floor = max(height, floor + 0.065)  # lines that end together have their names stacked
            symbol = MARKERS[style["marker"]][1]
            for text, colour, x in ((symbol, style["colour"], 4), (clipped(label), "black", 15)):
                place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
                self.axes[0].annotate(text, (1, height), (x, 0), **place, color=colour, annotation_clip=False)
            text = f'<span style="color:{style["colour"]}">{symbol}</span> {as_plotly(label)}'
            place = {"x": 1, "xref": "paper", "xanchor": "left", "y": height, "yref": "y"}
            self.notes.append({"text": text, **place})
        self.legend, self.named = {}, True

    @matplotlib.rc_context(PRINT)
    def words(self, text, x, y, bold=False):
        """Words within the first panel, right of x and above y; bold on the site alone: in print each letter of another
        weight is an outline of its own, and a page has to stay light."""
        self.axes[0].annotate(clipped(text), (x, y), (3, 4), textcoords="offset points", va="bottom")
        text = f"<b>{as_plotly(text)}</b>" if bold else as_plotly(text)
        place = {"x": x, "xref": "x", "xanchor": "left", "y": y, "yref": "y", "yanchor": "bottom"}
        self.notes.append({"text": text, **place})

    def band(self, low, high):
        """A light ground from one height to another, all across the first panel."""
        self.axes[0].axhspan(low, high, color=GREY, alpha=0.15, linewidth=0, zorder=0)
        look = {"type": "rect", "fillcolor": GREY, "opacity": 0.15, "line": {"width": 0}, "layer": "below"}
        self.bands.append({**look, "xref": "x domain", "x0": 0, "x1": 1, "yref": "y", "y0": low, "y1": high})

    @matplotlib.rc_context(PRINT)
    def colour_bar(self, mappable, title):
        self.static.colorbar(mappable, ax=self.axes.tolist(), label=title)
        low, high = mappable.get_clim()
        stops = [[stop, to_hex(mappable.cmap(stop))] for stop in np.linspace(0, 1, 11).round(1).tolist()]
        bar = {"title": {"text": title, "side": "top"}, "orientation": "h", "thickness": 12}
        self.scale = {"colorscale": stops, "cmin": low, "cmax": high, "colorbar": bar}
        # plotly shows the bar only if a trace refers to it
        marker = {"color": [low], "coloraxis": "coloraxis"}
        self._trace(0, None, x=[None], y=[None], mode="markers", marker=marker, showlegend=False)

    @matplotlib.rc_context(PRINT)
    def finish(
        self, name, provenance, data, *, x, y, named_rows: Mapping[str, int | float] | None = None, row_height=24
    ) -> Figure:
        """The figure, with axes that reach over the ranges x and y; `named_rows`: names, each above its height.

        `row_height` is that of a row, from y = 0 to 1, in pixels.
        """
        self.axes[0].set(xlim=x, ylim=y)
        for row, place in (named_rows or {}).items():  # within the panel: a narrow screen has no room beside it
            self.words(row, x[0], place)
        if named_rows:  # in place of numbers
            self.axes[0].set_yticks([])
            self.height = round(row_height * abs(y[1] - y[0]))
        ticks = ticks_of(*y) if self.log else []
        for ax in self.axes[: len(self.titles) if self.log else 0]:
            ax.set_yscale("log")
            ax.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
            ax.yaxis.set_minor_locator(NullLocator())
        if self.legend:
            wide, high = self.static.get_size_inches()
            names = list(map(clipped, self.legend))
            for columns in range(min(len(names), self.columns + 1), 0, -1):
                legend = self.static.legend(self.legend.values(), names, loc="outside upper center", ncols=columns)
                if columns == 1 or legend.get_tightbbox().width <= wide * self.static.dpi:
                    break
                legend.remove()
            rows = math.ceil(len(names) / columns)
            self.static.set_size_inches(wide, high + 0.22 * max(0, rows - MOST_ENTRIES // 2))
        # Laid out once and for all, in two passes as the second corrects the first: with a pass for each time it
        # is saved, the picture's bytes would change.
        self.static.draw_without_rendering()
        self.static.draw_without_rendering()
        self.static.set_layout_engine("none")
        layout = {"template": {}, "coloraxis": self.scale, "hovermode": "closest", "font": {"color": INK}}
        layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        axis = {"zeroline": False, "gridcolor": "rgba(128,128,128,0.25)", "linecolor": GREY}
        percent = {"tickformat": ".0%"} if self.percent else {}
        heights = {"range": y}
        if self.log:  # plotly has the ends of such an axis as powers of ten
            heights = {"type": "log", "range": [math.log10(end) for end in y]}
            heights |= {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}
        for number, title in zip(self.numbers, self.titles):
            layout[f"xaxis{number}"] = {**axis, "range": x, "anchor": f"y{number}", "nticks": 6, **percent}
            layout[f"yaxis{number}"] = {**axis, **heights, "anchor": f"x{number}"}
            if named_rows:
                layout[f"yaxis{number}"] |= {"showgrid": False, "showticklabels": False}
            place = {"xref": f"x{number} domain", "yref": f"y{number} domain", "x": 0, "y": 1}
            self.notes.append({"text": as_plotly(title), **place, "xanchor": "left", "yanchor": "bottom"})
        notes = [{**note, "showarrow": False} for note in self.notes if note["text"]]
        wide, narrow = self._arrange(self.columns), self._arrange(1, narrow=True)
        if self.named:
            wide |= {"annotations": notes, "showlegend": False}
            narrow |= {"annotations": [], "showlegend": True}
        layout |= {"annotations": notes, "shapes": self.bands, "meta": {"wide": wide, "narrow": narrow}}
        plot = go.Figure(self.traces, layout)
        plot.update_layout({key.replace(".", "_"): value for key, value in wide.items()})
        return Figure(name, self.static, plot, self.caption, provenance, self.alt, data)

    def _arrange(self, columns, narrow=False):
        """Changes to plotly's layout that put the panels into so many columns; lengths in pixels."""
        panels = len(self.titles)
        # height of a panel, of what lies between two
        panel, space = (max(340, self.height), 0) if panels == 1 else (max(180, self.height), 65)
        rows, gap = math.ceil(panels / columns), 0.08  # gap: between columns, as a fraction of the width
        plot = rows * (panel + space) - space
        top, bottom, right = (25, 55, 10) if narrow else (45, 55, 40)
        changes = {}
        if self.scale:
            changes = {"coloraxis.colorbar.y": short(-60 / plot), "coloraxis.colorbar.yanchor": "top"}
            bottom += 75
        if narrow:
            legend = {"y": short(-(bottom + 8) / plot), "yanchor": "top"}
            bottom += 24 * (len(self.legend) or len(self.ends))
        else:
            legend = {"y": short(1 + 25 * any(self.titles) / plot), "yanchor": "bottom"}
            top += 8 * max(0, len(self.legend) - MOST_ENTRIES)
        changes["legend"] = {"orientation": "h", **legend}
        changes["margin"] = {
            "l": 48 if narrow else 60,
            "r": right if narrow else self.room or right,
            "t": top,
            "b": bottom,
        }
        changes["height"] = plot + top + bottom
        changes["dragmode"] = False if narrow else "zoom"  # on a phone, dragging scrolls the page
        width = (1 + gap) / columns - gap
        for position, number in enumerate(self.numbers):
            row, column = divmod(position, columns)
            left, over = column * (width + gap), 1 - row * (panel + space) / plot
            changes[f"xaxis{number}.domain"] = [short(left), short(min(left + width, 1))]
            changes[f"yaxis{number}.domain"] = [short(max(over - panel / plot, 0)), short(over)]
            changes[f"xaxis{number}.title.text"] = self.x_title if position + columns >= panels else ""
            changes[f"yaxis{number}.title.text"] = self.y_title if column == 0 else ""
        return changes


def styles_of(names: Collection[str]) -> list[dict]:
    """A look for each of some lines, as many as there are: colours recur, then with another marker and stroke."""
    if not names:
        raise InputError("a panel of no line; expected 1 or more; leave it out")
    looks = []
    for number in range(len(names)):
        again, place = divmod(number, len(STYLES))
        other = {"marker": STYLES[(place + again) % len(STYLES)]["marker"], "line": ("dash", "dot")[again % 2]}
        looks.append(STYLES[place] | (other if again else {}))
    return looks


def ticks_of(bottom: float, top: float) -> list[float]:
    """Round numbers between the ends of a logarithmic axis, 1, 2 and 5 times or, of many, just a power of ten."""
    steps = (1, 2, 5) if top < 1000 * bottom else (1,)
    powers = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    found = [tick for power in powers for step in steps if bottom <= (tick := step * 10.0**power) <= top]
    return found or [bottom, top]


def short(value) -> float | int | None:
    """Four significant digits are more than a screen shows; JSON has no NaN, so missing is null."""
    if pd.isna(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")


def values_of(values) -> list[float | int | None]:
    return [short(value) for value in values]


def text_of(value) -> str:
    return value if isinstance(value, str) else "missing" if pd.isna(value) else str(short(value))


def details_of(rows: pd.DataFrame, *columns: str) -> list[list[str]]:
    return [[as_plotly(text_of(value)) for value in row] for row in rows[list(columns)].itertuples(index=False)]
