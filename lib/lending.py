"""Keys and values of a beginning that many sequences share, lent to each of them.

Letters in shapes: B sequences of a batch, T tokens, P tokens of the shared beginning.
"""

import contextlib
from collections.abc import Iterator

import torch
from transformers import AttentionInterface, DynamicCache

from lib.decoder import text_config


class Lent(DynamicCache):
    """Keys and values of one sequence, lent to `rows` sequences: what these add is used, and not kept.

    `apart`: attention to the beginning and to what the sequences add is computed apart (`attend_apart`), so
    that nothing of the beginning is copied for each sequence.
    """

    def __init__(self, cache: DynamicCache, rows: int, apart: bool = False):
        super().__init__()
        self.layers, self.rows, self.apart = cache.layers, rows, apart

    def beginning(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, heads, P, head width] of a layer, without a copy."""
        layer = self.layers[layer_idx]
        return tuple(tensor.expand(self.rows, *tensor.shape[1:]) for tensor in (layer.keys, layer.values))

    def update(self, key_states, value_states, layer_idx, *_, **__):
        if self.apart:
            return key_states, value_states
        keys, values = self.beginning(layer_idx)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    @contextlib.contextmanager
    def attending(self, config) -> Iterator[None]:
        """During a forward pass of the model with this configuration, attention is `attend_apart`."""
        global _lent
        config, before = text_config(config), _lent
        implementation = config._attn_implementation
        config._attn_implementation, _lent = ATTEND_APART, self
        try:
            yield
        finally:
            config._attn_implementation, _lent = implementation, before


ATTEND_APART = "beginning_apart"
SHORT = 512  # tokens of a sequence's own up to which all scores are computed and half of them masked
QUERIES = 768  # in one product of `_one_softmax`
_lent: Lent | None = None


def attend_apart(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """Attention [B, T, heads, head width] over a lent beginning and over a sequence's own keys, put together.

    `attention_mask` is over a sequence's own keys; None is causal.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention of this kind is not computed apart")
    beginning = _lent.beginning(module.layer_idx)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # with 16 bits the products are fast, and flash attention takes longer than they do together with a softmax
    short = query.dtype != torch.float32 and query.shape[2] <= SHORT
    attend = _one_softmax if short and attention_mask is None else _two_flashes
    return attend(query, key, value, attention_mask, *beginning, scale).transpose(1, 2), None


def _two_flashes(query, key, value, attention_mask, shared_keys, shared_values, scale):
    """Softmax over both is the mean of the two attentions, weighted by their sums of exponentials.

    Flash attention gives the logarithms of these.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    (rows, heads, length, width), few = query.shape, key.shape[1]
    # heads that share keys stand next to each other: they are more queries of one head
    grouped = query.reshape(rows, few, heads // few * length, width)
    before, weight_before = flash(grouped, shared_keys, shared_values, 0.0, False, scale=scale)
    before, weight_before = before.reshape(query.shape), weight_before.reshape(rows, heads, length)
    key, value = (tensor.repeat_interleave(heads // few, dim=1) for tensor in (key, value))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    causal = attention_mask is None and length > 1
    own, weight_own = flash(query, key, value, 0.0, causal, attn_mask=attention_mask, scale=scale)
    share = torch.sigmoid(weight_before - weight_own).unsqueeze(-1).to(query.dtype)
    return own + (before - own) * share


def _one_softmax(query, key, value, _, shared_keys, shared_values, scale):
    """A few sequences at a time, whose scores stay in the processor's cache: every row of queries in one product."""
    (rows, heads, length, width), few = query.shape, key.shape[1]
    queries = heads // few * length  # of one sequence that share a head of keys
    ahead = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1).repeat(heads // few, 1)
    query, shared = (query * scale).reshape(rows, few, queries, width), shared_keys.shape[2]
    found = torch.empty_like(query)
    at_once = max(1, QUERIES // queries)
    for first in range(0, rows, at_once):
        some = slice(first, first + at_once)
        number = len(query[some])
        together = query[some].transpose(0, 1).reshape(few, number * queries, width)
        before = torch.bmm(together, shared_keys[0].transpose(1, 2)).view(few, number, queries, shared)
        own = (query[some] @ key[some].transpose(2, 3)).masked_fill_(ahead, -torch.inf).transpose(0, 1)
        weights = torch.cat([before, own], dim=-1).softmax(dim=-1)
        of_shared = torch.bmm(weights.view(few, number * queries, -1)[..., :shared], shared_values[0])
        of_own = weights[..., shared:].transpose(0, 1) @ value[some]
        found[some] = of_own + of_shared.view(few, number, queries, width).transpose(0, 1)
    return found.view(rows, heads, length, width)


AttentionInterface.register(ATTEND_APART, attend_apart)
