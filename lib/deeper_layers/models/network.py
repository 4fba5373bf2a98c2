"""The layers of a model, run one by one on residuals of our own.

What a layer is handed besides the residual (masks, positions, rotary tables, a cache) is learnt by running the model's
own forward on the batch with layers that only write down their arguments; it does not depend on the residual. So is
what follows the last layer: the model's own forward, whose last layer gives a residual of ours.

Letters in shapes: B sequences, T tokens, N positions, D width, V vocabulary.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from transformers import DynamicCache, PreTrainedConfig

from deeper_layers.cuts import ATTENTION
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import text_config
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.streaming import Reader, groups_within, is_streamed, replaced
from deeper_layers.models.sublayers import only

MEMORY = 2**30  # bytes of residuals that go through the layers together, where these are on disk
Batch = dict[str, torch.Tensor]
Kept = TypeVar("Kept")


class NotApart(InputError):
    """What a layer hands on is not what enters the next one: the layers can't be run one by one."""

    def __init__(self, model):
        super().__init__(
            f"{type(model).__name__} does more between its layers than to hand on the residual: expected a model whose "
            "layers run one by one; choose another one, or what needs whole layers alone"
        )


class Collected(Exception):
    """What was wanted of a forward pass is there: the rest need not run."""


@dataclass
class Call:
    """What a layer is handed besides the residual."""

    arguments: tuple
    named: dict

    def __call__(self, layer: Callable, residual: torch.Tensor, **others) -> torch.Tensor:
        """The residual that leaves a layer which this one enters."""
        output = layer(residual, *self.arguments, **self.named | others)
        return output[0] if isinstance(output, tuple) else output


@dataclass
class Residuals:
    """The residuals [B, T, D] before, inside and after one layer, of one batch."""

    batch: Batch
    number: int  # of the layer
    layer: torch.nn.Module
    call: Call
    entering: torch.Tensor
    leaving: torch.Tensor

    def __post_init__(self):
        if self.entering.ndim != 3:
            raise InputError(
                f"{type(self.layer).__name__} hands on a residual of shape {tuple(self.entering.shape)}; expected "
                "three dimensions, [sequences, tokens, width]: choose another model"
            )

    @property
    def between(self) -> torch.Tensor:
        """What lies between attention and MLP: the residual that leaves the layer where its MLP adds nothing.

        The layer runs once more for it. Raises InputError where it has no attention and MLP of known names.
        """
        with only(self.layer, ATTENTION):
            return self.call(self.layer.forward, self.entering)


@dataclass
class Handed:
    """What the layers of a model are handed for a batch, and the residual that enters the first."""

    residual: torch.Tensor
    calls: list[Call]


