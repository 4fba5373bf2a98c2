"""The ways to choose layers: a block, an order of layers or sublayers by a score, a greedy search, merges.

table.py says which rule chooses how. changing.py merges layers, and builds bridges over the dropped block.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import Cut

if TYPE_CHECKING:  # slow, and not needed to choose
    import pandas as pd

Losses = Callable[
    [list[Cut]], Sequence[float]
]  # from cuts to the pruned models' losses on text, nats a token
MergedLayer = (
    int | Sequence
)  # a layer's number, or layers merged into the first, which may be merged ones, too
Likeness = Callable[
    [list[MergedLayer]], float
]  # cosine of final states: a model of these layers, and the whole one
Chooser = Callable[
    [Sequence[int], int, Any], list[Cut]
]  # from sizes, L and what the rule needs to a cut for each size
Part = tuple[str, int]  # what is dropped ("layers", ATTENTION or MLP), and the layer


# ---- blocks ------------------------------------------------------------------------------------------------------


def distance_table(mean: np.ndarray, error: np.ndarray, samples: int) -> "pd.DataFrame":
    """Two matrices [n, l] as a table with a row for each block: start (l), size (n), distance, stderr, samples."""
    import pandas as pd  # slow

    row, start = np.nonzero(np.tri(len(mean))[::-1])  # of the blocks that fit
    values = {"distance": mean[row, start], "stderr": error[row, start], "samples": samples}
    return pd.DataFrame({"start": start, "size": row + 1} | values)


def distance_matrix(table: "pd.DataFrame") -> Float[np.ndarray, "L L"]:
    """The matrix [n, l] of a `distance_table`."""
    return table.pivot(index="size", columns="start", values="distance").to_numpy()


def for_each_size(choose_cut: Callable[[int, int, Any], Cut]) -> Chooser:
    """A chooser that calls a function of one size, L and what the rule needs, once for each size."""
    return lambda sizes, layers, known: [choose_cut(size, layers, known) for size in sizes]


def choose_similar_block(first: int = 0, extra: int = 0) -> Chooser:
    """argmax over l of cos(x(l), x(l+n)), from l = `first` to L-1-n; of equal blocks the first.

    The mean runs over all tokens, not the last ones, and is of cosines, not of angles. The candidates are the paper's
    blocks, which keep the last layer; the code of LLM-Streamline also tries blocks that drop it. A bridge is folded
    into the layer below the block (ReplaceMe), so the block can't start at layer 0: `first` is 1. A trained layer takes
    the place of the block (LLM-Streamline), so the block has one `extra` layer that comes back.
    """

    def choose_cut(size: int, _: int, cosines: np.ndarray) -> Cut:
        of_blocks = np.diagonal(cosines, size + extra)[first:-1]
        return Cut(int(of_blocks.argmax()) + first + extra, size)

    return for_each_size(choose_cut)


# ---- orders of layers, or of sublayers -----------------------------------------------------------------------------


def make_cut(parts: Iterable[Part]) -> Cut:
    layers: dict[str, list[int]] = {}
    for kind, layer in parts:
        layers.setdefault(kind, []).append(layer)
    return Cut.of(**layers)


def choose_in_order(
    rank: Callable[[list[Part], Any, int], list[Part]], *kinds: str, first: int = 0, last: int = 0
) -> Chooser:
    """The candidates that `rank` puts first, wherever they are: parts of these kinds, of all but the first and last
    layers. A size of n drops n of them, of two kinds 2n, about as many weights as n layers have."""

    def choose_cuts(sizes, layers, known):
        candidates = list(itertools.product(kinds, range(first, layers - last)))
        order = rank(candidates, known, len(kinds) * max(sizes, default=0))
        return [make_cut(order[: len(kinds) * size]) for size in sizes]

    return choose_cuts


def rank_by_score(scores: Callable[[list[Part], Any], Sequence[float] | np.ndarray]):
    """From the lowest score to the highest, all ranked at once; of equal candidates the first is first."""

    def rank(candidates: list[Part], known: Any, _: int) -> list[Part]:
        places = np.argsort(scores(candidates, known), kind="stable")
        return [candidates[place] for place in places]

    return rank


def rank_greedily(candidates: list[Part], losses: Losses, number: int) -> list[Part]:
    """One after another the one whose removal leaves the lowest loss on text, of equal ones the first.

    The candidates of a step share the layers below those in which they differ. The tree of layers therefore runs them
    at about half the price of separate runs.
    """
    order: list[Part] = []
    for _ in range(number):
        remaining = [candidate for candidate in candidates if candidate not in order]
        cuts = [make_cut([*order, candidate]) for candidate in remaining]
        best = int(np.argmin(losses(cuts)))
        order.append(remaining[best])
    return order


def rank_at_random(seed: int):
    """A control: the random order of a seed."""
    return lambda candidates, *_: random.Random(f"layers {seed}").sample(
        candidates, len(candidates)
    )


# ---- merges ------------------------------------------------------------------------------------------------------

MERGED_SHARE = 7 / 40  # share of the layers that one merge turns into one
THRESHOLDS = tuple(
    round(0.95 - 0.05 * step, 2) for step in range(20)
)  # of the likeness; the last is 0


def choose_merges(size: int, layers: int, likeness: Likeness) -> list[MergedLayer]:
    """LaCo: the layers of a model in which `size` layers were merged into one below them, from the top down.

    Layers are merged where the final states stay alike. Source: Yang et al., arXiv 2402.11187, algorithm 1, with the
    trials in the order of the authors' notebook for Llama-2-13B: it merges 7 of 40 layers, then goes one layer down.
    Their threshold sets how many layers go; here the number is given, and the highest threshold that reaches it is
    taken. The last trials merge no more than is left to drop: at a size below MERGED_SHARE the top layers stay.
    """
    merged: list[MergedLayer] = list(range(layers))
    for threshold in THRESHOLDS:
        candidate = _merge_downwards(merged, layers - size, likeness, threshold)
        if len(candidate) == layers - size:
            return candidate
    while len(merged) > layers - size:  # no threshold reaches the number: merge without comparing
        merged = _merge_downwards(merged, layers - size, lambda _: 1.0, 0.0)
    return merged


def target_layer(layer: MergedLayer) -> int:
    """The layer into which others were merged; a layer that was not merged is its own."""
    return layer if isinstance(layer, int) else target_layer(layer[0])


def cut_of_merges(merged: Sequence[MergedLayer], layers: int) -> Cut:
    """The cut that drops the layers which were merged into others."""
    return Cut.of(set(range(layers)) - set(map(target_layer, merged)))


def _merge_downwards(
    merged: list[MergedLayer], wanted: int, likeness: Likeness, threshold: float
) -> list[MergedLayer]:
    """Goes down through the layers once, merging where the likeness is above the threshold, until `wanted` are left."""
    span = max(2, round(MERGED_SHARE * (target_layer(merged[-1]) + 1)))
    for start in range(max(0, len(merged) - 1 - span), -1, -1):
        end = min(start + span, start + 1 + len(merged) - wanted, len(merged))
        trial = [*merged[:start], tuple(merged[start:end]), *merged[end:]]
        if end > start + 1 and likeness(trial) > threshold:
            merged = trial
    return merged
