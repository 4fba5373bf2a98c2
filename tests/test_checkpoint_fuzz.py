"""Damaged checkpoints by the hundred: each is refused in one line, or sliced as transformers reads it."""

import jaxtyping
import pytest

from tests.fuzz.checkpoint_cases import outcomes
from tests.fuzz.trying import counted

FOUND = (26, 92, 357, 3272)  # these were wrong once
SOME = 400


@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints(tmp_path, monkeypatch):
    """`python -m tests.fuzz.checkpoint_cases` tries more."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    counts, bad = counted(outcomes([*FOUND, *range(1000, 1000 + SOME)], tmp_path))
    assert bad == []
    assert counts["clear"] > SOME / 2 and counts["harmless"] > SOME / 10
