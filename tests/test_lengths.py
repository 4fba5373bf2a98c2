"""How long answers are: what is right of those that ended, and what could be of those that were cut off."""

import numpy as np
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.report import figures
from deeper_layers.report.lengths import lengths, lengths_in_words
from deeper_layers.results.frames import scores_of
from tests.test_frames import made_up


def test_lengths_tell_stopping_from_being_wrong():
    right = {"0,0": np.array([1, 1, 1, 0]), "6,2": np.array([1, 0, 0, 0])}
    scores = scores_of([made_up("gsm8k", right, 8, "similarity")])
    scores["written"] = [np.array([10, 20, 30, 40]), np.array([30, 50, 90, 90])]
    scores["ended"] = [np.array([1, 1, 1, 1]), np.array([1, 1, 0, 0])]
    found = lengths(scores).set_index("cut")
    assert found.loc["0,0", ["value", "at_most", "ended", "of_ended", "tokens"]].tolist() == [0.75, 0.75, 1, 0.75, 25]
    assert found.loc["6,2", ["value", "at_most", "ended", "of_ended"]].tolist() == [0.25, 0.75, 0.5, 0.5]
    assert found.loc["6,2", "times"] == pytest.approx(70 / 25)
    (said,) = lengths_in_words(scores, Cut(6, 2))
    assert "70 tokens (median), 2.8 times" in said and "50% are cut off" in said
    scores["ended"] = [np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])]
    assert lengths_in_words(scores, Cut(6, 2)) == []  # of a task that cuts the whole model off too
    nothing = lengths(scores.assign(written=None))
    assert nothing.empty and "Not measured." in figures.table(nothing)._repr_html_()
