"""A card that is not there: a device that computes on the processor, refuses what a card refuses, and counts.

torch keeps one device type for others (PrivateUse1). Here it is called "card", and written in Python. A tensor on it
(`CardTensor`) says that it lies there and holds a plain tensor of the processor (`raw`), on which every operator runs.
Before an operator runs, `Card` looks at the places of its tensors: what a card refuses is refused with an error of the
same kind. It refuses

- an operator on tensors of two places, except for numbers (tensors without dimensions), and for indices that lie on the
  processor, which a card takes too;
- `.numpy()` and all that reads its memory;
- float64, where it is made to (`float64=False`), as Apple's cards do.

It counts what does not depend on the machine: launches (operators that compute something), waits (the processor has to
know a number or a shape, and so waits until the card has done all that it was given), bytes moved each way, and the
most bytes that were held at once.

torch knows the type from the import of this file on, for the whole process. Outside of `simulated_card` it has no
device, and accelerate and torch do not choose it.
"""

import contextlib
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator

import accelerate
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

from deeper_layers.models.launches import NO_LAUNCHES

TYPE = "card"
aten = torch.ops.aten
# these take indices that lie on the processor
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


class Module:
    """`torch.card`: what torch asks of a type of device."""

    devices = 0  # in a simulated_card 1

    def device_count(self) -> int:
        return Module.devices

    def is_available(self) -> bool:
        return Module.devices > 0

    def is_initialized(self) -> bool:
        return True

    def _lazy_init(self) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def set_device(self, device) -> None: ...

    def synchronize(self, device=None) -> None: ...

    def empty_cache(self) -> None: ...

    def manual_seed_all(self, seed: int) -> None: ...

    def manual_seed(self, seed: int) -> None: ...

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()  # the card draws its numbers from the processor's generator

    def set_rng_state(self, state: torch.Tensor, device=None) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return Module.devices > 0


_setup_privateuseone_for_python_backend(TYPE, Module(), Hook())


@dataclasses.dataclass
class Counts:
    """What a card did. `operators` has each launched or awaited operator by name, for whoever looks for one."""

    launches: int = 0
    waits: int = 0
    bytes_to_card: int = 0
    bytes_to_host: int = 0
    live_bytes: int = 0
    most_bytes: int = 0
    operators: Counter = dataclasses.field(default_factory=Counter)

    def clear(self) -> None:
        """Count from 0 again, except for what is held now."""
        held = self.live_bytes
        self.__init__(live_bytes=held, most_bytes=held)


class Held:
    """Bytes of one storage, held by the tensors on the card that share it. They are freed with the last of these."""

    def __init__(self, counts: Counts, storages: Counter, storage: torch.UntypedStorage):
        self.counts, self.storages = counts, storages
        self.key, self.bytes = storage._cdata, storage.nbytes()
        if not storages[self.key]:
            counts.live_bytes += self.bytes
            counts.most_bytes = max(counts.most_bytes, counts.live_bytes)
        storages[self.key] += 1

    def __del__(self):
        self.storages[self.key] -= 1
        if not self.storages[self.key]:
            del self.storages[self.key]
            self.counts.live_bytes -= self.bytes


class CardTensor(torch.Tensor):
    """A tensor that says that it lies on the card. Its numbers are in `raw`, which lies on the processor."""

    @staticmethod
    def __new__(cls, raw: torch.Tensor, device: torch.device, held: Held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=device,
        )
        tensor.raw, tensor.held = raw, held
        return tensor

    def __repr__(self) -> str:
        return f"CardTensor({self.raw})"

    def __deepcopy__(self, memo: dict):
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied._is_param = isinstance(self, torch.nn.Parameter)
        return memo.setdefault(id(self), copied)

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, other)  # ty: ignore[unresolved-attribute]
        self.raw, self.held = other.raw, other.held  # as where a module changes its data type

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> list:
        return self.cpu().tolist()  # a card's tensor copies itself, too

    @classmethod
    def __torch_dispatch__(cls, operator, types, arguments=(), named=None):
        return Card.current.run(operator, arguments, named or {})


