"""The simple heuristic: drop the layers just before the last one (Gromov et al. 2024, section 4.4)."""

from deeper_layers.cuts import simple_cut
from deeper_layers.rules.rule import Rule

RULE = Rule(
    name="simple",
    words="the layers just before the last one",
    source="Gromov et al., arXiv 2403.17887, section 4.4",
    cuts=lambda sizes, layers, _: [simple_cut(layers, size) for size in sizes],
)
