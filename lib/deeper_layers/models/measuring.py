"""What every measurement begins with: a model that can be measured, run without dropout, and left as it was found."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from deeper_layers.errors import InputError
from deeper_layers.models.decoder import num_layers

Others = ParamSpec("Others")
Found = TypeVar("Found")


@contextlib.contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Inside, the models among these are in evaluation mode; afterwards each module is in the mode in which it was."""
    modes = []
    for model in models:
        if isinstance(model, nn.Module):
            modes += [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def measuring(
    function: Callable[Concatenate[nn.Module, Others], Found],
) -> Callable[Concatenate[nn.Module, Others], Found]:
    """A function of a model and others that measures the model's answers: it runs inside `evaluating`, after a check.

    Raises InputError where the model is none of transformers, has no weights or no head, or gives tuples.
    """

    @functools.wraps(function)
    def measure(model: nn.Module, *others: Others.args, **named: Others.kwargs) -> Found:
        check_predicts(model)
        with evaluating(model):
            return function(model, *others, **named)

    return measure


def check_predicts(model: nn.Module) -> None:
    """Raise InputError where a model is none of transformers, has no weights or no head, or gives tuples."""
    check_has_weights(model)
    head = model.get_output_embeddings()  # ty: ignore[not-callable]
    if head is None:
        kind = type(model).__name__
        raise InputError(
            f"the model is a {kind}, which has no head, expected one that predicts: use load_model"
        )
    if not getattr(model.config, "return_dict", True):
        raise InputError(
            "the model's config.return_dict is False, expected True: set it, or use load_model"
        )


def check_has_weights(model: nn.Module) -> None:
    """Raise InputError where a model is none of transformers, or is on the meta device, where it has only shapes."""
    num_layers(model)
    embedding: torch.Tensor = model.get_input_embeddings().weight  # ty: ignore[not-callable]
    if embedding.is_meta:
        raise InputError(
            f"the {type(model).__name__} has shapes and no weights, on device meta: use load_model"
        )


def check_tokens(model: nn.Module, least: int, most: int) -> None:
    """Raise InputError where numbers of tokens, from `least` to `most`, are not all in the model's embedding."""
    rows = len(model.get_input_embeddings().weight)  # ty: ignore[not-callable]
    if least < 0 or most >= rows:
        odd = least if least < 0 else most
        raise InputError(
            f"a token has the number {odd}, expected 0 to {rows - 1}, the rows of the embedding: take the model's own "
            "tokenizer"
        )


def to_double(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float64: on its own device, or on the processor where that device has no such numbers, as Apple's."""
    try:
        return tensor.double()
    except TypeError:
        return tensor.cpu().double()
