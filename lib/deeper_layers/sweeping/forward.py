"""One batch on its way through the tree, from the embedding to what enters the final norm, layer by layer.

Letters in shapes: B sequences of a batch, T tokens, S scored positions of a sequence, N of a batch, C cuts, D width.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from deeper_layers.cuts import WHOLE
from deeper_layers.models.network import Call, Handed, Network
from deeper_layers.models.sublayers import only
from deeper_layers.sweeping.last_layer import collect_keys, run_scored
from deeper_layers.sweeping.masks import attention_masks
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.prefix_cache import Pair, Prefix, PrefixCache
from deeper_layers.sweeping.tree import Node, Tree


@dataclass
class Batch:
    """Sequences as tensors, padded on the right: no mask is needed, as no scored token sees what follows it."""

    ids: torch.Tensor  # [B, T]
    tokens: int  # of these, without the padding
    rows: torch.Tensor  # [N], the scored positions: which sequence ...
    slots: torch.Tensor  # [N], ... which of its scored positions ...
    places: torch.Tensor  # [B, S], ... and where these lie; filled up with 0
    depths: torch.Tensor | None = None  # [B, T], places in a sequence, where sequences have branches
    visible: torch.Tensor | None = None  # [B, T, T], whether a token (second) sees another (third), likewise

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], prefix: int, device) -> "Batch":
        """The batch of sequences, without the `prefix` tokens at their beginning."""
        ids = _padded([s.tokens[prefix:] for s in sequences], device)
        places = (_padded([s.scored for s in sequences], device) - prefix).clamp(min=0)
        scored = [(row, slot) for row, s in enumerate(sequences) for slot in range(len(s.scored))]
        rows, slots = torch.tensor(scored, device=device).unbind(dim=1)
        batch = cls(ids, sum(len(s.tokens) - prefix for s in sequences), rows, slots, places)
        if any(s.branches for s in sequences):
            batch.depths, branches = _padded([s.depths[prefix:] for s in sequences], device).unbind(dim=2)
            own, seen = branches[:, :, None], branches[:, None, :]
            batch.visible = torch.ones_like(own == seen).tril() & ((seen == 0) | (seen == own))
        return batch

    @classmethod
    def of_tokens(cls, ids: torch.Tensor) -> "Batch":
        """Tokens [B, T] of which nothing is scored."""
        nothing = torch.empty(0, dtype=torch.long, device=ids.device)
        return cls(ids, ids.numel(), nothing, nothing, ids[:, :0])


def _padded(rows: list, device) -> torch.Tensor:
    """Numbers of each row, filled up with zeros to the longest."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)


class Forward:
    """A batch and the residuals of the tree that live; `step` takes them through one layer.

    Attributes:
        states: [..., C, N, D], what goes to the head, once all layers have run.
        kept: with `keep`, keys and values of the batch, by the residual that leaves a node; then there are no states.
    """

    def __init__(
        self,
        network: Network,
        tree: Tree,
        batch: Batch,
        prefix: Prefix | None = None,
        *,
        scored_only: bool = False,
        keep: bool = False,
    ):
        self.network, self.tree, self.batch, self.prefix = network, tree, batch, prefix
        self.scored_only, self.keep = scored_only, keep
        self.cache = PrefixCache(prefix.length if prefix else 0)
        self.kept: dict[int, Pair] = {}
        handed = self._handed()
        self.calls: list[Call] | None = handed.calls
        self.residuals = {0: handed.residual}
        *streams, _, _, width = handed.residual.shape  # some families hand on several residuals
        self.states = handed.residual.new_empty(*streams, len(tree.cuts), len(batch.rows), width)

    def _handed(self) -> Handed:
        """What the layers are handed for the batch."""
        batch, network, past = self.batch, self.network, self.cache.length
        options: dict = {"use_cache": True, network.cache_argument: self.cache} if past or self.keep else {}
        if batch.visible is not None:
            positions = batch.depths
            before = torch.arange(past, device=positions.device).expand(len(positions), past)
            keys = torch.cat([before, positions], dim=1)
            visible = torch.nn.functional.pad(batch.visible, (past, 0), value=True)
            options["position_ids"] = positions
            options["attention_mask"] = attention_masks(network.model.config, positions, keys, visible, network.dtype)
        return network.handed(batch.ids, **options)

    def step(self, layer: int, progress: Callable[[float], object] = lambda steps: None) -> None:
        """Run all nodes of a layer; `progress` is told of the layer-steps."""
        self.calls = self.calls or self._handed().calls
        for node in self.tree.levels[layer]:
            self._run(node, self.calls[layer])
            progress(self.batch.tokens)
        for number in self.tree.done[layer]:
            self.residuals.pop(number, None)

    def _run(self, node: Node, call: Call) -> None:
        batch, module, place = self.batch, self.network.layers[node.layer], self.network.places[node.layer]
        self.cache.added, self.cache.prefix = None, self.prefix.kept.get(node.leaves) if self.prefix else None
        residual = self.residuals[node.enters].to(place)
        scored_only = self.scored_only and node.ends and node.part == WHOLE
        rows, slots = batch.rows.to(place), batch.slots.to(place)
        if not scored_only:
            slots = batch.places.to(place)[rows, slots]
        with running(module, node.part):
            if not scored_only:
                left = call(module, residual)
            elif self.keep:
                collect_keys(module, call, residual)
                left = residual  # which nobody reads
            else:
                left = run_scored(module, call, residual, batch.places)
        if self.keep:
            if self.cache.added is not None:  # a layer may keep none
                self.kept[node.leaves] = self.cache.added
        else:
            for number in (number for number, last in enumerate(self.tree.last) if last == node.leaves):
                self.states[..., number, :, :] = left[..., rows, slots, :].to(self.states.device)
        if not node.ends:
            self.residuals[node.leaves] = left

    def through(self, progress: Callable[[float], object] = lambda steps: None) -> "Forward":
        """All layers, one after another."""
        for layer in self.network.in_turn([layer for layer, level in enumerate(self.tree.levels) if level]):
            self.step(layer, progress)
        return self


def begin_prefix(network: Network, tree: Tree, ids: torch.Tensor, before: Prefix | None = None, **how):
    """Tokens [B, T] about to go through the tree, and their keys and values at every node, which that fills in."""
    forward = Forward(network, tree, Batch.of_tokens(ids), before, keep=True, **how)
    return forward, Prefix(ids.shape[1], forward.kept)


def running(module, part: str) -> contextlib.AbstractContextManager:
    """While it lasts, a layer runs its attention or its MLP alone, or all of it."""
    return contextlib.nullcontext() if part == WHOLE else only(module, part)
