"""Greedy search by loss: at each step drop the layer whose removal leaves the lowest loss on text (SLEB).

Source: Song et al., arXiv 2402.09025, algorithm 1. The first and the last layer are never dropped, as in the authors'
code. The candidates of a step share all layers below the ones in which they differ, so that the tree of layers runs
them for about half of what they would cost one after another.
"""

from deeper_layers.cuts import Cut
from deeper_layers.rules.rule import Losses, Rule, in_order, lowest_first


def greedy_order(most: int, layers: int, losses: Losses) -> list[int]:
    """The first `most` layers that greedy search drops, in its order; of equal losses the lowest layer."""
    order: list[int] = []
    for _ in range(most):
        candidates = [layer for layer in range(1, layers - 1) if layer not in order]
        order.append(lowest_first(losses([Cut.of([*order, layer]) for layer in candidates]), candidates)[0])
    return order


def candidate_nodes(size: int, layers: int) -> float:
    """Passes of all layers that the tree needs for all steps, at most: nodes over layers."""
    # all share the layers below the last candidate, and the one that drops layer i adds those above it
    steps = [left - 2 + sum(range(1, left - 1)) for left in range(layers, layers - size, -1)]
    return sum(steps) / layers


RULE = Rule(
    name="greedy",
    words="one layer after another, each the one whose removal leaves the lowest loss",
    source="Song et al., arXiv 2402.09025, algorithm 1",
    needs="losses",
    cuts=lambda sizes, layers, losses: in_order(greedy_order(max(sizes, default=0), layers, losses), sizes),
    spares=2,
    search=candidate_nodes,
    heads=lambda size, layers: sum(layers - 2 - step for step in range(size)),
)
