"""Which savings give on a model what the plain way gives: found out by trying, not from a list of names.

The plain way is each pruned model by itself, as `drop_layers` makes it, through its own forward.
"""

import contextlib
from dataclasses import dataclass

import torch

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import text_config
from deeper_layers.models.decoder import kinds_of_layers, num_layers
from deeper_layers.models.network import Network
from deeper_layers.models.streaming import is_streamed
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.sweeping.forward import Batch, Forward, begin_prefix
from deeper_layers.sweeping.masks import MASKABLE, unknown_windows
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.tree import Tree


@dataclass(frozen=True)
class Abilities:
    """Which savings give the plain numbers."""

    split: bool = False  # run layers one by one, on residuals of ours; else nothing of what follows
    share: bool = False  # compute keys and values of a prefix once
    score_only: bool = False  # run the last layer where something is scored
    branch: bool = False  # run several continuations of one context as one sequence

    @classmethod
    @torch.inference_mode()
    def of(cls, model, cuts: list[Cut]) -> "Abilities":
        """What can be done for these pruned models of a model.

        Raises InputError where the configuration can't state one of those that are tried.
        """
        tried, cuts = _shallow(model, cuts)
        network = Network(tried)
        with contextlib.ExitStack() as stack:
            for layer in range(len(network.layers)):  # those on disk are read once for all trials
                stack.enter_context(network.reader.reading(layer))
            trial = _Trial(network, cuts)
            if not trial.agrees():
                return cls()
            score_only = trial.agrees(scored_only=True)
            share = trial.agrees(prefix=8, scored_only=score_only)
            return cls(split=True, share=share, score_only=score_only, branch=trial.agrees(joined=True))


@torch.inference_mode()
def run_alone(model, cut: Cut, batch: Batch) -> torch.Tensor:
    """[N, V] logits at the scored positions of a batch without branches, of a pruned model through its own forward."""
    pruned = model if cut == UNPRUNED else silence_sublayers(model, cut)
    places = batch.places[batch.rows, batch.slots]

    def scored(_, arguments):
        return (arguments[0][batch.rows, places].unsqueeze(0), *arguments[1:])

    handle = pruned.get_output_embeddings().register_forward_pre_hook(scored)
    try:
        return pruned(input_ids=batch.ids, use_cache=False).logits[0]
    finally:
        handle.remove()


class _Trial:
    """Two short requests after one context on some pruned models, and their logits the plain way."""

    def __init__(self, network: Network, cuts: list[Cut]):
        self.network, self.tree = network, Tree(cuts, len(network.layers))
        tokens = [(7919 * i + 13) % network.head.weight.shape[0] for i in range(23)]
        self.context = tokens[:16]
        first, second = (0, tokens[16:20]), (1, tokens[20:])
        self.apart = tuple(Sequence.joined(self.context, [request]) for request in (first, second))
        self.joined = (Sequence.joined(self.context, [first, second]),)
        batch = Batch.of(self.apart, 0, network.device)
        self.plain = torch.stack([run_alone(network.model, cut, batch).float() for cut in cuts])  # [C, N, V]

    def agrees(self, *, prefix: int = 0, joined: bool = False, scored_only: bool = False) -> bool:
        """Whether the logits are the same this way, but for rounding."""
        config = text_config(self.network.model.config)
        ours = scored_only or joined  # masks of ours
        if ours and (config._attn_implementation not in MASKABLE or unknown_windows(config)):
            return False
        expected = self.plain
        if joined:  # the last token of the context is then scored once for both
            length = len(self.apart[0].scored)
            expected = torch.cat([expected[:, :length], expected[:, length + 1 :]], dim=1)
        try:
            found = self._logits(self.joined if joined else self.apart, prefix, scored_only)
        except Exception:  # whatever a family's code raises, the plain way is left
            return False
        # rounding moves logits a little; a wrong mask or position as much as they differ among themselves
        allowed = (1e-3 if self.network.dtype == torch.float32 else 0.15) * self.plain.std(dim=(1, 2))[:, None]
        return bool(((found - expected).square().mean(dim=-1).sqrt() <= allowed).all())

    def _logits(self, sequences: tuple[Sequence, ...], length: int, scored_only: bool) -> torch.Tensor:
        network, prefix = self.network, None
        if length:
            ids = torch.tensor([self.context[:length]], device=network.device)
            forward, prefix = begin_prefix(network, self.tree, ids, scored_only=scored_only)
            forward.through()
        batch = Batch.of(sequences, length, network.device)
        states = Forward(network, self.tree, batch, prefix, scored_only=scored_only).through().states
        return network.logits(states.flatten(-3, -2)).view(len(self.plain), len(batch.rows), -1).float()


def _shallow(model, cuts: list[Cut]) -> tuple[torch.nn.Module, list[Cut]]:
    """What savings are tried on: a model and a few cuts of it, one that drops an end among them if one of `cuts` does.

    Layers of every kind out of the model, if these are a model: a trial on all of them takes long. And rounding to 16
    bits grows from layer to layer until logits of 30 layers differ as much as by a fault; after a few layers it is a
    small part of that.
    """
    count = num_layers(model)
    whole_layers = dict.fromkeys(Cut.of(cut.dropped) for cut in cuts)  # a sublayer's output is zero in either way
    ends = [cut for cut in whole_layers if cut.stop == count]
    begins = [cut for cut in whole_layers if 0 in cut.dropped]
    places = {0, 1, count - 1} if is_streamed(model) else {0, 1, 2, count - 2, count - 1}
    dropped = sorted(set(range(count)) - places - {*kinds_of_layers(model)})
    if dropped:
        with contextlib.suppress(InputError):
            shallow = drop_layers(model, Cut.of(dropped))
            depth = num_layers(shallow)
            some = [UNPRUNED, Cut(1, 1), *[Cut(0, 1)][: len(begins)], *[Cut(depth - 1, 1)][: len(ends)]]
            for cut in some:  # a configuration may state a cut of the model, and none of what is left here
                drop_layers(shallow, cut)
            return shallow, some
    by_start = sorted(whole_layers, key=lambda cut: cut.start)
    return model, list(dict.fromkeys([*ends[:1], by_start[0], by_start[-1]]))
