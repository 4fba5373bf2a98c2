"""A whole family of pruned models evaluated in one pass over the data.

Pruned models of one network differ only above their cut. So the whole model runs once and keeps the
residual entering the layers above each cut; each pruned model then runs only the layers it has there, from
that residual. For the simple heuristic that is one layer a model. Three savings more:

- a beginning that many requests share (the examples of a few-shot prompt) runs once for each cut, and its
  keys and values serve every request;
- requests that differ in nothing but their last token (the letters of a multiple choice) are one sequence;
- only positions that are scored go through the head.

The residual enters a pruned model through a hook on its first layer, so the model's own forward builds
masks, positions and everything else, in any family.

Letters in shapes: B sequences of a batch, T tokens, P tokens of the shared beginning, D width, V
vocabulary, C cuts, R requests.
"""

import contextlib
import copy
import inspect
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from tqdm import tqdm
from transformers import DynamicCache

from lib import evaluation
from lib.decoder import decoder_layers, num_layers
from lib.errors import InputError
from lib.models import Source
from lib.parameters import QuestionAnsweringParameters
from lib.planning import BATCH_TOKENS, Piece, plan_pieces
from lib.pruning import Cut, drop_layers
from lib.results import Shards, Unit, measure_or_load

VERSION = 1  # part of every unit's key: raise it when a change here changes numbers


def sweep(
    model,
    tokenizer,
    tasks: list[str],
    cuts: list[Cut],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    datasets: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    shards: Shards | None = None,
) -> pd.DataFrame:
    """Score every pruned model of a family on tasks of lm-eval.

    Parameters
    ----------
    tasks: names of lm-eval tasks or groups of type loglikelihood or multiple_choice, ours among them.
    cuts: the pruned models; `Cut(0, 0)` is the whole model.
    limit: documents a task, from its beginning; None for all.
    num_fewshot: examples in the prompt; None for the task's own number.
    datasets: a local mirror of the hub (see `lib.corpora`).
    batch_tokens: tokens in one batch, padding included.
    shards: where finished parts are kept, so that an interrupted sweep goes on.

    Returns one row for each task, metric and cut: task, metric, start, size, value, stderr, items. Its `attrs`
    hold "outcomes" (cut "start,size", then task: what came out item by item, packed) and "levels" (chance and
    majority class a task).
    Raises InputError for unknown tasks, cuts that don't fit the model, a limit below 1.
    """
    for cut in cuts:
        cut.check(num_layers(model))
    evaluation.check_limit(limit)
    loaded = evaluation.load_tasks(tasks, num_fewshot=num_fewshot, datasets=datasets)
    asked = evaluation.collect_requests(loaded, model, tokenizer, limit=limit)
    logprobs, greedy = loglikelihoods(
        model, asked.contexts, asked.continuations, cuts,
        max_length=asked.max_length, batch_tokens=batch_tokens, shards=shards, what=" ".join(tasks),
    )  # fmt: skip
    frames, outcomes = [], {}
    for cut, cut_logprobs, cut_greedy in zip(cuts, logprobs, greedy, strict=True):
        rows, outcomes[f"{cut.start},{cut.size}"] = evaluation.score(asked, cut_logprobs, cut_greedy)
        rows.insert(2, "start", cut.start)
        rows.insert(3, "size", cut.size)
        frames.append(rows)
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"outcomes": outcomes, "levels": evaluation.reference_levels(asked)}
    return table


def sweep_unit(
    task: str, cuts_of: dict[str, list[Cut]], parameters: QuestionAnsweringParameters, source: Source, opened: Callable
) -> Unit:
    """One task under the cuts of some rules: read from results, else measured on the model that `opened()` returns.

    `cuts_of` holds the cuts of each rule; those that rules share are measured once.
    """
    cuts = sorted({cut for cuts in cuts_of.values() for cut in cuts})
    key = {
        "model": source.key,
        "dtype": source.dtype,
        **parameters.key,
        "task": task,
        "rule": ", ".join(cuts_of),
        "cuts": [[cut.start, cut.size] for cut in cuts],
        "limit": parameters.limit,
        "num_fewshot": parameters.num_fewshot,
        "data": evaluation.data_fingerprint(task, parameters.datasets),
        "version": VERSION,
    }

    def measure(shards):
        model, tokenizer = opened()
        table = sweep(
            model, tokenizer, [task], cuts,
            limit=parameters.limit, num_fewshot=parameters.num_fewshot, datasets=parameters.datasets, shards=shards,
        )  # fmt: skip
        return table, {**table.attrs, "num_layers": source.num_layers, "weights": source.quantized}

    return measure_or_load("sweep", task, key, measure, parameters.results_folder)


