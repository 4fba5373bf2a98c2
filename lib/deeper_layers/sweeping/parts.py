"""Run a sweep in parts: as much at once as memory holds, and finished parts are read and not run again."""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from deeper_layers.errors import InputError, is_out_of_memory
from deeper_layers.models.configuration import text_config
from deeper_layers.models.network import Network
from deeper_layers.sweeping import planning
from deeper_layers.sweeping.planning import HEAD_ELEMENTS, Batch
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.tree import Tree

FIRST_WRITTEN = (
    500_000  # shards of log-likelihoods are numbered from 0, those of written answers from here
)
LEAST_ROWS = 8  # rows that run together: before there are fewer, fewer models run together, though models share work


class MemoryEstimate:
    """Bytes that a model is estimated to need beside its weights, at most.

    A token has a residual at each node that is still needed. While a layer runs, each token has some tensors of the
    layer's inner width, and each pair of query and key an entry of the mask; keys and values are copied for each head.
    The head makes logits in float32.
    """

    def __init__(self, network: Network):
        config = text_config(network.model.config)
        heads = getattr(config, "num_attention_heads", None) or 1
        # or a list with one a layer
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        self.network = network
        self.vocabulary = network.head.weight.shape[0]
        self.key_copies = 2 + heads // (getattr(config, "num_key_value_heads", None) or heads)
        self.score_bytes = 8 * (1 if config._attn_implementation == "sdpa" else heads)
        self.residual_bytes = config.hidden_size * network.dtype.itemsize
        self.token_bytes = 6 * self.residual_bytes + 4 * int(np.max(inner)) * network.dtype.itemsize

    def scoring_bytes(self, tree: Tree, batches: list[Batch]) -> int:
        """Bytes for batches that go through the layers of a tree together."""
        prefixes = {batch.prefix for batch in batches if batch.prefix}
        waiting = sum(map(len, prefixes)) * tree.nodes * self.network.token_cache_bytes
        running = 0
        prefix_batches = [Batch((), (planning.Sequence(prefix),)) for prefix in prefixes]
        for batch in prefix_batches + batches:
            rows = len(batch.sequences)
            width = batch.width
            states = batch.scored * len(tree.cuts)
            waiting += (tree.alive * rows * width + states) * self.residual_bytes
            running = max(
                running, self._running_bytes(rows, width, len(batch.prefix) + width, states)
            )
        return int(waiting + running)

    def writing_bytes(self, tree: Tree, rows: int, longest: int, max_tokens: int) -> int:
        """Bytes for `rows` prompts of at most `longest` tokens, and `max_tokens` new tokens of each pruned model."""
        lanes = rows * len(tree.cuts)
        room = longest + max_tokens
        cache_bytes = self.network.token_cache_bytes
        nodes = itertools.chain.from_iterable(tree.levels)
        buffers = rows * room * sum(len(node.cuts) for node in nodes) * cache_bytes
        prompts = rows * longest * (tree.nodes * cache_bytes + tree.alive * self.residual_bytes)
        reading = prompts + self._running_bytes(rows, longest, longest, 0)
        return int(buffers + max(reading, self._running_bytes(lanes, 1, room, lanes)))

    def _running_bytes(self, rows: int, width: int, keys: int, scored: int) -> float:
        """Bytes for running a layer, and for logits at scored positions with their logarithms and buffers."""
        key_bytes = rows * keys * self.key_copies * self.network.token_cache_bytes
        head_bytes = 12 * min(scored * self.vocabulary, max(HEAD_ELEMENTS, self.vocabulary))
        return rows * width * (self.token_bytes + keys * self.score_bytes) + key_bytes + head_bytes


def run_in_halves(
    run: Callable[[Sequence, list], np.ndarray],
    rows: Sequence,
    cuts: list,
    fits: Callable[[Sequence, list], bool],
    min_rows: int = LEAST_ROWS,
) -> np.ndarray:
    """The answers [C, ...] of `run(rows, cuts)`, run in halves where they do not fit or memory runs out.

    The cuts are halved where not even the first `min_rows` rows fit with all cuts, else the rows.
    Raises InputError where memory runs out on a single row and cut.
    """
    fewer_cuts = len(cuts) > 1 and not fits(rows[:min_rows], cuts)
    if not fewer_cuts and (len(rows) == 1 or fits(rows, cuts)):
        try:
            return run(rows, cuts)
        except (MemoryError, RuntimeError) as error:  # of torch too
            if not is_out_of_memory(error):
                raise
            if len(rows) == len(cuts) == 1:
                raise InputError(
                    "out of memory on one sequence: use a smaller model or data type, fewer examples in the prompt, or "
                    "a larger machine"
                ) from error
        # outside of `except`, where the error no longer holds what was run
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fewer_cuts = len(cuts) > 1 and len(rows) <= min_rows
    items = cuts if fewer_cuts else rows
    halves = items[: len(items) // 2], items[len(items) // 2 :]
    results = [
        run_in_halves(run, *((rows, half) if fewer_cuts else (half, cuts)), fits, min_rows)
        for half in halves
    ]
    return np.concatenate(results, axis=0 if fewer_cuts else 1)


class ResumableProgress(tqdm):
    """A progress bar of a measurement in parts. A part that ran out of memory is run again, and counted once."""

    def __init__(self, shards: Shards | None, what: str, total: int, unit: str, first: int = 0):
        self.shards = shards
        self.numbers = itertools.count(first)
        options = {
            "unit": unit,
            "unit_scale": total > 10**5,
            "mininterval": 5,
            "miniters": 0,
            "file": sys.stderr,
        }
        options["leave"] = (
            None  # it stays when finished, but not below other lines that tqdm redraws
        )
        super().__init__(desc=what, total=total, **options)

    def update(self, n: float | int | None = 1):
        return super().update(min(n or 0, self.total - self.n))

    def read_or_run(self, request: tuple, steps: float | int, run: Callable[[], list]) -> list:
        """The result of `run`, as JSON gives it back: read from the next shard where that has the same `request`,
        else computed and stored. A part that is read moves the bar by `steps`; `run` moves the bar itself."""
        if self.shards is None:
            return run()
        number = next(self.numbers)
        identity = {"asked": np.array(hashlib.sha256(repr(request).encode()).hexdigest())}
        stored = self.shards.get(number, identity)
        if stored is not None:
            self.initial += steps  # so that the bar predicts the time of the remaining work
            self.update(steps)
            return json.loads(stored["found"].tobytes())
        result = run()
        self.shards.put(
            number, identity | {"found": np.frombuffer(json.dumps(result).encode(), dtype=np.uint8)}
        )
        return result
