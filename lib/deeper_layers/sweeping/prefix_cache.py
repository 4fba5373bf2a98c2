"""Keys and values of a prefix that many sequences share, computed once for each node of the tree.

Letters in shapes: B sequences of a batch, P tokens of the prefix.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclass
class Prefix:
    """A prefix that has run: its keys and values [1, heads, P, head width], by the residual that leaves a node."""

    length: int
    kept: dict[int, Pair]


class PrefixCache(DynamicCache):
    """What a layer finds as its cache: the prefix, to read, and what the sequences add, which is not kept."""

    def __init__(self, length: int = 0):
        super().__init__()
        self.length = length
        self.prefix: Pair | None = None  # of the node that runs
        self.added: Pair | None = None  # of the sequences themselves

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        self.added = key_states, value_states
        return self.added if self.prefix is None else behind(self.prefix, self.added)


def behind(prefix: Pair, own: Pair) -> Pair:
    """Keys and values of sequences [B, heads, T, head width] behind those of the prefix."""
    keys, values = (
        torch.cat([shared.expand(len(added), -1, -1, -1), added], dim=2)
        for shared, added in zip(prefix, own, strict=True)
    )
    return keys, values
