"""Every rule by name: which layers it drops of each size, from what it needs to know, with its source and its price.

The paper's rule drops the most similar block (similarity.py), its heuristic the layers before the last one. Rivals look
for a block in other ways, rank layers or sublayers by a number each, search greedily by loss, merge layers (laco.py),
or build a bridge over the block that they drop (changing.py).
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeper_layers.cuts import ATTENTION, MLP, UNPRUNED, Cut, check_size, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.rules import laco
from deeper_layers.rules.similarity import similarity_cut

Losses = Callable[[list[Cut]], Sequence[float]]  # of each of some pruned models the loss on text, nats a token
Cuts = Callable[[Sequence[int], int, Any], list[Cut]]  # for each size, of L layers, from what is known
# what a rule may need, and how many passes of all layers it takes to measure; of a search the rule itself says it
PASSES = {
    "": 0.0,
    "distances": 1.0,  # angular distances [n, l], (L, L) in units of pi
    "cosines": 1.0,  # of what enters layers l and m, mean over tokens, (L + 1, L + 1); the last leaves the last layer
    "sublayers": 2.0,  # mean cosine of what enters and leaves attention (row 0) and MLP (row 1) of each layer, (2, L)
    "saliences": 3.0,  # for each layer the sum over its weights of abs(w dL/dw), (L,): a backward pass is worth two
    "losses": 0.0,  # what measures pruned models: `Losses`
    "likeness": 0.0,  # what compares models with merged layers to the whole one: `laco.Likeness`
}
# what a rule makes of the layers that it keeps; "" is nothing
MERGED, LAST_TAKEN, LEAST_SQUARES, COSINE, TRAINED = "merged", "last taken", "least squares", "cosine", "trained"
SCALED = "scaled"
PARTS = (ATTENTION, MLP)
FIRST, LAST = 4, 2  # layers that "plus" variants keep at either end
SEEDS = range(5)  # of random draws, so many that their spread is seen


@dataclass(frozen=True)
class Rule:
    """A rule of choosing layers."""

    name: str  # as it is typed
    words: str  # what it drops, in a sentence's middle
    source: str  # paper and section
    cuts: Cuts
    needs: str = ""  # a key of PASSES
    changes: str = ""  # what becomes of the weights that stay, of those above
    search: Callable[[int, int], float] | None = None  # passes of all layers to search, for the largest size, L layers
    heads: Callable[[int, int], int] = lambda size, layers: 0  # and of the head, for each model whose loss is measured
    fits: float = 0.0  # and for each size passes over the text that a bridge is fitted on
    spares: int = 1  # how many layers it never drops
    drops_sublayers: bool = False  # whether a layer may lose its attention or its MLP alone

    def passes(self, size: int, layers: int) -> float:
        """Its price over the calibration text, in passes of all layers, for the largest size and L layers."""
        return self.search(size, layers) if self.search else PASSES[self.needs]

    def choose(self, sizes: Sequence[int], layers: int, known: Any = None) -> list[Cut]:
        """The cut of each size of a model of L layers, from what the rule needs.

        Raises InputError where a size does not fit, or what the rule needs holds what is not a number.
        """
        for size in sizes:
            check_size(size, layers)
            if size > (most := max(0, layers - self.spares)):
                raise InputError(
                    f"size is {size}; expected 0 to {most}, as the rule {self.name!r} never drops the others"
                )
        # of blocks too large there is no distance; losses are numbers, or were refused where they were measured
        if self.needs in ("cosines", "sublayers", "saliences") and np.isnan(known).any():
            raise InputError(f"the {self.needs} of the model hold what is not a number: use another data type")
        return self.cuts(sizes, layers, known)


def price_in_words(passes: float, heads: int) -> str:
    return f"at most {passes:,.1f} passes of all layers" + (f" and {heads:,} of the head" if heads else "")


# ---- blocks ------------------------------------------------------------------------------------------------------


def _of_each(cut: Callable[[int, int, Any], Cut]) -> Cuts:
    """What gives a cut of one size, asked for each; none has to be chosen of size 0."""
    return lambda sizes, layers, known: [cut(size, layers, known) if size else UNPRUNED for size in sizes]


def _most_alike(least: int = 0, more: int = 0) -> Cuts:
    """argmax over l of cos(x(l), x(l+n)), from l = `least` to L-1-n; of equal ones the first.

    The mean runs over all tokens, not the last ones, and is of cosines, not of angles. The candidates are the paper's
    blocks, those that keep the last layer; the code of LLM-Streamline tries those that drop it too. A bridge that is
    folded into the layer below (ReplaceMe) has none below layer 0: `least` is 1. A trained layer that does the work of
    the block (LLM-Streamline) comes back, so the block has one layer `more` than is dropped.
    """
    return _of_each(
        lambda size, _, cosines: Cut(int(np.diagonal(cosines, size + more)[least:-1].argmax()) + least + more, size)
    )


# ---- orders: of layers, or of sublayers (row of PARTS, layer) --------------------------------------------------------


def _without(sublayers: Sequence[tuple[int, int]]) -> Cut:
    return Cut.of(**{part: [layer for row, layer in sublayers if row == number] for number, part in enumerate(PARTS)})


def _lowest_first(scores: Sequence[float] | np.ndarray, candidates: Sequence) -> list:
    """By rising score, of equal ones the first."""
    return [candidates[place] for place in np.argsort(scores, kind="stable")]


def _lowest(scores: Callable[[Any, Sequence[int]], Sequence[float] | np.ndarray], *, plus: bool = False) -> Cuts:
    """The layers of the lowest scores in one shot, wherever they stand; with `plus` the first and last ones stay."""

    def cuts(sizes, layers, known):
        candidates = range(layers)[FIRST:-LAST] if plus else range(layers)
        order = _lowest_first(scores(known, candidates), candidates) if candidates else []
        return [Cut.of(order[:size]) for size in sizes]

    return cuts


def _lowest_sublayers(*rows: int) -> Cuts:
    """LLM-Drop: sublayers of some rows whose input and output are most alike, by 1 - cos(x, x + f(norm(x))).

    A size of n drops n attentions, or n MLPs, or 2n of both together, about as many weights as n layers have. Of equal
    ones attention goes first.
    """

    def cuts(sizes, layers, cosines):
        candidates = [(row, layer) for row in rows for layer in range(layers)]
        order = _lowest_first(1 - cosines[list(rows)].ravel(), candidates)
        return [_without(order[: size * len(rows)]) for size in sizes]

    return cuts


def _greedily(candidates: Callable[[int], list], cut_of: Callable[[Sequence], Cut] = Cut.of, each: int = 1) -> Cuts:
    """One after another, each the one whose removal leaves the lowest loss on text, of equal ones the first.

    The candidates of a step share all layers below the ones in which they differ, so that the tree of layers runs them
    for about half of what they would cost one after another. `each`: so many of them go a layer of size.
    """

    def cuts(sizes, layers, losses):
        order: list = []
        for _ in range(each * max(sizes, default=0)):
            left = {one: cut_of([*order, one]) for one in candidates(layers) if one not in order}
            left = {one: cut for one, cut in left.items() if cut.size < layers}  # one layer stays
            order.append(_lowest_first(losses(list(left.values())), list(left))[0])
        return [cut_of(order[: each * size]) for size in sizes]

    return cuts


def _at_random(seed: int) -> Cuts:
    """A control: layers in an order of this seed. The last one stays, as under the paper's rules."""

    def cuts(sizes, layers, _):
        order = random.Random(f"layers {seed}").sample(range(layers - 1), layers - 1)
        return [Cut.of(order[:size]) for size in sizes]

    return cuts


