"""A checkpoint, a GGUF file and a result, killed and failing at drawn calls, and a streamed sweep.

`python -m tests.fuzz.kills` draws more.
"""

import json

import pytest

from tests.fuzz import killed_streams, kills

pytestmark = pytest.mark.thorough


def test_killed_and_failing_again_and_again_it_ends_as_undisturbed(capsys):
    kills.main(60, 40, seed=7)
    counts = json.loads(capsys.readouterr().out)
    assert counts.pop("killed") == 60 and counts.pop("failed") == 40
    assert counts.keys() == {f"{name}: same" for name in ("slice", "GGUF", "unit")}


def test_a_streamed_sweep_that_is_killed_ends_with_the_same_rows(capsys):
    killed_streams.main(3)
    counts = json.loads(capsys.readouterr().out)
    assert counts["killed"] == 3 and counts["same"] >= 1 and "WRONG" not in counts