def loglikelihoods(
    model,
    contexts: list[list[int]],
    continuations: list[list[int]],
    cuts: list[Cut],
    *,
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    shards: Shards | None = None,
    what: str = "sweep",
) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
    """Log-probability (nats) of each continuation after its context under each pruned model, and whether it is greedy.

    The definition is that of lm-eval's HFLM: sequences longer than `max_length` lose tokens on the left.
    """
    pieces = plan_pieces(contexts, continuations, max_length, batch_tokens, _vocabulary(model))
    logprobs = np.full((len(cuts), len(contexts)), np.nan)
    greedy = np.zeros((len(cuts), len(contexts)), dtype=bool)
    family = PrunedFamily(model, cuts)
    total = sum(piece.tokens for piece in pieces) * family.layer_steps
    with tqdm(total=total, desc=what, unit="layer-step", unit_scale=True, mininterval=5, file=sys.stderr) as bar:
        for number, piece in enumerate(pieces):
            numbers = piece.requests
            found = shards.get(number) if shards else None
            if found is None or not np.array_equal(found["requests"], numbers):
                parts = family.run(piece, bar.update)
                found = {"requests": np.array(numbers), "logprobs": parts[0], "greedy": parts[1]}
                if shards:
                    shards.put(number, found)
            else:
                bar.update(piece.tokens * family.layer_steps)
            logprobs[:, numbers], greedy[:, numbers] = found["logprobs"], found["greedy"]
    return logprobs, greedy


