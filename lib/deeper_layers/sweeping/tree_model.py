"""A model and the pruned models made of its layers, which answer requests together.

A batch walks through the tree of layers (tree.py) once: what pruned models share is run once (forward.py). Four savings
more, as far as a trial on a few tokens gives the plain result with them (trial.py):

- a prefix that many sequences share runs once for each node, and all read its keys and values (prefix_cache.py);
- the last layer gives keys and values everywhere, but queries, output and what follows only where something
  is scored (last_layer.py); so does the head;
- choices that follow one context are branches of one sequence: each sees the context and itself;
- layers that stay on disk are read once for as many batches as memory holds.

Where layers can't be run one by one, each pruned model runs by itself.

Letters in shapes: N scored positions of a batch, V vocabulary, C cuts, R requests, K tokens of their continuations.
"""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.network import Network
from deeper_layers.models.streaming import is_streamed
from deeper_layers.pruning import silence_sublayers
from deeper_layers.sweeping.forward import Batch, Forward, logits_in_parts, run_layers
from deeper_layers.sweeping.masks import takes_masks
from deeper_layers.sweeping.memory import Estimate, run_in_halves
from deeper_layers.sweeping.planning import BATCH_TOKENS, Piece, Requests, Sequence, plan_pieces
from deeper_layers.sweeping.prefix_cache import PrefixCache
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.trial import Sharing, shallow, trial_pieces

ANSWER = np.dtype([("logprob", np.float64), ("greedy", np.bool_)])  # nats, and whether it is what greedy decoding gives


class TreeModel:
    """A model and the pruned models made of its layers, ready to answer.

    Attributes:
        network: the whole model as a list of layers.
        cuts: the pruned models, each once.
        tree: the nodes of all pruned models.
        sharing: what holds for the model.
    """

    def __init__(self, model, cuts: list[Cut], sharing: Sharing | None = None):
        self.network, self.is_streamed = Network(model), is_streamed(model)
        self.sharing = try_sharing(model, cuts) if sharing is None else sharing
        self._take(cuts)

    def pieces(self, asked: Requests, batch_tokens: int = BATCH_TOKENS) -> list[Piece]:
        """Requests in batches, as far as they are arranged to share."""
        return plan_pieces(
            asked, batch_tokens, share=self.sharing >= Sharing.PREFIXES, branch=self.sharing == Sharing.MASKS
        )

    def _take(self, cuts: list[Cut]) -> None:
        self.cuts = list(dict.fromkeys(cuts))
        self.tree = Tree(self.cuts, num_layers(self.network.model))
        self._prefixes: dict[tuple[int, ...], PrefixCache] = {}

    def part(self, cuts: list[Cut]) -> "TreeModel":
        """That of some of the cuts."""
        part = copy.copy(self)
        part._take(cuts)
        return part

    def halves(self, pieces: list[Piece], memory: int) -> list["TreeModel"]:
        """Itself, or halves of its cuts, until memory holds what pieces need, or it is of one cut."""
        half = len(self.cuts) // 2
        if not half or self.estimate_bytes(pieces) <= memory:
            return [self]
        return [one for cuts in (self.cuts[:half], self.cuts[half:]) for one in self.part(cuts).halves(pieces, memory)]

    @property
    def layer_steps(self) -> int:
        """Layers that one token passes: each node of the tree, or of each model all."""
        return self.tree.nodes if self.sharing else sum(self.tree.layers - cut.size for cut in self.cuts)

    @functools.cached_property
    def estimate(self) -> Estimate:
        return Estimate(self.network)

    def estimate_bytes(self, pieces: list[Piece]) -> int:
        """Memory beside the weights, at most, when pieces are run."""
        tree = self.tree if self.sharing else Tree(self.cuts[:1], self.tree.layers)
        return self.estimate.scoring(tree, pieces, self.is_streamed)

    def answer(
        self, pieces: list[Piece], progress: Callable[[float], object] = lambda steps: None
    ) -> Iterator[np.ndarray]:
        """The answers to the requests of each of some pieces, in its order: [C, R] of ANSWER.

        Where the layers are on disk, all pieces go through a layer together, so that it is read once. Where memory
        runs out, batches are halved, then the cuts. `progress` is told of layer-steps as they are done.
        Raises InputError where even one sequence of one pruned model does not fit, and where layers that are on disk
        can't be run one by one.
        """
        if self.is_streamed and not self.sharing:
            raise InputError(
                f"the layers of {type(self.network.model).__name__} can't be run one by one, and so not from disk: use "
                "a machine whose memory holds the model"
            )
        run = functools.partial(self._run, progress=progress)
        for some in [pieces] if self.is_streamed and pieces else [[piece] for piece in pieces]:
            batches = [[(piece.prefix, batch, s) for s in batch] for piece in some for batch in piece.batches]
            together = [list(itertools.chain(*batches))] if self.is_streamed else batches
            found = np.concatenate([run_in_halves(run, sequences, self.cuts) for sequences in together], axis=1)
            yield from np.split(found, np.cumsum([len(piece.requests) for piece in some])[:-1], axis=1)

    @torch.inference_mode()
    def _run(self, sequences: list[tuple], cuts: list[Cut], progress: Callable[[float], object]) -> np.ndarray:
        """[C, R] of some of the cuts for sequences, each with its prefix and its batch, which go through a layer
        together."""
        if cuts != self.cuts:
            self._prefixes = {}
            return self.part(cuts)._run(sequences, cuts, progress)
        grouped = itertools.groupby(sequences, key=lambda one: one[:2])
        batches = [(prefix, tuple(s for *_, s in group)) for (prefix, _), group in grouped]
        if not self.sharing:
            return self._run_alone(batches[0][1], progress)
        run = functools.partial(Forward, self.network, self.tree, scored_only=self.sharing == Sharing.MASKS)
        wanted, device = {prefix for prefix, _ in batches if prefix}, self.network.device
        caches = {prefix: self._prefixes[prefix] for prefix in wanted & self._prefixes.keys()}
        begun = {prefix: run(Batch.of_tokens([prefix], device), keeps=True) for prefix in wanted - caches.keys()}
        caches |= {prefix: forward.cache for prefix, forward in begun.items()}
        forwards = [run(Batch.of(some, len(prefix), device), caches.get(prefix)) for prefix, some in batches]
        run_layers([*begun.values(), *forwards], progress, forget=self.is_streamed)
        self._prefixes = {} if self.is_streamed else caches
        scored = [
            _score(some, len(cuts), logits_in_parts(self.network, forward.states.flatten(-3, -2)))
            for (_, some), forward in zip(batches, forwards, strict=True)
        ]
        return np.concatenate(scored, axis=1)

    def _run_alone(self, sequences: tuple[Sequence, ...], progress: Callable[[float], object]) -> np.ndarray:
        batch = Batch.of(sequences, 0, self.network.device)

        def logits() -> Iterator[torch.Tensor]:
            for cut in self.cuts:
                yield run_alone(self.network.model, cut, batch)
                progress(batch.tokens * (self.tree.layers - cut.size))

        return _score(sequences, len(self.cuts), logits())