class Network:
    """A model as a list of layers, and what comes before and after them."""

    def __init__(self, model):
        self.model = model
        self.layers = decoder_layers(model)
        self.cache_argument = cache_argument(model)
        self.head = model.get_output_embeddings()
        self.dtype = next(model.parameters()).dtype
        self.device = model.get_input_embeddings().weight.device
        self.reader = Reader(self.layers)
        self._tuples = False  # whether the model expects a tuple of its layers

    @cached_property
    def bytes_remembered(self) -> float:
        """Bytes of keys and values, a token and layer; states that recur count as if each were of 8 tokens."""
        config = text_config(self.model.config)
        if is_streamed(self.model) and self.device.type != "meta":  # of a model without weights all layers run
            # not all layers are read for a number: those of usual attention have this many
            heads = _of_most(config, "num_key_value_heads") or config.num_attention_heads
            width = _of_most(config, "head_dim") or config.hidden_size // config.num_attention_heads
            return 2.0 * heads * width * self.dtype.itemsize
        cache = DynamicCache(config=config)  # the configuration says which layers recur
        with torch.inference_mode():
            ids = torch.zeros(1, 8, dtype=torch.long, device=self.device)
            self.model.base_model(input_ids=ids, use_cache=True, **{self.cache_argument: cache})
        values = [value for layer in cache.layers for value in vars(layer).values()]
        values += [state for value in values if isinstance(value, dict) for state in value.values()]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors) / 8 / len(self.layers)

    @cached_property
    def layer_bytes(self) -> float:
        """Bytes of the weights of a layer, on average."""
        return sum(p.numel() * p.element_size() for p in self.layers.parameters()) / len(self.layers)

    @cached_property
    def places(self) -> list[torch.device]:
        """Where each layer runs: accelerate may have spread them over devices (`device_map`)."""
        found = []
        for layer in self.layers:
            stated = getattr(vars(layer).get("_hf_hook"), "execution_device", None)
            device = next((p.device for p in layer.parameters()), self.device) if stated is None else stated
            found.append(self.device if torch.device(device).type == "meta" else torch.device(device))
        return found

    def in_turn(self, layers: list[int]) -> Iterator[int]:
        """The numbers of some layers; of each the weights are there until the next is asked for."""
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            with self.reader.reading(layer, following):
                yield layer

    def residuals(self, batches: Iterable[Batch], keep: Callable[[Residuals], Kept]) -> Iterator[list[Kept]]:
        """Of each batch what `keep` makes of the residuals around every layer, in the layers' order: L values.

        All that is measured of residuals is measured here, one layer at a time: the last entry of `hidden_states` in
        transformers lies after the final norm. In memory a batch goes through the model's own forward, without the
        head; where the layers are on disk, many batches go through each layer while it is there.

        Args:
            batches: each with `input_ids` [B, T] and, where there is padding, `attention_mask`. They come to `keep` on
                the model's device, without gradients.
            keep: is called after each layer. A view of a residual would keep all of it in memory.

        Raises:
            InputError: a residual has other dimensions than [B, T, D]; NotApart where the layers are on disk.

        Example:
            >>> keep = lambda residuals: residuals.leaving.norm(dim=-1).mean()
            >>> norms = [torch.stack(of_layers) for of_layers in Network(model).residuals(batches, keep)]
        """
        streamed, width = is_streamed(self.model), text_config(self.model.config).hidden_size * self.dtype.itemsize

        def cost(group: list[Batch]) -> int:
            return width * sum(batch["input_ids"].numel() for batch in group)

        for group in groups_within(batches, cost, MEMORY if streamed else 0):
            group = [{name: tensor.to(self.device) for name, tensor in batch.items()} for batch in group]
            with torch.inference_mode():  # not around the yield: whoever takes them may want gradients
                found = self._layer_by_layer(group, keep) if streamed else [self._watched(group[0], keep)]
            yield from found

    def _watched(self, batch: Batch, keep: Callable[[Residuals], Kept]) -> list[Kept]:
        """From a forward pass of the decoder without its head."""
        kept: list[Kept] = []

        def watch(layer, arguments, named, output):
            named = dict(named)
            entering = arguments[0] if arguments else named.pop("hidden_states")
            leaving = output[0] if isinstance(output, tuple) else output
            kept.append(keep(Residuals(batch, len(kept), layer, Call(arguments[1:], named), entering, leaving)))

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.callback(layer.register_forward_hook(watch, with_kwargs=True).remove)
            self.model.base_model(**batch, use_cache=False)
        return kept

    def _layer_by_layer(self, group: list[Batch], keep: Callable[[Residuals], Kept]) -> list[list[Kept]]:
        """The same of several batches, all of which go through a layer before any goes through the next."""
        passes = []
        for batch in group:
            masks = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
            passes.append((batch, self.handed(batch["input_ids"], **masks), []))
        for number in self.in_turn(list(range(len(self.layers)))):
            for batch, handed, kept in passes:
                layer, call, entering = self.layers[number], handed.calls[number], handed.residual
                handed.residual = call(layer, entering)
                kept.append(keep(Residuals(batch, number, layer, call, entering, handed.residual)))
        return [kept for _, _, kept in passes]

    def handed(self, ids: torch.Tensor, **options) -> Handed:
        """What the layers get for tokens [B, T] and options of the model's forward.

        Raises NotApart where the model does more between its layers than to hand on the residual.
        """
        with contextlib.suppress(NotApart):
            return self._handed(ids, options)
        self._tuples = not self._tuples
        return self._handed(ids, options)

    def _handed(self, ids: torch.Tensor, options: dict) -> Handed:
        calls: list[Call] = []
        entered: list[torch.Tensor] = []

        def write_down(*arguments, **named):
            residual = arguments[0] if arguments else named.pop("hidden_states")
            if entered and residual is not entered[0]:
                raise NotApart(self.model)
            entered.append(residual)
            calls.append(Call(arguments[1:], named))
            if len(calls) == len(self.layers):
                raise Collected
            return self._as_output(residual)

        with self._standing_in(write_down), contextlib.suppress(Collected):
            self.model(input_ids=ids, **{"use_cache": False} | options)
        if len(calls) < len(self.layers):
            raise NotApart(self.model)
        return Handed(entered[0], calls)

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """[N, V] logits of residuals [..., N, D] that leave the last layer, by the model's own norm and head."""
        residual = residual.unsqueeze(-2)  # sequences of one token

        with self._standing_in(lambda *_, **__: self._as_output(residual)):
            ids = torch.zeros(residual.shape[-3], 1, dtype=torch.long, device=self.device)
            return self.model(input_ids=ids, use_cache=False).logits[:, 0]

    def _as_output(self, residual: torch.Tensor) -> tuple | torch.Tensor:
        return (residual, None, None) if self._tuples else residual

    @contextlib.contextmanager
    def _standing_in(self, forward: Callable) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replaced(layer, forward))
            yield


def cache_argument(module) -> str:
    """What a forward pass calls the keys and values given to it; transformers 5.24 began to rename them."""
    return _cache_argument(type(module))


@functools.cache
def _cache_argument(kind: type[torch.nn.Module]) -> str:
    names = inspect.signature(inspect.unwrap(kind.forward)).parameters
    return next((name for name in ("cache", "past_key_values", "layer_past") if name in names), "past_key_values")


def _of_most(config: PreTrainedConfig, name: str) -> int | None:
    """An entry of a configuration, of most layers where transformers refuses to say it of all."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return config.to_dict().get(name)
