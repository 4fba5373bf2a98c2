"""The geometry of residuals: measures of layers, of the states between them, and of every two states.

One pass of sequences through the layers, and one with each layer left out in turn; of both what some tokens of each
sequence give, and then the measures of all batches together. State l is the residual that enters layer l, and state L
that which leaves the last layer. Formulas are computed in float64, but linear CKA: the Gram matrices of all states are
kept at once, in float32.

Letters in shapes: B sequences, T tokens, N kept tokens of all sequences of a batch, D width, L layers, K neighbours, V
vocabulary.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from deeper_layers.cuts import ATTENTION, MLP
from deeper_layers.models.network import Network, Residuals

LEFT_OUT = 0.1  # of the ratios of TwoNN, the largest: Facco et al. 2017
TOP = 5  # likeliest tokens whose overlap is counted: Csordas et al. 2025
ROWS = 32  # whose distributions over all tokens are there at once
STATES = "lens_divergence lens_overlap prompt_entropy effective_rank two_nn two_nn_shuffled".split()
PARTS = (ATTENTION, MLP, "layer")  # what adds something to the residual: the two sublayers, and both together

Batch = dict[str, torch.Tensor]
Arrays = dict[str, np.ndarray]


# ---- formulas, of clouds of points [N, D] -------------------------------------------------------------------


def gram(points: torch.Tensor) -> torch.Tensor:
    """[N, N] inner products of points, once their mean is taken away."""
    points = points - points.mean(dim=0)
    return points @ points.T


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Linear centred kernel alignment of two clouds, given by their `gram`: 1 where one is the other turned and scaled.

    It is biased upwards where there are not many more points than dimensions. Source: Kornblith et al. 2019, arXiv
    1905.00414.
    """
    return float(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0))


def spectral_entropy(points: torch.Tensor) -> float:
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


def nearest(points: torch.Tensor, number: int) -> torch.return_types.topk:
    """Distances [N, K] of each point to its `number` nearest others, rising, and which these are."""
    return torch.cdist(points, points).fill_diagonal_(math.inf).topk(number, largest=False)


def two_nn(points: torch.Tensor) -> float:
    """Intrinsic dimension from the ratio r2 / r1 of each point's distances to its second and its first neighbour.

    The ratios of points on a manifold of dimension d are below x with probability 1 - x^-d: d is the slope of the line
    through the origin of -log(1 - i / N) on the log of the i-th smallest ratio, of which the largest tenth is left out.
    Points that are the same count once. Not-a-number where fewer than three are left. Source: Facco et al. 2017,
    doi 10.1038/s41598-017-11873-y.
    """
    points = torch.unique(points, dim=0)
    if len(points) < 3:
        return math.nan
    distances = nearest(points, 2).values
    ratios = (distances[:, 1] / distances[:, 0]).log().sort().values.numpy()
    ratios = ratios[np.isfinite(ratios)]  # rounding can bring two points together
    number = len(ratios)
    ratios = ratios[: int(number * (1 - LEFT_OUT))]
    heights = -np.log1p(-np.arange(1, len(ratios) + 1) / number)
    return float(ratios @ heights / (ratios @ ratios)) if ratios.any() else math.nan


def shuffled(points: torch.Tensor) -> torch.Tensor:
    """Points [N, D] whose coordinates are drawn apart: what a measure says of these is owed to single coordinates."""
    draw = torch.Generator().manual_seed(0)
    return points.gather(0, torch.rand(points.shape, generator=draw).argsort(dim=0))


