"""Faults that only show on a card, put in on purpose one at a time: each fails a test of on_a_card.py."""

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import pytest

from deeper_layers.errors import InputError
from deeper_layers.models import measuring
from deeper_layers.similarity import _pick_last_tokens, _stack_residuals
from deeper_layers.sweeping.attention import attention_masks
from deeper_layers.sweeping.forward import are_most_likely
from deeper_layers.sweeping.tree_model import _score_requests
from tests import on_a_card
from tests.simulated_device import simulated_card

MIXED = "Expected all tensors to be on the same device"


@contextlib.contextmanager
def faulty(function: Callable, right: str, wrong: str):
    """Inside, a function has other code, wherever it is called from."""
    inner = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(inner))
    assert source.count(right) == 1, "the function was rewritten: put the fault into what it is now"
    (definition,) = ast.parse(source.replace(right, wrong)).body
    definition.decorator_list = []
    names: dict = {}
    exec(compile(ast.Module([definition], []), "<fault>", "exec"), inner.__globals__, names)
    code, inner.__code__ = inner.__code__, names[inner.__name__].__code__
    try:
        yield
    finally:
        inner.__code__ = code


def distances():
    with simulated_card() as card:
        on_a_card.test_distances_are_the_processors_and_take_one_copy_a_batch("llama", card)


def choices():
    with simulated_card() as card:
        on_a_card.test_a_sweep_gives_the_processors_answers_and_takes_one_copy_a_batch("llama", card)


class Fault(NamedTuple):
    function: Callable
    right: str
    wrong: str
    test: Callable
    error: type[Exception]
    words: str | None = None


FAULTS = {
    "a tensor made on the processor": Fault(
        _pick_last_tokens, "mask.shape[1] + 1, device=mask.device", "mask.shape[1] + 1",
        distances, InputError, MIXED,
    ),
    "a mask left behind": Fault(
        attention_masks, "return added[:, None]", "return added[:, None].cpu()",
        choices, AssertionError,
    ),
    "numpy on the device": Fault(
        _score_requests, "torch.cat(found, dim=1).cpu().numpy()", "torch.cat(found, dim=1).numpy()",
        choices, TypeError,
    ),
    "an index on the wrong side": Fault(
        _pick_last_tokens, "states[torch.arange", "states.cpu()[torch.arange", distances, InputError, MIXED,
    ),
    "float64 where there is none": Fault(
        measuring.to_double, "tensor.cpu().double()", "tensor.double()",
        on_a_card.test_residuals_of_a_card_without_float64_are_doubled_on_the_processor, TypeError,
    ),
    "a copy a layer": Fault(
        _stack_residuals, ".to(network.device)", ".cpu()", distances, AssertionError,
    ),
    "a wait for a shape": Fault(
        are_most_likely, 'logits.device.type != "cpu"', "False", choices, AssertionError,
    ),
    "a wrong number on the device alone": Fault(
        are_most_likely, "logits.argmax(dim=-1)[rows] == tokens", "logits.amax(dim=-1)[rows] == tokens",
        choices, AssertionError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_a_test_of_the_simulated_card(name):
    fault = FAULTS[name]
    with faulty(fault.function, fault.right, fault.wrong), pytest.raises(fault.error, match=fault.words):
        fault.test()
