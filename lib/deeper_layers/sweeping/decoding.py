"""Greedy answers of all pruned models of a tree to the prompts of a batch, a token of all of them at a time.

A lane is one prompt under one pruned model. The prompts walk through the tree once. Then, at each step, a layer runs on
the lanes of all models that keep it. Keys and values of a lane are in a buffer with room for what is to come.

Letters in shapes: B prompts, T tokens, K keys.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from deeper_layers.models.network import Handed
from deeper_layers.sweeping.forward import begin_prefix, running
from deeper_layers.sweeping.masks import attention_masks
from deeper_layers.sweeping.planning import BATCH_TOKENS, SHARED_TOKENS, common_prefix, logits_at_once
from deeper_layers.sweeping.prefix_cache import Pair, Prefix, PrefixCache, behind
from deeper_layers.sweeping.tree_model import TreeModel

COMPACTED = 0.9  # of the lanes that are left: fewer unfinished ones are moved together


@dataclass
class Stop:
    """What of a layer runs on which lanes, and their keys and values [lanes, heads, K, head width]."""

    part: str
    models: tuple[int, ...]
    rows: torch.Tensor  # of the lanes that are left, those of these models
    buffers: list[torch.Tensor]


class BufferCache(PrefixCache):
    """What a layer finds as its cache: the buffers of a stop, written at `length`, and read up to there."""

    buffers: list[torch.Tensor]

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : self.length + 1] = states
        return tuple(buffer[:, :, : self.length + 1] for buffer in self.buffers)


class Decoding:
    """The prompts of a batch, run for all pruned models; all tokens but the last, which `write` begins with."""

    @torch.inference_mode()
    def __init__(self, model: TreeModel, prompts: list[list[int]], most: int):
        self.model, self.network, self.prompts, self.most = model, model.network, prompts, most
        tree, count = model.tree, len(prompts)
        self.held = max(1, max(map(len, prompts)) - 1)  # places in a buffer before the first token that is written
        at_nodes = self._read()
        self.stops: list[list[Stop]] = []
        for layer in range(tree.layers):
            parts: dict[str, list[int]] = {}
            for number, path in enumerate(tree.paths):
                if layer in path:
                    parts.setdefault(path[layer].part, []).append(number)
            self.stops.append([])
            for part, models in parts.items():
                rows = torch.tensor([number * count + prompt for number in models for prompt in range(count)])
                pairs = [at_nodes[tree.paths[number][layer].leaves] for number in models]
                buffers = [self._buffer(of_models) for of_models in zip(*pairs, strict=True)]
                self.stops[-1].append(Stop(part, tuple(models), rows.to(model.device), buffers))
            for node in tree.levels[layer]:
                at_nodes.pop(node.leaves, None)

    def _read(self) -> dict[int, Pair]:
        """Keys and values of the prompts at every node [B, heads, `held`, head width], filled up with zeros."""
        prompts, can = self.prompts, self.model.can
        length = min(common_prefix(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 and can.share else 0
        prefix = self._run([prompts[0][:length]]) if length >= SHARED_TOKENS else None
        rows = [prompt[prefix.length if prefix else 0 : -1] or [0] for prompt in prompts]
        found: dict[int, Pair] = {}
        at_once = max(1, BATCH_TOKENS // max(map(len, rows)))
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            for node, pair in self._run(rows[some], prefix).kept.items():
                pair = behind(prefix.kept[node], pair) if prefix else pair
                if node not in found:
                    keys, values = (t.new_zeros(len(rows), t.shape[1], self.held, t.shape[3]) for t in pair)
                    found[node] = keys, values
                for of_all, tensor in zip(found[node], pair, strict=True):
                    of_all[some, :, : tensor.shape[2]] = tensor
        return found

    def _run(self, rows: list[list[int]], prefix: Prefix | None = None) -> Prefix:
        """Keys and values of some tokens at every node, without those of a prefix before them."""
        ids = pad_sequence(list(map(torch.tensor, rows)), batch_first=True).to(self.model.device)
        scored_only = self.model.can.score_only
        forward, own = begin_prefix(self.network, self.model.tree, ids, prefix, scored_only=scored_only)
        forward.through()
        return own

    def _buffer(self, of_models: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The prompts of each model, and room for what it writes."""
        first = of_models[0]
        buffer = first.new_empty(len(of_models) * len(first), first.shape[1], self.held + self.most, first.shape[3])
        buffer[:, :, : self.held] = torch.cat(of_models)
        return buffer

    @torch.inference_mode()
    def write(
        self,
        is_over: Callable[[list[list[int]]], list[bool]],
        finished: Callable[[int], object] = lambda answers: None,
    ) -> list[list[list[int]]]:
        """For each cut the new tokens of each prompt; `is_over` says of some lanes' new tokens which are finished."""
        device, count, cuts = self.model.device, len(self.prompts), len(self.model.cuts)
        new: list[list[int]] = [[] for _ in range(cuts * count)]
        tokens = torch.tensor([prompt[-1] for prompt in self.prompts] * cuts, device=device)
        lengths = torch.tensor([[len(prompt) - 1] for prompt in self.prompts] * cuts, device=device)
        lanes, going = torch.arange(len(new), device=device), torch.ones(len(new), dtype=torch.bool, device=device)
        for written in range(self.most):
            residuals = self._pass(written, tokens, lengths[lanes])
            some = residuals[..., 0, :].split(logits_at_once(self.network.head.weight.shape[0]), dim=-2)
            tokens = torch.cat([self.network.logits(states).argmax(dim=-1) for states in some])
            answers = [new[lane] for lane in lanes[going].tolist()]
            for answer, token in zip(answers, tokens[going].tolist(), strict=True):
                answer.append(token)
            ended = is_over(answers)
            going[going.clone()] = ~torch.tensor(ended, device=device)
            finished(sum(ended))
            if not going.any():
                break
            if going.sum() < COMPACTED * len(lanes):
                self._keep(going)
                lanes, tokens, going = lanes[going], tokens[going], going[going]
        finished(int(going.sum()))
        return [new[first : first + count] for first in range(0, len(new), count)]

    def _pass(self, written: int, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[lanes, 1, D] what leaves the last layers for one more token of each lane, after so many that it wrote."""
        network, cache = self.network, BufferCache(self.held + written)
        before = torch.arange(self.held, device=tokens.device).expand(len(tokens), -1)
        places = torch.cat([before, lengths + torch.arange(written + 1, device=tokens.device)], dim=1)
        real = torch.cat([before < lengths, torch.ones_like(places[:, self.held :], dtype=torch.bool)], dim=1)

        def hand(rows: torch.Tensor | slice) -> Handed:
            """What layers are handed for some lanes."""
            positions = places[rows, -1:]
            masks = attention_masks(network.model.config, positions, places[rows], real[rows, None], network.dtype)
            options = {"position_ids": positions, "attention_mask": masks, network.cache_argument: cache}
            return network.handed(tokens[rows, None], use_cache=True, **options)

        rows_of = {stop.models: stop.rows for stops in self.stops for stop in stops if len(stop.rows)}
        handed = {models: hand(rows) for models, rows in rows_of.items()}
        residuals = (handed.get(tuple(range(len(self.model.cuts)))) or hand(slice(None))).residual.clone()
        for layer in network.in_turn([layer for layer, stops in enumerate(self.stops) if stops]):
            for stop in (stop for stop in self.stops[layer] if len(stop.rows)):
                cache.buffers = stop.buffers
                with running(network.layers[layer], stop.part):
                    entering = residuals[stop.rows].to(network.places[layer])
                    left = handed[stop.models].calls[layer](network.layers[layer], entering)
                residuals[stop.rows] = left.to(residuals.device)
        return residuals

    def _keep(self, kept: torch.Tensor) -> None:
        """Leave out some of the lanes that are left [lanes]."""
        number = kept.cumsum(0) - 1
        for stop in (stop for stops in self.stops for stop in stops):
            here = kept[stop.rows]
            stop.rows = number[stop.rows[here]]
            stop.buffers = [buffer[here.to(buffer.device)] for buffer in stop.buffers]
