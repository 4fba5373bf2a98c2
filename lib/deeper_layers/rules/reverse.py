"""The last layers, the very last one among them: the simple heuristic without its exception.

Source: Men et al., arXiv 2403.03853, compare with it as reverse order; Gromov et al., arXiv 2403.17887, section 4.4,
with the last layer kept.
"""

from deeper_layers.cuts import Cut
from deeper_layers.rules.rule import Known, Rule


def _cuts(sizes, known: Known) -> list[Cut]:
    return [Cut(known.layers - size, size) for size in sizes]


RULE = Rule(
    name="reverse",
    words="the last layers",
    needs="",
    source="Men et al., arXiv 2403.03853",
    cuts=_cuts,
    passes=lambda size, layers: 0.0,
)
