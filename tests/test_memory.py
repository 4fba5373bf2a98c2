"""What is stated of memory is what is needed, and little of it gives the same numbers."""

import functools

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.sweeping import generation
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.planning import Plan, common_beginning
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests
from tests.plain import allocated, requests
from tests.tiny import tiny_model

LAYERS = 6
CUTS = [Cut(0, 0), *(simple_cut(LAYERS, n) for n in (1, 2, 3, 4)), Cut(1, 2), Cut(2, 2), Cut(0, 1), Cut.of(mlp=[1])]


def never(rows):
    return [False] * len(rows)


@functools.cache
def family_of(name: str) -> PrunedFamily:
    # gemma3n can't be pruned, and hands on several residuals
    return PrunedFamily(tiny_model(name, layers=LAYERS), CUTS if name != "gemma3n" else CUTS[:1])


def asked(few_shot: int) -> dict:
    contexts, continuations = requests(128, few_shot=few_shot, questions=30 if few_shot == 60 else 8)
    return {"contexts": contexts, "continuations": continuations, "max_length": 128}


def measured(family: PrunedFamily, few_shot: int, plan: Plan, **how) -> tuple[np.ndarray, int]:
    """Log-probabilities, and the bytes that they took at most."""
    with allocated() as most:
        found, _ = loglikelihoods(family.whole.model, cuts=family.cuts, family=family, **asked(few_shot), **how)
    assert plan.bytes / 2.5 < most[0] <= plan.bytes
    return found, most[0]


CASES = [
    ("llama", 0), ("llama", 90), ("gemma2", 90), ("mixtral", 0), ("falcon_h1", 0), ("gpt_neo", 90), ("gemma3n", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "few_shot"), CASES)
def test_no_more_is_taken_than_was_planned(name, few_shot):
    """Attention that lends or copies, of one kernel or of several, experts, recurrence, several residuals."""
    family = family_of(name)
    measured(family, few_shot, plan_requests(family, **asked(few_shot)))


@pytest.mark.parametrize("few_shot", [0, 60])
def test_a_tenth_of_the_memory_gives_the_same_numbers(few_shot):
    family = family_of("llama")
    whole = plan_requests(family, **asked(few_shot))
    tenth = plan_requests(family, **asked(few_shot), memory=whole.bytes // 10)
    assert tenth.bytes <= whole.bytes // 10
    expected, most = measured(family, few_shot, whole)
    found, least = measured(family, few_shot, tenth, memory=whole.bytes // 10)
    assert least < most / 5
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared", [False, True], ids=["prompts of their own", "one beginning"])
def test_answers_take_no_more_than_was_planned(shared):
    family, most = family_of("llama"), 12
    prompts = [list(range(1 if shared else n, 60 + 3 * n)) for n in range(1, 7)]
    stated = family.bytes_to_write(CUTS, len(prompts), max(map(len, prompts)), common_beginning(prompts), most)
    with allocated() as taken:
        Decoding(family, prompts, most).write(never)
    assert stated / 2.5 < taken[0] <= stated


# where memory runs out all the same


def test_answers_are_written_in_halves_of_prompts_and_of_models(monkeypatch):
    family, rows = family_of("llama"), [list(range(1, 9 + n)) for n in range(6)]
    expected, sizes = generation._written(family, rows, 4, never, lambda answers: None), []
    init = Decoding.__init__

    def small(self, family, rows, most):
        sizes.append((len(family.cuts), len(rows)))
        if len(family.cuts) * len(rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        init(self, family, rows, most)

    monkeypatch.setattr(Decoding, "__init__", small)
    assert generation._written(family, rows, 4, never, lambda answers: None) == expected
    assert max(sizes) == (len(CUTS), 6) and (len(CUTS), 1) in sizes and min(sizes)[0] < 5
    monkeypatch.setattr(Decoding, "__init__", lambda *_: small(None, family, rows * 9, 4))
    with pytest.raises(InputError, match="out of memory on one sequence of 13 tokens"):
        generation._written(family, rows, 4, never, lambda answers: None)
