"""Measures of a cloud of points, and of two clouds of the same points: plain formulas, in float64.

But linear CKA is of whatever Gram matrices it is given: those of all layers are kept at once, so summary.py has them in
float32.
Letters in shapes: N points, D width, K neighbours, V vocabulary.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from deeper_layers.errors import InputError

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


def neighbours(points: Float[torch.Tensor, "N D"], number: int) -> Int[torch.Tensor, "N K"]:
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
