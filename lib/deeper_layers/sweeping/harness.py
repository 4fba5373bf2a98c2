"""Collect the requests of lm-eval's tasks as tokens, and let lm-eval score the answers.

lm-eval owns prompts, few-shot samples, tokenization, filters, metrics and standard errors. Its requests are collected
once, and it scores one set of answers after another; sweeps.py computes these.
"""

import collections
import contextlib
import copy
import difflib
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import random
import statistics
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from deeper_layers import checks
from deeper_layers.data import corpora, embedded
from deeper_layers.errors import InputError
from deeper_layers.models.network import replacing
from deeper_layers.packing import pack, pack_halves
from deeper_layers.sweeping.planning import Requests

FEWSHOT_SEED = 1234  # lm-eval's own default
SCORED = ("loglikelihood", "multiple_choice")
GENERATED = "generate_until"


@dataclass
class Tasks:
    """Loaded tasks of lm-eval, and their requests."""

    loaded: dict
    instances: list[Instance]  # those that are scored by log-likelihoods ...
    requests: Requests  # ... in tokens
    generations: list[Instance]  # those that are answered with text
    limit: int | None
    items: dict[str, list[int]] | None = (
        None  # by task the numbers of its items, rising, in place of a limit
    )


class Answer(NamedTuple):
    """What a pruned model wrote to a prompt. Where HFLM itself wrote, only the text is known."""

    text: str
    tokens: int | None = None  # number of tokens, with the one that ended it
    ended: bool | None = (
        None  # True: it ended by itself; False: it was cut off at the task's limit of tokens
    )


class Prompt(NamedTuple):
    """A prompt that HFLM gives to a model, and how to go on."""

    most: int  # tokens to generate at most
    stop: tuple[str, ...]
    tokens: list[int]
    greedy: bool


class RequestRecorder(HFLM):
    """lm-eval's HFLM without running a model: it records what HFLM would ask, and turns written tokens into text."""

    def __init__(self, model, tokenizer):
        with opening(model, tokenizer) as given:
            super().__init__(batch_size=1, **given)
        # choices of a question follow each other and share a context
        self.tok_encode = functools.lru_cache(maxsize=8)(self.tok_encode)

    def prompt(self, instance: Instance) -> Prompt:
        self.text(instance, [])
        return self.last_prompt

    def text(self, instance: Instance, answer: list[int]) -> str:
        """The text of the answer to an instance, from its tokens."""
        self.answer = answer
        return self.generate_until([instance], disable_tqdm=True)[0]

    def _loglikelihood_tokens(self, requests, **_):
        return [(list(context), list(continuation)) for _, context, continuation in requests]

    def _model_generate(self, context, max_length, stop, **options):
        greedy = not options.get("do_sample") and not set(options) - {
            "do_sample",
            "temperature",
            "attention_mask",
        }
        tokens = context[0][options["attention_mask"][0].bool()].tolist()
        self.last_prompt = Prompt(max_length - context.shape[1], tuple(stop), tokens, greedy)
        return torch.cat([context, context.new_tensor([self.answer])], dim=1)


class _AnsweredModel(LM):
    """A model whose answers are already stored in the requests."""

    def loglikelihood(self, requests):
        return [request.answer for request in requests]

    def generate_until(self, requests):
        return [request.answer.text for request in requests]

    loglikelihood_rolling = loglikelihood


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, lm-eval logs no warnings: it would comment on what is meant here, like a model that is already open. Its
    progress bars are hidden too: they count requests built, not the work, one bar for each task and cut."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def opening(model, tokenizer) -> Iterator[dict]:
    """Inside, lm-eval's HFLM opens a model and leaves it and its tokenizer as they are: HFLM would tie weights that
    were untied, and give a tokenizer without padding one. Yields HFLM's arguments."""
    if tokenizer.pad_token is None:
        tokenizer = copy.deepcopy(tokenizer)
    with quiet(), replacing(model, "tie_weights", lambda *_, **__: None):
        yield {"pretrained": model, "tokenizer": tokenizer}


