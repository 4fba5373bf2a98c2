"""One shot by gradient: the layers whose weights, to first order, the loss needs least (Shortened LLaMA).

Source: Kim et al., arXiv 2402.02834, section 3, with "Taylor": a layer's score is the sum over its weights of
abs(w dL/dw), L the loss on the calibration text. "Taylor+" never drops the first four and the last two layers.
"""

from collections.abc import Sequence

import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.rules.perplexity import FIRST, LAST, PLUS, those_asked
from deeper_layers.rules.rule import Rule, in_order, lowest_first


def _cuts(sizes: Sequence[int], layers: int, saliences: np.ndarray, plus: bool) -> list[Cut]:
    candidates = those_asked(layers, plus)
    return in_order(lowest_first(saliences[candidates], candidates), sizes)


RULES = tuple(
    Rule(
        name=f"taylor{end}",
        words=f"the layers whose weights matter least to first order{said}",
        source="Kim et al., arXiv 2402.02834, section 3",
        needs="saliences",
        cuts=lambda sizes, layers, saliences, plus=plus: _cuts(sizes, layers, saliences, plus),
        spares=(FIRST + LAST) if plus else 1,
    )
    for plus, end, said in PLUS
)
