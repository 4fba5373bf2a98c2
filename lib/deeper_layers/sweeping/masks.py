"""Attention masks of our own, where sequences have branches or rows are padded.

Letters in shapes: B sequences, T tokens, K keys.
"""

import torch

from deeper_layers.models.configuration import text_config
from deeper_layers.models.per_layer import BOUNDARIES

MASKABLE = ("sdpa", "eager")  # attention that takes a mask of ours


def attention_masks(config, positions, key_positions, visible, dtype):
    """What a forward pass takes as `attention_mask`: one mask, or one for each kind of layer that the model has.

    Parameters
    ----------
    positions, key_positions: [B, T] and [B, K], places in the sequence, which sliding windows go by.
    visible: [B, T, K], whether a token may see a key at all.
    """
    config = text_config(config)

    def mask(window: int | None) -> torch.Tensor:
        seen = visible & (positions[:, :, None] - key_positions[:, None, :] < window) if window else visible
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]

    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: mask(windows[kind]) for kind in set(kinds)} if kinds else mask(window)


def takes_masks(config) -> bool:
    """Whether attention takes a mask of ours, and reaches only so far in no way that `attention_masks` does not know.

    A trial on a few tokens would not show a window.
    """
    config = text_config(config)
    known = ("sliding_window", "sliding_window_pattern", "_sliding_window_pattern", *BOUNDARIES)
    found = [value for name, value in vars(config).items() if "window" in name and name not in known]
    return config._attn_implementation in MASKABLE and not any(type(value) is int and value > 0 for value in found)
