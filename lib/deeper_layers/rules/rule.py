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

# what a rule may need, and how many passes of all layers it takes to measure: sublayers run each layer once more
# without its MLP, saliences a backward pass worth two; of a search by "losses" or "likeness" the rule itself says it
PASSES = {"": 0.0, "distances": 1.0, "cosines": 1.0, "sublayers": 2.0, "saliences": 3.0}
# what a rule makes of the layers that it keeps; "" is nothing
MERGED, LAST_TAKEN, LEAST_SQUARES, COSINE, TRAINED = "merged", "last taken", "least squares", "cosine", "trained"


@dataclass(frozen=True)
class Known:
    """What is known of a model when a rule is asked; what is None was not measured.

    Attributes:
        layers: number of its layers, L.
        distances: angular distances [n, l], (L, L) in units of pi.
        losses: what measures pruned models.
        cosines: of the residuals that enter layers l and m, mean over all tokens, (L + 1, L + 1); the last one leaves
            the last layer, before the final norm.
        sublayers: of what enters and what leaves the attention (row 0) and the MLP (row 1) of each layer, mean cosine
            over all tokens, (2, L).
        saliences: for each layer the sum over its weights of abs(w dL/dw), (L,).
        likeness: what compares models with merged layers to the whole one.
    """

    layers: int
    distances: np.ndarray | None = None
    losses: Losses | None = None
    cosines: np.ndarray | None = None
    sublayers: np.ndarray | None = None
    saliences: np.ndarray | None = None
    likeness: Likeness | None = None


@dataclass(frozen=True)
class Rule:
    """A rule of choosing layers.

    Attributes:
        name: as it is typed.
        words: what it drops, in a sentence's middle.
        source: paper and section.
        cuts: for each size the cut, from sizes, the number of layers, and what it needs.
        needs: attribute of `Known` without which it can't choose; "" where it needs none.
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

    def price(self, size: int, layers: int) -> str:
        """Its price, in words."""
        return price_in_words(self.passes(size, layers), self.heads(size, layers))

    def choose(self, sizes: Sequence[int], known: Known) -> list[Cut]:
        """The cut of each size.

        Raises InputError where a size does not fit, or what the rule needs is missing or holds what is not a number.
        """
        needed = getattr(known, self.needs) if self.needs else None
        if self.needs and needed is None:
            how = "angular_distances" if self.needs == "distances" else "sweeping.known_of"
            raise InputError(f"the rule {self.name!r} needs {self.needs}, got None: measure them with {how}")
        for size in sizes:
            check_size(size, known.layers)
            if size > (most := max(0, known.layers - self.spares)):
                raise InputError(
                    f"size is {size}; expected 0 to {most}, as the rule {self.name!r} never drops the others"
                )
        return self.cuts(sizes, known.layers, self._numbers(needed))

    def _numbers(self, needed):
        """What it needs, or what answers with it, once that is known to be numbers."""
        if callable(needed):
            return lambda asked: self._numbers(needed(asked))
        if self.needs not in ("", "distances") and np.isnan(needed).any():  # of blocks too large there is no distance
            raise InputError(f"the {self.needs} of the model hold what is not a number: use another data type")
        return needed


def price_in_words(passes: float, heads: int) -> str:
    return f"at most {passes:,.1f} passes of all layers" + (f" and {heads:,} of the head" if heads else "")


def first_of(layer: Merged) -> int:
    """The layer into which others were merged, or a layer itself."""
    return layer if isinstance(layer, int) else first_of(layer[0])


def lowest_first(scores: Sequence[float] | np.ndarray, candidates: Sequence[Ranked]) -> list[Ranked]:
    """Layers, or sublayers (row, layer), by rising score, of equal ones the first."""
    return [candidates[place] for place in np.argsort(scores, kind="stable")]


def in_order(order: Sequence[int], sizes: Sequence[int]) -> list[Cut]:
    """For each size the first layers of an order."""
    return [Cut.of(order[:size]) for size in sizes]
