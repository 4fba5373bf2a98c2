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

import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex

from deeper_layers.errors import InputError
from deeper_layers.report.figures.drawing import (
    GREY,
    HEAT,
    INK,
    SHARES,
    SIZES,
    STYLES,
    Figure,
    Picture,
    details_of,
    save,
    short,
    styles_of,
    text_of,
    values_of,
)
from deeper_layers.report.figures.tables import (
    References,
    Tasks,
    accuracy_lines,
    course,
    courses_of,
    known_levels,
    require,
)
from deeper_layers.report.names import as_html, as_plotly

__all__ = [
    "Figure", "accuracy_curves", "best_start_comparison", "distance_curves", "distance_heatmap", "headline",
    "loss_curves", "save", "training_curves",
]  # fmt: skip

MOST_LINES = len(STYLES)  # that a reader tells apart at a glance
MOST_MODELS = 2 * MOST_LINES  # side by side: with more of them the lines hide each other
RULES = {"similarity": "similarity-informed", "simple": "simple heuristic"}
DROPPED, FIRST, BEST = "Layers dropped, n / L", "First layer of the block, l", "l*(n), the most similar block"
ASIDE = " Bars are such intervals too. Points side by side lack the same layers."


def distance_curves(
    distances: pd.DataFrame, num_layers: int, *, best: pd.DataFrame, model: str,
    name: str = "distance-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Angular distance against first layer, one curve per block size (paper, figure 1c; equation 7).

    `best` has the column `distance` too.
    """
    table, errors = _blocks(distances, num_layers)
    best = require(best, "best", "size", "start", "distance").sort_values("size")
    picture = Picture(FIRST, "Angular distance d (units of π)")
    scale = ScalarMappable(Normalize(1, num_layers), SIZES)
    for n in sorted(distances["size"].unique()):
        hover, last = _distance_hover(n, "%{x}", "%{y}", num_layers), num_layers - n
        look = {"colour": to_hex(scale.to_rgba(n)), "marker": "circle", "hover": hover}
        details = [[int(n + start), text_of(errors.loc[n, start])] for start in range(last + 1)]
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
    look = {"colour": INK, "width": 2, "marker": "circle", "label": BEST, "details": details_of(best, "size")}
    picture.line(best["start"], best["distance"], **look, hover="n = %{customdata[0]}: l* = %{x}, d = %{y}")
    picture.colour_bar(scale, "Layers in the block, n")
    low, high = distances["distance"].min(), distances["distance"].max()
    picture.caption = (
        f"Angular distance between the inputs of layers <i>l</i> and <i>l</i> + <i>n</i> of "
        f"{as_html(model)}, mean of {_span(distances['samples'])} sequences. The thick line joins the "
        "most similar block of each size, <i>l</i>*(<i>n</i>), among those that keep the last layer."
    )
    picture.alt = (
        f"Line chart for {model}: angular distance against first layer, one curve per block size, from "
        f"{low:.2g} to {high:.2g}; the most similar block starts at {course(best, 'size', 'start')}."
    )
    return picture.finish(name, provenance, distances, x=[-0.5, num_layers - 0.5], y=[0, 1.05 * high])


def distance_heatmap(
    distances: pd.DataFrame, num_layers: int, *, best: pd.DataFrame, model: str,
    reference: pd.DataFrame | None = None, name: str = "distance-heatmap", provenance: str = "",
) -> Figure:  # fmt: skip
    """Distances over first layer and block size, each row rescaled to [0, 1] (paper, figure 4).

    Each row is shifted and scaled so that its smallest distance is 0 and its largest 1. A row without spread
    (n = L has a single block) has no rescaled value and stays empty. `reference` is a published l*(n) of the
    same model, a table like `best`, marked beside ours.
    """
    table, errors = _blocks(distances, num_layers)
    best = require(best, "best", "size", "start").sort_values("size")
    spread = table.max(axis=1) - table.min(axis=1)
    scaled = table.sub(table.min(axis=1), axis=0).div(spread.where(spread > 0), axis=0).to_numpy()
    picture = Picture(FIRST, "Layers in the block, n", inches=(6.2, 5.6))
    edges = np.arange(num_layers + 1) - 0.5
    look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "rasterized": True, "zorder": 2}
    mesh = picture.axes[0].pcolormesh(edges, edges + 1, np.ma.masked_invalid(scaled), **look)
    details = [[None] * num_layers for _ in table.index]
    for (n, start), distance in table.stack().dropna().items():
        details[n - 1][start] = [n + start, text_of(errors.loc[n, start]), short(distance)]
    hover = _distance_hover("%{y}", "%{x}", "%{customdata[2]}", num_layers) + "<extra></extra>"
    look = {"y0": 1, "coloraxis": "coloraxis", "hoverongaps": False, "customdata": details}
    picture.traces.append(go.Heatmap(z=[values_of(row) for row in scaled], hovertemplate=hover, **look))
    picture.line(best["start"], best["size"], colour="#D55E00", line=None, marker="circle", label=BEST)
    if reference is not None:
        reference = require(reference, "reference", "size", "start")
        look = {"colour": "#E69F00", "line": None, "marker": "diamond", "size": 6, "filled": False}
        picture.line(reference["start"], reference["size"], **look, label="the authors' l*(n)")
    picture.colour_bar(mesh, "Distance, rescaled in each row")
    picture.caption = (
        f"Angular distance of every block of {as_html(model)}, mean of {_span(distances['samples'])} "
        "sequences, rescaled in each row from 0 (most similar) to 1. A row's last block contains the last "
        "layer and is never dropped."
    )
    picture.alt = (
        f"Heat map for {model}: angular distance over first layer and block size, each row scaled to 0..1; "
        f"the most similar block starts at {course(best, 'size', 'start')}."
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
    curves = {model: require(rows, model, *columns).sort_values("size") for model, rows in curves.items()}
    styles = styles_of(curves)
    picture = Picture(DROPPED, "Start of the most similar block, l*(n) / L", percent=True)
    picture.line([0, 1], [1, 0], colour=GREY, line="dash", label="block ends at the last layer")
    for (model, rows), style in zip(curves.items(), styles):
        look = {"width": 2.5, "filled": True} if model in measured else {"width": 1, "filled": False}
        x, y = rows["size"] / rows["num_layers"], rows["start"] / rows["num_layers"]
        hover = f"{as_plotly(model)}<br>n = %{{customdata[0]}}, l* = %{{customdata[1]}} of %{{customdata[2]}} layers"
        picture.line(x, y, **style, **look, label=model, details=details_of(rows, *columns), hover=hover)
    picture.caption = (
        "First layer of the most similar block against the size of the block, as fractions of all layers. "
        "Thick lines with filled markers: measured here; thin lines with open markers: published values."
    )
    words = "; ".join(f"{model}, {course(rows, 'size', 'start')}" for model, rows in curves.items())
    picture.alt = f"Line chart: start of the most similar block against its size, over all layers. {words}."
    data = pd.concat([rows.assign(model=model) for model, rows in curves.items()])
    return picture.finish(name, provenance, data, x=[0, 1], y=[0, 1])


def accuracy_curves(
    accuracy: pd.DataFrame, references: References, *, tasks: Tasks, model: str,
    rules: Mapping[str, str] = RULES, columns: int | None = None, name: str = "accuracy-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Accuracy against the fraction of layers dropped, a panel per task, a line per rule (figures 2, 5, 6).

    A size that another rule of the same task and model has and this one lacks is a gap in this one's line. Where
    the lines are several models, the column model of `accuracy` tells them apart.
    """
    tasks, lines, data = accuracy_lines(accuracy, tasks, rules)
    titles, columns = list(tasks.values()), columns or {1: 1, 2: 2, 4: 2}.get(len(tasks), 3)
    picture = Picture(DROPPED, "Accuracy", titles=titles, columns=columns, percent=True)
    looks = {
        "chance": {"label": "chance", "colour": GREY, "line": "dash"},
        "majority": {"label": "always the commonest answer", "colour": GREY, "line": "dot"},
        "unpruned": {"label": "unpruned model", "colour": INK, "line": "dash"},
    }
    end, asides = float(data["fraction"].max()), _side_by_side(data, len(rules))
    for panel, task in enumerate(tasks):
        for level, height in known_levels(references, task).items():
            look = {**looks[level], "width": 1.2, "hover": f"{looks[level]['label']}: {text_of(height)}"}
            picture.line([0, end], [height, height], **look, panel=panel)
        for (rule, label), style, aside in zip(rules.items(), styles_of(rules), asides):
            picture.accuracy(lines[task, rule], style, label, panel, aside)
    picture.caption = (
        f"Accuracy of {as_html(model)} against the fraction of its layers that were dropped. Bands: 95% "
        f"intervals over the items of the task.{ASIDE * any(asides)}"
    )
    picture.alt = f"Line charts for {model}: accuracy by layers dropped. {courses_of(lines, tasks, rules)}."
    return picture.finish(name, provenance, data, x=[0, 1.02 * end + max(asides)], y=SHARES)


def headline(
    accuracy: pd.DataFrame, references: References, *, tasks: Tasks, model: str,
    rule: str = "similarity", name: str = "headline", provenance: str = "",
) -> Figure:  # fmt: skip
    """The claim in one panel: a few tasks under one rule, each named where its line ends (figure 1d).

    Dots in a task's colour are what guessing scores: the larger of chance and majority, since a collapsed
    model that always gives one answer can reach either. An open marker on the left is the unpruned model.
    """
    rules = {rule: RULES.get(rule, rule)}
    tasks, lines, data = accuracy_lines(accuracy, tasks, rules)
    end = float(data["fraction"].max())
    picture = Picture(DROPPED, "Accuracy", percent=True, room=8 * max(map(len, tasks.values())) + 30)
    for position, ((task, label), style) in enumerate(zip(tasks.items(), styles_of(tasks))):
        levels = known_levels(references, task)
        unpruned = levels.pop("unpruned", math.nan)
        guessing = max(levels.values(), default=math.nan)
        # Tasks often share a guessing level: the dots of one fall between those of the others.
        x = (np.arange(20) + position / len(tasks)) * end / 20
        look = {"colour": style["colour"], "line": None, "marker": "circle", "size": 1.5}
        picture.line(x, [guessing] * 20, **look, hover=f"{as_plotly(label)}, guessing: {text_of(guessing)}")
        look = {**style, "line": None, "size": 7, "filled": False}
        picture.line([0], [unpruned], **look, hover=f"{as_plotly(label)}, unpruned: {text_of(unpruned)}")
        picture.accuracy(lines[task, rule], style, label)
    picture.name_lines()
    picture.caption = (
        f"Accuracy of {as_html(model)} after dropping a block of layers ({as_html(rules[rule])}). "
        "Bands: 95% intervals. Open markers: the unpruned model. Dots: what guessing scores."
    )
    picture.alt = f"Line chart for {model}: accuracy by layers dropped. {courses_of(lines, tasks, rules)}."
    return picture.finish(name, provenance, data, x=[-0.03 * end, 1.02 * end], y=SHARES)


def loss_curves(
    losses: pd.DataFrame, *, lines: Mapping[str, str], model: str, vocabulary: int | None, text: str,
    name: str = "loss-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Loss on text over ln V against the fraction of layers dropped, before and after healing (figures 1d, 3).

    `losses` has the columns line, size n, start l, fraction n / L, value, low, high (95% interval; all three in
    units of ln V), items (sequences) and metric; `lines` says which are drawn and under which names. 1 is what
    guessing every one of V tokens alike would give. `vocabulary` is V, where it is one for all lines.
    """
    columns = ("line", "size", "start", "fraction", "value", "low", "high", "items", "metric")
    losses = require(losses, "losses", *columns)
    drawn = losses[losses["line"].isin(lines)]
    end, high = float(drawn["fraction"].max()), float(drawn["high"].max())
    asides = _side_by_side(drawn, len(lines))
    picture = Picture(DROPPED, "Loss on text / ln V", percent=True)
    look = {"colour": GREY, "line": "dash", "width": 1.2, "label": "guessing every token alike"}
    picture.line([0, end], [1, 1], **look, hover="ln V")
    courses = []
    for (line, label), style, aside in zip(lines.items(), styles_of(lines), asides):
        rows = drawn[drawn["line"] == line].sort_values("size")
        picture.accuracy(rows, style, label, aside=aside)
        courses.append(f"{label}, {course(rows, 'fraction', 'value')}")
    size = "" if vocabulary is None else f", V = {vocabulary:,} tokens"
    picture.caption = (
        f"Loss of {as_html(model)} on {as_html(text)} (cross-entropy over ln V{size}) "
        "against the fraction of its layers that were dropped. Bands: 95% intervals over sequences."
        f"{ASIDE * any(asides)}"
    )
    picture.alt = f"Line chart for {model}: loss on text by layers dropped. {'; '.join(courses)}."
    return picture.finish(name, provenance, drawn, x=[0, 1.02 * end + max(asides)], y=[0, 1.05 * max(high, 1)])


def training_curves(
    curves: Mapping[str, pd.DataFrame], *, model: str, name: str = "training-curves", provenance: str = ""
) -> Figure:  # fmt: skip
    """Training loss of healings against tokens, a line for each; columns tokens and loss (nats a token)."""
    curves = {label: require(rows, label, "tokens", "loss") for label, rows in curves.items()}
    data = pd.concat([rows.assign(healing=label) for label, rows in curves.items()])
    picture = Picture("Tokens trained on", "Training loss (nats a token)")
    scale = SIZES(np.linspace(0, 1, len(curves)))
    for (label, rows), colour in zip(curves.items(), scale):
        hover = f"{as_plotly(label)}<br>%{{x:,}} tokens: %{{y:.3f}}"
        picture.line(rows["tokens"], rows["loss"], colour=to_hex(colour), width=1, label=label, hover=hover)
    picture.caption = f"Loss of each step of healing {as_html(model)}, one line for each pruned model."
    words = "; ".join(f"{label}, {course(rows, 'tokens', 'loss')}" for label, rows in curves.items())
    picture.alt = f"Line chart for {model}: training loss by tokens. {words}."
    low, high = data["loss"].min(), data["loss"].max()
    return picture.finish(name, provenance, data, x=[0, float(data["tokens"].max())], y=[0.95 * low, 1.02 * high])


def _side_by_side(rows: pd.DataFrame, lines: int) -> list[float]:
    """How far right of its place each line is drawn: points that all lack the same layers would hide each other."""
    share = rows["fraction"].max()
    step = 0.03 * share if (rows["fraction"] == share).all() else 0.0
    return [step * (line - (lines - 1) / 2) for line in range(lines)]


def _blocks(distances: pd.DataFrame, num_layers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Distances and their standard errors, n = 1..L down and l = 0..L-1 across, NaN where there is no row."""
    rows = require(distances, "distances", "start", "size", "distance", "stderr", "samples")
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


def _distance_hover(size, start, distance, num_layers: int) -> str:
    """Hover text of a block; its details are the first layer kept above it, and the standard error."""
    return (
        f"n = {size}, l = {start}<br>d = {distance}, standard error %{{customdata[1]}}"
        f"<br>keeps [0:{start}] + [%{{customdata[0]}}:{num_layers}]"
    )


def _span(counts: pd.Series) -> str:
    low, high = f"{counts.min():,.0f}", f"{counts.max():,.0f}"
    return low if low == high else f"{low} to {high}"
