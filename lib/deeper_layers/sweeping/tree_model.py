"""A model and the pruned models made of its layers, which answer requests together.

A batch walks through the tree of layers (tree.py) once: what pruned models share is run once (forward.py). Four savings
more, each tried on a few tokens first and left out where the result is not the plain one (trial.py):

- a prefix that many sequences share runs once for each node, and all read its keys and values (prefix_cache.py);
- the last layer gives keys and values everywhere, but queries, output and what follows only where something
  is scored (last_layer.py); so does the head;
- choices that follow one context are branches of one sequence: each sees the context and itself;
- layers that stay on disk are read once for as many batches as memory holds.

Where layers can't be run one by one, each pruned model runs by itself.

Letters in shapes: N scored positions of a batch, V vocabulary, C cuts, R requests, K tokens of their continuations.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float64

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.network import Network
from deeper_layers.models.streaming import is_streamed
from deeper_layers.sweeping.forward import Batch, Forward, begin_prefix
from deeper_layers.sweeping.memory import Estimate, run_in_halves, run_in_room
from deeper_layers.sweeping.planning import Piece, Sequence, logits_at_once
from deeper_layers.sweeping.prefix_cache import Prefix
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.trial import Abilities, run_alone

Answers = tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]  # log-probabilities, and whether they are greedy


class TreeModel:
    """A model and the pruned models made of its layers, ready to answer.

    Attributes:
        network: the whole model as a list of layers.
        tree: the nodes of all pruned models.
        can: which savings hold for the model.
        progress: is told of layer-steps as they are done.
    """

    def __init__(self, model, cuts: list[Cut], can: Abilities | None = None):
        self.network, self.cuts = Network(model), list(cuts)
        self.tree = Tree(cuts, num_layers(model))
        self.can = can or Abilities.of(model, self.cuts)
        self.is_streamed = is_streamed(model)
        self.progress: Callable[[float], object] = lambda steps: None
        self.device = self.network.device
        self._prefixes: dict[tuple[int, ...], Prefix] = {}

    def part(self, cuts: list[Cut]) -> "TreeModel":
        """That of some of the cuts."""
        if cuts == self.cuts:
            return self
        part = TreeModel(self.network.model, cuts, self.can)
        part.progress = self.progress
        return part

    def tree_of(self, cuts: list[Cut]) -> Tree:
        """The tree of some of the cuts."""
        return self.tree if cuts == self.cuts else Tree(cuts, self.tree.layers)

    def layer_steps(self, cuts: list[Cut]) -> int:
        """Layers that one token passes for some of the cuts: each node of their tree, or of each model all."""
        return self.tree_of(cuts).nodes if self.can.split else sum(self.tree.layers - cut.size for cut in cuts)

    @functools.cached_property
    def head_layers(self) -> float:
        """How many layers the head is worth, by the numbers of their parameters."""
        of_layers = self.network.model.base_model.num_parameters(exclude_embeddings=True)
        return self.network.head.weight.numel() * self.tree.layers / of_layers

    @functools.cached_property
    def estimate(self) -> Estimate:
        return Estimate(self.network)

    def estimate_bytes(self, cuts: list[Cut], pieces: list[Piece]) -> int:
        """Memory beside the weights, at most, when some of the cuts are run on pieces."""
        return self.estimate.scoring(self.tree_of(cuts if self.can.split else cuts[:1]), pieces, self.is_streamed)

    def answer(
        self, pieces: list[Piece], progress: Callable[[float], object] = lambda steps: None
    ) -> Iterator[Answers]:
        """The answers to the requests of each of some pieces, in its order.

        Where the layers are on disk, all pieces go through a layer together, so that it is read once. Where memory
        runs out, batches are halved, then the cuts. Raises InputError where even one sequence of one pruned model
        does not fit, and where layers that are on disk can't be run one by one.
        """
        if self.is_streamed and not self.can.split:
            raise InputError(
                f"the layers of {type(self.network.model).__name__} can't be run one by one, and so not from disk: use "
                "a machine whose memory holds the model"
            )
        self.progress = progress
        batches = [Piece(piece.prefix, (batch,)) for piece in pieces for batch in piece.batches]
        groups = [batches] if self.is_streamed and batches else [[batch] for batch in batches]
        found = itertools.chain.from_iterable(
            itertools.chain.from_iterable(run_in_halves(self._answer_batches, group)) for group in groups
        )
        for piece in pieces:
            yield _join(itertools.islice(found, len(piece.batches)))

    def forget(self) -> None:
        """Give the memory of the last prefix back."""
        self._prefixes = {}

    @torch.inference_mode()
    def _answer_batches(self, batches: list[Piece]) -> list[Answers]:
        """Answers to pieces of one batch each; a single one in halves of its sequences, then of the cuts."""
        if len(batches) > 1:
            return self._run(batches)
        prefix, (sequences,) = batches[0].prefix, batches[0].batches

        def of_cuts(cuts: list[Cut]) -> Answers:
            part = self.part(cuts)
            if part is not self:
                self.forget()
            return _join(run_in_halves(lambda some: part._run([Piece(prefix, (some,))])[0], sequences))

        return [_join(run_in_room(of_cuts, self.cuts, len(sequences[0].tokens)), axis=0)]

    def _run(self, batches: list[Piece]) -> list[Answers]:
        """Answers to pieces of one batch each, which go through every layer one after another."""
        if not self.can.split:
            return [self._run_alone(batch.batches[0]) for batch in batches]
        wanted = [prefix for prefix in dict.fromkeys(batch.prefix for batch in batches) if prefix]
        self._prefixes = {prefix: self._prefixes[prefix] for prefix in wanted if prefix in self._prefixes}
        prefixes, begun, forwards = dict(self._prefixes), [], []
        for prefix in wanted:
            if prefix not in prefixes:
                ids = torch.tensor([prefix], device=self.device)
                forward, prefixes[prefix] = begin_prefix(self.network, self.tree, ids, scored_only=self.can.score_only)
                begun.append(forward)
        for piece in batches:
            batch = Batch.of(piece.batches[0], len(piece.prefix), self.device)
            prefix = prefixes.get(piece.prefix)
            forwards.append(Forward(self.network, self.tree, batch, prefix, scored_only=self.can.score_only))
        for layer in self.network.in_turn([layer for layer, level in enumerate(self.tree.levels) if level]):
            for forward in [*begun, *forwards]:
                forward.step(layer, self.progress)
                if self.is_streamed:  # of many batches: learnt again in less time than a layer takes
                    forward.calls = None
            for of_layer in prefixes.values() if self.is_streamed else ():
                of_layer.kept.clear()  # no other layer needs it
        self._prefixes = {} if self.is_streamed else prefixes
        at_once = logits_at_once(self.network.head.weight.shape[0])
        return [
            _score(
                piece.batches[0],
                len(self.cuts),
                map(self.network.logits, forward.states.flatten(-3, -2).split(at_once, dim=-2)),
            )
            for piece, forward in zip(batches, forwards, strict=True)
        ]

    def _run_alone(self, sequences: tuple[Sequence, ...]) -> Answers:
        batch = Batch.of(sequences, 0, self.device)

        def logits() -> Iterator[torch.Tensor]:
            for cut in self.cuts:
                yield run_alone(self.network.model, cut, batch)
                self.progress(batch.tokens * (self.tree.layers - cut.size))

        return _score(sequences, len(self.cuts), logits())


def _score(sequences: tuple[Sequence, ...], cuts: int, logits: Iterable[torch.Tensor]) -> Answers:
    """Per cut and request the summed log-probability, and whether it is greedy, of all logits [C * N, V] in parts."""
    positions, wanted, lengths, scored = [], [], [], 0
    for s in sequences:
        row_of = {place: scored + i for i, place in enumerate(s.scored)}
        scored += len(row_of)
        for _, places, tokens in s.requests:
            positions += [row_of[place] for place in places]
            wanted += tokens
            lengths.append(len(tokens))
    rows = (torch.arange(cuts)[:, None] * scored + torch.tensor(positions)).flatten()  # [C * K]
    targets = torch.tensor(wanted).repeat(cuts)
    logprobs, greedy = torch.empty(len(rows), dtype=torch.float64), torch.empty(len(rows), dtype=torch.bool)
    first = 0
    for some in logits:
        here = (rows >= first) & (rows < first + len(some))
        row, target = (rows[here] - first).to(some.device), targets[here].to(some.device)
        logprobs[here] = torch.log_softmax(some, dim=-1, dtype=torch.float32)[row, target].double().cpu()
        greedy[here] = (some.argmax(dim=-1)[row] == target).cpu()
        first += len(some)
    starts = np.cumsum([0, *lengths[:-1]])
    by_token = logprobs.view(cuts, -1).numpy(), greedy.view(cuts, -1).numpy()
    return np.add.reduceat(by_token[0], starts, axis=1), np.logical_and.reduceat(by_token[1], starts, axis=1)


def _join(parts: Iterable[Answers], axis: int = 1) -> Answers:
    """Answers to requests one after another; or, along axis 0, of cuts."""
    logprobs, greedy = (np.concatenate(of_parts, axis) for of_parts in zip(*parts, strict=True))
    return logprobs, greedy
