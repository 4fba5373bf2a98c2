"""Greedy search by loss over sublayers: attention and MLP apart (BlockPruner).

Source: Zhong et al., arXiv 2406.10594, algorithm 1: at each step the sublayer goes whose removal leaves the lowest
perplexity. A size of n drops 2n sublayers, about as many weights as n layers have; no sublayer is barred.
"""

from collections.abc import Sequence

from deeper_layers.cuts import Cut
from deeper_layers.rules.llm_drop import PARTS, without
from deeper_layers.rules.rule import Losses, Rule, lowest_first


def sublayer_order(most: int, layers: int, losses: Losses) -> list[tuple[int, int]]:
    """The first `most` sublayers that the search drops; of equal losses attention goes before MLP, then the lowest."""
    order: list[tuple[int, int]] = []
    for _ in range(most):
        left = [(row, layer) for row in range(len(PARTS)) for layer in range(layers) if (row, layer) not in order]
        # one layer stays, whichever of its sublayers are left
        cuts = {one: cut for one in left if (cut := without([*order, one])).size < layers}
        order.append(lowest_first(losses(list(cuts.values())), list(cuts))[0])
    return order


def _cuts(sizes: Sequence[int], layers: int, losses: Losses) -> list[Cut]:
    order = sublayer_order(2 * max(sizes, default=0), layers, losses)
    return [without(order[: 2 * size]) for size in sizes]


def candidate_passes(size: int, layers: int) -> float:
    """Passes of all layers that the tree needs for all steps, at most."""
    # what a candidate runs for itself: from its layer on; the cheapest are dropped first in the worst case
    own = sorted(layers - layer for layer in range(layers) for _ in PARTS)
    return sum(layers + sum(own[step:]) for step in range(2 * size)) / layers


RULE = Rule(
    name="block-pruner",
    words="one sublayer after another, each the one whose removal leaves the lowest loss",
    source="Zhong et al., arXiv 2406.10594, algorithm 1",
    needs="losses",
    cuts=_cuts,
    search=candidate_passes,
    heads=lambda size, layers: sum(2 * layers - step for step in range(2 * size)),
    drops_sublayers=True,
)