@functools.cache
def _load_task_manager() -> TaskManager:
    return TaskManager(include_path=str(embedded.TASKS))


def load_tasks(
    names: list[str],
    *,
    num_fewshot: int | None = None,
    fewshot_order: int = 0,
    datasets: str | None = None,
) -> dict:
    """Load tasks, groups and tags of lm-eval by name, ours among them, as `lm_eval.evaluate` takes them.

    A `fewshot_order` other than 0 is the seed by which the examples of every prompt are shuffled.
    Raises InputError for an unknown name, a task that is scored in another way or runs code that the model writes, data
    that can't be read, and examples that a task does not have.
    """
    manager = check_names(names)
    if num_fewshot is not None:
        checks.check_whole_number("num_fewshot", num_fewshot, 0, checks.SHOTS)
    checks.check_whole_number("fewshot_order", fewshot_order, 0, checks.SEED)
    with quiet(), corpora.reading_from_mirror(datasets, ", ".join(names)):
        loaded = manager.load(list(names))
    for name, task in loaded["tasks"].items():
        _check_kind(name, task.OUTPUT_TYPE, getattr(task, "UNSAFE_CODE", False))
        own_fewshot = task.get_config("num_fewshot")
        # lm-eval would ask without examples, and only log that
        if num_fewshot and own_fewshot == 0:
            raise InputError(embedded.no_examples_message(name, num_fewshot))
        task.set_config(
            key="num_fewshot", value=(own_fewshot or 0) if num_fewshot is None else num_fewshot
        )
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        if fewshot_order and (sampler := getattr(task, "sampler", None)) is not None:
            sampler.sample = functools.partial(_sample_shuffled, sampler.sample, fewshot_order)
    return dict(loaded)


def _sample_shuffled(sample: Callable, seed: int, *arguments, **named) -> list:
    """Draw the examples and shuffle them: every prompt with as many examples has the same order."""
    examples = list(sample(*arguments, **named))
    random.Random(seed).shuffle(examples)
    return examples


