"""Two smaller criteria, each judged by its registered text alone: healing at other learning rates, and whether answers
of GSM8K are lost to reasoning or to not stopping. The texts: registered/healing_rates.md, reasoning_or_stopping.md.
"""

from collections.abc import Iterator

import pandas as pd

from deeper_layers_companion.report.pairing import returns
from deeper_layers_companion.report.statistics import WHOLE, lengths, recovery_table

LOWER_RATES = 0.0003, 0.001
HIGH_RATE = 0.005  # of all other healings of this model
SIZES = 4, 8
RISE = 0.01  # nats a token by which a whole model's loss must not rise
HEALS = "heals"
HEALS_NOT = "does not heal"
TO_BLAME = "to blame"
NOT_TO_BLAME = "not to blame"
EXPLAINS = "stopping can explain it"
EXPLAINS_NOT = "reasoning is lost"


@returns("model learning_rate size items value low high rise asked verdict")
def judge_healing_rates(scores: pd.DataFrame) -> Iterator[dict]:
    """The recovery of the loss on C4 by learning rate and size, for models healed at all rates of the criterion.

    rise is by how much the loss of the whole model rises when it is healed in the same way, in nats a token; asked says
    whether the rate is asked tasks; verdict is that of the rate: a lower one heals or does not, the high one is to
    blame or is not.
    """
    rows = recovery_table(scores.query("task == 'c4'"))
    rows = rows.query(
        "rule == 'similarity' and rank == 8 and seed == 0 and adapters == 'all' and not distillation"
    )
    rows = rows[rows["size"].isin(SIZES) & rows["whole_healed"].notna() & (rows["bits"].isna())]
    for _, of_model in rows.groupby("model", sort=False):
        by_rate = {
            rate: of_rate.set_index("size") for rate, of_rate in of_model.groupby("learning_rate")
        }
        rates = (*LOWER_RATES, HIGH_RATE)
        if not all(rate in by_rate and len(by_rate[rate]) == len(SIZES) for rate in rates):
            continue
        asked = min(LOWER_RATES, key=lambda rate: by_rate[rate]["healed"].mean())
        for rate in rates:
            judged = by_rate[rate].assign(
                rise=by_rate[rate]["whole_healed"] - by_rate[rate]["whole"]
            )
            verdict = _judge_rate(judged) if rate in LOWER_RATES else _judge_high_rate(by_rate)
            for size, row in judged.iterrows():
                yield row.to_dict() | {"size": size, "asked": rate == asked, "verdict": verdict}


def _judge_rate(rows: pd.DataFrame) -> str:
    return HEALS if (rows["low"] > 0).all() and (rows["rise"] < RISE).all() else HEALS_NOT


def _judge_high_rate(by_rate: dict[float, pd.DataFrame]) -> str:
    high = by_rate[HIGH_RATE]["value"]
    is_better = [(by_rate[rate]["value"] > high).all() for rate in LOWER_RATES]
    return TO_BLAME if any(is_better) else NOT_TO_BLAME


@returns("model rule size items value at_most whole verdict")
def judge_stopping(scores: pd.DataFrame) -> Iterator[dict]:
    """GSM8K's answers by cut: value (share right), at_most (the same if all cut-off answers were right), whole (the
    whole model's share right), verdict: stopping can explain a loss only where at_most reaches whole. The registered
    cuts are those of rules; one that was named by hand is not judged."""
    for _, rows in lengths(scores.query("task == 'gsm8k' and rule.notna()")).groupby(
        "model", sort=False
    ):
        whole = rows.loc[rows["cut"] == WHOLE, "value"]
        if whole.empty:
            continue
        level = whole.iloc[0]
        for row in rows[(rows["cut"] != WHOLE) & (rows["value"] < level)].to_dict("records"):
            yield row | {
                "whole": level,
                "verdict": EXPLAINS if row["at_most"] >= level else EXPLAINS_NOT,
            }
