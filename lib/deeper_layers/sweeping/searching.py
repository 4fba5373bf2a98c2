"""What a rule needs to know of a model, measured on sequences of tokens."""

from collections.abc import Callable
from typing import Any

import torch

from deeper_layers.cuts import Cut
from deeper_layers.models.decoder import num_layers
from deeper_layers.rules.changing import likeness_on
from deeper_layers.rules.choosing import REGISTERED, Losses
from deeper_layers.similarity import saliences, sublayer_cosines, token_cosines
from deeper_layers.sweeping.losses import text_loss
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers.sweeping.trial import Sharing

MEASURED = {"cosines": token_cosines, "sublayers": sublayer_cosines, "saliences": saliences}


def tree_models_of(model) -> Callable[[list[Cut]], TreeModel]:
    """What makes trees of a model, one after another, whose sharing is tried once: a search has one a step.

    Where a cut drops the first or last layer it is tried apart, as another layer then is that.
    """
    tried: dict[tuple[bool, ...], Sharing] = {}
    ends = (0, num_layers(model) - 1)

    def tree_of(cuts: list[Cut]) -> TreeModel:
        dropped = tuple(any(end in cut.dropped for cut in cuts) for end in ends)
        found = TreeModel(model, cuts, tried.get(dropped))
        tried[dropped] = found.sharing
        return found

    return tree_of


def losses_on(model, sequences: list[torch.Tensor]) -> Losses:
    """What measures pruned models of a model on sequences of tokens, each [T]: nats a token, for each of some cuts."""
    tree_of = tree_models_of(model)
    return lambda cuts: text_loss(model, cuts, sequences, family=tree_of(cuts))[0]["value"].tolist()


def known_of(model, rule: str, sequences: list[torch.Tensor]) -> Any:
    """What a rule needs to know of a model, measured on sequences of tokens, each [T]; None where it needs nothing."""
    needs = REGISTERED[rule].needs
    if needs == "losses":
        return losses_on(model, sequences)
    if needs == "likeness":
        return likeness_on(model, sequences, REGISTERED[rule].changes)
    return MEASURED[needs](model, sequences) if needs in MEASURED else None
