"""Every rule by name: which layers it drops of each size, from what it needs to know, and at which price.

rules.csv says of each what it needs, drops and changes, its source, and what others made of it. The paper's rule drops
the most similar block, its heuristic the layers before the last one. Rivals look for a block in other ways, rank layers
or sublayers by a number each, search greedily by loss, merge layers, or build a bridge over the block that they drop
(changing.py does what these two change).
"""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from pydantic.dataclasses import dataclass  # it makes numbers of text

from deeper_layers.cuts import ATTENTION, MLP, UNPRUNED, Cut, check_size, simple_cut
from deeper_layers.errors import InputError

if TYPE_CHECKING:  # slow, and not needed to choose
    import pandas as pd

Losses = Callable[[list[Cut]], Sequence[float]]  # of each of some pruned models the loss on text, nats a token
# a layer by its number, or layers merged into the first of them, each of which may be such a merged one
Merged = int | tuple
Likeness = Callable[[list[Merged]], float]  # cosine of the final states of a model of these layers with the whole one's
Cuts = Callable[[Sequence[int], int, Any], list[Cut]]  # for each size, of L layers, from what is known
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
PARTS = (ATTENTION, MLP)
FIRST, LAST = 4, 2  # layers that "plus" variants keep at either end
SEEDS = range(5)  # of random draws, so many that their spread is seen


@dataclass(frozen=True)
class Rule:
    """A rule of choosing layers: its line of rules.csv, what chooses, and what the search for that costs."""

    name: str  # as it is typed
    needs: str  # a key of PASSES
    changes: str  # what becomes of the weights that stay, see changing.py; "" is nothing
    spares: int  # how many layers it never drops
    drops_sublayers: bool  # whether a layer may lose its attention or its MLP alone
    words: str  # what it drops, in a sentence's middle
    source: str  # paper and section
    published: str  # what others say that it keeps of Llama-2-7B, not healed
    code: str  # whose choices ours equal, with its commit
    cuts: Cuts
    search: Callable[[int, int], tuple[float, int]] | None  # see `price`

    def price(self, size: int, layers: int) -> tuple[float, int]:
        """What it costs at most over the calibration text, for the largest size and L layers: passes of all layers, and
        of the head, one for each model whose loss is measured."""
        return self.search(size, layers) if self.search else (PASSES[self.needs], 0)

    @property
    def fits(self) -> float:
        """And for each size passes over the text that a bridge is fitted on."""
        return float(self.changes not in ("", "merged", "last taken"))

    def choose(self, sizes: Sequence[int], layers: int, known: Any = None) -> list[Cut]:
        """The cut of each size of a model of L layers, from what the rule needs.

        Raises InputError where a size does not fit, or what the rule needs holds what is not a number.
        """
        most = max(0, layers - self.spares)
        if odd := [size for size in sizes if size not in range(most + 1)]:
            raise InputError(f"size is {odd[0]}; expected 0 to {most}, as the rule {self.name!r} drops no more layers")
        # of blocks too large there is no distance; losses are numbers, or were refused where they were measured
        if self.needs in ("cosines", "sublayers", "saliences") and np.isnan(known).any():
            raise InputError(f"the {self.needs} of the model hold what is not a number: use another data type")
        return self.cuts(sizes, layers, known)


def price_in_words(passes: float, heads: int) -> str:
    return f"at most {passes:,.1f} passes of all layers" + (f" and {heads:,} of the head" if heads else "")


# ---- blocks ------------------------------------------------------------------------------------------------------


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


def _of_each(cut: Callable[[int, int, Any], Cut]) -> Cuts:
    """What gives a cut of one size, asked for each."""
    return lambda sizes, layers, known: [cut(size, layers, known) for size in sizes]


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


