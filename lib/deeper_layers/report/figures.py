"""Tidy frames in, figures out: each facets by model, and shows itself in a notebook with its data and its picture.

A figure's `name` names its files and its place on a page: a-z, 0-9 and hyphens. A frame without rows gives a sentence
instead. Intervals are 95%. A rule, a topic and a model have the same colour in every figure.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex

from deeper_layers.report import paper
from deeper_layers.report.drawing import GREY, HEAT, INK, MARKERS, Picture
from deeper_layers.report.names import as_html, as_table, in_order, rule_title, say
from deeper_layers.report.pairing import records
from deeper_layers.report.panels import (
    RED,
    YELLOW,
    alt_text,
    cell_text,
    columns_of,
    digits_of,
    hover_text,
    levels_of,
    looks_of,
    lower_first,
    mark_cliffs,
    panels_of,
    plain_table,
    span,
)
from deeper_layers.report.statistics import kept_distances
from deeper_layers.report.statistics import nearest as nearest_of

AXES = {
    "share": "Layers dropped, n / L",
    "size": "Layers dropped, n",
    "middle": "Middle of the dropped block, layers",
    "depth": "Depth, share of the layers",
    "kept": "Share kept above guessing",
    "value": "Score",
    "relative": "Loss over that of guessing, ln V",
    "MB": "Weights, MB",
    "cuts": "Pruned models in one sweep",
}
PERCENT = ("share", "depth")
FIRST, NEAREST = "First layer of the block, l", "l*(n), the most similar block"
MODELS = ("solid", "dash", "dot", "dashdot")  # strokes of what is told apart within a colour
SIZES = ListedColormap(HEAT(np.linspace(0.2, 0.88, 256)), name="sizes")  # the ends vanish on a black or white page


class Nothing:
    """What stands in a figure's place where nothing was measured."""

    def __init__(self, name: str):
        self.name = name

    def saying(self, more: str) -> "Nothing":
        return self

    def _repr_html_(self) -> str:
        return f'<p class="said" id="{as_html(self.name)}">Not measured.</p>'


def curves(rows: pd.DataFrame, *, x: str = "share", y: str = "value", hue: str = "rule", col: str = "model",
           row: str | None = "topic", marks: bool = False, name: str = "curves", caption: str = ""):  # fmt: skip
    """Lines over bands of their intervals, a panel for each `col` and `row`, with lines for guessing and for the whole
    model; `y` is "value", "kept" or any number. `marks`: where the paper's models fall (its figures 1d and 2)."""
    rows = rows[rows[y].notna() & np.isfinite(rows[y].astype(float)) & rows[x].notna()]
    if rows.empty:
        return Nothing(name)
    panels = list(panels_of(rows, col, row))
    look = {"columns": columns_of(rows, col, panels), "percent": "x" * (x in PERCENT)}
    picture = Picture(AXES.get(x, x), AXES.get(y, y), [title for title, _ in panels], **look)
    low, high = (f"{y}_low", f"{y}_high") if y != "value" else ("low", "high")
    looks, top = looks_of(rows[hue].astype(str).unique()), min(1.03, 1.1 * rows[y].astype(float).max())
    for panel, (_, own) in enumerate(panels):
        ends = [own[name].astype(float) for name in (low, high) if name in own] + [own[y].astype(float)]
        levels = levels_of(own, y)
        heights = span([*ends, pd.Series(list(levels.values()))])
        heights = [-0.5, 1.3] if y == "kept" else [0, top] if levels and heights[1] < 1.1 and x in PERCENT else heights
        picture.reach(panel, span([own[x]], zero=x in AXES), heights)
        for label, height in levels.items():
            picture.level(height, label, panel=panel, line="dot" if label == "guessing" else "dash")
        for value, line in own.groupby(own[hue].astype(str), sort=False):
            line, look, label = line.sort_values(x), looks[value], rule_title(value)
            if low in line:
                ends = (line[name].astype(float).clip(*picture.ranges[panel]["y"]) for name in (low, high))
                picture.band(line[x], *ends, colour=look["colour"], panel=panel, label=label)
            hover = [hover_text(label, of, x, y, low, high) for of in records(line)]
            picture.line(line[x], line[y], **look, panel=panel, label=label, hover=hover, size=3)
        if marks:
            mark_cliffs(picture, panel)
    said = " Bands are 95% intervals." if low in rows else ""
    caption = caption or f"{AXES.get(y, y)} against {lower_first(AXES.get(x, x))}.{said}"
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, hue, x, y))


