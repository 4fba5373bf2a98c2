"""The page of the third study: what is not measured is said so, and its rows stay off other pages."""

import re

import numpy as np
import pytest

from deeper_layers import models
from deeper_layers.data import embedded
from deeper_layers_companion.report.pairing import drop_third_study
from deeper_layers_companion.studies import four_kinds
from tests.test_report import curve, made
from tests.test_what_last_layers_hold import asked

WRITTEN = {"reverse": (0.30, 0.0), "simple": (0.05, 0.0), "reverse-affine": (0.85, 0.8), "reverse-low-rank": (0.2, 0.0)}
LOSSES = {"reverse": 6.0, "simple": 5.0, "reverse-affine": 3.5, "reverse-low-rank": 4.0}


@pytest.fixture(scope="module")
def scores():
    """A model's rows, in files as they are measured: what is asked, the losses of all cuts, and maps."""
    rows = asked(WRITTEN, losses=LOSSES)
    is_map = rows["rule"].str.startswith("reverse-")
    rows.loc[is_map, "changed"] = "mapped"
    rows.loc[is_map, "path"] = "m/scores-maps.json"
    rows.loc[(rows["task"] == "c4") & ~is_map, "path"] = "m/scores-c4.json"
    return rows


def test_every_prediction_has_a_verdict_and_what_was_not_measured_is_said_so(scores):
    table = four_kinds.tabulate_verdicts(four_kinds.judge(scores)).set_index(["prediction", "prompt"])
    assert len(table) == 9 and set(table["Qwen2.5-Coder-1.5B"]) == {four_kinds.NOT_MEASURED}
    assert table["m"].str.endswith(": supported").sum() == 8 and table["m"].iloc[-1].endswith(": contradicted")
    without_maps = scores[scores["changed"].isna() & (scores["task"] != "c4")]
    table = four_kinds.tabulate_verdicts(four_kinds.judge(without_maps)).set_index("prediction")
    assert (table["m"] == four_kinds.NOT_MEASURED).sum() == 3, "the loss and two maps"


def test_only_models_that_were_asked_all_items_are_judged(scores):
    part = scores.assign(limit=scores["limit"].fillna(6))
    assert four_kinds.judge(part).empty and not four_kinds.judge(scores).empty


def test_tables_say_what_is_kept_of_each_form_and_kind_and_what_maps_return(scores):
    kept = four_kinds.tabulate_kept(scores).query("prompt == 'as a question' and size == 5")
    of_last = kept[kept["place"] == four_kinds.PLACE_NAMES["reverse"]].set_index("asked")["kept"]
    assert of_last["letter, calibrated"] == pytest.approx(1, abs=0.05) and of_last["written"] < 0.4
    kinds = four_kinds.tabulate_kinds(scores).query("size == 5").set_index(["place", "kind"])["kept"]
    last = four_kinds.PLACE_NAMES["reverse"]
    assert kinds[last, "foreign word"] == 0 and kinds[last, "English word"] == pytest.approx(1 / 3, abs=0.1)
    returned = four_kinds.tabulate_returned(scores).set_index(["map", "asked"])["value"]
    assert returned["affine", "loss on C4"] == pytest.approx(2.5 / 3, abs=0.01)
    assert returned["affine", "written"] > 0.8 and returned["low rank", "written"] < 0.2
    assert np.isnan(returned["affine", "letter, calibrated"]), "nothing of it was lost"


def test_a_relation_shows_what_is_asked_and_what_each_model_that_was_asked_all_writes(scores):
    asked_all, of_part = (four_kinds.tabulate_items(table).set_index("asked") for table in (scores, scores[:0]))
    outcome = scores.query("task == 'answers_written' and rule == 'reverse' and size == 0")["outcome"].item()
    first = embedded.answers()[0]
    own = [item["relation"] == first["relation"] for item in embedded.answers()]
    assert asked_all.loc[first["question"], ["items", "m writes"]].tolist() == [sum(own), outcome[own].mean()]
    assert asked_all["items"].sum() == len(own) and [*of_part] == ["kind", "answer", "items"]
    few = scores.assign(outcome=[vector[:9] for vector in scores["outcome"]], items=9)
    assert "m writes" not in four_kinds.tabulate_items(few[few["task"] == "answers_written"])


