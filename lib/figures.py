"""Rows in, figure out: the figures of Gromov et al. 2024 (arXiv 2403.17887), drawn from measured rows.

Every function returns a `Figure` that holds one picture twice: for print (matplotlib, styled by seaborn) and
for the site (plotly, brought to life by book/assets/plots.js). Nothing is measured or estimated here:
distances, l*(n) and intervals arrive in the rows. The only arithmetic is presentation: positions divided by
the number of layers, and the heat map's rescaling of each row, which the paper defines.

Symbols as in the paper: L layers, a block of n layers whose first one is l (0-based), angular distance d in
units of pi. The tables, one row per measurement; a missing value is a gap in the picture, never a zero:
    distances   start l, size n, distance in [0, 1], stderr, samples (a count); defined for l + n <= L
    best        start l*(n), size n: the most similar block among those that keep the last layer
    accuracy    task, rule, size n, start l, fraction n / L, value in [0, 1], low and high (95% interval),
                items (a count), metric
    references  no table: for each task the accuracies chance, majority (always the commonest answer) and
                unpruned; what is None or absent is not drawn
`tasks` and `rules` say what is drawn, in which order and, as mappings, under which names. Wrong input raises
`InputError`: a column is missing, a row occurs twice, a value is out of its range.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex, to_rgb
from matplotlib.ticker import PercentFormatter

from lib.errors import InputError

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
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", None: ""}
HEAT = matplotlib.colormaps["viridis"]
# One colour per block size. The ends of viridis are cut off: they vanish on a black and on a white page.
SIZES = ListedColormap(HEAT(np.linspace(0.2, 0.88, 256)), name="sizes")
PRINT = {
    **seaborn.axes_style("whitegrid"),
    **seaborn.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture is the same on every machine
    "text.parse_math": False,  # names of models and tasks are shown as they are, dollar signs too
}
RULES = {"similarity": "similarity-informed", "simple": "simple heuristic"}
DROPPED, FIRST, BEST = "Layers dropped, n / L", "First layer of the block, l", "l*(n), the most similar block"
References = Mapping[str, Mapping[str, float | None]]
Tasks = Mapping[str, str] | Collection[str]


@dataclass(frozen=True)
class Figure:
    """One picture, twice. `dataclasses.replace(figure, caption=...)` gives it other words."""

    name: str  # identifies the figure on its page and names its files: a-z, 0-9 and single hyphens
    static: matplotlib.figure.Figure
    interactive: go.Figure  # layout.meta holds what differs between wide and narrow screens
    caption: str  # may hold <em> <strong> <b> <i> <code> <sub> <sup> <br>; every other tag is shown as text
    provenance: str  # where the rows come from, plain text
    alt: str  # the picture in words, for readers who do not see it
    data: pd.DataFrame  # the rows drawn

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise InputError(f"figure name {self.name!r}; expected a-z, 0-9 and single hyphens; rename it")

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
            f'<img alt="{html.escape(self.alt)}" src="data:image/svg+xml;base64,{image}"></div>'
            f'<script type="application/json" class="plotly-data">{plot}</script><figcaption>{caption}'
            f'<small class="provenance">{html.escape(self.provenance)}</small></figcaption></figure>'
        )


def save(figure: Figure, folder: str | Path) -> tuple[Path, Path]:
    """Write NAME.svg (the static picture) and NAME.csv (its rows; missing is empty), return both paths."""
    picture, rows = (Path(folder) / f"{figure.name}.{suffix}" for suffix in ("svg", "csv"))
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(figure.svg())
    figure.data.to_csv(rows, index=False)
    return picture, rows


def distance_curves(
    distances: pd.DataFrame, num_layers: int, *, best: pd.DataFrame, model: str,
    name: str = "distance-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Angular distance against first layer, one curve per block size (paper, figure 1c; equation 7).

    `best` has the column `distance` too.
    """
    table, errors = _blocks(distances, num_layers)
    best = _require(best, "best", "size", "start", "distance").sort_values("size")
    picture = _Picture(FIRST, "Angular distance d (units of π)")
    scale = ScalarMappable(Normalize(1, num_layers), SIZES)
    for n in sorted(distances["size"].unique()):
        hover, last = _distance_hover(n, "%{x}", "%{y}", num_layers), num_layers - n
        look = {"colour": to_hex(scale.to_rgba(n)), "marker": "circle", "hover": hover}
        details = [[int(n + start), _text(errors.loc[n, start])] for start in range(last + 1)]
        curve, missing = table.loc[n, : last - 1], table.loc[n, : last - 1].isna()
        # Markers everywhere would make a large SVG; a point without neighbours is invisible without one.
        alone = missing.shift(1, fill_value=True) & missing.shift(-1, fill_value=True)
        look["marked"] = np.flatnonzero(alone).tolist()
        picture.line(curve.index, curve, **look, width=1, size=2, details=details[:-1])
        # The block that starts at L - n contains the model's last layer: shown apart, as it is never dropped.
        look |= {"line": None, "filled": False, "marked": None}
        picture.line([last], [table.loc[n, last]], **look, details=details[-1:])
    look = {"colour": GREY, "line": None, "marker": "circle", "filled": False}
    picture.line([math.nan], [math.nan], **look, label="block with the last layer, never dropped")
    look = {"colour": INK, "width": 2, "marker": "circle", "label": BEST, "details": _details(best, "size")}
    picture.line(best["start"], best["distance"], **look, hover="n = %{customdata[0]}: l* = %{x}, d = %{y}")
    picture.colour_bar(scale, "Layers in the block, n")
    low, high = distances["distance"].min(), distances["distance"].max()
    picture.caption = (
        f"Angular distance between the inputs of layers <i>l</i> and <i>l</i> + <i>n</i> of "
        f"{html.escape(model)}, mean of {_span(distances['samples'])} sequences. The thick line joins the "
        "most similar block of each size, <i>l</i>*(<i>n</i>), among those that keep the last layer."
    )
    picture.alt = (
        f"Line chart for {model}: angular distance against first layer, one curve per block size, from "
        f"{low:.2g} to {high:.2g}; the most similar block starts at {_course(best, 'size', 'start')}."
    )
    return picture.finish(name, provenance, distances, x=[-0.5, num_layers - 0.5], y=[0, 1.05 * high])


