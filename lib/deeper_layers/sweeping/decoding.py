"""Greedy answers of all pruned models of a tree to the prompts of a batch, a token of all of them at a time.

A lane is one prompt under one pruned model. The prompts walk through the tree once. Then, at each step, a layer runs on
the lanes of all models that keep it. Keys and values of a lane are in a buffer with room for what is to come.

Letters in shapes: B prompts, T tokens, K keys.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from deeper_layers.models.network import Handed
from deeper_layers.sweeping.forward import Batch, Forward, logits_in_parts, run_layers, running
from deeper_layers.sweeping.masks import attention_masks
from deeper_layers.sweeping.planning import BATCH_TOKENS, SHARED_TOKENS
from deeper_layers.sweeping.prefix_cache import PrefixCache, behind
from deeper_layers.sweeping.tree import Node
from deeper_layers.sweeping.tree_model import TreeModel

COMPACTED = 0.9  # of the lanes that are left: fewer unfinished ones are moved together


@dataclass
class Stop:
    """What of a layer runs on which lanes, and their keys and values [lanes, heads, K, head width]."""

    layer: int
    part: str
    nodes: dict[int, Node]  # by the number of a pruned model: where on its path
    rows: torch.Tensor  # of the lanes that are left, those of these models
    buffers: list[torch.Tensor] = field(default_factory=list)


class BufferCache(PrefixCache):
    """What a layer finds as its cache: the buffers of a stop, written at `length`, and read up to there."""

    buffers: list[torch.Tensor]

    def __init__(self, length: int):
        super().__init__(None, 1, keeps=False)
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : self.length + 1] = states
        return tuple(buffer[:, :, : self.length + 1] for buffer in self.buffers)


class Decoding:
    """The prompts of a batch, run for all pruned models; all tokens but the last, which `write` begins with."""

    @torch.inference_mode()
    def __init__(self, model: TreeModel, prompts: list[list[int]], most: int):
        self.model, self.network, self.prompts, self.most = model, model.network, prompts, most
        self.held = max(1, max(map(len, prompts)) - 1)  # places in a buffer before the first token that is written
        self.stops: list[Stop] = []
        lanes = torch.arange(len(model.cuts) * len(prompts), device=self.network.device).view(-1, len(prompts))
        for layer, level in enumerate(model.tree.levels):
            for part in dict.fromkeys(node.part for node in level):
                nodes = {number: node for node in level if node.part == part for number in node.cuts}
                self.stops.append(Stop(layer, part, nodes, lanes[list(nodes)].flatten()))
        self._read()

    def _read(self) -> None:
        """Fill the buffers with keys and values of the prompts; what they begin with alike is run once."""
        rows, shared, device = [prompt[:-1] for prompt in self.prompts], None, self.network.device
        run = functools.partial(Forward, self.network, self.model.tree, scored_only=True, keeps=True)
        if len(rows) > 1 and (length := len(os.path.commonprefix(rows))) >= SHARED_TOKENS:
            run_layers([forward := run(Batch.of_tokens([rows[0][:length]], device))])
            rows, shared = [row[length:] for row in rows], forward.cache
        at_once = max(1, BATCH_TOKENS // max(1, *map(len, rows)))
        for first in range(0, len(rows), at_once):
            some = [row or [0] for row in rows[first : first + at_once]]
            run_layers([forward := run(Batch.of_tokens(some, device), shared)])
            kept = forward.cache.kept
            for node in kept if shared is not None else ():
                kept[node] = behind(shared.kept[node], kept[node])
            for stop in self.stops:
                for place, node in enumerate(stop.nodes.values()):
                    pair, room, lane = kept[node.leaves], self.held + self.most, place * len(rows) + first
                    if not stop.buffers:
                        stop.buffers = [t.new_zeros(len(stop.rows), t.shape[1], room, t.shape[3]) for t in pair]
                    for buffer, tensor in zip(stop.buffers, pair, strict=True):
                        buffer[lane : lane + len(some), :, : tensor.shape[2]] = tensor

    @torch.inference_mode()
    def write(
        self,
        is_over: Callable[[list[list[int]]], list[bool]],
        finished: Callable[[int], object] = lambda answers: None,
    ) -> np.ndarray:
        """[C, B] lists: for each cut the new tokens of each prompt.

        `is_over` says of some lanes' new tokens which are finished; `finished` is told how many are.
        """
        device, cuts = self.network.device, len(self.model.cuts)
        new: list[list[int]] = [[] for _ in self.prompts * cuts]
        tokens = torch.tensor([prompt[-1] for prompt in self.prompts] * cuts, device=device)
        lengths = torch.tensor([[len(prompt) - 1] for prompt in self.prompts] * cuts, device=device)
        lanes, going = torch.arange(len(new), device=device), torch.ones(len(new), dtype=torch.bool, device=device)
        for written in range(self.most):
            tokens = self._next(written, tokens, lengths[lanes])
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
        return np.fromiter(new, dtype=object).reshape(cuts, -1)

    def _next(self, written: int, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[lanes] the token that follows the last one of each lane, after so many that it wrote."""
        network, cache = self.network, BufferCache(self.held + written)
        before = torch.arange(self.held, device=tokens.device).expand(len(tokens), -1)
        places = torch.cat([before, lengths + torch.arange(written + 1, device=tokens.device)], dim=1)
        real = torch.cat([before < lengths, torch.ones_like(places[:, self.held :], dtype=torch.bool)], dim=1)

        def hand(rows: torch.Tensor) -> Handed:
            """What layers are handed for some lanes."""
            positions = places[rows, -1:]
            masks = attention_masks(network.model.config, positions, places[rows], real[rows, None], network.dtype)
            options = {"position_ids": positions, "attention_mask": masks, network.cache_argument: cache}
            return network.handed(tokens[rows, None], use_cache=True, **options)

        stops = [stop for stop in self.stops if len(stop.rows)]
        all_models = tuple(range(len(self.model.cuts)))
        rows_of = {tuple(stop.nodes): stop.rows for stop in stops} | {
            all_models: torch.arange(len(tokens), device=tokens.device)
        }
        handed = {models: hand(rows) for models, rows in rows_of.items()}
        residuals = handed[all_models].residual.clone()  # [lanes, 1, D]
        for layer in network.in_turn(list(dict.fromkeys(stop.layer for stop in stops))):
            for stop in (stop for stop in stops if stop.layer == layer):
                cache.buffers = stop.buffers
                with running(network.layers[layer], stop.part):
                    entering = residuals[stop.rows].to(network.places[layer])
                    left = handed[tuple(stop.nodes)].calls[layer](network.layers[layer], entering)
                residuals[stop.rows] = left.to(residuals.device)
        return torch.cat([logits.argmax(dim=-1) for logits in logits_in_parts(network, residuals[..., 0, :])])

    def _keep(self, kept: torch.Tensor) -> None:
        """Leave out some of the lanes that are left [lanes]."""
        number = kept.cumsum(0) - 1
        for stop in self.stops:
            here = kept[stop.rows]
            stop.rows = number[stop.rows[here]]
            stop.buffers = [buffer[here.to(buffer.device)] for buffer in stop.buffers]
