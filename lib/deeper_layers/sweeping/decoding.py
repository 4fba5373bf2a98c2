"""Greedy answers of all pruned models of a family to the prompts of a batch, a token of all of them at a time.

A lane is one prompt under one pruned model. The prompts walk through the tree once. Then, at each step, a layer runs on
the lanes of all models that keep it, which a finished lane leaves. A beginning that all prompts share is lent, and a
prompt to the models that are one up to a layer, where attention can be computed apart; else every lane has a copy. Keys
and values of a lane's own tokens are in a buffer with room for what is to come.

Letters in shapes: B prompts, T tokens, K keys.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deeper_layers.cuts import WHOLE
from deeper_layers.models.decoder import text_config
from deeper_layers.models.sublayers import only
from deeper_layers.sweeping.lending import Lent, Pair, Sharing
from deeper_layers.sweeping.masks import attention_masks, sees_all
from deeper_layers.sweeping.planning import BATCH_TOKENS, SHARED_TOKENS, common_beginning, logits_at_once
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.walk import remembering


@dataclass
class Lanes:
    """Lanes that pass the same layers: those of some models, the ones still going first."""

    models: tuple[int, ...]
    order: list[int]  # of each row of a buffer its lane
    going: int
    active: torch.Tensor = field(init=False)  # [going] lanes

    def __post_init__(self):
        self.active = torch.tensor(self.order[: self.going])
        self._of_models: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}

    def leave(self, device) -> None:
        """Some have left: the first `going` of `order` have not."""
        self.active = torch.tensor(self.order[: self.going], dtype=torch.long, device=device)
        self._of_models.clear()

    def of_models(self, models: tuple[int, ...], count: int) -> tuple[torch.Tensor, ...]:
        """Of the lanes going those of some models: which, of which of `count` prompts, and the how manieth of that."""
        if models not in self._of_models:
            rows = torch.isin(self.active // count, self.active.new_tensor(models)).nonzero()[:, 0]
            prompt = self.active[rows] % count
            place, before = torch.empty_like(prompt), prompt.bincount(minlength=count).cumsum(0).roll(1)
            before[0] = 0
            order = prompt.argsort(stable=True)
            place[order] = torch.arange(len(order), device=order.device) - before[prompt[order]]
            self._of_models[models] = rows, prompt, place
        return self._of_models[models]


class Buffer(Lent):
    """Keys and values of lanes at one layer: a pass writes at `position`, and sees what is there up to it."""

    def __init__(self, length: int, apart: bool, width: int):
        super().__init__(length, apart)
        self.width, self.position = width, 0
        self.pairs: dict[tuple, list[torch.Tensor]] = {}  # of each layer and part, [lanes, heads, width, head width]
        self.at: tuple = ()

    def fill(self, at: tuple, prompts: list[Pair]) -> None:
        """Room for lanes at a layer, after the keys and values [B, heads, T, head width] of each model's prompts."""
        self.pairs[at] = [
            t.new_empty(len(prompts) * len(t), t.shape[1], self.width, t.shape[3]) for t in prompts[0]
        ]  # fmt: skip
        if not self.apart:
            for buffer, of_models in zip(self.pairs[at], zip(*prompts, strict=True), strict=True):
                buffer[:, :, : of_models[0].shape[2]] = torch.cat(of_models)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length + self.position

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def update(self, key_states, value_states, layer_idx=0, *_, **__):
        last, rows = self.position + key_states.shape[-2], slice(0, len(key_states))
        for buffer, states in zip(self.pairs[self.at], (key_states, value_states), strict=True):
            buffer[rows, :, self.position : last] = states
        return tuple(buffer[rows, :, :last] for buffer in self.pairs[self.at])

    def swap(self, at: tuple, one: int, other: int) -> None:
        for buffer in self.pairs[at]:
            buffer[[one, other]] = buffer[[other, one]]


