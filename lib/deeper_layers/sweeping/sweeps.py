"""A whole family of pruned models evaluated in one pass over the data.

lm-eval's requests are collected once, arranged by `family.planning`, answered for every cut by
`family.pruned_family`, and scored by lm-eval for one cut after another.
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
from deeper_layers.models.streaming import groups_within, is_streamed
from deeper_layers.results.shards import Shards, skip
from deeper_layers.sweeping import harness, running
from deeper_layers.sweeping.generation import generate
from deeper_layers.sweeping.planning import BATCH_TOKENS, LEAST_TOKENS, MEMORY, Piece, Plan, plan_pieces, tokens_of
from deeper_layers.sweeping.pruned_family import PrunedFamily


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
    family: PrunedFamily | None = None,
    shards: Shards | None = None,
    engine: str | None = None,
) -> pd.DataFrame:
    """Score every pruned model of a family on tasks of lm-eval.

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
        family: that of the model and these cuts, where it was made before.
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
        running.check_installed(engine)
    of_prompts = {"num_fewshot": num_fewshot, "fewshot_order": fewshot_order}
    asked = _requests(model, tokenizer, tasks, cuts, limit=limit, datasets=datasets, **of_prompts)
    distinct = list(dict.fromkeys(cuts))
    how = {"shards": shards, "memory": memory, "what": " ".join(tasks)}
    if engine is not None:
        running.check_generates(engine, model, sorted({str(instance.task_name) for instance in asked.instances}))
        texts = running.written_by(engine, model, tokenizer, distinct, asked.generations, shards=shards)
        logprobs, greedy = np.zeros((len(distinct), 0)), np.zeros((len(distinct), 0), dtype=bool)
    else:
        family = family or PrunedFamily(model, distinct)
        logprobs, greedy = loglikelihoods(
            model, asked.contexts, asked.continuations, distinct,
            max_length=asked.max_length, batch_tokens=batch_tokens, family=family, **how,
        )  # fmt: skip
        texts = generate(family, tokenizer, asked.generations, **how)
    frames, outcomes = [], {}
    for cut, of_cut, of_cut_greedy, written in zip(distinct, logprobs, greedy, texts, strict=True):
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
    family = PrunedFamily(model, list(dict.fromkeys(cuts)))
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
    family: PrunedFamily | None = None,
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
    family = family or PrunedFamily(model, distinct)
    plan = plan_requests(family, contexts, continuations, max_length, batch_tokens, memory)
    print(f"{what}: {plan}", file=sys.stderr)
    logprobs = np.full((len(distinct), len(contexts)), np.nan)
    greedy = np.zeros((len(distinct), len(contexts)), dtype=bool)
    number = itertools.count()
    # what ran out of memory is done again
    progress = lambda steps: bar.update(min(steps, bar.total - bar.n))  # noqa: E731
    with tqdm(total=plan.steps, desc=what, unit="layer-step", unit_scale=True, mininterval=5, file=sys.stderr) as bar:
        for group, pieces in plan.parts:
            part = family.part(group)
            places = [distinct.index(cut) for cut in group]
            for piece, found in _answered(part, pieces, shards, number, bar, progress):
                where = np.ix_(places, piece.requests)
                logprobs[where], greedy[where] = found["logprobs"], found["greedy"]
            part.forget()
        bar.update(bar.total - bar.n)  # beginnings of pieces that were found are not run again
    places = [distinct.index(cut) for cut in cuts]
    return logprobs[places], greedy[places]


def plan_requests(
    family: PrunedFamily,
    contexts: list[list[int]],
    continuations: list[list[int]],
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
) -> Plan:
    """How these requests would be run for a family, and what that costs: the rate is tried on one small batch.

    Where memory is short, batches are made smaller and cuts run in groups: what fits, then what takes fewest steps.
    """
    whole_number("batch_tokens", batch_tokens, 1, 2**31)
    whole_number("memory", memory, 1, 2**60, "give the bytes to keep at most")
    parts = _parts(family, contexts, continuations, max_length, batch_tokens, memory)
    while batch_tokens > LEAST_TOKENS and _is_short(family, parts, memory):
        batch_tokens //= 2
        smaller = _parts(family, contexts, continuations, max_length, batch_tokens, memory)
        parts = min(parts, smaller, key=lambda p: (_excess(family, p, memory), _layer_steps(family, p), len(p)))
    largest = max((shape.tokens for _, run in parts for piece in run for shape in piece.shapes), default=0)
    (rate, reading), layers = _rate(family, largest), num_layers(family.whole.model)
    return Plan(
        cuts=family.cuts,
        parts=parts,
        layers=layers,
        layer_steps=_layer_steps(family, parts),
        head_steps=sum(piece.scored * len(group) for group, run in parts for piece in run) * family.head_layers,
        bytes=max((family.bytes_needed(*part) for part in parts), default=0),
        rate=rate,
        reads=int(len(parts) * family.whole.layer_bytes * layers) if is_streamed(family.whole.model) else 0,
        reading=reading,
        requests=len(contexts),
    )


