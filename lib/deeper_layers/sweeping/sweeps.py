"""Evaluate all pruned models of one network in one pass over the data: on tasks of lm-eval, and by losses on text.

lm-eval's requests are collected once (harness.py), arranged in batches (planning.py), answered for every cut
(tree_model.py), and scored by lm-eval cut by cut. Losses: Gromov et al., arXiv 2403.17887, figure 3.
Letters in shapes: C cuts, R requests.
"""

import dataclasses
import itertools
import math
import sys
import time

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from lm_eval.api.instance import Instance
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from deeper_layers.checks import MANY, check_whole_number, short_repr
from deeper_layers.cuts import UNPRUNED, Cut, check_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.measuring import check_tokens, measuring
from deeper_layers.models.network import check_length, group_by_cost
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.agreement import MEASURES
from deeper_layers.sweeping.generation import generate
from deeper_layers.sweeping.parts import ResumableProgress
from deeper_layers.sweeping.planning import (
    BATCH_TOKENS,
    MEMORY,
    Batch,
    Plan,
    Requests,
    count_tokens,
    plan_batches,
)
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.tree_model import ANSWER, TreeModel

Losses = tuple[pd.DataFrame, dict[str, list[float]]]


@measuring
def sweep(
    model,
    tokenizer,
    tasks: list[str],
    cuts: list[Cut],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    fewshot_order: int = 0,
    datasets: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
    family: TreeModel | None = None,
    shards: Shards | None = None,
) -> pd.DataFrame:
    """Score every pruned model of a network on tasks of lm-eval.

    Args:
        model: a decoder-only transformers model of L layers, as `load_model` opens it.
        tokenizer: that of the model.
        tasks: names of lm-eval tasks or groups of type loglikelihood, multiple_choice or generate_until, ours among
            them.
        cuts: the pruned models; `Cut(0, 0)` is the whole model. What is given twice is run once.
        limit: documents a task, from its beginning; None for all.
        num_fewshot: examples in the prompt; None for the task's own number.
        fewshot_order: of these examples: 0 for the task's own order, else the seed of a shuffle.
        datasets: a folder that is a local mirror of the hub (see `deeper_layers.data`).
        batch_tokens: tokens in one batch, padding included.
        memory: bytes to take at most beside the weights; batches are made smaller, and cuts run in groups, to fit.
        family: the tree of the model and these cuts, where it was made before.
        shards: where finished parts are kept, so that an interrupted sweep goes on.

    Returns:
        One row for each task, metric and cut: task, metric, start, size, value, stderr, items; where some cuts are no
        blocks also their `name` as cut. Its `attrs` hold "outcomes" (by the cut's `name`, then task: what came out item
        by item, packed) and "levels" (accuracy of guessing by chance and by the commonest answer, a task).

    Raises:
        InputError: unknown tasks, or those scored in another way; no cuts, or some that don't fit the model; a limit
            below 1; a model without weights or head; a tokenizer with tokens that the model does not have; a model
            whose generation configuration asks for what lm-eval's HFLM can't do; a pruned model whose
            log-probabilities are not numbers, as where float16 is too small for it.

    Example:
        >>> from deeper_layers import Cut, load_model, simple_cut, sweep
        >>> model, tokenizer = load_model("embedded")
        >>> rows = sweep(model, tokenizer, ["capitals"], [Cut(0, 0), simple_cut(30, 4)], limit=4)
        >>> rows[["task", "metric", "start", "size", "items"]].to_dict("records")[0]
        {'task': 'capitals', 'metric': 'acc', 'start': 0, 'size': 0, 'items': 4}
    """
    prompts = {"num_fewshot": num_fewshot, "fewshot_order": fewshot_order, "datasets": datasets}
    lm_tasks = _load_tasks(model, tokenizer, tasks, cuts, limit, batch_tokens, memory, **prompts)
    distinct_cuts = list(dict.fromkeys(cuts))
    options = {"shards": shards, "what": " ".join(tasks)}
    if family is not None and (family.network.model is not model or family.cuts != distinct_cuts):
        raise InputError(
            "family is of another model or other cuts, expected TreeModel(model, cuts): leave it out"
        )
    answers = np.full(
        (len(distinct_cuts), len(lm_tasks.requests.pairs)), np.array((np.nan, False), ANSWER)
    )
    family = family or TreeModel(model, distinct_cuts)
    try:
        loglikelihoods(
            family,
            lm_tasks.requests,
            batch_tokens=batch_tokens,
            memory=memory,
            out=answers,
            **options,
        )
    except KeyboardInterrupt:
        _print_finished_tasks(lm_tasks, distinct_cuts, answers, options["what"])
        raise
    written = generate(family, tokenizer, lm_tasks.generations, memory=memory, **options)
    table = tabulate_answers(lm_tasks, distinct_cuts, answers, written)
    table.attrs["levels"] = harness.reference_levels(lm_tasks)
    return table


