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
from deeper_layers.sweeping.planning import SHARED_BY, SHARED_TOKENS, Requests


class Sharing(enum.IntEnum):
    """What is shared; each is more than the one before it."""

    NOTHING = 0  # each pruned model runs by itself
    LAYERS = 1  # run one by one, on residuals of ours: what pruned models have in common runs once
    PREFIXES = 2  # and keys and values of a prefix are computed once for many sequences
    MASKS = 3  # and by masks of ours last layers run where something is scored, and branches of a context together


def trial_requests(vocabulary: int) -> Requests:
    """Questions of unequal lengths after a prefix worth sharing, every second with two answers of three tokens."""
    tokens = [(7919 * i + 13) % vocabulary for i in range(SHARED_TOKENS + 32 * SHARED_BY)]
    contexts, answers = [], []
    for first in range(SHARED_TOKENS, len(tokens), 32):
        for answer in range(1 + first // 32 % 2):
            contexts.append(tokens[:SHARED_TOKENS] + tokens[first : first + 4 + first // 32])
            answers.append(tokens[first + 26 + 3 * answer : first + 29 + 3 * answer])
    return Requests(contexts, answers, len(tokens))


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
