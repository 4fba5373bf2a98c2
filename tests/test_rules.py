"""Rules on distances made by hand: which block, of which sizes, and what is no array of distances."""

import jaxtyping
import numpy as np
import pandas as pd
import pytest

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.rules.choosing import RULES, cuts_of_rule, measured_cuts
from deeper_layers.rules.similarity import distance_matrix, distance_table, similarity_cut

pytestmark = pytest.mark.quick

NAN = np.nan
DISTANCES = np.array([
    [0.5, 0.2, 0.2, 0.1],  # that of the last layer is the smallest, and is none to drop
    [0.3, 0.4, 0.1, NAN],
    [0.6, 0.1, NAN, NAN],
    [0.1, NAN, NAN, NAN],
])  # fmt: skip


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As users run it: what is no array comes to the rule itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def test_the_most_similar_block_without_the_last_layer_and_the_first_of_equals():
    cuts = [Cut(0, 0), Cut(1, 1), Cut(0, 2), Cut(0, 3)]
    assert cuts_of_rule("similarity", [0, 1, 2, 3], 4, DISTANCES) == cuts
    assert [similarity_cut(DISTANCES.tolist(), size) for size in range(4)] == cuts
    assert refusal(similarity_cut, DISTANCES, 4).startswith("size is 4")


def test_the_simple_rule_needs_no_distances():
    assert cuts_of_rule("simple", [2, 0, 3], 4) == [Cut(1, 2), Cut(0, 0), Cut(0, 3)]


def test_what_is_no_rule_or_no_distances():
    assert RULES == ("similarity", "simple")
    assert refusal(cuts_of_rule, "best", [1], 4).startswith("rule is 'best', expected one of 'similarity', 'simple', '")
    message = "the rule 'similarity' needs distances, got None: measure them with angular_distances"
    assert refusal(cuts_of_rule, "similarity", [1], 4) == message
    for odd in (["a"], "distances", [[1.0], [1.0, 2.0]]):
        said = refusal(similarity_cut, odd, 1)
        assert said == f"distances is {odd!r}; expected an array of numbers; pass what angular_distances returns"
    shapes = "expected (L, L) for a model of L layers, sizes 1..L by starts 0..L-1; pass the whole array that"
    for odd in (DISTANCES[0], DISTANCES[:3], DISTANCES[None]):
        expected = f"distances has shape {odd.shape}; {shapes} angular_distances returns"
        assert refusal(similarity_cut, odd, 1) == expected


def test_a_distance_that_is_missing():
    distances = DISTANCES.copy()
    distances[1, 1] = NAN
    assert similarity_cut(distances, 1) == Cut(1, 1)
    assert refusal(similarity_cut, distances, 2) == (
        "distances holds nan for size 2 at start 1; expected a number for every start from 0 to 1; measure them again "
        "with angular_distances"
    )


def test_rows_and_back():
    table = distance_table(DISTANCES, DISTANCES / 10, 7)
    expected = [(start, size) for size in range(1, 5) for start in range(5 - size)]
    assert list(zip(table["start"], table["size"])) == expected
    row = pd.Series({"start": 2, "size": 2, "distance": 0.1, "stderr": 0.01, "samples": 7})
    pd.testing.assert_series_equal(table.iloc[6], row, check_names=False)
    np.testing.assert_array_equal(distance_matrix(table.sample(frac=1, random_state=0)), DISTANCES)


def test_cuts_of_one_measurement_by_rule():
    simple = [Cut(0, 0), Cut(2, 1), Cut(1, 2), Cut(0, 3)]
    cuts = [Cut(0, 2), Cut(0, 3), Cut(1, 1), Cut(2, 1), Cut(0, 0), Cut(1, 2), Cut(0, 0)]
    similar = [Cut(0, 0), Cut(1, 1), Cut(0, 2), Cut(0, 3)]
    assert measured_cuts(RULES, cuts, 4) == {"similarity": similar, "simple": simple}
    assert list(measured_cuts(["simple"], cuts, 4)) == ["simple"]
    assert measured_cuts(["similarity"], [], 4) == {"similarity": []}
    scattered = Cut.of([0, 2])
    assert measured_cuts(RULES, [*cuts, scattered], 4) == {"similarity": similar, "simple": simple}
