"""All pruned models of one network evaluated in one pass over the data.

lm-eval's requests are collected once (harness.py), arranged in batches (planning.py), answered for every cut
(tree_model.py), and scored by lm-eval for one cut after another.
Letters in shapes: C cuts, R requests.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from tqdm import tqdm

from deeper_layers.checks import whole_number
from deeper_layers.cuts import Cut, check_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.streaming import groups_within
from deeper_layers.results.shards import Shards, skip
from deeper_layers.sweeping import harness, vllm_engine
from deeper_layers.sweeping.generation import Answer, generate
from deeper_layers.sweeping.planning import BATCH_TOKENS, LEAST_TOKENS, MEMORY, Piece, Plan, plan_pieces, tokens_of
from deeper_layers.sweeping.tree_model import TreeModel


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
    engine: str | None = None,
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
        memory: bytes to take at most beside the weights; the cuts are run in groups, and batches made smaller, to fit.
        family: the tree of the model and these cuts, where it was made before.
        shards: where finished parts are kept, so that an interrupted sweep goes on.
        engine: what writes the answers of generated tasks: None for our tree, "vllm" for vLLM where it is installed,
            one pruned model after another from a folder that goes.

    Returns:
        One row for each task, metric and cut: task, metric, start, size, value, stderr, items; where some cuts are no
        blocks also their `name` as cut. Its `attrs` hold
        "outcomes" (by the cut's `name`, then task: what came out item by item, packed) and "levels" (accuracy of
        guessing by chance and by the commonest answer, a task).

    Raises:
        InputError: unknown tasks, or those scored in another way; no cuts, or some that don't fit the model; a limit
            below 1; an engine that is not installed, or asked for tasks that are not generated; a pruned model whose
            log-probabilities are not numbers, as where float16 is too small for it.

    Example:
        >>> from deeper_layers import Cut, load_model, simple_cut, sweep
        >>> model, tokenizer = load_model("embedded")
        >>> rows = sweep(model, tokenizer, ["capitals"], [Cut(0, 0), simple_cut(30, 4)], limit=4)
        >>> rows[["task", "metric", "start", "size", "items"]].to_dict("records")[0]
        {'task': 'capitals', 'metric': 'acc', 'start': 0, 'size': 0, 'items': 4}
    """
    if engine is not None:
        vllm_engine.check_installed(engine)
    of_prompts = {"num_fewshot": num_fewshot, "fewshot_order": fewshot_order}
    asked = _requests(model, tokenizer, tasks, cuts, limit=limit, datasets=datasets, **of_prompts)
    distinct = list(dict.fromkeys(cuts))
    how = {"shards": shards, "memory": memory, "what": " ".join(tasks)}
    if engine is not None:
        vllm_engine.check_generates(engine, model, sorted({str(instance.task_name) for instance in asked.instances}))
        texts = vllm_engine.written_by(engine, model, tokenizer, distinct, asked.generations, shards=shards)
        answers = [[Answer(text) for text in of_cut] for of_cut in texts]
        logprobs, greedy = np.zeros((len(distinct), 0)), np.zeros((len(distinct), 0), dtype=bool)
    else:
        family = family or TreeModel(model, distinct)
        logprobs, greedy = loglikelihoods(
            model,
            asked.contexts,
            asked.continuations,
            distinct,
            max_length=asked.max_length,
            batch_tokens=batch_tokens,
            family=family,
            **how,
        )
        answers = generate(family, tokenizer, asked.generations, **how)
    frames, outcomes = [], {}
    for cut, of_cut, of_cut_greedy, written in zip(distinct, logprobs, greedy, answers, strict=True):
        rows, outcomes[cut.name] = harness.score(asked, of_cut, of_cut_greedy, written)
        rows.insert(2, "start", cut.start)
        rows.insert(3, "size", cut.size)
        if not all(cut.is_block for cut in distinct):
            rows.insert(4, "cut", cut.name)
        frames.append(rows)
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"outcomes": outcomes, "levels": harness.reference_levels(asked)}
    return table


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
    asked = _requests(model, tokenizer, tasks, cuts, limit=limit, num_fewshot=num_fewshot, datasets=datasets)
    family = TreeModel(model, list(dict.fromkeys(cuts)))
    found = plan_requests(family, asked.contexts, asked.continuations, asked.max_length, batch_tokens, memory)
    return dataclasses.replace(found, generated=len(asked.generations))


