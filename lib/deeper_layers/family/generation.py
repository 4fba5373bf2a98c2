"""Greedy answers of a whole family of pruned models to lm-eval's generate_until requests.

lm-eval's HFLM cuts prompts, names stop strings and trims answers; only the tokens in between come from here.
The prompts of a batch run once through the whole model, and above each cut once more; from there each pruned
model decodes by itself, and a row that is finished leaves its batch.

Letters in shapes: B rows of a batch, K keys.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import DynamicCache

from deeper_layers.family.network import Network, attention_masks
from deeper_layers.family.planning import BATCH_TOKENS, MEMORY, SHARED_TOKENS, common_beginning
from deeper_layers.family.pruned_family import PrunedFamily
from deeper_layers.pruning import drop_layers
from deeper_layers.results.shards import Shards, skip

BATCH_ROWS = 32
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

    `memory` bounds the bytes of residuals, keys and values. Where a task samples, a model's generation configuration
    asks for more than greedy decoding, or a model takes no mask of ours, HFLM itself generates.
    """
    if not instances:
        return [[] for _ in family.cuts]
    model, cuts = family.whole.model, family.cuts
    prompts = _HFLM(model, tokenizer, 1)
    prompts.generate_until(instances, disable_tqdm=True)
    longest = max(call.prompts.shape[1] + call.most for call in prompts.calls)
    rows = int(max(1, min(BATCH_ROWS, memory // (longest * family.bytes_of_a_prompt_token))))
    prompts = _HFLM(model, tokenizer, rows)
    prompts.generate_until(instances, disable_tqdm=True)
    own = family.can.branch and _is_greedy(model) and all(call.greedy for call in prompts.calls)
    texts, answers = [], []
    with tqdm(total=len(cuts) * len(instances), desc=what, unit="answer", mininterval=5, file=sys.stderr) as bar:
        if own:
            answers = [_answers(family, tokenizer, call, shards, n, bar) for n, call in enumerate(prompts.calls)]
        for number, cut in enumerate(cuts):
            lm = _HFLM(model if own else drop_layers(model, cut), tokenizer, rows)
            lm.answers = [answer[number] for answer in answers] if own else None
            lm.generates = not own
            texts.append(lm.generate_until(instances, disable_tqdm=True))
            bar.update(0 if own else len(instances))
    return texts


class _HFLM(HFLM):
    """HFLM, which keeps what it asks of the model, and takes answers that are there."""

    def __init__(self, model, tokenizer, rows: int):
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


def _answers(family: PrunedFamily, tokenizer, call: Call, shards: Shards | None, number: int, bar) -> list:
    """For each cut the new tokens of each row of a call: from shards where they are there, else generated."""
    rows = call.rows
    asked = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    found: list = []
    prompts = None
    for i, cut in enumerate(family.cuts):
        shard = FIRST_SHARD + number * len(family.cuts) + i
        of_call = {"asked": np.array(asked), "cut": np.array([cut.start, cut.size])}
        like = {"tokens": (np.int32, (None,)), "lengths": (int, (len(rows),))}
        kept = shards.get(shard, of_call, like) if shards else None
        if kept is None or kept["lengths"].min() < 0 or kept["lengths"].sum() != len(kept["tokens"]):
            prompts = prompts or Prompts(family, rows, call.most)
            tokens = prompts.decode(i, _IsOver(family.whole.model, tokenizer, call.stop))
            lengths = np.array([len(row) for row in tokens])
            kept = {"tokens": np.array([t for row in tokens for t in row], dtype=np.int32), "lengths": lengths}
            if shards:
                shards.put(shard, kept | of_call)
            bar.update(len(rows))
        else:
            skip(bar, len(rows))
        parts = np.split(kept["tokens"], np.cumsum(kept["lengths"])[:-1])
        found.append([part.astype(int).tolist() for part in parts])
    return found


class Prompts:
    """The prompts of a batch, run once for a whole family; all tokens but the last, which decoding begins with.

    A row that is finished changes places with the last one that is not, here and in every buffer.
    """

    @torch.inference_mode()
    def __init__(self, family: PrunedFamily, rows: list[list[int]], most: int):
        self.family, self.rows, self.most, self.order = family, list(rows), most, list(range(len(rows)))
        shared = common_beginning(rows) if len(rows) > 1 else 0
        shared = shared if shared >= SHARED_TOKENS and family.can.share else 0
        self.shared = min(shared, *(len(row) - 1 for row in rows)) if shared else 0
        width = max(1, max(map(len, rows)) - 1 - self.shared)
        self.ids = torch.zeros(len(rows), width, dtype=torch.long, device=family.device)
        for i, row in enumerate(rows):
            rest = row[self.shared : -1]
            self.ids[i, : len(rest)] = torch.tensor(rest, dtype=torch.long)
        self.start = self.shared + width
        whole, self.beginnings = family.remember(tuple(rows[0][: self.shared]))
        self.residuals: dict[int, torch.Tensor] = {}
        self.whole = self._filled(family.whole, whole, record=True)

    def _filled(self, network: Network, beginning, residual=None, record=False) -> "Growing":
        """Keys and values of the prompts, a few rows at a time."""
        cache = Growing(len(self.rows), self.start + self.most, beginning)
        step = max(1, BATCH_TOKENS // self.ids.shape[1])
        for first in range(0, len(self.rows), step):
            cache.at = slice(first, min(first + step, len(self.rows)))
            with network.recording(set(self.family.entry) if record else set()) as found:
                network.remember(self.ids[cache.at], None if residual is None else residual[cache.at], cache)
            for entry, part in found.items():
                if first == 0:
                    self.residuals[entry] = part.new_empty(len(self.rows), *part.shape[1:])
                self.residuals[entry][cache.at] = part
        cache.position = self.start
        return cache

    @torch.inference_mode()
    def decode(self, number: int, is_over: Callable[[list[list[int]]], list[bool]]) -> list[list[int]]:
        """The new tokens of each row under cut `number`; `is_over` says of some rows' new tokens which are finished."""
        network, cache = self._pruned(number)
        device = self.family.device
        lengths = torch.tensor([[len(row) - 1] for row in self.rows], device=device)
        # of every key that there will be: its place in the sequence, and whether it is one or padding
        before = torch.arange(self.start, device=device).expand(len(self.rows), self.start)
        after = lengths + torch.arange(self.most, device=device)
        places = torch.cat([before, after], dim=1)
        real = torch.cat([before < lengths, after >= 0], dim=1)
        tokens = torch.tensor([row[-1] for row in self.rows], device=device)
        new: list[list[int]] = [[] for _ in self.rows]
        going = len(self.rows)
        for keys in range(self.start + 1, self.start + self.most + 1):
            cache.at, cache.position = slice(0, going), keys - 1
            positions, known = places[:going, keys - 1 : keys], places[:going, :keys]
            masks = attention_masks(network.model.config, positions, known, real[:going, None, :keys], network.dtype)
            options = {"position_ids": positions, "attention_mask": masks, network.cache_argument: cache}
            logits = network.model(input_ids=tokens[:going, None], use_cache=True, **options).logits
            tokens[:going] = logits[:, -1].argmax(dim=-1)
            for place, token in enumerate(tokens[:going].tolist()):
                new[self.order[place]].append(token)
            over = is_over([new[self.order[place]] for place in range(going)])
            for place in reversed([place for place, finished in enumerate(over) if finished]):
                going -= 1
                self._swap(place, going, cache, tokens, places, real)
            if going == 0:
                break
        return new

    def _pruned(self, number: int) -> tuple[Network, "Growing"]:
        """The pruned model of a cut, and a cache that holds the prompts: below the cut that of the whole model."""
        family, cut, entry = self.family, self.family.cuts[number], self.family.entry[number]
        cache = Growing(len(self.rows), self.start + self.most)
        if cut.size == 0:
            cache.buffers = self.whole.buffers
            return family.whole, cache
        upper = self._filled(family.tails[number], self.beginnings[number], self.residuals[entry])
        cache.buffers = [*self.whole.buffers[:entry], *upper.buffers]
        return Network(drop_layers(family.whole.model, cut)), cache

    def _swap(self, one: int, other: int, cache: "Growing", *tensors: torch.Tensor) -> None:
        """Let two rows change places: here, in what is kept for other cuts, and in what one cut's decoding needs."""
        if one == other:
            return
        for rows in (self.rows, self.order):
            rows[one], rows[other] = rows[other], rows[one]
        buffers = {id(t): t for pair in self.whole.buffers + cache.buffers for t in pair}
        for tensor in (self.ids, *self.residuals.values(), *buffers.values(), *tensors):
            tensor[[one, other]] = tensor[[other, one]]


class Growing(DynamicCache):
    """Keys and values with room for what is added: nothing is copied at a step.

    A pass writes at `position`, into the rows `at`, and sees what these rows hold up to there.
    """

    def __init__(self, rows: int, width: int, beginning: DynamicCache | None = None):
        super().__init__()
        self.count, self.width, self.at, self.position = rows, width, slice(0, rows), 0
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        for index, layer in enumerate(beginning.layers if beginning is not None else ()):
            self.update(layer.keys, layer.values, index)
        self.position = beginning.get_seq_length() if beginning is not None else 0

    def update(self, key_states, value_states, layer_idx, *_, **__):
        if layer_idx == len(self.buffers):
            shapes = [(self.count, t.shape[1], self.width, t.shape[3]) for t in (key_states, value_states)]
            self.buffers.append(tuple(key_states.new_empty(shape) for shape in shapes))
        last = self.position + key_states.shape[-2]
        keys, values = self.buffers[layer_idx]
        keys[self.at, :, self.position : last] = key_states
        values[self.at, :, self.position : last] = value_states
        return keys[self.at, :, :last], values[self.at, :, :last]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.position

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.position + query_length, 0


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
