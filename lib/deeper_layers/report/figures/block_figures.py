"""The map of every block: what dropping it costs, beside how far it turns the residual. No torch."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from deeper_layers.errors import InputError
from deeper_layers.report.figures.drawing import HEAT, Figure, Picture, text_of, values_of
from deeper_layers.report.figures.paper_figures import FIRST
from deeper_layers.report.figures.tables import course, require
from deeper_layers.report.names import as_html

LAYER_HEIGHT = 9  # pixels of a row
TITLES = {"distance": "Angular distance", "loss": "Loss on text"}


def ranks_in_rows(rows: pd.DataFrame, column: str, num_layers: int) -> pd.DataFrame:
    """Of each block the share of the others of its size with a smaller value: n down, l across, NaN where none is.

    A row of a single block has no shares.
    """
    table = require(rows, "rows", "start", "size", column).pivot(index="size", columns="start", values=column)
    table = table.reindex(index=range(1, num_layers + 1), columns=range(num_layers)).astype(float)
    others = (table.count(axis=1) - 1).replace(0, np.nan)
    return (table.rank(axis=1) - 1).div(others, axis=0)


def block_maps(
    distances: pd.DataFrame, losses: pd.DataFrame, num_layers: int, *, best: dict[str, pd.DataFrame], model: str,
    text: str, name: str = "block-maps", provenance: str = "",
) -> Figure:  # fmt: skip
    """Distances and losses of every block side by side over first layer and block size, each row by its ranks.

    Args:
        distances: start, size, distance, stderr.
        losses: start, size, value (nats a token), stderr.
        best: under "distance" and "loss" the block with the least of each size: size, start.
        text: on which the losses were measured, in words.
    """
    if set(best) != set(TITLES):
        raise InputError(f"best is of {sorted(best)}, expected {sorted(TITLES)}")
    data = losses.rename(columns={"value": "loss"}).merge(
        distances, on=["start", "size"], how="outer", suffixes=("_loss", "_distance")
    )
    picture = Picture(FIRST, "Layers in the block, n", titles=list(TITLES.values()), columns=2, inches=(9.2, 4.9))
    picture.height = LAYER_HEIGHT * num_layers
    edges = np.arange(num_layers + 1) - 0.5
    for panel, what in enumerate(TITLES):
        ranks = ranks_in_rows(data.dropna(subset=what), what, num_layers)
        look = {"cmap": HEAT, "vmin": 0, "vmax": 1, "rasterized": True, "zorder": 2}
        picture.axes[panel].pcolormesh(edges, edges + 1, np.ma.masked_invalid(ranks.to_numpy()), **look)
        shown = {(row["size"], row["start"]): row for row in data.to_dict("records")}
        details = [
            [_details(shown.get((size, start)), what) for start in range(num_layers)]
            for size in range(1, num_layers + 1)
        ]
        unit = "d" if what == "distance" else "loss"
        hover = f"n = %{{y}}, l = %{{x}}<br>{unit} = %{{customdata[0]}}, standard error %{{customdata[1]}}"
        hover += "<br>smaller in %{z:.0%} of its row<extra></extra>"
        number = picture.numbers[panel]
        look = {"y0": 1, "coloraxis": "coloraxis", "hoverongaps": False, "customdata": details}
        place = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        z = [values_of(row) for row in ranks.to_numpy()]
        picture.traces.append(go.Heatmap(z=z, hovertemplate=hover, **look, **place))
        for of, colour, marker in (("distance", "#D55E00", "circle"), ("loss", "#E69F00", "diamond")):
            look = {"colour": colour, "line": None, "marker": marker, "size": 4, "filled": of == what}
            label = {"distance": "l*(n), the most similar block", "loss": "the block with the least loss"}[of]
            picture.line(best[of]["start"], best[of]["size"], **look, label=label, panel=panel)
    picture.colour_bar(ScalarMappable(Normalize(0, 1), HEAT), "Share of the row that is smaller")
    picture.caption = (
        f"Every block of {as_html(model)}: left, how far it turns the residual; right, the loss on {as_html(text)} "
        "without it. Each row is one block size, coloured by rank: dark is small. Markers: the least of each row in "
        "both maps, among blocks that keep the last layer. Blocks that were not measured are empty."
    )
    picture.alt = (
        f"Two heat maps for {model} over first layer and block size: angular distance, whose least is at "
        f"{course(best['distance'], 'size', 'start')}; loss without the block, whose least is at "
        f"{course(best['loss'], 'size', 'start')}."
    )
    ranges = {"x": [-0.5, num_layers - 0.5], "y": [0.5, num_layers + 0.5]}
    return picture.finish(name, provenance, data, **ranges)


def _details(row: dict | None, what: str) -> list[str]:
    return [text_of(row[what]), text_of(row[f"stderr_{what}"])] if row else ["missing", "missing"]