def _lowest(scores: Callable[[Any, Sequence[int]], Sequence[float] | np.ndarray], *, plus: bool = False) -> Cuts:
    """The layers of the lowest scores in one shot, wherever they stand, of equal ones the first; with `plus` the first
    and last layers stay."""

    def cuts(sizes, layers, known):
        candidates = range(layers)[FIRST:-LAST] if plus else range(layers)
        order = [candidates[place] for place in np.argsort(scores(known, candidates), kind="stable")]
        return [Cut.of(order[:size]) for size in sizes]

    return cuts


def _lowest_sublayers(*rows: int) -> Cuts:
    """LLM-Drop: sublayers of some rows whose input and output are most alike, by 1 - cos(x, x + f(norm(x))).

    A size of n drops n attentions, or n MLPs, or 2n of both together, about as many weights as n layers have. Of equal
    ones attention goes first.
    """

    def cuts(sizes, layers, cosines):
        order = np.argsort(1 - cosines[list(rows)].ravel(), kind="stable")
        sublayers = [(rows[place // layers], place % layers) for place in map(int, order)]
        return [_without(sublayers[: size * len(rows)]) for size in sizes]

    return cuts


def _greedily(candidates: Callable[[int], list], cut_of: Callable[[Sequence], Cut] = Cut.of, each: int = 1) -> Cuts:
    """One after another, each the one whose removal leaves the lowest loss on text, of equal ones the first.

    The candidates of a step share all layers below the ones in which they differ, so that the tree of layers runs them
    for about half of what they would cost one after another. `each`: so many of them go a layer of size.
    """

    def cuts(sizes, layers, losses):
        order: list = []
        for _ in range(each * max(sizes, default=0)):
            left = [one for one in candidates(layers) if one not in order]
            order.append(left[int(np.argmin(losses([cut_of([*order, one]) for one in left])))])
        return [cut_of(order[: each * size]) for size in sizes]

    return cuts


def _at_random(seed: int) -> Cuts:
    """A control: layers in an order of this seed. The last one stays, as under the paper's rules."""

    def cuts(sizes, layers, _):
        order = random.Random(f"layers {seed}").sample(range(layers - 1), layers - 1)
        return [Cut.of(order[:size]) for size in sizes]

    return cuts


# ---- merges ------------------------------------------------------------------------------------------------------

SHARE = 7 / 40  # of the layers that become one at a time
THRESHOLDS = tuple(round(0.95 - 0.05 * step, 2) for step in range(20))  # of the likeness, the last is 0


def merged_layers(size: int, layers: int, likeness: Likeness) -> list[Merged]:
    """LaCo: the layers of a model of which `size` were merged into one below them, from the top down, as long as the
    final states stay alike.

    Source: Yang et al., arXiv 2402.11187, algorithm 1; the order of the trials is that of the authors' notebook for
    Llama-2-13B, which merges 7 of 40 layers at a time and then goes one layer down. Their threshold sets how many go;
    here the number is given, the highest threshold that reaches it is taken, and the last trials merge no more than is
    left to drop, from the same place on: of a size below that share the top layers stay.
    """
    whole: list[Merged] = list(range(layers))
    for threshold in THRESHOLDS:
        if len(found := _walk(whole, layers - size, likeness, threshold)) == layers - size:
            return found
    while len(whole) > layers - size:  # whatever becomes of it
        whole = _walk(whole, layers - size, lambda _: 1.0, 0.0)
    return whole


def first_of(layer: Merged) -> int:
    """The layer into which others were merged, or a layer itself."""
    return layer if isinstance(layer, int) else first_of(layer[0])


def cut_of(left: Sequence[Merged], layers: int) -> Cut:
    """The layers that were merged into others, as a cut."""
    return Cut.of(set(range(layers)) - set(map(first_of, left)))


def _walk(found: list[Merged], wanted: int, likeness: Likeness, threshold: float) -> list[Merged]:
    """One way down through some layers, until as many as wanted are left."""
    together = max(2, round(SHARE * (first_of(found[-1]) + 1)))
    for at in range(max(0, len(found) - 1 - together), -1, -1):
        end = min(at + together, at + 1 + len(found) - wanted, len(found))
        tried = [*found[:at], tuple(found[at:end]), *found[end:]]
        if end > at + 1 and likeness(tried) > threshold:
            found = tried
    return found


# ---- what searches cost at most: passes of all layers, the nodes of their trees over L, and heads --------------------


def _layer_by_layer(size: int, layers: int) -> tuple[float, int]:
    """All share the layers below the last candidate, and the one that drops layer i adds those above it."""
    steps = range(layers - 2, layers - size - 2, -1)  # of each the candidates
    return sum(left + sum(range(1, left + 1)) for left in steps) / layers, sum(steps)


def _sublayer_by_sublayer(size: int, layers: int) -> tuple[float, int]:
    """A candidate runs for itself from its layer on; the cheapest are dropped first in the worst case."""
    own, steps = sorted(2 * [*range(1, layers + 1)]), range(2 * size)
    return sum(layers + sum(own[step:]) for step in steps) / layers, sum(2 * layers - step for step in steps)


# ---- the table ---------------------------------------------------------------------------------------------------


def _with_plus(name: str, scores: Callable[[Any, Sequence[int]], Sequence[float] | np.ndarray]) -> dict[str, Cuts]:
    return {name: _lowest(scores), f"{name}-plus": _lowest(scores, plus=True)}


_merged = _of_each(lambda size, layers, likeness: cut_of(merged_layers(size, layers, likeness), layers))
_bridged = _most_alike(least=1)
CUTS: dict[str, Cuts] = {
    "similarity": _of_each(lambda size, _, distances: similarity_cut(distances, size)),
    "simple": _of_each(lambda size, layers, _: simple_cut(layers, size)),
    "reverse": _of_each(lambda size, layers, _: Cut(layers - size, size)),
    **{f"random-{seed}": _at_random(seed) for seed in SEEDS},
    "block-influence": _lowest(lambda cosines, _: 1 - np.diagonal(cosines, offset=1)),
    "window-cosine": _most_alike(),
    # ranks by perplexity are ranks by loss
    **_with_plus("perplexity", lambda losses, layers: losses([Cut(layer, 1) for layer in layers])),
    **_with_plus("taylor", lambda saliences, layers: saliences[layers]),
    "greedy": _greedily(lambda layers: [*range(1, layers - 1)]),  # never the ends, as in the authors' code
    "llm-drop-attention": _lowest_sublayers(0),
    "llm-drop-mlp": _lowest_sublayers(1),
    "llm-drop": _lowest_sublayers(0, 1),
    "block-pruner": _greedily(
        lambda layers: [(row, layer) for row in range(2) for layer in range(layers)], _without, each=2
    ),
    "laco": _merged,
    "laco-code": _merged,
    "replaceme": _bridged,
    "replaceme-cosine": _bridged,
    "prune-and-comp": _bridged,
    "streamline": _most_alike(more=1),
}
SEARCHES = {
    # of models without one layer those below it are shared; of merges what was tried before is remembered
    **dict.fromkeys(
        ("perplexity", "perplexity-plus"), lambda _, layers: ((layers - 1 + sum(range(layers))) / layers, layers)
    ),
    **dict.fromkeys(("laco", "laco-code"), lambda _, layers: (1.0 + len(THRESHOLDS) * layers, 0)),
    "greedy": _layer_by_layer,
    "block-pruner": _sublayer_by_sublayer,
}
with open(Path(__file__).with_name("rules.csv"), encoding="utf-8") as _file:
    _lines: list[dict[str, Any]] = [*csv.DictReader(_file)]
REGISTERED = {of["name"]: Rule(**of, cuts=CUTS[of["name"]], search=SEARCHES.get(of["name"])) for of in _lines}
RULES = ("similarity", "simple")  # the paper's two, which notebooks compare
# those that leave the weights that stay as they are: their cut says all of the pruned model
DROPPING = tuple(name for name, rule in REGISTERED.items() if not rule.changes)
