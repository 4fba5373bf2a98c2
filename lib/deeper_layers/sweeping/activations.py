"""How many bytes layers and the head make while they run, found out by running a few tokens and counting.

Letters in shapes: B sequences, T tokens.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deeper_layers.cuts import Cut
from deeper_layers.models.decoder import kinds_of_layers
from deeper_layers.models.network import Network
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.scored_only import ScoredOnly
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.walk import Batch, Walk

LENGTHS = (17, 34, 68)  # tokens of the tries: of no length at which layers that take so many at once would be full
ROWS = 16  # of logits


class Counting(TorchDispatchMode):
    """Most bytes of tensors that lived at once, of those that were made while it lasts."""

    most = held = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        given = {id(storage) for storage in _storages((arguments, named))}
        made = function(*arguments, **(named or {}))
        for storage in _storages(made):
            if id(storage) not in given:
                self.held += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.held)
        return made

    def _gone(self, size: int) -> None:
        self.held -= size


def _storages(values) -> list[torch.UntypedStorage]:
    found = [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    return list({id(storage): storage for storage in found}.values())


@dataclass(frozen=True)
class Activations:
    """Bytes that are there at most while a layer runs, its residuals among them, and while the head does."""

    residual: float = 0.0  # of a token, between two layers
    row: float = 0.0  # while a layer runs: of each sequence ...
    token: float = 0.0  # ... of each token besides ...
    key: float = 0.0  # ... of each token for each key besides ...
    branched: float = 0.0  # ... and the same where sequences have branches, and masks with them
    position: float = 0.0  # of logits at a scored position

    @classmethod
    def of(cls, network: Network, way: ScoredOnly | None, branch: bool) -> "Activations":
        """What the layers of every kind make in the tree."""
        layers = len(network.layers)
        kept = {*kinds_of_layers(network.model), layers - 1}
        tree = Tree([Cut.of([layer for layer in range(layers) if layer not in kept])], layers)

        def walked(tokens: int, branched: bool = False) -> int:
            nonlocal walk
            with Counting() as counted:
                walk = Walk(network, tree, _batch(network, tokens, branched), scored_only=way).through()
            return counted.most

        longest, walk = LENGTHS[-1], Walk(network, tree, _batch(network, 1))
        residual = float(walk.residuals[0].nbytes)
        row, token, key = _fitted(walked)
        masks = (walked(longest, True) - row - token * longest) / longest**2 if branch else key
        with Counting() as of_head:
            network.logits(walk.states[tree.last[0]][..., :1, :].repeat_interleave(ROWS, dim=-2))
        return cls(residual, row, token, key, max(key, masks), of_head.most / ROWS)

    @classmethod
    def alone(cls, network: Network, run: Callable[[Batch], object]) -> "Activations":
        """What a pass of the whole model with its logits makes."""

        def passed(tokens: int, scored: int = 1) -> int:
            with Counting() as counted:
                run(_batch(network, tokens, scored=scored))
            return counted.most

        least, *_, most = LENGTHS
        row, token, key = _fitted(passed)
        return cls(0.0, row, token, key, key, max(0, passed(most, least) - passed(most)) / (least - 1))


def _fitted(taken: Callable[[int], int]) -> tuple[float, float, float]:
    """c, a and b of c + a * T + b * T * T: what T tokens take, or a little less."""
    first, second, third = found = [taken(tokens) for tokens in LENGTHS]
    short, middle, long = LENGTHS
    slopes = (second - first) / (middle - short), (third - second) / (long - middle)
    b = max(0.0, (slopes[1] - slopes[0]) / (long - short))
    a = max(0.0, slopes[1] - b * (long + middle))
    return max(0.0, *(bytes_ - a * t - b * t * t for bytes_, t in zip(found, LENGTHS, strict=True))), a, b


def _batch(network: Network, tokens: int, branched: bool = False, scored: int = 1) -> Batch:
    """One sequence [1, T] of `scored` positions; or with branches."""
    some = [(7919 * i + 13) % network.head.weight.shape[0] for i in range(tokens + 1)]
    context, scores = some[: tokens + 1 - scored], some[tokens + 1 - scored :]
    requests = [(0, scores)]
    if branched:
        context, requests = some[: tokens - 8], [(0, some[-9:-4]), (1, some[-4:] + some[:1])]
    return Batch.of((Sequence.joined(context, requests),), 0, network.device)
