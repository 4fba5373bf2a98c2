"""The geometry of residuals: measures of layers, of the states between them, and of every two states.

One pass runs sequences through all layers, another leaves out each layer in turn. Both record some tokens of each
sequence, and `combine_batches` computes the measures from the records of all batches. State l is the residual that
enters layer l, and state L the one that leaves the last layer. Formulas are computed in float64, except linear CKA: it
keeps the Gram matrices of all states at once, in float32.

Letters in shapes: B sequences, T tokens, N kept tokens of a batch, D width, L layers, K neighbours, V vocabulary.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from deeper_layers.cuts import ATTENTION, MLP
from deeper_layers.models.measuring import evaluating, to_double
from deeper_layers.models.network import Batch, Network, Residuals
from deeper_layers.similarity import show_progress

DISCARDED = (
    0.1  # share of the ratios of TwoNN that is left out, the largest ones: Facco et al. 2017
)
TOP_TOKENS = 5  # likeliest tokens whose overlap is counted: Csordas et al. 2025
ROWS = 32  # positions whose distributions over all tokens are in memory at once
STATES = "lens_divergence lens_overlap prompt_entropy effective_rank two_nn two_nn_shuffled".split()
PARTS = (
    ATTENTION,
    MLP,
    "layer",
)  # parts that add to the residual: the two sublayers, and both together

Arrays = dict[str, np.ndarray]


# ---- formulas, of clouds of points [N, D] -------------------------------------------------------------------


def gram_matrix(points: torch.Tensor) -> torch.Tensor:
    """Inner products [N, N] of points after their mean was subtracted."""
    points = points - points.mean(dim=0)
    return points @ points.T


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Linear centred kernel alignment of two clouds, given as `gram_matrix`: 1 where they differ by rotation and scale.

    It is biased upwards without many more points than dimensions. Source: Kornblith et al. 2019, arXiv 1905.00414.
    """
    return float(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0))


def spectral_entropy(points: torch.Tensor) -> float:
    """Entropy, in nats, of the eigenvalues of the points' Gram matrix, divided by their sum. No mean is subtracted.

    Its exponential is the effective rank: 1 where all points lie on a line through the origin, D where they spread
    alike in all directions. Over the tokens of one sequence it is the prompt entropy. Source: Skean et al. 2025, arXiv
    2502.02013, with alpha = 1; Roy and Vetterli 2007 for the exponential.
    """
    # both products have the same eigenvalues above 0: take the smaller one
    points = points.to(torch.float64)
    if len(points) >= points.shape[1]:
        points = points.T
    product = points @ points.T
    values = torch.linalg.eigvalsh(product).clamp(min=0)
    return float(torch.special.entr(values / values.sum()).sum())


def nearest(points: torch.Tensor, number: int) -> torch.return_types.topk:
    """Each point's distances [N, K] to its K = `number` nearest other points, rising, and the indices of these."""
    return torch.cdist(points, points).fill_diagonal_(math.inf).topk(number, largest=False)


def two_nn(points: torch.Tensor) -> float:
    """Intrinsic dimension from the ratio r2 / r1 of each point's distances to its second and its first neighbour.

    The ratios of points on a manifold of dimension d are below x with probability 1 - x^-d: d is the slope of the line
    through the origin of -log(1 - i / N) on the log of the i-th smallest ratio, without the largest tenth of ratios.
    Equal points count once. Not-a-number where fewer than three points are left. Source: Facco et al. 2017,
    doi 10.1038/s41598-017-11873-y.
    """
    points = torch.unique(points, dim=0)
    if len(points) < 3:
        return math.nan
    distances = nearest(points, 2).values
    ratios = (distances[:, 1] / distances[:, 0]).log().sort().values.numpy()
    ratios = ratios[np.isfinite(ratios)]  # rounding can make a first distance 0
    number = len(ratios)
    ratios = ratios[: int(number * (1 - DISCARDED))]
    heights = -np.log1p(-np.arange(1, len(ratios) + 1) / number)
    return float(ratios @ heights / (ratios @ ratios)) if ratios.any() else math.nan


def shuffle_coordinates(points: torch.Tensor) -> torch.Tensor:
    """Points [N, D] with each coordinate shuffled over the points. A measure of these depends on single coordinates
    alone, not on how they vary together."""
    generator = torch.Generator().manual_seed(0)
    return points.gather(0, torch.rand(points.shape, generator=generator).argsort(dim=0))


