"""Sublayers whose input and output are most alike: attention, MLP, or both together (LLM-Drop).

Source: He et al., arXiv 2406.15786, section 3: the score of a sublayer is 1 - cos(x, x + f(norm(x))), mean over all
tokens, and the smallest go in one shot. A size of n drops n attentions, or n MLPs, or 2n of all sublayers together
("joint"): only the last drops about as many weights as n layers have.
"""

from collections.abc import Sequence

import numpy as np

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.rules.rule import Rule, lowest_first

PARTS = (ATTENTION, MLP)  # rows of the cosines of sublayers


def without(sublayers: Sequence[tuple[int, int]]) -> Cut:
    """The cut of sublayers (row of PARTS, layer)."""
    return Cut.of(**{part: [layer for row, layer in sublayers if row == number] for number, part in enumerate(PARTS)})


def _cuts(sizes: Sequence[int], layers: int, cosines: np.ndarray, rows: list[int]) -> list[Cut]:
    """Those of some rows most like their input; of equal ones attention, then the lowest layer."""
    order = lowest_first(1 - cosines[rows].ravel(), [(row, layer) for row in rows for layer in range(layers)])
    return [without(order[: size * len(rows)]) for size in sizes]


RULES = tuple(
    Rule(
        name=name,
        words=words,
        source="He et al., arXiv 2406.15786, section 3",
        needs="sublayers",
        cuts=lambda sizes, layers, cosines, rows=rows: _cuts(sizes, layers, cosines, rows),
        drops_sublayers=True,
    )
    for name, words, rows in (
        ("llm-drop-attention", "the attentions whose input and output are most alike", [0]),
        ("llm-drop-mlp", "the MLPs whose input and output are most alike", [1]),
        ("llm-drop", "the sublayers, twice as many as layers, whose input and output are most alike", [0, 1]),
    )
)