def tabulate_answers(
    tasks: harness.Tasks, cuts: list[Cut], answers: np.ndarray, written: list[list[harness.Answer]]
) -> pd.DataFrame:
    """The table of `sweep`, with the outcomes in its `attrs`, from all answers: [C, R] and by cut those written."""
    rows = []
    outcomes = {}
    for cut, *cut_answers in zip(cuts, answers.tolist(), written, strict=True):
        cut_rows, outcomes[cut.name] = harness.score_answers(tasks, *cut_answers)
        rows += [row | {"start": cut.start, "size": cut.size, "cut": cut.name} for row in cut_rows]
    cut_column = [] if all(cut.is_block for cut in cuts) else ["cut"]
    table = pd.DataFrame(
        rows, columns=["task", "metric", "start", "size", *cut_column, "value", "stderr", "items"]
    )
    table.attrs = {"outcomes": outcomes}
    return table


def _print_finished_tasks(
    tasks: harness.Tasks, cuts: list[Cut], answers: np.ndarray, title: str
) -> None:
    """Print the mean accuracy of each cut on the finished tasks of an interrupted group."""
    names = {
        name
        for name, task in tasks.loaded["tasks"].items()
        if task.OUTPUT_TYPE == "multiple_choice"
    }
    missing = np.isnan(answers["logprob"]).any(axis=0)
    done = names - {
        instance.task_name for instance, is_missing in zip(tasks.instances, missing) if is_missing
    }
    if done:
        print(f"\n{title}: {len(done)} of {len(names)} tasks, mean accuracy", file=sys.stderr)
        for cut, row in zip(cuts, answers.tolist()):
            print(
                f"  n = {cut.size}, l = {cut.start}: {harness.mean_accuracy(tasks, done, row):.3f}",
                file=sys.stderr,
            )


@measuring
def plan(
    model,
    tokenizer,
    tasks: list[str],
    cuts: list[Cut],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    datasets: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
) -> Plan:
    """What `sweep` with these arguments would run, and its cost: layer-steps, tokens, bytes, predicted seconds.

    Nothing is run but one batch of at most 256 tokens, for the time.

    Args:
        model: as in `sweep`, as is all that follows.

    Returns:
        The plan: its `layer_steps` (one decoder layer on one token), `tokens`, `bytes` kept at most, `requests`,
        predicted `seconds`; printed, it says all of these in one line.

    Raises:
        InputError: what `sweep` raises.

    Example:
        >>> from deeper_layers import Cut, load_model, plan, simple_cut
        >>> model, tokenizer = load_model("embedded")
        >>> planned = plan(model, tokenizer, ["capitals"], [Cut(0, 0), simple_cut(30, 4)], limit=4)
        >>> planned.requests, planned.layers
        (16, 30)
    """
    prompts = {"num_fewshot": num_fewshot, "datasets": datasets}
    lm_tasks = _load_tasks(model, tokenizer, tasks, cuts, limit, batch_tokens, memory, **prompts)
    planned = plan_requests(TreeModel(model, cuts), lm_tasks.requests, batch_tokens, memory)
    return dataclasses.replace(planned, generated=len(lm_tasks.generations))


def _load_tasks(
    model,
    tokenizer,
    tasks: list[str],
    cuts: list[Cut],
    limit: int | None,
    batch_tokens: int,
    memory: int,
    **prompts,
) -> harness.Tasks:
    """The requests of the tasks, after checking all that a sweep is given: cuts fit the model, numbers are numbers."""
    check_cuts(model, cuts)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"tokenizer is {short_repr(tokenizer)}, expected the model's: load_model gives both"
        )
    if limit is not None:
        check_whole_number("limit", limit, 1, MANY, "None is all items")
    check_whole_number("batch_tokens", batch_tokens, 1, MANY, "leave it out")
    check_whole_number("memory", memory, 1, sys.maxsize, "bytes beside the weights: leave it out")
    return harness.collect_requests(
        harness.load_tasks(tasks, **prompts), model, tokenizer, limit=limit
    )


def check_cuts(model, cuts: list[Cut]) -> None:
    """Raise InputError where there is no cut, or one that does not fit the model."""
    if not isinstance(cuts, list | tuple) or not cuts:
        raise InputError(
            f"cuts is {short_repr(cuts)}, expected a list of some: [Cut(0, 0)] is the whole model"
        )
    for cut in cuts:
        check_cut(cut)
        cut.check(num_layers(model))


