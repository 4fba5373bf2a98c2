"""Rows in, figure out: what pruning saves, and what measuring it costs. Rows and figures as in paper_figures.py."""

from collections.abc import Mapping

import pandas as pd

from deeper_layers.errors import InputError
from deeper_layers.report.figures.drawing import GREY, SHARES, Figure, Picture, details_of, styles_of, text_of
from deeper_layers.report.figures.paper_figures import DROPPED
from deeper_layers.report.figures.tables import References, Tasks, accuracy_lines, course, known_levels, require
from deeper_layers.report.names import as_html, as_plotly


def sweep_cost(
    points: Mapping[str, pd.DataFrame], *, name: str = "sweep-cost", provenance: str = ""
) -> Figure:  # fmt: skip
    """Time of a sweep against the layers that run for each token, a line per benchmark.

    `points` holds for each label the columns cuts, layers (run for each token), layers_of_model and passes: the
    time in bare passes of the whole model over the same tokens. One layer costs 1 / L of such a pass.
    """
    columns = ("cuts", "layers", "layers_of_model", "passes")
    points = {label: require(rows, label, *columns) for label, rows in points.items()}
    data = pd.concat([rows.assign(benchmark=label) for label, rows in points.items()])
    wide, high = 1.05 * float(data["layers"].max()), 1.1 * float(data["passes"].max())
    whole = float(data["layers_of_model"].iloc[0])
    picture = Picture("Layers that run for each token", "Time, in bare passes of the whole model")
    end = min(wide, high * whole)
    picture.line([0, end], [0, end / whole], colour=GREY, line="dash", label="every layer at the price of a bare one")
    for (label, rows), style in zip(points.items(), styles_of(points)):
        hover = f"{as_plotly(label)}<br>%{{customdata[0]}} pruned models, %{{x}} layers<br>%{{y:.2f}} bare passes"
        details = details_of(rows, "cuts")
        picture.line(rows["layers"], rows["passes"], **style, label=label, details=details, hover=hover)
    picture.caption = (
        "Time of a sweep over more and more pruned models, against the layers that run for each token: those of the "
        "whole model, then those above each cut."
    )
    picture.alt = "Line chart: time of a sweep against layers run for each token. " + "; ".join(
        f"{label}, {course(rows, 'layers', 'passes')}" for label, rows in points.items()
    )
    return picture.finish(name, provenance, data, x=[0, wide], y=[0, max(high, 1.1)])


def accuracy_against_bytes(
    accuracy: pd.DataFrame, references: References, *, tasks: Tasks, bits: Mapping[str, str], model: str,
    name: str = "accuracy-bytes", provenance: str = "",
) -> Figure:  # fmt: skip
    """Accuracy against the size of the weights, a panel per task, a line per kind of weights, a point per cut.

    `accuracy` has the kind of weights in the column rule, and the column bytes besides.
    """
    accuracy = require(accuracy, "accuracy", "bytes")
    tasks, lines, data = accuracy_lines(accuracy.assign(MB=accuracy["bytes"] / 1e6), tasks, bits)
    picture = Picture("Size of the weights (MB)", "Accuracy", titles=list(tasks.values()), columns=min(len(tasks), 3))
    start, end = 0.9 * float(data["MB"].min()), 1.05 * float(data["MB"].max())
    for panel, task in enumerate(tasks):
        for level, height in known_levels(references, task).items():
            if level == "chance":
                look = {"colour": GREY, "line": "dash", "width": 1.2, "label": level}
                picture.line([start, end], [height, height], **look, panel=panel, hover=f"chance: {text_of(height)}")
        for (kind, label), style in zip(bits.items(), styles_of(bits)):
            picture.accuracy(lines[task, kind], style, label, panel, across="MB", unit="MB")
    deepest = int(data["size"].max())
    picture.caption = (
        f"Accuracy of {as_html(model)} against the bytes of its weights: one line for each kind of weights, one "
        f"point for each number of dropped layers, from 0 at the right end of a line to {deepest} at its left end. "
        "Bands: 95% intervals."
    )
    words = [f"{tasks[task]}, {bits[kind]}, {course(rows, 'MB', 'value')}" for (task, kind), rows in lines.items()]
    picture.alt = f"Line charts for {model}: accuracy by size of the weights. {'; '.join(words)}."
    return picture.finish(name, provenance, data, x=[start, end], y=SHARES)


def gained(
    shares: pd.DataFrame, *, lines: Mapping[str, str], model: str, name: str = "gained", provenance: str = ""
) -> Figure:
    """What a pruned model takes, as a share of what the whole one does, against the fraction of layers dropped.

    `shares` has the columns line, size n, start l, fraction n / L, value, low, high (over repeats), items (repeats)
    and metric. The ideal is 1 - n / L: nothing but layers.
    """
    columns = ("line", "size", "start", "fraction", "value", "low", "high", "items", "metric")
    shares = require(shares, "shares", *columns)
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
            f"{as_plotly(label)}<br>n = %{{customdata[0]}}<br>%{{y}} of the whole model, "
            "%{customdata[1]} to %{customdata[2]} in %{customdata[3]} repeats"
        )
        details = details_of(rows, "size", "low", "high", "items")
        picture.line(x, rows["value"], **style, label=label, details=details, hover=hover)
        courses.append(f"{label}, {course(rows, 'fraction', 'value')}")
    picture.caption = (
        f"What {as_html(model)} takes without its layers, as a share of what it takes with all of them. Bands: "
        "least and most of the repeats."
    )
    picture.alt = f"Line chart for {model}: share of the whole model by layers dropped. {'; '.join(courses)}."
    return picture.finish(name, provenance, shares, x=[0, 1.02 * end], y=[0, 1.05 * max(high, 1)])
