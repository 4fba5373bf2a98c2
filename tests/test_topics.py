"""How many items there are of a topic: what this project asks of itself against its own data."""

import pytest

from deeper_layers.data import embedded
from deeper_layers.report.statistics import topics


def test_there_are_as_many_items_as_the_data_hold():
    held = {"Capitals": embedded.capitals(), "PIQA": embedded.piqa(), "BoolQ": embedded.boolq()}
    held |= {"Sums, one digit": embedded.sums(1), "Sums, two digits": embedded.sums(2)}
    assert {topic: len(items) for topic, items in held.items()} == {topic: topics.ITEMS[topic] for topic in held}
    assert topics.there_are("MMLU, 57 subjects") == 14_042 and topics.there_are("BoolQ beside MMLU") == 3_270
    assert topics.there_are("loss on text") == float("inf")


def test_more_than_there_are_is_said():
    assert topics.that_decide(370, "Sums, one digit") == "370 (there are 81)"
    assert topics.that_decide(1_100, "BoolQ") == "1,100" and topics.that_decide(2e6, "loss on text") == "2,000,000"


@pytest.mark.parametrize(("task", "asked", "shots"), [("gsm8k", None, 5), ("gsm8k", 3, 3), ("mmlu", None, None)])
def test_shots_are_the_tasks_own_where_none_are_asked_for(task, asked, shots):
    assert topics.shots(task, asked) == shots
