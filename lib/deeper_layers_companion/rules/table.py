"""What a rule is, and the table of all rules: how each chooses, what it needs, what that costs, and its source.

The paper's rule drops the most similar block; its simple heuristic drops the layers before the last one. The rivals
look for a block in other ways, rank layers or sublayers by a score, search greedily by loss, merge layers, or bridge
the dropped block. A measurement that a rule needs has its price in PASSES, and a function in needs.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeper_layers.cuts import ATTENTION, MLP, Cut, similarity_cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers_companion.rules.choosing import (
    THRESHOLDS,
    Chooser,
    choose_in_order,
    choose_merges,
    choose_similar_block,
    cut_of_merges,
    for_each_size,
    make_cut,
    rank_at_random,
    rank_by_score,
    rank_greedily,
)

Step = tuple[
    int, Sequence[int]
]  # of a search: how many layers its models share, and how many each of them has alone
Search = Callable[
    [int, int], list[Step]
]  # from the largest size and L to the dearest steps of a search
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


@dataclass(frozen=True)
class Rule:
    """A rule that chooses layers."""

    name: str  # as it is typed
    chooser: Chooser
    title: str  # as figures and tables call it
    words: str  # what it drops, in the middle of a sentence
    source: str  # paper and section
    needs: str = ""  # a key of PASSES
    changes: str = ""  # how the rule changes the layers that stay, see changing.py; "": not at all
    spares: int = 1  # how many layers it never drops
    drops_sublayers: bool = False  # whether a layer may lose its attention or its MLP alone
    search: Search | None = None
    published: str = ""  # the score that others report for Llama-2-7B, not healed
    code: str = ""  # the public code that makes the same choices, with its commit

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
            raise InputError(
                f"the {self.needs} of the model hold what is not a number: use another data type"
            )
        return self.chooser(sizes, layers, measurement)


def describe_price(passes: float, heads: int) -> str:
    of_heads = f" and {heads:,} of the head" if heads else ""
    return f"at most {passes:,.1f} passes of all layers{of_heads}"


PLUS = {"first": 4, "last": 2}  # layers that "plus" variants keep at either end
SEEDS = range(5)  # of the random draws: enough to see how much they differ
RETIRED = (
    "laco",
    "replaceme-cosine",
)  # of earlier versions, whose results are read: these rules are described alone


def _refuse(*_) -> list[Cut]:
    raise InputError(
        f"the rules {' and '.join(RETIRED)} choose no more, and their results are read: give another rule"
    )


# ---- scores ------------------------------------------------------------------------------------------------------

# ranks by perplexity are ranks by loss
_by_loss = rank_by_score(
    lambda candidates, losses: losses([make_cut([candidate]) for candidate in candidates])
)
_by_salience = rank_by_score(
    lambda candidates, saliences: saliences[[layer for _, layer in candidates]]
)
_by_influence = rank_by_score(lambda _, cosines: 1 - np.diagonal(cosines, offset=1))
# LLM-Drop: 1 - cos(x, x + f(norm(x))); of equal sublayers attention goes first
_by_turn = rank_by_score(
    lambda parts, cosines: [1 - cosines[int(kind == MLP), layer] for kind, layer in parts]
)

# ---- prices of searches ------------------------------------------------------------------------------------------


def _search_layers(_: int, layers: int) -> list[Step]:
    """Models without one layer share the layers below it, and each has those above it alone."""
    return [(layers - 1, range(layers))]


def _search_greedily(size: int, layers: int) -> list[Step]:
    return [(n, range(1, n + 1)) for n in range(layers - 2, layers - size - 2, -1)]


def _search_sublayers(size: int, layers: int) -> list[Step]:
    """A model without a sublayer runs alone from that layer on; in the worst case the cheapest go first."""
    alone = sorted(2 * [*range(1, layers + 1)])
    return [(layers, alone[step:]) for step in range(2 * size)]


def _search_merges(_: int, layers: int) -> list[Step]:
    """A merge that was tried before is not measured again."""
    return [(layers, ())] * (1 + len(THRESHOLDS) * layers)


# ---- the rules ---------------------------------------------------------------------------------------------------


def _make_random(seed: int) -> Rule:
    """A control. The last layer stays, as under the paper's rules."""
    return Rule(
        f"random-{seed}",
        choose_in_order(rank_at_random(seed), "layers", last=1),
        title=f"random, draw {seed}",
        words=f"layers drawn at random (draw {seed})",
        source="a control; as in Kim et al., arXiv 2402.02834",
    )


