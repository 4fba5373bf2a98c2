"""Rules that choose which contiguous layers to drop, for every block size (Gromov et al. 2024, section 3)."""

from collections.abc import Sequence

import numpy as np

from deeper_layers.checks import shown
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.rules.similarity import similarity_cut

RULES = ("similarity", "simple")


def cuts_of_rule(rule: str, sizes: Sequence[int], num_layers: int, distances: np.ndarray | None = None) -> list[Cut]:
    """The cut of each size under a rule.

    "similarity" drops the most similar block and needs `distances` [n, l], (L, L) in units of pi;
    "simple" drops the layers just before the last one.
    Raises InputError for an unknown rule, a size that does not fit, or missing distances.
    """
    if rule == "simple":
        return [simple_cut(num_layers, size) for size in sizes]
    if rule != "similarity":
        raise InputError(f"rule is {shown(rule)}, expected one of {', '.join(map(repr, RULES))}")
    if distances is None:
        raise InputError("the rule 'similarity' needs distances, got None: measure them with angular_distances")
    return [similarity_cut(distances, size) for size in sizes]


def measured_cuts(rules: Sequence[str], cuts: Sequence[Cut], num_layers: int) -> dict[str, list[Cut]]:
    """Which of the cuts of one measurement belong to which rule, by size.

    Those of "simple" are known by their place; a size that has another cut too has it from the other rule, and a
    size that has not is one on which the rules agree.
    """
    cuts = sorted(set(cuts), key=lambda cut: (cut.size, cut.start))
    simple = [cut for cut in cuts if cut == simple_cut(num_layers, cut.size)]
    others = {cut.size: cut for cut in cuts if cut not in simple}
    found = {}
    for rule in rules:
        found[rule] = simple if rule == "simple" else [*others.values()] + [c for c in simple if c.size not in others]
        found[rule] = sorted(found[rule], key=lambda cut: cut.size)
    return found
