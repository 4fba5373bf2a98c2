"""Every rule by name: the layers that it drops at each size, what it has to measure first, and what that costs.

rules.csv says what each rule needs, drops and changes, its source, and what others report of it. The paper's rule drops
the most similar block; its simple heuristic drops the layers before the last one. The rivals look for a block in other
ways, rank layers or sublayers by a score, search greedily by loss, merge layers, or bridge the dropped block.
changing.py merges the layers and builds the bridges.
"""

import csv
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from pydantic.dataclasses import dataclass  # it makes numbers of text

from deeper_layers.cuts import ATTENTION, MLP, Cut, similarity_cut, simple_cut
from deeper_layers.errors import InputError

if TYPE_CHECKING:  # slow, and not needed to choose
    import pandas as pd

Losses = Callable[[list[Cut]], Sequence[float]]  # from cuts to the pruned models' losses on text, nats a token
MergedLayer = int | Sequence  # a layer's number, or layers merged into the first, which may be merged ones, too
Likeness = Callable[[list[MergedLayer]], float]  # cosine of final states: a model of these layers, and the whole one
Chooser = Callable[[Sequence[int], int, Any], list[Cut]]  # from sizes, L and what the rule needs to a cut for each size
Part = tuple[str, int]  # what is dropped ("layers", ATTENTION or MLP), and the layer
Step = tuple[int, Sequence[int]]  # of a search: how many layers its models share, and how many each of them has alone
# what a rule may need, and how many passes of all layers it takes to measure; a search has a price of its own
PASSES = {
    "": 0.0,
    "distances": 1.0,  # angular distances [n, l], (L, L) in units of pi
    "cosines": 1.0,  # mean cosine over tokens of residuals l and m, (L + 1, L + 1); residual L leaves the last layer
    "sublayers": 2.0,  # mean cosine of what enters and leaves attention (row 0) and MLP (row 1) of each layer, (2, L)
    "saliences": 3.0,  # for each layer the sum over its weights of abs(w dL/dw), (L,): a backward pass is worth two
    "losses": 0.0,  # a function that measures pruned models: `Losses`
    "likeness": 0.0,  # a function that compares models with merged layers to the whole one: `Likeness`
}
PLUS = {"first": 4, "last": 2}  # layers that "plus" variants keep at either end
SEEDS = range(5)  # of the random draws: enough to see how much they differ


@dataclass(frozen=True)
class Rule:
    """A rule that chooses layers: its line of rules.csv, the function that chooses, and the price of its search."""

    name: str  # as it is typed
    needs: str  # a key of PASSES
    changes: str  # how the rule changes the layers that stay, see changing.py; "": not at all
    spares: int  # how many layers it never drops
    drops_sublayers: bool  # whether a layer may lose its attention or its MLP alone
    words: str  # what it drops, in the middle of a sentence
    source: str  # paper and section
    published: str  # the score that others report for Llama-2-7B, not healed
    code: str  # the public code that makes the same choices, with its commit
    chooser: Chooser
    search: Callable[[int, int], list[Step]] | None  # from the largest size and L to the dearest steps of its search

    def price(self, size: int, layers: int) -> tuple[float, int]:
        """The highest price over the calibration text, for the largest size and L layers: passes of all layers, and
        passes of the head, one for each model whose loss is measured."""
        steps = self.search(size, layers) if self.search else []
        passes = sum(shared + sum(alone) for shared, alone in steps) / layers
        return passes or PASSES[self.needs], sum(len(alone) for _, alone in steps)

    @property
    def fitting_passes(self) -> float:
        """Further passes, for each size, over the text on which a bridge is fitted."""
        return float(self.changes not in ("", "merged", "last taken"))

    def choose(self, sizes: Sequence[int], layers: int, measurement: Any = None) -> list[Cut]:
        """A cut for each size, of a model of L layers; `measurement` is what the rule needs.

        Raises InputError where a size does not fit, or the measurement holds not-a-number.
        """
        largest = max(0, layers - self.spares)
        odd = [size for size in sizes if size not in range(largest + 1)]
        if odd:
            raise InputError(
                f"size is {odd[0]}; expected 0 to {largest}, as the rule {self.name!r} drops no more layers"
            )
        # distances hold nan for blocks that do not fit; losses were checked where they were measured
        if self.needs in ("cosines", "sublayers", "saliences") and np.isnan(measurement).any():
            raise InputError(f"the {self.needs} of the model hold what is not a number: use another data type")
        return self.chooser(sizes, layers, measurement)


