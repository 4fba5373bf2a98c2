"""Layers whose weights stay on disk until their turn comes, for models larger than the machine.

accelerate keeps them there (`device_map`), in the checkpoint's own safetensors files, and would read a layer anew each
time that it is called. Here a layer is read once and held for as long as it is used, and the next one is read ahead.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn

from deeper_layers.models.decoder import decoder_layers, decoder_layers_owner


def on_disk(empty: nn.Module, where: str) -> dict[str, str]:
    """The device map that leaves the layers of a model, given without weights, on disk, and puts all else `where`."""
    owner, attribute = decoder_layers_owner(empty)
    layers = getattr(owner, attribute)
    name = next(name for name, module in empty.named_modules() if module is layers)
    others = [(path, module) for path, module in empty.named_modules() if not f"{path}.".startswith(f"{name}.")]
    return {path: where for path, module in others if module._parameters or module._buffers} | {name: "disk"}


def is_streamed(model: nn.Module) -> bool:
    """Whether the weights of a model's layers are on disk."""
    return any(p.is_meta for p in decoder_layers(model).parameters())


class Reader:
    """Layers of a model in the order of their use; each is read once for each time that it is entered.

    Attributes:
        bytes: read so far.
    """

    def __init__(self, layers: nn.ModuleList):
        self.layers, self.bytes = layers, 0
        self._pool = ThreadPoolExecutor(1)  # which starts no thread before it is asked for something
        self._ahead: dict[int, Future] = {}
        self._copying: torch.cuda.Stream | None = None  # beside what is computed, where layers run on CUDA

    @contextlib.contextmanager
    def reading(self, layer: int, following: int | None = None) -> Iterator[nn.Module]:
        """A layer with its weights; what follows is read meanwhile. A layer that has them already is left alone."""
        module = self.layers[layer]
        if not any(parameter.is_meta for parameter in module.parameters()) and layer not in self._ahead:
            yield module
            return
        waiting = _waiting(module)
        self._read(layer).result()
        del self._ahead[layer]
        if following is not None:
            self._read(following)
        try:
            with contextlib.ExitStack() as stack:
                for part, _ in waiting:  # whose hook would read it again at each call
                    stack.enter_context(replaced(part, vars(part)["_old_forward"]))
                yield module
        finally:
            if self._copying is not None:  # what is still computed reads the weights, which are given up now
                torch.cuda.current_stream(self._copying.device).synchronize()
            for part, hook in waiting:
                hook.post_forward(part, None)

    def _read(self, layer: int) -> Future:
        if layer not in self._ahead:
            self._ahead[layer] = self._pool.submit(self._load, self.layers[layer])
        return self._ahead[layer]

    def _load(self, module: nn.Module) -> None:
        waiting = _waiting(module)
        place = next((hook.execution_device for _, hook in waiting), None)
        if self._copying is None and place is not None and torch.device(place).type == "cuda":
            self._copying = torch.cuda.Stream(torch.device(place))
        with torch.inference_mode(), torch.cuda.stream(self._copying):
            for part, hook in waiting:
                if self._copying is not None and not isinstance(hook.weights_map, Pinned):
                    hook.weights_map = Pinned(hook.weights_map or {})
                hook.pre_forward(part)
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


class Pinned(Mapping):
    """Weights on disk, each handed out in memory from which an accelerator copies by itself."""

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        self.weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.weights[name].pin_memory()

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


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


def _waiting(module: nn.Module) -> list[tuple[nn.Module, AlignDevicesHook]]:
    """Parts of a layer whose weights accelerate keeps on disk, and the hooks that fetch them."""
    hooks = ((part, vars(part).get("_hf_hook")) for part in module.modules())
    return [(part, hook) for part, hook in hooks if isinstance(hook, AlignDevicesHook) and hook.offload]


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
