"""Run the layers of a model one by one on given residuals, from disk where the model is larger than the memory.

Besides the residual a layer takes masks, positions, rotary tables and a cache, which do not depend on the residual. To
find them, the model's own forward runs on the batch with layers that only record their arguments. To find logits, it
runs with layers that return the given residual, so that the model's own norm and head follow.

Letters in shapes: B sequences, T tokens, N positions, D width, V vocabulary.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from transformers import DynamicCache

from deeper_layers.cuts import ATTENTION
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.configuration import count_positions, text_config
from deeper_layers.models.decoder import decoder_layers, layers_path, running_only
from deeper_layers.models.measuring import evaluating

MEMORY = 2**30  # bytes of residuals that go through the layers together, where these are on disk
Batch = dict[str, torch.Tensor]
Kept = TypeVar("Kept")


class StopForward(Exception):
    """Ends a forward pass that has given what was wanted: the rest need not run."""


class Call(NamedTuple):
    """The arguments of a layer besides the residual."""

    arguments: tuple
    named: dict

    def __call__(self, layer: Callable, residual: torch.Tensor) -> torch.Tensor:
        """The residual that leaves a layer when `residual` enters it."""
        output = layer(residual, *self.arguments, **self.named)
        return output[0] if isinstance(output, tuple) else output


class LayerInputs(NamedTuple):
    """The arguments of all layers for a batch, and the residual that enters the first."""

    residual: torch.Tensor
    calls: list[Call]


class Residuals(NamedTuple):
    """The residuals [B, T, D] before, inside and after one layer, of one batch."""

    batch: Batch
    number: int  # of the layer
    layer: torch.nn.Module
    call: Call
    entering: torch.Tensor
    leaving: torch.Tensor

    @property
    def between(self) -> torch.Tensor:
        """The residual between attention and MLP. The layer runs once more for it, without its MLP."""
        with running_only(self.layer, ATTENTION):
            return self.call(self.layer.forward, self.entering)


class Network:
    """A model as a list of layers, and what comes before and after them."""

    def __init__(self, model):
        self.model = model
        self.layers = decoder_layers(model)
        self.cache_argument = cache_argument(model)
        self.head = model.get_output_embeddings()
        self.dtype = next(model.parameters()).dtype
        self.device = model.get_input_embeddings().weight.device
        self._expects_tuples = False  # whether the model expects a tuple of its layers

    @cached_property
    def token_cache_bytes(self) -> float:
        """Bytes of keys and values for a token and layer. A recurrent state counts as the cache of 8 tokens."""
        config = text_config(self.model.config)
        # of a model without weights all layers run
        if is_streamed(self.model) and self.device.type != "meta":
            # computed for usual attention, as running the model would read all layers
            # the attribute raises where layers differ; this has the value of most layers
            entries = config.to_dict()
            heads = entries.get("num_key_value_heads") or config.num_attention_heads
            width = entries.get("head_dim") or config.hidden_size // config.num_attention_heads
            return 2.0 * heads * width * self.dtype.itemsize
        return sum(self.measure_caches(tokens=8)) / 8 / len(self.layers)

    def measure_caches(self, tokens: int, sequences: int = 1) -> list[int]:
        """Bytes that each layer keeps of so many tokens in each of so many sequences: keys and values, those within its
        window, or a state that recurs. The model runs once, which costs nothing where it has no weights."""
        # the configuration says which layers recur
        cache = DynamicCache(config=text_config(self.model.config))
        with torch.inference_mode():
            ids = torch.zeros(sequences, tokens, dtype=torch.long, device=self.device)
            self.model.base_model(input_ids=ids, use_cache=True, **{self.cache_argument: cache})
        kept = [0] * len(self.layers)  # a layer that uses another's keeps nothing
        for number, layer in enumerate(cache.layers):
            values = []
            for value in vars(layer).values():
                values += value.values() if isinstance(value, dict) else [value]
            kept[number] = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
        return kept

    @cached_property
    def layer_devices(self) -> list[torch.device]:
        """The device of each layer: accelerate may have spread them over several (`device_map`)."""
        devices = []
        for layer in self.layers:
            parameter = next(layer.parameters(), None)
            # layers on disk run where the rest of the model is
            is_elsewhere = parameter is not None and not parameter.is_meta
            devices.append(parameter.device if is_elsewhere else self.device)
        return devices

    def load_in_turn(self, layers: list[int]) -> Iterator[int]:
        """Yield the numbers of layers, each while the weights of that layer are in memory."""
        for number in layers:
            with holding_weights(self.layers[number]):
                yield number

    def residuals(
        self, batches: Iterable[Batch], keep: Callable[[Residuals], Kept]
    ) -> Iterator[list[Kept]]:
        """For each batch, what `keep` returns for the residuals around each layer: L values in the layers' order.

        The last entry of `hidden_states` in transformers lies after the final norm, so residuals are measured here.
        Where layers are on disk, many batches go through a layer while it is in memory. The model runs in evaluation
        mode, and between batches is in its own.

        Args:
            batches: each with `input_ids` [B, T] and, where there is padding, `attention_mask`. They come to `keep` on
                the model's device, padded on the right, without gradients.
            keep: is called after each layer. A view of a residual would keep all of it in memory.

        Raises:
            InputError: a residual has other dimensions than [B, T, D], the layers can't be run one by one, a sequence
                has more tokens than the model has positions, or a mask has gaps.
        """
        width = text_config(self.model.config).hidden_size * self.dtype.itemsize
        problem = f"{type(self.model).__name__} can't run on this batch"

        def count_bytes(group: list[Batch]) -> int:
            return width * sum(batch["input_ids"].numel() for batch in group)

        for group in group_by_cost(batches, count_bytes, MEMORY if is_streamed(self.model) else 0):
            # not around the yield
            with (
                evaluating(self.model),
                as_input_error(problem, "give all weights one data type", RuntimeError),
            ):
                kept = self._residuals(group, keep)
            yield from kept

    @torch.inference_mode()  # not around the yield: whoever takes them may want gradients
    def _residuals(self, group: list[Batch], keep: Callable[[Residuals], Kept]) -> list[list[Kept]]:
        """The same for a group of batches, all of which go through a layer before any goes through the next."""
        group = [pad_on_the_right(batch) for batch in group]
        check_length(self.model, max(batch["input_ids"].shape[1] for batch in group))
        group = [self._move(batch) for batch in group]
        layer_inputs = [self.layer_inputs(**batch) for batch in group]
        states = [inputs.residual for inputs in layer_inputs]
        kept = [[] for _ in group]
        if states[0].ndim != 3:
            raise InputError(
                f"{type(self.layers[0]).__name__} hands on a residual of shape {tuple(states[0].shape)}; expected "
                "[sequences, tokens, width]: choose another model"
            )
        for number in self.load_in_turn(list(range(len(self.layers)))):
            for index, batch in enumerate(group):
                layer = self.layers[number]
                call = layer_inputs[index].calls[number]
                entering = states[index]
                states[index] = call(layer, entering)
                kept[index].append(
                    keep(Residuals(batch, number, layer, call, entering, states[index]))
                )
        return kept

    def _move(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def layer_inputs(self, input_ids: torch.Tensor, **options) -> LayerInputs:
        """The layers' arguments for tokens [B, T] and options of the model's forward. Raises InputError where that
        forward changes the residual between its layers."""
        for _ in range(2):
            entered, calls = self._record_calls(input_ids, options)
            if len(calls) == len(self.layers) and entered[-1] is entered[0]:
                return LayerInputs(entered[0], calls)
            self._expects_tuples = not self._expects_tuples
        raise InputError(
            f"{type(self.model).__name__} changes the residual between its layers: choose a model "
            "whose layers run one by one, or what needs whole layers alone"
        )

    def _record_calls(
        self, ids: torch.Tensor, options: dict
    ) -> tuple[list[torch.Tensor], list[Call]]:
        """Residual and arguments of each layer while no layer does anything, up to the first with another residual."""
        entered: list[torch.Tensor] = []
        calls: list[Call] = []

        def record(*arguments, **named):
            entered.append(arguments[0] if arguments else named.pop("hidden_states"))
            calls.append(Call(arguments[1:], named))
            if entered[-1] is not entered[0] or len(calls) == len(self.layers):
                raise StopForward
            return self._as_output(entered[-1])

        with self._replacing_layers(record), contextlib.suppress(StopForward):
            self.model(input_ids=ids, **{"use_cache": False} | options)
        return entered, calls

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """[N, V] logits of residuals [..., N, D] that leave the last layer, by the model's own norm and head."""
        residual = residual.unsqueeze(-2)  # sequences of one token
        with self._replacing_layers(lambda *_, **__: self._as_output(residual)):
            ids = torch.zeros(residual.shape[-3], 1, dtype=torch.long, device=self.device)
            return self.model(input_ids=ids, use_cache=False).logits[:, 0]

    def _as_output(self, residual: torch.Tensor) -> tuple | torch.Tensor:
        return (residual, None, None) if self._expects_tuples else residual

    @contextlib.contextmanager
    def _replacing_layers(self, forward: Callable) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replacing(layer, "forward", forward))
            yield


