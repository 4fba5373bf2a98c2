"""A model and the pruned models made of its layers, run on one batch after another.

The whole model runs once and keeps the residual entering the layers above each cut; a pruned model then runs
only the layers it has there, its *tail*, from that residual. Three savings more, each of them through the
model's own modules, each tried on a few tokens first and left out where the result is not the plain one:

- a beginning that many sequences share runs once for each cut, and its keys and values are lent to all;
- the last layer gives keys and values everywhere, but queries, output and what follows only where something
  is scored; so does the head;
- choices that follow one context are branches of one sequence: each sees the context and itself.

The residual enters a tail through a hook on its first layer, so the model's own forward builds masks,
positions and everything else, in any family.

Letters in shapes: B sequences of a batch, T tokens, S scored positions of a sequence, N of a batch, P tokens of
the shared beginning, K keys, D width, V vocabulary, C cuts, R requests.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64
from transformers import AttentionInterface, DynamicCache

from lib.decoder import decoder_layers, num_layers, text_config
from lib.errors import InputError
from lib.planning import HEAD_ELEMENTS, Piece, Sequence
from lib.pruning import Cut, drop_layers


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
        batch = cls(ids.to(device), torch.tensor(rows, device=device), torch.tensor(slots, device=device), places)
        batch.places = places.to(device)
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
        """Bytes of keys and values, a token and layer."""
        with torch.inference_mode():
            cache = self.remember(torch.zeros(1, 8, dtype=torch.long, device=self.device))
        tensors = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors) / 8 / len(self.layers)

    def remember(
        self, ids: torch.Tensor, residual: torch.Tensor | None = None, beginning: DynamicCache | None = None
    ) -> DynamicCache:
        """Keys and values [B, heads, P, head width] of tokens [B, T], layer by layer, a beginning's among them."""
        cache = DynamicCache()  # without the configuration every layer keeps all: a window is the mask's business
        for layer in beginning.layers if beginning is not None else ():
            cache.layers.append(copy.copy(layer))
            cache.layers[-1].keys = layer.keys.expand(len(ids), *layer.keys.shape[1:])
            cache.layers[-1].values = layer.values.expand(len(ids), *layer.values.shape[1:])
        with self._entering(residual):
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
            apart = apart and batch.visible is None and self._sees_all(past + batch.ids.shape[1])
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
            stack.enter_context(self._entering(residual))
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
    def _entering(self, residual: torch.Tensor | None) -> Iterator[None]:
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


