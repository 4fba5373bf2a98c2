"""The block that is most alike, and a linear map in its place, folded into the layer below it (ReplaceMe).

Source: Shopkhoev et al., arXiv 2505.02819, sections 2.1 and 2.2: a block by distance, then a map of what the MLP below
it adds, by least squares or by cosine. Here the block is that most alike over all tokens, as for the other bridge,
streamline.py; the authors' code can take the angle at the last token instead. A block from layer 0 has no layer below
it, and is none to choose.
"""

from collections.abc import Sequence

from deeper_layers.cuts import Cut
from deeper_layers.rules.rule import COSINE, LEAST_SQUARES, Known, Rule, within
from deeper_layers.rules.window_cosine import most_alike


def _cuts(sizes: Sequence[int], known: Known) -> list[Cut]:
    assert known.cosines is not None
    within(sizes, known.layers - 2, "the first and the last layer are never dropped")
    return [most_alike(known.cosines, size, least=1) for size in sizes]


def _rule(name: str, words: str, changes: str) -> Rule:
    return Rule(
        name=name,
        words=f"the block that is most alike over all tokens, with a linear map in its place, {words}",
        needs="cosines",
        source="Shopkhoev et al., arXiv 2505.02819",
        cuts=_cuts,
        passes=lambda size, layers: 1.0,
        fits=1.0,
        changes=changes,
    )


RULES = (
    _rule("replaceme", "by least squares", LEAST_SQUARES),
    _rule("replaceme-cosine", "by cosine", COSINE),
)
