"""Rules that drop one block: those that need to know nothing, and those that look for the block that is most alike.

LLM-Streamline's block (Chen et al., arXiv 2403.19135, section 3.1) differs from the paper's rule in two things: the
mean runs over all tokens instead of the last one of a sequence, and is of cosines, not of angles. The candidates are
here the same blocks, those that keep the last layer; the authors' code tries those that drop it too.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import UNPRUNED, Cut, simple_cut


def before_the_last(sizes: Sequence[int], layers: int, _) -> list[Cut]:
    """The simple heuristic of Gromov et al., section 4.4."""
    return [simple_cut(layers, size) for size in sizes]


def from_the_end(sizes: Sequence[int], layers: int, _) -> list[Cut]:
    """The same without its exception: the very last layer goes too."""
    return [Cut(layers - size, size) for size in sizes]


def most_alike(
    sizes: Sequence[int], layers: int, cosines: Float[np.ndarray, "L1 L1"], least: int = 0, more: int = 0
) -> list[Cut]:
    """argmax over l of cos(x(l), x(l+n)), from l = `least` to L-1-n; of equal ones the first.

    A bridge that is folded into the layer below (ReplaceMe) has none below layer 0: `least` is 1. A trained layer that
    does the work of the block (LLM-Streamline) comes back, so the block has one layer `more` than is dropped.
    """
    starts = [int(np.diagonal(cosines, size + more)[least:-1].argmax()) + least + more if size else 0 for size in sizes]
    return [Cut(start, size) if size else UNPRUNED for start, size in zip(starts, sizes, strict=True)]
