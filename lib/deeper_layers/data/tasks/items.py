"""The items of the embedded tasks as data sets, for the YAML files beside this one."""

import re

import datasets

from deeper_layers.data import embedded


def _as_test_split(items: list[dict]) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(items)}


def boolq(**_):
    return _as_test_split(embedded.boolq())


def mmlu_sample(**_):
    return _as_test_split(embedded.mmlu_sample())


def piqa(**_):
    return _as_test_split(embedded.piqa())


def capitals(**_):
    return _as_test_split(embedded.capitals())


def sums_one_digit(**_):
    return _as_test_split(embedded.sums(1))


def sums_two_digits(**_):
    return _as_test_split(embedded.sums(2))


def written_facts(**_):
    return _as_test_split(embedded.written_facts())


def facts(**_):
    return _as_test_split(embedded.facts())


def begins_with_the_answer(item: dict, written: list[str]) -> dict[str, float]:
    """Whether what was written begins with the answer, whatever follows it: 1.0 or 0.0."""
    answer = item["choices"][item["answer"]] if "choices" in item else item["answer"]
    return {"exact_match": float(re.match(rf"\W*{re.escape(answer)}\b", written[0], re.IGNORECASE) is not None)}
