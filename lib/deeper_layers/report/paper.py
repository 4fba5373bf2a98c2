"""Numbers of the paper that figures and tests compare with. Nothing in this file was measured here."""

import math

import pandas as pd

# First dropped layer l*(n), counted from 0, for n = 1, 2, 3, ...: read in public evaluation scripts that
# are very likely the authors' own (they cover exactly the paper's range of n). By the names under which people open
# the models, with the number of layers L.
AUTHORS_STARTS = {
    "meta-llama/Llama-2-7b-hf": (32, [
        23, 24, 23, 23, 23, 22, 22, 21, 20, 19, 18, 18, 17, 16, 15, 8, 8, 7, 4, 4, 4, 2, 2, 2,
    ]),
    "meta-llama/Llama-2-13b-hf": (40, [
        33, 32, 31, 30, 29, 28, 27, 27, 27, 26, 25, 24, 24, 23, 22, 22, 20, 19, 18, 18, 17, 17, 15,
        3, 3, 3, 3, 3, 3, 3, 3, 3,
    ]),
    "meta-llama/Llama-2-70b-hf": (80, [
        62, 62, 61, 62, 61, 60, 61, 58, 59, 58, 58, 57, 56, 55, 54, 53, 53, 53, 53, 53, 51, 50, 49, 50,
        49, 49, 48, 48, 46, 46, 45, 44, 43, 42, 41, 40, 39, 37, 35, 35, 33, 33, 29, 30, 29, 28, 28, 28,
        26, 25, 23, 22, 22, 21, 20, 19, 19, 18, 16, 16, 14, 14, 13, 10,
    ]),
    "mistralai/Mistral-7B-v0.1": (32, [
        26, 24, 23, 23, 23, 22, 21, 21, 20, 20, 19, 17, 17, 16, 13, 13, 11, 8, 8, 6, 6, 5, 4, 3,
    ]),
}  # fmt: skip

# Text whose validation split distances and losses are of, by the name that results have for it.
CORPUS = "c4"

# Tokens of healing for the models of 7 billion parameters (appendix A.1): 5000 steps of 16 sequences of 2048.
HEALING_TOKENS = 163_840_000
LEARNING_RATE = 3e-4  # the highest, of most of its models

# The fraction of layers dropped at which accuracy on questions falls, from and to, as its text has them.
CLIFFS = {"Llama-2": (0.45, 0.55), "Mistral 7B": (0.35, 0.35), "Phi-2": (0.25, 0.25), "Qwen": (0.20, 0.20)}


def authors_starts() -> pd.DataFrame:
    """l*(n) of the authors' models, as shares of the layers: label, model (its hub's name), size, start, share,
    start_share."""
    rows = [
        (f"{model.rpartition('/')[2].replace('b-hf', 'B')}, the authors'", model, n, start, n / layers, start / layers)
        for model, (layers, starts) in AUTHORS_STARTS.items()
        for n, start in enumerate(starts, start=1)
    ]
    return pd.DataFrame(rows, columns=["label", "model", "size", "start", "share", "start_share"])


def cliffs() -> pd.DataFrame:
    """Where MMLU of the paper's models falls to guessing, as upright lines: label, share, value."""
    rows = []
    for family, ends in CLIFFS.items():
        places = dict.fromkeys(ends)
        label = f"the paper's {family}, {' to '.join(f'{end:.0%}' for end in places)}"
        rows += [{"label": label, "share": at, "value": y} for at in places for y in (0.0, 1.0, math.nan)]
    return pd.DataFrame(rows)