def distance_heatmap(
    distances: pd.DataFrame, num_layers: int, *, best: pd.DataFrame, model: str,
    reference: pd.DataFrame | None = None, reference_label: str = "the authors' l*(n)",
    name: str = "distance-heatmap", provenance: str = "",
) -> Figure:  # fmt: skip
    """Distances over first layer and block size, each row rescaled to [0, 1] (paper, figure 4).

    Each row is shifted and scaled so that its smallest distance is 0 and its largest 1. A row without spread
    (n = L has a single block) has no rescaled value and stays empty. `reference` is a published l*(n) of the
    same model, a table like `best`, marked beside ours.
    """
    table, errors = _blocks(distances, num_layers)
    best = _require(best, "best", "size", "start").sort_values("size")
    spread = table.max(axis=1) - table.min(axis=1)
    scaled = table.sub(table.min(axis=1), axis=0).div(spread.where(spread > 0), axis=0).to_numpy()
    picture = _Picture(FIRST, "Layers in the block, n", inches=(6.2, 5.6))
    edges = np.arange(num_layers + 1) - 0.5
    look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "rasterized": True, "zorder": 2}
    mesh = picture.axes[0].pcolormesh(edges, edges + 1, np.ma.masked_invalid(scaled), **look)
    details = [[None] * num_layers for _ in table.index]
    for (n, start), distance in table.stack().dropna().items():
        details[n - 1][start] = [n + start, _text(errors.loc[n, start]), _short(distance)]
    hover = _distance_hover("%{y}", "%{x}", "%{customdata[2]}", num_layers) + "<extra></extra>"
    look = {"y0": 1, "coloraxis": "coloraxis", "hoverongaps": False, "customdata": details}
    picture.traces.append(go.Heatmap(z=[_values(row) for row in scaled], hovertemplate=hover, **look))
    picture.line(best["start"], best["size"], colour="#D55E00", line=None, marker="circle", label=BEST)
    if reference is not None:
        reference = _require(reference, "reference", "size", "start")
        look = {"colour": "#E69F00", "line": None, "marker": "diamond", "size": 6, "filled": False}
        picture.line(reference["start"], reference["size"], **look, label=reference_label)
    picture.colour_bar(mesh, "Distance, rescaled in each row")
    picture.caption = (
        f"Angular distance of every block of {html.escape(model)}, mean of {_span(distances['samples'])} "
        "sequences, rescaled in each row from 0 (most similar) to 1. A row's last block contains the last "
        "layer and is never dropped."
    )
    picture.alt = (
        f"Heat map for {model}: angular distance over first layer and block size, each row scaled to 0..1; "
        f"the most similar block starts at {_course(best, 'size', 'start')}."
    )
    ranges = {"x": [-0.5, num_layers - 0.5], "y": [0.5, num_layers + 0.5]}
    return picture.finish(name, provenance, distances, **ranges)