Parts = list[tuple[list[Cut], list[Piece]]]


def _parts(family: PrunedFamily, contexts, continuations, max_length, batch_tokens, memory) -> Parts:
    """Cuts and pieces that run together: groups of cuts of the family that memory holds, one cut at least."""
    can = family.can
    pieces = plan_pieces(contexts, continuations, max_length, batch_tokens, share=can.share, branch=can.branch)
    if is_streamed(family.whole.model):  # as many pieces as memory holds
        runs = groups_within(pieces, lambda run: family.bytes_needed(family.cuts, run), memory)
    else:  # those of one beginning
        runs = (list(run) for _, run in itertools.groupby(pieces, key=lambda piece: piece.shared))
    parts = []
    for run in runs:
        whole = family.bytes_needed(family.cuts, run) <= memory
        groups = groups_within(family.cuts, lambda cuts, run=run: family.bytes_needed(cuts, run), memory)
        parts += [(group, run) for group in ([family.cuts] if whole else groups)]
    return parts


def _is_short(family: PrunedFamily, parts: Parts, memory: int) -> bool:
    return any(group != family.cuts for group, _ in parts) or _excess(family, parts, memory) > 0


def _excess(family: PrunedFamily, parts: Parts, memory: int) -> int:
    return max([0, *(family.bytes_needed(*part) - memory for part in parts)])


def _layer_steps(family: PrunedFamily, parts: Parts) -> int:
    return sum(tokens_of(run) * family.layer_steps_of(group) for group, run in parts)


def _answered(
    family: PrunedFamily, pieces: list[Piece], shards: Shards | None, numbers: Iterator[int], bar, progress
) -> Iterator[tuple[Piece, dict]]:
    """The answers to pieces, in their order: from shards, or run and put there."""
    cuts = np.array([repr(cut) for cut in family.cuts])
    found: dict[int, dict] = {}
    of_pieces = {next(numbers): piece for piece in pieces}
    same = {
        number: {"requests": np.array(piece.requests), "cuts": cuts, "asked": np.array(piece.asked)}
        for number, piece in of_pieces.items()
    }
    for number, piece in of_pieces.items():
        shape = (len(cuts), len(piece.requests))
        like = {"logprobs": (float, shape), "greedy": (bool, shape)}
        kept = shards.get(number, same[number], like) if shards else None
        if kept is not None:
            skip(bar, family.steps_of(piece))
            found[number] = kept
    missing = [number for number in of_pieces if number not in found]
    run = family.run_all([of_pieces[number] for number in missing], progress)
    for number, piece in of_pieces.items():
        if number in missing:
            logprobs, greedy = next(run)
            if (bad := np.isnan(logprobs).any(axis=1)).any():  # before it is kept, or counts as the first choice
                raise overflowed("a log-probability", family.whole.model, family.cuts[bad.argmax()])
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


def _rate(family: PrunedFamily, tokens: int) -> tuple[float | None, float | None]:
    """Layer-steps a second, and bytes a second read from disk; None where that is not done.

    It is tried on no more than `tokens`, those of the largest batch, and 256.
    """
    if tokens == 0:
        return None, None
    network, streamed = family.whole, is_streamed(family.whole.model)
    ids = torch.ones(4, min(64, 1 + tokens // 4), dtype=torch.long, device=network.device)
    begin = time.perf_counter()
    with torch.inference_mode(), network.reader.reading(0) as first:
        reading = network.layer_bytes / (time.perf_counter() - begin) if streamed else None

        def run(ids):
            if not streamed:
                return network.model.base_model(input_ids=ids, use_cache=False)
            handed = network.handed(ids)
            return handed.calls[0](first, handed.residual)

        run(ids[:, :8])  # the first pass of a process is slow
        begin = time.perf_counter()
        run(ids)
        if ids.is_cuda:
            torch.cuda.synchronize()
        layers = 1 if streamed else len(network.layers)
        return ids.numel() * layers / (time.perf_counter() - begin), reading