def describe_price(passes: float, heads: int) -> str:
    of_heads = f" and {heads:,} of the head" if heads else ""
    return f"at most {passes:,.1f} passes of all layers{of_heads}"


# ---- blocks ------------------------------------------------------------------------------------------------------


def distance_table(mean: np.ndarray, error: np.ndarray, samples: int) -> "pd.DataFrame":
    """Two matrices [n, l] as a table with a row for each block: start (l), size (n), distance, stderr, samples."""
    import pandas as pd  # slow

    row, start = np.nonzero(np.tri(len(mean))[::-1])  # of the blocks that fit
    values = {"distance": mean[row, start], "stderr": error[row, start], "samples": samples}
    return pd.DataFrame({"start": start, "size": row + 1} | values)


def distance_matrix(table: "pd.DataFrame") -> Float[np.ndarray, "L L"]:
    """The matrix [n, l] of a `distance_table`."""
    return table.pivot(index="size", columns="start", values="distance").to_numpy()


def _for_each_size(choose_cut: Callable[[int, int, Any], Cut]) -> Chooser:
    """A chooser that calls a function of one size, L and what the rule needs, once for each size."""
    return lambda sizes, layers, known: [choose_cut(size, layers, known) for size in sizes]


def _choose_similar_block(first: int = 0, extra: int = 0) -> Chooser:
    """argmax over l of cos(x(l), x(l+n)), from l = `first` to L-1-n; of equal blocks the first.

    The mean runs over all tokens, not the last ones, and is of cosines, not of angles. The candidates are the paper's
    blocks, which keep the last layer; the code of LLM-Streamline also tries blocks that drop it. A bridge is folded
    into the layer below the block (ReplaceMe), so the block can't start at layer 0: `first` is 1. A trained layer takes
    the place of the block (LLM-Streamline), so the block has one `extra` layer that comes back.
    """

    def choose_cut(size: int, _: int, cosines: np.ndarray) -> Cut:
        of_blocks = np.diagonal(cosines, size + extra)[first:-1]
        return Cut(int(of_blocks.argmax()) + first + extra, size)

    return _for_each_size(choose_cut)


# ---- orders of layers, or of sublayers -----------------------------------------------------------------------------


def _make_cut(parts: Iterable[Part]) -> Cut:
    layers: dict[str, list[int]] = {}
    for kind, layer in parts:
        layers.setdefault(kind, []).append(layer)
    return Cut.of(**layers)


def _choose_in_order(
    rank: Callable[[list[Part], Any, int], list[Part]], *kinds: str, first: int = 0, last: int = 0
) -> Chooser:
    """The candidates that `rank` puts first, wherever they are: parts of these kinds, of all but the first and last
    layers. A size of n drops n of them, of two kinds 2n, about as many weights as n layers have."""

    def choose_cuts(sizes, layers, known):
        candidates = list(itertools.product(kinds, range(first, layers - last)))
        order = rank(candidates, known, len(kinds) * max(sizes, default=0))
        return [_make_cut(order[: len(kinds) * size]) for size in sizes]

    return choose_cuts


