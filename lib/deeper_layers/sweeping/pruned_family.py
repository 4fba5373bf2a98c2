"""A model and the pruned models made of its layers, run on one batch after another.

A batch walks through the tree of layers (tree.py) once: what pruned models share is run once, and each layer's module
serves all of them together (walk.py). Three savings more, each tried on a few tokens first and left out where the
result is not the plain one (abilities.py):

- a beginning that many sequences share runs once for each node, and its keys and values are lent to all;
- the last layer gives keys and values everywhere, but queries, output and what follows only where something
  is scored; so does the head;
- choices that follow one context are branches of one sequence: each sees the context and itself.

Where layers can't be run one by one, each pruned model runs by itself.

Letters in shapes: N scored positions of a batch, D width, V vocabulary, C cuts, R requests.
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
from deeper_layers.sweeping.abilities import Abilities, alone
from deeper_layers.sweeping.memory import Memory, in_halves, naming_what_ran_out
from deeper_layers.sweeping.planning import HEAD_ROWS, Piece, logits_at_once
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.walk import Batch, Beginning, Walk, remembering


class PrunedFamily:
    """A model and the pruned models made of its layers, ready to answer."""

    def __init__(self, model, cuts: list[Cut], can: Abilities | None = None):
        self.whole, self.cuts = Network(model), list(cuts)
        self.tree = Tree(cuts, num_layers(model))
        self.can = can or Abilities.of(model, self.cuts)
        self.progress: Callable[[float], object] = lambda steps: None
        self.device = self.whole.device
        self._remembered: tuple[tuple[int, ...], Beginning | None] = ((), None)

    def part(self, cuts: list[Cut]) -> "PrunedFamily":
        """The family of some of the cuts."""
        return self if cuts == self.cuts else PrunedFamily(self.whole.model, cuts, self.can)

    def layer_steps_of(self, cuts: list[Cut]) -> int:
        """Layers that one token passes for these cuts: each node of their tree, or of each model all."""
        layers = len(self.whole.layers)
        return self._tree(cuts).nodes if self.can.split else sum(layers - cut.size for cut in cuts)

    @functools.cached_property
    def layer_steps(self) -> int:
        """The same for all cuts."""
        return self.layer_steps_of(self.cuts)

    @functools.cached_property
    def head_layers(self) -> float:
        """How many layers the head is worth, by the numbers of their parameters."""
        of_layers = self.whole.model.base_model.num_parameters(exclude_embeddings=True)
        return self.whole.head.weight.numel() * len(self.whole.layers) / of_layers

    def steps_of(self, piece: Piece) -> float:
        """Layer-steps of a piece without its beginning, those that the head is worth among them."""
        return piece.tokens * self.layer_steps + piece.scored * len(self.cuts) * self.head_layers

    def bytes_needed(self, cuts: list[Cut], pieces: list[Piece]) -> int:
        """Memory beside the weights, at most, when these cuts are run together on pieces of one beginning."""
        memory = Memory(self.whole, self.can)
        return (memory.together if is_streamed(self.whole.model) else memory.one_by_one)(self._tree(cuts), pieces)

    def bytes_to_write(self, cuts: list[Cut], rows: int, longest: int, shared: int, most: int) -> int:
        """The same when these cuts answer so many prompts at a time, as `Memory.decoding` has it."""
        return Memory(self.whole, self.can).decoding(self._tree(cuts), rows, longest, shared, most)

    def _tree(self, cuts: list[Cut]) -> Tree:
        return self.tree if cuts == self.cuts else Tree(cuts, len(self.whole.layers))

    def run(
        self, piece: Piece, progress: Callable[[float], object] = lambda steps: None
    ) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
        """Answers to the requests of a piece, in its order; `progress` is told of layer-steps as they are done.

        Where memory runs out, batches are halved, then the cuts. Raises InputError where even one sequence of one
        pruned model does not fit.
        """
        self.progress = progress
        with torch.inference_mode():
            return self._in_room(lambda family: family._run(piece), piece)

    def _run(self, piece: Piece):
        beginning = self.remember(piece.shared)
        run = lambda sequences: self._run_batch(sequences, beginning)  # noqa: E731
        return _joined(part for batch in piece.batches for part in in_halves(run, batch))

    def _in_room(self, run: Callable[["PrunedFamily"], tuple], piece: Piece):
        """What `run` gives for the family, or for one half of its cuts after the other where memory runs out."""

        def of_cuts(cuts: list[Cut]):
            part = self.part(cuts)
            part.progress = self.progress
            if part is not self:
                self.forget()
            return run(part)

        with naming_what_ran_out(len(piece.batches[0][0].tokens)):
            return _joined(in_halves(of_cuts, self.cuts), axis=0)

    def run_all(self, pieces: list[Piece], progress: Callable[[float], object] = lambda steps: None) -> Iterator:
        """The answers to each of some pieces, as `run` gives them.

        Where the layers are on disk, all pieces go through a layer together, so that it is read once.
        """
        if not is_streamed(self.whole.model) or not pieces:
            yield from (self.run(piece, progress) for piece in pieces)
            return
        if not self.can.split:
            raise InputError(
                f"the layers of {type(self.whole.model).__name__} can't be run one by one, and so not from disk: use a "
                "machine whose memory holds the model"
            )
        self.progress = progress
        with torch.inference_mode():
            batches = [Piece(piece.shared, (batch,)) for piece in pieces for batch in piece.batches]
            found = itertools.chain(*in_halves(self._some_together, batches))
            answers = [_joined(itertools.islice(found, len(piece.batches))) for piece in pieces]
        yield from answers  # outside: whoever takes them one by one is not in inference mode meanwhile

    def _some_together(self, batches: list[Piece]) -> list:
        """Answers to pieces of one batch each; a single one in halves of its sequences, then of the cuts."""
        if len(batches) > 1:
            return self._together(batches)
        (batch,) = batches
        (sequences,) = batch.batches

        def halves(family: PrunedFamily):
            return _joined(in_halves(lambda some: family._together([Piece(batch.shared, (some,))])[0], sequences))

        return [self._in_room(halves, batch)]

    def _together(self, batches: list[Piece]) -> list:
        """Answers to pieces of one batch each, which go through every layer one after another."""
        begun = {
            shared: remembering(self.whole, self.tree, self._ids(shared), scored_only=self.can.score_only)
            for shared in dict.fromkeys(batch.shared for batch in batches) if shared
        }  # fmt: skip
        walks = [self._walk(batch.batches[0], begun[batch.shared][1] if batch.shared else None) for batch in batches]
        for layer in self.whole.in_turn([layer for layer, level in enumerate(self.tree.levels) if level]):
            for walk in [walk for walk, _ in begun.values()] + walks:
                walk.step(layer, self.progress)
                walk.known.clear()  # learnt again in less time than a layer takes, and large for many batches
            for _, beginning in begun.values():
                beginning.kept.clear()  # what is of this layer no other needs
        return [self._finished(walk, batch.batches[0]) for walk, batch in zip(walks, batches, strict=True)]

    def remember(self, shared: tuple[int, ...]) -> Beginning | None:
        """Keys and values of a beginning at every node; kept until the next beginning."""
        if self._remembered[0] != shared:
            self.forget()
            if shared:
                walk, found = remembering(self.whole, self.tree, self._ids(shared), scored_only=self.can.score_only)
                walk.through(self.progress)
                self._remembered = (shared, found)
        return self._remembered[1]

    def forget(self) -> None:
        """Give the memory of the last beginning back."""
        self._remembered = ((), None)

    def _run_batch(self, sequences, beginning: Beginning | None):
        if self.can.split:
            return self._finished(self._walk(sequences, beginning).through(self.progress), sequences)
        batch, parts = Batch.of(sequences, 0, self.device), []
        for cut in self.cuts:
            logits = alone(self.whole.model, cut, batch)
            self.progress(batch.tokens * (len(self.whole.layers) - cut.size))
            parts.append(self._answers(sequences, 1, len(logits), lambda first, stop: logits[first:stop]))  # noqa: B023
        return _joined(parts, axis=0)

    def _ids(self, tokens: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([tokens], device=self.device)

    def _walk(self, sequences, beginning: Beginning | None) -> Walk:
        batch = Batch.of(sequences, beginning.length if beginning else 0, self.device)
        return Walk(self.whole, self.tree, batch, beginning, scored_only=self.can.score_only, apart=self.can.apart)

    def _finished(self, walk: Walk, sequences) -> tuple[np.ndarray, np.ndarray]:
        """Answers to the requests of a batch that has gone through all layers."""
        scored = len(walk.batch.rows)

        def logits_of(first: int, stop: int) -> torch.Tensor:
            """For states [C * N, D], of which only these are put together."""
            of_cuts = range(first // scored, min(-(-stop // scored), len(self.cuts)))
            spans = [(self.tree.last[c], max(first - c * scored, 0), min(stop - c * scored, scored)) for c in of_cuts]
            return self.whole.logits(torch.cat([walk.states[last][..., a:b, :] for last, a, b in spans], dim=-2))

        return self._answers(sequences, len(self.cuts), scored, logits_of)

    def _answers(self, sequences, cuts: int, scored: int, logits_of: Callable) -> tuple[np.ndarray, np.ndarray]:
        """For `logits_of` rows of [C * N, V]: per cut and request the summed log-probability, and whether it is greedy.

        The head runs for the states of all cuts: its matrix is most of what there is to read from memory.
        """
        positions, targets, lengths, row = [], [], [], 0
        for s in sequences:
            slot = {place: row + i for i, place in enumerate(s.scored)}
            row += len(slot)
            for _, places, tokens in s.requests:
                positions += [slot[place] for place in places]
                targets += tokens
                lengths.append(len(tokens))
        order = np.argsort(positions, kind="stable")
        rows = (np.arange(cuts)[:, None] * scored + np.array(positions)[order]).ravel()
        wanted = np.tile(np.array(targets)[order], cuts)
        logprobs, hits = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
        at_once = logits_at_once(self.whole.head.weight.shape[0])
        for first in range(0, cuts * scored, at_once):
            logits = logits_of(first, first + at_once)
            self.progress(len(logits) * self.head_layers)
            for start in range(first, first + len(logits), HEAD_ROWS):
                some = logits[start - first : start - first + HEAD_ROWS]
                span = slice(*np.searchsorted(rows, (start, start + len(some))))
                row = torch.from_numpy(rows[span] - start).to(some.device)
                target = torch.from_numpy(wanted[span]).to(some.device)
                found = torch.log_softmax(some, dim=-1, dtype=torch.float32)[row, target]
                logprobs[span] = found.double().cpu().numpy()
                hits[span] = _likeliest(some, row, target).cpu().numpy()
        back = np.argsort(order, kind="stable")
        logprobs, hits = (values.reshape(cuts, -1)[:, back] for values in (logprobs, hits))
        starts = np.cumsum([0, *lengths[:-1]])
        return np.add.reduceat(logprobs, starts, axis=1), np.logical_and.reduceat(hits, starts, axis=1)


def _likeliest(logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether each target is what greedy decoding takes in its row: the first of the largest logits."""
    # finding the place of the largest costs ten times as much as finding the largest: only where it may be the target
    found = logits[rows, targets] == logits.amax(dim=-1)[rows]
    for index in found.nonzero().flatten().tolist():
        found[index] = logits[rows[index]].argmax() == targets[index]
    return found


def _joined(parts: Iterable[tuple[np.ndarray, np.ndarray]], axis: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Answers to requests one after another; or, along axis 0, of cuts."""
    logprobs, greedy = (np.concatenate(of_parts, axis) for of_parts in zip(*parts, strict=True))
    return logprobs, greedy