class Card(TorchDispatchMode):
    """Inside, the device "card:0" is there."""

    current: "Card"

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and its guard takes as long as an operator

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64, self.counts, self.storages = float64, Counts(), Counter()
        self.device = torch.device(TYPE, 0)

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        named = named or {}
        if _is_composite(operator):
            # in inference mode these come here whole, and their parts have to be seen
            with self:
                result = operator.decompose(*arguments, **named)
            if result is not NotImplemented:
                return result
        # what is made in inference mode could not be held by a tensor that outlives it
        inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()
        with inference, torch.no_grad():
            return self.run(operator, arguments, named)

    def run(self, operator, arguments: tuple, named: dict):
        """Check the places of an operator's tensors, run it on the processor, and say where its result lies."""
        flat = list(_tensors_of((*arguments, *named.values())))
        on_card = any(isinstance(value, CardTensor) for value in flat)
        place = named.get("device")
        place = None if place is None else torch.device(place)
        if not on_card and (place is None or place.type != TYPE):
            return operator(*arguments, **named)
        if operator is aten.copy_.default:
            return self.copy(*arguments)
        if on_card:
            self.check_places(operator, arguments, flat)
        raw_arguments = _map_tensors(_raw, arguments)
        raw_named = {name: _map_tensors(_raw, value) for name, value in named.items()}
        if place is not None and place.type == TYPE:
            raw_named["device"] = torch.device("cpu")
        if operator is aten.histc.default and not raw_arguments[0].is_floating_point():
            # the processor counts real numbers only, a card whole ones too, which experts ask of it
            result = operator(raw_arguments[0].float(), *raw_arguments[1:], **raw_named).to(raw_arguments[0].dtype)
        else:
            result = operator(*raw_arguments, **raw_named)
        leaves_card = place is not None and place.type != TYPE
        self.count(operator, flat, result, leaves_card)
        if leaves_card:
            return result
        return self.wrap(operator, arguments, named, result)

    def check_places(self, operator, arguments: tuple, flat: list) -> None:
        """Raise RuntimeError for tensors of two places."""
        elsewhere = [value for value in flat if not isinstance(value, CardTensor) and value.dim()]
        if operator in INDEXED and isinstance(arguments[0], CardTensor):
            elsewhere = [v for v in elsewhere if v.dtype.is_floating_point]  # not the indices
        if elsewhere:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {self.device} and {elsewhere[0].device} "
                f"({operator}, {list(elsewhere[0].shape)})"
            )

    def copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """Copy numbers into a tensor: the one operator, beside a change of place, whose tensors lie in two places."""
        aten.copy_.default(_raw(target), _raw(source))
        if isinstance(target, CardTensor) and isinstance(source, CardTensor):
            self.counts.launches += 1
        elif isinstance(target, CardTensor):
            self.counts.bytes_to_card += source.nbytes
        else:
            self.wait("copy_", source.nbytes)
        return target

    def wait(self, name: str, size: int) -> None:
        self.counts.waits += 1
        self.counts.operators[f"wait: {name}"] += 1
        self.counts.bytes_to_host += size

    def count(self, operator, flat: list, result, leaves_card: bool) -> None:
        """Count what an operator does."""
        name = operator._schema.name.removeprefix("aten::")
        if leaves_card:
            self.wait(name, result.nbytes)
            return
        for value in flat:
            if not isinstance(value, CardTensor):
                self.counts.bytes_to_card += value.nbytes  # also an index, which a card fetches by itself
        if operator in (aten.index.Tensor, *INDEXED):
            # a mask says by its numbers how many places it has
            waits = any(isinstance(v, CardTensor) and v.dtype in (torch.bool, torch.uint8) for v in flat[1:])
        else:
            waits = _depends_on_numbers(operator)
        if waits:
            self.wait(name, 8)
        if not _is_view(operator) and operator not in (*NO_LAUNCHES, aten._local_scalar_dense.default):
            self.counts.launches += 1
            self.counts.operators[name] += 1

    def wrap(self, operator, arguments: tuple, named: dict, result):
        """The result of an operator as tensors on the card; where it wrote into its arguments, these."""
        if not _returns_written(operator):
            return _map_tensors(self.put, result)
        schema = operator._schema
        given = dict(zip([argument.name for argument in schema.arguments], arguments)) | named
        written = [given[argument.name] for argument in schema.arguments if _is_written(argument)]
        return written[0] if len(schema.returns) == 1 else tuple(written)

    def put(self, value):
        """A plain tensor as one on the card, which shares its memory. Anything else as it is."""
        if not isinstance(value, torch.Tensor) or isinstance(value, CardTensor):
            return value
        if value.dtype == torch.float64 and not self.float64:
            raise TypeError(f"Cannot convert a {TYPE} Tensor to float64 dtype as the framework doesn't support float64")
        return CardTensor(value, self.device, Held(self.counts, self.storages, value.untyped_storage()))


