"""Numbers of the paper that figures and tests compare with, of paper.toml. Nothing here was measured."""

import math
import tomllib
from pathlib import Path

import pandas as pd

from deeper_layers.report.pairing import gives

TOLD = tomllib.loads(Path(__file__).with_name("paper.toml").read_text(encoding="utf-8"))
CORPUS = "c4"  # on whose validation split distances and losses are, as results have its name
# Of healing the models of 7 billion parameters (appendix A.1): 5000 steps of 16 sequences of 2048.
HEALING_TOKENS = 163_840_000
LEARNING_RATE = 3e-4  # the highest, of most of its models


@gives("label model size start share start_share")
def authors_starts():
    """l*(n) of the authors' models (by their hub's names), as shares of the layers."""
    for model, of in TOLD["starts"].items():
        label = f"{model.rpartition('/')[2].replace('b-hf', 'B')}, the authors'"
        rows = pd.DataFrame({"start": of["starts"], "label": label, "model": model})
        rows = rows.assign(size=rows.index + 1)
        yield rows.assign(share=rows["size"] / of["layers"], start_share=rows["start"] / of["layers"])


@gives("label share value")
def cliffs():
    """Where MMLU of the paper's models falls to guessing, as upright lines."""
    for family, (start, end) in TOLD["cliffs"].items():
        places = dict.fromkeys((start, end))
        label = f"the paper's {family}, {' to '.join(f'{place:.0%}' for place in places)}"
        yield from ({"label": label, "share": at, "value": y} for at in places for y in (0.0, 1.0, math.nan))
