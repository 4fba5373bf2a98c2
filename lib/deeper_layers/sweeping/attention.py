"""What a token sees of others: our own masks, keys and values of a prefix; and a layer run at some positions only.

Letters in shapes: B sequences of a batch, T tokens, K keys, P tokens of the prefix, S scored positions, D width.
"""

import contextlib
import inspect

import torch
from transformers import DynamicCache

from deeper_layers.models.configuration import text_config
from deeper_layers.models.decoder import BOUNDARIES
from deeper_layers.models.network import Call, Network, StopForward, cache_argument, replacing

MASKABLE = ("sdpa", "eager")  # implementations of attention that take a given mask
# arguments with an entry for each position
POSITIONAL = ("attention_mask", "position_ids", "position_embeddings")
Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


def attention_masks(network: Network, positions, key_positions, visible):
    """The `attention_mask` of a forward pass: one mask, or one for each type of layer that the model has.

    Args:
        positions, key_positions: [B, T] and [B, K], places in the sequence, for sliding windows.
        visible: [B, T, K], whether a token may see a key at all.
    """
    config = text_config(network.model.config)
    dtype = network.dtype

    def mask(window: int | None) -> torch.Tensor:
        allowed = visible
        if window:
            distance = positions[:, :, None] - key_positions[:, None, :]
            allowed = visible & (distance < window)
        zeros = torch.zeros_like(allowed, dtype=dtype)
        added = zeros.masked_fill(~allowed, torch.finfo(dtype).min)
        return added[:, None]

    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: mask(windows[kind]) for kind in set(kinds)} if kinds else mask(window)


def takes_masks(config) -> bool:
    """Whether attention takes a given mask, and has no window except those that `attention_masks` draws. The
    configuration is asked, as a trial on a few tokens would not show a window."""
    config = text_config(config)
    understood = (
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        *BOUNDARIES,
    )
    windows = [
        value for name, value in vars(config).items() if "window" in name and name not in understood
    ]
    return config._attn_implementation in MASKABLE and not any(
        type(value) is int and value > 0 for value in windows
    )


class PrefixCache(DynamicCache):
    """The cache that a layer is given: it reads the keys and values of a shared prefix, and adds those of a sequence.

    Attributes:
        tokens: number of tokens of the prefix and the sequence.
        node: number of the residual that leaves the running node.
        kept: by this number, where `keeps`, keys and values of prefix and sequence [B, heads, P + T, head width].
    """

    def __init__(self, prefix: "PrefixCache | None" = None, tokens: int = 0, keeps: bool = False):
        super().__init__()
        self.prefix = prefix
        self.tokens = tokens
        self.keeps = keeps
        self.kept: dict[int, Pair] = {}
        self.node = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.prefix is None else self.prefix.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        states = key_states, value_states
        if self.prefix is not None:
            states = append_states(self.prefix.kept[self.node], states)
        if self.keeps:
            self.kept[self.node] = states
        return states


def append_states(prefix: Pair, suffix: Pair) -> Pair:
    """Append keys and values of sequences [B, heads, T, head width] to those of a prefix [1, heads, P, head width]."""
    pairs = zip(prefix, suffix, strict=True)
    keys, values = (
        torch.cat([shared.expand(len(added), -1, -1, -1), added], dim=2) for shared, added in pairs
    )
    return keys, values


def run_scored(layer, call: Call, residual: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The output [B, S, D] of a layer at `places` [B, S], for a residual [B, T, D] of which all gives keys and values.

    Queries and everything after attention are computed at these places only: the layer's own forward runs until it has
    its keys and values, and then once more on the scored positions.
    """
    arguments = inspect.signature(inspect.unwrap(type(layer).forward)).parameters
    # after itself and the residual
    named = dict(zip(list(arguments)[2:], call.arguments)) | call.named
    if any(
        isinstance(value, torch.Tensor) and value.ndim > 1 and name not in POSITIONAL
        for name, value in named.items()
    ):
        raise NotImplementedError(
            "the last layer is handed more that may go by positions, as biases of attention do"
        )
    cache = named[cache_argument(layer)]
    states = []

    def collect(*added, **options):
        states.extend(PrefixCache.update(cache, *added, **options))
        raise StopForward

    with replacing(cache, "update", collect), contextlib.suppress(StopForward):
        layer(residual, **named)
    if not places.shape[1]:
        return residual[:, :0]

    def take(tensor: torch.Tensor) -> torch.Tensor:
        """[B, S, ...] at `places` of a tensor [B, T, ...] or [1, T, ...], on the tensor's device."""
        rows = torch.arange(len(places))[:, None].to(tensor.device)
        columns = places.to(tensor.device)
        return tensor.expand(len(places), *tensor.shape[1:])[rows, columns]

    if (mask := named.get("attention_mask")) is None:
        keys = torch.arange(states[0].shape[-2], device=places.device)
        last_keys = places[:, :, None] + len(keys) - residual.shape[1]
        named["attention_mask"] = (keys <= last_keys)[:, None]
    else:
        named["attention_mask"] = take(mask[:, 0])[:, None]
    if (positions := named.get("position_ids")) is not None:
        named["position_ids"] = take(positions)
    if (tables := named.get("position_embeddings")) is not None:
        named["position_embeddings"] = tuple(map(take, tables))
    with replacing(cache, "update", lambda *_, **__: states):
        return Call((), named)(layer, take(residual))
