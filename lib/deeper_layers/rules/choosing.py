"""Every rule by name: an entry of the table each, with its words, its source, what it needs, and its price."""

import functools
from collections.abc import Sequence
from typing import Any

from deeper_layers.checks import shown
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.rules import blocks, greedy, laco, ranking
from deeper_layers.rules.rule import COSINE, LAST_TAKEN, LEAST_SQUARES, MERGED, SCALED, TRAINED, Rule
from deeper_layers.rules.similarity import similarity_cut

ALIKE = "the block that is most alike over all tokens"
CHEN, GROMOV, KIM, MEN = (
    f"{authors}, arXiv {number}"
    for authors, number in (
        ("Chen et al.", "2403.19135"),
        ("Gromov et al.", "2403.17887"),
        ("Kim et al.", "2402.02834"),
        ("Men et al.", "2403.03853"),
    )
)
SEEDS = range(5)  # of random draws, so many that their spread is seen
SPARED = ranking.FIRST + ranking.LAST
PLUS = "; the first four and the last two stay"

_alone = functools.partial(
    Rule,
    source=f"{KIM}, section 3",
    needs="losses",
    search=greedy.passes_alone,
    heads=lambda size, layers: layers,
)
_taylor = functools.partial(Rule, source=f"{KIM}, section 3", needs="saliences")
_sublayers = functools.partial(
    Rule, source="He et al., arXiv 2406.15786, section 3", needs="sublayers", drops_sublayers=True
)
_laco = functools.partial(
    Rule,
    source="Yang et al., arXiv 2402.11187, algorithm 1",
    needs="likeness",
    cuts=laco.merged_cuts,
    search=laco.passes_to_merge,
)
# of a bridge stay the layer that it is made of, and the last
_bridge = functools.partial(Rule, needs="cosines", spares=2, fits=1.0)
_replaceme = functools.partial(
    _bridge,
    source="Shopkhoev et al., arXiv 2505.02819",
    cuts=functools.partial(blocks.most_alike, least=1),
)

TABLE = (
    Rule(
        "similarity",
        "the block whose input and output point in the most similar directions",
        source=f"{GROMOV}, section 3.2",
        needs="distances",
        cuts=lambda sizes, layers, distances: [similarity_cut(distances, size) for size in sizes],
    ),
    Rule("simple", "the layers just before the last one", f"{GROMOV}, section 4.4", blocks.before_the_last),
    Rule("reverse", "the last layers", MEN, blocks.from_the_end),
    *(
        Rule(
            f"random-{seed}",
            f"layers drawn at random (draw {seed})",
            source=f"a control; as in {KIM}",
            cuts=functools.partial(ranking.at_random, seed=seed),
        )
        for seed in SEEDS
    ),
    Rule(
        "block-influence",
        "the layers whose input and output are most alike over all tokens",
        source=f"{MEN}, section 3.2",
        needs="cosines",
        cuts=ranking.by_block_influence,
    ),
    Rule(
        "window-cosine",
        "the block whose input and output are most alike over all tokens",
        source=f"{CHEN}, section 3.1",
        needs="cosines",
        cuts=blocks.most_alike,
    ),
    _alone("perplexity", "the layers whose absence alone costs the least loss", cuts=ranking.by_loss_alone),
    _alone(
        "perplexity-plus",
        f"the layers whose absence alone costs the least loss{PLUS}",
        cuts=functools.partial(ranking.by_loss_alone, plus=True),
        spares=SPARED,
    ),
    _taylor("taylor", "the layers whose weights matter least to first order", cuts=ranking.by_salience),
    _taylor(
        "taylor-plus",
        f"the layers whose weights matter least to first order{PLUS}",
        cuts=functools.partial(ranking.by_salience, plus=True),
        spares=SPARED,
    ),
    Rule(
        "greedy",
        "one layer after another, each the one whose removal leaves the lowest loss",
        source="Song et al., arXiv 2402.09025, algorithm 1",
        needs="losses",
        cuts=greedy.layer_by_layer,
        search=greedy.passes_by_layer,
        heads=lambda size, layers: sum(layers - 2 - step for step in range(size)),
        spares=2,
    ),
    _sublayers(
        "llm-drop-attention",
        "the attentions whose input and output are most alike",
        cuts=functools.partial(ranking.by_sublayer_cosine, rows=[0]),
    ),
    _sublayers(
        "llm-drop-mlp",
        "the MLPs whose input and output are most alike",
        cuts=functools.partial(ranking.by_sublayer_cosine, rows=[1]),
    ),
    _sublayers(
        "llm-drop",
        "the sublayers, twice as many as layers, whose input and output are most alike",
        cuts=functools.partial(ranking.by_sublayer_cosine, rows=[0, 1]),
    ),
    Rule(
        "block-pruner",
        "one sublayer after another, each the one whose removal leaves the lowest loss",
        source="Zhong et al., arXiv 2406.10594, algorithm 1",
        needs="losses",
        cuts=greedy.sublayer_by_sublayer,
        search=greedy.passes_by_sublayer,
        heads=lambda size, layers: sum(2 * layers - step for step in range(2 * size)),
        drops_sublayers=True,
    ),
    _laco("laco", "layers merged into one below them, from the top down, by what they differ", changes=MERGED),
    _laco(
        "laco-code",
        "layers whose matrices the last of them hands to the first, from the top down",
        changes=LAST_TAKEN,
    ),
    _replaceme("replaceme", f"{ALIKE}, with a linear map in its place, by least squares", changes=LEAST_SQUARES),
    _replaceme("replaceme-cosine", f"{ALIKE}, with a linear map in its place, by cosine", changes=COSINE),
    _bridge(
        "prune-and-comp",
        f"{ALIKE}, and what follows scaled to the magnitude that it is used to",
        source="Chen et al., arXiv 2507.18212",
        cuts=functools.partial(blocks.most_alike, least=1),
        changes=SCALED,
    ),
    _bridge(
        "streamline",
        f"{ALIKE}, with one trained layer in its place",
        source=f"{CHEN}, section 3",
        cuts=functools.partial(blocks.most_alike, more=1),
        changes=TRAINED,
    ),
)
REGISTERED = {rule.name: rule for rule in TABLE}
RULES = ("similarity", "simple")  # the paper's two, which notebooks compare
# those that leave the weights that stay as they are: their cut says all of the pruned model
DROPPING = tuple(name for name, rule in REGISTERED.items() if not rule.changes)


def cuts_of_rule(rule: str, sizes: Sequence[int], num_layers: int, known: Any = None) -> list[Cut]:
    """The cut of each size under a rule, from what it needs: "similarity" the distances [n, l], "simple" nothing.

    Raises InputError for an unknown rule, a size that does not fit, or where what it needs is missing.
    """
    if rule not in REGISTERED:
        raise InputError(f"rule is {shown(rule)}, expected one of {', '.join(map(repr, REGISTERED))}")
    return REGISTERED[rule].choose(sizes, num_layers, known)
