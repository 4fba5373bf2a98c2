"""Losses of the pruned models that a rule asks for while it searches."""

import sys

import torch

from deeper_layers.cuts import Cut
from deeper_layers.evaluation.losses import text_loss
from deeper_layers.models.decoder import num_layers
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.rules.rule import Known, Losses


def losses_on(model, sequences: list[torch.Tensor]) -> Losses:
    """What measures pruned models of a model on sequences of tokens, each [T]: nats a token, for each of some cuts."""

    def losses(cuts: list[Cut]) -> list[float]:
        rows, _ = text_loss(model, cuts, sequences)
        return rows["value"].tolist()

    return losses


def search(
    model,
    rule: str,
    sizes: list[int],
    sequences: list[torch.Tensor],
) -> list[Cut]:
    """The cut of each size under a rule that searches by loss on sequences; its price is printed before."""
    layers, chosen = num_layers(model), REGISTERED[rule]
    tokens = sum(map(len, sequences))
    passes = chosen.passes(max(sizes, default=0), layers)
    print(f"{rule}: {passes:,.1f} passes of the whole model over {tokens:,} tokens", file=sys.stderr)
    return chosen.choose(sizes, Known(layers, losses=losses_on(model, sequences)))
