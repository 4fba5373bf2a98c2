"""Layers whose weights stay on disk until their turn comes, for models larger than the machine.

accelerate keeps them there (`device_map`), in the checkpoint's own safetensors files, and would read a layer anew each
time that it is called. Here a layer is read once and held for as long as it is used.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn

from deeper_layers.models.decoder import decoder_layers


def on_disk(empty: nn.Module, where: str) -> dict[str, str]:
    """The device map that leaves the layers of a model, given without weights, on disk, and puts all else `where`."""
    layers, modules = decoder_layers(empty), dict(empty.named_modules())
    name = next(path for path, module in modules.items() if module is layers)
    others = [path for path, module in modules.items() if module._parameters or module._buffers]
    return {path: where for path in others if not path.startswith(f"{name}.")} | {name: "disk"}


def is_streamed(model: nn.Module) -> bool:
    """Whether the weights of a model's layers are on disk."""
    return any(p.is_meta for p in decoder_layers(model).parameters())


@contextlib.contextmanager
def reading(layer: nn.Module) -> Iterator[None]:
    """While it lasts, a layer has its weights; one that has them already is left alone."""
    waits = any(parameter.is_meta for parameter in layer.parameters())
    with contextlib.ExitStack() as stack:
        for part in list(filter(has_offloaded_params, layer.modules())) if waits else ():
            stack.enter_context(align_module_device(part))
            stack.enter_context(replaced(part, vars(part)["_old_forward"]))  # its hook would read it at each call
        yield


@contextlib.contextmanager
def replaced(module, forward: Callable) -> Iterator[None]:
    """While it lasts, a module's forward is this one."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def groups_within(items: Iterable, cost: Callable[[list], float], most: int) -> Iterator[list]:
    """Items in as few groups as they come in, each of a `cost` of at most `most`, or of one item."""
    group: list = []
    for item in items:
        if group and cost([*group, item]) > most:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