def kept_by_place(rows: pd.DataFrame, *, name: str = "kept-by-place", caption: str = ""):
    """The headline: share kept above guessing against the place of the dropped block, a line a form, bands."""
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return Nothing(name)
    panels, size = list(panels_of(rows, "model", None)), int(2 * (rows["middle"] - rows["start"]).iloc[0] + 1)
    tall = [360, *[200] * (len(panels) - 1)]
    titles = [f"{title}, {int(own['layers'].iloc[0])} layers" for title, own in panels]
    across = f"Middle of the dropped block of {size} layers"
    picture = Picture(across, AXES["kept"], titles, tall=tall, percent="y")
    looks = looks_of(rows["topic"].unique())
    for panel, (_, own) in enumerate(panels):
        last = float(own["layers"].iloc[0]) - 1
        picture.reach(panel, [0, last], [-0.3, 1.3])
        picture.level(1, "as the whole model", panel=panel)
        picture.level(0, "guessing", panel=panel, line="dot")
        for form, line in own.groupby("topic", sort=False):
            line = line.sort_values("middle")
            low, high = line["low"].clip(-0.3, 1.3), line["high"].clip(-0.3, 1.3)
            look = looks[form]
            picture.band(line["middle"], low, high, colour=look["colour"], panel=panel, label=form)
            hover = [
                f"{form}\nlayers {of['start']} to {of['start'] + size - 1} dropped\n"
                f"keeps {say(of, as_share=True)}, {of['items']} items"
                for of in records(line)
            ]
            picture.line(line["middle"], line["value"], **look, panel=panel, label=form, hover=hover, width=2, size=4)
    caption = caption or (
        f"What each block of {size} layers leaves of what the whole model scores above guessing. Bands are 95% "
        "intervals; tasks on which the whole model only guesses are left out."
    )
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, "topic", "middle", "value"))


def distance_curves(distances: pd.DataFrame, *, name: str = "distance-curves", caption: str = ""):
    """Angular distance against first layer, a line a block size, l*(n) in ink (paper, figure 1c; equation 7)."""
    if distances.empty:
        return Nothing(name)
    rows, best = kept_distances(distances), nearest_of(distances)
    panels = list(panels_of(rows, "model", "corpus" if rows["corpus"].nunique() > 1 else None))
    picture = Picture(FIRST, "Angular distance, units of π", [title for title, _ in panels])
    scale = ScalarMappable(Normalize(1, int(rows["layers"].max())), SIZES)
    for panel, (_, own) in enumerate(panels):
        picture.reach(panel, [-0.5, int(own["layers"].iloc[0]) - 0.5], [0, 1.05 * own["distance"].max()])
        for size, line in own.groupby("size"):
            line, colour = line.sort_values("start"), to_hex(scale.to_rgba(size))
            hover = [f"n = {size}, l = {of.start}: d = {of.distance:.3f}" for of in line.itertuples()]
            look = {"colour": colour, "panel": panel}
            picture.line(line["start"][:-1], line["distance"][:-1], **look, width=1, hover=hover[:-1])
            look |= {"line": None, "marker": "circle", "size": 2, "filled": False}
            picture.line(line["start"][-1:], line["distance"][-1:], **look, hover=[f"{hover[-1]}, never dropped"])
        line = _of_panel(best, own)
        hover = [f"n = {of['size']}: l* = {of['start']}, d = {of['distance']:.3f}" for of in records(line)]
        look = {"colour": INK, "width": 2, "marker": "circle", "size": 3, "panel": panel, "hover": hover}
        picture.line(line["start"], line["distance"], **look, label=NEAREST)
    picture.colour_bar(scale, "Layers in the block, n")
    caption = caption or (
        "Angular distance between what enters and what leaves each block. The line in ink joins the most similar block "
        "of each size among those that keep the last layer; open marks are blocks that hold it."
    )
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, "size", "start", "distance", few=True))