class Decoding:
    """The prompts of a batch, run for a whole family; all tokens but the last, which `write` begins with."""

    @torch.inference_mode()
    def __init__(self, family: PrunedFamily, rows: list[list[int]], most: int):
        self.family, self.network, self.rows, self.most = family, family.whole, rows, most
        tree, config = family.tree, family.whole.model.config
        shared = common_beginning(rows) if len(rows) > 1 else 0
        shared = shared if shared >= SHARED_TOKENS and family.can.share else 0
        self.shared = min(shared, *(len(row) - 1 for row in rows)) if shared else 0
        own = max(1, max(map(len, rows)) - 1 - self.shared)
        ids = torch.zeros(len(rows), own, dtype=torch.long, device=family.device)
        self.padding = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            rest = row[self.shared : -1]
            ids[i, : len(rest)] = torch.tensor(rest, dtype=torch.long)
            self.padding[i, len(rest) :] = True
        beginning = family.remember(tuple(rows[0][: self.shared]))
        apart = family.can.apart and family.device.type == "cpu"
        self.apart = apart and sees_all(config, self.shared + own + most)
        # what is not computed apart stands in the buffers, before a lane's own tokens
        before = self.shared + own
        self.held = 0 if self.apart else before
        self.buffer = Buffer(before - self.held, self.apart, self.held + most)
        self.beginning, self.lent = beginning, {}
        prompts = self._prompts(ids, beginning)
        self.lanes: dict[tuple[int, ...], Lanes] = {}
        self.stops: list[list[tuple[str, Lanes]]] = []  # of each layer what of it runs on which lanes
        count = len(rows)
        for layer in range(tree.layers):
            parts: dict[str, list[int]] = {}
            for model, path in enumerate(tree.paths):
                if layer in path:
                    parts.setdefault(path[layer].part, []).append(model)
            self.stops.append([(part, self._lanes_of(tuple(models), count)) for part, models in parts.items()])
            for part, lanes in self.stops[-1]:
                nodes = [tree.paths[model][layer].leaves for model in lanes.models]
                if all(node in prompts for node in nodes):  # a layer may keep none
                    self.buffer.fill((layer, part), [prompts[node] for node in nodes])
                for node in set(nodes):
                    pair = prompts.pop(node, None)
                    if self.apart and pair:
                        self.lent[node] = pair
        self.everyone = self._lanes_of(tuple(range(len(tree.paths))), count)

    def _lanes_of(self, models: tuple[int, ...], count: int) -> Lanes:
        if models not in self.lanes:
            order = [model * count + row for model in models for row in range(count)]
            self.lanes[models] = Lanes(models, order, len(order))
        return self.lanes[models]

    def _prompts(self, ids: torch.Tensor, beginning) -> dict[int, Pair]:
        """Keys and values of the prompts at every node; before them those of the beginning, where it is not apart."""
        family, found, how = self.family, {}, {"scored_only": self.family.can.score_only, "apart": self.apart}
        step = max(1, BATCH_TOKENS // ids.shape[1])
        for first in range(0, len(ids), step):
            some = slice(first, first + step)
            width = max(1, max(map(len, self.rows[some])) - 1 - self.shared)  # of the longest of these
            walk, own = remembering(self.network, family.tree, ids[some, :width], beginning, **how)
            walk.through()
            for node, pair in own.kept.items():
                if node not in found:
                    found[node] = tuple(t.new_zeros(len(ids), t.shape[1], ids.shape[1], t.shape[3]) for t in pair)
                for all_rows, tensor in zip(found[node], pair, strict=True):
                    all_rows[some, :, :width] = tensor
        for node, pair in found.items():
            if self.held and beginning is not None:
                lent = (tensor.expand(len(ids), -1, -1, -1) for tensor in beginning.kept[node])
                found[node] = tuple(torch.cat(both, dim=2) for both in zip(lent, pair, strict=True))
        return found

    @torch.inference_mode()
    def write(
        self,
        is_over: Callable[[list[list[int]]], list[bool]],
        finished: Callable[[int], object] = lambda answers: None,
    ) -> list[list[list[int]]]:
        """For each cut the new tokens of each prompt; `is_over` says of some lanes' new tokens which are finished."""
        network, device, count = self.network, self.family.device, len(self.rows)
        total = len(self.family.cuts) * count
        lengths = torch.tensor([[len(row) - 1] for row in self.rows], device=device).repeat(len(self.family.cuts), 1)
        # of every key that there will be in a buffer: its place in the sequence, and whether it is one or padding
        before = torch.arange(self.held, device=device).expand(total, self.held)
        after = lengths + torch.arange(self.most, device=device)
        places = torch.cat([before, after], dim=1)
        real = torch.cat([before < lengths, torch.ones_like(after, dtype=torch.bool)], dim=1)
        tokens = torch.tensor([row[-1] for row in self.rows] * len(self.family.cuts), device=device)
        new: list[list[int]] = [[] for _ in range(total)]
        for position in range(self.held, self.held + self.most):
            residuals = self._pass(position, tokens, places, real)
            active = self.everyone.active
            some = residuals[active, 0].split(logits_at_once(network.head.weight.shape[0]))
            tokens[active] = torch.cat([network.logits(states).argmax(dim=-1) for states in some])
            going = active.tolist()
            for lane, token in zip(going, tokens[active].tolist(), strict=True):
                new[lane].append(token)
            over = [lane for lane, ends in zip(going, is_over([new[lane] for lane in going]), strict=True) if ends]
            finished(len(over))
            self._leave(set(over))
            if not self.everyone.going:
                break
        finished(self.everyone.going)
        return [new[first : first + count] for first in range(0, total, count)]

    def _pass(self, position: int, tokens, places, real) -> torch.Tensor:
        """[lanes, 1, D] what leaves the last layers for one token of each lane, whose keys stand at `position`."""
        network, buffer, config = self.network, self.buffer, self.network.model.config
        buffer.position = position
        handed = {}
        with buffer.attending(config):
            for lanes in {id(lanes): lanes for lanes in self.lanes.values()}.values():
                if not lanes.going:
                    continue
                active = lanes.active
                positions, known = places[active, position : position + 1], places[active, : position + 1]
                seen = real[active, None, : position + 1]
                masks = seen[:, None] if self.apart else attention_masks(config, positions, known, seen, network.dtype)
                if self.apart and isinstance(kinds := getattr(text_config(config), "layer_types", None), list):
                    masks = dict.fromkeys(kinds, masks)
                options = {"position_ids": positions, "attention_mask": masks, network.cache_argument: buffer}
                handed[lanes.models] = network.handed(tokens[active, None], use_cache=True, **options)
            first = handed[self.everyone.models].residual
            residuals = first.new_empty(len(tokens), *first.shape[1:])
            residuals[self.everyone.active] = first
            for layer in network.in_turn([layer for layer, parts in enumerate(self.stops) if parts]):
                for part, lanes in self.stops[layer]:
                    if not lanes.going:
                        continue
                    buffer.at = (layer, part)
                    self._lend(layer, lanes)
                    module = network.layers[layer]
                    with only(module, part) if part != WHOLE else contextlib.nullcontext():
                        call = handed[lanes.models].calls[layer]
                        entering = residuals[lanes.active].to(network.places[layer])
                        residuals[lanes.active] = call(module, entering).to(residuals.device)
        return residuals

    def _lend(self, layer: int, lanes: Lanes) -> None:
        """Tell attention which beginning and which prompts are whose."""
        if not self.apart:
            return
        of_nodes: dict[int, list[int]] = {}
        for model in lanes.models:
            of_nodes.setdefault(self.family.tree.paths[model][layer].leaves, []).append(model)
        self.buffer.sharing = [
            Sharing(
                *lanes.of_models(tuple(models), len(self.rows)), self.lent[node], self.padding[:, None, None],
                self.beginning and self.beginning.kept[node],
            )
            for node, models in of_nodes.items()
            if node in self.lent and len(lanes.of_models(tuple(models), len(self.rows))[0])
        ]  # fmt: skip

    def _leave(self, over: set[int]) -> None:
        """Finished lanes change places with the last ones that are not, wherever they pass."""
        if not over:
            return
        at: dict[int, list[tuple]] = {}
        for layer, parts in enumerate(self.stops):
            for part, lanes in parts:
                at.setdefault(id(lanes), []).append((layer, part))
        for lanes in {id(lanes): lanes for lanes in self.lanes.values()}.values():
            for row in reversed(range(lanes.going)):
                if lanes.order[row] in over:
                    lanes.going -= 1
                    last = lanes.going
                    if row != last:
                        lanes.order[row], lanes.order[last] = lanes.order[last], lanes.order[row]
                        for place in at.get(id(lanes), []):
                            if place in self.buffer.pairs:
                                self.buffer.swap(place, row, last)
            lanes.leave(self.family.device)
