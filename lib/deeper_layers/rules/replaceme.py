"""The block that is most alike, and a linear map in its place, folded into the layer below it (ReplaceMe).

Source: Shopkhoev et al., arXiv 2505.02819, sections 2.1 and 2.2: a block by distance, then a map of what the MLP below
it adds, by least squares or by cosine. Here the block is that most alike over all tokens, as for the other bridge,
streamline.py; the authors' code can take the angle at the last token instead. A block from layer 0 has no layer below
it, and is none to choose.
"""

from deeper_layers.rules.rule import COSINE, LEAST_SQUARES, Rule
from deeper_layers.rules.window_cosine import most_alike

RULES = tuple(
    Rule(
        name=name,
        words=f"the block that is most alike over all tokens, with a linear map in its place, by {changes}",
        source="Shopkhoev et al., arXiv 2505.02819",
        needs="cosines",
        cuts=lambda sizes, layers, cosines: [most_alike(cosines, size, least=1) for size in sizes],
        spares=2,
        fits=1.0,
        changes=changes,
    )
    for name, changes in (("replaceme", LEAST_SQUARES), ("replaceme-cosine", COSINE))
)