def heat_maps(distances: pd.DataFrame, *, name: str = "heat-maps", caption: str = ""):
    """Distances over first layer and block size, each row rescaled to 0 to 1, l*(n) marked (paper, figure 4)."""
    if distances.empty:
        return Nothing(name)
    rows, best = kept_distances(distances), nearest_of(distances)
    panels = list(panels_of(rows, "model", "corpus" if rows["corpus"].nunique() > 1 else None))
    picture = _squares(panels)
    for panel, (_, own) in enumerate(panels):
        of_size = own.groupby("size")["distance"]
        least, most = of_size.transform("min"), of_size.transform("max")
        scaled = own.assign(shade=(own["distance"] - least) / (most - least).replace(0, np.nan))
        _map(picture, panel, scaled, "Distance, rescaled in each row", "d = {:.3f}", "distance")
        line, look = _of_panel(best, own), {"line": None, "panel": panel, "size": 3}
        picture.line(line["start"], line["size"], colour=RED, marker="circle", label=NEAREST, **look)
        model = own["model"].iloc[0]
        _, authors = paper.AUTHORS_STARTS.get(paper.HUB_NAMES.get(model, model), (0, []))
        if authors:
            look |= {"filled": False, "size": 5, "label": "the authors' l*(n)"}
            picture.line(authors, range(1, len(authors) + 1), colour=YELLOW, marker="diamond", **look)
    caption = caption or (
        "Angular distance of every block, rescaled in each row from 0 (most similar) to 1. A row's last block holds "
        "the last layer and is never dropped."
    )
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, "size", "start", "distance", few=True))


def best_starts(nearest: pd.DataFrame, *, authors: bool = True, name: str = "best-starts", caption: str = ""):
    """Start of the most similar block against its size, as shares of all layers, the authors' starts beside."""
    if nearest.empty:
        return Nothing(name)
    picture = Picture(AXES["share"], "Start of the most similar block, l*(n) / L", percent="xy")
    picture.reach(0, [0, 1], [0, 1.03])
    picture.line([0, 1], [1, 0], colour=GREY, line="dash", label="the block ends at the last layer", width=1)
    several = nearest["corpus"].nunique() > 1
    looks = looks_of(in_order(nearest["model"].unique()))
    for (model, corpus), line in nearest.groupby(["model", "corpus"], sort=False):
        stroke = MODELS[list(nearest["corpus"].unique()).index(corpus) % len(MODELS)]
        label = f"{model}, {corpus}" if several else model
        hover = [f"{label}: n = {n}, l* = {l}" for n, l in zip(line["size"], line["start"], strict=True)]  # noqa: E741
        look = looks[model] | {"line": stroke, "width": 2, "size": 3, "label": label, "hover": hover}
        picture.line(line["share"], line["start"] / line["layers"], **look)
    for number, (model, (layers, starts)) in enumerate(paper.AUTHORS_STARTS.items() if authors else ()):
        sizes = np.arange(1, len(starts) + 1)
        hover = [f"{model}, the authors: n = {n}, l* = {l}" for n, l in zip(sizes, starts, strict=True)]  # noqa: E741
        look = {"colour": GREY, "line": MODELS[number % len(MODELS)], "marker": MARKERS[number], "filled": False}
        look |= {"width": 1, "size": 3, "hover": hover, "label": f"{model}, the authors'"}
        picture.line(sizes / layers, np.array(starts) / layers, **look)
    caption = caption or "First layer of the most similar block against its size, as shares of all layers."
    return picture.finish(name, plain_table(nearest), caption, alt_text([("", nearest)], "model", "size", "start"))


def losses(rows: pd.DataFrame, *, y: str = "value", name: str = "losses", caption: str = ""):
    """Loss against the share dropped, a line a healing and rule; `y` may be "relative", over ln V (paper, figure 3).

    What lies above guessing is cut off, and a healing of one or two cuts is left out.
    """
    rows = rows[rows["size"].notna() & rows["rule"].isin(["similarity", "simple"])]
    rows = rows[rows.groupby(["model", "task", "healed", "rule"])["cut"].transform("size") > 2]
    if rows.empty:
        return Nothing(name)
    unit = rows["guessing"] if y == "relative" else 1.0
    rows = rows.assign(low=rows["low"] / unit, high=rows["high"] / unit, number=rows[y])
    rows["line"] = [
        "not healed" if pd.isna(rank) else f"healed, rank {rank:.0f}, {tokens:,.0f} tokens"
        for rank, tokens in zip(rows["rank"], rows["tokens"], strict=True)
    ]
    panels = list(panels_of(rows, "model", "topic" if rows["task"].nunique() > 1 else None))
    title = AXES["relative"] if y == "relative" else "Loss, nats a token"
    picture = Picture(AXES["share"], title, [title for title, _ in panels], percent="x")
    looks = looks_of(in_order(rows["line"].unique(), ("not healed",)))
    for panel, (_, own) in enumerate(panels):
        top = 1.0 if y == "relative" else float(own["guessing"].max())
        drawn = own[own["number"] <= 1.15 * top]
        picture.reach(panel, span([drawn["share"]], zero=True), span([drawn["number"], pd.Series([top])]))
        picture.level(top, "guessing", panel=panel, line="dot")
        for (healed, rule, label), line in drawn.groupby(["healed", "rule", "line"], sort=False):
            line, look = line.sort_values("share"), looks[label] | {"line": "solid" if rule == "similarity" else "dash"}
            picture.band(line["share"], line["low"], line["high"], colour=look["colour"], panel=panel, label=label)
            hover = [
                hover_text(f"{rule_title(rule)}\n{healed}", of, "share", "number", "low", "high")
                for of in records(line)
            ]
            picture.line(line["share"], line["number"], **look, panel=panel, label=label, hover=hover, size=3)
    caption = caption or (
        "Loss on text against the layers dropped, healed and not; dashed under the simple heuristic. What lies far "
        "above guessing is cut off."
    )
    return picture.finish(
        name,
        plain_table(rows.drop(columns=["number", "line"])),
        caption,
        alt_text(panels, "healed", "share", y, few=True),
    )


