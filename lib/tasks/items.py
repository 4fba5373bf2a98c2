"""The items of the embedded tasks as data sets, for the YAML files beside this one."""

import datasets

from lib import corpora


def _as_test_split(items: list[dict]) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(items)}


def boolq(**_):
    return _as_test_split(corpora.boolq())


def mmlu_sample(**_):
    return _as_test_split(corpora.mmlu_sample())


def piqa(**_):
    return _as_test_split(corpora.piqa())


def capitals(**_):
    return _as_test_split(corpora.capitals())


def sums_one_digit(**_):
    return _as_test_split(corpora.sums(1))


def sums_two_digits(**_):
    return _as_test_split(corpora.sums(2))
