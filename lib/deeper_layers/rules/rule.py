"""What a rule is: which layers to drop, for every size, from what it needs to know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from deeper_layers.cuts import Cut, check_size
from deeper_layers.errors import InputError

Losses = Callable[[list[Cut]], Sequence[float]]  # of each of some pruned models the loss on text, nats a token
# a layer by its number, or layers merged into the first of them, each of which may be such a merged one
Merged = int | tuple
Ranked = TypeVar("Ranked", int, tuple[int, int])
Likeness = Callable[[list[Merged]], float]  # cosine of the final states of a model of these layers with the whole one's

HOW = {
    "distances": "measure them with angular_distances", "losses": "open the model",
    "cosines": "measure them with evaluation.known_of", "sublayers": "measure them with evaluation.known_of",
    "saliences": "measure them with evaluation.known_of", "likeness": "open the model",
}  # fmt: skip
# what a rule makes of the layers that it keeps; "" is nothing
MERGED, LAST_TAKEN, LEAST_SQUARES, COSINE, TRAINED = "merged", "last taken", "least squares", "cosine", "trained"


@dataclass(frozen=True)
class Known:
    """What is known of a model when a rule is asked.

    What is None was not measured.

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
        needs: attribute of `Known` without which it can't choose; "" where it needs none.
        source: paper and section.
        cuts: for each size the cut, from what is known.
        passes: its price in passes of all layers over the calibration text, for the largest size and L layers.
        heads: and in passes of the head, which runs for each pruned model whose loss is measured.
        fits: and for each size in passes over the text that a bridge is fitted on.
        drops_sublayers: whether a layer may lose its attention or its MLP alone.
        changes: what becomes of the weights that stay, of those above; "" where they stay as they are.
    """

    name: str
    words: str
    needs: str
    source: str
    cuts: Callable[[Sequence[int], Known], list[Cut]]
    passes: Callable[[int, int], float]
    changes: str = ""
    heads: Callable[[int, int], int] = lambda size, layers: 0
    fits: float = 0.0
    drops_sublayers: bool = False

    def price(self, size: int, layers: int) -> str:
        """Its price, in words."""
        return price_in_words(self.passes(size, layers), self.heads(size, layers))

    def choose(self, sizes: Sequence[int], known: Known) -> list[Cut]:
        """The cut of each size. Raises InputError where a size does not fit, or what it needs is missing."""
        if self.needs and getattr(known, self.needs) is None:
            raise InputError(f"the rule {self.name!r} needs {self.needs}, got None: {HOW[self.needs]}")
        for size in sizes:
            check_size(size, known.layers)
        return self.cuts(sizes, known)


def price_in_words(passes: float, heads: int) -> str:
    return f"at most {passes:,.1f} passes of all layers" + (f" and {heads:,} of the head" if heads else "")


def first_of(layer: Merged) -> int:
    """The layer into which others were merged, or a layer itself."""
    return layer if isinstance(layer, int) else first_of(layer[0])


def within(sizes: Sequence[int], most: int, why: str) -> None:
    """Raise InputError for a size above `most`, and say why a rule drops no more."""
    for size in sizes:
        if size > most:
            raise InputError(f"size is {size}; expected 0 to {most}, as {why}")


def in_order(order: Sequence[int], sizes: Sequence[int]) -> list[Cut]:
    """For each size the first layers of an order, which may leave some out. Raises InputError where it has too few."""
    within(sizes, len(order), "this rule never drops the other layers")
    return [Cut.of(order[:size]) for size in sizes]


def rising(scores: np.ndarray, candidates: Sequence[Ranked]) -> list[Ranked]:
    """Layers, or sublayers (row, layer), by rising score, of equal ones the first.

    Raises InputError for a score that is not a number.
    """
    if np.isnan(scores).any():
        found = candidates[int(np.isnan(scores).argmax())]
        layer = found[1] if isinstance(found, tuple) else found
        raise InputError(f"the score of layer {layer} is not a number: use another data type")
    return [candidates[place] for place in np.argsort(scores, kind="stable")]
