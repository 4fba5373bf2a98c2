"""Write greedy answers of all pruned models of a tree to lm-eval's generate_until requests, all models at once.

lm-eval's HFLM cuts prompts, names stop strings and trims answers; this file makes the tokens in between. A lane is one
prompt under one pruned model. The prompts go through the tree once. Then each step writes one token in each lane: a
layer runs on the lanes of all models that keep it. Buffers hold the keys and values of lanes, with room for new tokens.

Letters in shapes: C cuts, B prompts, K keys.
"""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.nn import functional

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.decoder import running_only
from deeper_layers.models.measuring import check_tokens
from deeper_layers.models.network import LayerInputs
from deeper_layers.pruning import zero_sublayers
from deeper_layers.sweeping.attention import PrefixCache, attention_masks
from deeper_layers.sweeping.forward import logits_in_parts
from deeper_layers.sweeping.harness import Answer, RequestRecorder, opening
from deeper_layers.sweeping.parts import FIRST_WRITTEN, LEAST_ROWS, ResumableProgress, run_in_halves
from deeper_layers.sweeping.planning import MEMORY, ROWS, SHARED_TOKENS, Batch, Sequence
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.tree_model import Sharing, TreeModel

# entries of a generation configuration that greedy decoding follows here, or that HFLM sets itself
FOLLOWED = set(
    "bos_token_id eos_token_id pad_token_id temperature top_k top_p use_cache max_length do_sample "
    "transformers_version _from_model_config".split()
)
# a part is lost when a run is killed. On a processor it has at most so many operations, a few minutes on two cores, but
# no fewer answers than for which reading the weights pays
PART_OPERATIONS = 2e13
LEAST_ANSWERS = 32
AreFinished = Callable[[list[list[int]]], list[bool]]  # which answers are finished


def generate(
    model: TreeModel,
    tokenizer,
    instances: list[Instance],
    *,
    memory: int = MEMORY,
    shards: Shards | None = None,
    what: str = "generation",
) -> list[list[Answer]]:
    """The answers of each cut, with the text that lm-eval's HFLM gives for the pruned model.

    `memory` bounds the bytes taken beside the weights. HFLM itself generates where a task samples, where the model's
    generation configuration asks for more than greedy decoding, or where the model takes no given mask. Raises
    InputError where that configuration asks for what HFLM can't do.
    """
    if not instances:
        return [[] for _ in model.cuts]
    model.forget()
    network = model.network.model
    recorder = RequestRecorder(network, tokenizer)
    prompts = [recorder.prompt(instance) for instance in instances]
    tokens = {token for prompt in prompts for token in prompt.tokens}
    check_tokens(network, min(tokens, default=0), max(tokens, default=0))
    is_greedy = all(prompt.greedy for prompt in prompts) and not find_unusual_settings(network)
    if model.sharing < Sharing.MASKS or not is_greedy:
        return generate_one_by_one(
            network, tokenizer, model.cuts, instances, shards=shards, what=what
        )
    written = np.empty((len(model.cuts), len(prompts)), dtype=object)
    with ResumableProgress(shards, what, written.size, "answer", FIRST_WRITTEN) as parts:
        for settings in dict.fromkeys(prompt[:2] for prompt in prompts):
            group = [n for n, prompt in enumerate(prompts) if prompt[:2] == settings]
            group.sort(key=lambda n: -len(prompts[n].tokens))
            tokens = [prompts[n].tokens for n in group]
            are_over = _make_end_check(network, tokenizer, settings[1])
            written[:, group] = _write_answers(model, tokens, settings[0], are_over, memory, parts)
    return [
        [
            Answer(recorder.text(prompt, tokens), len(tokens), ended)
            for prompt, (tokens, ended) in zip(instances, row)
        ]
        for row in written
    ]