def _requests(model, tokenizer, tasks, cuts, *, limit, datasets, **of_prompts) -> harness.Tasks:
    """What the tasks ask, once it is known that the cuts fit the model and the limit is one."""
    if not cuts:
        raise InputError("cuts is empty, expected at least one: [Cut(0, 0)] is the whole model")
    for cut in cuts:
        check_cut(cut)
        cut.check(num_layers(model))
    harness.check_limit(limit)
    loaded = harness.load_tasks(tasks, datasets=datasets, **of_prompts)
    return harness.collect_requests(loaded, model, tokenizer, limit=limit)


def loglikelihoods(
    model,
    contexts: list[list[int]],
    continuations: list[list[int]],
    cuts: list[Cut],
    *,
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
    family: TreeModel | None = None,
    shards: Shards | None = None,
    what: str = "sweep",
) -> tuple[Float64[np.ndarray, "C R"], Bool[np.ndarray, "C R"]]:
    """Log-probability (nats) of each continuation after its context under each pruned model, and whether it is greedy.

    The definition is that of lm-eval's HFLM: sequences longer than `max_length` lose tokens on the left.
    `memory` bounds the bytes that are taken beside the weights; see `plan_requests`. A cut given twice is run once.
    One of minus infinity is of a token that the model rules out. Raises InputError for what is not a number.
    """
    if not contexts:
        return np.zeros((len(cuts), 0)), np.zeros((len(cuts), 0), dtype=bool)
    distinct = list(dict.fromkeys(cuts))
    family = family or TreeModel(model, distinct)
    plan = plan_requests(family, contexts, continuations, max_length, batch_tokens, memory)
    print(f"{what}: {plan}", file=sys.stderr)
    logprobs = np.full((len(distinct), len(contexts)), np.nan)
    greedy = np.zeros((len(distinct), len(contexts)), dtype=bool)
    numbers = itertools.count()
    with tqdm(
        total=plan.layer_steps, desc=what, unit="layer-step", unit_scale=True, mininterval=5, file=sys.stderr
    ) as bar:
        for group, pieces in plan.parts:
            part = family.part(group)
            places = [distinct.index(cut) for cut in group]
            for piece, found in _answer_pieces(part, pieces, shards, numbers, bar):
                where = np.ix_(places, piece.requests)
                logprobs[where], greedy[where] = found["logprobs"], found["greedy"]
            part.forget()
        bar.update(bar.total - bar.n)  # prefixes of pieces that were found are not run again
    places = [distinct.index(cut) for cut in cuts]
    return logprobs[places], greedy[places]


def plan_requests(
    tree_model: TreeModel,
    contexts: list[list[int]],
    continuations: list[list[int]],
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
) -> Plan:
    """How these requests would be run, and what that costs; one small batch is run for the time.

    Where memory is short, batches are made smaller and cuts run in groups: what fits, then what takes fewest steps.
    """
    whole_number("batch_tokens", batch_tokens, 1, 2**31)
    whole_number("memory", memory, 1, 2**60, "give the bytes to keep at most")
    found = []
    while True:
        parts = _arrange(tree_model, contexts, continuations, max_length, batch_tokens, memory)
        needed = max((tree_model.estimate_bytes(*part) for part in parts), default=0)
        steps = sum(tokens_of(pieces) * tree_model.layer_steps(cuts) for cuts, pieces in parts)
        found.append((max(0, needed - memory), steps, len(parts), needed, parts))
        if batch_tokens <= LEAST_TOKENS or (needed <= memory and all(cuts == tree_model.cuts for cuts, _ in parts)):
            break
        batch_tokens //= 2
    _, steps, _, needed, parts = min(found, key=lambda one: one[:3])
    layers = num_layers(tree_model.network.model)
    reads = int(len(parts) * tree_model.network.layer_bytes * layers) if tree_model.is_streamed else 0
    scored = sum(piece.scored * len(cuts) for cuts, pieces in parts for piece in pieces)
    return Plan(
        cuts=tree_model.cuts,
        parts=parts,
        layers=layers,
        layer_steps=steps,
        bytes=needed,
        reads=reads,
        seconds=_predict_seconds(tree_model, steps, scored),
        requests=len(contexts),
    )


