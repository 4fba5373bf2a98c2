"""What rules of others have to know of a model: cosines at all tokens, saliences of weights, losses of pruned models.

Letters in shapes: T tokens, D width, L layers, L1 = L + 1 residuals.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, is_parallel
from deeper_layers.models.measuring import measuring, to_double
from deeper_layers.models.network import Network, Residuals
from deeper_layers.similarity import iterate_residuals, show_progress
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import text_loss
from deeper_layers_companion.rules.changing import build_likeness
from deeper_layers_companion.rules.table import REGISTERED


def token_cosines(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, "L1 L1"]:
    """Mean over tokens of the cosine between residuals entering layers l and m; index L leaves the last layer.

    Source: Men et al., arXiv 2403.03853, equation 1, whose Block Influence is 1 less the values beside the diagonal;
    Chen et al., arXiv 2403.19135, equation 5. One pass; memory does not grow with the number of sequences, each [T].
    """
    passes = iterate_residuals(model, show_progress(sequences, "cosines of residuals"))
    units = (nn.functional.normalize(residuals, dim=-1) for residuals in passes)
    return sum(torch.einsum("ltd,mtd->lm", unit, unit).cpu().numpy() for unit in units) / sum(
        map(len, sequences)
    )


def sublayer_cosines(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, "2 L"]:
    """Mean over tokens of the cosine between what enters and leaves the attention (row 0) and the MLP (row 1).

    Source: He et al., arXiv 2406.15786, equations 4 and 5: what leaves a sublayer is the residual plus its output.
    Each layer runs a second time without its MLP, which gives what leaves the attention: two passes over sequences [T].
    Where both sublayers read the same residual, that also enters the MLP. Raises InputError where layers have no
    such sublayers.
    """
    parallel: dict[int, bool] = {}

    def cosines(residuals: Residuals) -> torch.Tensor:
        entering = residuals.entering
        between = residuals.between
        leaving = residuals.leaving
        if residuals.number not in parallel:
            parallel[residuals.number] = is_parallel(residuals.layer, residuals.call, entering)
        pairs = [(entering, between), (between, leaving)]
        if parallel[residuals.number]:
            pairs[1] = (entering, entering + (leaving - between))
        doubles = [(to_double(a), to_double(b)) for a, b in pairs]
        return torch.stack(
            [nn.functional.cosine_similarity(a, b, dim=-1).sum() for a, b in doubles]
        )

    batches = (
        {"input_ids": sequence[None]}
        for sequence in show_progress(sequences, "cosines of sublayers")
    )
    sums = [torch.stack(by_layer, dim=1) for by_layer in Network(model).residuals(batches, cosines)]
    return (torch.stack(sums).sum(dim=0) / sum(map(len, sequences))).cpu().numpy()


@measuring
@torch.inference_mode(False)
def saliences(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, " L"]:
    """For each layer the sum over its weights of abs(w dL/dw), L the mean cross-entropy over sequences, each [T].

    Source: Kim et al., arXiv 2402.02834, equation 1; like the authors' code without biases. A forward and a backward
    pass; memory for the gradients of all layers, in the model's data type. Raises InputError where weights have no
    gradient.
    """
    layer_of = {}
    for number, layer in enumerate(decoder_layers(model)):
        for name, weight in layer.named_parameters():
            if not name.endswith("bias"):
                layer_of[weight] = number
    if any(
        not weight.is_floating_point() or weight.is_meta or weight.is_inference()
        for weight in layer_of
    ):
        raise InputError(
            "the weights are quantized, on disk or of inference mode, without a gradient: open the model without that"
        )
    total = [torch.zeros_like(weight) for weight in layer_of]
    frozen = [weight for weight in layer_of if not weight.requires_grad]
    device = model.get_input_embeddings().weight.device
    targets = sum(len(sequence) - 1 for sequence in sequences)
    try:
        nn.ParameterList(frozen).requires_grad_(True)
        for sequence in show_progress(sequences, "saliences"):
            ids = sequence[None].to(device, torch.long, copy=True)
            with torch.enable_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                loss = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / targets
                # experts that were not chosen have no gradient, which counts as zeros
                gradients = torch.autograd.grad(
                    loss, [*layer_of], allow_unused=True, materialize_grads=True
                )
            torch._foreach_add_(total, gradients)
    finally:
        nn.ParameterList(frozen).requires_grad_(False)
    pairs = zip(layer_of, total, strict=True)
    products = (to_double(weight.detach()) * to_double(gradient) for weight, gradient in pairs)
    of_weights = [product.abs().sum() for product in products]
    place = of_weights[0].device  # layers may lie on several devices; there is one copy of all
    sums = np.zeros(len(decoder_layers(model)))
    for number, value in zip(
        layer_of.values(), torch.stack([v.to(place) for v in of_weights]).tolist(), strict=True
    ):
        sums[number] += value
    return sums


MEASURED = {"cosines": token_cosines, "sublayers": sublayer_cosines, "saliences": saliences}


def measure_rule_needs(
    model, rule: str, sequences: list[torch.Tensor], shards: Shards | None = None
) -> Any:
    """Measure what a rule needs to know of a model, on sequences of tokens, each [T]; None where it needs nothing.
    `shards` keep the finished steps of a search by losses, so that an interrupted one goes on."""
    needs = REGISTERED[rule].needs
    steps = itertools.count()

    def measure_losses(cuts: list[Cut]) -> list[float]:  # in nats a token
        step = shards and shards.part(f"step {next(steps)}")
        return text_loss(model, cuts, sequences, shards=step)[0]["value"].tolist()

    if needs == "losses":
        return measure_losses
    if needs == "likeness":
        return build_likeness(model, sequences)
    return MEASURED[needs](model, sequences) if needs in MEASURED else None
