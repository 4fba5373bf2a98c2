"""The paper's claims: a record each, one number that decides it, one table of all."""

import pandas as pd


def claims_table(scores: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """All claims of all models: claim, title, sentence, paper (its number, with its model), figure, page, model, number
    (what was counted), value with low and high, floor, ceiling, verdict, reason, beside (numbers that decide nothing),
    differs (what differs here), power, scale ("as stated", "at a smaller scale", "not tested")."""
    raise NotImplementedError


def shown(found: pd.DataFrame):
    """The one table of the page: claim | the paper's number | ours, a model a column, and verdict | what differs |
    figure. It shows itself in a notebook."""
    raise NotImplementedError