def _by_score(scores: Callable[[list[Part], Any], Sequence[float] | np.ndarray]):
    """From the lowest score to the highest, all ranked at once; of equal candidates the first is first."""

    def rank(candidates: list[Part], known: Any, _: int) -> list[Part]:
        places = np.argsort(scores(candidates, known), kind="stable")
        return [candidates[place] for place in places]

    return rank


def _greedily(candidates: list[Part], losses: Losses, number: int) -> list[Part]:
    """One after another the one whose removal leaves the lowest loss on text, of equal ones the first.

    The candidates of a step share the layers below those in which they differ. The tree of layers therefore runs them
    at about half the price of separate runs.
    """
    order: list[Part] = []
    for _ in range(number):
        remaining = [candidate for candidate in candidates if candidate not in order]
        cuts = [_make_cut([*order, candidate]) for candidate in remaining]
        best = int(np.argmin(losses(cuts)))
        order.append(remaining[best])
    return order


def _at_random(seed: int):
    """A control: the random order of a seed."""
    return lambda candidates, *_: random.Random(f"layers {seed}").sample(candidates, len(candidates))


# ---- merges ------------------------------------------------------------------------------------------------------

MERGED_SHARE = 7 / 40  # share of the layers that one merge turns into one
THRESHOLDS = tuple(round(0.95 - 0.05 * step, 2) for step in range(20))  # of the likeness; the last is 0


def choose_merges(size: int, layers: int, likeness: Likeness) -> list[MergedLayer]:
    """LaCo: the layers of a model in which `size` layers were merged into one below them, from the top down.

    Layers are merged where the final states stay alike. Source: Yang et al., arXiv 2402.11187, algorithm 1, with the
    trials in the order of the authors' notebook for Llama-2-13B: it merges 7 of 40 layers, then goes one layer down.
    Their threshold sets how many layers go; here the number is given, and the highest threshold that reaches it is
    taken. The last trials merge no more than is left to drop: at a size below MERGED_SHARE the top layers stay.
    """
    merged: list[MergedLayer] = list(range(layers))
    for threshold in THRESHOLDS:
        candidate = _merge_downwards(merged, layers - size, likeness, threshold)
        if len(candidate) == layers - size:
            return candidate
    while len(merged) > layers - size:  # no threshold reaches the number: merge without comparing
        merged = _merge_downwards(merged, layers - size, lambda _: 1.0, 0.0)
    return merged


def target_layer(layer: MergedLayer) -> int:
    """The layer into which others were merged; a layer that was not merged is its own."""
    return layer if isinstance(layer, int) else target_layer(layer[0])


def cut_of_merges(merged: Sequence[MergedLayer], layers: int) -> Cut:
    """The cut that drops the layers which were merged into others."""
    return Cut.of(set(range(layers)) - set(map(target_layer, merged)))


def _merge_downwards(merged: list[MergedLayer], wanted: int, likeness: Likeness, threshold: float) -> list[MergedLayer]:
    """Goes down through the layers once, merging where the likeness is above the threshold, until `wanted` are left."""
    span = max(2, round(MERGED_SHARE * (target_layer(merged[-1]) + 1)))
    for start in range(max(0, len(merged) - 1 - span), -1, -1):
        end = min(start + span, start + 1 + len(merged) - wanted, len(merged))
        trial = [*merged[:start], tuple(merged[start:end]), *merged[end:]]
        if end > start + 1 and likeness(trial) > threshold:
            merged = trial
    return merged


# ---- the table ---------------------------------------------------------------------------------------------------

RETIRED = ("laco", "replaceme-cosine")  # of earlier versions, whose results are read: these rules are described alone


def _refuse(*_) -> list[Cut]:
    raise InputError(f"the rules {' and '.join(RETIRED)} choose no more, and their results are read: give another rule")