def row_overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The share [N] of numbers that two tables [N, K] have in common in each row: nearest neighbours in two clouds
    (Valeriani et al. 2023, arXiv 2302.00294), or likeliest tokens."""
    return to_double((first[:, :, None] == second[:, None]).any(dim=-1)).mean(dim=-1)


def compare_logits(logits: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(logits || others) [N], in nats, of logits [N, V], and the share [N] of likeliest tokens that both have.
    Source: Csordas et al. 2025, arXiv 2505.13898, where the others are those of the logit lens."""
    first = torch.log_softmax(to_double(logits), dim=-1)
    second = torch.log_softmax(to_double(others), dim=-1)
    divergences = torch.nn.functional.kl_div(second, first, log_target=True, reduction="none").sum(
        dim=-1
    )
    number = min(TOP_TOKENS, first.shape[-1])
    overlap = row_overlap(first.topk(number).indices, second.topk(number).indices)
    return divergences.clamp(min=0), overlap


# ---- one pass ------------------------------------------------------------------------------------------------


def select_tokens(mask: torch.Tensor, tokens: int) -> tuple[torch.Tensor, ...]:
    """Rows and columns [N] of the kept tokens: `tokens` of each sequence, evenly spaced, up to the last one.

    The mask is [B, T], padded on the right. The first token is never kept: models direct idle attention to it, and its
    norm is unlike all others. A sequence with too few tokens gives all but the first.
    """
    positions = []
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        columns = {round(number * (length - 1) / tokens) for number in range(1, tokens + 1)}
        positions += [(row, column) for column in sorted(columns - {0})]
    return torch.tensor(positions).unbind(dim=1)


def record_passes(
    model: torch.nn.Module, batches: Iterable[Batch], *, tokens: int
) -> Iterator[Arrays]:
    """Run each batch through the model once and record what `combine_batches` needs.

    Args:
        batches: each with `input_ids` and `attention_mask`, [B, T], padded on the right.
        tokens: how many tokens of each sequence are kept, see `select_tokens`.

    Yields for each batch:
        residuals [L+1, N, D], float32: states 0 to L, the last one before the final norm.
        cosines [N, L, 3]: cos(a, x), cos(m, x + a), cos(a + m, x), where a layer's attention adds a to the residual x,
            and then its MLP adds m. Source: Csordas et al. 2025.
        norms [N, L, 3]: |a| / |x|, |m| / |x + a|, |a + m| / |x|. Source: the same.
        entropy [B, L+1]: prompt entropy, in nats, over all tokens of a sequence, the first too.
        lens [B, L+1, 2]: the last token's residuals after the model's final norm and head, compared with the model's
            output: KL, and overlap of the likeliest tokens.

    Raises InputError where the layers can't be run one by one, or their attention and MLP have no known names.
    """
    network = Network(model)

    def keep(residuals: Residuals) -> tuple:
        mask = residuals.batch["attention_mask"]
        kept = select_tokens(mask, tokens)
        x = to_double(residuals.entering[kept])
        between = to_double(residuals.between[kept])
        left = to_double(residuals.leaving[kept])
        pairs = ((between - x, x), (left - between, between), (left - x, x))
        cosines = torch.stack([torch.cosine_similarity(*pair, dim=-1) for pair in pairs], dim=-1)
        norms = torch.stack(
            [added.norm(dim=-1) / base.norm(dim=-1) for added, base in pairs], dim=-1
        )
        states = [_record_state(residuals.entering, mask, kept)]
        if residuals.number == len(network.layers) - 1:
            states.append(_record_state(residuals.leaving, mask, kept))
        return cosines.cpu(), norms.cpu(), states

    for layers in network.residuals(batches, keep):
        cosines, norms, states = zip(*layers)
        entropy, residuals, ends = zip(*itertools.chain(*states))
        yield {
            "residuals": torch.stack(residuals).numpy(),
            "cosines": torch.stack(cosines, dim=1).numpy(),
            "norms": torch.stack(norms, dim=1).numpy(),
            "entropy": np.array(entropy).T,
            "lens": compare_outputs(network, ends[-1], ends),
        }


def _record_state(
    hidden: torch.Tensor, mask: torch.Tensor, kept: tuple[torch.Tensor, ...]
) -> tuple:
    """Of one residual [B, T, D]: the prompt entropy of each sequence, the kept tokens, the last tokens."""
    lengths = mask.sum(dim=1)
    entropies = [
        spectral_entropy(row[:length].cpu()) for row, length in zip(hidden, lengths.tolist())
    ]
    last = hidden[torch.arange(len(mask), device=mask.device), lengths - 1]
    return entropies, hidden[kept].float().cpu(), last


