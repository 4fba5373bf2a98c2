"""A checkpoint, a GGUF file and a unit, killed and failing at drawn calls: python -m tests.fuzz.kills draws more."""

import json

from tests.fuzz import kills


def test_killed_and_failing_again_and_again_it_ends_as_undisturbed(capsys):
    kills.main(60, 40, seed=7)
    counts = json.loads(capsys.readouterr().out)
    assert counts.pop("killed") == 60 and counts.pop("failed") == 40
    assert counts.keys() == {f"{name}: same" for name in ("slice", "GGUF", "unit")}
