"""Measure every angular distance d(l, n) of a model in one forward pass (Gromov et al. 2024, section 3, eq. 7).

d(l, n) = arccos( <x(l), x(l+n)> / (|x(l)| |x(l+n)|) ) / pi, where x(l) is the residual entering layer l at the last
token of a sequence, and x(L) the residual leaving the last layer, before the final norm. The arccos is taken for each
sequence and then averaged over sequences. Layers are counted from 0.

Two traps: the last entry of `hidden_states` in transformers lies after the final norm, so residuals are read at the
layers themselves (`Network.residuals`). And the arccos of a cosine near 1 vanishes in half precision, so angles are
computed in float64 from the model's own residuals.

The end of this file has what other rules need of a model: cosines at all tokens, and how much weights matter.
Letters in shapes: B sequences, T tokens, D width, L layers, L1 = L + 1 residuals, S sequences of all batches.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import nn
from tqdm import tqdm

from deeper_layers.checks import short_repr
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, is_parallel
from deeper_layers.models.measuring import check_has_weights, check_tokens, measuring
from deeper_layers.models.network import Batch, Network, Residuals


@torch.inference_mode()
def batch_distances(residuals: Float[torch.Tensor, "L1 B D"]) -> Float[torch.Tensor, "B L1 L1"]:
    """Angular distances between all residuals of each sequence, in units of pi, in float64 (eq. 7)."""
    unit = nn.functional.normalize(residuals.to(torch.float64), dim=-1).transpose(0, 1)
    # rounding can push a cosine just past 1, whose arccos would be not-a-number and sort last
    return torch.arccos((unit @ unit.mT).clamp(-1.0, 1.0)) / torch.pi


def distances_by_batch(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Float[np.ndarray, "B L1 L1"]]:
    """For each batch, the distances of all residuals of each sequence, [B, L+1, L+1] in units of pi.

    Entry [l, m] is between the residuals that enter layers l and m; index L is the one that leaves the last layer.
    """
    check_has_weights(model)
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping):
        raise InputError(f"batches is {short_repr(batches)}, expected a list of batches: put one into a list")
    checked = (_check_batch(model, batch) for batch in batches)
    for residuals in _stack_residuals(model, checked, _pick_last_tokens):
        yield batch_distances(residuals).numpy()


def mean_distances(by_batch: Iterable[Float[np.ndarray, "_ L1 L1"]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard error [n, l] of d(l, n) over sequences, and their number. Raises InputError without any."""
    if not (batches := list(by_batch)):
        raise InputError("there is no sequence to measure distances on: give at least one batch")
    rows = np.concatenate(batches)
    error = rows.std(axis=0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.full(rows[0].shape, np.nan)
    return _arrange_by_size(rows.mean(axis=0)), _arrange_by_size(error), len(rows)


def measure_distances(model: nn.Module, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard error of d(l, n) over sequences, and their number: see `angular_distances`."""
    return mean_distances(distances_by_batch(model, batches))


def angular_distances(model: nn.Module, batches: Iterable[Batch]) -> Float[np.ndarray, "L L"]:
    """Mean angular distances d(l, n) over sequences, from one pass over `batches`.

    Source: paper, section 3.2 and equation 7: arccos of the cosine between the residuals entering layers l and l + n
    at the last token, over pi; 0 is the same direction, 0.5 a right angle. `measure_distances` has the standard errors
    too.

    Args:
        model: a decoder-only transformers model of L layers.
        batches: each with `input_ids` and `attention_mask`, [B, T] whole numbers, padded on either side: positions are
            counted from each sequence's first token.

    Returns:
        Array [n, l] of shape (L, L) in units of pi: row n-1 is the block size n = 1..L, column l the first layer
        0..L-1; nan where l + n > L.

    Raises:
        InputError: there is no sequence, a sequence is all padding, a batch has another form or tokens that the model
            does not have, or the model has no weights.

    Example:
        >>> from deeper_layers import angular_distances, load_model, similarity_cut
        >>> model, tokenizer = load_model("embedded")
        >>> batch = dict(tokenizer(["The capital of France is Paris."], return_tensors="pt"))
        >>> distances = angular_distances(model, [batch])
        >>> distances.shape
        (30, 30)
        >>> similarity_cut(distances, size=4).size
        4
    """
    return measure_distances(model, batches)[0]


def _check_batch(model: nn.Module, batch: object) -> Batch:
    """The tokens and the mask of a batch. Raises InputError for what is no batch of the model's tokens."""
    names = ("input_ids", "attention_mask")
    tensors: list[Any] = [batch.get(name) for name in names] if isinstance(batch, Mapping) else [None]
    if not all(isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.numel() for tensor in tensors):
        raise InputError(
            f"a batch is {short_repr(batch)}; expected {' and '.join(names)}, [B, T] with a token at least, as "
            "tokenizers give them: leave empty ones out"
        )
    ids, mask = tensors
    if ids.shape != mask.shape or ids.is_floating_point() or ((mask != 0) & (mask != 1)).any():
        raise InputError(
            f"a batch has input_ids {list(ids.shape)} of {ids.dtype} and attention_mask {list(mask.shape)}; expected "
            "whole numbers of one shape, and a mask of 0 and 1, as tokenizers give them"
        )
    if (mask.sum(dim=1) == 0).any():
        raise InputError("a sequence is all padding: it has no last token")
    check_tokens(model, int(ids.min()), int(ids.max()))
    return {"input_ids": ids.long(), "attention_mask": mask.long()}


def _pick_last_tokens(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The states [B, D] of each row's last token, on whichever side it is padded."""
    mask = batch["attention_mask"]
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last.to(states.device)].cpu()


def _stack_residuals(
    model, batches: Iterable[Batch], pick: Callable[[torch.Tensor, Batch], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """For each batch [L+1, ...]: what `pick` takes of what enters each layer and leaves the last."""
    keep = lambda around: [pick(states, around.batch) for states in (around.entering, around.leaving)]  # noqa: E731
    for by_layer in Network(model).residuals(batches, keep):
        yield torch.stack([entering for entering, _ in by_layer] + [by_layer[-1][1]])


def _arrange_by_size(pairs: Float[np.ndarray, "L1 L1"]) -> Float[np.ndarray, "L L"]:
    """Turn values [l, m] for all pairs of residuals into [n, l] with n = m - l."""
    layers = len(pairs) - 1
    matrix = np.full((layers, layers), np.nan)
    for size in range(1, layers + 1):
        matrix[size - 1, : layers - size + 1] = np.diagonal(pairs, offset=size)
    return matrix


def iterate_residuals(model, sequences: Iterable[torch.Tensor]) -> Iterator[Float64[torch.Tensor, "L1 T D"]]:
    """For each sequence [T], what enters each layer and leaves the last, in float64, on the device of the model."""
    batches = ({"input_ids": sequence[None]} for sequence in sequences)
    return (residuals.double() for residuals in _stack_residuals(model, batches, lambda states, _: states[0]))


def show_progress(items: Sequence | None, description: str, unit: str = "sequence") -> tqdm:
    """The same items one after another, with a bar on stderr where that takes longer than some seconds. Without items,
    a bar to be updated by the caller."""
    return tqdm(items, desc=description, unit=unit, delay=2, mininterval=2, file=sys.stderr)


def token_cosines(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, "L1 L1"]:
    """Mean over tokens of the cosine between residuals entering layers l and m; index L leaves the last layer.

    Source: Men et al., arXiv 2403.03853, equation 1, whose Block Influence is 1 less the values beside the diagonal;
    Chen et al., arXiv 2403.19135, equation 5. One pass; memory does not grow with the number of sequences, each [T].
    """
    passes = iterate_residuals(model, show_progress(sequences, "cosines of residuals"))
    units = (nn.functional.normalize(residuals, dim=-1) for residuals in passes)
    return sum(torch.einsum("ltd,mtd->lm", unit, unit).cpu().numpy() for unit in units) / sum(map(len, sequences))


def sublayer_cosines(model, sequences: Sequence[torch.Tensor]) -> Float[np.ndarray, "2 L"]:
    """Mean over tokens of the cosine between what enters and leaves the attention (row 0) and the MLP (row 1).

    Source: He et al., arXiv 2406.15786, equations 4 and 5: what leaves a sublayer is the residual plus its output.
    Each layer runs a second time without its MLP, which gives what leaves the attention: two passes over sequences [T].
    Where both sublayers read the same residual, that also enters the MLP. Raises InputError where layers have no
    such sublayers.
    """
    parallel: dict[int, bool] = {}

    def cosines(residuals: Residuals) -> torch.Tensor:
        entering, between, leaving = residuals.entering, residuals.between, residuals.leaving
        if residuals.number not in parallel:
            parallel[residuals.number] = is_parallel(residuals.layer, residuals.call, entering)
        mlp_pair = (entering, entering + (leaving - between)) if parallel[residuals.number] else (between, leaving)
        pairs = [(entering, between), mlp_pair]
        return torch.stack([nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).sum() for a, b in pairs])

    batches = ({"input_ids": sequence[None]} for sequence in show_progress(sequences, "cosines of sublayers"))
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
    layer_of = {
        weight: number
        for number, layer in enumerate(decoder_layers(model))
        for name, weight in layer.named_parameters()
        if not name.endswith("bias")
    }
    if any(not weight.is_floating_point() or weight.is_meta or weight.is_inference() for weight in layer_of):
        raise InputError(
            "the weights are quantized, on disk or of inference mode, without a gradient: open the model without that"
        )
    total = [torch.zeros_like(weight) for weight in layer_of]
    frozen = [weight for weight in layer_of if not weight.requires_grad]
    device, targets = model.get_input_embeddings().weight.device, sum(len(sequence) - 1 for sequence in sequences)
    try:
        nn.ParameterList(frozen).requires_grad_(True)
        for sequence in show_progress(sequences, "saliences"):
            ids = sequence[None].to(device, torch.long, copy=True)
            with torch.enable_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                loss = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / targets
                # experts that were not chosen have no gradient, which counts as zeros
                gradients = torch.autograd.grad(loss, [*layer_of], allow_unused=True, materialize_grads=True)
            torch._foreach_add_(total, gradients)
    finally:
        nn.ParameterList(frozen).requires_grad_(False)
    sums = np.zeros(len(decoder_layers(model)))
    for (weight, number), gradient in zip(layer_of.items(), total, strict=True):
        sums[number] += float((weight.detach().double() * gradient.double()).abs().sum())
    return sums
