"""All batches together: measures of layers, of the states between them, and of every two states.

State l is the residual that enters layer l, and state L that which leaves the last layer. Letters in shapes: L layers.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

from deeper_layers.geometry import measures
from deeper_layers.geometry.recording import PARTS

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
        clouds["effective_rank"].append(np.exp(measures.spectral_entropy(centred)))
        clouds["two_nn"].append(measures.two_nn(points))
        clouds["two_nn_shuffled"].append(measures.two_nn(measures.shuffled(points)))
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
    products = [measures.gram(points).float() for points in clouds]
    nearest = [measures.neighbours(points, neighbours) for points in clouds]
    for first in range(len(clouds)):
        adjacent = measures.adjacency(nearest[first])
        for second in range(first + 1, len(clouds)):
            cka[first, second] = cka[second, first] = measures.linear_cka(products[first], products[second])
            common = measures.neighbour_overlap(adjacent, nearest[second])
            overlap[first, second] = overlap[second, first] = common
    later = np.concatenate([batch["later"] for batch in skipped]).mean(axis=0)
    return {"cka": cka, "neighbour_overlap": overlap, "skip_later": later}


def clouds_of(recorded: list[Arrays]) -> Iterable[torch.Tensor]:
    """The kept tokens of all sequences, [N, D] in float64, one state after another."""
    for state in range(len(recorded[0]["residuals"])):
        yield torch.from_numpy(np.concatenate([batch["residuals"][state] for batch in recorded])).double()