def test_the_last_layer_is_compared_at_each_size_by_answers_and_by_loss(scores):
    table = four_kinds.compare_last_layer(scores).set_index(["asked", "size"])
    assert table.loc["loss on C4", "value"].tolist() == pytest.approx([1.0] * 8, abs=0.01)
    assert (table.loc["written", "low"] > 0).all() and table.loc[("written", 3), "items"] == 440


def test_its_rows_stay_off_other_pages_and_all_others_stay(scores):
    others = made(curve([0.75, 0.5]) + curve([0.75, 0.5], task="facts_written", rule="reverse", limit=128))
    together = type(scores)(np.concatenate([scores, others]), columns=scores.columns).astype(scores.dtypes)
    left = drop_third_study(together)
    assert left["task"].value_counts().to_dict() == {"mmlu": 2, "facts_written": 2}


def test_answers_of_one_token_stand_beside_longer_ones(scores):
    """The tokens of each answer were counted once; here they are counted again for the packaged model."""
    renamed = scores.assign(model="SmolLM2-135M-Instruct")
    table = four_kinds.tabulate_lengths(renamed).query("size == 0").set_index(["place", "kind"])["items"]
    last = four_kinds.PLACE_NAMES["reverse"]
    assert table[last].sum() == len(embedded.answers()) and four_kinds.tabulate_lengths(scores).empty
    _, tokenizer = models.load_model(models.find_model("embedded"))
    by_length = {"one token": 0, "several tokens": 0}
    for item in embedded.answers():
        answer = " " + item["choices"][item["answer"]]
        is_one = len(tokenizer.encode(answer, add_special_tokens=False)) == 1
        by_length["one token" if is_one else "several tokens"] += 1
    for length, count in by_length.items():
        assert table[last].filter(like=length).sum() == count


def test_letters_are_told_as_chosen_and_without_their_bias():
    biased = asked(WRITTEN, letter_bias=5.0)
    judged = four_kinds.judge(biased)
    told = str(four_kinds.tell_outliving(judged, four_kinds.tabulate_kept(biased)))
    shares = [float(share) for share in re.findall(r"(-?\d+)%", told)]
    written, as_chosen, calibrated = shares
    assert written < 40 and as_chosen < 40 and calibrated > 90
    assert told.endswith("That letters outlive writing was predicted: supported in m.")
    assert str(four_kinds.tell_outliving(judged[:0], biased)) == "Not measured."


def test_the_last_layer_is_told_of_every_model_that_was_measured(scores):
    judged = four_kinds.judge(scores)
    value = judged.set_index("number").loc["2. T, the last layer by tasks", "value"]
    assert str(four_kinds.tell_last_layer(judged)).endswith(f"It is {value:.2f} in m (supported).")
    assert str(four_kinds.tell_last_layer(judged[:0])) == "Not measured."


def test_every_other_prediction_is_told_with_what_came_of_it(scores):
    judged = four_kinds.judge(scores)
    values = judged.set_index("number")["value"]
    loss = values["3. U, the last layer by loss"]
    words = values["4. E, English less Spanish words"]
    assert f"It is {loss:.2f} in m (" in str(four_kinds.tell_last_loss(judged))
    assert f"It is {words:.2f} in m (" in str(four_kinds.tell_answers(judged))
    returned = four_kinds.tabulate_returned(scores)
    told = str(four_kinds.tell_maps(judged, returned))
    mapped = judged[judged["number"].str.startswith("5.") & judged["value"].notna()]
    assert told.count("map returns") == len(mapped)
    assert told == "Not measured." or told.endswith("the weaker map.")


def test_the_ends_of_prediction_1_are_the_registered_bootstrap_s_also_where_nothing_is_right():
    """Elsewhere they follow from Wilson's intervals, which the criterion does not name."""
    judged = four_kinds.judge(asked(WRITTEN | {"reverse": (0.0, 0.0)}))
    row = judged[judged["number"] == "1. writing kept"].iloc[0]
    assert [row["value"], row["low"], row["high"]] == [0, 0, 0]
