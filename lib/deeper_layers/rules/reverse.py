"""The last layers, the very last one among them: the simple heuristic without its exception.

Source: Men et al., arXiv 2403.03853, compare with it as reverse order; Gromov et al., arXiv 2403.17887, section 4.4,
with the last layer kept.
"""

from deeper_layers.cuts import Cut
from deeper_layers.rules.rule import Rule

RULE = Rule(
    name="reverse",
    words="the last layers",
    source="Men et al., arXiv 2403.03853",
    cuts=lambda sizes, layers, _: [Cut(layers - size, size) for size in sizes],
)
