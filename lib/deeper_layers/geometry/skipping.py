"""Each layer left out in turn: what changes in what later layers add, and in the output.

Letters in shapes: B sequences, T tokens, N kept tokens of all sequences of a batch, L layers.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from deeper_layers.geometry.recording import Batch, apart, handed, network_of, places
from deeper_layers.models.network import Network


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