def best_start_comparison(
    curves: Mapping[str, pd.DataFrame], *, measured: Collection[str] = (),
    name: str = "best-start", provenance: str = "",
) -> Figure:  # fmt: skip
    """Where the most similar block starts: l*(n) / L against n / L, one line per model.

    `curves` holds for each model's name the columns size n, start l*(n) and num_layers L. Those in `measured`
    were measured here and get a thick line and filled markers; the others are published values.
    """
    columns = ("size", "start", "num_layers")
    curves = {model: _require(rows, model, *columns).sort_values("size") for model, rows in curves.items()}
    styles = _styles(curves)
    picture = _Picture(DROPPED, "Start of the most similar block, l*(n) / L", percent=True)
    picture.line([0, 1], [1, 0], colour=GREY, line="dash", label="block ends at the last layer")
    for (model, rows), style in zip(curves.items(), styles):
        look = {"width": 2.5, "filled": True} if model in measured else {"width": 1, "filled": False}
        x, y = rows["size"] / rows["num_layers"], rows["start"] / rows["num_layers"]
        hover = f"{model}<br>n = %{{customdata[0]}}, l* = %{{customdata[1]}} of %{{customdata[2]}} layers"
        picture.line(x, y, **style, **look, label=model, details=_details(rows, *columns), hover=hover)
    picture.caption = (
        "First layer of the most similar block against the size of the block, as fractions of all layers. "
        "Thick lines with filled markers: measured here; thin lines with open markers: published values."
    )
    words = "; ".join(f"{model}, {_course(rows, 'size', 'start')}" for model, rows in curves.items())
    picture.alt = f"Line chart: start of the most similar block against its size, over all layers. {words}."
    data = pd.concat([rows.assign(model=model) for model, rows in curves.items()])
    return picture.finish(name, provenance, data, x=[0, 1], y=[0, 1])


