"""How much memory a sweep takes beside the weights: one estimate, and halves where it runs out all the same."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from deeper_layers.errors import InputError, ran_out
from deeper_layers.models.configuration import text_config
from deeper_layers.models.network import Network
from deeper_layers.sweeping.planning import BATCH_TOKENS, HEAD_ELEMENTS, Piece
from deeper_layers.sweeping.tree import Tree

LEAST_ROWS = 8  # that run together, rather than which fewer models do: what they begin with alike is run once
ROOM = (torch.OutOfMemoryError, MemoryError, RuntimeError)


class Estimate:
    """Bytes that a model is estimated to need beside its weights, at most.

    A token has a residual at each node that lives. While a layer runs, a token makes some tensors as wide as the
    layer's inner width, and a key for each query a mask; keys and values are copied for each head. The head makes
    logits in float32.
    """

    def __init__(self, network: Network):
        config = text_config(network.model.config)
        heads = getattr(config, "num_attention_heads", None) or 1
        self.vocabulary = network.head.weight.shape[0]
        self.copies = 2 + heads // (getattr(config, "num_key_value_heads", None) or heads)
        self.scores = 8 * (1 if config._attn_implementation == "sdpa" else heads)
        self.residual = config.hidden_size * network.dtype.itemsize
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size  # of some families one a layer
        self.inner = int(np.max(inner)) * network.dtype.itemsize
        self.remembered = network.bytes_remembered

    def scoring(self, tree: Tree, pieces: list[Piece], together: bool) -> int:
        """For pieces that run through a tree one after another, or all `together` through each layer."""
        prefixes = [0, *map(len, {piece.prefix for piece in pieces})]
        sizes = [(1, length, 0, 0) for length in prefixes]
        sizes += [
            (len(batch), max(len(s.tokens) for s in batch) - past, past, sum(len(s.scored) for s in batch))
            for past, batch in ((len(piece.prefix), batch) for piece in pieces for batch in piece.batches)
        ]
        rows, width, past, scored = np.array(sizes).T
        states = scored * len(tree.cuts)
        waiting = (tree.alive * rows * width + states) * self.residual
        running = self._layer(rows, width, past + width) + self._head(states)
        if together:
            kept = sum(prefixes) * max(map(len, tree.levels))
            return int(kept * self.remembered + waiting.sum() + running.max())
        return int(max(prefixes) * tree.nodes * self.remembered + (waiting + running).max())

    def writing(self, tree: Tree, rows: int, longest: int, most: int) -> int:
        """For so many prompts of at most `longest` tokens, answered by `most` tokens of each pruned model."""
        lanes, room = rows * len(tree.cuts), longest + most
        buffers = rows * room * sum(len(node.cuts) for level in tree.levels for node in level) * self.remembered
        at_once = max(1, min(rows, BATCH_TOKENS // longest))
        prompts = at_once * longest * (tree.nodes * self.remembered + tree.alive * self.residual)
        reading = prompts + self._layer(at_once, longest, longest)
        return int(buffers + max(reading, self._layer(lanes, 1, room) + self._head(lanes)))

    def _head(self, positions):
        """Of logits at so many positions, their logarithms and what these are computed in."""
        return np.minimum(positions * self.vocabulary, max(HEAD_ELEMENTS, self.vocabulary)) * 12

    def _layer(self, rows, width, keys):
        of_tokens = rows * width * (6 * self.residual + 4 * self.inner + keys * self.scores)
        return of_tokens + rows * keys * self.copies * self.remembered


def run_in_halves(
    run: Callable[[Sequence, list], np.ndarray],
    rows: Sequence,
    cuts: list,
    fits: Callable[[Sequence, list], bool] = lambda rows, cuts: True,
) -> np.ndarray:
    """run(rows, cuts): for each cut the answers of rows, [C, ...]; in halves where it does not fit, or memory runs out.

    Halves are of rows while these are more than LEAST_ROWS, then of cuts, then of rows.
    Raises InputError where memory runs out on a single row and cut.
    """
    if fits(rows, cuts) or len(rows) == len(cuts) == 1:
        try:
            return run(rows, cuts)
        except ROOM as error:
            if not ran_out(error):
                raise
            if len(rows) == len(cuts) == 1:
                raise InputError(
                    "out of memory on one sequence: use a smaller model or data type, fewer examples in the prompt, or "
                    "a larger machine"
                ) from error
        # outside, where nothing holds on to what was being run any more
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if len(rows) > LEAST_ROWS or len(cuts) == 1:
        halves = [run_in_halves(run, some, cuts, fits) for some in _halves(rows)]
        return np.concatenate(halves, axis=1)
    return np.concatenate([run_in_halves(run, rows, some, fits) for some in _halves(cuts)])


def _halves(items: Sequence) -> tuple[Sequence, Sequence]:
    return items[: len(items) // 2], items[len(items) // 2 :]
