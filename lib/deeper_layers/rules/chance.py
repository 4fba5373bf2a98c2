"""Layers drawn at random, which any rule must surpass: five draws, so that their spread is seen.

Source: a control of ours; Kim et al., arXiv 2402.02834, and Men et al., arXiv 2403.03853, compare with such too. The
last layer stays, as under the paper's rules, and a larger cut contains the smaller ones of its draw.
"""

import random

from deeper_layers.rules.rule import Rule, in_order

SEEDS = range(5)


def drawn(seed: int, layers: int) -> list[int]:
    """All layers but the last in an order of this seed."""
    return random.Random(f"layers {seed}").sample(range(layers - 1), layers - 1)


RULES = tuple(
    Rule(
        name=f"random-{seed}",
        words=f"layers drawn at random (draw {seed})",
        source="a control; as in Kim et al., arXiv 2402.02834",
        cuts=lambda sizes, layers, _, seed=seed: in_order(drawn(seed, layers), sizes),
    )
    for seed in SEEDS
)
