"""What was measured, how long it took, on what data, and what it costs: small tables of result files and benchmarks."""

from pathlib import Path

import pandas as pd


def runs(folder: Path | None = None) -> pd.DataFrame:
    """A row for each result file: model, kind, name, cuts, measured (day), hours, processors, processor_hours, GiB,
    watt_hours, device, commit, path."""
    raise NotImplementedError


def hours(folder: Path | None = None) -> pd.DataFrame:
    """Runs added up: model, kind, what (in words), runs, hours, processor_hours, watt_hours, GiB (at most)."""
    raise NotImplementedError


def data(scores: pd.DataFrame) -> pd.DataFrame:
    """Data sets: data, source, licence, splits, asked (most items or sequences that were asked of any model)."""
    raise NotImplementedError


def models(folder: Path | None = None) -> pd.DataFrame:
    """The models: model, layers, weights (hash), dtype, tokens of vocabulary, licence."""
    raise NotImplementedError


def asked_twice(scores: pd.DataFrame) -> pd.DataFrame:
    """Same models, same items, asked twice: model, task, topic, cuts, items, answers (that both hold), differ (chosen
    otherwise), turned (right in one of them only), value (accuracy then less accuracy now) with low and high."""
    raise NotImplementedError


def published_again(published: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Published scores beside the same measured now: model, task, topic, size, start, published, low, high, again,
    within."""
    raise NotImplementedError


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Weights and answers by type: model, bits, size, share, bytes, MB, task, topic, items, value with low and high."""
    raise NotImplementedError


def costs(measured: dict | None = None) -> pd.DataFrame:
    """Seconds of each way to the same scores, from an experiment of costs: way, task, cuts, seconds, speedup."""
    raise NotImplementedError
