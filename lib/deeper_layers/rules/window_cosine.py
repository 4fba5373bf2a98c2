"""The block whose input and output are most alike, over all tokens (LLM-Streamline).

Source: Chen et al., arXiv 2403.19135, section 3.1. It differs from the paper's rule in two things: the mean runs over
all tokens instead of the last one of a sequence, and is of cosines, not of angles. The candidates are here the same
blocks, those that keep the last layer; the authors' code tries those that drop it too.
"""

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.rules.rule import Rule


def most_alike(cosines: Float[np.ndarray, "L1 L1"], size: int, least: int = 0) -> Cut:
    """argmax over l of cos(x(l), x(l+n)), from l = `least` to L-1-n; of equal ones the first."""
    if not size:
        return UNPRUNED
    return Cut(least + int(np.diagonal(cosines, size)[least:-1].argmax()), size)


RULE = Rule(
    name="window-cosine",
    words="the block whose input and output are most alike over all tokens",
    source="Chen et al., arXiv 2403.19135, section 3.1",
    needs="cosines",
    cuts=lambda sizes, layers, cosines: [most_alike(cosines, size) for size in sizes],
)