def in_common(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Share of the numbers in each row of two [N, K] that both have [N]: of nearest neighbours in two clouds (Valeriani
    et al. 2023, arXiv 2302.00294), or of likeliest tokens."""
    return (first[:, :, None] == second[:, None]).any(dim=-1).to(torch.float64).mean(dim=-1)


def divergence(logits: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(first || second) [N], in nats, of distributions over tokens, logits [N, V], and the share of the likeliest
    that both have [N]. Source: Csordas et al. 2025, arXiv 2505.13898, where the second are of the logit lens."""
    first, second = (torch.log_softmax(one.to(torch.float64), dim=-1) for one in (logits, others))
    apart = torch.nn.functional.kl_div(second, first, log_target=True, reduction="none").sum(dim=-1)
    tops = (one.topk(min(TOP, one.shape[-1])).indices for one in (first, second))
    return apart.clamp(min=0), in_common(*tops)


# ---- one pass ------------------------------------------------------------------------------------------------


def kept_tokens(mask: torch.Tensor, tokens: int) -> tuple[torch.Tensor, ...]:
    """Rows and columns [N] of the tokens that are kept: of each sequence as many, evenly spaced, the last among them.

    The mask is [B, T], padded on the right. Never the first, on which models rest attention that has nowhere to go, and
    whose norm is like no other's; a sequence of fewer tokens gives all but the first.
    """
    found = [
        (row, column)
        for row, length in enumerate(mask.sum(dim=1).tolist())
        for column in sorted({round(number * (length - 1) / tokens) for number in range(1, tokens + 1)} - {0})
    ]
    return torch.tensor(found).unbind(dim=1)


def record_passes(model: torch.nn.Module, batches: Iterable[Batch], *, tokens: int) -> Iterator[Arrays]:
    """Of each batch, from one pass, what the measures of all sequences are made of.

    Args:
        batches: each with `input_ids` and `attention_mask`, [B, T], padded on the right.
        tokens: how many are kept of each sequence, see `kept_tokens`.

    Returns:
        residuals [L+1, N, D], float32: what enters each layer, and leaves the last, before the final norm.
        cosines [N, L, 3]: cos(a, x), cos(m, x + a), cos(a + m, x), where a and m are what attention and MLP of a layer
            add to the residual x: the differences of the residuals that leave them. Source: Csordas et al. 2025.
        norms [N, L, 3]: |a| / |x|, |m| / |x + a|, |a + m| / |x|. Source: the same.
        entropy [B, L+1]: prompt entropy, in nats, over all tokens of a sequence, the first too.
        lens [B, L+1, 2]: at the last token, of each residual through the model's own final norm and head: KL from
            the model's output, and overlap of the likeliest tokens with it.

    Raises InputError where the layers can't be run one by one, or have no attention and MLP of known names.
    """
    network = Network(model)

    def keep(residuals: Residuals) -> tuple:
        entering, leaving, mask = residuals.entering, residuals.leaving, residuals.batch["attention_mask"]
        kept, lengths = kept_tokens(mask, tokens), mask.sum(dim=1)
        x, between, left = (hidden[kept].double() for hidden in (entering, residuals.between, leaving))
        pairs = ((between - x, x), (left - between, between), (left - x, x))
        cosines = torch.stack([torch.cosine_similarity(*pair, dim=-1) for pair in pairs], dim=-1)
        norms = torch.stack([added.norm(dim=-1) / to.norm(dim=-1) for added, to in pairs], dim=-1)
        states = [  # of the residuals between layers: prompt entropies, the kept tokens, the last ones
            (
                [spectral_entropy(row[:length].cpu()) for row, length in zip(hidden, lengths.tolist())],
                hidden[kept].float().cpu(),
                hidden[torch.arange(len(mask), device=mask.device), lengths - 1],
            )
            for hidden in ([entering, leaving] if residuals.number == len(network.layers) - 1 else [entering])
        ]
        return cosines.cpu(), norms.cpu(), states

    for of_layers in network.residuals(batches, keep):
        cosines, norms, states = zip(*of_layers)
        entropy, residuals, ends = zip(*itertools.chain(*states))
        yield {
            "residuals": torch.stack(residuals).numpy(),
            "cosines": torch.stack(cosines, dim=1).numpy(),
            "norms": torch.stack(norms, dim=1).numpy(),
            "entropy": np.array(entropy).T,
            "lens": compare_outputs(network, ends[-1], ends),
        }


@torch.inference_mode()
def compare_outputs(network: Network, output: torch.Tensor, others: Sequence[torch.Tensor]) -> np.ndarray:
    """[N, M, 2] how far what M residuals [N, D] give as output is from what the first gives, see `divergence`."""
    found = []
    for some in torch.arange(len(output)).split(ROWS):
        logits = network.logits(output[some])
        of_some = [torch.stack(divergence(logits, network.logits(other[some])), dim=-1) for other in others]
        found.append(torch.stack(of_some, dim=1).cpu())
    return torch.cat(found).numpy()


# ---- without each layer --------------------------------------------------------------------------------------


def skip_each_layer(model: torch.nn.Module, batches: Iterable[Batch], *, tokens: int) -> Iterator[Arrays]:
    """Of each batch what it changes to leave out a layer, for each layer: L (L + 1) / 2 layers run, not L.

    Source: Csordas et al. 2025; they show the largest change over tokens, here each is kept.

    Returns:
        later [N, L, L]: |c' - c| / |c|, where c is what layer m (column) adds to the residual, and c' what it adds
            where layer s (row) was left out; 0 where m <= s, as nothing comes before the layer that is left out.
        output [N, L]: KL, in nats, from the model's output to that without layer s.
    """
    network = Network(model)
    layers = len(network.layers)
    for batch in batches:
        with torch.inference_mode():  # not around the yield
            ids, mask = (batch[name].to(network.device) for name in ("input_ids", "attention_mask"))
            given, kept = network.handed(ids, attention_mask=mask), kept_tokens(mask, tokens)
            later = np.zeros((len(kept[0]), layers, layers))
            whole, without = given.residual, []  # without layer s: the residual as it was before that layer, and on
            for number in network.in_turn(list(range(layers))):
                layer, call = network.layers[number], given.calls[number]
                before, whole = whole, call(layer, whole)
                added = (whole[kept].double() - before[kept].double()).cpu()
                for skip, residual in enumerate(without):
                    without[skip] = call(layer, residual)
                    changed = (without[skip][kept].double() - residual[kept].double()).cpu()
                    share = (changed - added).norm(dim=-1) / added.norm(dim=-1).clamp(min=1e-30)
                    later[:, skip, number] = share.numpy()
                without.append(before)
            output = compare_outputs(network, whole[kept], [residual[kept] for residual in without])[..., 0]
        yield {"later": later, "output": output}


# ---- all batches together ------------------------------------------------------------------------------------


def measure(
    passes: list[Arrays], skips: list[Arrays], *, neighbours: int, progress=iter
) -> tuple[Arrays, Arrays, Arrays]:
    """Values of layers [L], of states [L+1], and, above the diagonal, of every two states [L+1, L+1] or layers [L, L].

    Means over tokens or sequences, or measures of the clouds that the kept tokens of all sequences are: STATES, cka and
    neighbour_overlap. Of layers: cosine_PART, norm_PART, skip (KL without the layer), and of two skip_later.
    """
    mean = {
        name: np.concatenate([batch[name] for batch in batches]).mean(axis=0)
        for batches, names in ((passes, ("cosines", "norms", "entropy", "lens")), (skips, ("output", "later")))
        for name in names
    }
    layers = {f"{name}_{part}": of for name in ("cosine", "norm") for part, of in zip(PARTS, mean[f"{name}s"].T)}
    of_batches = zip(*(batch["residuals"] for batch in passes))
    clouds = [torch.from_numpy(np.concatenate(of_state)).double() for of_state in of_batches]  # [N, D]
    of_clouds = [
        (np.exp(spectral_entropy(points - points.mean(dim=0))), two_nn(points), two_nn(shuffled(points)))
        for points in progress(clouds)
    ]
    states = [*mean["lens"].T, mean["entropy"], *np.array(of_clouds).T]
    cka, overlap = np.zeros((2, len(clouds), len(clouds)))
    products = [gram(points).float() for points in clouds]
    indices = [nearest(points, neighbours).indices for points in clouds]
    for pair in itertools.combinations(range(len(clouds)), 2):
        cka[pair] = linear_cka(*(products[state] for state in pair))
        overlap[pair] = float(in_common(*(indices[state] for state in pair)).mean())
    pairs = {"cka": cka, "neighbour_overlap": overlap, "skip_later": mean["later"]}
    return layers | {"skip": mean["output"]}, dict(zip(STATES, states, strict=True)), pairs
