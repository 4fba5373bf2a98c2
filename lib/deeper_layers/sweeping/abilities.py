"""Which savings give on a model what the plain way gives: found out by trying, not from a list of names.

The plain way is each pruned model by itself, as `drop_layers` makes it, through its own forward.
"""

import contextlib
import functools
from dataclasses import dataclass, field

import torch

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import kinds_of_layers, num_layers, text_config
from deeper_layers.models.network import Network
from deeper_layers.models.streaming import is_streamed
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.sweeping.activations import Activations
from deeper_layers.sweeping.masks import MASKABLE, unknown_windows
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.scored_only import ScoredOnly
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.walk import Batch, Walk, remembering


@dataclass(frozen=True)
class Abilities:
    """Which savings give the plain numbers."""

    split: bool = False  # run layers one by one, on residuals of ours; else nothing of what follows
    share: bool = False  # lend keys and values of a beginning
    apart: bool = False  # attend to a lent beginning without copying it for each sequence
    score_only: ScoredOnly | None = None  # run the last layer where something is scored
    branch: bool = False  # run several continuations of one context as one sequence
    makes: Activations = field(default=Activations(), compare=False)  # bytes, while that runs

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
            if not trial.same():
                return cls(makes=Activations.alone(network, functools.partial(alone, tried, UNPRUNED)))
            ways = (way for way in (ScoredOnly(narrow=True), ScoredOnly(narrow=False)) if trial.same(way=way))
            way, branch = next(ways, None), trial.same(joined=True)
            return cls(
                split=True,
                share=trial.same(shared=8, way=way),
                apart=trial.same(shared=8, apart=True, way=way),
                score_only=way,
                branch=branch,
                makes=Activations.of(network, way, branch),
            )


@torch.inference_mode()
def alone(model, cut: Cut, batch: Batch) -> torch.Tensor:
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
        vocabulary = self.network.head.weight.shape[0]
        tokens = [(7919 * i + 13) % vocabulary for i in range(23)]
        self.context = tokens[:16]
        first, second = (0, tokens[16:20]), (1, tokens[20:])
        self.alone = tuple(Sequence.joined(self.context, [request]) for request in (first, second))
        self.joined = (Sequence.joined(self.context, [first, second]),)
        batch = Batch.of(self.alone, 0, self.network.device)
        self.plain = [alone(network.model, cut, batch).float() for cut in cuts]
        # rounding moves logits a little; a wrong mask or position as much as they differ among themselves
        self.allowed = [plain.std() * (1e-3 if self.network.dtype == torch.float32 else 0.15) for plain in self.plain]

    def same(self, *, shared=0, joined=False, way: ScoredOnly | None = None, apart=False) -> bool:
        """Whether the logits are the same this way."""
        config = text_config(self.network.model.config)
        if (way or joined or apart) and (config._attn_implementation not in MASKABLE or unknown_windows(config)):
            return False
        expected = self.plain
        if joined:  # the last token of the context is then scored once for both
            length = len(self.alone[0].scored)
            expected = [torch.cat([plain[:length], plain[length + 1 :]]) for plain in expected]
        try:
            found = self._logits(self.joined if joined else self.alone, shared, scored_only=way, apart=apart)
        except Exception:  # whatever a family's code raises, the plain way is left
            return False
        return all(map(_agree, found, expected, self.allowed))

    @torch.inference_mode()
    def _logits(self, sequences, shared: int, **how) -> list[torch.Tensor]:
        network, tree = self.network, self.tree
        beginning = None
        if shared:
            tokens = torch.tensor([self.context[:shared]], device=network.device)
            walk, beginning = remembering(network, tree, tokens, scored_only=how["scored_only"])
            walk.through()
        walk = Walk(network, tree, Batch.of(sequences, shared, network.device), beginning, **how).through()
        return [network.logits(walk.states[number]).float() for number in tree.last]


def _agree(found: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor) -> bool:
    """Whether the logits of every position are equal but for rounding."""
    return bool(((found - expected).square().mean(dim=-1).sqrt() <= allowed).all())


def _shallow(model, cuts: list[Cut]) -> tuple[torch.nn.Module, list[Cut]]:
    """What savings are tried on: a model and a few cuts of it, one that drops the end among them if one of `cuts` does.

    Layers of every kind out of the model, if these are a model: a trial on all of them takes long. And rounding to 16
    bits grows from layer to layer until logits of 30 layers differ as much as by a fault, on some processors more than
    on others; after a few layers it is a small part of that.
    """
    count = num_layers(model)
    whole_layers = dict.fromkeys(Cut.of(cut.dropped) for cut in cuts)  # a sublayer's output is zero in either way
    ends = [cut for cut in whole_layers if cut.size and cut.stop == count]
    by_start = sorted(whole_layers, key=lambda cut: cut.start)
    tried = [*ends[:1], by_start[0], by_start[-1]]
    places = {0, 1, count - 1} if is_streamed(model) else {0, 1, 2, count - 2, count - 1}
    kept = places | {*kinds_of_layers(model)}
    dropped = [layer for layer in range(count) if layer not in kept]
    if dropped:
        with contextlib.suppress(InputError):
            shallow = drop_layers(model, Cut.of(dropped))
            depth = num_layers(shallow)
            some = [UNPRUNED, Cut(1, 1), *([Cut(depth - 1, 1)] if ends else [])]
            for cut in some:  # a configuration may state a cut of the model, and none of what is left here
                drop_layers(shallow, cut)
            return shallow, some
    return model, list(dict.fromkeys(tried))
