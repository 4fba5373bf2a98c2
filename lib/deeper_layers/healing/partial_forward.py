"""Parts of a model's own forward that a healing runs: the layers below a cut.

Letters in shapes: B sequences, T tokens, D width.
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.network import Collected


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, a model's dropout is off."""
    training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(training)


@torch.no_grad()
def residual_entering(model: PreTrainedModel, layer: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, T, D] what enters a layer for `input_ids` [B, T]; the layers from there on don't run, dropout is off."""

    def stop(*_):
        raise Collected

    with evaluating(model), recording(model, layer) as residuals, contextlib.suppress(Collected):
        with decoder_layers(model)[layer].register_forward_pre_hook(stop):  # after the hook that records
            ids = inputs["input_ids"].to(model.device)
            model.base_model(input_ids=ids, attention_mask=inputs.get("attention_mask"), use_cache=False)
    return residuals[-1]


@contextlib.contextmanager
def recording(model: PreTrainedModel, layer: int) -> Iterator[list[torch.Tensor]]:
    """The residual [B, T, D] that enters a layer, that of the latest forward pass alone."""
    residuals: list[torch.Tensor] = []

    def keep(_, arguments, named):
        residuals[:] = [arguments[0] if arguments else named["hidden_states"]]

    with decoder_layers(model)[layer].register_forward_pre_hook(keep, with_kwargs=True):
        yield residuals
