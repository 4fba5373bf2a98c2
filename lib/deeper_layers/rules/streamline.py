"""The block that is most alike, of one layer more, and one layer trained to do its work (LLM-Streamline).

Source: Chen et al., arXiv 2403.19135, section 3: the block by cosines over all tokens, as in window_cosine.py; then a
light network, here one layer of the model, is trained to turn the block's input into its output. As that layer comes
back, the block has n + 1 layers where n are dropped.
"""

from collections.abc import Sequence

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.rules.rule import TRAINED, Rule
from deeper_layers.rules.window_cosine import most_alike


def _cuts(sizes: Sequence[int], layers: int, cosines: np.ndarray) -> list[Cut]:
    return [Cut(most_alike(cosines, size + 1).start + 1, size) if size else UNPRUNED for size in sizes]


RULE = Rule(
    name="streamline",
    words="the block that is most alike over all tokens, with one trained layer in its place",
    source="Chen et al., arXiv 2403.19135, section 3",
    needs="cosines",
    cuts=_cuts,
    fits=1.0,  # what the trained layer's own work costs is not counted
    changes=TRAINED,
    spares=2,  # the one that is trained, and the last
)
