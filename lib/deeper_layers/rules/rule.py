"""What a rule is: which layers to drop, for every size, from what it needs to know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from deeper_layers.cuts import Cut, check_size
from deeper_layers.errors import InputError

Losses = Callable[[list[Cut]], Sequence[float]]  # of each of some pruned models the loss on text, nats a token
# a layer by its number, or layers merged into the first of them, each of which may be such a merged one
Merged = int | tuple
Ranked = TypeVar("Ranked", int, tuple[int, int])
Likeness = Callable[[list[Merged]], float]  # cosine of the final states of a model of these layers with the whole one's

# what a rule may need, and how many passes of all layers it takes to measure; of a search the rule itself says it
PASSES = {
    "": 0.0,
    "distances": 1.0,  # angular distances [n, l], (L, L) in units of pi
    "cosines": 1.0,  # of what enters layers l and m, mean over tokens, (L + 1, L + 1); the last leaves the last layer
    "sublayers": 2.0,  # mean cosine of what enters and leaves attention (row 0) and MLP (row 1) of each layer, (2, L)
    "saliences": 3.0,  # for each layer the sum over its weights of abs(w dL/dw), (L,): a backward pass is worth two
    "losses": 0.0,  # what measures pruned models: `Losses`
    "likeness": 0.0,  # what compares models with merged layers to the whole one: `Likeness`
}
# what a rule makes of the layers that it keeps; "" is nothing
MERGED, LAST_TAKEN, LEAST_SQUARES, COSINE, TRAINED = "merged", "last taken", "least squares", "cosine", "trained"
SCALED = "scaled"


@dataclass(frozen=True)
class Rule:
    """A rule of choosing layers.

    Attributes:
        name: as it is typed.
        words: what it drops, in a sentence's middle.
        source: paper and section.
        cuts: for each size the cut, from sizes, the number of layers, and what it needs.
        needs: a key of PASSES.
        changes: what becomes of the weights that stay, of those above; "" where they stay as they are.
        search: passes of all layers that it takes to search, for the largest size and L layers.
        heads: and passes of the head, which runs for each pruned model whose loss is measured.
        fits: and for each size passes over the text that a bridge is fitted on.
        spares: how many layers it never drops.
        drops_sublayers: whether a layer may lose its attention or its MLP alone.
    """

    name: str
    words: str
    source: str
    cuts: Callable[[Sequence[int], int, Any], list[Cut]]
    needs: str = ""
    changes: str = ""
    search: Callable[[int, int], float] | None = None
    heads: Callable[[int, int], int] = lambda size, layers: 0
    fits: float = 0.0
    spares: int = 1
    drops_sublayers: bool = False

    def passes(self, size: int, layers: int) -> float:
        """Its price over the calibration text, in passes of all layers, for the largest size and L layers."""
        return self.search(size, layers) if self.search else PASSES[self.needs]

    def choose(self, sizes: Sequence[int], layers: int, known: Any = None) -> list[Cut]:
        """The cut of each size of a model of L layers, from what the rule needs.

        Raises InputError where a size does not fit, or what the rule needs is missing or holds what is not a number.
        """
        if self.needs and known is None:
            how = "angular_distances" if self.needs == "distances" else "sweeping.known_of"
            raise InputError(f"the rule {self.name!r} needs {self.needs}, got None: measure them with {how}")
        for size in sizes:
            check_size(size, layers)
            if size > (most := max(0, layers - self.spares)):
                raise InputError(
                    f"size is {size}; expected 0 to {most}, as the rule {self.name!r} never drops the others"
                )
        return self.cuts(sizes, layers, self._numbers(known))

    def _numbers(self, known):
        """What it needs, or what answers with it, once that is known to be numbers."""
        if callable(known):
            return lambda asked: self._numbers(known(asked))
        if self.needs not in ("", "distances") and np.isnan(known).any():  # of blocks too large there is no distance
            raise InputError(f"the {self.needs} of the model hold what is not a number: use another data type")
        return known


def price_in_words(passes: float, heads: int) -> str:
    return f"at most {passes:,.1f} passes of all layers" + (f" and {heads:,} of the head" if heads else "")


def lowest_first(scores: Sequence[float] | np.ndarray, candidates: Sequence[Ranked]) -> list[Ranked]:
    """Layers, or sublayers (row, layer), by rising score, of equal ones the first."""
    return [candidates[place] for place in np.argsort(scores, kind="stable")]
