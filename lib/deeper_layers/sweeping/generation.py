"""Greedy answers of all pruned models of a tree to lm-eval's generate_until requests, a token of all of them at a time.

lm-eval's HFLM cuts prompts, names stop strings and trims answers; only the tokens in between come from here. A lane is
one prompt under one pruned model. The prompts walk through the tree once. Then, at each step, a layer runs on the lanes
of all models that keep it. Keys and values of a lane are in a buffer with room for what is to come.

Letters in shapes: C cuts, B prompts, K keys.
"""

import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from deeper_layers.cuts import Cut
from deeper_layers.models.network import Handed
from deeper_layers.pruning import silence_sublayers
from deeper_layers.results.shards import Shards
from deeper_layers.sweeping import vllm_engine
from deeper_layers.sweeping.attention import PrefixCache, attention_masks
from deeper_layers.sweeping.forward import logits_in_parts, running
from deeper_layers.sweeping.harness import Answer, Asking, Prompt, quiet
from deeper_layers.sweeping.memory import run_in_halves
from deeper_layers.sweeping.planning import BATCH_TOKENS, MEMORY, ROWS, SHARED_TOKENS, Batch, Sequence
from deeper_layers.sweeping.progress import FIRST_WRITTEN, Bar, finished
from deeper_layers.sweeping.tree import Node, Tree
from deeper_layers.sweeping.tree_model import Sharing, TreeModel

COMPACTED = 0.9  # of the lanes that are left: fewer unfinished ones are moved together
# entries of a generation configuration that greedy decoding follows here, or has no use for
FOLLOWED = set(
    "bos_token_id eos_token_id pad_token_id temperature top_k top_p use_cache max_length max_new_tokens do_sample "
    "transformers_version _from_model_config".split()
)
AreOver = Callable[[list[list[int]]], list[bool]]  # which answers are finished


def generate(
    model: TreeModel,
    tokenizer,
    instances: list[Instance],
    *,
    memory: int = MEMORY,
    shards: Shards | None = None,
    what: str = "generation",
) -> list[list[Answer]]:
    """For each cut each answer, its text as lm-eval's HFLM gives it for the pruned model.

    `memory` bounds the bytes taken beside the weights. Where a task samples, a model's generation configuration
    asks for more than greedy decoding, or a model takes no mask of ours, HFLM itself generates.
    """
    if not instances:
        return [[] for _ in model.cuts]
    whole = model.network.model
    asking = Asking(whole, tokenizer)
    prompts = [asking.prompt(instance) for instance in instances]
    asked = {name for name, value in whole.generation_config.to_diff_dict().items() if value not in (None, False)}
    if model.sharing < Sharing.MASKS or asked - FOLLOWED or not all(prompt.greedy for prompt in prompts):
        return generate_apart(whole, tokenizer, model.cuts, instances, shards=shards, what=what)
    written, parts = np.empty((len(model.cuts), len(prompts)), dtype=object), itertools.count(FIRST_WRITTEN)
    with Bar(what, written.size, "answer") as bar:
        for kind in dict.fromkeys(prompt[:2] for prompt in prompts):
            alike = [n for n, prompt in enumerate(prompts) if prompt[:2] == kind]
            alike.sort(key=lambda n: -len(prompts[n].tokens))
            are_over = _end_of_answers(whole, tokenizer, kind[1])
            written[:, alike] = _write(model, [prompts[n] for n in alike], are_over, memory, shards, parts, bar)
    return [
        [Answer(asking.text(asked, tokens), len(tokens), ended) for asked, (tokens, ended) in zip(instances, of_cut)]
        for of_cut in written
    ]


