"""Every rule by name."""

from collections.abc import Sequence

import numpy as np

from deeper_layers.checks import shown
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.rules import (
    block_influence,
    block_pruner,
    chance,
    greedy,
    laco,
    llm_drop,
    perplexity,
    replaceme,
    reverse,
    similarity,
    simple,
    streamline,
    taylor,
    window_cosine,
)
from deeper_layers.rules.rule import Known, Losses

REGISTERED = {
    rule.name: rule
    for rule in (
        similarity.RULE, simple.RULE, reverse.RULE, *chance.RULES, block_influence.RULE, window_cosine.RULE,
        *perplexity.RULES, *taylor.RULES, greedy.RULE, *llm_drop.RULES, block_pruner.RULE, *laco.RULES,
        *replaceme.RULES, streamline.RULE,
    )
}  # fmt: skip
RULES = ("similarity", "simple")  # the paper's two, which notebooks compare
# those that leave the weights that stay as they are: their cut says all of the pruned model
DROPPING = tuple(name for name, rule in REGISTERED.items() if not rule.changes)


def cuts_of_rule(
    rule: str, sizes: Sequence[int], num_layers: int, distances: np.ndarray | None = None, losses: Losses | None = None
) -> list[Cut]:
    """The cut of each size under a rule.

    "similarity" drops the most similar block and needs `distances` [n, l], (L, L) in units of pi;
    "simple" drops the layers just before the last one; "greedy" searches by the `losses` of pruned models.
    Raises InputError for an unknown rule, a size that does not fit, or where what it needs is missing.
    """
    if rule not in REGISTERED:
        raise InputError(f"rule is {shown(rule)}, expected one of {', '.join(map(repr, REGISTERED))}")
    return REGISTERED[rule].choose(sizes, Known(num_layers, distances, losses))
