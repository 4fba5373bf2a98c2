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
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float64

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.family.abilities import Abilities, alone
from deeper_layers.family.planning import HEAD_ELEMENTS, Piece
from deeper_layers.family.tree import Tree
from deeper_layers.family.walk import Batch, Beginning, Walk, remembering
from deeper_layers.models.decoder import num_layers, text_config
from deeper_layers.models.network import Network
from deeper_layers.models.streaming import is_streamed


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
        return Tree(cuts, layers).nodes if self.can.split else sum(layers - cut.size for cut in cuts)

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

    def bytes_kept(self, cuts: list[Cut], pieces: list[Piece]) -> int:
        """Memory for residuals, and for keys and values of a beginning, when these cuts are run together."""
        beginning = max((len(piece.shared) for piece in pieces), default=0)
        batch = max((len(b) * max(len(s.tokens) for s in b) for piece in pieces for b in piece.batches), default=0)
        width = text_config(self.whole.model.config).hidden_size * self.whole.dtype.itemsize
        tree = Tree(cuts, len(self.whole.layers))
        lent = beginning * tree.nodes * self.whole.bytes_remembered if beginning else 0
        return int(tree.alive * max(batch, beginning) * width + lent)

    def bytes_together(self, cuts: list[Cut], pieces: list[Piece]) -> int:
        """The same where pieces go through the layers together, and keys and values are kept for one layer only."""
        beginnings = sum(map(len, {piece.shared for piece in pieces}))
        width = text_config(self.whole.model.config).hidden_size * self.whole.dtype.itemsize
        tree = Tree(cuts, len(self.whole.layers))
        lent = beginnings * max(map(len, tree.levels)) * self.whole.bytes_remembered
        return int(tree.alive * (sum(piece.padded for piece in pieces) + beginnings) * width + lent)

    def run(
        self, piece: Piece, progress: Callable[[float], object] = lambda steps: None
    ) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
        """Answers to the requests of a piece, in its order; `progress` is told of layer-steps as they are done.

        Where memory runs out, batches are halved, then the cuts of a beginning.
        Raises InputError where even one sequence does not fit into memory.
        """
        self.progress = progress
        with torch.inference_mode():
            try:
                beginning = self.remember(piece.shared)
            except ROOM as error:
                if not _out_of_memory(error):
                    raise
                return self._in_halves(piece, error)
            parts = [part for batch in piece.batches for part in self._run_with_room(batch, beginning)]
        return np.concatenate([p for p, _ in parts], axis=1), np.concatenate([g for _, g in parts], axis=1)

    def run_all(self, pieces: list[Piece], progress: Callable[[float], object] = lambda steps: None) -> Iterator:
        """The answers to each of some pieces, as `run` gives them.

        Where the layers are on disk, all pieces go through a layer together, so that it is read once.
        """
        if not is_streamed(self.whole.model):
            yield from (self.run(piece, progress) for piece in pieces)
            return
        if not self.can.split:
            raise InputError(
                f"the layers of {type(self.whole.model).__name__} can't be run one by one, and so not from disk: use a "
                "machine whose memory holds the model"
            )
        with torch.inference_mode():
            begun = {
                shared: remembering(self.whole, self.tree, self._ids(shared), scored_only=self.can.score_only)
                for shared in dict.fromkeys(piece.shared for piece in pieces) if shared
            }  # fmt: skip
            walks = [
                [self._walk(sequences, begun[piece.shared][1] if piece.shared else None) for sequences in piece.batches]
                for piece in pieces
            ]
            together = [walk for walk, _ in begun.values()] + list(itertools.chain(*walks))
            for layer in self.whole.in_turn([layer for layer, level in enumerate(self.tree.levels) if level]):
                for walk in together:
                    walk.step(layer, progress)
                for _, beginning in begun.values():
                    beginning.kept.clear()  # what is of this layer no other needs
            self.progress = progress
            answers = [
                [self._finished(*found) for found in zip(of_piece, piece.batches, strict=True)]
                for of_piece, piece in zip(walks, pieces, strict=True)
            ]
        # outside: whoever takes them one by one is not in inference mode meanwhile
        yield from (tuple(np.concatenate(of, axis=1) for of in zip(*parts, strict=True)) for parts in answers)

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

    def _in_halves(self, piece: Piece, error: Exception):
        """Answers to a piece for one half of the cuts after the other, where its beginning is too large for all."""
        self.forget()
        if len(self.cuts) == 1:
            raise _no_room(len(piece.shared)) from error
        half = len(self.cuts) // 2
        parts = [self.part(cuts).run(piece, self.progress) for cuts in (self.cuts[:half], self.cuts[half:])]
        return tuple(np.concatenate(of_parts) for of_parts in zip(*parts, strict=True))

    def _run_with_room(self, sequences, beginning: Beginning | None) -> list:
        """A batch, or its two halves where memory runs out."""
        try:
            return [self._run_batch(sequences, beginning)]
        except ROOM as error:
            if not _out_of_memory(error):
                raise
            if len(sequences) == 1:
                raise _no_room(len(sequences[0].tokens)) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(sequences) // 2
        halves = (sequences[:half], sequences[half:])
        return [part for rows in halves for part in self._run_with_room(rows, beginning)]

    def _run_batch(self, sequences, beginning: Beginning | None):
        if self.can.split:
            return self._finished(self._walk(sequences, beginning).through(self.progress), sequences)
        batch, parts = Batch.of(sequences, 0, self.device), []
        for cut in self.cuts:
            logits = alone(self.whole.model, cut, batch)
            self.progress(batch.tokens * (len(self.whole.layers) - cut.size))
            parts.append(self._answers(sequences, 1, len(logits), lambda first, stop: logits[first:stop]))  # noqa: B023
        return tuple(np.concatenate(of_parts) for of_parts in zip(*parts, strict=True))

    def _ids(self, tokens: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([tokens], device=self.device)

    def _walk(self, sequences, beginning: Beginning | None) -> Walk:
        batch = Batch.of(sequences, beginning.length if beginning else 0, self.device)
        return Walk(self.whole, self.tree, batch, beginning, scored_only=self.can.score_only, apart=self.can.apart)

    def _finished(self, walk: Walk, sequences) -> tuple[np.ndarray, np.ndarray]:
        """Answers to the requests of a batch that has gone through all layers."""
        states = torch.cat([walk.states[number] for number in self.tree.last], dim=-2)
        logits_of = lambda first, stop: self.whole.logits(states[..., first:stop, :])  # noqa: E731
        return self._answers(sequences, len(self.cuts), len(walk.batch.rows), logits_of)

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
        at_once = max(1, HEAD_ELEMENTS // self.whole.head.weight.shape[0])
        for first in range(0, cuts * scored, at_once):
            logits = logits_of(first, first + at_once)
            self.progress(len(logits) * self.head_layers)
            # a few rows at a time stay in the processor's cache
            for start in range(first, first + len(logits), 16):
                some = logits[start - first : start - first + 16]
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


ROOM = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def _no_room(tokens: int) -> InputError:
    return InputError(
        f"out of memory on one sequence of {tokens} tokens: use a smaller model or data type, fewer examples "
        "in the prompt, or a larger machine"
    )


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error)
