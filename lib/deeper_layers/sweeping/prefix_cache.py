"""Keys and values that layers read and add, at each node of the tree.

Letters in shapes: B sequences of a batch, P tokens of the prefix.
"""

import torch
from transformers import DynamicCache

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


class PrefixCache(DynamicCache):
    """What a layer finds as its cache: those of a prefix that many sequences share, to read, and what these add.

    Attributes:
        kept: by the residual that leaves a node what was added there, [B, heads, T, head width]; of a cache that keeps.
        tokens: of which these are.
        node: the residual that leaves the node that runs.
    """

    def __init__(self, prefix: "PrefixCache | None", tokens: int, keeps: bool):
        super().__init__()
        self.prefix, self.tokens, self.keeps = prefix, tokens, keeps
        self.kept: dict[int, Pair] = {}
        self.node = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.prefix is None else self.prefix.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        added = key_states, value_states
        if self.keeps:
            self.kept[self.node] = added
        return added if self.prefix is None else behind(self.prefix.kept[self.node], added)


def behind(prefix: Pair, own: Pair) -> Pair:
    """Keys and values of sequences [B, heads, T, head width] behind those of the prefix [1, heads, P, head width]."""
    keys, values = (
        torch.cat([shared.expand(len(added), -1, -1, -1), added], dim=2)
        for shared, added in zip(prefix, own, strict=True)
    )
    return keys, values
