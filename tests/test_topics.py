"""How many items there are of a topic: what this project asks of itself against its own data."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from deeper_layers.data import embedded
from deeper_layers.report import standards
from deeper_layers.report.statistics import curves, topics


def test_there_are_as_many_items_as_the_data_hold():
    held = {"Capitals": embedded.capitals(), "PIQA": embedded.piqa(), "BoolQ": embedded.boolq()}
    held |= {"Sums, one digit": embedded.sums(1), "Sums, two digits": embedded.sums(2)}
    assert {topic: len(items) for topic, items in held.items()} == {topic: topics.ITEMS[topic] for topic in held}
    assert topics.there_are("MMLU, 57 subjects") == 14_042 and topics.there_are("BoolQ beside MMLU") == 3_270
    assert topics.there_are("loss on text") == float("inf")


def test_the_data_cards_say_the_same_numbers():
    said = {card.name: str(card) for card in standards.CARDS}
    for topic, card in {"MMLU": "MMLU", "BoolQ": "BoolQ", "GSM8K": "GSM8K", "PIQA": "PIQA, packaged"}.items():
        assert f"{topics.ITEMS[topic]:,} items" in said[card]


def test_more_than_there_are_is_said():
    assert topics.that_decide(370, "Sums, one digit") == "370, more than the 81 there are"
    assert topics.that_decide(1_100, "BoolQ") == "1,100" and topics.that_decide(2e6, "loss on text") == "2,000,000"


def test_a_tasks_own_number_of_shots_is_what_lm_eval_has():
    for task, number in topics.SHOTS.items():
        (file,) = Path(find_spec("lm_eval").origin).parent.glob(f"tasks/*/{task}.yaml")
        assert f"\nnum_fewshot: {number}\n" in file.read_text(encoding="utf-8")


def test_subjects_of_mmlu_are_those_of_lm_eval_and_as_cloze_a_topic_of_their_own():
    folder = Path(find_spec("lm_eval").origin).parent / "tasks" / "mmlu"
    of_lm_eval = {path.stem for path in folder.glob("default/mmlu_*.yaml")}
    assert of_lm_eval | {f"{name}_continuation" for name in of_lm_eval} == set(curves.SUBJECTS)
    assert [topics.topic_of(task) for task in ("mmlu", "mmlu_stem", "mmlu_law_9")] == ["MMLU", "MMLU", "mmlu_law_9"]
    cloze = ["mmlu_anatomy_continuation", "mmlu_virology_continuation"]
    assert {topics.topic_of(task) for task in ["mmlu_continuation", *cloze]} == {"MMLU as cloze"}
    assert topics.described_as("MMLU as cloze", cloze, 5, 20) == "MMLU as cloze, 2 of 57 subjects, 5-shot, 20 items"
    others = ["mmlu_pro_law", "mmlu_anatomy_generative"]
    assert curves.asked([*others, *cloze, "mmlu_anatomy"]) == (
        "mmlu_pro_law, mmlu_anatomy_generative, MMLU, anatomy, MMLU as cloze, 2 of 57 subjects"
    )


@pytest.mark.parametrize(("task", "asked", "shots"), [("gsm8k", None, 5), ("gsm8k", 3, 3), ("mmlu", None, None)])
def test_shots_are_the_tasks_own_where_none_are_asked_for(task, asked, shots):
    assert topics.shots(task, asked) == shots
