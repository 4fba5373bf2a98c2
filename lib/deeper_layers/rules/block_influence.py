"""Block Influence: drop the layers that turn their own input least, wherever they are (ShortGPT).

Source: Men et al., arXiv 2403.03853, section 3.2: BI of a layer is the mean over all tokens of 1 - cos(input, output).
Layers go one by one from the smallest, all in one shot, so that what goes need not be contiguous. No layer is barred.
"""

import numpy as np
from jaxtyping import Float

from deeper_layers.rules.rule import Rule, in_order, lowest_first


def block_influence(cosines: Float[np.ndarray, "L1 L1"]) -> Float[np.ndarray, " L"]:
    """1 - cos(x(l), x(l+1)) of each layer, from mean cosines of all residuals."""
    return 1 - np.diagonal(cosines, offset=1)


RULE = Rule(
    name="block-influence",
    words="the layers whose input and output are most alike over all tokens",
    source="Men et al., arXiv 2403.03853, section 3.2",
    needs="cosines",
    cuts=lambda sizes, layers, cosines: in_order(lowest_first(block_influence(cosines), range(layers)), sizes),
)