def training(rows: pd.DataFrame, *, name: str = "training", caption: str = ""):
    """Loss by tokens of healing, a line a run, coloured by how many layers were dropped."""
    if rows.empty:
        return Nothing(name)
    panels = list(panels_of(rows, "model", None))
    picture = Picture("Tokens of healing", "Training loss, nats a token", [title for title, _ in panels])
    scale = ScalarMappable(Normalize(0, rows["size"].max()), SIZES)
    for panel, (_, own) in enumerate(panels):
        picture.reach(panel, span([own["tokens"]], zero=True), span([own["loss"]]))
        for (healing, cut, size, _), line in own.groupby(["healing", "cut", "size", "path"], sort=False):
            line = line.assign(loss=line["loss"].rolling(5, min_periods=1).mean())[:: max(1, len(line) // 20)]
            hover = [
                f"{size} layers dropped ({cut}), {healing}\n{of.tokens:,.0f} tokens: {of.loss:.2f}"
                for of in line.itertuples()
            ]
            picture.line(
                line["tokens"], line["loss"], colour=to_hex(scale.to_rgba(size)), panel=panel, hover=hover, width=1
            )
    picture.colour_bar(scale, "Layers dropped, n")
    caption = caption or "Training loss while healing, mean of 5 steps, a line a run."
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, "size", "tokens", "loss", few=True))


def in_rows(rows: pd.DataFrame, *, y: str, x: str = "value", hue: str | None = None, col: str = "model",
            title: str = "", name: str = "in-rows", caption: str = ""):  # fmt: skip
    """A dot with its interval for each name of column `y`: recovery, regret, differences, where half is gone.

    What is infinite stands at the right end, open.
    """
    low, high = ("low", "high") if x == "value" else (f"{x}_low", f"{x}_high")
    rows = rows[rows[x].notna()].copy()
    if rows.empty:
        return Nothing(name)
    for column in (low, high):
        rows[column] = rows[column].astype(float) if column in rows else np.nan
    panels = list(panels_of(rows, col, None))
    names = [list(dict.fromkeys(own[y].astype(str))) for _, own in panels]
    hues = list(dict.fromkeys(rows[hue].astype(str))) if hue else [""]
    tall = [max(60, (24 + 12 * (len(hues) - 1)) * len(of_panel) + 20) for of_panel in names]
    picture = Picture(
        title or AXES.get(x, x), "", [t for t, _ in panels], tall=tall, percent="x" if x == "share" else ""
    )
    looks = looks_of(hues)
    for panel, ((_, own), of_panel) in enumerate(zip(panels, names, strict=True)):
        finite = [own[column][np.isfinite(own[column].astype(float))].astype(float) for column in (low, x, high)]
        left, right = span([*finite, pd.Series([0.0])])
        picture.reach(panel, [left, right], [len(of_panel) - 0.35, -0.75], rows=[rule_title(one) for one in of_panel])
        picture.line([0, 0], [len(of_panel), -1], colour=GREY, panel=panel, width=1)
        for number, value in enumerate(hues):
            line = own[own[hue].astype(str) == value] if hue else own
            if line.empty:
                continue
            places = [of_panel.index(one) + 0.16 * number for one in line[y].astype(str)]
            dots = line[x].astype(float).clip(left, right)
            ends = line[low].astype(float).clip(left, right), line[high].astype(float).clip(left, right)
            look = {**looks[value], "line": None, "panel": panel, "label": rule_title(value) if hue else None}
            picture.bars(dots, places, *ends, colour=look["colour"], panel=panel, label=look["label"])
            hover = [hover_text(rule_title(str(of[y])), of, hue or "", x, low, high) for of in records(line)]
            finite = np.isfinite(line[x].astype(float)).to_numpy()
            for these, filled in ((finite, True), (~finite, False)):
                if these.any():
                    said = [text for text, shown in zip(hover, these, strict=True) if shown]
                    picture.line(dots[these], np.array(places)[these], **look, hover=said, filled=filled)
    caption = caption or f"{title or AXES.get(x, x)}. Bars are 95% intervals."
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, hue or y, y, x, few=True))