def find_unusual_settings(model) -> list[str]:
    """The entries of a model's generation configuration that ask for more than greedy decoding."""
    if model.generation_config is None:
        raise InputError(
            "the model's generation_config is None, expected one: give it a GenerationConfig()"
        )
    # 0 asks for something, as of guidance_scale
    entries = model.generation_config.to_diff_dict().items()
    return sorted(
        name for name, value in entries if not (value is None or value is False or name in FOLLOWED)
    )


def _write_answers(
    model: TreeModel,
    prompts: list[list[int]],
    max_tokens: int,
    are_over: AreFinished,
    memory: int,
    parts: ResumableProgress,
) -> np.ndarray:
    """[C, B] pairs of new tokens, at most `max_tokens`, and whether the answer ended; read where a part is finished."""
    most_answers = _count_most_answers(model, max_tokens)

    def fits(rows: list[list[int]], cuts: list[Cut]) -> bool:
        if len(rows) * len(cuts) > most_answers:
            return False
        needed = model.estimate.writing_bytes(
            Tree(cuts, model.tree.layers), len(rows), max(map(len, rows)), max_tokens
        )
        return len(rows) <= ROWS and needed <= memory

    def progress(answers: int, token: int) -> None:
        # answers may take minutes to end, so the bar shows which token is written
        parts.set_postfix_str(f"token {token} of at most {max_tokens}", refresh=False)
        parts.update(answers)

    def write(rows: list[list[int]], cuts: list[Cut]) -> np.ndarray:
        run = lambda: Decoding(model.for_cuts(cuts), rows, max_tokens).write(are_over, progress)  # noqa: E731
        token_lists = list(
            itertools.chain(*parts.read_or_run((cuts, rows), len(cuts) * len(rows), run))
        )
        return np.fromiter(zip(token_lists, are_over(token_lists)), dtype=object).reshape(
            len(cuts), -1
        )

    return run_in_halves(write, prompts, model.cuts, fits)


def _count_most_answers(model: TreeModel, max_tokens: int) -> int | float:
    """The most answers of `max_tokens` that a part has."""
    if model.network.device.type != "cpu":  # a card writes a whole batch in that time
        return math.inf
    operations = 2 * model.network.model.num_parameters() * max_tokens
    return max(LEAST_ANSWERS, PART_OPERATIONS / operations)


def _make_end_check(model, tokenizer, stop: tuple[str, ...]) -> AreFinished:
    """The function that tells which answers are finished: by an end token, or a stop string in the last tokens."""
    end_tokens = model.generation_config.eos_token_id
    end_tokens = end_tokens if isinstance(end_tokens, list) else [end_tokens]
    stop = tuple(filter(None, stop))
    # HFLM looks back two tokens more than a stop string takes, since a string has several tokenizations
    lookback = 2 + max(
        (len(tokenizer.encode(s, add_special_tokens=False)) for s in stop), default=0
    )

    def are_over(rows: list[list[int]]) -> list[bool]:
        texts = tokenizer.batch_decode([row[-lookback:] for row in rows])
        return [
            row[-1] in end_tokens or any(s in text for s in stop)
            for row, text in zip(rows, texts, strict=True)
        ]

    return are_over


