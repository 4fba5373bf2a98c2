"""One shot by loss: those layers go together whose absence alone leaves the lowest loss (Shortened LLaMA).

Source: Kim et al., arXiv 2402.02834, section 3, with "PPL". Their "+" variants never drop the first four and the last
two layers. Ranks by perplexity are ranks by loss.
"""

from collections.abc import Sequence

import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.rules.rule import Known, Rule, in_order, rising

FIRST, LAST = 4, 2  # layers that the "+" variants keep at either end


def those_asked(layers: int, plus: bool) -> list[int]:
    """Layers that may go: of the "+" variants all but those at the ends."""
    return list(range(FIRST, layers - LAST) if plus else range(layers))


def _cuts(sizes: Sequence[int], known: Known, plus: bool) -> list[Cut]:
    assert known.losses is not None
    candidates = those_asked(known.layers, plus)
    losses = np.asarray(known.losses([Cut(layer, 1) for layer in candidates]) if candidates else [], dtype=float)
    return in_order(rising(losses, candidates), sizes)


def alone_nodes(size: int, layers: int) -> float:
    """Passes of all layers for each layer dropped alone, as a tree: those below the dropped one are shared."""
    return (layers - 1 + sum(layers - 1 - layer for layer in range(layers))) / layers


def _rule(plus: bool) -> Rule:
    said = "; the first four and the last two stay" if plus else ""
    return Rule(
        name="perplexity-plus" if plus else "perplexity",
        words=f"the layers whose absence alone costs the least loss{said}",
        needs="losses",
        source="Kim et al., arXiv 2402.02834, section 3",
        cuts=lambda sizes, known: _cuts(sizes, known, plus),
        passes=alone_nodes,
        heads=lambda size, layers: layers,
    )


RULES = (_rule(False), _rule(True))
