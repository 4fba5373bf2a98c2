"""Parts of a model's own forward that a healing runs: the layers below a cut, or those above it from a residual.

Letters in shapes: B sequences, T tokens, D width.
"""

import contextlib
from collections.abc import Iterator

import torch

from deeper_layers.models.network import Collected, Network


class Joint(Network):
    """A model that gives the residual which enters a layer, and takes one in its first layer's place."""

    @torch.no_grad()
    def residual(self, batch: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
        """[B, T, D] what enters a layer for `input_ids` [B, T]; the layers from there on don't run, dropout is off."""

        def stop(*_):
            raise Collected

        training = self.model.training
        self.model.eval()
        # the first hook records, the second stops
        with self.recording(layer) as residuals, contextlib.ExitStack() as stack:
            stack.callback(self.layers[layer].register_forward_pre_hook(stop).remove)
            stack.callback(self.model.train, training)
            stack.enter_context(contextlib.suppress(Collected))
            ids = batch["input_ids"].to(self.device)
            self.model.base_model(input_ids=ids, attention_mask=batch.get("attention_mask"), use_cache=False)
        return residuals[-1]

    @contextlib.contextmanager
    def recording(self, layer: int) -> Iterator[list[torch.Tensor]]:
        """The residual [B, T, D] that enters a layer, that of the latest forward pass alone."""
        residuals: list[torch.Tensor] = []

        def keep(_, arguments, named):
            residuals[:] = [arguments[0] if arguments else named["hidden_states"]]

        handle = self.layers[layer].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield residuals
        finally:
            handle.remove()

    @contextlib.contextmanager
    def entering(self, residual: torch.Tensor) -> Iterator[None]:
        """During a forward pass, this residual enters the first layer, whatever the embedding gave."""

        def give(_, arguments, named):
            if arguments:
                return (residual, *arguments[1:]), named
            return arguments, named | {"hidden_states": residual}

        handle = self.layers[0].register_forward_pre_hook(give, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
