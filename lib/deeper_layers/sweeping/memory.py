"""What a family keeps in memory beside the weights: stated before it runs, and halves where it runs out all the same.

Residuals, keys and values are counted from the tree; what layers and the head make meanwhile was tried
(activations.py).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from deeper_layers.errors import InputError, ran_out
from deeper_layers.models.decoder import text_config
from deeper_layers.models.network import Network
from deeper_layers.sweeping.abilities import Abilities
from deeper_layers.sweeping.lending import QUERIES
from deeper_layers.sweeping.masks import sees_all
from deeper_layers.sweeping.planning import (
    BATCH_TOKENS,
    HEAD_ROWS,
    SHARED_TOKENS,
    STACK_TOKENS,
    Piece,
    Shape,
    logits_at_once,
)
from deeper_layers.sweeping.tree import Tree

T = TypeVar("T")


class Memory:
    """Bytes that are needed at most, beside the weights, to run some pieces through a tree."""

    def __init__(self, network: Network, can: Abilities):
        self.network, self.can, self.makes = network, can, can.makes
        config = text_config(network.model.config)
        self.heads = getattr(config, "num_attention_heads", None) or 1
        self.heads_of_keys = getattr(config, "num_key_value_heads", None) or self.heads
        self.copies = (
            1 + self.heads // self.heads_of_keys
        )  # of keys and values, where attention takes as many as queries

    def one_by_one(self, tree: Tree, pieces: list[Piece]) -> int:
        """For pieces that run one after another, the beginnings' keys and values kept at every node."""
        lent = max((len(piece.shared) for piece in pieces), default=0) * tree.nodes
        shapes = {shape for piece in pieces for shape in piece.shapes}
        shapes |= {Shape(1, len(piece.shared)) for piece in pieces if piece.shared}
        if not self.can.split:
            return int(max(map(self._alone, shapes), default=0))
        batches = (self._waiting(tree, shape) + self.running(tree, shape) for shape in shapes)
        return int(lent * self.network.bytes_remembered + max(batches, default=0))

    def together(self, tree: Tree, pieces: list[Piece]) -> int:
        """For pieces that go through the layers together: keys and values are kept for one layer at a time."""
        lent = sum(map(len, {piece.shared for piece in pieces})) * max(map(len, tree.levels))
        shapes = [shape for piece in pieces for shape in piece.shapes]
        shapes += [Shape(1, len(shared)) for shared in {piece.shared for piece in pieces} if shared]
        waiting = sum(self._waiting(tree, shape) for shape in shapes)
        return int(
            lent * self.network.bytes_remembered
            + waiting
            + max((self.running(tree, s) for s in set(shapes)), default=0)
        )

    def decoding(self, tree: Tree, rows: int, longest: int, shared: int, most: int) -> int:
        """For so many prompts at once and answers of `most` tokens, of all pruned models of a tree.

        The prompts have at most `longest` tokens, of which they share the first ones.
        """
        apart = self._apart(Shape(rows, longest + most))
        lent = shared if apart and shared >= SHARED_TOKENS and self.can.share else 0
        own, models, remembered = longest - lent, len(tree.paths), self.network.bytes_remembered
        some = Shape(max(1, min(rows, BATCH_TOKENS // longest)), own, lent)
        prompts = rows * own * tree.nodes * remembered
        filling = prompts + self._waiting(tree, some) + self.running(tree, some)
        if apart:  # each prompt once for all models that are one up to a node; scores of lanes over all that they see
            answers = rows * most * sum(map(len, tree.paths)) * remembered
            of_lane = self._of_row(1, 0) + 4 * self.heads * (longest + most) * 4
            step = max(2 * rows * own * remembered, rows * models * of_lane, self.of_head(rows * models))
            return int(lent * tree.nodes * remembered + max(filling, prompts + answers + step))
        buffers = rows * (own + most) * sum(map(len, tree.paths)) * remembered
        # of one layer: keys and values of prompts on their way into the buffers, then copies of these and masks
        moving = rows * own * (models + max(map(len, tree.levels))) * remembered
        together = {tuple(layer in path and path[layer].part for path in tree.paths) for layer in range(tree.layers)}
        masks = rows * sum(bool(part) for parts in together for part in parts) * self.makes.branched * (own + most)
        of_lane = self._of_row(1, 0) + (own + most) * remembered * self.copies
        step = masks + rows * models * of_lane
        writing = buffers + max(moving, step, self.of_head(rows * models))
        return int(max(filling, writing))

    def running(self, tree: Tree, shape: Shape) -> float:
        """Of a batch while a layer runs on nodes of the tree in one product, and then the head."""
        wide = min(max(1, STACK_TOKENS // shape.tokens), max(map(len, tree.levels)))
        rows, keys = (1 << (wide.bit_length() - 1)) * shape.rows, shape.past + shape.width
        # masks are kept for every number of nodes, each half of the next
        layer = rows * self._of_row(shape.width, 2 * keys, shape.branched)
        if shape.past and self._apart(shape):
            layer += 4 * QUERIES * self.heads_of_keys * keys * max(4, self.network.dtype.itemsize)
        elif shape.past:
            layer += rows * keys * self.network.bytes_remembered * self.copies
        return max(layer, self.of_head(len(tree.cuts) * shape.scored))

    def of_head(self, positions: int) -> float:
        """Of logits at so many positions, and of their logarithms."""
        vocabulary = self.network.head.weight.shape[0]
        some = min(positions, logits_at_once(vocabulary))
        return some * self.makes.position + min(positions, HEAD_ROWS) * vocabulary * 12

    def _waiting(self, tree: Tree, shape: Shape) -> float:
        """Of a batch all the time: its residuals, what goes to the head, which branches see which."""
        seen = shape.tokens * shape.width if shape.branched else 0
        return (tree.alive * shape.tokens + len(tree.cuts) * shape.scored) * self.makes.residual + seen

    def _alone(self, shape: Shape) -> float:
        layer = shape.rows * self._of_row(shape.width, shape.width)
        return layer + shape.scored * self.makes.position + self.of_head(shape.scored)

    def _of_row(self, tokens: int, keys: int, branched: bool = False) -> float:
        makes = self.makes
        return makes.row + tokens * (makes.token + keys * (makes.branched if branched else makes.key))

    def _apart(self, shape: Shape) -> bool:
        seen = sees_all(self.network.model.config, shape.past + shape.width)
        return self.can.apart and self.network.device.type == "cpu" and not shape.branched and seen


ROOM = (torch.OutOfMemoryError, MemoryError, RuntimeError)


@contextlib.contextmanager
def naming_what_ran_out(tokens: int) -> Iterator[None]:
    """Raises InputError where memory runs out on one sequence of so many tokens."""
    try:
        yield
    except ROOM as error:
        if not ran_out(error):
            raise
        raise InputError(
            f"out of memory on one sequence of {tokens} tokens: use a smaller model or data type, fewer examples in "
            "the prompt, or a larger machine"
        ) from error


def in_halves(run: Callable[[Sequence], T], items: Sequence) -> list[T]:
    """[run(items)], or what it gives for one half of them and then the other, where memory runs out.

    Raises what `run` raised where memory runs out on a single one.
    """
    try:
        return [run(items)]
    except ROOM as error:
        if len(items) == 1 or not ran_out(error):
            raise
    # outside, where nothing holds on to what was being run any more
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    return [found for some in (items[:half], items[half:]) for found in in_halves(run, some)]
