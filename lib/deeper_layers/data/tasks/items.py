"""The items of the embedded tasks as data sets, for the YAML files beside this one."""

import re
from collections.abc import Callable

import datasets

from deeper_layers.data import embedded


def _dataset_loader(
    items: Callable[..., list[dict]], *arguments
) -> Callable[..., dict[str, datasets.Dataset]]:
    return lambda **_: {"test": datasets.Dataset.from_list(items(*arguments))}


boolq, mmlu_sample, piqa = map(
    _dataset_loader, (embedded.boolq, embedded.mmlu_sample, embedded.piqa)
)
capitals, facts, written_facts = map(
    _dataset_loader, (embedded.capitals, embedded.facts, embedded.written_facts)
)
answers = _dataset_loader(embedded.answers)
sums_one_digit = _dataset_loader(embedded.sums, 1)
sums_two_digits = _dataset_loader(embedded.sums, 2)


def begins_with_the_answer(item: dict, written: list[str]) -> dict[str, float]:
    """Whether what was written begins with the answer, whatever follows it: 1.0 or 0.0."""
    answer = item["choices"][item["answer"]] if "choices" in item else item["answer"]
    return {
        "exact_match": float(
            re.match(rf"\W*{re.escape(answer)}\b", written[0], re.IGNORECASE) is not None
        )
    }