def _raw(value):
    return value.raw if isinstance(value, CardTensor) else value


def _tensors_of(values) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operator, and in lists of these."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_of(value)


def _map_tensors(function: Callable, value):
    """The same with each tensor as the function gives it."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        kind = list if isinstance(value, list) else tuple
        return kind([_map_tensors(function, entry) for entry in value])
    return value


@functools.cache
def _is_composite(operator) -> bool:
    return operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


@functools.cache
def _depends_on_numbers(operator) -> bool:
    """Whether the shape of its result, or a number that it returns, is known only once it has run."""
    tags = operator.tags
    return torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags


@functools.cache
def _returns_written(operator) -> bool:
    return any(_is_written(value) for value in operator._schema.returns)


def _is_written(value) -> bool:
    """Whether an operator writes into this argument, or returns one that it wrote into."""
    return value.alias_info is not None and value.alias_info.is_write


@functools.cache
def _is_view(operator) -> bool:
    """Whether an operator only looks at the memory of its tensor in another way."""
    return any(value.alias_info is not None and not _is_written(value) for value in operator._schema.returns)


@torch.library.impl("aten::empty.memory_format", "PrivateUse1")
def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    """Backward passes run in a thread of the device, outside of the mode."""
    with torch._C._DisableTorchDispatch():
        raw = torch.empty(size, dtype=dtype, memory_format=memory_format)
    return Card.current.put(raw)


@torch.library.impl("aten::empty_strided", "PrivateUse1")
def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    with torch._C._DisableTorchDispatch():
        raw = torch.empty_strided(size, stride, dtype=dtype)
    return Card.current.put(raw)


@contextlib.contextmanager
def simulated_card(float64: bool = True) -> Iterator[Card]:
    """Inside, there is one card, which accelerate chooses; without `float64` it refuses that data type."""
    lifts_only_cpu, variable = torch._C._only_lift_cpu_tensors(), "ACCELERATE_TORCH_DEVICE"
    card = Card.current = Card(float64)
    Module.devices = 1
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="card") copies from the processor
    os.environ[variable] = f"{card.device}"
    start = accelerate.PartialState.__init__

    def start_where_asked(self, cpu: bool = False, **options) -> None:
        named = os.environ.pop(variable) if cpu else None  # the variable comes before `cpu`, as no card does
        try:
            start(self, cpu, **options)
        finally:
            if named:
                os.environ[variable] = named

    accelerate.PartialState.__init__ = start_where_asked
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with card:
            yield card
    finally:
        Module.devices = 0
        accelerate.PartialState.__init__ = start
        torch._C._set_only_lift_cpu_tensors(lifts_only_cpu)
        del os.environ[variable]
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
