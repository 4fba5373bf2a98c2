"""The geometry of residuals: measures of layers, of the states between them, and of every two states.

One pass of sequences through the layers, and one with each layer left out in turn; of both what some tokens of each
sequence give, and then the measures of all batches together. State l is the residual that enters layer l, and state L
that which leaves the last layer. Formulas are computed in float64, but linear CKA: the Gram matrices of all states are
kept at once, in float32.

Letters in shapes: B sequences, T tokens, N kept tokens of all sequences of a batch, D width, L layers, K neighbours, V
vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from deeper_layers.cuts import ATTENTION, MLP
from deeper_layers.errors import InputError
from deeper_layers.models.network import Handed, Network, NotApart
from deeper_layers.models.sublayers import only, sublayer

LEFT_OUT = 0.1  # of the ratios of TwoNN, the largest: Facco et al. 2017
TOP = 5  # likeliest tokens whose overlap is counted: Csordas et al. 2025


def gram(points: Float[torch.Tensor, "N D"]) -> Float[torch.Tensor, "N N"]:
    """Inner products of points, once their mean is taken away."""
    points = points.to(torch.float64)
    points = points - points.mean(dim=0)
    return points @ points.T


def linear_cka(first: Float[torch.Tensor, "N N"], second: Float[torch.Tensor, "N N"]) -> float:
    """Linear centred kernel alignment of two clouds, given by their `gram`: 1 where one is the other turned and scaled.

    <K, L> / (|K| |L|), with the inner product and the norm of Frobenius. It is biased upwards where there are not many
    more points than dimensions. Source: Kornblith et al. 2019, arXiv 1905.00414.
    """
    return float((first * second).sum() / (torch.linalg.norm(first) * torch.linalg.norm(second)))


def spectral_entropy(points: Float[torch.Tensor, "N D"]) -> float:
    """Entropy, in nats, of the eigenvalues of the Gram matrix of points over their sum; the mean is not taken away.

    exp of it is the effective rank: 1 where all points lie on a line through the origin, D where they spread alike in
    all directions. Over the tokens of one sequence it is the prompt entropy. Source: Skean et al. 2025, arXiv
    2502.02013, with alpha = 1; Roy and Vetterli 2007 for the exponential.
    """
    # the squares of singular values are those eigenvalues; of both products the smaller has them all
    points = points.to(torch.float64)
    product = points @ points.T if len(points) < points.shape[1] else points.T @ points
    values = torch.linalg.eigvalsh(product).clamp(min=0)
    return float(torch.special.entr(values / values.sum()).sum())


def distances(points: Float[torch.Tensor, "N D"]) -> Float[torch.Tensor, "N N"]:
    """Euclidean distances between points; infinity from a point to itself, which is no neighbour of its own."""
    products = gram(points)
    squares = products.diagonal()
    found = (squares[:, None] + squares[None] - 2 * products).clamp(min=0).sqrt()
    return found.fill_diagonal_(math.inf)


def two_nn(points: Float[torch.Tensor, "N D"]) -> float:
    """Intrinsic dimension from the ratio r2 / r1 of each point's distances to its second and its first neighbour.

    The ratios of points on a manifold of dimension d are below x with probability 1 - x^-d: d is the slope of the line
    through the origin of -log(1 - i / N) on the log of the i-th smallest ratio, of which the largest tenth is left out.
    Points that are the same count once. Not-a-number where fewer than three are left. Source: Facco et al. 2017,
    doi 10.1038/s41598-017-11873-y.
    """
    points = torch.unique(points, dim=0)
    if len(points) < 3:
        return math.nan
    nearest = distances(points).topk(2, largest=False).values
    ratios = (nearest[:, 1] / nearest[:, 0]).log().sort().values.numpy()
    ratios = ratios[np.isfinite(ratios)]  # rounding can bring two points together
    number = len(ratios)
    ratios = ratios[: int(number * (1 - LEFT_OUT))]
    heights = -np.log1p(-np.arange(1, len(ratios) + 1) / number)
    return float(ratios @ heights / (ratios @ ratios)) if ratios.any() else math.nan


def shuffled(points: Float[torch.Tensor, "N D"], seed: int = 0) -> Float[torch.Tensor, "N D"]:
    """Points whose coordinates are drawn apart: each coordinate has the same values, in another order of the points.

    What a measure says of these is owed to the spread of single coordinates, and not to what they have in common.
    """
    draw = torch.Generator().manual_seed(seed)
    orders = torch.rand(points.shape, generator=draw).argsort(dim=0)
    return points.gather(0, orders)


def nearest_neighbours(points: Float[torch.Tensor, "N D"], number: int) -> Int[torch.Tensor, "N K"]:
    """Of each point which are nearest; of points as near as each other, as the same token before all layers, any.

    Raises InputError where a point has fewer others.
    """
    if number >= len(points):
        raise InputError(
            f"neighbours is {number} of {len(points)} points, expected fewer than there are: ask for fewer, or keep "
            "more tokens of longer sequences"
        )
    return distances(points).topk(number, largest=False).indices


def adjacency(nearest: Int[torch.Tensor, "N K"]) -> Bool[torch.Tensor, "N N"]:
    """Whether a point (column) is among the nearest of another (row)."""
    points = len(nearest)
    return torch.zeros(points, points, dtype=torch.bool).scatter_(1, nearest, True)


def neighbour_overlap(adjacent: Bool[torch.Tensor, "N N"], nearest: Int[torch.Tensor, "N K"]) -> float:
    """Share of the K nearest neighbours that two clouds of the same points have in common.

    Source: Valeriani et al. 2023, arXiv 2302.00294, after Doimo et al. 2020.
    """
    return float(adjacent.gather(1, nearest).to(torch.float64).mean())


def divergence(
    logits: Float[torch.Tensor, "N V"], others: Float[torch.Tensor, "N V"]
) -> tuple[Float[torch.Tensor, " N"], Float[torch.Tensor, " N"]]:
    """Of two distributions over tokens KL(first || second), in nats, and the share of their likeliest tokens in common.

    Source: Csordas et al. 2025, arXiv 2505.13898, where the second are those of the logit lens.
    """
    first, second = (torch.log_softmax(one.to(torch.float64), dim=-1) for one in (logits, others))
    apart = torch.nn.functional.kl_div(second, first, log_target=True, reduction="none").sum(dim=-1)
    tops = [one.topk(min(TOP, one.shape[-1])).indices for one in (first, second)]
    common = (tops[0][:, :, None] == tops[1][:, None]).any(dim=-1).to(torch.float64).mean(dim=-1)
    return apart.clamp(min=0), common


# ---- one pass ------------------------------------------------------------------------------------------

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


# ---- without each layer --------------------------------------------------------------------------------


def skipped(model: torch.nn.Module, batches: Iterable[Batch], *, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Of each batch what it changes to leave out a layer, for each layer: L (L + 1) / 2 layers run, not L.

    Source: Csordas et al. 2025, arXiv 2505.13898; they show the largest change over tokens, here each is kept.

    Args:
        model: a decoder-only transformers model of L layers.
        batches: each with `input_ids` and `attention_mask`, [B, T], padded on the right.
        tokens: how many are kept of each sequence, see `recording.places`.

    Returns:
        later [N, L, L]: |c' - c| / |c|, where c is what layer m (column) adds to the residual, and c' what it adds
            where layer s (row) was left out; 0 where m <= s, as nothing comes before the layer that is left out.
        output [N, L]: KL, in nats, from the model's output to that without layer s.

    Raises:
        InputError: the layers can't be run one by one, or have no attention and MLP of known names.
    """
    network = network_of(model)
    for batch in batches:
        yield _skipped(network, batch, tokens)