_RULES = [
    Rule(
        "similarity",
        for_each_size(lambda size, _, distances: similarity_cut(distances, size)),
        title="similarity-informed",
        words="the block whose input and output point in the most similar directions",
        source="Gromov et al., arXiv 2403.17887, section 3.2",
        needs="distances",
        published="0.60 of 0.67 without 25% (ReplaceMe)",
        code="PruneMe",
    ),
    Rule(
        "simple",
        for_each_size(lambda size, layers, _: simple_cut(layers, size)),
        title="simple heuristic",
        words="the layers just before the last one",
        source="Gromov et al., arXiv 2403.17887, section 4.4",
    ),
    Rule(
        "reverse",
        for_each_size(lambda size, layers, _: Cut(layers - size, size)),
        title="last layers first",
        words="the last layers",
        source="Men et al., arXiv 2403.03853",
    ),
    *(_make_random(seed) for seed in SEEDS),
    Rule(
        "block-influence",
        choose_in_order(_by_influence, "layers"),
        title="block influence (ShortGPT)",
        words="the layers whose input and output are most alike over all tokens",
        source="Men et al., arXiv 2403.03853, section 3.2",
        needs="cosines",
        published="0.58 of 0.69 without 21% (BlockPruner)",
        code="ShortGPT",
    ),
    Rule(
        "window-cosine",
        choose_similar_block(),
        title="window cosine (LLM-Streamline)",
        words="the block whose input and output are most alike over all tokens",
        source="Chen et al., arXiv 2403.19135, section 3.1",
        needs="cosines",
        code="LLM-Streamline",
    ),
    Rule(
        "perplexity",
        choose_in_order(_by_loss, "layers"),
        title="perplexity (Shortened LLaMA)",
        words="the layers whose absence alone costs the least loss",
        source="Kim et al., arXiv 2402.02834, section 3",
        needs="losses",
        search=_search_layers,
        code="shortened-llm 4031a92",
    ),
    Rule(
        "perplexity-plus",
        choose_in_order(_by_loss, "layers", **PLUS),
        title="perplexity+ (Shortened LLaMA)",
        words="the layers whose absence alone costs the least loss; the first four and the last two stay",
        source="Kim et al., arXiv 2402.02834, section 3",
        needs="losses",
        spares=6,
        search=_search_layers,
        code="shortened-llm 4031a92",
    ),
    Rule(
        "taylor",
        choose_in_order(_by_salience, "layers"),
        title="Taylor (Shortened LLaMA)",
        words="the layers whose weights matter least to first order",
        source="Kim et al., arXiv 2402.02834, section 3",
        needs="saliences",
        code="shortened-llm 4031a92",
    ),
    Rule(
        "taylor-plus",
        choose_in_order(_by_salience, "layers", **PLUS),
        title="Taylor+ (Shortened LLaMA)",
        words="the layers whose weights matter least to first order; the first four and the last two stay",
        source="Kim et al., arXiv 2402.02834, section 3",
        needs="saliences",
        spares=6,
        code="shortened-llm 4031a92",
    ),
    Rule(
        "greedy",
        choose_in_order(
            rank_greedily, "layers", first=1, last=1
        ),  # never the ends, as in the authors' code
        title="greedy (SLEB)",
        words="one layer after another, each the one whose removal leaves the lowest loss",
        source="Song et al., arXiv 2402.09025, algorithm 1",
        needs="losses",
        spares=2,
        search=_search_greedily,
        published="0.57 of 0.69 without 20% (SLEB)",
        code="SLEB d07129a",
    ),
    Rule(
        "llm-drop-attention",
        choose_in_order(_by_turn, ATTENTION),
        title="LLM-Drop, attention",
        words="the attentions whose input and output are most alike",
        source="He et al., arXiv 2406.15786, section 3",
        needs="sublayers",
        drops_sublayers=True,
        code="LLM-Drop",
    ),
    Rule(
        "llm-drop-mlp",
        choose_in_order(_by_turn, MLP),
        title="LLM-Drop, MLP",
        words="the MLPs whose input and output are most alike",
        source="He et al., arXiv 2406.15786, section 3",
        needs="sublayers",
        drops_sublayers=True,
        code="LLM-Drop",
    ),
    Rule(
        "llm-drop",
        choose_in_order(_by_turn, ATTENTION, MLP),
        title="LLM-Drop, layers",
        words="the sublayers, twice as many as layers, whose input and output are most alike",
        source="He et al., arXiv 2406.15786, section 3",
        needs="sublayers",
        drops_sublayers=True,
        code="LLM-Drop",
    ),
    Rule(
        "block-pruner",
        choose_in_order(rank_greedily, ATTENTION, MLP),
        title="BlockPruner",
        words="one sublayer after another, each the one whose removal leaves the lowest loss",
        source="Zhong et al., arXiv 2406.10594, algorithm 1",
        needs="losses",
        drops_sublayers=True,
        search=_search_sublayers,
        published="0.60 of 0.69 without 21% (BlockPruner)",
        code="BlockPruner 8210707",
    ),
    Rule(
        "laco",
        _refuse,
        title="LaCo",
        words="layers merged into one below them, from the top down, by what they differ",
        source="Yang et al., arXiv 2402.11187, algorithm 1",
        needs="likeness",
        changes="merged",
        search=_search_merges,
        code="LaCo 8483587",
    ),
    Rule(
        "laco-code",
        for_each_size(
            lambda size, layers, likeness: cut_of_merges(
                choose_merges(size, layers, likeness), layers
            )
        ),
        title="LaCo, as coded",
        words="layers whose matrices the last of them hands to the first, from the top down",
        source="Yang et al., arXiv 2402.11187, algorithm 1",
        needs="likeness",
        changes="last taken",
        search=_search_merges,
        published="0.54 of 0.67 without 25% (ReplaceMe)",
        code="LaCo 8483587",
    ),
    Rule(
        "replaceme",
        choose_similar_block(first=1),
        title="ReplaceMe",
        words="the block that is most alike over all tokens, with a linear map in its place, by least squares",
        source="Shopkhoev et al., arXiv 2505.02819",
        needs="cosines",
        changes="least squares",
        spares=2,
        published="0.62 of 0.67 without 25% (ReplaceMe)",
        code="ReplaceMe 5bb71d9",
    ),
    Rule(
        "replaceme-cosine",
        _refuse,
        title="ReplaceMe, cosine",
        words="the block that is most alike over all tokens, with a linear map in its place, by cosine",
        source="Shopkhoev et al., arXiv 2505.02819",
        needs="cosines",
        changes="cosine",
        spares=2,
        published="0.63 of 0.67 without 25% (ReplaceMe)",
    ),
    Rule(
        "prune-and-comp",
        choose_similar_block(first=1),
        title="Prune&Comp, scaled",
        words="the block that is most alike over all tokens, and what follows scaled to the magnitude that it is used "
        "to",
        source="Chen et al., arXiv 2507.18212",
        needs="cosines",
        changes="scaled",
        spares=2,
    ),
    Rule(
        "streamline",
        choose_similar_block(extra=1),
        title="LLM-Streamline, bridged",
        words="the block that is most alike over all tokens, with one trained layer in its place",
        source="Chen et al., arXiv 2403.19135, section 3",
        needs="cosines",
        changes="trained",
        spares=2,
        published="0.61 of 0.67 without 25% (ReplaceMe)",
    ),
]
DESCRIBED = {rule.name: rule for rule in _RULES}
REGISTERED = {
    name: rule for name, rule in DESCRIBED.items() if name not in RETIRED
}  # those that choose
RULES = ("similarity", "simple")  # the paper's two, which notebooks compare
# maps in the place of the last layers (end_maps.py), and all that determines them beside the text that they see
END_MAPS: dict[str, dict] = {
    "reverse-affine": {},
    "reverse-low-rank": {
        "rank": 64,
        "steps": 200,
        "rate": 0.001,
        "positions": 64,
    },  # positions of a sequence a step
}
# rules that change no weights: their cut determines the pruned model
DROPPING = tuple(name for name, rule in REGISTERED.items() if not rule.changes)