# ---- what searches cost at most, in passes of all layers: the nodes of their trees over L ----------------------------


def _passes_alone(size: int, layers: int) -> float:
    """Of each layer dropped alone: those below the dropped one are shared."""
    return (layers - 1 + sum(range(layers))) / layers


def _passes_by_layer(size: int, layers: int) -> float:
    """All share the layers below the last candidate, and the one that drops layer i adds those above it."""
    return sum(left - 2 + sum(range(1, left - 1)) for left in range(layers, layers - size, -1)) / layers


def _passes_by_sublayer(size: int, layers: int) -> float:
    """A candidate runs for itself from its layer on; the cheapest are dropped first in the worst case."""
    own = sorted(layers - layer for layer in range(layers) for _ in PARTS)
    return sum(layers + sum(own[step:]) for step in range(2 * size)) / layers


# ---- the table ---------------------------------------------------------------------------------------------------


def _with_plus(name: str, words: str, scores: Callable, **how) -> tuple[Rule, Rule]:
    """A rule of Shortened LLaMA, and the same where the layers at either end stay."""
    plus = f"{words}; the first four and the last two stay"
    return (
        Rule(name, words, f"{KIM}, section 3", _lowest(scores), **how),
        Rule(f"{name}-plus", plus, f"{KIM}, section 3", _lowest(scores, plus=True), spares=FIRST + LAST, **how),
    )