_laco = _for_each_size(lambda size, layers, likeness: cut_of_merges(choose_merges(size, layers, likeness), layers))
_bridged = _choose_similar_block(first=1)
# ranks by perplexity are ranks by loss
_by_loss = _by_score(lambda candidates, losses: losses([_make_cut([candidate]) for candidate in candidates]))
_by_salience = _by_score(lambda candidates, saliences: saliences[[layer for _, layer in candidates]])
_by_influence = _by_score(lambda _, cosines: 1 - np.diagonal(cosines, offset=1))
# LLM-Drop: 1 - cos(x, x + f(norm(x))); of equal sublayers attention goes first
_by_turn = _by_score(lambda parts, cosines: [1 - cosines[int(kind == MLP), layer] for kind, layer in parts])
CHOOSERS: dict[str, Chooser] = {
    "similarity": _for_each_size(lambda size, _, distances: similarity_cut(distances, size)),
    "simple": _for_each_size(lambda size, layers, _: simple_cut(layers, size)),
    "reverse": _for_each_size(lambda size, layers, _: Cut(layers - size, size)),
    # the last layer stays, as under the paper's rules
    **{f"random-{seed}": _choose_in_order(_at_random(seed), "layers", last=1) for seed in SEEDS},
    "block-influence": _choose_in_order(_by_influence, "layers"),
    "window-cosine": _choose_similar_block(),
    "perplexity": _choose_in_order(_by_loss, "layers"),
    "perplexity-plus": _choose_in_order(_by_loss, "layers", **PLUS),
    "taylor": _choose_in_order(_by_salience, "layers"),
    "taylor-plus": _choose_in_order(_by_salience, "layers", **PLUS),
    "greedy": _choose_in_order(_greedily, "layers", first=1, last=1),  # never the ends, as in the authors' code
    "llm-drop-attention": _choose_in_order(_by_turn, ATTENTION),
    "llm-drop-mlp": _choose_in_order(_by_turn, MLP),
    "llm-drop": _choose_in_order(_by_turn, ATTENTION, MLP),
    "block-pruner": _choose_in_order(_greedily, ATTENTION, MLP),
    "laco-code": _laco,
    **dict.fromkeys(("replaceme", "prune-and-comp"), _bridged),
    "streamline": _choose_similar_block(extra=1),
    **dict.fromkeys(RETIRED, _refuse),
}
SEARCHES: dict[str, Callable[[int, int], list[Step]]] = {
    # a merge that was tried before is not measured again
    **dict.fromkeys(("laco", "laco-code"), lambda _, layers: [(layers, ())] * (1 + len(THRESHOLDS) * layers)),
    # models without one layer share the layers below it, and each has those above it alone
    **dict.fromkeys(("perplexity", "perplexity-plus"), lambda _, layers: [(layers - 1, range(layers))]),
    "greedy": lambda size, layers: [(n, range(1, n + 1)) for n in range(layers - 2, layers - size - 2, -1)],
    # a model without a sublayer runs alone from that layer on; in the worst case the cheapest go first
    "block-pruner": lambda size, layers: [
        (layers, sorted(2 * [*range(1, layers + 1)])[step:]) for step in range(2 * size)
    ],
}
with open(Path(__file__).with_name("rules.csv"), encoding="utf-8") as _table:
    _rows: list[dict[str, Any]] = [*csv.DictReader(_table)]
DESCRIBED = {row["name"]: Rule(**row, chooser=CHOOSERS[row["name"]], search=SEARCHES.get(row["name"])) for row in _rows}
REGISTERED = {name: rule for name, rule in DESCRIBED.items() if name not in RETIRED}  # those that choose
RULES = ("similarity", "simple")  # the paper's two, which notebooks compare
# maps in the place of the last layers (end_maps.py), and all that determines them beside the text that they see
END_MAPS: dict[str, dict] = {
    "reverse-affine": {},
    "reverse-low-rank": {"rank": 64, "steps": 200, "rate": 0.001, "positions": 64},  # positions of a sequence a step
}
# rules that change no weights: their cut determines the pruned model
DROPPING = tuple(name for name, rule in REGISTERED.items() if not rule.changes)
