"""Greedy answers of all pruned models of a tree to lm-eval's generate_until requests.

lm-eval's HFLM cuts prompts, names stop strings and trims answers; only the tokens in between come from here, of all
pruned models together (decoding.py).
"""

import contextlib
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
from deeper_layers.pruning import silence_sublayers
from deeper_layers.results.shards import Shards, skip
from deeper_layers.sweeping import vllm_engine
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.memory import run_in_halves
from deeper_layers.sweeping.planning import MEMORY, ROWS, hash_of
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers.sweeping.trial import Sharing

FIRST_SHARD = 500_000  # those of log-likelihoods are numbered from 0
# entries of a generation configuration that greedy decoding follows here, or has no use for
FOLLOWED = set(
    "bos_token_id eos_token_id pad_token_id temperature top_k top_p use_cache max_length max_new_tokens do_sample "
    "transformers_version _from_model_config".split()
)


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
    if not instances:
        return [[] for _ in model.cuts]
    whole, found = model.network.model, []
    asking = _HFLM(whole, tokenizer)
    asking.generate_until(instances, disable_tqdm=True)
    asked = {name for name, value in whole.generation_config.to_diff_dict().items() if value not in (None, False)}
    if model.sharing < Sharing.MASKS or asked - FOLLOWED or not all(prompt.greedy for prompt in asking.prompts):
        return generate_apart(whole, tokenizer, model.cuts, instances, shards=shards, what=what)
    # answers may take minutes to end, so that the bar shows the token that is written
    how = {"unit": "answer", "mininterval": 5, "miniters": 0, "file": sys.stderr}
    with tqdm(total=len(model.cuts) * len(instances), desc=what, **how) as bar:
        every = _write(model, tokenizer, asking.prompts, memory, shards, bar)
    for written in every.tolist():
        asking.answers = iter(tokens for tokens, _ in written)
        texts = asking.generate_until(instances, disable_tqdm=True)
        answers = zip(texts, written, strict=True)
        found.append([Answer(text, len(tokens), ended) for text, (tokens, ended) in answers])
    return found


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
    found = []
    for number, cut in enumerate(tqdm(cuts, desc=what, unit="pruned model", file=sys.stderr), start=FIRST_SHARD):
        same = {"asked": hash_of(engine, cut, [instance.args for instance in instances])}
        kept = shards.get(number, same) if shards else None
        if kept is None:
            pruned = silence_sublayers(model, cut)
            if engine:
                texts = vllm_engine.generate(pruned, tokenizer, instances)
            else:
                with quiet():
                    lm = HFLM(pretrained=pruned, tokenizer=tokenizer, batch_size=ROWS)
                texts = lm.generate_until(instances, disable_tqdm=True)
            kept = {"texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)}
            if shards:
                shards.put(number, kept | same)
        found.append([Answer(text) for text in json.loads(kept["texts"].tobytes())])
    return found


class _HFLM(HFLM):
    """HFLM, which keeps what it asks of the model, a prompt at a time, and takes `answers` that are there."""

    def __init__(self, model, tokenizer):
        with quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self.prompts: list[Prompt] = []
        self.answers: Iterator[list[int]] | None = None

    def _model_generate(self, context, max_length, stop, **options):
        if self.answers is not None:
            answer = torch.tensor([next(self.answers)], dtype=context.dtype, device=context.device)
            return torch.cat([context, answer], dim=1)
        greedy = not options.get("do_sample") and not set(options) - {"do_sample", "temperature", "attention_mask"}
        tokens = context[0][options["attention_mask"][0].bool()].tolist()
        self.prompts.append(Prompt(tokens, max_length - context.shape[1], tuple(stop), greedy))
        return context


def _write(
    model: TreeModel, tokenizer, prompts: list[Prompt], memory: int, shards: Shards | None, bar: tqdm
) -> np.ndarray:
    """[C, prompts] pairs: new tokens, and whether they ended; from shards where they are, else written."""
    numbers = itertools.count(FIRST_SHARD)

    def fits(some: list[Prompt], cuts: list[Cut]) -> bool:
        longest = max(len(prompt.tokens) for prompt in some)
        return model.estimate.writing(model.part(cuts).tree, len(some), longest, some[0].most) <= memory

    def write(some: list[Prompt], cuts: list[Cut]) -> np.ndarray:
        asked, shape, number = [prompt.tokens for prompt in some], (len(cuts), len(some)), next(numbers)
        same = {"asked": hash_of(cuts, asked)}
        is_over = _end_of_answers(model.network.model, tokenizer, some[0].stop)
        kept = shards.get(number, same) if shards else None
        if kept is not None:
            skip(bar, kept["lengths"].size)
        else:
            places = itertools.count(1)

            def progress(answers: int) -> None:
                bar.set_postfix_str(f"token {min(next(places), some[0].most)} of at most {some[0].most}", refresh=False)
                bar.update(min(answers, bar.total - bar.n))

            rows = Decoding(model.part(cuts), asked, some[0].most).write(is_over, progress)
            flat = list(itertools.chain.from_iterable(rows.flat))
            kept = {"tokens": np.array(flat, dtype=np.int32), "lengths": np.vectorize(len)(rows)}
            if shards:
                shards.put(number, kept | same)
        rows = [row.tolist() for row in np.split(kept["tokens"].astype(int), np.cumsum(kept["lengths"])[:-1])]
        return np.fromiter(zip(rows, is_over(rows), strict=True), dtype=object).reshape(shape)

    batches = []
    for _, alike in itertools.groupby(prompts, key=lambda prompt: (prompt.most, prompt.stop)):
        of_kind = list(alike)
        rows = -(-len(of_kind) // -(-len(of_kind) // ROWS))  # batches of one size
        some = (of_kind[first : first + rows] for first in range(0, len(of_kind), rows))
        batches += [run_in_halves(write, batch, model.cuts, fits) for batch in some]
    return np.concatenate(batches, axis=1)


def _end_of_answers(model, tokenizer, stop: tuple[str, ...]) -> Callable[[list[list[int]]], list[bool]]:
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval comments at length on what is meant here: a model that is already open, requests built once.

    Its progress bars go too: they count requests built, not the work, and there is one a task and cut.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
