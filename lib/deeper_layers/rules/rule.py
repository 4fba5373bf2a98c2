"""What a rule is: which layers to drop, for every size, from what it needs to know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError

Losses = Callable[[list[Cut]], Sequence[float]]  # of each of some pruned models the loss on text, nats a token


@dataclass(frozen=True)
class Known:
    """What is known of a model when a rule is asked.

    Attributes:
        layers: number of its layers, L.
        distances: angular distances [n, l], (L, L) in units of pi; None where they are not measured.
        losses: what measures pruned models; None where that can't be done.
    """

    layers: int
    distances: np.ndarray | None = None
    losses: Losses | None = None


@dataclass(frozen=True)
class Rule:
    """A rule of choosing layers.

    Attributes:
        name: as it is typed.
        words: what it drops, in a sentence's middle.
        needs: attribute of `Known` without which it can't choose; "" where it needs none.
        source: paper and section.
        cuts: for each size the cut, from what is known.
        passes: its price in passes of the whole model over the calibration text, for the largest size and L layers.
    """

    name: str
    words: str
    needs: str
    source: str
    cuts: Callable[[Sequence[int], Known], list[Cut]]
    passes: Callable[[int, int], float]

    def choose(self, sizes: Sequence[int], known: Known) -> list[Cut]:
        """The cut of each size. Raises InputError where a size does not fit, or what it needs is missing."""
        if self.needs and getattr(known, self.needs) is None:
            how = {"distances": "measure them with angular_distances", "losses": "open the model"}[self.needs]
            raise InputError(f"the rule {self.name!r} needs {self.needs}, got None: {how}")
        return self.cuts(sizes, known)
