"""Two smaller criteria are judged by their registered texts: on drawn losses and answers, and as published."""

import json

import numpy as np
import pytest

from deeper_layers_companion.studies.rates_and_stopping import judge_healing_rates, judge_stopping
from tests.test_report import QWEN, made, published

RUN = {"rank": 8, "tokens": 61440, "seed": 0, "auxiliary": 0.0, "adapters": "all", "text": "c4", "quantization": None}


def healed(gains: dict[float, float], rise: float = -0.1) -> list[dict]:
    """Losses on C4, [64]: cuts cost 1 nat, and healing at a rate takes off `gains`; the whole model's rises."""
    noise = np.random.default_rng(0).normal(3, 0.2, 64)
    levels = {"0,0": 0.0, "5,4": 1.0, "1,8": 1.0}
    usual = {"task": "c4", "metric": "loss", "chance": 9.0}
    rows = [usual | {"cut": cut, "outcome": noise + level} for cut, level in levels.items()]
    for rate, gain in gains.items():
        run = json.dumps(RUN | {"learning_rate": rate})
        for cut, level in levels.items():
            loss = noise + (rise if cut == "0,0" else level - gain + rise)
            rows.append(usual | {"cut": cut, "outcome": loss, "healing": run})
    return rows


@pytest.mark.parametrize(
    ("gains", "rise", "verdicts", "asked"),
    [
        ({0.0003: 0.2, 0.001: 0.6, 0.005: 0.4}, -0.1, ["heals", "heals", "to blame"], 0.001),
        ({0.0003: 0.2, 0.001: 0.1, 0.005: 0.4}, 0.02, ["does not heal", "does not heal", "not to blame"], 0.0003),
        ({0.0003: -0.2, 0.001: 0.1, 0.005: 0.4}, 0.0, ["does not heal", "heals", "not to blame"], 0.001),
    ],
)
def test_a_rate_heals_at_both_cuts_and_leaves_the_whole_model_or_does_not(gains, rise, verdicts, asked):
    judged = judge_healing_rates(made(healed(gains, rise), layers=10))
    assert judged.groupby("learning_rate")["verdict"].unique().map(list).tolist() == [[one] for one in verdicts]
    assert judged.loc[judged["asked"], "learning_rate"].unique().tolist() == [asked]
    assert judge_healing_rates(made(healed({0.001: 0.5, 0.005: 0.4}))).empty, "a rate is missing"


def test_stopping_explains_a_loss_only_where_cut_off_answers_could_make_up_for_it():
    def answers(cut: str, right: int, ended: int) -> dict:
        outcome = (np.arange(10) < right).astype(float)
        row = {"task": "gsm8k", "cut": cut, "outcome": outcome, "written": np.full(10, 9.0)}
        return row | {"ended": (np.arange(10) < ended).astype(float)}

    rows = [answers("0,0", 6, 10), answers("8,1", 3, 7), answers("7,2", 3, 8), answers("6,3", 7, 10)]
    judged = judge_stopping(made(rows)).set_index("size")
    assert judged["verdict"].to_dict() == {1: "stopping can explain it", 2: "reasoning is lost"}
    assert judged["at_most"].to_dict() == {1: 0.6, 2: 0.5}


def test_what_is_published_of_rates_and_of_stopping():
    table = published()[0]
    of_qwen = table[table["model"] == QWEN]
    rates = judge_healing_rates(of_qwen).groupby("learning_rate")
    assert rates["verdict"].first().tolist() == ["does not heal", "does not heal", "not to blame"]
    assert rates["asked"].first().tolist() == [False, True, False]
    stopping = judge_stopping(of_qwen).set_index("size")["verdict"]
    assert stopping.loc[1] == "stopping can explain it" and set(stopping.loc[2:]) == {"reasoning is lost"}
