"""One shot by gradient: the layers whose weights, to first order, the loss needs least (Shortened LLaMA).

Source: Kim et al., arXiv 2402.02834, section 3, with "Taylor": a layer's score is the sum over its weights of
abs(w dL/dw), L the loss on the calibration text. "Taylor+" never drops the first four and the last two layers.
"""

from deeper_layers.rules.perplexity import those_asked
from deeper_layers.rules.rule import Known, Rule, in_order, rising


def _cuts(sizes, known: Known, plus: bool):
    assert known.saliences is not None
    candidates = those_asked(known.layers, plus)
    return in_order(rising(known.saliences[candidates], candidates), sizes)


def _rule(plus: bool) -> Rule:
    said = "; the first four and the last two stay" if plus else ""
    return Rule(
        name="taylor-plus" if plus else "taylor",
        words=f"the layers whose weights matter least to first order{said}",
        needs="saliences",
        source="Kim et al., arXiv 2402.02834, section 3",
        cuts=lambda sizes, known: _cuts(sizes, known, plus),
        passes=lambda size, layers: 3.0,  # a forward pass, and a backward one worth two
    )


RULES = (_rule(False), _rule(True))
