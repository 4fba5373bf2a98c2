"""Greedy answers of a whole family of pruned models to lm-eval's generate_until requests.

lm-eval's HFLM cuts prompts, names stop strings and trims answers; only the tokens in between come from here, of all
pruned models together (decoding.py).

Letters in shapes: B rows of a batch, T tokens.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

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
from deeper_layers.sweeping.memory import in_halves, naming_what_ran_out
from deeper_layers.sweeping.planning import MEMORY, common_beginning
from deeper_layers.sweeping.pruned_family import PrunedFamily

ROWS = (32, 24, 16, 12, 8, 6, 4, 3, 2, 1)  # of a batch, the first that fit into memory
LEAST_ROWS = 8  # of a batch, rather than which fewer models are run together
FIRST_SHARD = 500_000  # those of log-likelihoods are numbered from 0
# entries of a generation configuration that greedy decoding follows here, or has no use for
FOLLOWED = {
    "bos_token_id", "eos_token_id", "pad_token_id", "temperature", "top_k", "top_p", "use_cache", "max_length",
    "max_new_tokens", "do_sample", "transformers_version", "_from_model_config",
}  # fmt: skip


@dataclass
class Call:
    """What HFLM asks a model to generate at once."""

    prompts: torch.Tensor  # [B, T], padded on the left
    mask: torch.Tensor  # [B, T], 1 where there is a prompt
    most: int  # tokens to generate at most
    stop: list[str]
    greedy: bool

    @property
    def rows(self) -> list[list[int]]:
        return [ids[mask.bool()].tolist() for ids, mask in zip(self.prompts, self.mask, strict=True)]


def generate(
    family: PrunedFamily,
    tokenizer,
    instances: list[Instance],
    *,
    memory: int = MEMORY,
    shards: Shards | None = None,
    what: str = "generation",
) -> list[list[str]]:
    """For each cut of a family the text of each answer, as lm-eval's HFLM gives it for the pruned model.

    `memory` bounds the bytes taken beside the weights. Where a task samples, a model's generation configuration
    asks for more than greedy decoding, or a model takes no mask of ours, HFLM itself generates.
    """
    if not instances:
        return [[] for _ in family.cuts]
    model, cuts = family.whole.model, family.cuts
    prompts = _HFLM(model, tokenizer, 1)
    prompts.generate_until(instances, disable_tqdm=True)
    asked, most = [row for call in prompts.calls for row in call.rows], max(call.most for call in prompts.calls)
    longest, shared = max(map(len, asked)), common_beginning(asked)
    needed = lambda cuts, rows: family.bytes_to_write(cuts, rows, longest, shared, most)  # noqa: E731
    groups = list(groups_within(cuts, lambda cuts: needed(cuts, LEAST_ROWS), memory))
    fitting = (rows for rows in ROWS if max(needed(cuts, rows) for cuts in groups) <= memory)
    batches = -(-len(asked) // next(fitting, ROWS[-1]))
    rows, groups = -(-len(asked) // batches), [family.part(cuts) for cuts in groups]  # batches of one size
    prompts = _HFLM(model, tokenizer, rows)
    prompts.generate_until(instances, disable_tqdm=True)
    own = family.can.branch and _is_greedy(model) and all(call.greedy for call in prompts.calls)
    texts, answers = [], []
    with tqdm(total=len(cuts) * len(instances), desc=what, unit="answer", mininterval=5, file=sys.stderr) as bar:
        if own:
            answers = [_answers(groups, tokenizer, call, shards, n, bar) for n, call in enumerate(prompts.calls)]
        for number, cut in enumerate(cuts):
            lm = _HFLM(model if own else silence_sublayers(model, cut), tokenizer, rows)
            lm.answers = [answer[number] for answer in answers] if own else None
            lm.generates = not own
            texts.append(lm.generate_until(instances, disable_tqdm=True))
            bar.update(0 if own else len(instances))
    return texts


class _HFLM(HFLM):
    """HFLM, which keeps what it asks of the model, and takes answers that are there."""

    def __init__(self, model, tokenizer, rows: int):
        with quiet():  # one a pruned model, and each would say that its model is open already
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=rows)
        self.calls: list[Call] = []
        self.answers: list[list[list[int]]] | None = None
        self.generates = False

    def _model_generate(self, context, max_length, stop, **options):
        if self.generates:
            return super()._model_generate(context, max_length, stop, **options)
        greedy = not options.get("do_sample") and not set(options) - {"do_sample", "temperature", "attention_mask"}
        call = Call(context, options["attention_mask"], max_length - context.shape[1], list(stop), greedy)
        self.calls.append(call)
        if self.answers is None:
            return context
        found = self.answers[len(self.calls) - 1]
        width = max(map(len, found))
        filled = [tokens + [self.tokenizer.pad_token_id] * (width - len(tokens)) for tokens in found]
        return torch.cat([context, torch.tensor(filled, dtype=context.dtype, device=context.device)], dim=1)


def _answers(groups: list[PrunedFamily], tokenizer, call: Call, shards: Shards | None, number: int, bar) -> list:
    """For each cut the new tokens of each row of a call: from shards where they are there, else generated."""
    rows = call.rows
    asked = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    count, place, answers = sum(len(group.cuts) for group in groups), itertools.count(), []
    for group in groups:
        found: dict[Cut, dict] = {}
        shard_of = {cut: FIRST_SHARD + number * count + next(place) for cut in group.cuts}
        for cut, shard in shard_of.items():
            kept = _kept(shards, shard, asked, cut, len(rows))
            if kept is not None:
                found[cut] = kept
                skip(bar, len(rows))
        if missing := [cut for cut in group.cuts if cut not in found]:
            progress = lambda answers: bar.update(min(answers, bar.total - bar.n))  # noqa: E731
            is_over = _IsOver(group.whole.model, tokenizer, call.stop)
            written = _written(group.part(missing), rows, call.most, is_over, progress)
            for cut, tokens in zip(missing, written, strict=True):
                lengths = np.array([len(row) for row in tokens])
                found[cut] = {
                    "tokens": np.array([t for row in tokens for t in row], dtype=np.int32),
                    "lengths": lengths,
                }
                if shards:
                    shards.put(shard_of[cut], found[cut] | _of_call(asked, cut))
        for cut in group.cuts:
            parts = np.split(found[cut]["tokens"], np.cumsum(found[cut]["lengths"])[:-1])
            answers.append([part.astype(int).tolist() for part in parts])
    return answers


def _written(family: PrunedFamily, rows: list[list[int]], most: int, is_over, finished) -> list[list[list[int]]]:
    """For each cut the new tokens of each row; in halves of rows, then of cuts, where memory runs out."""

    def of_cuts(cuts: list[Cut]) -> list:
        part = family.part(cuts)
        halves = in_halves(lambda some: Decoding(part, some, most).write(is_over, finished), rows)
        return [list(itertools.chain(*of_cut)) for of_cut in zip(*halves, strict=True)]

    with naming_what_ran_out(max(map(len, rows))):
        return list(itertools.chain(*in_halves(of_cuts, family.cuts)))


def _of_call(asked: str, cut: Cut) -> dict:
    return {"asked": np.array(asked), "cut": np.array(repr(cut))}


def _kept(shards: Shards | None, shard: int, asked: str, cut: Cut, rows: int) -> dict | None:
    like = {"tokens": (np.int32, (None,)), "lengths": (int, (rows,))}
    kept = shards.get(shard, _of_call(asked, cut), like) if shards else None
    if kept is None or kept["lengths"].min() < 0 or kept["lengths"].sum() != len(kept["tokens"]):
        return None
    return kept


class _IsOver:
    """Whether an answer is finished: an end-of-sequence token, or a stop string among the last tokens."""

    def __init__(self, model, tokenizer, stop: list[str]):
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
