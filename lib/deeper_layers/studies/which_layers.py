"""Which layers should go? Every block's cost, the regret of rules, and whether geometry knows better."""

from pathlib import Path

import pandas as pd


def blocks(scores: pd.DataFrame) -> pd.DataFrame:
    """The map of every block: model, task (text), layers, size, start, share, value (loss, nats a token), guessing,
    cost (over the whole model), place (among blocks of its size, from 1)."""
    raise NotImplementedError


def rules(scores: pd.DataFrame) -> pd.DataFrame:
    """Rivals: model, rule, title, sizes (which all rules of the model have), value (mean loss added, nats a token) with
    low and high, place. Rules that random draws stand for are one: "random, mean of five"."""
    raise NotImplementedError


def points(scores: pd.DataFrame) -> pd.DataFrame:
    """What rules keep of tasks: model, rule, title, task, topic, size, items, value (share kept) with low, high."""
    raise NotImplementedError


def geometry(folder: Path | None = None) -> pd.DataFrame:
    """Measures of every layer: model, corpus, layers, layer, depth, measure (in words), value, stderr where known."""
    raise NotImplementedError


def picks(scores: pd.DataFrame, measures: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """For each measure the regret of its pick, no interval: model, measure, size, start, best, value, mean."""
    raise NotImplementedError
