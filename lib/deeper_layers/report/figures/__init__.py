"""Tidy frames in, figures out: each facets by model, and shows itself in a notebook with its data and its picture.

A figure's `name` names its files and its place on a page: a-z, 0-9 and hyphens. Each function takes one, and a
`caption`, and has its own where none is given.
"""

from collections.abc import Sequence

import pandas as pd


def curves(rows: pd.DataFrame, *, x: str = "share", y: str = "value", hue: str = "rule", col: str = "model",
           row: str | None = "topic", marks: bool = False, name: str = "curves", caption: str = ""):  # fmt: skip
    """Lines over bands of their intervals (`y`_low, or low and high), a panel for each `col` and `row`, with lines for
    guessing and for the whole model; `y` is "value" or "kept". `marks`: where the paper's models fall (figures 1d, 2).
    """
    raise NotImplementedError


def kept_by_place(rows: pd.DataFrame, *, name: str = "kept-by-place", caption: str = ""):
    """The headline: share kept above guessing against the place of the dropped block, a line a form, bands."""
    raise NotImplementedError


def distance_curves(distances: pd.DataFrame, *, name: str = "distance-curves", caption: str = ""):
    """Angular distance against first layer, a line a block size, l*(n) in ink (paper, figure 1c)."""
    raise NotImplementedError


def heat_maps(distances: pd.DataFrame, *, name: str = "heat-maps", caption: str = ""):
    """Distances over first layer and block size, each row rescaled to 0 to 1, l*(n) marked (paper, figure 4)."""
    raise NotImplementedError


def best_starts(nearest: pd.DataFrame, *, authors: bool = True, name: str = "best-starts", caption: str = ""):
    """Start of the most similar block against its size, as shares of all layers, the authors' starts beside."""
    raise NotImplementedError


def losses(rows: pd.DataFrame, *, y: str = "value", name: str = "losses", caption: str = ""):
    """Loss against the share dropped, a line a healing and rule; `y` may be "relative", over ln V (paper, figure 3)."""
    raise NotImplementedError


def training(rows: pd.DataFrame, *, name: str = "training", caption: str = ""):
    """Loss by step of healing, a line a cut."""
    raise NotImplementedError


def in_rows(rows: pd.DataFrame, *, y: str, x: str = "value", hue: str | None = None, col: str = "model",
            title: str = "", name: str = "in-rows", caption: str = ""):  # fmt: skip
    """A dot with its interval for each name of column `y`: recovery, regret, differences, retentions."""
    raise NotImplementedError


def block_map(rows: pd.DataFrame, *, name: str = "block-map", caption: str = ""):
    """What each block costs, over first layer and size, best and most similar ones marked (studies.which_layers.blocks)."""
    raise NotImplementedError


def bars(rows: pd.DataFrame, *, x: str, y: str = "value", hue: str | None = None, col: str = "model", title: str = "",
         log: bool = False, name: str = "bars", caption: str = ""):  # fmt: skip
    """Points of some names side by side with their intervals: seconds, bytes, answers."""
    raise NotImplementedError


def table(rows: pd.DataFrame, caption: str = "", *, columns: Sequence[str] | None = None, one_row: str = ""):
    """A frame as a table that shows itself, rounded: value, low and high become one cell "0.91 (0.85 to 0.97)".

    `columns`: which, in which order; `one_row`: a column whose names become columns, such as "model".
    """
    raise NotImplementedError
