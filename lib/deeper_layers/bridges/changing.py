"""The model that a rule leaves which changes weights too, and which of its tensors are no longer the original's."""

import torch

from deeper_layers.bridges.fitting import bridged
from deeper_layers.bridges.merging import merged_model
from deeper_layers.cuts import Cut
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.rules.rule import LAST_TAKEN, MERGED, Merged, Rule


def changed_model(model, rule: Rule, cut: Cut, merged: list[Merged], sequences: list[torch.Tensor]):
    """What a rule leaves of a model.

    Args:
        model: which stays as it was.
        rule: one that changes weights.
        cut: what it drops.
        merged: the layers that are left, merged ones among them, where it merges; see `merged_layers`.
        sequences: tokens that a bridge is fitted on, each [T].

    Raises:
        InputError: what `merged_model` and `bridged` raise.
    """
    if rule.changes in (MERGED, LAST_TAKEN):
        return merged_model(model, merged, rule.changes)
    return bridged(model, cut, sequences, rule.changes) if cut.size else model


def changed_tensors(model, changed, cut: Cut) -> dict[str, torch.Tensor]:
    """Of what a rule left of a model after a cut: the parameters that are not those which the layer had before.

    By "number of the layer in what is left.name in it".
    """
    found, layers = {}, decoder_layers(model)
    for number, (layer, before) in enumerate(zip(decoder_layers(changed), cut.kept(len(layers)), strict=True)):
        own = {name: parameter.data_ptr() for name, parameter in layers[before].named_parameters()}
        for name, parameter in layer.named_parameters():
            if parameter.data_ptr() != own.get(name):
                found[f"{number}.{name}"] = parameter.detach()
    return found
