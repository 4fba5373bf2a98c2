"""One batch on its way through the tree, from the embedding to what enters the final norm, layer by layer.

Letters in shapes: B sequences of a batch, T tokens, S scored positions of a sequence, N of a batch, C cuts, D width.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from deeper_layers.cuts import WHOLE
from deeper_layers.models.network import Call, Handed, Network
from deeper_layers.models.sublayers import only
from deeper_layers.sweeping.last_layer import run_scored
from deeper_layers.sweeping.masks import attention_masks
from deeper_layers.sweeping.planning import HEAD_ELEMENTS, Sequence
from deeper_layers.sweeping.prefix_cache import PrefixCache
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
        batch = cls.of_tokens([s.tokens[prefix:] for s in sequences], device)
        batch.places = (_padded([s.scored for s in sequences], device) - prefix).clamp(min=0)
        scored = [(row, slot) for row, s in enumerate(sequences) for slot in range(len(s.scored))]
        batch.rows, batch.slots = torch.tensor(scored, device=device).unbind(dim=1)
        if any(s.branches for s in sequences):
            batch.depths, branches = _padded([s.depths[prefix:] for s in sequences], device).unbind(dim=2)
            own, seen = branches[:, :, None], branches[:, None, :]
            batch.visible = torch.ones_like(own == seen).tril() & ((seen == 0) | (seen == own))
        return batch

    @classmethod
    def of_tokens(cls, rows: list, device) -> "Batch":
        """Rows of tokens of which nothing is scored."""
        ids, nothing = _padded(rows, device), torch.empty(0, dtype=torch.long, device=device)
        return cls(ids, sum(map(len, rows)), nothing, nothing, ids[:, :0])


def _padded(rows: list, device) -> torch.Tensor:
    """Numbers of each row, filled up with zeros to the longest."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)


class Forward:
    """A batch and the residuals of the tree that live; `step` takes them through one layer.

    Attributes:
        states: [..., C, N, D], what goes to the head, once all layers have run.
        cache: keys and values of the batch, where it `keeps` them: it can be the prefix of others.
    """

    def __init__(
        self,
        network: Network,
        tree: Tree,
        batch: Batch,
        prefix: PrefixCache | None = None,
        *,
        scored_only: bool = False,
        keeps: bool = False,
    ):
        self.network, self.tree, self.batch, self.scored_only = network, tree, batch, scored_only
        self.cache = PrefixCache(prefix, batch.ids.shape[1], keeps)
        handed = self._handed()
        self.calls: list[Call] | None = handed.calls
        self.residuals = {0: handed.residual}
        *streams, _, _, width = handed.residual.shape  # some families hand on several residuals
        self.states = handed.residual.new_empty(*streams, len(tree.cuts), len(batch.rows), width)

    def _handed(self) -> Handed:
        """What the layers are handed for the batch."""
        batch, network, past = self.batch, self.network, self.cache.get_seq_length()
        options: dict = {"use_cache": True, network.cache_argument: self.cache} if past or self.cache.keeps else {}
        if batch.visible is not None:
            positions = batch.depths
            before = torch.arange(past, device=positions.device).expand(len(positions), past)
            keys = torch.cat([before, positions], dim=1)
            visible = torch.nn.functional.pad(batch.visible, (past, 0), value=True)
            options["position_ids"] = positions
            options["attention_mask"] = attention_masks(network.model.config, positions, keys, visible, network.dtype)
        return network.handed(batch.ids, **options)

    def step(self, layer: int) -> None:
        """Run all nodes of a layer."""
        self.calls = self.calls or self._handed().calls
        for node in self.tree.levels[layer]:
            left = self._run(node, self.calls[layer])
            if not node.ends:
                self.residuals[node.leaves] = left
        for number in self.tree.done[layer]:
            del self.residuals[number]

    def _run(self, node: Node, call: Call) -> torch.Tensor:
        """The residual that leaves a node, or of a last layer what is scored of it."""
        batch, module, place = self.batch, self.network.layers[node.layer], self.network.places[node.layer]
        self.cache.node = node.leaves
        residual = self.residuals[node.enters].to(place)
        rows, slots = batch.rows.to(place), batch.slots.to(place)
        with running(module, node.part):
            if self.scored_only and node.ends and node.part == WHOLE:
                left = run_scored(module, call, residual, batch.places)
            else:
                left, slots = call(module, residual), batch.places.to(place)[rows, slots]
        for number in node.last_of:
            self.states[..., number, :, :] = left[..., rows, slots, :].to(self.states.device)
        return left


def run_layers(
    forwards: list[Forward], progress: Callable[[float], object] = lambda steps: None, *, forget: bool = False
) -> None:
    """Take batches through the layers of their tree, one layer after another; `progress` is told of the layer-steps.

    `forget`: what layers are handed, and keys and values, are not kept from one layer to the next, as where many
    batches go through layers that are on disk. They are learnt again in less time than a layer takes.
    """
    network, levels = forwards[0].network, forwards[0].tree.levels
    for layer in network.in_turn([layer for layer, level in enumerate(levels) if level]):
        for forward in forwards:
            forward.step(layer)
            progress(forward.batch.tokens * len(levels[layer]))
        for forward in forwards if forget else ():
            forward.calls = None
            forward.cache.kept.clear()


def logits_in_parts(network: Network, states: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of the states [..., N, D] that leave last layers, for as many positions at once as memory is to hold."""
    return map(network.logits, states.split(max(1, HEAD_ELEMENTS // network.head.weight.shape[0]), dim=-2))


def running(module, part: str) -> contextlib.AbstractContextManager:
    """While it lasts, a layer runs its attention or its MLP alone, or all of it."""
    return contextlib.nullcontext() if part == WHOLE else only(module, part)
