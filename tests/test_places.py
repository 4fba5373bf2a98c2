"""Letters or words: which blocks are of which place, what they cost, and how silent they leave a model; by hand."""

import numpy as np
import pytest

from deeper_layers_companion.report.estimates import AT_FLOOR
from deeper_layers_companion.studies import letters_or_words
from deeper_layers_companion.studies.letters_or_words import LATE, MIDDLE, classify_places
from tests.test_report import made

LAYERS, ITEMS, SIZE = 16, 400, 2


@pytest.mark.parametrize(
    ("layers", "size", "middle", "late"),
    [
        (9, 1, [3, 4, 5], [6, 7]),  # thirds are 0 to 2, 3 to 5 and 6 to 8, and 8 is the last layer
        (9, 2, [3, 4], [6]),
        (9, 3, [3], []),
        (10, 1, [4, 5, 6], [7, 8]),  # the middle third is from 3.33 to 6.67
        (11, 2, [4, 5, 6], [8]),
        (28, 4, [10, 11, 12, 13, 14, 15], [19, 20, 21, 22, 23]),
    ],
)
def test_a_block_is_middle_or_late_where_all_of_it_lies_in_that_third_without_the_last_layer(
    layers, size, middle, late
):
    found = classify_places(range(layers - size + 1), layers, size)
    assert np.flatnonzero(found == MIDDLE).tolist() == middle and np.flatnonzero(found == LATE).tolist() == late
    assert set(found) <= {MIDDLE, LATE, ""} and classify_places([-1], layers, size).tolist() == [""]


def scan(kept: dict[str, tuple[float, float]], size: int = SIZE, whole: float = 0.9, **more) -> list[dict]:
    """Every block of a model: of each task what blocks of the middle and of the last third keep above guessing."""
    draw, rows = np.random.default_rng(0), []
    for task, (middle, late) in kept.items():
        for start in [None, *range(LAYERS - size + 1)]:
            of_place = dict(zip((MIDDLE, LATE, ""), (middle, late, 0.0)))
            place = "" if start is None else str(classify_places([start], LAYERS, size)[0])
            share = 1.0 if start is None else of_place[place]
            right = round(ITEMS * (0.25 + share * (whole - 0.25)))
            outcome = draw.permutation(np.arange(ITEMS) < right).astype(float)
            cut = "0,0" if start is None else f"{start},{size}"
            rows.append({"task": task, "rule": f"blocks of {size}", "cut": cut, "outcome": outcome} | more)
    return rows


def test_costs_are_means_over_the_blocks_of_a_place():
    table = made(scan({"lettered_capitals": (0.3, 0.9), "capitals": (0.8, 0.4)}), LAYERS)
    found = letters_or_words.costs(table, SIZE).set_index(["form", "place"])
    assert found["blocks"].to_dict() == {
        (form, place): n for form in ("letters", "words") for place, n in ((MIDDLE, 4), (LATE, 3))
    }
    wanted = {("letters", MIDDLE): 0.3, ("letters", LATE): 0.9, ("words", MIDDLE): 0.8, ("words", LATE): 0.4}
    assert found["value"].to_dict() == pytest.approx(wanted, abs=0.01) and set(found["items"]) == {ITEMS}
    assert set(
        letters_or_words.costs(made(scan({"capitals": (0.8, 0.4)}, whole=0.27), LAYERS), SIZE)["no_value_reason"]
    ) == {AT_FLOOR}
    incomplete = table[table["cut"] != "3,2"]
    assert letters_or_words.costs(incomplete, SIZE).empty, "a mean over some blocks is none over all"


def test_a_silent_block_gives_one_choice_and_no_margin():
    """Two subjects of one task: of items with fewer choices, and of choices that can't be, nothing is taken."""
    inf, nan = np.inf, np.nan
    logprobs = [
        [-1, -3, -4, -2],
        [-2, -1, nan, nan],
        [-inf, -1, -2, -3],
        [-4, -1, -1.5, nan],
    ]  # margins 1, -1, none, 0.5
    scans = {"logprobs": np.array(logprobs), "target": np.array([0, 0, 0, 1]), "chosen": np.array([0, 1, 1, 1])}
    other = {
        "logprobs": np.array([[-1.0, -5.0]]),
        "target": np.array([1]),
        "chosen": np.array([0]),
        "outcome": np.zeros(1),
    }
    rows = [
        {"cut": cut, "rule": "blocks of 2", "outcome": np.ones(4), "subject": "law"} | scans for cut in ("0,0", "3,2")
    ]
    rows += [row | {"subject": "virology"} | other for row in rows]
    (row,) = letters_or_words.silent(made(rows, LAYERS), size=2).to_dict("records")
    assert (row["start"], row["size"], row["middle"], row["items"], row["layers"]) == (3, 2, 3.5, 5, LAYERS)
    assert row["commonest"] == 3 / 5 and row["margin"] == pytest.approx((1 - 1 + 0.5 - 4) / 4)
    unknown = [row | {"target": None} for row in rows] + [row | {"rule": "simple"} for row in rows]
    assert letters_or_words.silent(made(unknown, LAYERS), size=2).empty
    cut_off = [rows[1] | {"chosen": np.array([-1, -1, 2, -1])}]
    assert letters_or_words.silent(made(cut_off, LAYERS), size=2)["commonest"].tolist() == [1 / 4]