def accuracy_curves(
    accuracy: pd.DataFrame, references: References, *, tasks: Tasks, model: str,
    rules: Mapping[str, str] = RULES, name: str = "accuracy-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Accuracy against the fraction of layers dropped, a panel per task, a line per rule (figures 2, 5, 6).

    A size that another rule of the same task has and this one lacks is a gap in this one's line.
    """
    tasks, lines, data = _accuracy_lines(accuracy, tasks, rules)
    titles, columns = list(tasks.values()), {1: 1, 2: 2, 4: 2}.get(len(tasks), 3)
    picture = _Picture(DROPPED, "Accuracy", titles=titles, columns=columns, percent=True)
    looks = {
        "chance": {"label": "chance", "colour": GREY, "line": "dash"},
        "majority": {"label": "always the commonest answer", "colour": GREY, "line": "dot"},
        "unpruned": {"label": "unpruned model", "colour": INK, "line": "dash"},
    }
    end = float(data["fraction"].max())
    for panel, task in enumerate(tasks):
        for level, height in _levels(references, task).items():
            look = {**looks[level], "width": 1.2, "hover": f"{looks[level]['label']}: {_text(height)}"}
            picture.line([0, end], [height, height], **look, panel=panel)
        for (rule, label), style in zip(rules.items(), _styles(rules)):
            picture.accuracy(lines[task, rule], style, label, panel)
    picture.caption = (
        f"Accuracy of {html.escape(model)} against the fraction of its layers that were dropped. Bands: 95% "
        "intervals over the items of the task."
    )
    picture.alt = f"Line charts for {model}: accuracy by layers dropped. {_courses(lines, tasks, rules)}."
    return picture.finish(name, provenance, data, x=[0, 1.02 * end], y=[0, 1])


def headline(
    accuracy: pd.DataFrame, references: References, *, tasks: Tasks, model: str,
    rule: str = "similarity", name: str = "headline", provenance: str = "",
) -> Figure:  # fmt: skip
    """The claim in one panel: a few tasks under one rule, each named where its line ends (figure 1d).

    Dots in a task's colour are what guessing scores: the larger of chance and majority, since a collapsed
    model that always gives one answer can reach either. An open marker on the left is the unpruned model.
    """
    rules = {rule: RULES.get(rule, rule)}
    tasks, lines, data = _accuracy_lines(accuracy, tasks, rules)
    end = float(data["fraction"].max())
    picture = _Picture(DROPPED, "Accuracy", percent=True, room=8 * max(map(len, tasks.values())) + 30)
    for position, ((task, label), style) in enumerate(zip(tasks.items(), _styles(tasks))):
        levels = _levels(references, task)
        unpruned = levels.pop("unpruned", math.nan)
        guessing = max(levels.values(), default=math.nan)
        # Tasks often share a guessing level: the dots of one fall between those of the others.
        x = (np.arange(20) + position / len(tasks)) * end / 20
        look = {"colour": style["colour"], "line": None, "marker": "circle", "size": 1.5}
        picture.line(x, [guessing] * 20, **look, hover=f"{label}, guessing: {_text(guessing)}")
        look = {**style, "line": None, "size": 7, "filled": False}
        picture.line([0], [unpruned], **look, hover=f"{label}, unpruned: {_text(unpruned)}")
        picture.accuracy(lines[task, rule], style, label)
    picture.name_lines()
    picture.caption = (
        f"Accuracy of {html.escape(model)} after dropping a block of layers ({html.escape(rules[rule])}). "
        "Bands: 95% intervals. Open markers: the unpruned model. Dots: what guessing scores."
    )
    picture.alt = f"Line chart for {model}: accuracy by layers dropped. {_courses(lines, tasks, rules)}."
    return picture.finish(name, provenance, data, x=[-0.03 * end, 1.02 * end], y=[0, 1])


class _Picture:
    """A picture under way: every element is drawn twice, for print and for the site."""

    @matplotlib.rc_context(PRINT)
    def __init__(self, x, y, *, titles=("",), columns=1, inches=None, percent=False, room=0):
        """Axis titles x and y, a panel per title; `room` is space right of the panels, in pixels."""
        self.x_title, self.y_title, self.titles, self.columns = x, y, titles, columns
        self.percent, self.room = percent, room
        self.numbers = ["", *map(str, range(2, len(titles) + 1))]  # plotly's names: xaxis, xaxis2, xaxis3
        self.traces, self.notes, self.legend, self.ends, self.scale = [], [], {}, {}, None
        rows = math.ceil(len(titles) / columns)
        inches = inches or ((6.6, 4.4) if len(titles) == 1 else (2.4 * columns + 0.8, 2.1 * rows + 0.9))
        self.static = matplotlib.figure.Figure(inches, layout="constrained")
        self.axes = self.static.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for spare in self.axes[len(titles) :]:
            spare.remove()
        for panel, (ax, title) in enumerate(zip(self.axes, titles)):
            ax.set_title(title, loc="left")
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
        self._trace(panel, label, x=_values(x), y=_values(y), showlegend=first, **trace)

    def _trace(self, panel, label, **trace):
        place = {"xaxis": f"x{self.numbers[panel]}", "yaxis": f"y{self.numbers[panel]}"}
        self.traces.append(go.Scatter(name=label, legendgroup=label, **place, **trace))

    def accuracy(self, rows, style, label, panel=0):
        """A line of accuracies over a band of their intervals."""
        x, low, high = rows["fraction"], rows["low"], rows["high"]
        self.axes[panel].fill_between(x, low, high, color=style["colour"], alpha=0.2, linewidth=0)
        outline, missing = {"x": [], "y": []}, low.isna() | high.isna()
        # plotly would fill across gaps: each unbroken run of intervals becomes a polygon of its own
        for _, run in rows[~missing].groupby(missing.cumsum()):
            outline["x"] += [*_values(run["fraction"]), *_values(run["fraction"][::-1]), None]
            outline["y"] += [*_values(run["low"]), *_values(run["high"][::-1]), None]
        shade = "rgba({:.0f},{:.0f},{:.0f},0.2)".format(*(255 * part for part in to_rgb(style["colour"])))
        look = {"fill": "toself", "fillcolor": shade, "mode": "none", "hoverinfo": "skip"}
        self._trace(panel, label, **outline, **look, showlegend=False)
        hover = (
            f"{label}<br>n = %{{customdata[0]}}, l = %{{customdata[1]}}<br>%{{customdata[2]}} %{{y}}, 95% "
            "interval %{customdata[3]} to %{customdata[4]}<br>%{customdata[5]} items"
        )
        look = {**style, "size": 4 if self.columns == 1 else 2.5, "panel": panel, "label": label}
        details = _details(rows, "size", "start", "metric", "low", "high", "items")
        self.line(x, rows["value"], **look, details=details, hover=hover)
        for height in rows["value"].dropna().iloc[-1:]:
            self.ends[label] = (height, style)

    @matplotlib.rc_context(PRINT)
    def name_lines(self):
        """Names to the right of the panel, where the lines of `accuracy` end, in place of the legend."""
        floor = -1
        for label, (height, style) in sorted(self.ends.items(), key=lambda item: item[1][0]):
            height = floor = max(height, floor + 0.065)  # lines that end together have their names stacked
            symbol = MARKERS[style["marker"]][1]
            for text, colour, x in ((symbol, style["colour"], 4), (label, "black", 15)):
                place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
                self.axes[0].annotate(text, (1, height), (x, 0), **place, color=colour, annotation_clip=False)
            text = f'<span style="color:{style["colour"]}">{symbol}</span> {label}'
            place = {"x": 1, "xref": "paper", "xanchor": "left", "y": height, "yref": "y"}
            self.notes.append({"text": text, **place})
        self.legend = {}
        for trace in self.traces:
            trace.showlegend = False

    @matplotlib.rc_context(PRINT)
    def colour_bar(self, mappable, title):
        self.static.colorbar(mappable, ax=self.axes[0], label=title)
        low, high = mappable.get_clim()
        stops = [[stop, to_hex(mappable.cmap(stop))] for stop in np.linspace(0, 1, 11).round(1).tolist()]
        bar = {"title": {"text": title, "side": "top"}, "orientation": "h", "thickness": 12}
        self.scale = {"colorscale": stops, "cmin": low, "cmax": high, "colorbar": bar}
        # plotly shows the bar only if a trace refers to it
        marker = {"color": [low], "coloraxis": "coloraxis"}
        self._trace(0, None, x=[None], y=[None], mode="markers", marker=marker, showlegend=False)

    @matplotlib.rc_context(PRINT)
    def finish(self, name, provenance, data, *, x, y) -> Figure:
        """The figure, with axes that reach over the ranges x and y."""
        self.axes[0].set(xlim=x, ylim=y)
        if self.legend:
            columns = min(len(self.legend), self.columns + 1)
            self.static.legend(self.legend.values(), self.legend, loc="outside upper center", ncols=columns)
        # Laid out once and for all, in two passes as the second corrects the first: with a pass for each time it
        # is saved, the picture's bytes would change.
        self.static.draw_without_rendering()
        self.static.draw_without_rendering()
        self.static.set_layout_engine("none")
        layout = {"template": {}, "coloraxis": self.scale, "hovermode": "closest", "font": {"color": INK}}
        layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        axis = {"zeroline": False, "gridcolor": "rgba(128,128,128,0.25)", "linecolor": GREY}
        percent = {"tickformat": ".0%"} if self.percent else {}
        for number, title in zip(self.numbers, self.titles):
            layout[f"xaxis{number}"] = {**axis, "range": x, "anchor": f"y{number}", "nticks": 6, **percent}
            layout[f"yaxis{number}"] = {**axis, "range": y, "anchor": f"x{number}"}
            place = {"xref": f"x{number} domain", "yref": f"y{number} domain", "x": 0, "y": 1}
            self.notes.append({"text": title, **place, "xanchor": "left", "yanchor": "bottom"})
        notes = [{**note, "showarrow": False} for note in self.notes if note["text"]]
        wide, narrow = self._arrange(self.columns), self._arrange(1, narrow=True)
        layout |= {"annotations": notes, "meta": {"wide": wide, "narrow": narrow}}
        plot = go.Figure(self.traces, layout)
        plot.update_layout({key.replace(".", "_"): value for key, value in wide.items()})
        return Figure(name, self.static, plot, self.caption, provenance, self.alt, data)

    def _arrange(self, columns, narrow=False):
        """Changes to plotly's layout that put the panels into so many columns; lengths in pixels."""
        panels = len(self.titles)
        panel, space = (340, 0) if panels == 1 else (180, 65)  # height of a panel, of what lies between two
        rows, gap = math.ceil(panels / columns), 0.08  # gap: between columns, as a fraction of the width
        plot = rows * (panel + space) - space
        top, bottom, right = (25, 55, 10) if narrow else (45, 55, 40)
        changes = {}
        if self.scale:
            changes = {"coloraxis.colorbar.y": _short(-60 / plot), "coloraxis.colorbar.yanchor": "top"}
            bottom += 75
        if narrow:
            legend = {"y": _short(-(bottom + 8) / plot), "yanchor": "top"}
            bottom += 24 * len(self.legend)
        else:
            legend = {"y": _short(1 + 25 * any(self.titles) / plot), "yanchor": "bottom"}
        changes["legend"] = {"orientation": "h", **legend}
        changes["margin"] = {"l": 48 if narrow else 60, "r": self.room or right, "t": top, "b": bottom}
        changes["height"] = plot + top + bottom
        changes["dragmode"] = False if narrow else "zoom"  # on a phone, dragging scrolls the page
        width = (1 + gap) / columns - gap
        for position, number in enumerate(self.numbers):
            row, column = divmod(position, columns)
            left, over = column * (width + gap), 1 - row * (panel + space) / plot
            changes[f"xaxis{number}.domain"] = [_short(left), _short(min(left + width, 1))]
            changes[f"yaxis{number}.domain"] = [_short(max(over - panel / plot, 0)), _short(over)]
            changes[f"xaxis{number}.title.text"] = self.x_title if position + columns >= panels else ""
            changes[f"yaxis{number}.title.text"] = self.y_title if column == 0 else ""
        return changes


def _require(rows: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    if missing := [column for column in columns if column not in rows]:
        raise InputError(f"{name} has the columns {list(rows)}; expected {list(columns)}; add {missing}")
    return rows


def _blocks(distances: pd.DataFrame, num_layers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Distances and their standard errors, n = 1..L down and l = 0..L-1 across, NaN where there is no row."""
    rows = _require(distances, "distances", "start", "size", "distance", "stderr", "samples")
    fits = (rows["size"] >= 1) & (rows["start"] >= 0) & (rows["start"] + rows["size"] <= num_layers)
    in_range = rows["distance"].isna() | rows["distance"].between(0, 1)
    if rows["distance"].isna().all():
        raise InputError(f"distances has {len(rows)} rows and no distance; expected measured ones")
    for row in rows[~fits | ~in_range | rows.duplicated(["start", "size"])].head(1).to_dict("records"):
        raise InputError(
            f"distances has the block {row}; expected each block once, start + size at most {num_layers} and "
            "a distance in [0, 1]; check where these rows come from"
        )
    table = rows.pivot(index="size", columns="start", values=["distance", "stderr"]).astype(float)
    table = table.reindex(range(1, num_layers + 1))
    return tuple(table[column].reindex(columns=range(num_layers)) for column in ("distance", "stderr"))


def _accuracy_lines(accuracy: pd.DataFrame, tasks: Tasks, rules: Mapping) -> tuple[dict, dict, pd.DataFrame]:
    """The tasks' names for readers; the rows of each (task, rule), by size; all rows that are drawn."""
    columns = ("task", "rule", "size", "start", "fraction", "value", "low", "high", "items", "metric")
    tasks = dict(tasks) if isinstance(tasks, Mapping) else {task: task for task in tasks}
    accuracy = _require(accuracy, "accuracy", *columns)
    if not tasks:
        raise InputError(f"tasks is empty; expected some of {sorted(accuracy['task'].unique())}")
    drawn, lines = accuracy[accuracy["task"].isin(tasks) & accuracy["rule"].isin(rules)], {}
    values = drawn[["value", "low", "high"]]
    if (outside := drawn[((values < 0) | (values > 1)).any(axis=1)]).size:
        row = outside.iloc[0].to_dict()
        raise InputError(f"accuracy has the row {row}; expected values in [0, 1]; percentages / 100")
    for task in tasks:
        rows = drawn[drawn["task"] == task]
        metrics, twice = list(rows["metric"].unique()), rows.duplicated(["rule", "size"]).sum()
        if len(metrics) != 1 or twice:
            raise InputError(
                f"accuracy has {len(rows)} rows of task {task!r} with metrics {metrics}, {twice} repeated; "
                f"expected one metric and one row per size under the rules {list(rules)}; keep only those"
            )
        fractions = rows.groupby("size")["fraction"].first()
        for rule in rules:
            line = rows[rows["rule"] == rule].set_index("size").reindex(fractions.index)
            lines[task, rule] = line.assign(fraction=fractions).reset_index()
    return tasks, lines, drawn


def _levels(references: References, task: str) -> dict[str, float]:
    """The accuracies to compare with that are known."""
    levels = references.get(task, {})
    return {key: levels[key] for key in ("chance", "majority", "unpruned") if pd.notna(levels.get(key))}


def _styles(names: Collection[str]) -> list[dict]:
    if not 0 < len(names) <= len(STYLES):
        raise InputError(f"a panel of {len(names)} lines; expected 1 to {len(STYLES)}; draw fewer")
    return STYLES[: len(names)]


def _short(value) -> float | int | None:
    """Four significant digits are more than a screen shows; JSON has no NaN, so missing is null."""
    if pd.isna(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")


def _values(values) -> list[float | int | None]:
    return [_short(value) for value in values]


def _text(value) -> str:
    return value if isinstance(value, str) else "missing" if pd.isna(value) else str(_short(value))


def _details(rows: pd.DataFrame, *columns: str) -> list[list[str]]:
    return [[_text(value) for value in row] for row in rows[list(columns)].itertuples(index=False)]


def _distance_hover(size, start, distance, num_layers: int) -> str:
    """Hover text of a block; its details are the first layer kept above it, and the standard error."""
    return (
        f"n = {size}, l = {start}<br>d = {distance}, standard error %{{customdata[1]}}"
        f"<br>keeps [0:{start}] + [%{{customdata[0]}}:{num_layers}]"
    )


def _span(counts: pd.Series) -> str:
    low, high = f"{counts.min():,.0f}", f"{counts.max():,.0f}"
    return low if low == high else f"{low} to {high}"


def _course(rows: pd.DataFrame, x: str, y: str) -> str:
    """The first and the last measured point in words."""
    points = rows[rows[y].notna()]
    if points.empty:
        return "not measured"
    ends = points.iloc[[0, -1]].to_dict("records")
    return " and ".join(f"{row[y]:.2g} at {x} {row[x]:.2g}" for row in ends)


def _courses(lines: Mapping, tasks: Mapping, rules: Mapping) -> str:
    words = [(tasks[t], rules[r], _course(rows, "fraction", "value")) for (t, r), rows in lines.items()]
    return "; ".join(map(", ".join, words))