@torch.inference_mode()
def compare_outputs(
    network: Network, output: torch.Tensor, others: Sequence[torch.Tensor]
) -> np.ndarray:
    """The logits of a residual [N, D] compared with those of M others, see `compare_logits`: [N, M, 2]."""
    comparisons = []
    for rows in torch.arange(len(output)).split(ROWS):
        logits = network.logits(output[rows])
        compared = [
            torch.stack(compare_logits(logits, network.logits(other[rows])), dim=-1)
            for other in others
        ]
        comparisons.append(torch.stack(compared, dim=1).cpu())
    return torch.cat(comparisons).numpy()


# ---- without each layer --------------------------------------------------------------------------------------


def skip_each_layer(
    model: torch.nn.Module, batches: Iterable[Batch], *, tokens: int
) -> Iterator[Arrays]:
    """Run each batch without each layer in turn: L (L + 1) / 2 layers run, not L.

    Source: Csordas et al. 2025; they show the largest change over tokens, here the change of each token is kept.

    Yields for each batch:
        later [N, L, L]: |c' - c| / |c|, where layer m (column) adds c to the residual, and c' without layer s (row);
            0 where m <= s, as layers up to s do not change.
        output [N, L]: KL, in nats, from the model's output to its output without layer s.
    """
    network = Network(model)
    layers = len(network.layers)
    for batch in batches:
        with torch.inference_mode(), evaluating(model):  # not around the yield
            ids = batch["input_ids"].to(network.device)
            mask = batch["attention_mask"].to(network.device)
            inputs = network.layer_inputs(ids, attention_mask=mask)
            kept = select_tokens(mask, tokens)
            later = np.zeros((len(kept[0]), layers, layers))
            whole = inputs.residual
            without = []  # without[s]: the residual of the model without layer s
            for number in network.load_in_turn(list(range(layers))):
                layer = network.layers[number]
                call = inputs.calls[number]
                before = whole
                whole = call(layer, whole)
                added = (to_double(whole[kept]) - to_double(before[kept])).cpu()
                for skip, residual in enumerate(without):
                    without[skip] = call(layer, residual)
                    changed = (to_double(without[skip][kept]) - to_double(residual[kept])).cpu()
                    share = (changed - added).norm(dim=-1) / added.norm(dim=-1).clamp(min=1e-30)
                    later[:, skip, number] = share.numpy()
                without.append(before)
            output = compare_outputs(
                network, whole[kept], [residual[kept] for residual in without]
            )[..., 0]
        yield {"later": later, "output": output}


# ---- all batches together ------------------------------------------------------------------------------------


def combine_batches(
    passes: list[Arrays], skips: list[Arrays], *, neighbours: int
) -> tuple[Arrays, Arrays, Arrays]:
    """The measures of layers [L], of states [L+1], and of pairs: above the diagonal of [L+1, L+1] or [L, L].

    `passes` and `skips` are what `record_passes` and `skip_each_layer` yield. Measures of layers: cosine_PART,
    norm_PART and skip (KL without the layer); of states: STATES; of pairs of states: cka, neighbour_overlap; of pairs
    of layers: skip_later. They are means over tokens or sequences, or computed on the cloud of all kept tokens.
    """
    layers = {"skip": _average(skips, "output")}
    for name in ("cosine", "norm"):
        for part, row in zip(PARTS, _average(passes, f"{name}s").T):
            layers[f"{name}_{part}"] = row
    residuals = zip(*(batch["residuals"] for batch in passes))
    clouds = [torch.from_numpy(np.concatenate(arrays)).double() for arrays in residuals]  # [N, D]
    measures = [
        (
            np.exp(spectral_entropy(points - points.mean(dim=0))),
            two_nn(points),
            two_nn(shuffle_coordinates(points)),
        )
        for points in show_progress(clouds, "dimensions", "layer")
    ]
    states = [*_average(passes, "lens").T, _average(passes, "entropy"), *np.array(measures).T]
    cka, overlap = np.zeros((2, len(clouds), len(clouds)))
    products = [gram_matrix(points).float() for points in clouds]
    indices = [nearest(points, neighbours).indices for points in clouds]
    for first, second in itertools.combinations(range(len(clouds)), 2):
        cka[first, second] = linear_cka(products[first], products[second])
        overlap[first, second] = float(row_overlap(indices[first], indices[second]).mean())
    pairs = {"cka": cka, "neighbour_overlap": overlap, "skip_later": _average(skips, "later")}
    return layers, dict(zip(STATES, states, strict=True)), pairs


def _average(batches: list[Arrays], name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in batches]).mean(axis=0)