def check_names(names: list[str]) -> TaskManager:
    """lm-eval's register of tasks, ours among them. Raises InputError for an unknown name or a kind not scored here.
    Reading lm-eval's own tasks takes seconds, so they are read only where a name is not one of ours. Reads no data."""
    if (
        isinstance(names, str)
        or not names
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise InputError(
            f"tasks is {checks.short_repr(names)}, expected a list of names like ['capitals']: give some"
        )
    if set(names) <= set(embedded.embedded_tasks()):
        return TaskManager(include_path=str(embedded.TASKS), include_defaults=False)
    manager = _load_task_manager()
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        similar = difflib.get_close_matches(unknown[0], manager.all_tasks)
        raise InputError(
            f"unknown task {', '.join(map(repr, unknown))}: give names that `lm-eval ls tasks` lists, or one of "
            f"{', '.join(embedded.embedded_tasks())}"
            + (f" (did you mean {', '.join(similar)}?)" if similar else "")
        )
    # tasks of a group, and those written in Python, are checked when they are loaded
    for name in names:
        entry = manager.task_index[name]
        if entry.kind.name == "TASK":
            _check_kind(
                name, entry.cfg.get("output_type", GENERATED), entry.cfg.get("unsafe_code", False)
            )
    return manager


def _check_kind(name: str, kind: str | None, unsafe_code: bool) -> None:
    """Raise InputError for a task that can't be scored here."""
    if unsafe_code:
        raise InputError(
            f"task {name!r} runs code that the model writes, which is never done here: choose another"
        )
    if kind not in (*SCORED, GENERATED):
        expected = f"{', '.join(SCORED)} or {GENERATED}"
        raise InputError(
            f"task {name!r} is of type {kind}, expected {expected}: choose another task"
        )


def collect_requests(
    loaded: dict,
    model,
    tokenizer,
    *,
    limit: int | None = None,
    items: dict[str, list[int]] | None = None,
) -> Tasks:
    """Collect every request of the tasks, tokenized as lm-eval's HFLM does it. `limit` is the number of documents a
    task, from its beginning; None takes all. `items` are those of each task instead: at least one, by rising numbers.
    Raises what `encode_requests` does."""
    kinds: dict[bool, list[Instance]] = {True: [], False: []}  # by whether answers are generated
    with quiet():
        for name, task in loaded["tasks"].items():
            samples = None if items is None else items[name]
            task.build_all_requests(limit=limit, samples=samples, rank=0, world_size=1)
            kinds[task.OUTPUT_TYPE == GENERATED] += task.instances
    return Tasks(
        loaded,
        kinds[False],
        encode_requests(kinds[False], model, tokenizer),
        kinds[True],
        limit,
        items,
    )


def encode_requests(instances: list[Instance], model, tokenizer) -> Requests:
    """Turn requests into tokens, as lm-eval's HFLM does. Raises InputError for an empty context or continuation, and
    for a continuation that is longer than the model reads."""
    recorder = RequestRecorder(model, tokenizer)
    with quiet():
        pairs = recorder.loglikelihood(instances)
        max_length = recorder.max_length
    for instance, (context, scored) in zip(instances, pairs, strict=True):
        if not context or not 1 <= len(scored) <= max_length:
            raise InputError(
                f"task {instance.task_name!r} has an answer of {len(scored)} tokens after {len(context)}, expected 1 "
                f"to {max_length}, what the model reads at once, after at least 1: choose another task or model"
            )
    return Requests(pairs, max_length)


def data_fingerprint(task: str, datasets: str | None = None) -> str:
    """The fingerprint of the items of a task of lm-eval: the hash of its documents."""
    digest = hashlib.sha256()
    for name, loaded in sorted(load_tasks([task], datasets=datasets)["tasks"].items()):
        digest.update(name.encode())
        for document in loaded.eval_docs:
            digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def score_answers(
    tasks: Tasks, answers: list[tuple[float, bool]], written: list[Answer]
) -> tuple[list[dict], dict]:
    """One model's answers, scored by lm-eval.

    `answers` are, for each request, the log-probability of its continuation in nats, and whether greedy decoding gives
    it. `written` has the answer to each of `tasks.generations`.

    Returns the rows (task, metric, value, stderr, items; also of groups that aggregate) and, for each task, the packed
    outcomes by item: each metric that is 0 or 1, the choice made, the log-probability of every choice, and the right
    one; for written answers their number of tokens, and whether they ended.
    """
    for instance, answer in zip(
        tasks.instances + tasks.generations, [*answers, *written], strict=True
    ):
        vars(instance).update(resps=[], filtered_resps={}, answer=answer)
    # lm-eval would build the requests again for every set of answers
    for task in tasks.loaded["tasks"].values():
        task.build_all_requests = lambda **_: None
    with quiet():
        which = {"limit": tasks.limit, "samples": tasks.items}
        result = evaluate(
            _AnsweredModel(), tasks.loaded, **which, bootstrap_iters=1000, log_samples=True
        )
    rows = []
    outcomes = {}
    for task, metrics in result["results"].items():
        samples = result["samples"].get(task, [])
        items = len({s["doc_id"] for s in samples}) or metrics.get("sample_len")
        rows += [{"task": task, **row, "items": items} for row in _read_metrics(metrics)]
        if samples:
            by_item = {
                i.doc_id: answer
                for i, answer in zip(tasks.generations, written)
                if i.task_name == task
            }
            outcomes[task] = _pack_outcomes(samples) | _pack_lengths(
                [by_item[item] for item in sorted(by_item)]
            )
    return rows, outcomes


def mean_accuracy(tasks: Tasks, names: Container[str], answers: list[tuple[float, bool]]) -> float:
    """The mean accuracy of some tasks, from one model's answers as `score_answers` takes them."""
    accuracies = collections.defaultdict(list)
    pairs = zip(tasks.instances, answers, strict=True)
    for (name, _), item_pairs in itertools.groupby(
        pairs, key=lambda pair: (pair[0].task_name, pair[0].doc_id)
    ):
        if name in names:
            instances, item_answers = zip(*item_pairs, strict=True)
            accuracies[name].append(
                tasks.loaded["tasks"][name].process_results(instances[0].doc, item_answers)["acc"]
            )
    return statistics.fmean(map(statistics.fmean, accuracies.values()))


def _read_metrics(metrics: dict) -> Iterator[dict]:
    """Rows with metric, value and stderr, from all that lm-eval found for a task or a group."""
    for key, value in metrics.items():
        metric, _, rule = str(key).partition(",")
        if rule and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = metrics.get(f"{metric}_stderr,{rule}")  # "N/A" where it is unknown
            error = float(error) if isinstance(error, int | float) else math.nan
            yield {"metric": _metric_name(metric, rule), "value": value, "stderr": error}


def _metric_name(metric: str, rule: str) -> str:
    """The name of a metric, followed by the filter of answers that it uses, where a task has one."""
    return metric if rule == "none" else f"{metric},{rule}"


def _pack_outcomes(samples: list[dict]) -> dict[str, str]:
    packed = {}
    for rule in dict.fromkeys(s["filter"] for s in samples):
        rule_samples = sorted(
            (s for s in samples if s["filter"] == rule), key=lambda s: s["doc_id"]
        )
        for metric in rule_samples[0]["metrics"]:
            values = [s[metric] for s in rule_samples]
            if all(isinstance(v, int | float | np.number) and v in (0, 1) for v in values):
                packed[_metric_name(metric, rule)] = pack(np.array(values))
        if all(len(s["resps"]) > 1 for s in rule_samples):
            # a column for each choice: items with fewer choices have missing values
            logprobs = _pad_rows([_list_logprobs(sample) for sample in rule_samples])
            packed |= {
                "chosen": pack(np.nanargmax(logprobs, axis=1)),
                "logprobs": pack_halves(logprobs),
            }
            targets = [s["target"] for s in rule_samples]
            if all(
                isinstance(target, int) and 0 <= target < logprobs.shape[1] for target in targets
            ):
                packed["target"] = pack(np.array(targets))
    return packed


def _list_logprobs(sample: dict) -> list[float]:
    """The log-probability of each choice of an item."""
    return [response[0][0] for response in sample["resps"]]


def _pad_rows(rows: list[list[float]]) -> np.ndarray:
    """Rows of different lengths as one array, with NaN where a row has ended."""
    return np.array(list(itertools.zip_longest(*rows, fillvalue=math.nan))).T


def _pack_lengths(written: list[Answer]) -> dict[str, str]:
    """Pack the number of tokens of answers, and which ended; nothing where that is not known."""
    if not written or any(answer.tokens is None for answer in written):
        return {}
    _, tokens, ended = zip(*written, strict=True)
    return {
        "written": pack_halves(np.array(tokens)[:, None]),
        "ended": pack(np.array(ended, dtype=int)),
    }


def reference_levels(tasks: Tasks) -> dict[str, dict[str, float]]:
    """For each multiple-choice task, the accuracy of random guessing and of always naming the commonest answer, from
    the items that are asked."""
    levels = {}
    for name, task in tasks.loaded["tasks"].items():
        if task.OUTPUT_TYPE == "multiple_choice":
            documents = {instance.doc_id: instance.doc for instance in task.instances}.values()
            levels[name] = find_levels([(task, list(documents))])
    return levels


def find_levels(asked: list[tuple[Any, list[dict]]]) -> dict[str, float]:
    """The accuracy of guessing on these items of multiple-choice tasks together, as `reference_levels` has it."""
    targets: collections.Counter[str] = collections.Counter()
    chances: list[float] = []
    for task, documents in asked:
        targets.update(str(task.doc_to_target(document)) for document in documents)
        chances += [1 / len(task.doc_to_choice(document)) for document in documents]
    return {"chance": float(np.mean(chances)), "majority": max(targets.values()) / len(chances)}