@torch.inference_mode()
def _skipped(network: Network, batch: Batch, tokens: int) -> dict[str, np.ndarray]:
    layers = len(network.layers)
    given, mask = handed(network, batch), batch["attention_mask"]
    kept = places(mask, tokens)
    later = np.zeros((len(kept[0]), layers, layers))
    whole, without = given.residual, []  # without layer s: the residual as it was before that layer, and on
    for number in network.in_turn(list(range(layers))):
        layer, call = network.layers[number], given.calls[number]
        before, whole = whole, call(layer, whole)
        added = (whole[kept].double() - before[kept].double()).cpu()
        for skip, residual in enumerate(without):
            without[skip] = call(layer, residual)
            changed = (without[skip][kept].double() - residual[kept].double()).cpu()
            later[:, skip, number] = ((changed - added).norm(dim=-1) / added.norm(dim=-1).clamp(min=1e-30)).numpy()
        without.append(before)
    output = apart(network, whole[kept], [residual[kept] for residual in without])[..., 0]
    return {"later": later, "output": output}


# ---- all batches together ------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]


def of_layers(recorded: list[Arrays], skipped: list[Arrays]) -> dict[str, Float[np.ndarray, " L"]]:
    """A value for each layer, the mean over the kept tokens.

    Of `recorded` cosine_PART and norm_PART of each of PARTS, of `skipped` skip: KL of the output without the layer.
    """
    found = {}
    for name in ("cosine", "norm"):
        means = np.concatenate([batch[f"{name}s"] for batch in recorded]).mean(axis=0)
        found |= {f"{name}_{part}": means[:, number] for number, part in enumerate(PARTS)}
    return found | {"skip": np.concatenate([batch["output"] for batch in skipped]).mean(axis=0)}