def generate_one_by_one(
    model,
    tokenizer,
    cuts: list[Cut],
    instances: list[Instance],
    *,
    shards: Shards | None = None,
    what: str = "generation",
) -> list[list[Answer]]:
    """The same, one pruned model after another, by lm-eval's own HFLM; each of its batches is a part.

    Answers are written one by one where the generation configuration asks for more than greedy decoding: repetitions,
    beams and guidance depend on the padding and on the other prompts of a batch.
    """
    unusual = find_unusual_settings(model)
    words = ", ".join(unusual)
    problem = f"the model's generation_config has {words}, which lm-eval's HFLM or this model can't follow"
    advice = f"set {words} to None there"

    def run(cut: Cut, some: list[Instance]) -> list[str]:
        pruned = zero_sublayers(model, cut)
        with opening(pruned, tokenizer) as given:
            lm = HFLM(batch_size=1 if unusual else ROWS, **given)
        with as_input_error(problem, advice) if unusual else contextlib.nullcontext():
            texts = lm.generate_until(some, disable_tqdm=True)
        parts.update(len(some))
        return texts

    order = _sort_as_hflm(instances, tokenizer)
    size = LEAST_ROWS if unusual else ROWS
    answers = [[Answer("")] * len(instances) for _ in cuts]
    with ResumableProgress(
        shards, what, len(cuts) * len(instances), "answer", FIRST_WRITTEN
    ) as parts:
        for row, cut in zip(answers, cuts, strict=True):
            for first in range(0, len(order), size):
                numbers = order[first : first + size]
                some = [instances[number] for number in numbers]
                request = cut, [instance.args for instance in some]
                texts = parts.read_or_run(request, len(some), functools.partial(run, cut, some))
                for number, text in zip(numbers, texts, strict=True):
                    row[number] = Answer(text)
    return answers


def _sort_as_hflm(instances: list[Instance], tokenizer) -> list[int]:
    """The numbers of requests in the order in which HFLM batches them: by settings, then the longest prompts first."""
    groups: dict[str, list[int]] = {}
    for number, instance in enumerate(instances):
        groups.setdefault(repr(instance.args[1]), []).append(number)

    def rank(number: int) -> tuple[int, str]:
        text = instances[number].args[0]
        return -len(tokenizer.encode(text)), text

    order = []
    for numbers in groups.values():
        order += sorted(numbers, key=rank)
    return order


@dataclass
class LayerRun:
    """A layer, the part of it that runs, for which models, and their keys and values [lanes, heads, K, head width]."""

    layer: int
    part: str
    models: tuple[int, ...]
    buffers: list[torch.Tensor]


