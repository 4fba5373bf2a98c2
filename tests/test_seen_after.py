"""What stored answers hold: drawn answers whose truth is known, and what is published."""

import numpy as np
import pandas as pd
import pytest

from deeper_layers_companion.report.pairing import drop_third_study
from deeper_layers_companion.studies.seen_after import (
    calibrate_choices,
    compare_last_layer,
    count_better,
    list_answer_kinds,
    score_facts,
)
from tests.test_report import QWEN, made, published

ITEMS = 400


def lettered(bias: float, knowledge: float) -> dict:
    """A row of choices by letter: the right one leads by `knowledge` nats in noise, the third one by a bias."""
    draw = np.random.default_rng(0)
    target = draw.integers(0, 4, ITEMS)
    logprobs = draw.normal(0, 1, (ITEMS, 4)) + np.array([0, 0, bias, 0])
    logprobs[np.arange(ITEMS), target] += knowledge
    outcome = (logprobs.argmax(axis=1) == target).astype(float)
    return {"task": "mmlu", "rule": "reverse", "logprobs": logprobs, "target": target, "outcome": outcome}


def test_a_biased_cut_keeps_what_it_knows_and_a_ruined_one_does_not_regain_it():
    rows = [{"cut": "0,0"} | lettered(0, 4), {"cut": "8,2"} | lettered(50, 4), {"cut": "7,3"} | lettered(50, 0)]
    found = calibrate_choices(made(rows)).set_index("size")
    assert found.loc[2, "chosen"] < 0.3 and found.loc[2, "value"] == pytest.approx(found.loc[0, "chosen"], abs=0.01)
    assert found.loc[3, "low"] < 0.25 < found.loc[3, "high"]


def test_words_are_calibrated_by_the_same_cut_unasked_and_not_at_all_without_it():
    asked = {"cut": "0,0"} | lettered(0, 4) | {"task": "facts_in_words"}
    bias = np.random.default_rng(1).normal(0, 9, (ITEMS, 4))
    unasked = asked | {"task": "facts_in_words_unasked", "logprobs": bias}
    biased = asked | {"logprobs": asked["logprobs"] + bias}
    assert calibrate_choices(made([biased, unasked]))["value"].tolist() == [asked["outcome"].mean()]
    assert calibrate_choices(made([biased, unasked | {"cut": "8,2"}])).empty


def test_the_last_layer_dropped_or_kept_is_compared_on_the_same_items():
    right = np.ones(ITEMS)
    half = np.resize([1.0, 0.0], ITEMS)
    rows = [{"cut": "7,3", "outcome": right}, {"cut": "6,3", "outcome": half[:100], "rule": "simple"}]
    rows += [{"cut": "8,2", "outcome": right}]  # without its like that keeps the last layer
    losses = [{"cut": cut, "outcome": 2 + half + more} for cut, more in (("7,3", 1), ("6,3", 0))]
    rows += [row | {"task": "c4", "metric": "loss"} for row in losses]
    rows += [{"cut": "7,3", "outcome": right, "task": "boolq"}]  # one of 400 items more, which is not sure
    rows += [{"cut": "6,3", "outcome": np.arange(ITEMS) > 0, "task": "boolq"}]
    found = compare_last_layer(made(rows)).set_index("task")
    assert found["size"].tolist() == [3, 3, 3] and found.loc["boolq", "better"] == ""
    assert found.loc["boolq", "low"] < 0 < found.loc["boolq", "value"]
    assert found.loc["mmlu", ["value", "items", "better"]].tolist() == [0.5, 100, "dropped"]
    assert found.loc["c4", ["value", "items", "better"]].tolist() == [1.0, ITEMS, "kept"]
    counted = count_better(pd.concat([found.assign(model=name) for name in "za"])).drop(columns="size")
    assert counted.values.tolist() == [[name, 2, 1, 0, 1, 0, 1] for name in "za"], "in the order of their rows"


def test_facts_are_of_five_kinds_in_the_order_in_which_they_are_asked():
    kinds, counts = np.unique(list_answer_kinds(), return_counts=True)
    assert dict(zip(kinds, counts)) == {"author": 60, "currency": 55, "french": 60, "opposite": 60, "past": 60}


def test_what_is_published_knows_by_letter_what_it_can_no_longer_write():
    table = drop_third_study(published()[0])  # which has a page of its own
    of_qwen = table[table["model"] == QWEN]
    facts = score_facts(of_qwen).set_index(["place", "size", "answer", "asked"])["value"].sort_index()
    forms = ["letters", "letters, calibrated", "written"]
    late, similar = "the last layers", "the most similar layers"
    assert facts.loc[late, 6, ""][forms].round(3).tolist() == [0.217, 0.969, 0.014]
    assert facts.loc[similar, 6, ""][forms].round(3).tolist() == [0.488, 0.719, 0.658]
    kept = [facts.loc[late, 3, kind, "written"] for kind in ("opposite", "past", "author", "french")]
    assert np.round(kept, 2).tolist() == [0.80, 0.65, 0.05, 0.02]
    last = compare_last_layer(of_qwen.query("size == 4")).set_index("task")
    assert last.loc["mmlu", ["value", "low", "high"]].tolist() == pytest.approx([0.086, 0.044, 0.126], abs=0.003)
    assert last.loc["c4", "value"] == pytest.approx(1.26, abs=0.005)
    assert set(last.loc[["c4", "gsm8k_solutions"], "better"]) == {"kept"}
    assert set(last.drop(["c4", "gsm8k_solutions"])["better"]) == {"dropped", ""}
