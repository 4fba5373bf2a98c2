"""Take one batch through the tree layer by layer, from the embedding to what enters the final norm.

Letters in shapes: B sequences of a batch, T tokens, S scored positions of a sequence, N of a batch, C cuts, D width,
K tokens in P rows of logits over V tokens.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch.nn.utils.rnn import pad_sequence

from deeper_layers.cuts import WHOLE
from deeper_layers.models.decoder import running_only
from deeper_layers.models.network import Network
from deeper_layers.sweeping.attention import PrefixCache, attention_masks, run_scored
from deeper_layers.sweeping.planning import HEAD_ELEMENTS, Batch
from deeper_layers.sweeping.tree import Tree


class PaddedBatch:
    """A batch as tensors, padded on the right. No mask is needed, as no scored token sees what follows it.

    Attributes:
        ids: [B, T], without the prefix.
        rows, slots: [N], for each scored position its sequence, and its index among the scored ones of that.
        places: [B, S], the columns of the scored positions of each sequence, filled up with 0.
        branches: None where no sequence branches; else positions of tokens [B, T] and of keys [B, K], and whether a
            token sees a key [B, T, K].
    """

    def __init__(self, batch: Batch, device):
        def padded(rows: list) -> torch.Tensor:
            tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
            return pad_sequence(tensors, batch_first=True).to(device)

        sequences = batch.sequences
        prefix = len(batch.prefix)
        self.ids = padded([s.tokens[prefix:] for s in sequences])
        self.places = (padded([s.scored for s in sequences]) - prefix).clamp(min=0)
        slots = [torch.arange(len(s.scored)) for s in sequences]
        rows = [torch.full_like(of_row, row) for row, of_row in enumerate(slots)]
        self.rows, self.slots = torch.stack([torch.cat(rows), torch.cat(slots)]).to(device)
        self.branches = None
        if any(s.is_branched for s in sequences):
            depths, numbers = padded([s.depths[prefix:] for s in sequences]).unbind(dim=2)
            query = numbers[:, :, None]
            key = numbers[:, None, :]
            visible = torch.ones_like(query == key).tril() & ((key == 0) | (key == query))
            prefix_places = torch.arange(prefix, device=device).expand(len(depths), -1)
            visible = torch.nn.functional.pad(visible, (prefix, 0), value=True)
            self.branches = depths, torch.cat([prefix_places, depths], dim=1), visible


class Forward:
    """A batch with the residuals of the tree that are still needed; `step` takes them through one layer.

    Attributes:
        states: [..., C, N, D], what goes to the head once all layers have run.
        cache: keys and values of the batch; where it `keeps` them, the batch can be the prefix of others.
    """

    def __init__(
        self,
        network: Network,
        tree: Tree,
        batch: Batch,
        prefix: PrefixCache | None = None,
        *,
        scored_only: bool = False,
        keeps: bool = False,
    ):
        self.network = network
        self.tree = tree
        self.tokens = batch.tokens
        self.scored_only = scored_only
        self.batch = PaddedBatch(batch, network.device)
        self.cache = PrefixCache(prefix, len(batch.prefix) + batch.width, keeps)
        needs_cache = prefix is not None or keeps or scored_only
        options: dict = (
            {"use_cache": True, network.cache_argument: self.cache} if needs_cache else {}
        )
        if self.batch.branches:
            masks = attention_masks(network, *self.batch.branches)
            options |= {"position_ids": self.batch.branches[0], "attention_mask": masks}
        inputs = network.layer_inputs(self.batch.ids, **options)
        self.calls = inputs.calls
        self.residuals = {0: inputs.residual}
        *streams, _, _, width = inputs.residual.shape  # some families hand on several residuals
        self.states = inputs.residual.new_empty(*streams, len(tree.cuts), batch.scored, width)

    def step(self, layer: int) -> None:
        """Run all nodes of a layer."""
        batch = self.batch
        call = self.calls[layer]
        module = self.network.layers[layer]
        device = self.network.layer_devices[layer]
        rows, slots, places = (
            tensor.to(device) for tensor in (batch.rows, batch.slots, batch.places)
        )
        for node in self.tree.levels[layer]:
            self.cache.node = node.leaves
            residual = self.residuals[node.enters].to(device)
            with running_only(module, node.part):
                if self.scored_only and node.ends and node.part == WHOLE:
                    output = run_scored(module, call, residual, places)
                    columns = slots
                else:
                    output = call(module, residual)
                    columns = places[rows, slots]
            for number in node.last_of:
                self.states[..., number, :, :] = output[..., rows, columns, :].to(
                    self.states.device
                )
            if not node.ends:
                self.residuals[node.leaves] = output
        self.residuals = {number: self.residuals[number] for number in self.tree.needed[layer]}


def run_layers(
    forwards: list[Forward], progress: Callable[[float], object] = lambda steps: None
) -> None:
    """Take batches through the layers of their tree, layer after layer; calls `progress` with layer-steps done."""
    network = forwards[0].network
    levels = forwards[0].tree.levels
    for layer in network.load_in_turn([layer for layer, level in enumerate(levels) if level]):
        for forward in forwards:
            forward.step(layer)
            progress(forward.tokens * len(levels[layer]))


def logits_in_parts(network: Network, states: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of states [..., N, D] that leave last layers, in parts of at most HEAD_ELEMENTS numbers."""
    return map(
        network.logits, states.split(max(1, HEAD_ELEMENTS // network.head.weight.shape[0]), dim=-2)
    )


def are_most_likely(
    logits: Float[torch.Tensor, "P V"],
    rows: Int[torch.Tensor, " K"],
    tokens: Int[torch.Tensor, " K"],
) -> Bool[torch.Tensor, " K"]:
    """Whether each token is the most likely one of its row, of equal ones the first.

    On a processor finding which one is takes far longer than finding how large it is, and so is done only where the
    token is as large. Elsewhere nothing waits for the device.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)[rows] == tokens
    is_chosen = logits[rows, tokens] == logits.amax(dim=-1)[rows]
    likely = is_chosen.nonzero()[:, 0]
    is_chosen[likely] = logits[rows[likely]].argmax(dim=-1) == tokens[likely]
    return is_chosen
