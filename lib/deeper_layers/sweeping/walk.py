"""One batch on its way through the tree, from the embedding to what enters the final norm, layer by layer.

All nodes of a layer run together, as many as are good for a product: their residuals are stacked along the batch.

Letters in shapes: B sequences of a batch, T tokens, S scored positions of a sequence, N of a batch, P tokens of the
shared beginning, D width.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from deeper_layers.cuts import WHOLE
from deeper_layers.models.network import Call, Handed, Network
from deeper_layers.models.sublayers import only
from deeper_layers.sweeping.lending import Lent, Pair
from deeper_layers.sweeping.masks import attention_masks, sees_all
from deeper_layers.sweeping.planning import STACK_TOKENS, Sequence
from deeper_layers.sweeping.scored_only import ScoredOnly
from deeper_layers.sweeping.tree import Node, Tree


@dataclass
class Batch:
    """Sequences as tensors, padded on the right: no mask is needed, as no scored token sees what follows it."""

    ids: torch.Tensor  # [B, T]
    tokens: int  # of these, without the padding
    rows: torch.Tensor  # [N], the scored positions: which sequence ...
    slots: torch.Tensor  # [N], ... which of its scored positions ...
    places: torch.Tensor  # [B, S], ... and where these lie; filled up with 0
    depths: torch.Tensor | None = None  # [B, T], distance from the beginning, where sequences have branches
    visible: torch.Tensor | None = None  # [B, T, T], whether a token (second) sees another (third), likewise

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], shared: int, device) -> "Batch":
        """The batch of sequences, without the `shared` tokens at their beginning."""
        width = max(len(s.tokens) for s in sequences) - shared
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        places = torch.zeros(len(sequences), max(len(s.scored) for s in sequences), dtype=torch.long)
        rows, slots = [], []
        for i, s in enumerate(sequences):
            ids[i, : len(s.tokens) - shared] = torch.tensor(s.tokens[shared:])
            places[i, : len(s.scored)] = torch.tensor(s.scored) - shared
            rows += [i] * len(s.scored)
            slots += range(len(s.scored))
        rows, slots = (torch.tensor(numbers, device=device) for numbers in (rows, slots))
        tokens = sum(len(s.tokens) - shared for s in sequences)
        batch = cls(ids.to(device), tokens, rows, slots, places.to(device))
        if any(s.branches for s in sequences):
            depths = torch.zeros_like(ids)
            visible = torch.eye(width, dtype=torch.bool).repeat(len(sequences), 1, 1)
            for i, s in enumerate(sequences):
                length = len(s.tokens) - shared
                depths[i, :length] = torch.tensor(s.depths[shared:]) - shared
                visible[i, :length, :length] = s.visible[shared:, shared:]
            batch.depths, batch.visible = depths.to(device), visible.to(device)
        return batch

    def scored(self, residual: torch.Tensor) -> torch.Tensor:
        """[..., N, D] of a residual [..., B, T, D]."""
        rows, places = self.rows, self.places[self.rows, self.slots]
        return residual[..., rows.to(residual.device), places.to(residual.device), :]


@dataclass
class Beginning:
    """Keys and values of tokens that many sequences begin with, by the residual that leaves a node."""

    length: int
    kept: dict[int, Pair]  # [1, heads, P, head width]


class Walk:
    """A batch and the residuals of the tree that live; `step` takes them through one layer."""

    def __init__(
        self,
        network: Network,
        tree: Tree,
        batch: Batch,
        beginning: Beginning | None = None,
        *,
        scored_only: ScoredOnly | None = None,
        apart: bool = False,
        kept: dict[int, Pair] | None = None,
    ):
        self.network, self.tree, self.batch, self.way = network, tree, batch, scored_only
        self.beginning, self.kept = beginning, kept
        past = beginning.length if beginning else 0
        # its products are cut for a processor's cache
        apart = apart and network.device.type == "cpu" and batch.visible is None
        apart = apart and sees_all(network.model.config, past + batch.ids.shape[1])
        self.cache = Lent(past, apart and past > 0)
        self.at_once = max(1, STACK_TOKENS // batch.ids.numel())
        self.known: dict[int, list[Call]] = {}
        self.residuals = {0: self._handed(1).residual}
        self.states: dict[int, torch.Tensor] = {}  # [..., N, D] of what goes to the head

    def _handed(self, nodes: int) -> Handed:
        """What layers are handed where so many nodes are stacked."""
        with self.cache.attending(self.network.model.config):
            found = self.network.handed(self.batch.ids.repeat(nodes, 1), **self._options(nodes))
        self.known[nodes] = found.calls
        return found

    def _options(self, nodes: int) -> dict:
        batch, past = self.batch, self.cache.length
        cached = past or self.kept is not None
        options: dict = {"use_cache": True, self.network.cache_argument: self.cache} if cached else {}
        if batch.visible is not None:
            positions = batch.depths + past
            before = torch.arange(past, device=positions.device).expand(len(positions), past)
            seen = torch.ones(*batch.ids.shape, past, dtype=torch.bool, device=positions.device)
            keys, visible = torch.cat([before, positions], dim=1), torch.cat([seen, batch.visible], dim=2)
            positions, keys, visible = (t.repeat(nodes, *[1] * (t.ndim - 1)) for t in (positions, keys, visible))
            options["position_ids"] = positions
            config, dtype = self.network.model.config, self.network.dtype
            options["attention_mask"] = attention_masks(config, positions, keys, visible, dtype)
        return options

    def step(self, layer: int, done: Callable[[float], object] = lambda steps: None) -> None:
        """Run all nodes of a layer; `done` is told of the layer-steps."""
        module, level = self.network.layers[layer], self.tree.levels[layer]
        with self.cache.attending(self.network.model.config):
            for group in stacks(level, self.at_once):
                self._run(module, group)
                done(self.batch.tokens * len(group))
        for number in self.tree.done[layer]:
            self.residuals.pop(number, None)

    def _run(self, module, group: list[Node]) -> None:
        first, nodes, kept = group[0], len(group), self.kept
        self.cache.added = None
        calls = self.known[nodes] if nodes in self.known else self._handed(nodes).calls
        call, place = calls[first.layer], self.network.places[first.layer]
        residuals = [self.residuals[node.enters].to(place) for node in group]
        residual = torch.cat(residuals, dim=-3) if nodes > 1 else residuals[0]
        if self.beginning:
            lent = self.beginning.kept
            self.cache.nodes = [lent[node.leaves] for node in group if node.leaves in lent]
        way = self.way if first.ends and first.part == WHOLE else None
        with only(module, first.part) if first.part != WHOLE else contextlib.nullcontext():
            if way and kept is not None:
                way.remembered(module, call, residual)
                found = residual  # which nobody reads
            elif way:
                found = way.run(module, call, residual, self.batch.places.repeat(nodes, 1))
            else:
                found = call(module, residual)
        if kept is not None and self.cache.added is not None:
            for node, *pair in zip(group, *(tensor.chunk(nodes) for tensor in self.cache.added), strict=True):
                kept[node.leaves] = tuple(pair)
        for node, left in zip(group, found.chunk(nodes, dim=-3), strict=True):
            if kept is None and node.leaves in self.tree.last:
                scored = left[self.batch.rows.to(place), self.batch.slots.to(place)] if way else self.batch.scored(left)
                self.states[node.leaves] = scored.to(self.network.device)
            if not node.ends:
                # a view of the stack would keep all of it
                lasts = nodes > 1 and self.tree.until[node.leaves] > node.layer + 1
                self.residuals[node.leaves] = left.clone() if lasts else left

    def through(self, done: Callable[[float], object] = lambda steps: None) -> "Walk":
        """All layers, one after another."""
        for layer in self.network.in_turn([layer for layer, level in enumerate(self.tree.levels) if level]):
            self.step(layer, done)
        return self


def remembering(
    network: Network, tree: Tree, tokens: torch.Tensor, before: Beginning | None = None, **how
) -> tuple[Walk, Beginning]:
    """Tokens [B, T] about to go through the tree, and their keys and values at every node, which that fills in."""
    nothing = torch.empty(0, dtype=torch.long, device=tokens.device)
    walk = Walk(network, tree, Batch(tokens, tokens.numel(), nothing, nothing, tokens[:, :0]), before, kept={}, **how)
    return walk, Beginning(tokens.shape[1], walk.kept)


def stacks(level: list[Node], at_once: int) -> Iterator[list[Node]]:
    """Nodes that run in one product: of one kind, as many as a power of two, so that few sizes occur."""
    kinds: dict[tuple, list[Node]] = {}
    for node in level:
        kinds.setdefault((node.part, node.ends), []).append(node)
    for nodes in kinds.values():
        while nodes:
            size = 1 << (min(at_once, len(nodes)).bit_length() - 1)
            yield nodes[:size]
            nodes = nodes[size:]
