"""Keys and values of a beginning that many sequences share, lent to each of them.

Every node of the tree has its own; what runs at once are the sequences of some nodes, one node after another.
Letters in shapes: B sequences of a batch, T tokens, P tokens of the shared beginning.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, DynamicCache

from deeper_layers.models.decoder import text_config
from deeper_layers.models.half_precision import product

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


class Lent(DynamicCache):
    """What a layer finds as its cache: the beginnings of the nodes that run, to read and not to keep.

    `apart`: attention to the beginning and to what the sequences add is computed apart (`attend_apart`), so
    that nothing of the beginning is copied for each sequence.
    """

    def __init__(self, length: int, apart: bool = False):
        super().__init__()
        self.length, self.apart = length, apart
        self.nodes: list[Pair] = []  # [1, heads, P, head width] of each node that runs
        self.sharing: list[Sharing] = []  # instead of nodes, where each row is one query after a prompt
        self.added: Pair | None = None  # keys and values of the sequences themselves

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        self.added = key_states, value_states
        if self.apart or not self.nodes:
            return self.added
        rows = len(key_states) // len(self.nodes)
        return tuple(
            torch.cat([torch.cat([lent.expand(rows, *lent.shape[1:]) for lent in of_nodes]), own], dim=-2)
            for of_nodes, own in zip(zip(*self.nodes, strict=True), self.added, strict=True)
        )

    @contextlib.contextmanager
    def attending(self, config) -> Iterator[None]:
        """During a forward pass of layers with this configuration, attention is `attend_apart` where that is asked."""
        global _lent
        if not self.apart:
            yield
            return
        config, before = text_config(config), _lent
        implementation = config._attn_implementation
        config._attn_implementation, _lent = ATTEND_APART, self
        try:
            yield
        finally:
            config._attn_implementation, _lent = implementation, before


ATTEND_APART = "beginning_apart"
QUERIES = 512  # in one product, for a head of keys: their scores stay in the processor's cache
FEW = 32  # queries of a sequence, likewise, up to which many sequences are computed in one product
_lent: Lent | None = None


def attend_apart(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """Attention [B, T, heads, head width] over a lent beginning and over a sequence's own keys.

    `attention_mask`, true where a key is seen, is over a sequence's own keys; None is causal.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention of this kind is not computed apart")
    (rows, heads, length, width), few = query.shape, key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # heads that share keys stand next to each other: they are more queries of one head
    query = (query * scale).view(rows, few, heads // few, length, width)
    if _lent.sharing:
        return _of_lanes(query, key, value, _lent.sharing).view(rows, heads, length, width).transpose(1, 2), None
    causal = attention_mask is None
    if causal:
        own = key.shape[2]
        attention_mask = torch.ones(length, own, dtype=torch.bool, device=query.device).tril().expand(rows, 1, -1, -1)
    hidden, nodes = ~attention_mask, _lent.nodes
    queries = heads // few * length  # of one sequence, for a head of keys
    if queries > FEW:
        of_nodes = zip(*(tensor.chunk(len(nodes)) for tensor in (query, key, value, hidden)), nodes, strict=True)
        found = [_one_by_one(*parts, causal) for parts in of_nodes]
    else:
        parts = zip(*(tensor.chunk(len(nodes)) for tensor in (query, key, value, hidden)), strict=True)
        found = [
            _all_in_one(*some, node)
            for node, part in zip(nodes, parts, strict=True)
            for some in zip(*(tensor.split(QUERIES // queries) for tensor in part), strict=True)
        ]
    return torch.cat(found).view(rows, heads, length, width).transpose(1, 2), None


def _one_by_one(query, key, value, hidden, lent: Pair, causal: bool):
    """One sequence after another, its keys put behind those of the beginning."""
    rows, few, group, length, width = query.shape
    shared, found, at_once = lent[0].shape[2], torch.empty_like(query), max(1, QUERIES // group)
    keys, values = (torch.cat([of_beginning[0], own[0]], dim=1) for of_beginning, own in zip(lent, (key, value)))
    for row in range(rows):
        keys[:, shared:], values[:, shared:] = key[row], value[row]
        for first in range(0, length, at_once):
            some = slice(first, first + at_once)
            seen = shared + min(first + at_once, length) if causal else keys.shape[1]  # what follows is all hidden
            queries = query[row, :, :, some].reshape(few, -1, width)
            scores = product(queries, keys[:, :seen].transpose(1, 2)).view(few, group, -1, seen)
            scores[..., shared:].masked_fill_(hidden[row, :, some, : seen - shared], -torch.inf)
            weights = scores.softmax(dim=-1).view(few, -1, seen)
            found[row, :, :, some] = product(weights, values[:, :seen]).view(few, group, -1, width)
    return found


def _all_in_one(query, key, value, hidden, lent: Pair):
    """The queries of all sequences of a node in one product with its beginning."""
    rows, few, group, length, width = query.shape
    shared, hidden = lent[0].shape[2], hidden.repeat(1, 1, group, 1)
    query = query.reshape(rows, few, -1, width)
    together = query.transpose(0, 1).reshape(few, -1, width)
    before = product(together, lent[0][0].transpose(1, 2)).view(few, rows, group * length, shared)
    own = product(query, key.transpose(2, 3)).masked_fill_(hidden, -torch.inf).transpose(0, 1)
    weights = torch.cat([before, own], dim=-1).softmax(dim=-1)
    found = product(weights[..., shared:].transpose(0, 1), value)
    of_shared = product(weights[..., :shared].reshape(few, -1, shared), lent[1][0])
    found += of_shared.view(few, rows, -1, width).transpose(0, 1)
    return found


@dataclass
class Sharing:
    """Rows of a pass, of one query each, that have a node in common: what all of them see before their own tokens."""

    rows: torch.Tensor  # [R], which of the pass
    prompt: torch.Tensor  # [R], whose prompt each of them goes on, of B ...
    place: torch.Tensor  # [R], ... and which it is of those that go on with the same one
    prompts: Pair  # [B, heads, T, head width]
    padding: torch.Tensor  # [B, 1, 1, T], true where a prompt is shorter
    beginning: Pair | None = None  # [1, heads, P, head width], before all prompts


def _of_lanes(query, key, value, shared: list[Sharing]):
    """Each row over its own keys, its prompt's, which are read once for all that go on with it, and the beginning's.

    Three softmaxes become one by the logarithms of what their weights sum up to.
    """
    query = query.squeeze(3)  # [rows, heads of keys, group, head width]
    parts = [_attended(query, key, value)]
    of_prompts, of_beginnings = ([torch.empty_like(part) for part in parts[0]] for _ in range(2))
    for one in shared:
        some = query[one.rows]
        count, few, group, width = some.shape
        prompts, together = len(one.padding), int(one.place.max()) + 1
        asked = some.new_zeros(prompts, together, few, group, width)
        asked[one.prompt, one.place] = some
        found = _attended(asked.transpose(1, 2).reshape(prompts, few, -1, width), *one.prompts, one.padding)
        for all_rows, part in zip(of_prompts, found, strict=True):
            part = part.view(prompts, few, together, group, -1).transpose(1, 2)
            all_rows[one.rows] = part[one.prompt, one.place]
        if one.beginning:
            found = _attended(some.transpose(0, 1).reshape(few, -1, width), *(kept[0] for kept in one.beginning))
            for all_rows, part in zip(of_beginnings, found, strict=True):
                all_rows[one.rows] = part.view(few, count, group, -1).transpose(0, 1)
    parts += [of_prompts, *([of_beginnings] if shared[0].beginning else [])]
    weights = torch.stack([logarithm for _, logarithm in parts]).softmax(dim=0)
    return sum(weight * part for weight, (part, _) in zip(weights, parts, strict=True)).to(query.dtype).unsqueeze(3)


def _attended(query, key, value, padding=None):
    """[..., Q, head width] values by weights that sum up to 1, and of what these were the logarithm of the sum."""
    scores = product(query, key.transpose(-2, -1)).float()
    if padding is not None:
        # finite, since a prompt may have no token before its last
        scores.masked_fill_(padding, torch.finfo(scores.dtype).min)
    most = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return product(weights.to(value.dtype), value).float().div_(total), total.log_().add_(most)


AttentionInterface.register(ATTEND_APART, attend_apart)