class BufferCache(PrefixCache):
    """The cache that a layer is given: the buffers of its LayerRun, written at `length` and read up to there."""

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
    """The prompts of a batch, run for all pruned models up to their last token, with which `write` begins."""

    @torch.inference_mode()
    def __init__(self, model: TreeModel, prompts: list[list[int]], max_tokens: int):
        self.network = model.network
        self.prompts = prompts
        self.max_tokens = max_tokens
        # places in a buffer before the first written token
        self.prompt_room = max(1, max(map(len, prompts)) - 1)
        self.all_models = tuple(range(len(model.cuts)))
        cache = self._read_prompts(model)
        self.layer_runs = []
        for layer, level in enumerate(model.tree.levels):
            for part in dict.fromkeys(node.part for node in level):
                leaves = {}
                for node in level:
                    if node.part == part:
                        leaves |= dict.fromkeys(node.cuts, node.leaves)
                pairs = zip(*(cache.kept[residual] for residual in leaves.values()), strict=True)
                buffers = [
                    functional.pad(torch.cat(tensors), (0, 0, 0, max_tokens)) for tensors in pairs
                ]
                self.layer_runs.append(LayerRun(layer, part, tuple(leaves), buffers))
        lanes = torch.arange(len(model.cuts) * len(prompts), device=self.network.device).view(
            -1, len(prompts)
        )
        groups = {self.all_models, *(run.models for run in self.layer_runs)}
        # numbers of the unfinished lanes
        self.rows = {models: lanes[list(models)].flatten() for models in groups}

    def _read_prompts(self, model: TreeModel) -> PrefixCache:
        """Keys and values of the prompts; a prefix that they share runs once."""
        rows = [tuple(prompt[:-1]) or (0,) for prompt in self.prompts]
        prefix = os.path.commonprefix(rows)[: min(map(len, rows)) - 1]
        is_shared = len(prefix) >= SHARED_TOKENS and len(rows) > 1
        (forward,) = model.run(
            [Batch(prefix if is_shared else (), tuple(map(Sequence, rows)))], keeps=True
        )
        return forward.cache

    @torch.inference_mode()
    def write(
        self,
        are_over: AreFinished,
        progress: Callable[[int, int], object] = lambda answers, token: None,
    ) -> list:
        """The new tokens [C][B] of each prompt under each cut.

        `are_over` tells which answers are finished, from their new tokens. `progress` is called with the number of
        answers that just finished, and of tokens written in each lane.
        """
        device = self.network.device
        cuts = len(self.all_models)
        new_tokens: list[list[int]] = [[] for _ in self.prompts * cuts]
        tokens = torch.tensor([prompt[-1] for prompt in self.prompts] * cuts, device=device)
        lengths = torch.tensor([[len(prompt) - 1] for prompt in self.prompts] * cuts, device=device)
        answers = new_tokens  # those that are unfinished
        for written in range(self.max_tokens):
            tokens = self._next_tokens(written, tokens, lengths)
            # the one wait for a card, a token
            for answer, token in zip(answers, tokens.tolist(), strict=True):
                answer.append(token)
            finished = are_over(answers)
            progress(sum(finished), written + 1)
            if all(finished):
                break
            if any(finished):
                unfinished = ~torch.tensor(finished, device=device)
                self._keep_lanes(unfinished)
                tokens = tokens[unfinished]
                lengths = lengths[unfinished]
                answers = [
                    answer for answer, is_finished in zip(answers, finished) if not is_finished
                ]
        else:
            progress(len(answers), self.max_tokens)
        return [
            new_tokens[first : first + len(self.prompts)]
            for first in range(0, len(new_tokens), len(self.prompts))
        ]

    def _next_tokens(
        self, written: int, tokens: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """[lanes] the next token of each lane, after its last token and `written` tokens before."""
        network = self.network
        cache = BufferCache(self.prompt_room + written)
        device = tokens.device
        held_places = torch.arange(self.prompt_room, device=device).expand(len(tokens), -1)
        places = torch.cat([held_places, lengths + torch.arange(written + 1, device=device)], dim=1)
        is_real = torch.cat(
            [
                held_places < lengths,
                torch.ones_like(places[:, self.prompt_room :], dtype=torch.bool),
            ],
            dim=1,
        )

        def find_inputs(rows: torch.Tensor) -> LayerInputs:
            """The layers' arguments for some lanes."""
            positions = places[rows, -1:]
            masks = attention_masks(network, positions, places[rows], is_real[rows, None])
            options = {
                "position_ids": positions,
                "attention_mask": masks,
                network.cache_argument: cache,
            }
            return network.layer_inputs(tokens[rows, None], use_cache=True, **options)

        inputs = {models: find_inputs(rows) for models, rows in self.rows.items() if len(rows)}
        residuals = inputs[self.all_models].residual.clone()  # [lanes, 1, D]
        for layer, run in zip(
            network.load_in_turn([run.layer for run in self.layer_runs]), self.layer_runs
        ):
            if run.models in inputs:
                cache.buffers = run.buffers
                rows = self.rows[run.models]
                module = network.layers[layer]
                with running_only(module, run.part):
                    output = inputs[run.models].calls[layer](
                        module, residuals[rows].to(network.layer_devices[layer])
                    )
                residuals[rows] = output.to(residuals.device)
        return torch.cat(
            [logits.argmax(dim=-1) for logits in logits_in_parts(network, residuals[..., 0, :])]
        )

    def _keep_lanes(self, kept: torch.Tensor) -> None:
        """Drop finished lanes: only those where `kept` [lanes] is true go on."""
        # places, as at each index by truths a card is waited for
        places = {models: kept[rows].nonzero()[:, 0] for models, rows in self.rows.items()}
        for run in self.layer_runs:
            run.buffers = [buffer[places[run.models].to(buffer.device)] for buffer in run.buffers]
        new_rows = kept.cumsum(0) - 1
        self.rows = {models: new_rows[rows[places[models]]] for models, rows in self.rows.items()}
