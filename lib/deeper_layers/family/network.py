"""One model of a family, run on a batch from its first layer or from a residual, through its own modules.

Besides the plain way there are three that save work: a beginning is remembered and lent, the last layer runs
where something is scored, continuations of one context are branches of one sequence. Whether they give the
plain numbers on a model is found out in `deeper_layers.family.pruned_family`.

Letters in shapes: B sequences of a batch, T tokens, S scored positions of a sequence, N of a batch, P tokens of
the shared beginning, K keys, D width, V vocabulary.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import DynamicCache

from deeper_layers.family.planning import Sequence
from deeper_layers.family.prefix_cache import Lent
from deeper_layers.models.decoder import decoder_layers, text_config
from deeper_layers.models.per_layer import BOUNDARIES


@dataclass
class Batch:
    """Sequences as tensors, padded on the right: no mask is needed, as no scored token sees what follows it."""

    ids: torch.Tensor  # [B, T]
    rows: torch.Tensor  # [N], the scored positions: which sequence ...
    slots: torch.Tensor  # [N], ... which of its scored positions ...
    places: torch.Tensor  # [B, S], ... and where these lie; filled up with 0
    depths: torch.Tensor | None = None  # [B, T], distance from the beginning, where sequences have branches
    visible: torch.Tensor | None = None  # [B, T, T], whether a token (second) sees another (third), likewise

    @classmethod
    def of(cls, sequences: tuple[Sequence, ...], shared: int, device) -> "Batch":
        """The batch of sequences, without the `shared` tokens at their beginning."""
        width = max(len(s.tokens) for s in sequences) - shared
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        places = torch.zeros(len(sequences), max(len(s.scored) for s in sequences), dtype=torch.long)
        rows, slots = [], []
        for i, s in enumerate(sequences):
            ids[i, : len(s.tokens) - shared] = torch.tensor(s.tokens[shared:])
            places[i, : len(s.scored)] = torch.tensor(s.scored) - shared
            rows += [i] * len(s.scored)
            slots += range(len(s.scored))
        rows, slots = (torch.tensor(numbers, device=device) for numbers in (rows, slots))
        batch = cls(ids.to(device), rows, slots, places.to(device))
        if any(s.branches for s in sequences):
            depths = torch.zeros_like(ids)
            visible = torch.eye(width, dtype=torch.bool).repeat(len(sequences), 1, 1)
            for i, s in enumerate(sequences):
                length = len(s.tokens) - shared
                depths[i, :length] = torch.tensor(s.depths[shared:]) - shared
                visible[i, :length, :length] = s.visible[shared:, shared:]
            batch.depths, batch.visible = depths.to(device), visible.to(device)
        return batch


class Network:
    """One model of the family: the whole one, or a tail that a residual enters."""

    def __init__(self, model):
        self.model = model
        self.layers = decoder_layers(model)
        self.cache_argument = _cache_argument(model)
        self.head = model.get_output_embeddings()
        self.dtype = next(model.parameters()).dtype
        self.device = model.get_input_embeddings().weight.device

    @cached_property
    def bytes_remembered(self) -> float:
        """Bytes of keys and values, a token and layer; states that recur count as if each were of 8 tokens."""
        # the configuration says which layers recur
        cache = DynamicCache(config=text_config(self.model.config))
        with torch.inference_mode():
            self.remember(torch.zeros(1, 8, dtype=torch.long, device=self.device), cache=cache)
        values = [value for layer in cache.layers for value in vars(layer).values()]
        values += [state for value in values if isinstance(value, dict) for state in value.values()]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors) / 8 / len(self.layers)

    def remember(
        self, ids: torch.Tensor, residual: torch.Tensor | None = None, cache: DynamicCache | None = None
    ) -> DynamicCache:
        """Keys and values [B, heads, T, head width] of tokens [B, T], layer by layer, put into `cache` if given."""
        if cache is None:
            cache = DynamicCache()  # without the configuration every layer keeps all: a window is the mask's business
        with self.entering(residual):
            self.model.base_model(input_ids=ids, use_cache=True, **{self.cache_argument: cache})
        return cache

    def scored_states(
        self,
        batch: Batch,
        beginning: DynamicCache | None = None,
        residual: torch.Tensor | None = None,
        *,
        scored_only: "ScoredOnly | None" = None,
        apart: bool = False,
    ) -> torch.Tensor:
        """[N, D] what enters the head at the scored positions, through the model's own forward."""
        options: dict = {"use_cache": False}
        past = 0
        if beginning is not None:
            past = beginning.get_seq_length()
            # its products are cut for a processor's cache
            apart = apart and self.device.type == "cpu" and batch.visible is None
            apart = apart and self._sees_all(past + batch.ids.shape[1])
            lent = Lent(beginning, len(batch.ids), apart)
            options = {"use_cache": True, self.cache_argument: lent}
        if batch.visible is not None:
            positions = batch.depths + past
            before = torch.arange(past, device=positions.device).expand(len(positions), past)
            seen = torch.ones(*batch.ids.shape, past, dtype=torch.bool, device=positions.device)
            keys, visible = torch.cat([before, positions], dim=1), torch.cat([seen, batch.visible], dim=2)
            options["position_ids"] = positions
            options["attention_mask"] = attention_masks(self.model.config, positions, keys, visible, self.dtype)
        columns = batch.slots if scored_only else batch.places[batch.rows, batch.slots]
        found = []

        def take(_, arguments):
            found.append(arguments[0][batch.rows, columns])
            raise Collected

        with contextlib.ExitStack() as stack:
            stack.callback(self.head.register_forward_pre_hook(take).remove)
            stack.enter_context(self.entering(residual))
            if past and apart:
                stack.enter_context(lent.attending(self.model.config))
            if scored_only:
                stack.enter_context(scored_only.during(self, batch.places))
            with contextlib.suppress(Collected):
                self.model(input_ids=batch.ids, **options)
        return found[0]

    def _sees_all(self, length: int) -> bool:
        """Whether every layer's attention reaches over so many tokens."""
        config = text_config(self.model.config)
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return all(window is None or length <= window for window in windows)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, V] logits of states [N, D] that enter the head, with the scaling and caps of the model's own forward."""
        handle = self.head.register_forward_pre_hook(lambda *_: (states.unsqueeze(0),))
        try:
            one = torch.zeros(1, 1, dtype=torch.long, device=states.device)
            return self.model(input_ids=one, use_cache=False).logits[0]
        finally:
            handle.remove()

    @torch.no_grad()
    def residual(self, batch: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
        """[B, T, D] what enters a layer for `input_ids` [B, T]; the layers from there on don't run, dropout is off."""

        def stop(*_):
            raise Collected

        training = self.model.training
        self.model.eval()
        # the first hook records, the second stops
        with self.recording({layer}) as residuals, contextlib.ExitStack() as stack:
            stack.callback(self.layers[layer].register_forward_pre_hook(stop).remove)
            stack.callback(self.model.train, training)
            stack.enter_context(contextlib.suppress(Collected))
            ids = batch["input_ids"].to(self.device)
            self.model.base_model(input_ids=ids, attention_mask=batch.get("attention_mask"), use_cache=False)
        return residuals[layer]

    @contextlib.contextmanager
    def recording(self, entries: set[int]) -> Iterator[dict[int, torch.Tensor]]:
        """The residual [B, T, D] entering each of these layers during a forward pass."""
        residuals: dict[int, torch.Tensor] = {}

        def keeper(index):
            def keep(_, arguments, named):
                residuals[index] = arguments[0] if arguments else named["hidden_states"]

            return keep

        handles = [self.layers[i].register_forward_pre_hook(keeper(i), with_kwargs=True) for i in entries]
        try:
            yield residuals
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def entering(self, residual: torch.Tensor | None) -> Iterator[None]:
        """During a forward pass, this residual enters the first layer, whatever the embedding gave."""

        def give(_, arguments, named):
            if residual is None:
                return arguments, named
            if arguments:
                return (residual, *arguments[1:]), named
            return arguments, named | {"hidden_states": residual}

        handle = self.layers[0].register_forward_pre_hook(give, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class ScoredOnly:
    """How the last layer runs where something is scored, keys and values apart, which it gives everywhere.

    Its own forward runs twice: until it hands over its keys and values, then on the scored positions alone.
    `narrow`: the first time with one head of queries, since nobody reads them.
    """

    narrow: bool

    @contextlib.contextmanager
    def during(self, network: Network, places: torch.Tensor) -> Iterator[None]:
        """During a forward pass, the last layer answers at `places` [B, S] only."""
        layer = network.layers[-1]
        forward, name = layer.forward, _cache_argument(layer)

        def where_scored(*arguments, **named):
            named = {"hidden_states": arguments[0]} | named if arguments else named
            arguments = arguments[1:]
            cache = Collecting(named.get(name))
            with self._few_queries(layer), contextlib.suppress(Collected):
                forward(named["hidden_states"], *arguments, **_without(named, "hidden_states") | {name: cache})
            if cache.found is None:
                raise NotImplementedError("the last layer stores no keys and values of its own")
            if named.get("attention_mask") is None:
                keys = torch.arange(cache.found[0].shape[-2], device=places.device)
                before = len(keys) - named["hidden_states"].shape[1]
                named["attention_mask"] = (keys <= places[:, :, None] + before)[:, None]
            else:
                named["attention_mask"] = named["attention_mask"].take_along_dim(places[:, None, :, None], dim=2)
            hidden = named["hidden_states"].take_along_dim(places[:, :, None], dim=1)
            if named.get("position_ids") is not None:
                named["position_ids"] = named["position_ids"].take_along_dim(places, dim=1)
            if named.get("position_embeddings") is not None:
                tables = named["position_embeddings"]
                named["position_embeddings"] = tuple(t.take_along_dim(places[:, :, None], dim=1) for t in tables)
            return forward(hidden, *arguments, **_without(named, "hidden_states") | {name: cache})

        with _replaced(layer, where_scored):
            yield

    @contextlib.contextmanager
    def _few_queries(self, layer) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for attention in layer.modules() if self.narrow else ():
                if hasattr(attention, "q_proj"):
                    width = attention.head_dim
                    zeros = lambda x, width=width: x.new_zeros(1).expand(*x.shape[:-1], width)  # noqa: E731
                    stack.enter_context(_replaced(attention.q_proj, zeros))
            yield


class Collected(Exception):
    """Keys and values were handed over: the rest of the layer need not run."""


class Collecting:
    """A cache that takes the keys and values of a layer, stops it there, and later gives them back."""

    def __init__(self, cache: DynamicCache | None):
        self.cache, self.found = cache, None

    def update(self, key_states, value_states, *arguments, **named):
        if self.found is not None:
            return self.found
        if self.cache is not None:
            key_states, value_states = self.cache.update(key_states, value_states, *arguments, **named)
        self.found = key_states, value_states
        raise Collected

    def __getattr__(self, name):
        return getattr(self.cache, name)


def attention_masks(config, positions, key_positions, visible, dtype):
    """What a forward pass takes as `attention_mask`: one mask, or one for each kind of layer that the model has.

    Parameters
    ----------
    positions, key_positions: [B, T] and [B, K], places in the sequence, which sliding windows go by.
    visible: [B, T, K], whether a token may see a key at all.
    """
    config = text_config(config)

    def mask(window):
        seen = visible & (positions[:, :, None] - key_positions[:, None, :] < window) if window else visible
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return mask(window)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: mask(windows[kind]) for kind in dict.fromkeys(kinds)}


def unknown_windows(config) -> bool:
    """Whether attention may reach only so far in a way that `attention_masks` does not know.

    A trial on a few tokens would not show it.
    """
    known = ("sliding_window", "sliding_window_pattern", "_sliding_window_pattern", *BOUNDARIES)
    found = [value for name, value in vars(config).items() if "window" in name and name not in known]
    return any(type(value) is int and value > 0 for value in found)


@contextlib.contextmanager
def _replaced(module, forward: Callable) -> Iterator[None]:
    """While it lasts, a module's forward is this one."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _without(named: dict, name: str) -> dict:
    return {key: value for key, value in named.items() if key != name}


def _cache_argument(module) -> str:
    """What a forward pass calls the keys and values given to it; transformers 5.24 began to rename them."""
    names = inspect.signature(inspect.unwrap(type(module).forward)).parameters
    return next((name for name in ("cache", "past_key_values", "layer_past") if name in names), "past_key_values")
