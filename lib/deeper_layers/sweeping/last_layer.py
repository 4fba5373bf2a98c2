"""The last layer of a path, run where something is scored.

It gives keys and values everywhere, but queries, output and what follows only at the scored positions. Its own forward
runs twice: until it hands over its keys and values, then on the scored positions alone.

Letters in shapes: B sequences, T tokens, S scored positions of a sequence, D width.
"""

import contextlib
import inspect

import torch

from deeper_layers.models.network import Call, Collected, cache_argument
from deeper_layers.models.streaming import replaced

TAKEN = ("attention_mask", "position_ids", "position_embeddings")  # what is known to go by positions


def run_scored(layer, call: Call, residual: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[B, S, D] what leaves a layer at `places` [B, S] for a residual [B, T, D], all of which adds keys and values."""
    arguments = inspect.signature(inspect.unwrap(type(layer).forward)).parameters
    named = dict(zip(list(arguments)[2:], call.arguments)) | call.named  # after itself and the residual
    if any(isinstance(given, torch.Tensor) and given.ndim > 1 and name not in TAKEN for name, given in named.items()):
        raise NotImplementedError("the last layer is handed more that may go by positions, as biases of attention do")
    cache = _Collecting(named.get(cache_argument(layer)))
    named[cache_argument(layer)] = cache
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Collected))
        for part in layer.modules():
            if isinstance(query := getattr(part, "q_proj", None), torch.nn.Module):  # nobody reads what it gives
                first = lambda x, project=query.forward: project(x[:, :1]).expand(-1, x.shape[1], -1)  # noqa: E731
                stack.enter_context(replaced(query, first))
        layer(residual, **named)
    if cache.found is None:
        raise NotImplementedError("the last layer stores no keys and values of its own")
    if not places.shape[1]:
        return residual[:, :0]
    if named.get("attention_mask") is None:
        places = places.to(residual.device)
        keys = torch.arange(cache.found[0].shape[-2], device=places.device)
        before = len(keys) - residual.shape[1]
        named["attention_mask"] = (keys <= places[:, :, None] + before)[:, None]
    else:
        named["attention_mask"] = _take(named["attention_mask"], places[:, None, :, None], 2)
    if named.get("position_ids") is not None:
        named["position_ids"] = _take(named["position_ids"], places, 1)
    if named.get("position_embeddings") is not None:
        tables = named["position_embeddings"]
        named["position_embeddings"] = tuple(_take(table, places[:, :, None], 1) for table in tables)
    return Call((), named)(layer, _take(residual, places[:, :, None], 1))


class _Collecting:
    """A cache that takes the keys and values of a layer, stops it there, and later gives them back."""

    def __init__(self, cache):
        self.cache, self.found = cache, None

    def update(self, key_states, value_states, *arguments, **named):
        if self.found is None:
            self.found = key_states, value_states
            if self.cache is not None:
                self.found = self.cache.update(key_states, value_states, *arguments, **named)
            raise Collected
        return self.found

    def __getattr__(self, name):
        return getattr(self.cache, name)


def _take(tensor: torch.Tensor, places: torch.Tensor, dim: int) -> torch.Tensor:
    """What stands at some places of a tensor, on its device, which may be another than that of the places."""
    return tensor.take_along_dim(places.to(tensor.device), dim=dim)
