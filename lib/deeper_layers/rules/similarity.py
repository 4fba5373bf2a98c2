"""The paper's rule: drop the most similar block. Distances as rows and as a matrix [n, l].

Source: Gromov et al., arXiv 2403.17887, section 3.2, step 2.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from deeper_layers.cuts import UNPRUNED, Cut, check_size
from deeper_layers.errors import InputError

if TYPE_CHECKING:  # slow, and not needed to choose
    import pandas as pd


def similarity_cut(distances: Float[np.ndarray, "L L"], size: int) -> Cut:
    """The cut of `size` layers with the smallest angular distance, l*(n) = argmin over l of d(l, n).

    Source: paper, section 3.2, step 2. As the last layer is never dropped, the candidates are the starts l
    with l + n <= L - 1. Of equal distances the smallest start is taken.

    Args:
        distances: array (L, L) of angular distances in units of pi; row n-1 belongs to block size n = 1..L,
            column l to the start l = 0..L-1; nan where l + n > L.
        size: number of layers to drop, n, from 0 to L-1.

    Raises:
        InputError: the array is not square, size is outside of 0 to L-1, or a candidate has no distance.

    Example:
        Of three layers, the second turns the residual least:

        >>> import numpy as np
        >>> from deeper_layers import similarity_cut
        >>> nan = np.nan
        >>> similarity_cut(np.array([[0.3, 0.1, 0.2], [0.4, 0.2, nan], [0.5, nan, nan]]), size=1)
        Cut(start=1, size=1)
    """
    found = np.asarray(distances, dtype=np.float64)
    length = len(found)
    if found.shape != (length, length):
        raise InputError(
            f"distances is of shape {found.shape}; expected (L, L) for a model of L layers; pass the whole array that "
            "angular_distances returns"
        )
    check_size(size, length)
    if size == 0:
        return UNPRUNED
    candidates = found[size - 1, : length - size]
    if np.isnan(candidates).any():
        raise InputError(
            f"distances holds nan for size {size} at start {int(np.isnan(candidates).argmax())}; expected a "
            f"number for every start from 0 to {length - size - 1}; measure them again with angular_distances"
        )
    return Cut(int(candidates.argmin()), size)


def distance_table(mean: np.ndarray, error: np.ndarray, samples: int) -> "pd.DataFrame":
    """The matrices [n, l] as rows: start (l), size (n), distance and its standard error, samples."""
    import pandas as pd  # slow

    layers = len(mean)
    size, start = np.nonzero(np.arange(1, layers + 1)[:, None] + np.arange(layers) <= layers)
    values = {"distance": mean[size, start], "stderr": error[size, start]}
    return pd.DataFrame({"start": start, "size": size + 1} | values | {"samples": samples})


def distance_matrix(table: "pd.DataFrame") -> Float[np.ndarray, "L L"]:
    """The matrix [n, l] of a `distance_table`."""
    return table.pivot(index="size", columns="start", values="distance").to_numpy()
