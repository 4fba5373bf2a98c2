"""Layers that take over what the layers after them differ by from them, which go (LaCo).

Source: Yang et al., arXiv 2402.11187, section 3.1: the matrices of layer l become W(l) + sum over k of W(l+k) - W(l).
In the authors' notebooks each difference is taken from what the sum has become by then, so that it telescopes to the
matrices of the last of these layers. Gains of norms and biases stay those of the first layer, as there.
"""

import functools

import torch
from torch import nn

from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import LAST_TAKEN, MERGED
from deeper_layers.rules.laco import Likeness, Merged, cut_of
from deeper_layers.similarity import watched


def merged_model(model, layers: list[Merged], how: str = MERGED):
    """A model of these layers in place of its own, each a number, or some merged into the first of them.

    Args:
        model: a decoder-only transformers model of L layers, which stays as it was.
        layers: in rising order, like [0, (1, 2, 3), 4]; parts of a merged one may be merged ones.
        how: "merged", as printed in the paper, or "last taken", as in the authors' notebooks.

    Returns:
        A model of the same class; it shares all parameters that are not merged.

    Raises:
        InputError: layers to be merged have matrices of other names or shapes, or weights are no real numbers; what
            `drop_layers` raises.
    """
    pruned = drop_layers(model, cut_of(layers, num_layers(model)))
    for place, layer in enumerate(layers):
        if isinstance(layer, tuple):
            for name, matrix in _matrices(model, layer, how).items():
                owner, _, attribute = name.rpartition(".")
                module = decoder_layers(pruned)[place].get_submodule(owner)
                setattr(module, attribute, nn.Parameter(matrix, requires_grad=False))
    return pruned


def likeness_on(model, sequences: list[torch.Tensor], how: str = MERGED) -> Likeness:
    """What compares models of merged layers with the whole one: the cosine of all final states of a sequence, [T] each.

    Source: the authors' notebooks: states after the final norm, of a whole sequence as one vector; mean over sequences.
    What was asked before is remembered.
    """
    states = [_final_states(model, sequence) for sequence in watched(sequences, "final states")]
    bar = watched(None, "models of merged layers compared", "model")

    @functools.cache
    def found(layers: tuple[Merged, ...]) -> float:
        bar.update()
        other = merged_model(model, list(layers), how)
        pairs = zip(states, (_final_states(other, sequence) for sequence in sequences), strict=True)
        return sum(float(nn.functional.cosine_similarity(*pair, dim=0)) for pair in pairs) / len(states)

    return lambda layers: found(tuple(layers))


def _matrices(model, layer: Merged, how: str) -> dict[str, torch.Tensor]:
    if isinstance(layer, int):
        own = {name: p.detach() for name, p in decoder_layers(model)[layer].named_parameters() if p.ndim > 1}
        if not all(matrix.is_floating_point() for matrix in own.values()):
            raise InputError(f"layer {layer} has quantized weights, which can't be merged: open the model without that")
        return own
    base, *others = (_matrices(model, part, how) for part in layer)
    for part, other in zip(layer[1:], others, strict=True):
        if {name: m.shape for name, m in other.items()} != {name: m.shape for name, m in base.items()}:
            raise InputError(f"layer {part} has other matrices than {layer[0]}, and can't be merged into it: drop it")
    if how == LAST_TAKEN:
        return others[-1]
    return {
        name: (first.double() + sum(other[name].double() - first.double() for other in others)).to(first.dtype)
        for name, first in base.items()
    }


def _final_states(model, sequence: torch.Tensor) -> torch.Tensor:
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        found = model.base_model(input_ids=sequence[None].to(device), use_cache=False)
    return found.last_hidden_state.double().flatten().cpu()
