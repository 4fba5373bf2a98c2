"""The layers of a model, run one by one on residuals of our own.

What a layer is handed besides the residual (masks, positions, rotary tables, a cache) is learnt by running the model's
own forward on the batch with layers that only write down their arguments; it does not depend on the residual. So is
what follows the last layer: the model's own forward, whose last layer gives a residual of ours.

Letters in shapes: B sequences, T tokens, N positions, D width, V vocabulary.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import DynamicCache

from deeper_layers.models.decoder import decoder_layers, text_config
from deeper_layers.models.streaming import Reader, is_streamed, replaced


class NotApart(Exception):
    """What a layer hands on is not what enters the next one: the layers can't be run one by one."""


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
            heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
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
                raise NotApart
            entered.append(residual)
            calls.append(Call(arguments[1:], named))
            if len(calls) == len(self.layers):
                raise Collected
            return (residual, None, None) if self._tuples else residual

        with self._standing_in(write_down), contextlib.suppress(Collected):
            self.model(input_ids=ids, **{"use_cache": False} | options)
        if len(calls) < len(self.layers):
            raise NotApart
        return Handed(entered[0], calls)

    def logits(self, residual: torch.Tensor) -> torch.Tensor:
        """[N, V] logits of residuals [..., N, D] that leave the last layer, by the model's own norm and head."""
        residual = residual.unsqueeze(-2)  # sequences of one token

        def give(*arguments, **named):
            return (residual, None, None) if self._tuples else residual

        with self._standing_in(give):
            ids = torch.zeros(residual.shape[-3], 1, dtype=torch.long, device=self.device)
            return self.model(input_ids=ids, use_cache=False).logits[:, 0]

    @contextlib.contextmanager
    def _standing_in(self, forward: Callable) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replaced(layer, forward))
            yield


@functools.cache
def _signature(kind: type[torch.nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(inspect.unwrap(kind.forward)).parameters)


def cache_argument(module) -> str:
    """What a forward pass calls the keys and values given to it; transformers 5.24 began to rename them."""
    names = _signature(type(module))
    return next((name for name in ("cache", "past_key_values", "layer_past") if name in names), "past_key_values")
