"""The prediction on the last layers is judged by its criterion: drawn answers of models that keep or lose a form."""

import numpy as np
import pytest

from deeper_layers_companion.report.estimates import AT_FLOOR, CONTRADICTED, INCONCLUSIVE, NOT_TESTED, SUPPORTED
from deeper_layers_companion.studies.last_layers import (
    FORMS,
    PLACES,
    SIZES,
    UNASKED,
    accuracies,
    compare_dtypes,
    judge_as_registered,
    judge_now,
    kept_by_form,
    tell_prediction,
)
from tests.test_report import GEMMA, QWEN, SMOLLM, made, published

LAYERS, ITEMS = 20, 295
LATE, SIMILAR = ("written", "late"), ("letters", "similar")


def answers(kept: dict[tuple[str, str], float], whole: float = 0.9, sizes=SIZES):
    """Results of a model that keeps such a share above guessing, by form and place: of the others all."""
    draw, rows = np.random.default_rng(0), []
    for (rule, place), (form, tasks), size in (
        (rule, form, size) for rule in PLACES.items() for form in FORMS.items() for size in (0, *sizes)
    ):
        guessed = 0.25 if form in UNASKED else 0.0
        share = kept.get((form, place), 1.0) if size else 1.0
        chances = dict.fromkeys(tasks, guessed + share * (whole - guessed)) | {UNASKED.get(form, ""): guessed}
        cut = f"{LAYERS - size if place == 'late' else 8},{size}" if size else "0,0"
        for task, chance in chances.items():
            outcome = (draw.random(ITEMS) < chance).astype(float)
            rows.append({"task": task, "rule": rule, "cut": cut, "outcome": outcome, "commonest": guessed})
    return made(rows, LAYERS)


@pytest.mark.parametrize(
    ("kept", "verdicts", "x"),
    [
        ({LATE: 0.2, SIMILAR: 0.4}, [SUPPORTED, SUPPORTED], (1 - 0.2) - (0.4 - 1)),
        ({}, [CONTRADICTED, CONTRADICTED], 0),
        ({("written", "similar"): 0.2, ("letters", "late"): 0.2}, [CONTRADICTED, CONTRADICTED], -1.6),
    ],
)
def test_a_dissociation_is_found_where_it_is_and_x_is_a_difference_of_differences(kept, verdicts, x):
    found = judge_as_registered(answers(kept)).set_index("number")
    assert found["verdict"].tolist() == verdicts and found.loc["X", "value"] == pytest.approx(x, abs=0.1)


def test_a_model_that_guesses_or_was_not_asked_of_all_sizes_shows_nothing():
    found = judge_as_registered(answers({}, whole=0.27)).set_index("number")["verdict"]
    assert found["X"] == AT_FLOOR and found["Y"] != AT_FLOOR  # what is written is never right by guessing
    assert set(judge_as_registered(answers({}, sizes=range(1, 8)))["verdict"]) == {NOT_TESTED}


def test_accuracies_stand_by_form_prompt_and_place_beside_those_without_the_question():
    table = accuracies(answers({LATE: 0.2}))
    lines = {(form, prompt) for form in FORMS for prompt in ("as a question", "as a statement")}
    lines |= {(f"{form}, without the question", "as a question") for form in UNASKED}
    assert set(zip(table["asked"], table["prompt"])) == lines
    assert len(table) == len(lines) * len(PLACES) * (1 + len(SIZES))
    mean = table.query("size == 8").groupby(["asked", "place"])["value"].mean()
    wanted = {"letters": 0.9, "written": 0.18, "letters, without the question": 0.25}
    assert mean.xs("the last layers", level="place")[list(wanted)].to_dict() == pytest.approx(wanted, abs=0.05)
    assert mean["written", "the most similar layers"] == pytest.approx(0.9, abs=0.05)


def test_data_types_are_compared_question_by_question():
    right, cut = np.array([1.0, 1, 1, 0]), {"task": "facts_written", "cut": "4,4"}
    table = made([cut | {"outcome": right}, cut | {"outcome": right[::-1], "dtype": "float32", "rule": None}])
    (row,) = compare_dtypes(table).to_dict("records")
    assert (row["bfloat16"], row["float32"], row["value"], row["turned"]) == (0.75, 0.75, 0, 2)
    assert compare_dtypes(table[:1]).empty


def test_what_is_published_keeps_letters_and_loses_what_is_written_with_the_last_layers():
    kept = kept_by_form(published()[0])
    told = kept.round(2).groupby(["model", "asked"])["value"].apply(list)  # without the last, the most similar layers
    of_qwen = told[QWEN, "written"], told[QWEN, "letters"]
    assert [*of_qwen, told[SMOLLM, "written"], told[GEMMA, "written"]] == [
        [0.22, 0.89],
        [0.43, 0.40],
        [0.18, 0.19],
        [0.31, 0.10],
    ]
    assert set(kept.query("asked == 'letters' and model != @QWEN")["no_value_reason"]) == {AT_FLOOR}


def test_x_is_the_sum_of_two_halves_and_one_may_carry_it_alone():
    x = judge_as_registered(answers({("written", "late"): 0.3})).set_index("number").loc["X"]
    writing, letters = judge_now(answers({("written", "late"): 0.3})).to_dict("records")
    assert x["verdict"] == SUPPORTED and x["value"] == pytest.approx(writing["value"] + letters["value"])
    assert writing["verdict"] == SUPPORTED != letters["verdict"]


@pytest.mark.parametrize(("kept", "said"), [({LATE: 0.2}, "It is supported in m ("), ({}, "It is contradicted in m (")])
def test_the_prediction_is_told_in_plain_words_with_what_came_of_it(kept, said):
    table = answers(kept)
    told = str(tell_prediction(table))
    late, similar = kept_by_form(table).query("asked == 'written'")["value"]
    assert told.startswith("We predicted that writing suffers more from losing the last layers")
    assert f"{said}{late:.0%} kept against {similar:.0%})." in told
    assert str(tell_prediction(table[:0])) == "Not measured."


def test_of_what_is_published_writing_carries_x():
    of_qwen = published()[0].query("model == @QWEN")
    x = judge_as_registered(of_qwen).set_index("number").loc["X"]
    writing, letters = judge_now(of_qwen).to_dict("records")
    assert [x["value"], writing["value"], letters["value"]] == pytest.approx([0.693, 0.663, 0.029], abs=5e-4)
    assert [letters["low"], letters["high"]] == pytest.approx([-0.086, 0.155], abs=0.005)
    assert [x["verdict"], writing["verdict"], letters["verdict"]] == [SUPPORTED, SUPPORTED, INCONCLUSIVE]
