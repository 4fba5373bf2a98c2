"""The most layers that leave a share of every task: drawn answers, and what is published."""

import json

import numpy as np
import pandas as pd

from deeper_layers_companion.report.keeping import find_last_kept, find_most_dropped
from deeper_layers_companion.results.frames import _to_frame
from tests.test_command import typed

ITEMS = 400


def draw_rows(task: str, shares: list[float], chance: float = 0.0) -> list[dict]:
    """A row for each size: the first so many of all items are right."""
    rows = []
    for size, share in enumerate(shares):
        outcome = (np.arange(ITEMS) < share * ITEMS).astype(float)
        row = {"model": "M", "layers": 9, "dtype": "float32", "task": task, "metric": "acc", "rule": "simple"}
        row |= {"cut": f"{8 - size},{size}" if size else "0,0", "start": 8 - size, "size": size, "share": size / 9}
        rows.append(row | {"items": ITEMS, "value": outcome.mean(), "outcome": outcome, "chance": chance, "repeat": 0})
    return rows


def test_every_size_up_to_the_answer_keeps_the_share():
    kept = pd.DataFrame({"a": [1, 0.97, 0.5, 0.99], "b": [1, 0.96, 0.96, 0.96]}, index=[0, 2, 4, 6])
    assert [find_last_kept(kept, share) for share in (0.95, 0.965, 0.4, 1.0)] == [2, 0, 6, 0]


def test_the_task_that_falls_first_decides_and_what_is_at_floor_is_named():
    rows = draw_rows("one", [0.9, 0.895, 0.88, 0.3]) + draw_rows("two", [0.8, 0.8, 0.4, 0.4])
    rows += draw_rows("guessed", [0.26] * 4, chance=0.25)
    scores = _to_frame([row | {"measured": "2026-12-02", "path": "M/x.json"} for row in rows], "scores")
    (found,) = find_most_dropped(scores, 0.95).to_dict("records")
    assert (found["surely"], found["probably"], found["largest"]) == (1, 1, 3)
    assert found["first_lost"] == ["two"] and found["unjudged"] == ["guessed"]
    assert find_most_dropped(scores[scores["task"] == "guessed"], 0.95).empty


def test_the_command_says_what_to_type():
    words = ["sweep", "Qwen2.5-Coder-1.5B-Instruct", "--no-measure", "--tasks", "capitals", "--keep", "0.8"]
    content = json.loads(typed(*words, "--json").stdout)
    by_rule = {row["rule"]: row for row in content["keep"]}
    row = by_rule["similarity"]
    assert 0 < row["surely"] <= row["probably"] < row["largest"]
    command = f"deeper-layers prune Qwen2.5-Coder-1.5B-Instruct OUT --drop {row['surely']}"
    assert f"\n  {command}\n" in typed(*words).stdout