def pad_on_the_right(batch: Batch) -> Batch:
    """The same sequences with all padding after their tokens. Many models count positions from the first column, or are
    not the same at others. Raises InputError where a mask leaves out a token between others."""
    if "attention_mask" not in batch:
        return batch
    mask = batch["attention_mask"].long()
    columns = torch.arange(mask.shape[1], device=mask.device)
    order = (columns + mask.argmax(dim=1, keepdim=True)) % mask.shape[1]  # from the first token on
    mask = mask.gather(1, order)
    if (mask.diff(dim=1) > 0).any():
        raise InputError(
            "an attention_mask masks a token between others, expected padding before or after them: take it out"
        )
    return batch | {"input_ids": batch["input_ids"].gather(1, order), "attention_mask": mask}


def check_length(model: torch.nn.Module, tokens: int) -> None:
    """Raise InputError where sequences of so many tokens, with their padding, have more than the model has positions.
    Learned ones end there, and rotary ones were not trained beyond."""
    positions = count_positions(model.config)  # ty: ignore[invalid-argument-type]
    if positions is not None and tokens > positions:
        raise InputError(
            f"a sequence has {tokens} tokens, and {type(model).__name__} has {positions} positions: take sequences of "
            f"at most {positions} tokens, padding included"
        )


def cache_argument(module) -> str:
    """The name of a forward's argument for keys and values, which transformers 5.24 began to rename."""
    names = inspect.signature(inspect.unwrap(type(module).forward)).parameters
    return next(
        (name for name in ("cache", "past_key_values", "layer_past") if name in names),
        "past_key_values",
    )