def loglikelihoods(
    family: TreeModel,
    requests: Requests,
    *,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
    shards: Shards | None = None,
    what: str = "sweep",
    out: np.ndarray | None = None,
) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
    """Log-probability (nats) of each continuation after its context under each pruned model, and whether it is greedy.

    The definition is that of lm-eval's HFLM. `memory` bounds the bytes that are taken beside the weights; see
    `plan_requests`. `out`, [C, R] of the tree's `answer_dtype`, is filled as answers come. Minus infinity means that
    the model rules a token out. Raises InputError for a log-probability that is not a number.
    """
    answers = (
        np.empty((len(family.cuts), len(requests.pairs)), family.answer_dtype)
        if out is None
        else out
    )
    if not requests.pairs:
        return answers["logprob"], answers["greedy"]
    family.forget()
    names = answers.dtype.names
    plan = plan_requests(family, requests, batch_tokens, memory)
    tqdm.write(f"{what}: {plan}", file=sys.stderr)  # above other bars
    with ResumableProgress(shards, what, plan.layer_steps, "layer-step") as parts:
        for batches in plan.parts:

            def run(batches=batches) -> list:
                results = family.answer(batches, parts.update, memory)
                # before it is stored or scored
                if (is_nan := np.isnan(results["logprob"]).any(axis=1)).any():
                    raise overflow_error(
                        "a log-probability", family.network.model, family.cuts[is_nan.argmax()]
                    )
                return [results[name].tolist() for name in names]

            steps = family.layer_steps * sum(batch.tokens for batch in batches)
            identity = (
                family.cuts,
                [batch.sequences for batch in batches],
                *names[len(ANSWER.names) :],
            )
            results = parts.read_or_run(identity, steps, run)
            numbers = list(itertools.chain.from_iterable(batch.requests for batch in batches))
            for name, values in zip(names, results, strict=True):
                answers[name][:, numbers] = values
        parts.update(parts.total - parts.n)  # the prefixes of finished parts did not run
    return answers["logprob"], answers["greedy"]


def plan_requests(
    family: TreeModel, requests: Requests, batch_tokens: int = BATCH_TOKENS, memory: int = MEMORY
) -> Plan:
    """Plan how to run these requests, and what that costs; one small batch runs to predict the time. Where memory is
    short, a batch runs in smaller ones, and these for some of the cuts at a time. Raises InputError for tokens that
    the model does not have."""
    if requests.pairs:
        tokens: set[int] = set()
        for context, continuation in requests.pairs:
            tokens.update(context, continuation)
        check_tokens(family.network.model, min(tokens), max(tokens))
    batches = plan_batches(requests, batch_tokens, family.sharing)
    # where layers are on disk, as many batches as memory holds go through together
    parts = list(group_by_cost(batches, family.bytes_needed, memory if family.is_streamed else 0))
    steps = count_tokens(batches) * family.layer_steps
    return Plan(
        cuts=family.cuts,
        parts=parts,
        layers=family.tree.layers,
        tokens=count_tokens(batches),
        layer_steps=steps,
        bytes=min(memory, max(map(family.bytes_needed, parts), default=0)),
        requests=len(requests.pairs),
        reads=len(parts) * sum(p.nbytes for p in family.network.layers.parameters())
        if family.is_streamed
        else 0,
        seconds=None
        if family.is_streamed or not steps
        else _predict_seconds(family, batches, steps),
    )


def overflow_error(what: str, model, cut: Cut) -> InputError:
    """The error for a pruned model that gives no numbers: somewhere they were too large for its data type."""
    return InputError(
        f"{what} is not a finite number in {str(model.dtype).removeprefix('torch.')} of the model that "
        f"{cut.describe(num_layers(model))}: measure in another data type (bfloat16 or float32)"
    )


