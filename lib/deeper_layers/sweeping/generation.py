"""Greedy answers of all pruned models of a tree to lm-eval's generate_until requests.

lm-eval's HFLM cuts prompts, names stop strings and trims answers; only the tokens in between come from here, of all
pruned models together (decoding.py).
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from deeper_layers.cuts import Cut
from deeper_layers.models.streaming import groups_within
from deeper_layers.pruning import silence_sublayers
from deeper_layers.results.shards import Shards, skip
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.memory import run_in_halves, run_in_room
from deeper_layers.sweeping.planning import MEMORY
from deeper_layers.sweeping.tree_model import TreeModel

ROWS = (32, 24, 16, 12, 8, 6, 4, 3, 2, 1)  # of a batch, the first that fit into memory
LEAST_ROWS = 8  # of a batch, rather than which fewer models are run together
FIRST_SHARD = 500_000  # those of log-likelihoods are numbered from 0
# entries of a generation configuration that greedy decoding follows here, or has no use for
FOLLOWED = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "temperature",
    "top_k",
    "top_p",
    "use_cache",
    "max_length",
    "max_new_tokens",
    "do_sample",
    "transformers_version",
    "_from_model_config",
}


class Answer(NamedTuple):
    """What a pruned model wrote to a prompt; of what another engine wrote nothing but the text is known."""

    text: str
    tokens: int | None = None  # how many, with the one that ended it
    ended: bool | None = None  # by itself; False: cut off at the most tokens that the task allows


@dataclass
class Prompt:
    """What HFLM asks a model to go on with."""

    tokens: list[int]
    most: int  # tokens to generate at most
    stop: tuple[str, ...]
    greedy: bool


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
    whole, found = model.network.model, []
    if not instances:
        return [[] for _ in model.cuts]
    asking = _HFLM(whole, tokenizer)
    asking.generate_until(instances, disable_tqdm=True)
    prompts = asking.prompts
    ours = model.can.branch and _is_greedy(whole) and all(prompt.greedy for prompt in prompts)
    with tqdm(total=len(model.cuts) * len(instances), desc=what, unit="answer", mininterval=5, file=sys.stderr) as bar:
        answers = _answer(model, tokenizer, prompts, memory, shards, bar) if ours else {}
        for cut in model.cuts:
            lengths: list[tuple] = [(None, None)] * len(instances)
            if ours:
                lm = _HFLM(whole, tokenizer, [tokens for tokens, _ in answers[cut]])
                lengths = [(len(tokens), ended) for tokens, ended in answers[cut]]
            else:
                with quiet():
                    lm = HFLM(pretrained=silence_sublayers(whole, cut), tokenizer=tokenizer, batch_size=ROWS[0])
            texts = lm.generate_until(instances, disable_tqdm=True)
            found.append([Answer(text, *length) for text, length in zip(texts, lengths, strict=True)])
            bar.update(0 if ours else len(instances))
    return found


class _HFLM(HFLM):
    """HFLM, which keeps what it asks of the model, a prompt at a time, and takes answers that are there."""

    def __init__(self, model, tokenizer, answers: list[list[int]] | None = None):
        with quiet():  # one a pruned model, and each would say that its model is open already
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self.prompts: list[Prompt] = []
        self.answers = None if answers is None else iter(answers)

    def _model_generate(self, context, max_length, stop, **options):
        if self.answers is not None:
            answer = torch.tensor([next(self.answers)], dtype=context.dtype, device=context.device)
            return torch.cat([context, answer], dim=1)
        greedy = not options.get("do_sample") and not set(options) - {"do_sample", "temperature", "attention_mask"}
        tokens = context[0][options["attention_mask"][0].bool()].tolist()
        self.prompts.append(Prompt(tokens, max_length - context.shape[1], tuple(stop), greedy))
        return context


def _answer(
    model: TreeModel, tokenizer, prompts: list[Prompt], memory: int, shards: Shards | None, bar: tqdm
) -> dict[Cut, list[tuple[list[int], bool]]]:
    """For each cut the new tokens of each prompt, and whether they ended: from shards where they are, else written."""
    longest, most = max(len(prompt.tokens) for prompt in prompts), max(prompt.most for prompt in prompts)

    def needed(cuts: list[Cut], rows: int) -> int:
        return model.estimate.writing(model.tree_of(cuts), rows, longest, most)

    least = min(LEAST_ROWS, len(prompts))
    groups = list(groups_within(model.cuts, lambda cuts: needed(cuts, least), memory))
    rows = next((rows for rows in ROWS if max(needed(cuts, rows) for cuts in groups) <= memory), 1)
    rows = -(-len(prompts) // -(-len(prompts) // rows))  # batches of one size
    batches = []
    for _, alike in itertools.groupby(prompts, key=lambda prompt: (prompt.most, prompt.stop)):
        of_kind = list(alike)
        batches += [of_kind[first : first + rows] for first in range(0, len(of_kind), rows)]
    answers: dict[Cut, list[tuple[list[int], bool]]] = {cut: [] for cut in model.cuts}
    for number, (batch, group) in enumerate(itertools.product(batches, groups), start=FIRST_SHARD):
        asked, is_over = [prompt.tokens for prompt in batch], _IsOver(model.network.model, tokenizer, batch[0].stop)
        same = {
            "asked": np.array(hashlib.sha256(json.dumps(asked).encode()).hexdigest()),
            "cuts": np.array([repr(cut) for cut in group]),
        }
        like = {"tokens": (np.int32, (None,)), "lengths": (int, (len(group), len(batch)))}
        kept = shards.get(number, same, like) if shards else None
        if kept is not None and kept["lengths"].min() >= 0 and kept["lengths"].sum() == len(kept["tokens"]):
            skip(bar, kept["lengths"].size)
        else:
            finished = lambda answers: bar.update(min(answers, bar.total - bar.n))  # noqa: E731
            written = _write(model.part(group), asked, batch[0].most, is_over, finished)
            flat = [token for of_cut in written for row in of_cut for token in row]
            lengths = np.array([[len(row) for row in of_cut] for of_cut in written])
            kept = same | {"tokens": np.array(flat, dtype=np.int32), "lengths": lengths}
            if shards:
                shards.put(number, kept)
        parts = [part.tolist() for part in np.split(kept["tokens"].astype(int), np.cumsum(kept["lengths"])[:-1])]
        ended = is_over(parts)
        for place, cut in enumerate(group):
            of_cut = slice(place * len(batch), (place + 1) * len(batch))
            answers[cut] += zip(parts[of_cut], ended[of_cut], strict=True)
    return answers


def _write(
    model: TreeModel, prompts: list[list[int]], most: int, is_over: Callable, finished: Callable
) -> list[list[list[int]]]:
    """For each cut the new tokens of each prompt; in halves of prompts, then of cuts, where memory runs out."""

    def of_cuts(cuts: list[Cut]) -> list:
        part = model.part(cuts)
        halves = run_in_halves(lambda some: Decoding(part, some, most).write(is_over, finished), prompts)
        return [list(itertools.chain(*of_cut)) for of_cut in zip(*halves, strict=True)]

    return list(itertools.chain(*run_in_room(of_cuts, model.cuts, max(map(len, prompts)))))


class _IsOver:
    """Whether an answer is finished: an end-of-sequence token, or a stop string among the last tokens."""

    def __init__(self, model, tokenizer, stop: tuple[str, ...]):
        ends = model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.tokenizer, self.stop = tokenizer, [s for s in stop if s]
        # two more than it takes to write one, since a string has several tokenizations: so far HFLM looks back
        self.back = 2 + max((len(tokenizer.encode(s, add_special_tokens=False)) for s in self.stop), default=0)

    def __call__(self, rows: list[list[int]]) -> list[bool]:
        texts = self.tokenizer.batch_decode([row[-self.back :] for row in rows])
        found = [any(s in text for s in self.stop) for text in texts]
        return [row[-1] in self.ends or stopped for row, stopped in zip(rows, found, strict=True)]


def _is_greedy(model) -> bool:
    """Whether the generation configuration asks for nothing that plain greedy decoding would not do."""
    asked = {name for name, value in model.generation_config.to_diff_dict().items() if value not in (None, False)}
    return asked <= FOLLOWED


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval comments at length on what is meant here: a model that is already open, requests built once.

    Its progress bars go too: they count requests built, not the work, and there is one a task and cut.
    """
    names = ("lm_eval", "lm-eval", "datasets")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
