"""How surely a block is the most similar one: l*(n) of sequences drawn anew, from the distances of each sequence.

All blocks share the same sequences, so their distances are drawn together and not apart.
Letters in shapes: S sequences, B blocks, in the order of a unit's rows.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers.report.statistics.outcomes import in_runs, resampled_means
from deeper_layers.results.packing import unpack_halves
from deeper_layers.results.units import Unit


def of_sequences(unit: Unit) -> Float[np.ndarray, "S B"]:
    """The distances of a unit of kind "distances", in units of pi."""
    return unpack_halves(unit.details["by_sequence"], int(unit.rows["samples"].iloc[0]))


def starts(unit: Unit, *, resamples: int = 1000) -> pd.DataFrame:
    """For each size but the largest: start (l*), share (of resamples in which it is this one), low and high.

    The last two are the ends of 95% of the resampled l*. As the rule has it, no block holds the last layer.
    """
    layers = unit.details["num_layers"]
    means = resampled_means(of_sequences(unit).T, resamples=resamples)
    found = []
    for size in range(1, layers):
        places = np.flatnonzero((unit.rows["size"] == size) & (unit.rows["start"] < layers - size))
        drawn = unit.rows["start"].to_numpy()[places[means[:, places].argmin(axis=1)]]
        low, high = np.quantile(drawn[1:], [0.025, 0.975], method="nearest")
        found.append({
            "size": size, "start": int(drawn[0]), "share": float((drawn[1:] == drawn[0]).mean()), "low": int(low),
            "high": int(high),
        })  # fmt: skip
    return pd.DataFrame(found)


def in_words(of_texts: Sequence[pd.DataFrame]) -> str:
    """At how many sizes two texts choose the same block, and where another one: tables of `starts` of one model."""
    one, other = (table.set_index("size")["start"] for table in of_texts)
    both = one.index.intersection(other.index)
    apart = both[one[both] != other[both]]
    others = f", another one at n = {in_runs(apart)}" if len(apart) else ""
    return f"both texts choose the same block at {len(both) - len(apart)} of {len(both)} sizes{others}"
