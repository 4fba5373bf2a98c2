"""What is measured again lies within the published interval, or is said not to."""

import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import ReproductionParameters
from deeper_layers.report.statistics import reproduction
from deeper_layers.results.packing import pack
from deeper_layers.results.units import Unit

CUTS = [Cut(0, 0), Cut(1, 2)]


def unit_of(right: list[list[int]]) -> Unit:
    """A sweep of one task: for each cut which items came out right, and that as the choice."""
    rows = [
        {"task": "capitals", "metric": "acc", "start": cut.start, "size": cut.size, "value": sum(r) / len(r),
         "items": len(r)}
        for cut, r in zip(CUTS, right, strict=True)
    ]  # fmt: skip
    outcomes = {
        f"{cut.start},{cut.size}": {"capitals": dict.fromkeys(("acc", "chosen"), pack(np.array(r)))}
        for cut, r in zip(CUTS, right, strict=True)
    }
    return Unit("sweep", "capitals", {}, {}, pd.DataFrame(rows), {"num_layers": 4, "outcomes": outcomes})


def distances(value: float, error: float) -> Unit:
    rows = [{"start": 1, "size": 2, "distance": value, "stderr": error, "samples": 9}]
    return Unit("similarity", "wikipedia", {}, {}, pd.DataFrame(rows))


def test_accuracies_are_held_against_the_published_interval():
    published = unit_of([[1] * 40, [1, 0] * 20])
    table = reproduction.accuracies_again(published, unit_of([[1] * 40, [1] * 36 + [0] * 4]), CUTS)
    assert list(table.columns) == reproduction.COLUMNS and list(table["what"]) == ["Capitals"] * 2
    assert list(table["published"]) == [1, 0.5] and list(table["again"]) == [1, 0.9]
    assert list(table["within"]) == [True, False]
    assert 0.34 < table["low"][1] < 0.36 and 0.64 < table["high"][1] < 0.66  # Wilson, 20 of 40


def test_answers_are_counted_item_by_item():
    one, other = unit_of([[1, 1, 0, 0], [1, 0, 0, 0]]), unit_of([[1, 1, 0, 0], [0, 1, 0, 0]])
    assert reproduction.same_answers(one, other, CUTS) == (6, 8)
    assert reproduction.same_answers(one, one, CUTS) == (8, 8)


@pytest.mark.parametrize(("again", "within"), [(0.31, True), (0.33, False)])
def test_a_distance_has_the_errors_of_both(again, within):
    table = reproduction.distances_again(distances(0.3, 0.006), distances(again, 0.008), CUTS[1:])
    (row,) = table.to_dict("records")
    assert row["within"] is within and row["high"] == pytest.approx(0.3 + 1.96 * 0.01, abs=1e-4)


def test_what_was_not_published_is_missing():
    tables = [
        reproduction.accuracies_again(None, unit_of([[1, 0], [1, 1]]), CUTS),
        reproduction.distances_again(None, distances(0.3, 0.01), CUTS[1:]),
    ]
    for table in tables:
        assert table["published"].isna().all() and table["again"].notna().all() and not table["within"].any()


def test_parameters():
    parameters = ReproductionParameters(again="2", sequences_again=5)
    afresh = parameters.afresh("elsewhere")
    assert (afresh.size_list(9), afresh.samples, afresh.results) == ([0, 2], 5, "elsewhere")
    with pytest.raises(InputError, match="sequences_again is 1"):
        parameters.but(sequences_again=1)
    with pytest.raises(InputError, match="'two' is no block size"):
        parameters.but(again="two")
