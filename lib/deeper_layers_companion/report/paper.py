"""Numbers of the paper, from paper.toml, with which figures and tests compare. Nothing here was measured."""

import tomllib
from pathlib import Path

import pandas as pd

from deeper_layers_companion.report.pairing import returns
from deeper_layers_companion.report.statistics import find_depth, find_quarter

PAPER = tomllib.loads(Path(__file__).with_name("paper.toml").read_text(encoding="utf-8"))
CORPUS = "c4"  # the paper's distances and losses are on its validation split
# for healing models of 7 billion parameters (appendix A.1): 5000 steps of 16 sequences of 2048
HEALING_TOKENS = 163_840_000
LEARNING_RATE = 3e-4  # the peak, for most of its models


@returns("label model size start share start_share")
def authors_starts():
    """l*(n) of the authors' models (with their names on the hub), as shares of the layers."""
    for model, record in PAPER["starts"].items():
        label = f"{model.rpartition('/')[2].replace('b-hf', 'B')}, the authors'"
        rows = pd.DataFrame({"start": record["starts"], "label": label, "model": model})
        rows = rows.assign(size=rows.index + 1)
        yield rows.assign(
            share=rows["size"] / record["layers"], start_share=rows["start"] / record["layers"]
        )


def depth_at_quarter() -> pd.DataFrame:
    """The depth of statistics.depth_at_quarter in the paper's models: model, layers, size, start, depth."""
    starts = authors_starts()
    rows = starts.assign(layers=[PAPER["starts"][model]["layers"] for model in starts["model"]])
    rows = rows[rows["size"] == find_quarter(rows["layers"])]
    return rows.assign(depth=find_depth(rows))


@returns("label share value")
def cliffs():
    """The shares at which MMLU of the paper's models falls to guessing, as vertical lines."""
    for family, ends in PAPER["cliffs"].items():
        for place in dict.fromkeys(ends):
            yield from (
                {"label": f"{family} {place:.0%}", "share": place, "value": y} for y in (0.0, 1.0)
            )
