"""Greedy searches by loss: at each step goes what leaves the lowest loss on text, layers (SLEB) or sublayers.

The candidates of a step share all layers below the ones in which they differ, so that the tree of layers runs them for
about half of what they would cost one after another.
"""

from collections.abc import Sequence

from deeper_layers.cuts import Cut
from deeper_layers.rules.ranking import PARTS, without
from deeper_layers.rules.rule import Losses, lowest_first


def layer_by_layer(sizes: Sequence[int], layers: int, losses: Losses) -> list[Cut]:
    """SLEB: the first and the last layer are never dropped, as in the authors' code; of equal losses the lowest."""
    order: list[int] = []
    for _ in range(max(sizes, default=0)):
        candidates = [layer for layer in range(1, layers - 1) if layer not in order]
        order.append(lowest_first(losses([Cut.of([*order, layer]) for layer in candidates]), candidates)[0])
    return [Cut.of(order[:size]) for size in sizes]


def sublayer_by_sublayer(sizes: Sequence[int], layers: int, losses: Losses) -> list[Cut]:
    """BlockPruner: attention and MLP apart, none is barred; of equal losses attention goes before MLP.

    A size of n drops 2n sublayers, about as many weights as n layers have.
    """
    order: list[tuple[int, int]] = []
    for _ in range(2 * max(sizes, default=0)):
        left = [(row, layer) for row in range(len(PARTS)) for layer in range(layers) if (row, layer) not in order]
        # one layer stays, whichever of its sublayers are left
        cuts = {one: cut for one in left if (cut := without([*order, one])).size < layers}
        order.append(lowest_first(losses(list(cuts.values())), list(cuts))[0])
    return [without(order[: 2 * size]) for size in sizes]


# ---- what the searches cost at most, in passes of all layers: the nodes of their trees over L ---------------------


def passes_alone(size: int, layers: int) -> float:
    """Of each layer dropped alone: those below the dropped one are shared."""
    return (layers - 1 + sum(range(layers))) / layers


def passes_by_layer(size: int, layers: int) -> float:
    """All share the layers below the last candidate, and the one that drops layer i adds those above it."""
    return sum(left - 2 + sum(range(1, left - 1)) for left in range(layers, layers - size, -1)) / layers


def passes_by_sublayer(size: int, layers: int) -> float:
    """A candidate runs for itself from its layer on; the cheapest are dropped first in the worst case."""
    own = sorted(layers - layer for layer in range(layers) for _ in PARTS)
    return sum(layers + sum(own[step:]) for step in range(2 * size)) / layers
