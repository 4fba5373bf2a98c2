"""What an evolutionary search over sublayers would cost (EvoPress): it is no rule here, for its price.

Source: Sieberling et al., arXiv 2410.14649: mutations of a set of dropped sublayers, the fittest by the divergence of
the output from the whole model's. Their search runs about ten million tokens through pruned models, and more.
"""

TOKENS = 10_000_000


def passes(tokens: int) -> float:
    """Its price in passes of the whole model over a calibration text of so many tokens."""
    return TOKENS / tokens
