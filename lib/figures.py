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

import html
import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex

from lib.drawing import GREY, HEAT, INK, SIZES, Figure, Picture, details_of, save, short, styles_of, text_of, values_of
from lib.errors import InputError

__all__ = [
    "Figure", "accuracy_against_bytes", "accuracy_curves", "best_start_comparison", "distance_curves",
    "distance_heatmap", "gained", "headline", "loss_curves", "save", "sweep_cost", "training_curves",
]  # fmt: skip

RULES = {"similarity": "similarity-informed", "simple": "simple heuristic"}
DROPPED, FIRST, BEST = "Layers dropped, n / L", "First layer of the block, l", "l*(n), the most similar block"
References = Mapping[str, Mapping[str, float | None]]
Tasks = Mapping[str, str] | Collection[str]


def distance_curves(
    distances: pd.DataFrame, num_layers: int, *, best: pd.DataFrame, model: str,
    name: str = "distance-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Angular distance against first layer, one curve per block size (paper, figure 1c; equation 7).

    `best` has the column `distance` too.
    """
    table, errors = _blocks(distances, num_layers)
    best = _require(best, "best", "size", "start", "distance").sort_values("size")
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
    styles = styles_of(curves)
    picture = Picture(DROPPED, "Start of the most similar block, l*(n) / L", percent=True)
    picture.line([0, 1], [1, 0], colour=GREY, line="dash", label="block ends at the last layer")
    for (model, rows), style in zip(curves.items(), styles):
        look = {"width": 2.5, "filled": True} if model in measured else {"width": 1, "filled": False}
        x, y = rows["size"] / rows["num_layers"], rows["start"] / rows["num_layers"]
        hover = f"{model}<br>n = %{{customdata[0]}}, l* = %{{customdata[1]}} of %{{customdata[2]}} layers"
        picture.line(x, y, **style, **look, label=model, details=details_of(rows, *columns), hover=hover)
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
    rules: Mapping[str, str] = RULES, columns: int | None = None, name: str = "accuracy-curves", provenance: str = "",
) -> Figure:  # fmt: skip
    """Accuracy against the fraction of layers dropped, a panel per task, a line per rule (figures 2, 5, 6).

    A size that another rule of the same task has and this one lacks is a gap in this one's line.
    """
    tasks, lines, data = _accuracy_lines(accuracy, tasks, rules)
    titles, columns = list(tasks.values()), columns or {1: 1, 2: 2, 4: 2}.get(len(tasks), 3)
    picture = Picture(DROPPED, "Accuracy", titles=titles, columns=columns, percent=True)
    looks = {
        "chance": {"label": "chance", "colour": GREY, "line": "dash"},
        "majority": {"label": "always the commonest answer", "colour": GREY, "line": "dot"},
        "unpruned": {"label": "unpruned model", "colour": INK, "line": "dash"},
    }
    end = float(data["fraction"].max())
    for panel, task in enumerate(tasks):
        for level, height in _levels(references, task).items():
            look = {**looks[level], "width": 1.2, "hover": f"{looks[level]['label']}: {text_of(height)}"}
            picture.line([0, end], [height, height], **look, panel=panel)
        for (rule, label), style in zip(rules.items(), styles_of(rules)):
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
    picture = Picture(DROPPED, "Accuracy", percent=True, room=8 * max(map(len, tasks.values())) + 30)
    for position, ((task, label), style) in enumerate(zip(tasks.items(), styles_of(tasks))):
        levels = _levels(references, task)
        unpruned = levels.pop("unpruned", math.nan)
        guessing = max(levels.values(), default=math.nan)
        # Tasks often share a guessing level: the dots of one fall between those of the others.
        x = (np.arange(20) + position / len(tasks)) * end / 20
        look = {"colour": style["colour"], "line": None, "marker": "circle", "size": 1.5}
        picture.line(x, [guessing] * 20, **look, hover=f"{label}, guessing: {text_of(guessing)}")
        look = {**style, "line": None, "size": 7, "filled": False}
        picture.line([0], [unpruned], **look, hover=f"{label}, unpruned: {text_of(unpruned)}")
        picture.accuracy(lines[task, rule], style, label)
    picture.name_lines()
    picture.caption = (
        f"Accuracy of {html.escape(model)} after dropping a block of layers ({html.escape(rules[rule])}). "
        "Bands: 95% intervals. Open markers: the unpruned model. Dots: what guessing scores."
    )
    picture.alt = f"Line chart for {model}: accuracy by layers dropped. {_courses(lines, tasks, rules)}."
    return picture.finish(name, provenance, data, x=[-0.03 * end, 1.02 * end], y=[0, 1])


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
    losses = _require(losses, "losses", *columns)
    drawn = losses[losses["line"].isin(lines)]
    end, high = float(drawn["fraction"].max()), float(drawn["high"].max())
    picture = Picture(DROPPED, "Loss on text / ln V", percent=True)
    look = {"colour": GREY, "line": "dash", "width": 1.2, "label": "guessing every token alike"}
    picture.line([0, end], [1, 1], **look, hover="ln V")
    courses = []
    for (line, label), style in zip(lines.items(), styles_of(lines)):
        rows = drawn[drawn["line"] == line].sort_values("size")
        picture.accuracy(rows, style, label)
        courses.append(f"{label}, {_course(rows, 'fraction', 'value')}")
    size = "" if vocabulary is None else f", V = {vocabulary:,} tokens"
    picture.caption = (
        f"Loss of {html.escape(model)} on {html.escape(text)} (cross-entropy over ln V{size}) "
        "against the fraction of its layers that were dropped. Bands: 95% intervals over sequences."
    )
    picture.alt = f"Line chart for {model}: loss on text by layers dropped. {'; '.join(courses)}."
    return picture.finish(name, provenance, drawn, x=[0, 1.02 * end], y=[0, 1.05 * max(high, 1)])


def training_curves(
    curves: Mapping[str, pd.DataFrame], *, model: str, name: str = "training-curves", provenance: str = ""
) -> Figure:  # fmt: skip
    """Training loss of healings against tokens, a line for each; columns tokens and loss (nats a token)."""
    curves = {label: _require(rows, label, "tokens", "loss") for label, rows in curves.items()}
    data = pd.concat([rows.assign(healing=label) for label, rows in curves.items()])
    picture = Picture("Tokens trained on", "Training loss (nats a token)")
    scale = SIZES(np.linspace(0, 1, len(curves)))
    for (label, rows), colour in zip(curves.items(), scale):
        hover = f"{label}<br>%{{x:,}} tokens: %{{y:.3f}}"
        picture.line(rows["tokens"], rows["loss"], colour=to_hex(colour), width=1, label=label, hover=hover)
    picture.caption = f"Loss of each step of healing {html.escape(model)}, one line for each pruned model."
    words = "; ".join(f"{label}, {_course(rows, 'tokens', 'loss')}" for label, rows in curves.items())
    picture.alt = f"Line chart for {model}: training loss by tokens. {words}."
    low, high = data["loss"].min(), data["loss"].max()
    return picture.finish(name, provenance, data, x=[0, float(data["tokens"].max())], y=[0.95 * low, 1.02 * high])


def sweep_cost(
    points: Mapping[str, pd.DataFrame], *, name: str = "sweep-cost", provenance: str = ""
) -> Figure:  # fmt: skip
    """Time of a sweep against the layers that run for each token, a line per benchmark.

    `points` holds for each label the columns cuts, layers (run for each token), layers_of_model and passes: the
    time in bare passes of the whole model over the same tokens. One layer costs 1 / L of such a pass.
    """
    columns = ("cuts", "layers", "layers_of_model", "passes")
    points = {label: _require(rows, label, *columns) for label, rows in points.items()}
    data = pd.concat([rows.assign(benchmark=label) for label, rows in points.items()])
    wide, high = 1.05 * float(data["layers"].max()), 1.1 * float(data["passes"].max())
    whole = float(data["layers_of_model"].iloc[0])
    picture = Picture("Layers that run for each token", "Time, in bare passes of the whole model")
    end = min(wide, high * whole)
    picture.line([0, end], [0, end / whole], colour=GREY, line="dash", label="every layer at the price of a bare one")
    for (label, rows), style in zip(points.items(), styles_of(points)):
        hover = f"{label}<br>%{{customdata[0]}} pruned models, %{{x}} layers<br>%{{y:.2f}} bare passes"
        details = details_of(rows, "cuts")
        picture.line(rows["layers"], rows["passes"], **style, label=label, details=details, hover=hover)
    picture.caption = (
        "Time of a sweep over more and more pruned models, against the layers that run for each token: those of the "
        "whole model, then those above each cut."
    )
    picture.alt = "Line chart: time of a sweep against layers run for each token. " + "; ".join(
        f"{label}, {_course(rows, 'layers', 'passes')}" for label, rows in points.items()
    )
    return picture.finish(name, provenance, data, x=[0, wide], y=[0, max(high, 1.1)])


def accuracy_against_bytes(
    accuracy: pd.DataFrame, references: References, *, tasks: Tasks, bits: Mapping[str, str], model: str,
    name: str = "accuracy-bytes", provenance: str = "",
) -> Figure:  # fmt: skip
    """Accuracy against the size of the weights, a panel per task, a line per kind of weights, a point per cut.

    `accuracy` has the kind of weights in the column rule, and the column bytes besides.
    """
    tasks, lines, data = _accuracy_lines(_require(accuracy, "accuracy", "bytes"), tasks, bits)
    picture = Picture("Size of the weights (MB)", "Accuracy", titles=list(tasks.values()), columns=min(len(tasks), 3))
    end = 1.05 * float(data["bytes"].max()) / 1e6
    for panel, task in enumerate(tasks):
        for level, height in _levels(references, task).items():
            if level == "chance":
                look = {"colour": GREY, "line": "dash", "width": 1.2, "label": level}
                picture.line([0, end], [height, height], **look, panel=panel, hover=f"chance: {text_of(height)}")
        for (kind, label), style in zip(bits.items(), styles_of(bits)):
            rows = lines[task, kind]
            hover = (
                f"{label}, n = %{{customdata[0]}}, l = %{{customdata[1]}}<br>%{{x}} MB<br>%{{customdata[2]}} %{{y}}, "
                "95% interval %{customdata[3]} to %{customdata[4]}<br>%{customdata[5]} items"
            )
            details = details_of(rows, "size", "start", "metric", "low", "high", "items")
            look = {**style, "size": 3, "width": 1.2, "label": label, "panel": panel}
            picture.line(rows["bytes"] / 1e6, rows["value"], **look, details=details, hover=hover)
    deepest = int(data["size"].max())
    picture.caption = (
        f"Accuracy of {html.escape(model)} against the bytes of its weights: one line for each kind of weights, one "
        f"point for each number of dropped layers, from 0 at the right end of a line to {deepest} at its left end."
    )
    words = [
        f"{tasks[task]}, {bits[kind]}, {_course(rows.assign(MB=rows['bytes'] / 1e6), 'MB', 'value')}"
        for (task, kind), rows in lines.items()
    ]
    picture.alt = f"Line charts for {model}: accuracy by size of the weights. {'; '.join(words)}."
    return picture.finish(name, provenance, data, x=[0, end], y=[0, 1])


def gained(
    shares: pd.DataFrame, *, lines: Mapping[str, str], model: str, name: str = "gained", provenance: str = ""
) -> Figure:
    """What a pruned model takes, as a share of what the whole one does, against the fraction of layers dropped.

    `shares` has the columns line, size n, start l, fraction n / L, value, low, high (over repeats), items (repeats)
    and metric. The ideal is 1 - n / L: nothing but layers.
    """
    columns = ("line", "size", "start", "fraction", "value", "low", "high", "items", "metric")
    shares = _require(shares, "shares", *columns)
    end, high = float(shares["fraction"].max()), float(shares["high"].max())
    picture = Picture(DROPPED, "Share of the whole model's", percent=True)
    picture.line([0, end], [1, 1 - end], colour=GREY, line="dash", label="ideal, 1 - n / L", hover="ideal")
    courses = []
    for (line, label), style in zip(lines.items(), styles_of(lines)):
        rows = shares[shares["line"] == line].sort_values("size")
        x, missing = rows["fraction"], rows["value"].isna().all()
        if missing:
            raise InputError(f"shares has no value of {line!r}; expected measured ones; leave the line out")
        picture.axes[0].fill_between(x, rows["low"], rows["high"], color=style["colour"], alpha=0.2, linewidth=0)
        hover = (
            f"{label}<br>n = %{{customdata[0]}}<br>%{{y}} of the whole model, %{{customdata[1]}} to %{{customdata[2]}} "
            "in %{customdata[3]} repeats"
        )
        details = details_of(rows, "size", "low", "high", "items")
        picture.line(x, rows["value"], **style, label=label, details=details, hover=hover)
        courses.append(f"{label}, {_course(rows, 'fraction', 'value')}")
    picture.caption = (
        f"What {html.escape(model)} takes without its layers, as a share of what it takes with all of them. Bands: "
        "least and most of the repeats."
    )
    picture.alt = f"Line chart for {model}: share of the whole model by layers dropped. {'; '.join(courses)}."
    return picture.finish(name, provenance, shares, x=[0, 1.02 * end], y=[0, 1.05 * max(high, 1)])


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
