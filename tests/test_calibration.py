"""Calibrated choices: on drawn data whose biases and knowledge are known, and on what is published."""

import numpy as np
import pytest

from deeper_layers_companion.report.calibration import (
    calibrate,
    choose_options,
    estimate_option_bias,
    pair_logprobs,
    score_options,
)
from deeper_layers_companion.report.estimates import estimate_mean
from tests.test_report import made

pytestmark = pytest.mark.quick
ITEMS, OPTIONS, SURE = 2000, 4, 3.0
BIASES = {"none": [0, 0, 0, 0], "leaning": [0, 2.5, -1, 0.5], "one letter always": [0, 0, 40, 0]}


def drawn(knowledge: float, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [I, K] and targets [I]: the right option leads by `knowledge` nats, in noise, plus a bias."""
    draw = np.random.default_rng(0)
    target = draw.integers(0, OPTIONS, ITEMS)
    scores = draw.normal(0, 1, (ITEMS, OPTIONS)) + biases
    scores[np.arange(ITEMS), target] += knowledge
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)), target


def calibrated_letters(logprobs: np.ndarray) -> np.ndarray:
    return calibrate(logprobs, estimate_option_bias(logprobs))


@pytest.mark.parametrize("bias", BIASES)
def test_calibrated_letters_recover_knowledge_that_a_bias_hides(bias):
    logprobs, target = drawn(SURE, np.array(BIASES[bias]))
    unbiased = score_options(*drawn(SURE, np.zeros(OPTIONS))).mean()
    chosen, calibrated = (score_options(of, target).mean() for of in (logprobs, calibrated_letters(logprobs)))
    assert unbiased > 0.9 and calibrated == pytest.approx(unbiased, abs=0.005)
    assert bias == "none" or chosen < calibrated - 0.1
    if bias == "one letter always":
        assert chosen == (target == 2).mean()


@pytest.mark.parametrize("bias", BIASES)
def test_calibrating_invents_no_knowledge_where_it_is_gone(bias):
    logprobs, target = drawn(0.0, np.array(BIASES[bias]))
    found = estimate_mean(score_options(calibrated_letters(logprobs), target))
    assert found.low < 1 / OPTIONS < found.high


@pytest.mark.parametrize("knowledge", [SURE, 0.0])
def test_words_are_calibrated_by_what_they_get_unasked(knowledge):
    common = np.random.default_rng(1).normal(0, 8, (ITEMS, OPTIONS))  # each choice of each item has a bias of its own
    logprobs, target = drawn(knowledge, common)
    plain = score_options(*drawn(knowledge, np.zeros(OPTIONS))).mean()
    asked, by_prompt, by_mean = (
        score_options(of, target).mean() for of in (logprobs, calibrate(logprobs, common), calibrated_letters(logprobs))
    )
    assert by_prompt == pytest.approx(plain)
    if knowledge:
        assert max(asked, by_mean) < by_prompt - 0.3, "a bias of single items is not seen in a mean"


def test_an_option_that_an_item_lacks_has_no_bias_and_is_never_chosen():
    logprobs = np.array([[-1.0, -2, np.nan], [-3.0, -2, -9]])
    assert estimate_option_bias(logprobs).tolist() == [[-2, -2, -9]]
    assert choose_options(np.stack([logprobs, logprobs[::-1]])).tolist() == [[0, 1], [1, 0]]


def test_log_probabilities_stand_in_the_order_of_outcomes_by_cut_and_subject():
    rows = [
        {"cut": cut, "subject": subject, "target": np.array(target), "logprobs": np.array(logprobs)}
        for cut, subject, target, logprobs in [
            ("4,2", "law", [1], [[-4.0, -1]]),
            ("0,0", "law", [1], [[-2.0, -1]]),
            ("4,2", "art", [0, 1], [[-1.0, -3], [-2, -5]]),
            ("0,0", "art", [0, 1], [[-1.0, -2], [-3, -1]]),
        ]
    ]
    outcomes = [score_options(row["logprobs"], row["target"]) for row in rows]
    logprobs, target = pair_logprobs(made([row | {"outcome": own} for row, own in zip(rows, outcomes)]))
    assert target.tolist() == [0, 1, 1] and logprobs[1].tolist() == [[-1, -3], [-2, -5], [-4, -1]]
    assert score_options(logprobs, target).tolist() == [[1, 1, 1], [1, 0, 1]]
