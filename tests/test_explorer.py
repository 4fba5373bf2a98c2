"""The sliders that take layers away: what they are told of every block, and of nothing else."""

import json

import numpy as np
import pytest

from book.extension import explorer
from deeper_layers.results.frames import COLUMNS
from deeper_layers.results.frames import _frame as frame

pytestmark = pytest.mark.quick

LN_V = 10.0
LOSS = {"metric": "loss", "chance": LN_V, "rule": "blocks of 2"}


def explored(*rows: tuple) -> dict:
    """What is told of a model of 8 layers, of a cut, a task, its outcome, and what is not as it mostly is."""
    made = []
    for cut, task, outcome, more in rows:
        start, size = map(int, cut.split(","))
        usual = {"model": "tiny", "layers": 8, "dtype": "float32", "rule": "simple", "metric": "acc", "chance": 0.0}
        usual |= {"start": start if size else None, "size": size, "share": size / 8, "repeat": 0, "path": "a"}
        usual |= {"cut": cut, "task": task, "outcome": np.array(outcome, dtype=float)}
        made.append(usual | {"items": len(outcome), "value": np.mean(outcome)} | more)
    (found,) = explorer.explored(frame(made, COLUMNS))
    return found


@pytest.fixture(scope="module")
def model():
    """Two rules, every block of 2, a loss, a second measurement with more items, and what is no plain block."""
    similar, blocks = {"rule": "similarity"}, {"rule": "blocks of 2", "limit": 80}
    return explored(
        ("0,0", "capitals", [1] * 40, {}),
        ("4,3", "capitals", [1, 0] * 20, {}),
        ("0,0", "capitals", [1] * 40, similar),
        ("2,3", "capitals", [1, 1, 1, 0] * 10, similar),
        ("0,0", "capitals", [1] * 80, blocks),
        ("6,2", "capitals", [1, 0, 0, 0] * 20, blocks),
        ("0,0", "c4", [2.0, 4.0], LOSS),
        ("6,2", "c4", [6.5, 6.5], LOSS),
        ("0,0", "boolq", [0] * 40, similar),
        ("2,3", "boolq", [0] * 40, similar),
        ("0,0", "capitals", [1] * 40, {"rule": "greedy"}),
        ("5,1", "capitals", [1] * 40, {}),
        ("2,3", "capitals", [0] * 40, {"rule": "laco", "changed": "merged"}),
        ("6,2", "capitals", [0] * 40, {"healing": "{}"}),
    )


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
    assert model["rules"] == {"whose ends are most alike": ["2,3"], "by the simple heuristic": ["4,3", "5,1"]}
    number, *kept = model["cuts"]["2,3"]["boolq"]
    assert kept == [None, None, None, 0.0] and model["asked"][number]["floor"], "the whole model guesses"
    json.dumps(model, allow_nan=False)


def test_a_share_is_rounded_once():
    found = explored(("0,0", "capitals", [1] * 127, {}), ("4,3", "capitals", [1] * 40 + [0] * 87, {}))
    assert f"{100 * found['cuts']['4,3']['capitals'][1]:.0f}" == "31"  # 40 of 127 are 31.496%
