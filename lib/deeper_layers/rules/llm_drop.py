"""Sublayers whose input and output are most alike: attention, MLP, or both together (LLM-Drop).

Source: He et al., arXiv 2406.15786, section 3: the score of a sublayer is 1 - cos(x, x + f(norm(x))), mean over all
tokens, and the smallest go in one shot. A size of n drops n attentions, or n MLPs, or 2n of all sublayers together
("joint"): only the last drops about as many weights as n layers have.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.rules.rule import Known, Rule, rising

PARTS = (ATTENTION, MLP)  # rows of the cosines of sublayers


def without(sublayers: Sequence[tuple[int, int]]) -> Cut:
    """The cut of sublayers (row of PARTS, layer)."""
    return Cut.of(**{part: [layer for row, layer in sublayers if row == number] for number, part in enumerate(PARTS)})


def least_needed(sublayers: Float[np.ndarray, "2 L"], rows: Sequence[int]) -> list[tuple[int, int]]:
    """Sublayers of some rows, those most like their input first; of equal ones attention, then the lowest layer."""
    found = [(row, layer) for row in rows for layer in range(sublayers.shape[1])]
    return rising(1 - sublayers[list(rows)].ravel(), found)


def _rule(name: str, words: str, rows: tuple[int, ...]) -> Rule:
    def cuts(sizes: Sequence[int], known: Known) -> list[Cut]:
        assert known.sublayers is not None
        order = least_needed(known.sublayers, rows)
        return [without(order[: size * len(rows)]) for size in sizes]

    return Rule(
        name=name,
        words=words,
        needs="sublayers",
        source="He et al., arXiv 2406.15786, section 3",
        cuts=cuts,
        passes=lambda size, layers: 2.0,  # each layer once without its MLP
        drops_sublayers=True,
    )


RULES = (
    _rule("llm-drop-attention", "the attentions whose input and output are most alike", (0,)),
    _rule("llm-drop-mlp", "the MLPs whose input and output are most alike", (1,)),
    _rule("llm-drop", "the sublayers, twice as many as layers, whose input and output are most alike", (0, 1)),
)
