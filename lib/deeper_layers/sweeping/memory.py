"""How much memory a sweep takes beside the weights: one estimate, and halves where it runs out all the same."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from deeper_layers.errors import InputError, ran_out
from deeper_layers.models.configuration import text_config
from deeper_layers.models.network import Network
from deeper_layers.sweeping.planning import BATCH_TOKENS, Piece, logits_at_once
from deeper_layers.sweeping.tree import Tree

T = TypeVar("T")


class Estimate:
    """Bytes that a model is estimated to need beside its weights, at most.

    A token has a residual at each node that lives. While a layer runs, a token makes some tensors as wide as the
    layer's inner width, and a key for each query a mask; keys and values are copied for each head. The head makes
    logits in float32.
    """

    def __init__(self, network: Network):
        self.network, config = network, text_config(network.model.config)
        heads = getattr(config, "num_attention_heads", None) or 1
        self.copies = 2 + heads // (getattr(config, "num_key_value_heads", None) or heads)
        self.scores = 8 * (1 if config._attn_implementation == "sdpa" else heads)
        self.residual = config.hidden_size * network.dtype.itemsize
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        self.inner = (max(inner) if isinstance(inner, list) else inner) * network.dtype.itemsize
        self.remembered = network.bytes_remembered

    def scoring(self, tree: Tree, pieces: list[Piece], together: bool) -> int:
        """For pieces that run through a tree one after another, or all `together` through each layer."""
        waiting, running = [0.0], [0.0]
        for piece in pieces:
            past = len(piece.prefix)
            sizes = [(len(batch), max(len(s.tokens) for s in batch) - past) for batch in piece.batches]
            scored = [sum(len(s.scored) for s in batch) for batch in piece.batches]
            for (rows, width), positions in zip([*sizes, (1, past)], [*scored, 0], strict=True):
                states = len(tree.cuts) * positions
                waiting.append((tree.alive * rows * width + states) * self.residual)
                running.append(max(self._layer(rows, width, past + width), self.head(states)))
        prefixes = {len(piece.prefix): piece.prefix for piece in pieces}
        if together:
            kept = sum(map(len, {piece.prefix for piece in pieces})) * max(map(len, tree.levels))
            return int(kept * self.remembered + sum(waiting) + max(running))
        return int(max(prefixes) * tree.nodes * self.remembered + max(map(sum, zip(waiting, running, strict=True))))

    def writing(self, tree: Tree, rows: int, longest: int, most: int) -> int:
        """For so many prompts of at most `longest` tokens, answered by `most` tokens of each pruned model."""
        lanes, width = rows * len(tree.paths), longest + most
        at_once = max(1, min(rows, BATCH_TOKENS // longest))
        prompts = rows * longest * tree.nodes * self.remembered
        buffers = rows * width * sum(map(len, tree.paths)) * self.remembered
        reading = tree.alive * at_once * longest * self.residual + self._layer(at_once, longest, longest)
        # the prompts of a layer are given up as soon as its buffers are filled
        moving = 2 * rows * longest * len(tree.paths) * self.remembered
        return int(max(prompts + reading, buffers + max(moving, self._layer(lanes, 1, width), self.head(lanes))))

    def head(self, positions: int) -> int | float:
        """Of logits at so many positions, their logarithms and what these are computed in."""
        vocabulary = self.network.head.weight.shape[0]
        return min(positions, logits_at_once(vocabulary)) * vocabulary * 12

    def _layer(self, rows: int, width: int, keys: int) -> int | float:
        of_tokens = rows * width * (6 * self.residual + 4 * self.inner + keys * self.scores)
        return of_tokens + rows * keys * self.copies * self.remembered


ROOM = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def run_in_halves(run: Callable[[Sequence], T], items: Sequence) -> list[T]:
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
    return [found for some in (items[:half], items[half:]) for found in run_in_halves(run, some)]


def run_in_room(run: Callable[[Sequence], T], items: Sequence, tokens: int) -> list[T]:
    """The same; raises InputError where memory runs out on a single one, a sequence of so many tokens."""
    try:
        return run_in_halves(run, items)
    except ROOM as error:
        if not ran_out(error):
            raise
        raise InputError(
            f"out of memory on one sequence of {tokens} tokens: use a smaller model or data type, fewer examples in "
            "the prompt, or a larger machine"
        ) from error