class PrunedFamily:
    """A model and the pruned models made of its layers, ready to answer."""

    def __init__(self, model, cuts: list[Cut]):
        layers = num_layers(model)
        self.model, self.cuts = model, cuts
        # Where the residual enters: above the dropped block, or one layer below it where nothing lies above.
        self.entry = [cut.start if cut.stop < layers else max(cut.start - 1, 0) for cut in cuts]
        self.tails = [
            None if cut.size == 0 else _tail(model, cut, entry) for cut, entry in zip(cuts, self.entry, strict=True)
        ]
        # layers that one token passes: the whole model, then each pruned one above its entry
        self.layer_steps = layers + sum(num_layers(tail) for tail in self.tails if tail is not None)
        self.progress: Callable[[int], object] = lambda steps: None
        self.device = model.get_input_embeddings().weight.device
        self.cache_argument = _cache_argument(model)

    def run(
        self, piece: Piece, progress: Callable[[int], object] = lambda steps: None
    ) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
        """Answers to the requests of a piece, in its order; `progress` is told of layer-steps as they are done."""
        self.progress = progress
        with torch.inference_mode():
            whole_cache, caches = self._run_shared(piece.shared)
            parts = [
                part
                for batch in piece.batches
                for part in self._run_with_room(batch, len(piece.shared), whole_cache, caches)
            ]
        return np.concatenate([p for p, _ in parts], axis=1), np.concatenate([g for _, g in parts], axis=1)

    def _run_shared(self, shared: tuple[int, ...]):
        """Keys and values of the shared beginning, for the whole model and for every pruned one."""
        if not shared:
            return None, [None] * len(self.cuts)
        ids = torch.tensor([shared], device=self.device)
        whole_cache = DynamicCache(config=self.model.config)
        with _recording(self.model, set(self.entry)) as residuals:
            self._decoder(self.model, ids, whole_cache)
        self.progress(len(shared) * self.layer_steps)
        caches = []
        for tail, entry in zip(self.tails, self.entry, strict=True):
            cache = None
            if tail is not None:
                cache = DynamicCache(config=tail.config)
                with _entering(tail, residuals[entry]):
                    self._decoder(tail, ids, cache)
            caches.append(cache)
        return whole_cache, caches

    def _run_with_room(self, batch, shared: int, whole_cache, caches) -> list:
        """A batch, or its two halves where memory runs out."""
        try:
            return [self._run_batch(batch, shared, whole_cache, caches)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error)
            if not out_of_memory:
                raise
            if len(batch) == 1:
                raise InputError(
                    f"out of memory on one sequence of {len(batch[0].tokens)} tokens: use a smaller model or "
                    "data type, fewer examples in the prompt, or a larger machine"
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return [
            part
            for rows in (batch[:half], batch[half:])
            for part in self._run_with_room(rows, shared, whole_cache, caches)
        ]

    def _run_batch(self, batch, shared: int, whole_cache, caches):
        width = max(len(s.tokens) for s in batch) - shared
        # Padding on the right needs no mask: under causal attention no scored token sees what follows it.
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        rows, places = [], []
        for i, s in enumerate(batch):
            length = len(s.tokens) - shared
            ids[i, :length] = torch.tensor(s.tokens[shared:])
            rows += [i] * s.scored
            places += range(length - s.scored, length)
        ids = ids.to(self.device)
        scored = torch.tensor(rows, device=self.device), torch.tensor(places, device=self.device)
        with _recording(self.model, set(self.entry)) as residuals:
            logits = self._logits(self.model, ids, scored, _expanded(whole_cache, len(batch)))
        tokens = sum(len(s.tokens) - shared for s in batch)
        self.progress(tokens * num_layers(self.model))
        answers = []
        whole = self._answers(batch, logits)
        for tail, entry, cache in zip(self.tails, self.entry, caches, strict=True):
            if tail is None:
                answers.append(whole)
                continue
            with _entering(tail, residuals[entry]):
                logits = self._logits(tail, ids, scored, _expanded(cache, len(batch)))
            answers.append(self._answers(batch, logits))
            self.progress(tokens * num_layers(tail))
        return np.stack([a[0] for a in answers]), np.stack([a[1] for a in answers])

    def _decoder(self, network, ids, cache) -> None:
        network.base_model(input_ids=ids, use_cache=True, **{self.cache_argument: cache})

    def _logits(self, network, ids, scored, cache):
        """[N, V] logits at the scored positions, through the model's own forward, so that scaling and caps apply."""

        def only_scored(_, arguments):
            (hidden,) = arguments
            return (hidden[scored[0], scored[1]].unsqueeze(0),)

        options = {"use_cache": False} if cache is None else {"use_cache": True, self.cache_argument: cache}
        handle = network.get_output_embeddings().register_forward_pre_hook(only_scored)
        try:
            return network(input_ids=ids, **options).logits[0]
        finally:
            handle.remove()

    def _answers(self, batch, logits) -> tuple[np.ndarray, np.ndarray]:
        """Per request of the batch: summed log-probability, and whether every token is the likeliest."""
        logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        likeliest = logits.argmax(dim=-1)
        sums, greedy, row = [], [], 0
        for s in batch:
            row += s.scored
            for _, continuation in s.requests:
                target = torch.tensor(continuation, device=logits.device)
                span = slice(row - len(continuation), row)
                sums.append(logprobs[span].gather(1, target[:, None]).sum())
                greedy.append((likeliest[span] == target).all())
        return torch.stack(sums).double().cpu().numpy(), torch.stack(greedy).cpu().numpy()


def _tail(model, cut: Cut, entry: int):
    """The pruned model without the layers below `entry`, whose residual is given to it."""
    pruned = drop_layers(model, cut)
    return drop_layers(pruned, Cut(0, entry)) if entry else pruned


@contextlib.contextmanager
def _recording(model, entries: set[int]) -> Iterator[dict[int, torch.Tensor]]:
    """The residual [B, T, D] entering each of these layers during a forward pass."""
    residuals: dict[int, torch.Tensor] = {}

    def keeper(index):
        def keep(_, arguments, named):
            residuals[index] = arguments[0] if arguments else named["hidden_states"]

        return keep

    layers = decoder_layers(model)
    handles = [layers[i].register_forward_pre_hook(keeper(i), with_kwargs=True) for i in entries]
    try:
        yield residuals
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _entering(model, residual: torch.Tensor) -> Iterator[None]:
    """During a forward pass, this residual enters the first layer, whatever the embedding gave."""

    def give(_, arguments, named):
        if arguments:
            return (residual, *arguments[1:]), named
        return arguments, named | {"hidden_states": residual}

    handle = decoder_layers(model)[0].register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _expanded(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A cache of one sequence, seen by `rows` sequences; updates make new tensors and leave the first alone."""
    if cache is None:
        return None
    expanded = copy.copy(cache)
    expanded.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in expanded.layers:
        layer.keys = layer.keys.expand(rows, *layer.keys.shape[1:])
        layer.values = layer.values.expand(rows, *layer.values.shape[1:])
    return expanded


def _cache_argument(model) -> str:
    """transformers 5.24 renamed `past_key_values` to `cache`."""
    names = inspect.signature(inspect.unwrap(type(model).forward)).parameters
    return "cache" if "cache" in names else "past_key_values"


def _vocabulary(model) -> int:
    return model.get_output_embeddings().weight.shape[0]