def _predict_seconds(family: TreeModel, batches: list[Batch], steps: int) -> float:
    """Predict seconds on this machine from a batch of at most 256 tokens. The head counts by its parameters."""
    model = family.network.model
    layers = family.tree.layers
    start = 0.0
    ids = torch.ones(4, min(64, 1 + steps // 4), dtype=torch.long, device=family.network.device)
    with torch.inference_mode():
        for batch_ids in (ids[:, :8], ids):  # the first pass of a process is slow
            start = time.perf_counter()
            model.base_model(input_ids=batch_ids, use_cache=False)
            if ids.is_cuda:
                torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / ids.numel() / layers
    scored = sum(batch.scored for batch in batches) * len(family.cuts)
    head = model.get_output_embeddings().weight.numel() * layers
    return seconds * (
        steps + scored * head / model.base_model.num_parameters(exclude_embeddings=True)
    )


# ---- losses on text --------------------------------------------------------------------------------------------


def text_requests(sequences: list[torch.Tensor]) -> Requests:
    """Requests for sequences of tokens, each [T], that predict all tokens but the first of each. Raises InputError
    where there is no sequence, one of a single token, or what is no sequence of tokens."""
    for sequence in sequences or ():
        if (
            not isinstance(sequence, torch.Tensor)
            or sequence.ndim != 1
            or sequence.is_floating_point()
        ):
            raise InputError(
                f"a sequence is {short_repr(sequence)}, expected whole numbers [T]: use token_sequences"
            )
    if not sequences or min(map(len, sequences)) < 2:
        raise InputError(
            "there is no sequence to measure the loss on: give more text, or sequences from two tokens"
        )
    tokens = [sequence.tolist() for sequence in sequences]
    return Requests([(ids[:1], ids[1:]) for ids in tokens], max(map(len, tokens)))


def answer_requests(model, tokenizer, answers: list[tuple[str, str]]) -> Requests:
    """Requests for pairs of a given prompt and the answer to predict, in tokens as lm-eval makes them."""
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(answers)]
    return harness.encode_requests(instances, model, tokenizer)


def text_loss(model, cuts: list[Cut], sequences: list[torch.Tensor], **options) -> Losses:
    """Mean cross-entropy, in nats a token, of each pruned model on sequences of tokens, each [T].

    Every token but the first of a sequence is predicted from those before it: see `request_loss`, also for `options`.
    Raises InputError where there is no sequence, or one of a single token, and as `request_loss` does.
    """
    return request_loss(model, cuts, text_requests(sequences), **options)


@measuring
def request_loss(
    model,
    cuts: list[Cut],
    requests: Requests,
    *,
    batch_tokens: int | None = None,
    shards: Shards | None = None,
    compares: bool = False,
) -> Losses:
    """Mean cross-entropy of the continuations, in nats a token, under each pruned model.

    Returns a row for each cut, with columns metric ("loss"), start, size, value, stderr (over sequences) and items
    (sequences); and the loss of each sequence, by the cut's `name`. `batch_tokens` is about how many tokens run
    between two shards, which are as in `sweep`.

    With `compares` each cut is compared with the whole model, Cut(0, 0), in the same pass: the table has columns
    agreement (the share of tokens whose most likely one is the whole model's), overlap (the mean of the sum of
    min(p, q)) and kl (of the cut from the whole model, nats a token), means over all tokens; and its `attrs` hold
    "compared", these three of each sequence, [I, 3], by the cut's `name`.

    Raises InputError where there is no cut, or one that does not fit the model, for sequences of more tokens than the
    model has positions, for a loss that is not finite, and where the whole model to compare with is not among the cuts.
    """
    check_cuts(model, cuts)
    if compares and UNPRUNED not in cuts:
        raise InputError(
            "compares is True, and the whole model is not among the cuts, expected it: add Cut(0, 0)"
        )
    check_length(model, requests.max_length - 1)  # the last token is predicted alone
    family = TreeModel(model, cuts, compares=compares)
    options = {"shards": shards, "what": "loss on text"}
    answers = np.empty((len(family.cuts), len(requests.pairs)), family.answer_dtype)
    loglikelihoods(
        family, requests, batch_tokens=batch_tokens or BATCH_TOKENS, out=answers, **options
    )
    by_cut = dict(zip(family.cuts, answers, strict=True))
    lengths = np.array([len(ids) for _, ids in requests.pairs])
    rows = []
    sequence_losses = {}
    compared = {}
    for cut in cuts:
        sums = by_cut[cut]
        if not all(np.isfinite(sums[name]).all() for name in sums.dtype.names):
            raise overflow_error("a loss", model, cut)
        losses = -sums["logprob"] / lengths
        error = losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
        # a token counts once, however long its sequence
        mean = -sums["logprob"].sum() / lengths.sum()
        row = {
            "metric": "loss",
            "start": cut.start,
            "size": cut.size,
            "value": mean,
            "stderr": error,
        }
        rows.append(row | {"items": len(losses)})
        sequence_losses[cut.name] = losses.round(5).tolist()
        if compares:
            rows[-1] |= {name: sums[name].sum() / lengths.sum() for name in MEASURES}
            compared[cut.name] = np.stack([sums[name] / lengths for name in MEASURES], axis=1)
    table = pd.DataFrame(rows)
    if compares:
        table.attrs["compared"] = compared
    return table, sequence_losses
