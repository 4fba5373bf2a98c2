"""Measure every angular distance d(l, n) of a model in one forward pass (Gromov et al. 2024, section 3, eq. 7).

d(l, n) = arccos( <x(l), x(l+n)> / (|x(l)| |x(l+n)|) ) / pi, where x(l) is the residual entering layer l at the last
token of a sequence, and x(L) the residual leaving the last layer, before the final norm. The arccos is taken for each
sequence and then averaged over sequences. Layers are counted from 0.

Two traps: the last entry of `hidden_states` in transformers lies after the final norm, so residuals are read at the
layers themselves (`Network.residuals`). And the arccos of a cosine near 1 vanishes in half precision, so angles are
computed in float64 from the model's own residuals.

Letters in shapes: B sequences, T tokens, D width, L layers, L1 = L + 1 residuals, S sequences of all batches.
"""

import itertools
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
from deeper_layers.models.measuring import check_has_weights, check_tokens, to_double
from deeper_layers.models.network import Batch, Network, Residuals


@torch.inference_mode()
def batch_distances(residuals: Float[torch.Tensor, "L1 B D"]) -> Float[torch.Tensor, "B L1 L1"]:
    """Angular distances between all residuals of each sequence, in units of pi, in float64 (eq. 7)."""
    unit = nn.functional.normalize(residuals.to(torch.float64), dim=-1).transpose(0, 1)
    # rounding can push a cosine just past 1, whose arccos would be not-a-number and sort last
    return torch.arccos((unit @ unit.mT).clamp(-1.0, 1.0)) / torch.pi


def distances_by_batch(
    model: nn.Module, batches: Iterable[Batch]
) -> Iterator[Float[np.ndarray, "B L1 L1"]]:
    """For each batch, the distances of all residuals of each sequence, [B, L+1, L+1] in units of pi.

    Entry [l, m] is between the residuals that enter layers l and m; index L is the one that leaves the last layer.
    """
    check_has_weights(model)
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping):
        raise InputError(
            f"batches is {short_repr(batches)}, expected a list of batches: put one into a list"
        )
    checked = (_check_batch(model, batch) for batch in batches)
    for residuals in _stack_residuals(model, checked, _pick_last_tokens):
        yield batch_distances(
            residuals.cpu()
        ).numpy()  # the one copy of a batch: a card is waited for at each


def mean_distances(
    by_batch: Iterable[Float[np.ndarray, "_ L1 L1"]],
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard error [n, l] of d(l, n) over sequences, and their number. Raises InputError without any."""
    batches = list(by_batch)
    if not batches:
        raise InputError("there is no sequence to measure distances on: give at least one batch")
    rows = np.concatenate(batches)
    if len(rows) > 1:
        error = rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
    else:
        error = np.full(rows[0].shape, np.nan)
    return _arrange_by_size(rows.mean(axis=0)), _arrange_by_size(error), len(rows)


def measure_distances(
    model: nn.Module, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray, int]:
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
    tensors: list[Any] = [None]
    if isinstance(batch, Mapping):
        tensors = [batch.get(name) for name in names]
    if not all(
        isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.numel()
        for tensor in tensors
    ):
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
    return states[torch.arange(len(states), device=states.device), last.to(states.device)]


def _stack_residuals(
    model, batches: Iterable[Batch], pick: Callable[[torch.Tensor, Batch], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """For each batch [L+1, ...]: what `pick` takes of what enters each layer and leaves the last."""
    network = Network(model)

    def keep(around: Residuals) -> list[torch.Tensor]:
        states = [around.entering]
        if around.number == len(network.layers) - 1:
            states.append(around.leaving)
        # layers may lie on several devices
        return [pick(residual, around.batch).to(network.device) for residual in states]

    for by_layer in network.residuals(batches, keep):
        yield torch.stack(list(itertools.chain(*by_layer)))


def _arrange_by_size(pairs: Float[np.ndarray, "L1 L1"]) -> Float[np.ndarray, "L L"]:
    """Turn values [l, m] for all pairs of residuals into [n, l] with n = m - l."""
    layers = len(pairs) - 1
    matrix = np.full((layers, layers), np.nan)
    for size in range(1, layers + 1):
        matrix[size - 1, : layers - size + 1] = np.diagonal(pairs, offset=size)
    return matrix


def iterate_residuals(
    model, sequences: Iterable[torch.Tensor]
) -> Iterator[Float64[torch.Tensor, "L1 T D"]]:
    """For each sequence [T], what enters each layer and leaves the last, in float64: see `to_double`."""
    batches = ({"input_ids": sequence[None]} for sequence in sequences)
    return (
        to_double(residuals)
        for residuals in _stack_residuals(model, batches, lambda states, _: states[0])
    )


def show_progress(items: Sequence | None, description: str, unit: str = "sequence") -> tqdm:
    """The same items one after another, with a bar on stderr where that takes longer than some seconds. Without items,
    a bar to be updated by the caller."""
    return tqdm(items, desc=description, unit=unit, delay=2, mininterval=2, file=sys.stderr)
