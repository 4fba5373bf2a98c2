"""Rules that rank layers, or sublayers, by a number each, and drop the lowest in one shot, wherever they stand."""

import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.rules.rule import Losses, lowest_first

FIRST, LAST = 4, 2  # layers that "plus" variants keep at either end
PARTS = (ATTENTION, MLP)  # rows of the cosines of sublayers
Sizes = Sequence[int]


def by_block_influence(sizes: Sizes, layers: int, cosines: Float[np.ndarray, "L1 L1"]) -> list[Cut]:
    """ShortGPT: those that turn their input least, by 1 - cos(input, output), the mean over all tokens."""
    return _drop_lowest(1 - np.diagonal(cosines, offset=1), range(layers), sizes)


def by_loss_alone(sizes: Sizes, layers: int, losses: Losses, plus: bool = False) -> list[Cut]:
    """Shortened LLaMA, "PPL": those whose absence alone leaves the lowest loss. Ranks by perplexity are ranks by loss.

    With `plus` the first four and the last two stay.
    """
    candidates = range(layers)[FIRST:-LAST] if plus else range(layers)
    return _drop_lowest(losses([Cut(layer, 1) for layer in candidates]) if candidates else [], candidates, sizes)


def by_salience(sizes: Sizes, layers: int, saliences: Float[np.ndarray, " L"], plus: bool = False) -> list[Cut]:
    """Shortened LLaMA, "Taylor": those whose weights the loss needs least, by the sum of abs(w dL/dw)."""
    candidates = range(layers)[FIRST:-LAST] if plus else range(layers)
    return _drop_lowest(saliences[candidates], candidates, sizes)


def at_random(sizes: Sizes, layers: int, _, seed: int) -> list[Cut]:
    """A control: layers in an order of this seed. The last one stays, as under the paper's rules."""
    order = random.Random(f"layers {seed}").sample(range(layers - 1), layers - 1)
    return [Cut.of(order[:size]) for size in sizes]


def by_sublayer_cosine(sizes: Sizes, layers: int, cosines: Float[np.ndarray, "2 L"], rows: list[int]) -> list[Cut]:
    """LLM-Drop: sublayers of some rows whose input and output are most alike, by 1 - cos(x, x + f(norm(x))).

    A size of n drops n attentions, or n MLPs, or 2n of both together, about as many weights as n layers have. Of equal
    ones attention goes first.
    """
    order = lowest_first(1 - cosines[rows].ravel(), [(row, layer) for row in rows for layer in range(layers)])
    return [without(order[: size * len(rows)]) for size in sizes]


def without(sublayers: Sequence[tuple[int, int]]) -> Cut:
    """The cut of sublayers (row of PARTS, layer)."""
    return Cut.of(**{part: [layer for row, layer in sublayers if row == number] for number, part in enumerate(PARTS)})


def _drop_lowest(scores: Sequence[float] | np.ndarray, candidates: Sequence[int], sizes: Sizes) -> list[Cut]:
    order = lowest_first(scores, candidates)
    return [Cut.of(order[:size]) for size in sizes]