# ---- layers whose weights stay on disk until their turn comes --------------------------------------------------------
# accelerate keeps them there (`device_map`), in the checkpoint's own files, and would read a layer anew at each call:
# here it is read once and held for as long as it is used


def build_device_map(empty: torch.nn.Module, device: str) -> dict[str, str]:
    """The device map of an empty model that leaves its layers on disk and puts everything else on `device`."""
    layers = layers_path(empty)
    others = [
        path for path, module in empty.named_modules() if module._parameters or module._buffers
    ]
    return {path: device for path in others if not path.startswith(f"{layers}.")} | {layers: "disk"}


def is_streamed(model: torch.nn.Module) -> bool:
    """Whether the weights of a model's layers are on disk."""
    return any(p.is_meta for p in decoder_layers(model).parameters())


@contextlib.contextmanager
def holding_weights(layer: torch.nn.Module) -> Iterator[None]:
    """Inside, a layer's weights are in memory. A layer that has them already is left alone."""
    parts = []
    if any(parameter.is_meta for parameter in layer.parameters()):
        parts += filter(has_offloaded_params, layer.modules())
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(align_module_device(part))
            # accelerate's hook would read the weights at each call
            stack.enter_context(replacing(part, "forward", vars(part)["_old_forward"]))
        yield


@contextlib.contextmanager
def replacing(owner, method: str, function: Callable) -> Iterator[None]:
    """Inside, a function takes the place of an object's own method, like a module's "forward"."""
    previous = vars(owner).get(method)
    setattr(owner, method, function)
    try:
        yield
    finally:
        delattr(owner, method)
        if previous is not None:
            setattr(owner, method, previous)


def group_by_cost(items: Iterable, cost: Callable[[list], float], limit: int) -> Iterator[list]:
    """Consecutive items in groups, each with a `cost` of at most `limit`, or of one item."""
    group: list = []
    for item in items:
        if group and cost([*group, item]) > limit:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