def _arrange(
    tree_model: TreeModel, contexts, continuations, max_length: int, batch_tokens: int, memory: int
) -> list[tuple[list[Cut], list[Piece]]]:
    """Cuts and pieces that run together: groups of cuts that memory holds, one cut at least."""
    can = tree_model.can
    pieces = plan_pieces(contexts, continuations, max_length, batch_tokens, share=can.share, branch=can.branch)
    if tree_model.is_streamed:  # as many pieces as memory holds
        runs = groups_within(pieces, lambda run: tree_model.estimate_bytes(tree_model.cuts, run), memory)
    else:  # those of one prefix
        runs = (list(run) for _, run in itertools.groupby(pieces, key=lambda piece: piece.prefix))
    parts = []
    for run in runs:
        whole = tree_model.estimate_bytes(tree_model.cuts, run) <= memory
        groups = groups_within(tree_model.cuts, lambda cuts, run=run: tree_model.estimate_bytes(cuts, run), memory)
        parts += [(group, run) for group in ([tree_model.cuts] if whole else groups)]
    return parts


def _answer_pieces(
    tree_model: TreeModel, pieces: list[Piece], shards: Shards | None, numbers: Iterator[int], bar: tqdm
) -> Iterator[tuple[Piece, dict]]:
    """The answers to pieces, in their order: from shards, or run and put there."""
    cuts, steps = np.array([repr(cut) for cut in tree_model.cuts]), tree_model.layer_steps(tree_model.cuts)
    numbered, found, missing = list(zip(pieces, numbers)), {}, []
    same = {
        number: {"requests": np.array(piece.requests), "cuts": cuts, "asked": np.array(piece.fingerprint)}
        for piece, number in numbered
    }
    for piece, number in numbered:
        shape = (len(cuts), len(piece.requests))
        like = {"logprobs": (float, shape), "greedy": (bool, shape)}
        if (kept := shards.get(number, same[number], like) if shards else None) is None:
            missing.append(piece)
        else:
            found[number] = kept
            skip(bar, piece.tokens * steps)
    # what ran out of memory is done again
    run = tree_model.answer(missing, lambda steps: bar.update(min(steps, bar.total - bar.n)))
    for piece, number in numbered:
        if number not in found:
            logprobs, greedy = next(run)
            if (bad := np.isnan(logprobs).any(axis=1)).any():  # before it is kept, or counts as the first choice
                raise overflowed("a log-probability", tree_model.network.model, tree_model.cuts[bad.argmax()])
            found[number] = same[number] | {"logprobs": logprobs, "greedy": greedy}
            if shards:
                shards.put(number, found[number])
        yield piece, found.pop(number)


def overflowed(what: str, model, cut: Cut) -> InputError:
    """What to raise where a pruned model gives no numbers: somewhere they were too large for its data type."""
    return InputError(
        f"{what} is not a finite number in {str(model.dtype).removeprefix('torch.')} of the model that "
        f"{cut.describe(num_layers(model))}: measure in another data type (bfloat16 or float32)"
    )


def _predict_seconds(tree_model: TreeModel, layer_steps: int, scored: int) -> float | None:
    """Seconds on this machine, from a batch of at most 256 tokens; None where layers are read from disk.

    The head counts by its number of parameters.
    """
    network = tree_model.network
    if tree_model.is_streamed or not layer_steps:
        return None
    ids, begin = torch.ones(4, min(64, 1 + layer_steps // 4), dtype=torch.long, device=network.device), 0.0
    with torch.inference_mode():
        for some in (ids[:, :8], ids):  # the first pass of a process is slow
            begin = time.perf_counter()
            network.model.base_model(input_ids=some, use_cache=False)
            if ids.is_cuda:
                torch.cuda.synchronize()
    steps = layer_steps + scored * tree_model.head_layers
    return steps * (time.perf_counter() - begin) / ids.numel() / len(network.layers)