def of_states(recorded: list[Arrays], progress=iter) -> dict[str, Float[np.ndarray, " L1"]]:
    """A value for each state, L + 1 of them.

    lens_divergence, lens_overlap, prompt_entropy: means over sequences. effective_rank, two_nn, and two_nn_shuffled as
    its control: of the kept tokens of all sequences.
    """
    lens = np.concatenate([batch["lens"] for batch in recorded]).mean(axis=0)
    clouds = {"effective_rank": [], "two_nn": [], "two_nn_shuffled": []}
    for points in progress(clouds_of(recorded)):
        centred = points - points.mean(dim=0)
        clouds["effective_rank"].append(np.exp(spectral_entropy(centred)))
        clouds["two_nn"].append(two_nn(points))
        clouds["two_nn_shuffled"].append(two_nn(shuffled(points)))
    return {
        "lens_divergence": lens[:, 0],
        "lens_overlap": lens[:, 1],
        "prompt_entropy": np.concatenate([batch["entropy"] for batch in recorded]).mean(axis=0),
        **{name: np.array(values) for name, values in clouds.items()},
    }


def of_pairs(recorded: list[Arrays], skipped: list[Arrays], *, neighbours: int) -> dict[str, np.ndarray]:
    """A value for every two states l and m, [L+1, L+1]: cka and neighbour_overlap; and skip_later, of layers, [L, L].

    skip_later is the mean over tokens of the change of what layer m adds where layer s is left out.
    """
    clouds = list(clouds_of(recorded))
    cka, overlap = np.eye(len(clouds)), np.eye(len(clouds))
    products = [gram(points).float() for points in clouds]
    nearest = [nearest_neighbours(points, neighbours) for points in clouds]
    for first in range(len(clouds)):
        adjacent = adjacency(nearest[first])
        for second in range(first + 1, len(clouds)):
            cka[first, second] = cka[second, first] = linear_cka(products[first], products[second])
            common = neighbour_overlap(adjacent, nearest[second])
            overlap[first, second] = overlap[second, first] = common
    later = np.concatenate([batch["later"] for batch in skipped]).mean(axis=0)
    return {"cka": cka, "neighbour_overlap": overlap, "skip_later": later}


def clouds_of(recorded: list[Arrays]) -> Iterable[torch.Tensor]:
    """The kept tokens of all sequences, [N, D] in float64, one state after another."""
    for state in range(len(recorded[0]["residuals"])):
        yield torch.from_numpy(np.concatenate([batch["residuals"][state] for batch in recorded])).double()