def _write(
    model: TreeModel, prompts: list[Prompt], are_over: AreOver, memory: int, shards: Shards | None, parts, bar: Bar
) -> np.ndarray:
    """[C, B] pairs: new tokens, and whether they ended; from shards where they are, else written."""
    most = prompts[0].most

    def fits(some: list[Prompt], cuts: list[Cut]) -> bool:
        tree, longest = Tree(cuts, model.tree.layers), max(len(prompt.tokens) for prompt in some)
        return len(some) <= ROWS and model.estimate.writing(tree, len(some), longest, most) <= memory

    def progress(answers: int, token: int) -> None:
        # answers may take minutes to end, so that the bar shows the token that is written
        bar.set_postfix_str(f"token {token} of at most {most}", refresh=False)
        bar.update(answers)

    def write(some: list[Prompt], cuts: list[Cut]) -> np.ndarray:
        asked = [prompt.tokens for prompt in some]

        def run() -> list:
            return Decoding(model.part(cuts), asked, most).write(are_over, progress)

        found = list(itertools.chain(*finished(shards, next(parts), (cuts, asked), bar, len(cuts) * len(some), run)))
        return np.fromiter(zip(found, are_over(found)), dtype=object).reshape(len(cuts), -1)

    return run_in_halves(write, prompts, model.cuts, fits)


def _end_of_answers(model, tokenizer, stop: tuple[str, ...]) -> AreOver:
    """What says which answers are finished: by an end-of-sequence token, or a stop string among the last tokens."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    stop = tuple(filter(None, stop))
    # two more than it takes to write one, since a string has several tokenizations: so far HFLM looks back
    back = 2 + max((len(tokenizer.encode(s, add_special_tokens=False)) for s in stop), default=0)

    def are_over(rows: list[list[int]]) -> list[bool]:
        texts = tokenizer.batch_decode([row[-back:] for row in rows])
        return [row[-1] in ends or any(s in text for s in stop) for row, text in zip(rows, texts, strict=True)]

    return are_over


def generate_apart(
    model,
    tokenizer,
    cuts: list[Cut],
    instances: list[Instance],
    *,
    engine: str | None = None,
    shards: Shards | None = None,
    what: str = "generation",
) -> list[list[Answer]]:
    """The same of one pruned model after another, by lm-eval's own HFLM, or its model of an engine."""

    def run(cut: Cut) -> list[str]:
        pruned = silence_sublayers(model, cut)
        if engine:
            texts = vllm_engine.generate(pruned, tokenizer, instances)
        else:
            with quiet():
                lm = HFLM(pretrained=pruned, tokenizer=tokenizer, batch_size=ROWS)
            texts = lm.generate_until(instances, disable_tqdm=True)
        bar.update()
        return texts

    found, args = [], [instance.args for instance in instances]
    with Bar(what, len(cuts), "pruned model") as bar:
        for number, cut in enumerate(cuts, start=FIRST_WRITTEN):
            texts = finished(shards, number, (engine, cut, args), bar, 1, functools.partial(run, cut))
            found.append(list(map(Answer, texts)))
    return found


@dataclass
class Stop:
    """What of a layer runs on which lanes, and their keys and values [lanes, heads, K, head width]."""

    part: str
    nodes: dict[int, Node]  # by the number of a pruned model: where on its path
    rows: torch.Tensor  # of the lanes that are left, those of these models
    buffers: list[torch.Tensor] = field(default_factory=list)