def try_sharing(model, cuts: list[Cut]) -> Sharing:
    """The most that gives the plain log-probabilities for these pruned models of a model, but for rounding.

    Raises InputError where the configuration can't state one of those that are tried.
    """
    tried, some = shallow(model, cuts)
    network = Network(tried)

    def answers(sharing: Sharing) -> np.ndarray:
        """[C, ways, requests]"""
        pieces = trial_pieces(network.head.weight.shape[0], sharing)
        found = np.concatenate(list(TreeModel(tried, some, sharing).answer(pieces)), axis=1)["logprob"]
        return found.reshape(len(some), -1, 6)

    with contextlib.ExitStack() as stack:
        for layer in range(len(network.layers)):  # those on disk are read once for all trials
            stack.enter_context(network.reader.reading(layer))
        plain = answers(Sharing.NOTHING)
        # rounding moves them a little; a wrong mask or position as much as they differ among themselves
        allowed = (1e-3 if network.dtype == torch.float32 else 0.15) * plain.std(axis=(1, 2))
        for sharing in sorted(Sharing, reverse=True)[:-1]:
            with contextlib.suppress(Exception):  # whatever a family's code raises, the plain way is left
                alike = np.sqrt(np.square(answers(sharing) - plain).mean(axis=(1, 2))) <= allowed
                if alike.all() and (sharing < Sharing.MASKS or takes_masks(model.config)):
                    return sharing
    return Sharing.NOTHING


@torch.inference_mode()
def run_alone(model, cut: Cut, batch: Batch) -> torch.Tensor:
    """[N, V] logits at the scored positions of a batch without branches, of a pruned model through its own forward."""
    pruned = model if cut == UNPRUNED else silence_sublayers(model, cut)
    places = batch.places[batch.rows, batch.slots]

    def scored(_, arguments):
        return (arguments[0][batch.rows, places].unsqueeze(0), *arguments[1:])

    handle = pruned.get_output_embeddings().register_forward_pre_hook(scored)
    try:
        return pruned(input_ids=batch.ids, use_cache=False).logits[0]
    finally:
        handle.remove()


def _score(sequences: tuple[Sequence, ...], cuts: int, logits: Iterable[torch.Tensor]) -> np.ndarray:
    """[C, R] of ANSWER: the log-probability of each request's tokens, summed, from all logits [C * N, V] in parts."""
    targets, starts, scored = [], [], 0
    for s in sequences:
        row_of = {place: scored + i for i, place in enumerate(s.scored)}
        scored += len(row_of)
        for _, places, tokens in s.requests:
            starts.append(len(targets))
            targets += zip(map(row_of.get, places), tokens, strict=True)
    of_cut = torch.tensor(targets)  # [K, 2], rows of logits and the tokens that are scored there
    rows, tokens = (torch.arange(cuts)[:, None] * scored + of_cut[:, 0]).flatten(), of_cut[:, 1].repeat(cuts)
    by_token, first = np.empty(len(rows), ANSWER), 0
    for some in logits:
        here = (rows >= first) & (rows < first + len(some))
        row, token = (rows[here] - first).to(some.device), tokens[here].to(some.device)
        logprobs = torch.log_softmax(some, dim=-1, dtype=torch.float32)[row, token]
        by_token["logprob"][here.numpy()] = logprobs.double().cpu().numpy()
        by_token["greedy"][here.numpy()] = (some.argmax(dim=-1)[row] == token).cpu().numpy()
        first += len(some)
    by_token, found = by_token.reshape(cuts, -1), np.empty((cuts, len(starts)), ANSWER)
    found["logprob"] = np.add.reduceat(by_token["logprob"], starts, axis=1)
    found["greedy"] = np.logical_and.reduceat(by_token["greedy"], starts, axis=1)
    return found
