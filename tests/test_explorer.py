"""The sliders that take layers away: what they are told of every block, and of nothing else."""

import json

import numpy as np
import pytest

from book.extension import explorer
from deeper_layers.results.frames import COLUMNS
from deeper_layers.results.frames import _frame as frame

pytestmark = pytest.mark.quick

LN_V = 10.0


def row(cut: str, task: str, outcome, rule="simple", **others) -> dict:
    start, size = map(int, cut.split(","))
    outcome = np.array(outcome, dtype=float)
    found = {"model": "tiny", "layers": 8, "dtype": "float32", "cut": cut, "rule": rule, "task": task, "metric": "acc"}
    found |= {"start": start if size else None, "size": size, "share": size / 8, "chance": 0.0, "repeat": 0}
    return found | {"items": len(outcome), "outcome": outcome, "value": outcome.mean(), "path": "a"} | others


@pytest.fixture
def model():
    """Two rules, every block of 2, a loss, a second measurement with more items, and what is no plain block."""
    loss = {"metric": "loss", "chance": LN_V, "rule": "blocks of 2"}
    (found,) = explorer.explored(
        frame(
            [
                row("0,0", "capitals", [1] * 40),
                row("4,3", "capitals", [1, 0] * 20),
                row("0,0", "capitals", [1] * 40, rule="similarity"),
                row("2,3", "capitals", [1, 1, 1, 0] * 10, rule="similarity"),
                row("0,0", "capitals", [1] * 80, rule="blocks of 2", limit=80),
                row("6,2", "capitals", [1, 0, 0, 0] * 20, rule="blocks of 2", limit=80),
                row("0,0", "c4", [2.0, 4.0], **loss),
                row("6,2", "c4", [6.5, 6.5], **loss),
                row("0,0", "boolq", [0] * 40, rule="similarity"),
                row("2,3", "boolq", [0] * 40, rule="similarity"),
                row("0,0", "capitals", [1] * 40, rule="greedy"),
                row("5,1", "capitals", [1] * 40),
                row("2,3", "capitals", [0] * 40, rule="laco", changed="merged"),
                row("6,2", "capitals", [0] * 40, healing="{}"),
            ],
            COLUMNS,
        )
    )
    return found


def test_every_block_says_what_each_task_keeps(model):
    told = {cut: {task: found[1:] for task, found in tasks.items()} for cut, tasks in model["cuts"].items()}
    assert set(told) == {"4,3", "2,3", "6,2", "5,1"}
    assert [told[cut]["capitals"][0] for cut in ("4,3", "2,3", "6,2")] == [0.5, 0.75, 0.25]
    kept, low, high, score = told["6,2"]["capitals"]
    assert low < kept < high and score == 0.25
    assert told["6,2"]["c4"][0] == pytest.approx((LN_V - 6.5) / (LN_V - 3), abs=1e-3) and told["6,2"]["c4"][3] == 6.5
    asked = model["asked"][model["cuts"]["6,2"]["capitals"][0]]
    assert (asked["items"], asked["whole"], asked["guessing"], asked["floor"]) == (80, 1.0, 0.0, False)
    assert model["tasks"] == ["capitals", "boolq", "c4"] and model["layers"] == 8
    json.dumps(model, allow_nan=False)


def test_where_the_whole_model_guesses_nothing_is_kept_or_lost(model):
    number, *kept = model["cuts"]["2,3"]["boolq"]
    assert kept == [None, None, None, 0.0] and model["asked"][number]["floor"]


def test_the_papers_rules_name_their_blocks(model):
    assert model["rules"] == {"whose ends are most alike": ["2,3"], "by the simple heuristic": ["4,3", "5,1"]}


def test_a_share_is_rounded_once():
    rows = [row("0,0", "capitals", [1] * 127), row("4,3", "capitals", [1] * 40 + [0] * 87)]
    (found,) = explorer.explored(frame(rows, COLUMNS))
    assert f"{100 * found['cuts']['4,3']['capitals'][1]:.0f}" == "31"  # 40 of 127 are 31.496%
