"""How much of what pruned models share can be used on a model: found out by trying, not from a list of names.

The plain way is each pruned model by itself, as `drop_layers` makes it, through its own forward. tree_model.py answers
a few requests that way and with more and more shared.
"""

import contextlib
import enum

import torch

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import kinds_of_layers, num_layers
from deeper_layers.models.streaming import is_streamed
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping.planning import Piece, Sequence


class Sharing(enum.IntEnum):
    """What is shared; each is more than the one before it."""

    NOTHING = 0  # each pruned model runs by itself
    LAYERS = 1  # run one by one, on residuals of ours: what pruned models have in common runs once
    PREFIXES = 2  # and keys and values of a prefix are computed once for many sequences
    MASKS = 3  # and by masks of ours last layers run where something is scored, and branches of a context together


def trial_pieces(vocabulary: int, sharing: Sharing) -> list[Piece]:
    """Six requests of three tokens after two contexts that begin alike; where branches are shared, as these too."""
    tokens = [(7919 * i + 13) % vocabulary for i in range(38)]
    requests = [(number, tokens[20 + 3 * number : 23 + 3 * number]) for number in range(6)]
    asked = [(tokens[:12], requests[:3]), (tokens[:8] + tokens[12:20], requests[3:])]
    apart = tuple(Sequence.joined(context, [one]) for context, some in asked for one in some)
    joined = tuple(Sequence.joined(context, some) for context, some in asked)
    prefix = tuple(tokens[:8]) if sharing >= Sharing.PREFIXES else ()
    return [Piece(prefix, (apart, joined) if sharing == Sharing.MASKS else (apart,))]


def shallow(model, cuts: list[Cut]) -> tuple[torch.nn.Module, list[Cut]]:
    """What is tried: a model and a few cuts of it, one that drops an end among them if one of `cuts` does.

    Layers of every kind out of the model, if these are a model: a trial on all of them takes long. And rounding to 16
    bits grows from layer to layer until logits of 30 layers differ as much as by a fault; after a few layers it is a
    small part of that.
    """
    count = num_layers(model)
    whole_layers = dict.fromkeys(Cut.of(cut.dropped) for cut in cuts)  # a sublayer's output is zero in either way
    ends = [cut for cut in whole_layers if cut.stop == count]
    places = {0, 1, count - 1} if is_streamed(model) else {0, 1, 2, count - 2, count - 1}
    if dropped := set(range(count)) - places - {*kinds_of_layers(model)}:
        with contextlib.suppress(InputError):
            few = drop_layers(model, Cut.of(dropped))
            first, last = any(0 in cut.dropped for cut in cuts), bool(ends)
            some = [UNPRUNED, Cut(1, 1), *[Cut(0, 1)] * first, *[Cut(num_layers(few) - 1, 1)] * last]
            for cut in some:  # a configuration may state a cut of the model, and none of what is left here
                drop_layers(few, cut)
            return few, some
    by_start = sorted(whole_layers, key=lambda cut: cut.start)
    return model, list(dict.fromkeys([*ends[:1], by_start[0], by_start[-1]]))
