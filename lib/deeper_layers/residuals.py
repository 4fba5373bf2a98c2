"""What rules ask of a model besides losses: how alike residuals are at all tokens, and how much weights matter.

Two traps: the last entry of `hidden_states` in transformers lies after the final norm, so residuals are read at the
layers themselves; and a cosine near 1 says nothing in half precision, so all are computed in float64.
Letters in shapes: T tokens, D width.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import nn
from tqdm import tqdm

from deeper_layers.cuts import ATTENTION
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.network import Network, NotApart
from deeper_layers.models.sublayers import is_parallel, only
from deeper_layers.similarity import Residuals


def residuals_of(model, tokens: torch.Tensor) -> Float64[torch.Tensor, "L1 T D"]:
    """The residuals that enter every layer, and leave the last one, for a sequence of tokens [T]."""
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode(), Residuals(model) as recorder:
        model.base_model(input_ids=tokens[None].to(device), use_cache=False)
        return torch.stack([residual[0].double() for residual in recorder.residuals])


def watched(things: Sequence | None, what: str, unit: str = "sequence") -> tqdm:
    """The same things one after another, with a bar on stderr where that takes longer than some seconds.

    Without any, a bar that counts as it is told to.
    """
    return tqdm(things, desc=what, unit=unit, delay=2, mininterval=2, file=sys.stderr)


def token_cosines(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, "L1 L1"]:
    """Mean over all tokens of the cosine of the residuals that enter layers l and m; the last leaves the last layer.

    Source: Men et al., arXiv 2403.03853, equation 1, whose Block Influence is 1 less the values beside the diagonal;
    Chen et al., arXiv 2403.19135, equation 5. One pass; memory does not grow with the number of sequences, each [T].
    Raises InputError where there is no sequence.
    """
    length = num_layers(model) + 1
    total, tokens = torch.zeros(length, length, dtype=torch.float64), 0
    for sequence in watched(sequences, "cosines of residuals"):
        unit = nn.functional.normalize(residuals_of(model, sequence), dim=-1)
        total += torch.einsum("ltd,mtd->lm", unit, unit).cpu()
        tokens += len(sequence)
    _check_text(tokens)
    return (total / tokens).numpy()


def sublayer_cosines(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, "2 L"]:
    """Mean over all tokens of the cosine of what enters and what leaves the attention (row 0) and the MLP (row 1).

    Source: He et al., arXiv 2406.15786, equations 4 and 5: what leaves a sublayer is the residual with what it adds.
    What leaves the attention is found by running each layer without its MLP: two passes over sequences, each [T]. Where
    both parts of a layer read the same residual, that is what enters the MLP too.
    Raises InputError where there is no sequence, or layers can't be run one by one or hold no such parts.
    """
    network, tokens, parallel = Network(model), 0, {}
    total = torch.zeros(2, len(network.layers), dtype=torch.float64)
    for sequence in watched(sequences, "cosines of sublayers"):
        with torch.inference_mode():
            try:
                handed = network.handed(sequence[None].to(network.device))
            except NotApart:
                raise InputError(
                    f"the layers of {type(model).__name__} can't be run one by one: choose a rule of whole layers"
                ) from None
            entering = handed.residual
            for number in network.in_turn(list(range(len(network.layers)))):
                layer, call = network.layers[number], handed.calls[number]
                if number not in parallel:
                    parallel[number] = is_parallel(layer, call, entering)
                with only(layer, ATTENTION):
                    between = call(layer, entering)
                leaving = call(layer, entering)
                total[0, number] += _summed_cosine(entering, between)
                of_mlp = (entering, entering + (leaving - between)) if parallel[number] else (between, leaving)
                total[1, number] += _summed_cosine(*of_mlp)
                entering = leaving
        tokens += len(sequence)
    _check_text(tokens)
    return (total / tokens).numpy()


def saliences(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, " L"]:
    """For each layer the sum over its weights of abs(w dL/dw), L the mean cross-entropy over sequences, each [T].

    Source: Kim et al., arXiv 2402.02834, equation 1; like the authors' code without biases. A forward and a backward
    pass; memory for the gradients of all layers, in the model's data type. Raises InputError where there is no text, or
    weights have no gradient.
    """
    layers = decoder_layers(model)
    _check_text(targets := sum(len(sequence) - 1 for sequence in sequences))
    if not all(parameter.is_floating_point() and not parameter.is_meta for parameter in layers.parameters()):
        raise InputError("the weights are quantized or on disk and have no gradient: open the model without that")
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None
    layers.requires_grad_(True)
    try:
        device = model.get_input_embeddings().weight.device
        with torch.enable_grad():
            for sequence in watched(sequences, "saliences"):
                ids = sequence[None].to(device, torch.long)
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                (nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / targets).backward()
        with torch.no_grad():
            return np.array([sum(map(_salience, _weights(layer))) for layer in layers])
    finally:
        for parameter, wanted, gradient in before:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in layer.named_parameters() if not name.endswith("bias")]


def _salience(weight: nn.Parameter) -> float:
    return 0.0 if weight.grad is None else float((weight.double() * weight.grad.double()).abs().sum())


def _summed_cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).sum().cpu()


def _check_text(tokens: int) -> None:
    if tokens < 1:
        raise InputError("there is no sequence to calibrate on: give at least one, from two tokens")