class BufferCache(PrefixCache):
    """What a layer finds as its cache: the buffers of a stop, written at `length`, and read up to there."""

    buffers: list[torch.Tensor]

    def __init__(self, length: int):
        super().__init__()
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
        self.stops: dict[int, list[Stop]] = {}  # by layer
        lanes = torch.arange(len(model.cuts) * len(prompts), device=self.network.device).view(-1, len(prompts))
        for layer, level in enumerate(model.tree.levels):
            for part in dict.fromkeys(node.part for node in level):
                nodes = {number: node for node in level if node.part == part for number in node.cuts}
                self.stops.setdefault(layer, []).append(Stop(part, nodes, lanes[list(nodes)].flatten()))
        self._read()

    def _read(self) -> None:
        """Fill the buffers with keys and values of the prompts; what they begin with alike is run once."""
        rows = [tuple(prompt[:-1]) or (0,) for prompt in self.prompts]
        prefix = os.path.commonprefix(rows)[: min(map(len, rows)) - 1] if len(rows) > 1 else ()
        prefix = prefix if len(prefix) >= SHARED_TOKENS else ()
        at_once = max(1, BATCH_TOKENS // (max(map(len, rows)) - len(prefix)))
        for first in range(0, len(rows), at_once):
            some = tuple(map(Sequence, rows[first : first + at_once]))
            (forward,) = self.model.run([Batch(prefix, some)], keeps=True)
            for stop in itertools.chain(*self.stops.values()):
                for place, node in enumerate(stop.nodes.values()):
                    pair, lane = forward.cache.kept[node.leaves], place * len(rows) + first
                    for kind, tensor in enumerate(pair):
                        if len(stop.buffers) == kind:
                            room = len(stop.rows), tensor.shape[1], self.held + self.most, tensor.shape[3]
                            stop.buffers.append(tensor.new_zeros(room))
                        stop.buffers[kind][lane : lane + len(some), :, : tensor.shape[2]] = tensor

    @torch.inference_mode()
    def write(self, are_over: AreOver, progress: Callable[[int, int], object] = lambda answers, token: None) -> list:
        """[C][B] the new tokens of each prompt under each cut.

        `are_over` says of some lanes' new tokens which are finished; `progress` is told of how many answers this is
        so, and how many tokens the longest has.
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
            ended = are_over(answers)
            going[going.clone()] = ~torch.tensor(ended, device=device)
            progress(sum(ended), written + 1)
            if not going.any():
                break
            if going.sum() < COMPACTED * len(lanes):
                self._keep(going)
                lanes, tokens, going = lanes[going], tokens[going], going[going]
        progress(int(going.sum()), self.most)
        return [new[first : first + len(self.prompts)] for first in range(0, len(new), len(self.prompts))]

    def _next(self, written: int, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[lanes] the token that follows the last one of each lane, after so many that it wrote."""
        network, cache, device = self.network, BufferCache(self.held + written), tokens.device
        before = torch.arange(self.held, device=device).expand(len(tokens), -1)
        places = torch.cat([before, lengths + torch.arange(written + 1, device=device)], dim=1)
        real = torch.cat([before < lengths, torch.ones_like(places[:, self.held :], dtype=torch.bool)], dim=1)

        def hand(rows: torch.Tensor) -> Handed:
            """What layers are handed for some lanes."""
            positions = places[rows, -1:]
            masks = attention_masks(network, positions, places[rows], real[rows, None])
            options = {"position_ids": positions, "attention_mask": masks, network.cache_argument: cache}
            return network.handed(tokens[rows, None], use_cache=True, **options)

        all_models = tuple(range(len(self.model.cuts)))
        handed = {all_models: hand(torch.arange(len(tokens), device=device))}
        residuals = handed[all_models].residual.clone()  # [lanes, 1, D]
        for layer in network.in_turn(list(self.stops)):
            for stop in self.stops[layer]:
                if not len(stop.rows):
                    continue
                if (models := tuple(stop.nodes)) not in handed:
                    handed[models] = hand(stop.rows)
                cache.buffers = stop.buffers
                with running(network.layers[layer], stop.part):
                    entering = residuals[stop.rows].to(network.places[layer])
                    left = handed[models].calls[layer](network.layers[layer], entering)
                residuals[stop.rows] = left.to(residuals.device)
        return torch.cat([logits.argmax(dim=-1) for logits in logits_in_parts(network, residuals[..., 0, :])])

    def _keep(self, kept: torch.Tensor) -> None:
        """Leave out some of the lanes that are left [lanes]."""
        number = kept.cumsum(0) - 1
        for stop in itertools.chain(*self.stops.values()):
            here = kept[stop.rows]
            stop.rows = number[stop.rows[here]]
            stop.buffers = [buffer[here.to(buffer.device)] for buffer in stop.buffers]
