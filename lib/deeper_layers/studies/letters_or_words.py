"""Letters or words? What middle and late blocks take of the same questions, asked by letter, in words and to write."""

import pandas as pd


def costs(scores: pd.DataFrame, size: int = 4) -> pd.DataFrame:
    """Mean share kept by place: model, task, topic, form ("letters", "words", "written"), place ("middle", "late"),
    blocks, items, value with low and high, untold."""
    raise NotImplementedError


def differences(scores: pd.DataFrame, size: int = 4) -> pd.DataFrame:
    """The study's criterion: model, number ("D, words less letters" or "W, middle less late"), about, place, value with
    low and high, limit, verdict."""
    raise NotImplementedError


def silent(scores: pd.DataFrame, size: int = 4) -> pd.DataFrame:
    """2605.07271's two phases by block: model, task, topic, start, middle, commonest (share of the choice most often
    given), margin (nats, right choice less the best other), items."""
    raise NotImplementedError
