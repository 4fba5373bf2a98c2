"""The prediction on the last layers is judged by its criterion: drawn answers of models that keep or lose a form."""

import numpy as np
import pytest

from deeper_layers.report.estimates import AT_FLOOR, CONTRADICTED, NOT_TESTED, SUPPORTED
from deeper_layers.results.frames import scores_of
from deeper_layers.studies.last_layers import FORMS, PLACES, SIZES, UNASKED, accuracies, judge_prediction, kept_by_form
from tests.test_frames import made_up

LAYERS, ITEMS, GUESSED = 20, 295, 0.25
START = {"late": lambda size: LAYERS - size, "similar": lambda size: 8}


def answers(kept: dict[tuple[str, str], float], whole: float = 0.9, sizes=SIZES):
    """Results of a model that keeps such a share above guessing, by form and place: of the others all."""
    draw, found = np.random.default_rng(0), []
    for rule, place in PLACES.items():
        cuts = {"0,0": 1.0} | {f"{START[place](size)},{size}": None for size in sizes}
        for form, tasks in FORMS.items():
            guessed = GUESSED if form in UNASKED else 0.0
            for task in (*tasks, *([UNASKED[form]] if form in UNASKED else [])):
                share = {cut: 1.0 if one else kept.get((form, place), 1.0) for cut, one in cuts.items()}
                above = 0.0 if task in UNASKED.values() else whole - guessed
                found.append(
                    made_up(
                        task, {cut: draw.random(ITEMS) < guessed + above * share[cut] for cut in cuts}, LAYERS, rule
                    )
                )
    return scores_of(found)


@pytest.mark.parametrize(
    ("kept", "verdicts"),
    [
        ({("written", "late"): 0.2, ("letters", "similar"): 0.2}, (SUPPORTED, SUPPORTED)),
        ({("written", "late"): 0.9, ("letters", "late"): 0.9}, (CONTRADICTED, None)),
        ({("written", "similar"): 0.2, ("letters", "late"): 0.2}, (CONTRADICTED, CONTRADICTED)),
    ],
)
def test_a_dissociation_is_found_where_it_is(kept, verdicts):
    found = judge_prediction(answers(kept)).set_index("number")["verdict"]
    assert found["X"] == verdicts[0] and verdicts[1] in (None, found["Y"])


def test_x_is_the_difference_of_differences():
    found = judge_prediction(answers({("written", "late"): 0.2, ("letters", "similar"): 0.4})).set_index("number")
    assert found.loc["X", "value"] == pytest.approx((1 - 0.2) - (0.4 - 1), abs=0.1)
    assert found.loc["Y", "value"] == pytest.approx(1 - 0.2, abs=0.1)


def test_a_model_that_guesses_or_was_not_asked_of_all_sizes_shows_nothing():
    found = judge_prediction(answers({}, whole=0.27)).set_index("number")["verdict"]
    assert found["X"] == AT_FLOOR and found["Y"] != AT_FLOOR  # what is written is never right by guessing
    assert set(judge_prediction(answers({}, sizes=range(1, 8)))["verdict"]) == {NOT_TESTED}


def test_the_page_shows_every_form_with_its_floor():
    scores = answers({("written", "late"): 0.2})
    shown = accuracies(scores)
    assert set(shown["asked"]) == {*FORMS, *(f"{form}, without the question" for form in UNASKED)}
    assert shown.groupby(["asked", "prompt", "place"])["size"].apply(list).map(lambda sizes: sizes == [*range(9)]).all()
    table = kept_by_form(scores).set_index(["asked", "place"])
    assert table.loc[("written", "the last layers"), "value"] == pytest.approx(0.2, abs=0.05)
    assert (table["whole"] > 0.8).all() and table.loc["letters", "unasked"].max() < 0.35
