"""The two sublayers of a decoder layer, attention and MLP, and a layer that runs only one of them.

A sublayer is dropped by letting it add nothing to the residual: it hands on zeros in the form of its own output.
"""

import contextlib
import inspect
from collections.abc import Callable

import torch
from torch import nn

from deeper_layers.cuts import ATTENTION, MLP
from deeper_layers.errors import InputError

# what families call them
NAMES = {
    ATTENTION: ("self_attn", "attention", "attn", "self_attention"),
    MLP: ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"),
}
# the matrix that ends a sublayer and writes into the residual
WRITERS = tuple("o_proj out_proj c_proj dense dense_4h_to_h down_proj fc_out fc2 w2 linear_v wo".split())
OTHER = {ATTENTION: MLP, MLP: ATTENTION}


def sublayer(layer: nn.Module, part: str) -> nn.Module:
    """The attention or the MLP of a layer. Raises InputError where it is not found."""
    found = [child for name, child in layer.named_children() if name in NAMES[part]]
    if len(found) != 1:
        raise InputError(
            f"{type(layer).__name__} has no {part} of a known name (its parts: "
            f"{', '.join(name for name, _ in layer.named_children())}); expected one of {', '.join(NAMES[part])}; "
            "drop whole layers"
        )
    return found[0]


def writers(layer: nn.Module, part: str) -> list[tuple[str, nn.Module]]:
    """Parameters (name, and the module that has it) whose zeros make a sublayer add nothing."""
    sublayer(layer, part)
    found = [
        (name, module)
        for path, module in layer.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if ends_sublayer(f"{path}.{name}", part)
    ]
    if not found:
        raise InputError(
            f"the {part} of {type(layer).__name__} ends with no matrix of a known name ({', '.join(WRITERS)}): drop "
            "whole layers"
        )
    return found


def ends_sublayer(name: str, part: str) -> bool:
    """Whether a tensor of a layer, by its name in it like "mlp.down_proj.weight", is one of a sublayer's `writers`."""
    first, *rest = name.split(".")
    # the module's name, or of experts that hold their matrices together the parameter's own
    ends = [*rest[-2:-1], *(word.removesuffix("_bias") for word in rest[-1:])]
    return first in NAMES[part] and any(word in WRITERS for word in ends)


def only(layer: nn.Module, part: str) -> contextlib.AbstractContextManager:
    """While it lasts, a layer runs its attention or its MLP alone."""
    return sublayer(layer, OTHER[part]).register_forward_hook(_nothing_added, with_kwargs=True)


def is_parallel(layer: nn.Module, call: Callable, residual: torch.Tensor) -> bool:
    """Whether a layer, by `call(forward, residual)`, hands its MLP the same with and without its attention."""
    given: list[torch.Tensor] = []

    def keep(module, arguments, named):
        given.append(next(iter([*arguments, *named.values()])))

    with sublayer(layer, MLP).register_forward_pre_hook(keep, with_kwargs=True):
        call(layer.forward, residual)
        with only(layer, MLP):
            call(layer.forward, residual)
    return torch.equal(*given)


def _nothing_added(module, arguments, named, output):
    """A sublayer's output where it adds nothing: zeros, or the residual itself where it is the sublayer that adds."""
    given = inspect.signature(module.forward).bind(*arguments, **named).arguments
    residual = output[0] if isinstance(output, tuple) else output
    nothing = given["residual"] if "residual" in given else torch.zeros_like(residual)
    return (nothing, *output[1:]) if isinstance(output, tuple) else nothing
