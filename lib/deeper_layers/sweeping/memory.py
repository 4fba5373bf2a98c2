"""How much memory a sweep takes beside the weights: one estimate, and halves where it runs out all the same."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from deeper_layers.errors import InputError, ran_out
from deeper_layers.models.configuration import text_config
from deeper_layers.models.network import Network
from deeper_layers.sweeping import planning
from deeper_layers.sweeping.planning import BATCH_TOKENS, HEAD_ELEMENTS, Batch
from deeper_layers.sweeping.tree import Tree

LEAST_ROWS = 8  # that run together, rather than which fewer models do: what they begin with alike is run once


class Estimate:
    """Bytes that a model is estimated to need beside its weights, at most.

    A token has a residual at each node that lives. While a layer runs, a token makes some tensors as wide as the
    layer's inner width, and a key for each query a mask; keys and values are copied for each head. The head makes
    logits in float32.
    """

    def __init__(self, network: Network):
        config = text_config(network.model.config)
        heads = getattr(config, "num_attention_heads", None) or 1
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size  # of some families one a layer
        self.network, self.vocabulary = network, network.head.weight.shape[0]
        self.copies = 2 + heads // (getattr(config, "num_key_value_heads", None) or heads)
        self.scores = 8 * (1 if config._attn_implementation == "sdpa" else heads)
        self.residual = config.hidden_size * network.dtype.itemsize
        self.of_token = 6 * self.residual + 4 * int(np.max(inner)) * network.dtype.itemsize

    def scoring(self, tree: Tree, batches: list[Batch]) -> int:
        """For batches that go through the layers of a tree together."""
        prefixes = {batch.prefix for batch in batches if batch.prefix}
        waiting, running = sum(map(len, prefixes)) * tree.nodes * self.network.bytes_remembered, 0
        for batch in [*(Batch((), (planning.Sequence(prefix),)) for prefix in prefixes), *batches]:
            rows, width, states = len(batch.sequences), batch.width, batch.scored * len(tree.cuts)
            waiting += (tree.alive * rows * width + states) * self.residual
            running = max(running, self._layer(rows, width, len(batch.prefix) + width) + self._head(states))
        return int(waiting + running)

    def writing(self, tree: Tree, rows: int, longest: int, most: int) -> int:
        """For so many prompts of at most `longest` tokens, answered by `most` tokens of each pruned model."""
        lanes, room, remembered = rows * len(tree.cuts), longest + most, self.network.bytes_remembered
        buffers = rows * room * sum(len(node.cuts) for level in tree.levels for node in level) * remembered
        at_once = max(1, min(rows, BATCH_TOKENS // longest))
        prompts = at_once * longest * (tree.nodes * remembered + tree.alive * self.residual)
        reading = prompts + self._layer(at_once, longest, longest)
        return int(buffers + max(reading, self._layer(lanes, 1, room) + self._head(lanes)))

    def _head(self, positions: int) -> int:
        """Of logits at so many positions, their logarithms and what these are computed in."""
        return 12 * min(positions * self.vocabulary, max(HEAD_ELEMENTS, self.vocabulary))

    def _layer(self, rows: int, width: int, keys: int) -> float:
        of_keys = rows * keys * self.copies * self.network.bytes_remembered
        return rows * width * (self.of_token + keys * self.scores) + of_keys


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
    is_last = len(rows) == len(cuts) == 1
    if is_last or fits(rows, cuts):
        try:
            return run(rows, cuts)
        except (MemoryError, RuntimeError) as error:  # of torch too
            if not ran_out(error):
                raise
            if is_last:
                raise InputError(
                    "out of memory on one sequence: use a smaller model or data type, fewer examples in the prompt, or "
                    "a larger machine"
                ) from error
        # outside, where nothing holds on to what was being run any more
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if len(rows) > LEAST_ROWS or len(cuts) == 1:
        half = len(rows) // 2
        return np.concatenate([run_in_halves(run, some, cuts, fits) for some in (rows[:half], rows[half:])], axis=1)
    half = len(cuts) // 2
    return np.concatenate([run_in_halves(run, rows, some, fits) for some in (cuts[:half], cuts[half:])])
