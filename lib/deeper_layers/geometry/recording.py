"""One pass of sequences through the layers of a model, and what is kept of it at some tokens of each sequence.

Letters in shapes: B sequences, T tokens, N kept tokens of all sequences of a batch, D width, L layers.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from deeper_layers.cuts import ATTENTION, MLP
from deeper_layers.errors import InputError
from deeper_layers.geometry.measures import divergence, spectral_entropy
from deeper_layers.models.network import Handed, Network, NotApart
from deeper_layers.models.sublayers import only, sublayer

ROWS = 32  # whose distributions over all tokens are there at once
PARTS = (ATTENTION, MLP, "layer")  # what adds something to the residual: the two sublayers, and both together

Batch = dict[str, torch.Tensor]
Kept = tuple[torch.Tensor, torch.Tensor]  # rows and columns of tokens, both [N] of whole numbers


def network_of(model: torch.nn.Module) -> Network:
    """A model as layers that can be run one by one. Raises InputError for one whose layers have no two sublayers."""
    network = Network(model)
    for layer in network.layers:
        for part in (ATTENTION, MLP):
            sublayer(layer, part)
    return network


def handed(network: Network, batch: Batch) -> Handed:
    """What the layers get for a batch. Raises InputError where they can't be run one by one."""
    ids, mask = (batch[name].to(network.device) for name in ("input_ids", "attention_mask"))
    try:
        return network.handed(ids, attention_mask=mask)
    except NotApart:
        raise InputError(
            f"{type(network.model).__name__} does more between its layers than to hand on the residual: expected a "
            "model whose layers run one by one; choose another one"
        ) from None


def places(mask: Int[torch.Tensor, "B T"], tokens: int) -> Kept:
    """Rows and columns of the tokens that are kept: of each sequence as many, evenly spaced, the last among them.

    Never the first, on which models rest attention that has nowhere to go, and whose norm is like no other's; a
    sequence of fewer tokens gives all but the first. Padded on the right.
    """
    rows, columns = [], []
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        found = {round(number * (length - 1) / tokens) for number in range(1, tokens + 1)} - {0}
        rows += [row] * len(found)
        columns += sorted(found)
    return torch.tensor(rows), torch.tensor(columns)


def last(mask: Int[torch.Tensor, "B T"]) -> Kept:
    """Rows and columns of the last tokens, as `places` has them."""
    return torch.arange(len(mask)), mask.sum(dim=1) - 1


def recorded(model: torch.nn.Module, batches: Iterable[Batch], *, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Of each batch, from one pass, what the measures of all sequences are made of.

    Args:
        model: a decoder-only transformers model of L layers.
        batches: each with `input_ids` and `attention_mask`, [B, T], padded on the right.
        tokens: how many are kept of each sequence, see `places`.

    Returns:
        residuals [L+1, N, D], float32: what enters each layer, and leaves the last, before the final norm.
        cosines [N, L, 3]: cos(a, x), cos(m, x + a), cos(a + m, x), where a and m are what attention and MLP of a layer
            add to the residual x: the differences of the residuals that leave them. Source: Csordas et al. 2025, arXiv
            2505.13898.
        norms [N, L, 3]: |a| / |x|, |m| / |x + a|, |a + m| / |x|. Source: the same.
        entropy [B, L+1]: prompt entropy, in nats, over all tokens of a sequence, the first too.
        lens [B, L+1, 2]: at the last token, of each residual through the model's own final norm and head: KL from
            the model's output, and overlap of the likeliest tokens with it.

    Raises:
        InputError: the layers can't be run one by one, or have no attention and MLP of known names.
    """
    network = network_of(model)
    for batch in batches:
        yield _recorded(network, batch, tokens)


@torch.inference_mode()
def _recorded(network: Network, batch: Batch, tokens: int) -> dict[str, np.ndarray]:
    given, mask = handed(network, batch), batch["attention_mask"]
    kept, ends, hidden = places(mask, tokens), last(mask), given.residual
    states, cosines, norms = [], [], []
    for number in network.in_turn(list(range(len(network.layers)))):
        layer, call = network.layers[number], given.calls[number]
        states.append(_state(hidden, mask, kept, ends))
        with only(layer, ATTENTION):
            between = call(layer, hidden)[kept].double()
        entered, hidden = hidden[kept].double(), call(layer, hidden)
        left = hidden[kept].double()
        pairs = ((between - entered, entered), (left - between, between), (left - entered, entered))
        cosines.append(torch.stack([torch.cosine_similarity(*pair, dim=-1) for pair in pairs], dim=-1))
        norms.append(torch.stack([added.norm(dim=-1) / to.norm(dim=-1) for added, to in pairs], dim=-1))
    states.append(_state(hidden, mask, kept, ends))
    entropy, residuals, finals = zip(*states)
    return {
        "residuals": torch.stack(residuals).numpy(),
        "cosines": torch.stack(cosines, dim=1).cpu().numpy(),
        "norms": torch.stack(norms, dim=1).cpu().numpy(),
        "entropy": np.array(entropy).T,
        "lens": apart(network, finals[-1], finals),
    }


def _state(hidden: Float[torch.Tensor, "B T D"], mask: Int[torch.Tensor, "B T"], kept: Kept, ends: Kept) -> tuple:
    """Of the residual between two layers: prompt entropy of each sequence, the kept tokens, the last ones."""
    entropy = [spectral_entropy(row[:length].cpu()) for row, length in zip(hidden, mask.sum(dim=1).tolist())]
    return entropy, hidden[kept].float().cpu(), hidden[ends]


def apart(
    network: Network, output: Float[torch.Tensor, "N D"], others: Sequence[Float[torch.Tensor, "N D"]]
) -> Float[np.ndarray, "N M 2"]:
    """How far what M other residuals give as output is from what the first gives, see `measures.divergence`."""
    found = []
    for some in torch.arange(len(output)).split(ROWS):
        logits = network.logits(output[some])
        of_some = [torch.stack(divergence(logits, network.logits(other[some])), dim=-1) for other in others]
        found.append(torch.stack(of_some, dim=1).cpu())
    return torch.cat(found).numpy()