def block_map(rows: pd.DataFrame, *, nearest: pd.DataFrame | None = None, name: str = "block-map", caption: str = ""):
    """What each block costs, over first layer and size: 0 is the whole model, 1 guessing. The best block of each size
    is marked; of `nearest` (statistics.nearest) the most similar one too."""
    rows = rows[rows["size"] > 0]
    if rows.empty:
        return Nothing(name)
    panels = list(panels_of(rows, "model", "topic" if rows["task"].nunique() > 1 else None))
    picture = _squares(panels)
    for panel, (_, own) in enumerate(panels):
        way = own["guessing"] - (own["value"] - own["cost"])
        shares = own.assign(shade=(own["cost"] / way).clip(0, 1))
        _map(picture, panel, shares, "Loss added, as a share of the way to guessing", "{:+.2f} nats a token", "cost")
        best, look = own[own["place"] == 1], {"line": None, "panel": panel, "size": 3}
        picture.line(best["start"], best["size"], colour="#ffffff", marker="circle", label="best of its size", **look)
        if nearest is not None:
            line = _of_panel(nearest, own)
            look |= {"filled": False, "size": 5, "label": NEAREST}
            picture.line(line["start"], line["size"], colour=RED, marker="square", **look)
    caption = caption or "Loss that each block adds when it is dropped; white where it was not measured."
    return picture.finish(name, plain_table(rows), caption, alt_text(panels, "size", "start", "cost", few=True))


def table(rows: pd.DataFrame, caption: str = "", *, columns: Sequence[str] | None = None):
    """A frame as a table that shows itself, rounded: value, low and high become one cell "0.91 (0.85 to 0.97)"."""
    shown = pd.DataFrame(index=rows.index)
    for column in columns if columns is not None else list(rows.columns):
        low, high = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
        if columns is None and column.endswith(("low", "high")):
            continue
        if low in rows and high in rows:
            cells = [
                say(*ends, digits=digits_of(rows[column]))
                for ends in zip(rows[column], rows[low], rows[high], strict=True)
            ]
        else:
            cells = [cell_text(value) for value in rows[column].tolist()]
        shown[column.replace("_", " ")] = cells
    return as_table(shown, caption)


# ---- what they share ------------------------------------------------------------------------------------------------


def _squares(panels: list) -> Picture:
    columns = min(2, len(panels))
    tall = [300 if columns > 1 else 420] * -(-len(panels) // columns)
    return Picture(FIRST, "Layers in the block, n", [title for title, _ in panels], columns=columns, tall=tall)


def _map(picture: Picture, panel: int, own: pd.DataFrame, title: str, form: str, told: str):
    """A map of the column `shade`, from 0 to 1, over first layer and size, whose hover says the column `told`."""
    layers = int(own["layers"].iloc[0])
    blocks = {"index": range(1, layers + 1), "columns": range(layers)}
    shade, raw = (own.pivot(index="size", columns="start", values=name).reindex(**blocks) for name in ("shade", told))
    hover = [
        [f"layers {start} to {start + size - 1} (n = {size}): {form.format(value)}" for start, value in of.items()]
        for size, of in raw.iterrows()
    ]
    picture.reach(panel, [-0.5, layers - 0.5], [0.5, layers + 0.5])
    picture.heat(shade.to_numpy(dtype=float), hover=hover, title=title, panel=panel, y0=1)


def _of_panel(best: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The most similar blocks of a panel's model, on its text where it has one, of its sizes."""
    found = best[(best["model"] == own["model"].iloc[0]) & best["size"].isin(own["size"])]
    return found[found["corpus"] == own["corpus"].iloc[0]] if "corpus" in own else found
