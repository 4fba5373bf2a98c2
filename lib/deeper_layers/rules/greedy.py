"""Greedy search by loss: at each step drop the layer whose removal leaves the lowest loss on text (SLEB).

Source: Song et al., arXiv 2402.09025, algorithm 1. The first and the last layer are never dropped, as in the authors'
code. The candidates of a step share all layers below the ones in which they differ, so that the tree of layers runs
them for about half of what they would cost one after another.
"""

from collections.abc import Sequence

import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.rules.rule import Known, Losses, Rule, within


def greedy_order(most: int, layers: int, losses: Losses) -> list[int]:
    """The first `most` layers that greedy search drops, in its order; of equal losses the lowest layer."""
    order: list[int] = []
    for _ in range(most):
        candidates = [layer for layer in range(1, layers - 1) if layer not in order]
        found = np.asarray(losses([Cut.of([*order, layer]) for layer in candidates]), dtype=float)
        if np.isnan(found).any():
            without = sorted([*order, candidates[int(np.isnan(found).argmax())]])
            raise InputError(f"the loss without layers {without} is not a number: measure in another data type")
        order.append(candidates[int(found.argmin())])
    return order


def greedy_cuts(sizes: Sequence[int], known: Known) -> list[Cut]:
    """For each size the layers that the search has dropped by then."""
    assert known.losses is not None
    within(sizes, known.layers - 2, "the first and the last layer are never dropped")
    order = greedy_order(max(sizes, default=0), known.layers, known.losses)
    return [Cut.of(order[:size]) for size in sizes]


def candidate_nodes(size: int, layers: int) -> float:
    """Passes of all layers that the tree needs for all steps, at most: nodes over layers."""
    nodes = 0
    for dropped in range(size):
        left = layers - dropped
        # all share the layers below the last candidate, and the one that drops layer i adds those above it
        nodes += left - 2 + sum(left - 1 - place for place in range(1, left - 1))
    return nodes / layers


RULE = Rule(
    name="greedy",
    words="one layer after another, each the one whose removal leaves the lowest loss",
    needs="losses",
    source="Song et al., arXiv 2402.09025, algorithm 1",
    cuts=greedy_cuts,
    passes=candidate_nodes,
    heads=lambda size, layers: sum(layers - 2 - step for step in range(size)),
)
