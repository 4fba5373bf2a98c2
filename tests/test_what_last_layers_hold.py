"""The third study is judged by its registered criterion: drawn answers of models that hold, translate, or guess."""

import numpy as np
import pytest

from deeper_layers.data import embedded
from deeper_layers_companion.report.estimates import (
    AT_FLOOR,
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    SUPPORTED,
    Estimate,
)
from deeper_layers_companion.studies import what_last_layers_hold
from deeper_layers_companion.studies.what_last_layers_hold import LETTER, MAPS, PLACES, UNASKED, WORDS, WRITTEN, judge
from tests.test_report import made

LAYERS, SEQUENCES = 20, 128
ITEMS = embedded.answers()
RIGHT = np.array([item["answer"] for item in ITEMS])
IS_SPANISH = np.array([item["relation"] == "english_to_spanish" for item in ITEMS])
SIZES = range(9)


def choices(accuracy: float, bias: float, draw: np.random.Generator) -> dict:
    """Four log-probabilities of each item: the right one leads in this share of items, and the first has a bias."""
    logprobs = draw.normal(0, 0.1, (len(RIGHT), 4))
    knows = draw.random(len(RIGHT)) < accuracy
    logprobs[np.arange(len(RIGHT))[knows], RIGHT[knows]] += 2
    logprobs[:, 0] += bias
    chosen = logprobs.argmax(axis=1)
    outcome = (chosen == RIGHT).astype(float)
    return {"outcome": outcome, "chosen": chosen, "logprobs": logprobs, "target": RIGHT, "commonest": 0.25}


def asked(written: dict, *, letter_bias: float = 0.0, letters: float = 0.95, losses: dict | None = None, sizes=SIZES):
    """Results of a model: `written` gives by rule the share that is written right without n > 0 layers, of English and
    of Spanish words; `losses` the loss on C4 by rule."""
    draw, rows = np.random.default_rng(0), []
    for rule in [*PLACES, *MAPS]:
        for size in sizes:
            start = LAYERS - size - (rule == "simple")
            cut = {"rule": rule, "cut": f"{start},{size}" if size else "0,0"}
            english, spanish = written.get(rule, (0.9, 0.9)) if size else (0.9, 0.9)
            right = draw.random(len(ITEMS)) < np.where(IS_SPANISH, spanish, english)
            for ending in ("", "_stated"):
                bias = letter_bias if size else 0.0
                rows.append(cut | {"task": LETTER + ending} | choices(letters, bias, draw))
                rows.append(cut | {"task": WORDS + ending} | choices(0.9, 0.0, draw))
                rows.append(cut | {"task": WRITTEN + ending, "outcome": right.astype(float)})
            rows.append(cut | {"task": UNASKED} | choices(0.0, 0.0, draw))
            loss = (losses or {}).get(rule, 3.0) if size else 3.0
            sequences = loss + draw.normal(0, 0.01, SEQUENCES)
            settings = {"metric": "loss", "limit": SEQUENCES, "length": 256}
            rows.append(cut | {"task": "c4", "outcome": sequences} | settings)
    return made(rows, LAYERS)


def verdicts(scores) -> dict[str, str]:
    table = judge(scores)
    names = table["number"].str.split(".").str[0] + " " + table["prompt"].where(table["number"].str[0] == "1", "")
    names += table["number"].str.extract("(affine|low rank)")[0].fillna("")
    return dict(zip(names.str.strip(), table["verdict"]))


def test_what_was_predicted_is_supported_where_it_is_so():
    """Letters are biased and known, writing goes with the last layers, Spanish first, and a map brings it back."""
    written = {"reverse": (0.30, 0.0), "simple": (0.05, 0.0)}
    written |= {"reverse-affine": (0.85, 0.8), "reverse-low-rank": (0.2, 0.0)}
    losses = {"reverse": 6.0, "simple": 5.0, "reverse-affine": 3.5, "reverse-low-rank": 4.0}
    found = verdicts(asked(written, letter_bias=5.0, losses=losses))
    assert found == {
        "1 question": SUPPORTED,
        "1 stated": SUPPORTED,
        "2": SUPPORTED,
        "3": SUPPORTED,
        "4": SUPPORTED,
        "5 affine": SUPPORTED,
        "5 low rank": CONTRADICTED,
    }


def test_nothing_is_invented_where_nothing_is_lost_or_a_map_is_too_weak():
    losses = {"reverse": 6.0, "simple": 6.0, "reverse-affine": 5.5, "reverse-low-rank": 5.5}
    written = {"reverse": (0.2, 0.2), "simple": (0.2, 0.2)}
    found = verdicts(asked(written, letters=0.0, losses=losses))
    assert found["1 question"] == AT_FLOOR  # the whole model guesses at letters
    assert [found["2"], found["3"], found["4"]] == [CONTRADICTED] * 3
    assert [found["5 affine"], found["5 low rank"]] == [NOT_TESTED] * 2


@pytest.mark.parametrize(("low", "verdict"), [(0.25, INCONCLUSIVE), (0.26, SUPPORTED)])
def test_an_interval_that_ends_on_the_registered_limit_is_not_above_it(low, verdict, monkeypatch):
    monkeypatch.setattr(what_last_layers_hold, "return_of_writing", lambda *_: Estimate(0.6, low, 0.9))
    assert verdicts(asked({}, losses={"reverse": 6.0, "reverse-affine": 3.5}))["5 affine"] == verdict


def test_calibration_recovers_biased_letters_and_invents_none():
    table = judge(asked({}, letter_bias=5.0)).set_index("number")
    assert table.loc["1. calibrated letters kept", "value"].iloc[0] == pytest.approx(1.0, abs=0.05)
    ruined = asked({}, letter_bias=5.0)
    is_letter = ruined["task"].str.startswith(LETTER) & (ruined["size"] > 0)
    noise = np.random.default_rng(1)
    for index in ruined.index[is_letter]:
        ruined.at[index, "logprobs"] = noise.normal(0, 0.1, (len(RIGHT), 4)) + [5.0, 0, 0, 0]
    kept = judge(ruined).set_index("number").loc["1. calibrated letters kept", "value"].iloc[0]
    assert kept == pytest.approx(0.0, abs=0.12)


def test_sizes_that_were_not_measured_test_nothing():
    assert set(verdicts(asked({}, sizes=[0, 1])).values()) == {NOT_TESTED}
