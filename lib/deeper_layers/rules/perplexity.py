"""One shot by loss: those layers go together whose absence alone leaves the lowest loss (Shortened LLaMA).

Source: Kim et al., arXiv 2402.02834, section 3, with "PPL". Their "+" variants never drop the first four and the last
two layers. Ranks by perplexity are ranks by loss.
"""

from collections.abc import Sequence

from deeper_layers.cuts import Cut
from deeper_layers.rules.rule import Losses, Rule, in_order, lowest_first

FIRST, LAST = 4, 2  # layers that the "+" variants keep at either end
PLUS = ((False, "", ""), (True, "-plus", "; the first four and the last two stay"))


def those_asked(layers: int, plus: bool) -> list[int]:
    """Layers that may go: of the "+" variants all but those at the ends."""
    return list(range(FIRST, layers - LAST) if plus else range(layers))


def _cuts(sizes: Sequence[int], layers: int, losses: Losses, plus: bool) -> list[Cut]:
    candidates = those_asked(layers, plus)
    found = losses([Cut(layer, 1) for layer in candidates]) if candidates else []
    return in_order(lowest_first(found, candidates), sizes)


def alone_nodes(size: int, layers: int) -> float:
    """Passes of all layers for each layer dropped alone, as a tree: those below the dropped one are shared."""
    return (layers - 1 + sum(layers - 1 - layer for layer in range(layers))) / layers


RULES = tuple(
    Rule(
        name=f"perplexity{end}",
        words=f"the layers whose absence alone costs the least loss{said}",
        source="Kim et al., arXiv 2402.02834, section 3",
        needs="losses",
        cuts=lambda sizes, layers, losses, plus=plus: _cuts(sizes, layers, losses, plus),
        search=alone_nodes,
        heads=lambda size, layers: layers,
        spares=(FIRST + LAST) if plus else 1,
    )
    for plus, end, said in PLUS
)
