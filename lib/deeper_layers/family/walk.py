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
from deeper_layers.family.lending import Lent, Pair
from deeper_layers.family.masks import attention_masks, sees_all
from deeper_layers.family.network import Handed, Network
from deeper_layers.family.planning import STACK_TOKENS, Sequence
from deeper_layers.family.scored_only import ScoredOnly
from deeper_layers.family.tree import Node, Tree
from deeper_layers.models.sublayers import only


@dataclass
class Batch:
    """Sequences as tensors, padded on the right: no mask is needed, as no scored token sees what follows it."""

    ids: torch.Tensor  # [B, T]
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
        batch = cls(ids.to(device), rows, slots, places.to(device))
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
        return residual[..., self.rows, self.places[self.rows, self.slots], :]


@dataclass
class Beginning:
    """Keys and values of tokens that many sequences begin with, by the residual that leaves a node."""

    length: int
    kept: dict[int, Pair]


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
    ):
        self.network, self.tree, self.batch, self.way = network, tree, batch, scored_only
        self.beginning = beginning
        past = beginning.length if beginning else 0
        # its products are cut for a processor's cache
        apart = apart and network.device.type == "cpu" and batch.visible is None
        apart = apart and sees_all(network.model.config, past + batch.ids.shape[1])
        self.cache = Lent(past, apart and past > 0)
        self.at_once = max(1, STACK_TOKENS // batch.ids.numel())
        self.known: dict[int, Handed] = {}
        self.residuals = {0: self.handed(1).residual}
        self.states: dict[int, torch.Tensor] = {}  # [..., N, D] of what goes to the head

    def handed(self, nodes: int) -> Handed:
        """What layers are handed where so many nodes are stacked."""
        if nodes not in self.known:
            with self.cache.attending(self.network.model.config):
                self.known[nodes] = self.network.handed(self.batch.ids.repeat(nodes, 1), **self._options(nodes))
        return self.known[nodes]

    def _options(self, nodes: int) -> dict:
        batch, past = self.batch, self.cache.length
        options: dict = {"use_cache": True, self.network.cache_argument: self.cache} if past else {}
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
        module = self.network.layers[layer]
        with self.cache.attending(self.network.model.config):
            for group in stacks(self.tree.levels[layer], self.at_once):
                self._run(module, group)
                done(self.batch.ids.numel() * len(group))
        last = set(self.tree.last)
        for node in self.tree.levels[layer]:
            if node.leaves in last and node.leaves not in self.states:
                self.states[node.leaves] = self.batch.scored(self.residuals[node.leaves])
        for number in self.tree.done[layer]:
            self.residuals.pop(number, None)

    def _run(self, module, group: list[Node]) -> None:
        first, nodes = group[0], len(group)
        call = self.handed(nodes).calls[first.layer]
        residual = self.residuals[first.enters]
        if nodes > 1:
            residual = torch.cat([self.residuals[node.enters] for node in group], dim=-3)
        if self.beginning:
            self.cache.nodes = [self.beginning.kept[node.leaves] for node in group if node.leaves in self.beginning.kept]
        way = self.way if first.ends and first.part == WHOLE else None
        with only(module, first.part) if first.part != WHOLE else contextlib.nullcontext():
            if way:
                found = way.run(module, call, residual, self.batch.places.repeat(nodes, 1))
            else:
                found = call(module, residual)
        for node, left in zip(group, found.chunk(nodes, dim=-3), strict=True):
            if way:
                self.states[node.leaves] = left[self.batch.rows, self.batch.slots]
            else:
                self.residuals[node.leaves] = left


def remember(network: Network, tree: Tree, tokens: tuple[int, ...], way: ScoredOnly | None) -> Beginning:
    """Keys and values of a beginning [P], at every node; the last layers of paths give nothing else."""
    kept: dict[int, Pair] = {}
    cache = Lent(0)
    handed = network.handed(
        torch.tensor([tokens], device=network.device), use_cache=True, **{network.cache_argument: cache}
    )
    residuals = {0: handed.residual}
    for layer, level in enumerate(tree.levels):
        module, call = network.layers[layer], handed.calls[layer]
        for node in level:
            cache.added = None
            with only(module, node.part) if node.part != WHOLE else contextlib.nullcontext():
                if way and node.ends and node.part == WHOLE:
                    kept[node.leaves] = way.remembered(module, call, residuals[node.enters])
                    continue
                residuals[node.leaves] = call(module, residuals[node.enters])
            if cache.added is not None:
                kept[node.leaves] = cache.added
        for number in tree.done[layer]:
            residuals.pop(number, None)
    return Beginning(len(tokens), kept)


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