GROMOV, CHEN, KIM = "Gromov et al., arXiv 2403.17887", "Chen et al., arXiv 2403.19135", "Kim et al., arXiv 2402.02834"
MEN, SHOPKHOEV = "Men et al., arXiv 2403.03853", "Shopkhoev et al., arXiv 2505.02819"
ALIKE = "the block that is most alike over all tokens"
_sublayers = functools.partial(
    Rule, source="He et al., arXiv 2406.15786, section 3", needs="sublayers", drops_sublayers=True
)
_laco = functools.partial(
    Rule,
    source="Yang et al., arXiv 2402.11187, algorithm 1",
    needs="likeness",
    cuts=_of_each(lambda size, layers, likeness: laco.cut_of(laco.merged_layers(size, layers, likeness), layers)),
    search=lambda size, layers: 1.0 + len(laco.THRESHOLDS) * layers,  # at most: what was tried before is remembered
)
# of a bridge stay the layer that it is made of, and the last
_bridge = functools.partial(Rule, cuts=_most_alike(least=1), needs="cosines", spares=2, fits=1.0)
TABLE = (
    Rule(
        "similarity",
        "the block whose input and output point in the most similar directions",
        f"{GROMOV}, section 3.2",
        _of_each(lambda size, _, distances: similarity_cut(distances, size)),
        needs="distances",
    ),
    Rule(
        "simple",
        "the layers just before the last one",
        f"{GROMOV}, section 4.4",
        _of_each(lambda size, layers, _: simple_cut(layers, size)),
    ),
    Rule("reverse", "the last layers", MEN, _of_each(lambda size, layers, _: Cut(layers - size, size))),
    *(
        Rule(f"random-{seed}", f"layers drawn at random (draw {seed})", f"a control; as in {KIM}", _at_random(seed))
        for seed in SEEDS
    ),
    Rule(
        "block-influence",
        "the layers whose input and output are most alike over all tokens",
        f"{MEN}, section 3.2",
        _lowest(lambda cosines, _: 1 - np.diagonal(cosines, offset=1)),
        needs="cosines",
    ),
    Rule(
        "window-cosine",
        "the block whose input and output are most alike over all tokens",
        f"{CHEN}, section 3.1",
        _most_alike(),
        needs="cosines",
    ),
    *_with_plus(
        "perplexity",
        "the layers whose absence alone costs the least loss",  # ranks by perplexity are ranks by loss
        lambda losses, layers: losses([Cut(layer, 1) for layer in layers]),
        needs="losses",
        search=_passes_alone,
        heads=lambda size, layers: layers,
    ),
    *_with_plus(
        "taylor",
        "the layers whose weights matter least to first order",
        lambda saliences, layers: saliences[layers],
        needs="saliences",
    ),
    Rule(
        "greedy",
        "one layer after another, each the one whose removal leaves the lowest loss",
        "Song et al., arXiv 2402.09025, algorithm 1",
        _greedily(lambda layers: [*range(1, layers - 1)]),  # never the first and the last, as in the authors' code
        needs="losses",
        search=_passes_by_layer,
        heads=lambda size, layers: sum(layers - 2 - step for step in range(size)),
        spares=2,
    ),
    _sublayers("llm-drop-attention", "the attentions whose input and output are most alike", cuts=_lowest_sublayers(0)),
    _sublayers("llm-drop-mlp", "the MLPs whose input and output are most alike", cuts=_lowest_sublayers(1)),
    _sublayers(
        "llm-drop",
        "the sublayers, twice as many as layers, whose input and output are most alike",
        cuts=_lowest_sublayers(0, 1),
    ),
    Rule(
        "block-pruner",
        "one sublayer after another, each the one whose removal leaves the lowest loss",
        "Zhong et al., arXiv 2406.10594, algorithm 1",
        _greedily(lambda layers: [(row, layer) for row in range(len(PARTS)) for layer in range(layers)], _without, 2),
        needs="losses",
        search=_passes_by_sublayer,
        heads=lambda size, layers: sum(2 * layers - step for step in range(2 * size)),
        drops_sublayers=True,
    ),
    _laco("laco", "layers merged into one below them, from the top down, by what they differ", changes=MERGED),
    _laco(
        "laco-code", "layers whose matrices the last of them hands to the first, from the top down", changes=LAST_TAKEN
    ),
    _bridge(
        "replaceme", f"{ALIKE}, with a linear map in its place, by least squares", SHOPKHOEV, changes=LEAST_SQUARES
    ),
    _bridge("replaceme-cosine", f"{ALIKE}, with a linear map in its place, by cosine", SHOPKHOEV, changes=COSINE),
    _bridge(
        "prune-and-comp",
        f"{ALIKE}, and what follows scaled to the magnitude that it is used to",
        "Chen et al., arXiv 2507.18212",
        changes=SCALED,
    ),
    _bridge(
        "streamline",
        f"{ALIKE}, with one trained layer in its place",
        f"{CHEN}, section 3",
        cuts=_most_alike(more=1),
        changes=TRAINED,
    ),
)
REGISTERED = {rule.name: rule for rule in TABLE}
RULES = ("similarity", "simple")  # the paper's two, which notebooks compare
# those that leave the weights that stay as they are: their cut says all of the pruned model
DROPPING = tuple(name for name, rule in REGISTERED.items() if not rule.changes)
