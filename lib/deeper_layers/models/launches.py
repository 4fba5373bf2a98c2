"""How many operators one forward pass gives to a card. Nothing is computed: the model has no weights.

A card is told of one operator after another. Where each has little to do, as with few tokens, a batch takes as long as
the telling. What only looks at numbers in another way is no launch, and attention is one, as in a fused kernel.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeper_layers.models.network import Network

aten = torch.ops.aten
# these write nothing, and no schema of torch says so
NO_LAUNCHES = (
    aten._unsafe_view.default,
    aten.detach_.default,
    aten.empty.memory_format,
    aten.empty_like.default,
)
# composed of other operators, and one kernel on a card
FUSED = (aten.scaled_dot_product_attention.default,)


class LaunchCounter(TorchDispatchMode):
    """Inside, `launches` counts the operators that compute something."""

    def __init__(self):
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        named = kwargs or {}
        if func not in FUSED:
            # in inference mode composed operators come here whole
            with self:
                result = func.decompose(*args, **named)
            if result is not NotImplemented:
                return result
        if not func.is_view and func not in NO_LAUNCHES:
            self.launches += 1
        return func(*args, **named)


def count_launches(model) -> int | None:
    """Launches of one pass over a batch, without the head. None of models whose steps depend on numbers, as where a
    router sends each token to its experts: such numbers are not there without weights."""
    counter = LaunchCounter()
    try:
        with counter:
            Network(model).measure_caches(tokens=8)
    except (RuntimeError, NotImplementedError):
        return None
    return counter.launches