class PrunedFamily:
    """A model and the pruned models made of its layers, ready to answer."""

    def __init__(self, model, cuts: list[Cut], can: "Abilities | None" = None):
        layers = num_layers(model)
        self.whole, self.cuts = Network(model), cuts
        self.entry = [_entry(cut, layers) for cut in cuts]
        self.tails = [
            None if cut.size == 0 else Network(_tail(model, cut, entry))
            for cut, entry in zip(cuts, self.entry, strict=True)
        ]
        self.layer_steps = self.layer_steps_of(cuts)
        self.progress: Callable[[int], object] = lambda steps: None
        self.head = Network(drop_layers(model, Cut(0, layers - 1)))  # the shallowest model that has the head
        self.device = self.whole.device
        # a tail ends as the whole model does, unless its cut takes the end away
        ends = [tail for tail, cut in zip(self.tails, cuts, strict=True) if cut.stop == layers and cut.size]
        self.can = can or Abilities.of(self.whole, *ends)
        self._remembered: tuple = (None, None, [])

    def layer_steps_of(self, cuts: list[Cut]) -> int:
        """Layers that one token passes: the whole model, then each pruned one above its entry."""
        layers = len(self.whole.layers)
        return layers + sum(layers - cut.size - _entry(cut, layers) for cut in cuts if cut.size)

    def bytes_kept(self, cuts: list[Cut], pieces: list[Piece]) -> int:
        """Memory for residuals, and for keys and values of a beginning, when these cuts are run together."""
        beginning = max((len(piece.shared) for piece in pieces), default=0)
        batch = max((len(b) * max(len(s.tokens) for s in b) for piece in pieces for b in piece.batches), default=0)
        width = text_config(self.whole.model.config).hidden_size * self.whole.dtype.itemsize
        residuals = len({_entry(cut, len(self.whole.layers)) for cut in cuts}) * max(batch, beginning) * width
        return int(residuals + beginning * self.layer_steps_of(cuts) * self.whole.bytes_remembered)

    def run(
        self, piece: Piece, progress: Callable[[int], object] = lambda steps: None
    ) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
        """Answers to the requests of a piece, in its order; `progress` is told of layer-steps as they are done.

        Raises InputError where even one sequence does not fit into memory.
        """
        self.progress = progress
        with torch.inference_mode():
            whole_cache, caches = self.remember(piece.shared)
            parts = [
                part
                for batch in piece.batches
                for part in self._run_with_room(batch, len(piece.shared), whole_cache, caches)
            ]
        return np.concatenate([p for p, _ in parts], axis=1), np.concatenate([g for _, g in parts], axis=1)

    def remember(self, shared: tuple[int, ...]):
        """Keys and values of a beginning, for the whole model and for every tail; kept until the next beginning."""
        if self._remembered[0] != shared:
            self._remembered = (shared, None, [None] * len(self.cuts))
            if shared:
                self._remembered = (shared, *_with_room(lambda: self._run_shared(shared), len(shared)))
                self.progress(len(shared) * self.layer_steps)
        return self._remembered[1:]

    def forget(self) -> None:
        """Give the memory of the last beginning back."""
        self._remembered = (None, None, [])

    def _run_shared(self, shared: tuple[int, ...]):
        ids = torch.tensor([shared], device=self.device)
        with torch.inference_mode():
            with self.whole.recording(set(self.entry)) as residuals:
                whole = self.whole.remember(ids)
            return whole, [
                None if tail is None else tail.remember(ids, residuals[entry])
                for tail, entry in zip(self.tails, self.entry, strict=True)
            ]

    def _run_with_room(self, sequences, shared: int, whole_cache, caches) -> list:
        """A batch, or its two halves where memory runs out."""
        if len(sequences) == 1:
            run = lambda: [self._run_batch(sequences, shared, whole_cache, caches)]  # noqa: E731
            return _with_room(run, len(sequences[0].tokens))
        try:
            return [self._run_batch(sequences, shared, whole_cache, caches)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(sequences) // 2
        return [
            part
            for rows in (sequences[:half], sequences[half:])
            for part in self._run_with_room(rows, shared, whole_cache, caches)
        ]

    def _run_batch(self, sequences, shared: int, whole_cache, caches):
        batch = Batch.of(sequences, shared, self.device)
        how = {"scored_only": self.can.score_only, "apart": self.can.apart}
        tokens = sum(len(s.tokens) - shared for s in sequences)
        with self.whole.recording(set(self.entry)) as residuals:
            whole = self.whole.scored_states(batch, whole_cache, **how)
        self.progress(tokens * len(self.whole.layers))
        states = []
        for tail, entry, cache in zip(self.tails, self.entry, caches, strict=True):
            if tail is None:
                states.append(whole)
                continue
            states.append(tail.scored_states(batch, cache, residuals[entry], **how))
            self.progress(tokens * len(tail.layers))
        return self._answers(sequences, torch.stack(states))

    def _answers(self, sequences, states: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For states [C, N, D], per cut and request: summed log-probability, and whether every token is the likeliest.

        The head runs once for the states of all cuts: its matrix is most of what there is to read from memory.
        """
        cuts, scored, width = states.shape
        positions, targets, lengths, row = [], [], [], 0
        for s in sequences:
            slot = {place: row + i for i, place in enumerate(s.scored)}
            row += len(slot)
            for _, places, tokens in s.requests:
                positions += [slot[place] for place in places]
                targets += tokens
                lengths.append(len(tokens))
        order = np.argsort(positions, kind="stable")
        rows = (np.arange(cuts)[:, None] * scored + np.array(positions)[order]).ravel()
        wanted = np.tile(np.array(targets)[order], cuts)
        logprobs, hits = np.empty(len(rows)), np.empty(len(rows), dtype=bool)
        at_once = max(1, HEAD_ELEMENTS // self.whole.head.weight.shape[0])
        for first in range(0, cuts * scored, at_once):
            logits = self.head.logits(states.view(-1, width)[first : first + at_once])
            # a few rows at a time stay in the processor's cache
            for start in range(first, first + len(logits), 16):
                some = logits[start - first : start - first + 16]
                span = slice(*np.searchsorted(rows, (start, start + len(some))))
                row = torch.from_numpy(rows[span] - start).to(some.device)
                target = torch.from_numpy(wanted[span]).to(some.device)
                found = torch.log_softmax(some, dim=-1, dtype=torch.float32)[row, target]
                logprobs[span] = found.double().cpu().numpy()
                hits[span] = (some.max(dim=-1).indices[row] == target).cpu().numpy()
        back = np.argsort(order, kind="stable")
        logprobs, hits = (values.reshape(cuts, -1)[:, back] for values in (logprobs, hits))
        starts = np.cumsum([0, *lengths[:-1]])
        return np.add.reduceat(logprobs, starts, axis=1), np.logical_and.reduceat(hits, starts, axis=1)


@dataclass(frozen=True)
class Abilities:
    """Which savings give on this model what the plain way gives: found out by trying, not from a list of names."""

    share: bool  # lend keys and values of a beginning
    apart: bool  # attend to a lent beginning without copying it for each sequence
    score_only: ScoredOnly | None  # run the last layer where something is scored
    branch: bool  # run several continuations of one context as one sequence

    @classmethod
    def of(cls, *networks: Network) -> "Abilities":
        """What can be done on every one of these."""
        ways = [way for way in (ScoredOnly(narrow=True), ScoredOnly(narrow=False)) if _all_same(networks, way=way)]
        return cls(
            share=_all_same(networks, shared=8),
            apart=_all_same(networks, shared=8, apart=True, way=ways[0] if ways else None),
            score_only=ways[0] if ways else None,
            branch=_all_same(networks, joined=True),
        )


def _all_same(networks, *, shared=0, joined=False, way: ScoredOnly | None = None, apart=False) -> bool:
    """Whether two short requests get the same logits this way and the plain way."""
    return all(_same(network, shared, joined, way, apart) for network in networks)


@torch.inference_mode()
def _same(network: Network, shared: int, joined: bool, way: ScoredOnly | None, apart: bool) -> bool:
    vocabulary = network.head.weight.shape[0]
    tokens = [(7919 * i + 13) % vocabulary for i in range(23)]
    context, first, second = tokens[:16], tokens[16:20], tokens[20:]
    alone = (Sequence.plain(0, context, first), Sequence.plain(1, context, second))
    plain = network.logits(network.scored_states(Batch.of(alone, 0, network.device))).float()
    # rounding moves logits a little; a wrong mask or position as much as they differ among themselves
    allowed = plain.std() * (1e-3 if network.dtype == torch.float32 else 0.15)
    sequences = alone
    if joined:
        sequences = (Sequence.joined(context, [(0, first), (1, second)]),)
        # the last token of the context is then scored once for both
        plain = torch.cat([plain[: len(first)], plain[len(first) + 1 :]])
    if (way or joined or apart) and text_config(network.model.config)._attn_implementation not in ("sdpa", "eager"):
        return False  # others take no mask of ours
    try:
        beginning = network.remember(torch.tensor([context[:shared]], device=network.device)) if shared else None
        batch = Batch.of(sequences, shared, network.device)
        states = network.scored_states(batch, beginning, scored_only=way, apart=apart)
        return bool((network.logits(states).float() - plain).abs().max() <= allowed)
    except Exception:  # whatever a family's code raises, the plain way is left
        return False


class Lent(DynamicCache):
    """Keys and values of one sequence, lent to `rows` sequences: what these add is used, and not kept.

    `apart`: attention to the beginning and to what the sequences add is computed apart (`attend_apart`), so
    that nothing of the beginning is copied for each sequence.
    """

    def __init__(self, cache: DynamicCache, rows: int, apart: bool = False):
        super().__init__()
        self.layers, self.rows, self.apart = cache.layers, rows, apart

    def beginning(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, heads, P, head width] of a layer, without a copy."""
        layer = self.layers[layer_idx]
        return tuple(tensor.expand(self.rows, *tensor.shape[1:]) for tensor in (layer.keys, layer.values))

    def update(self, key_states, value_states, layer_idx, *_, **__):
        if self.apart:
            return key_states, value_states
        keys, values = self.beginning(layer_idx)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    @contextlib.contextmanager
    def attending(self, config) -> Iterator[None]:
        """During a forward pass of the model with this configuration, attention is `attend_apart`."""
        global _lent
        config, before = text_config(config), _lent
        implementation = config._attn_implementation
        config._attn_implementation, _lent = ATTEND_APART, self
        try:
            yield
        finally:
            config._attn_implementation, _lent = implementation, before


ATTEND_APART = "beginning_apart"
_lent: Lent | None = None


def attend_apart(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
    """Attention [B, T, heads, head width] over a lent beginning and over a sequence's own keys, put together.

    Softmax over both is the mean of the two attentions, weighted by their sums of exponentials, of which
    flash attention gives the logarithms. `attention_mask` is over a sequence's own keys; None is causal.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention of this kind is not computed apart")
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    (rows, heads, length, width), few = query.shape, key.shape[1]
    shared_keys, shared_values = _lent.beginning(module.layer_idx)
    # heads that share keys stand next to each other: they are more queries of one head
    grouped = query.reshape(rows, few, heads // few * length, width)
    before, weight_before = flash(grouped, shared_keys, shared_values, 0.0, False, scale=scaling)
    before, weight_before = before.reshape(query.shape), weight_before.reshape(rows, heads, length)
    key, value = (tensor.repeat_interleave(heads // few, dim=1) for tensor in (key, value))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, -torch.inf)
    causal = attention_mask is None and length > 1
    own, weight_own = flash(query, key, value, 0.0, causal, attn_mask=attention_mask, scale=scaling)
    share = torch.sigmoid(weight_before - weight_own).unsqueeze(-1).to(query.dtype)
    return (own + (before - own) * share).transpose(1, 2), None


AttentionInterface.register(ATTEND_APART, attend_apart)


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


def _entry(cut: Cut, layers: int) -> int:
    """Where the residual enters: above the dropped block, or one layer below it where nothing lies above."""
    return cut.start if cut.stop < layers else max(cut.start - 1, 0)


def _tail(model, cut: Cut, entry: int):
    """The pruned model without the layers below `entry`, whose residual is given to it."""
    pruned = drop_layers(model, cut)
    return drop_layers(pruned, Cut(0, entry)) if entry else pruned


def _with_room(run: Callable, tokens: int):
    """What `run` gives; InputError where one sequence of so many tokens does not fit into memory."""
    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise InputError(
            f"out of memory on one sequence of {tokens} tokens: use a smaller model or data type, fewer examples "
            "in the prompt, or a larger machine"
        ) from error


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error)


def _cache_argument(module) -> str:
    """What a forward pass calls the keys and values given to it; transformers 5.24 began to rename them."""
    names = inspect.signature(inspect.unwrap(type(module).forward)).parameters
    return next((name for name in ("cache", "past_key_values", "layer_past") if name in names), "past_key_values")
