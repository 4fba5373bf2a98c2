"""The last layer of a path, run where something is scored.

It gives keys and values everywhere, but queries, output and what follows only at the scored positions. Its own forward
runs twice: until it hands over its keys and values, then on the scored positions alone.

Letters in shapes: B sequences, T tokens, S scored positions of a sequence, D width.
"""

import contextlib

import torch

from deeper_layers.models.network import Call, Collected, cache_argument
from deeper_layers.models.streaming import replaced
from deeper_layers.sweeping.prefix_cache import Pair


def collect_keys(layer, call: Call, residual: torch.Tensor) -> Pair:
    """Keys and values that a layer attends to for a residual [B, T, D], those of its cache among them."""
    name = cache_argument(layer)
    cache = _Collecting(call.named.get(name))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Collected))
        for part in layer.modules():
            if isinstance(query := getattr(part, "q_proj", None), torch.nn.Module):  # nobody reads what it gives
                first = lambda x, project=query.forward: project(x[:, :1]).expand(-1, x.shape[1], -1)  # noqa: E731
                stack.enter_context(replaced(query, first))
        call(layer, residual, **{name: cache})
    if cache.found is None:
        raise NotImplementedError("the last layer stores no keys and values of its own")
    return cache.found


def run_scored(layer, call: Call, residual: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[B, S, D] what leaves a layer at `places` [B, S] for a residual [B, T, D]."""
    name = cache_argument(layer)
    cache = _Collecting(call.named.get(name))
    cache.found = collect_keys(layer, call, residual)
    named = call.named | {name: cache}
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
    return Call(call.arguments, named)(layer, _take(residual, places[:, :, None], 1))


class _Collecting:
    """A cache that takes the keys and values of a layer, stops it there, and later gives them back."""

    def __init__(self, cache):
        self.cache, self.found = cache, None

    def update(self, key_states, value_states, *arguments, **named):
        if self.found is not None:
            return self.found
        if self.cache is not None:
            key_states, value_states = self.cache.update(key_states, value_states, *arguments, **named)
        self.found = key_states, value_states
        raise Collected

    def __getattr__(self, name):
        return getattr(self.cache, name)


def _take(tensor: torch.Tensor, places: torch.Tensor, dim: int) -> torch.Tensor:
    """What stands at some places of a tensor, on its device, which may be another than that of the places."""
    return tensor.take_along_dim(places.to(tensor.device), dim=dim)
