"""The plain ways that tests compare with: identity layers, a pair of residuals at a time."""

import contextlib
import copy
import functools
import itertools
import math

import numpy as np
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from deeper_layers.models.decoder import decoder_layers
from deeper_layers.sweeping import tree_model
from deeper_layers.sweeping.planning import Requests

NEW_TOKENS = 12


def without(model, dropped):
    """The reference: a copy of the model in which the dropped layers hand on what they receive."""
    model = copy.deepcopy(model)
    for index in dropped:
        layer = decoder_layers(model)[index]
        layer.forward = functools.partial(_identity, layer.forward)
    return model


def _identity(forward, hidden_states, *arguments, **keywords):
    # the layer itself still runs, so that it fills its cache and shows the form of its output
    output = forward(hidden_states, *arguments, **keywords)
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


@torch.no_grad()
def logits(model, tokens):
    return model(tokens, use_cache=False).logits


def generate(model, tokens, use_cache=True):
    mask = torch.ones_like(tokens)
    return model.generate(tokens, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=use_cache)


def requests(vocabulary, *, few_shot, questions=9, seed=0, max_length=200):
    """Questions with four choices of one token and two of several, after a beginning that all share or none."""
    draw = np.random.default_rng(seed)
    beginning = draw.integers(1, vocabulary, few_shot).tolist()
    pairs = []
    for _ in range(questions):
        question = draw.integers(1, vocabulary, draw.integers(3, 20)).tolist()
        for length in (1, 1, 1, 1, 2, 4):
            pairs.append((beginning + question, draw.integers(1, vocabulary, length).tolist()))
    return Requests(pairs, max_length)


def never(answers):
    """No answer ends before it has as many tokens as are asked."""
    return [False] * len(answers)


def little_memory(monkeypatch, most):
    """From now on memory runs out where more rows run for more models; what was tried, in pairs of models and rows."""
    run, tried = tree_model.run_layers, []

    def small(forwards, *how, **options):
        tried.append((len(forwards[0].tree.cuts), sum(len(forward.batch.ids) for forward in forwards)))
        if math.prod(tried[-1]) > most:
            raise torch.OutOfMemoryError("out of memory")
        return run(forwards, *how, **options)

    monkeypatch.setattr(tree_model, "run_layers", small)
    return tried


def batch(sequences, side="right"):
    """One padded batch, as a tokenizer would give it."""
    width = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(sequences), width, dtype=torch.long)
    for i, tokens in enumerate(sequences):
        place = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[i, place], mask[i, place] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask}


def residuals(model, sequence):
    """[L+1, D] in float64: what enters each layer, and leaves the last, at the last token."""
    found = []

    def keep(_, arguments, named, output):
        if not found:
            found.append(arguments[0] if arguments else named["hidden_states"])
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in decoder_layers(model)]
    logits(model, torch.tensor([sequence]))
    for hook in hooks:
        hook.remove()
    return torch.stack(found)[:, 0, -1].double().numpy()


def parts(model, tokens):
    """Float64, of tokens [N]: what enters each layer and leaves the last [L+1, N, D], and what its two parts add."""
    states, attention, mlp, layers = [], [], [], decoder_layers(model)
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            enter = lambda _, given, named: states.append(given[0] if given else named["hidden_states"])  # noqa: E731
            hooks.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
            of_layer = getattr(layer, "self_attn", None) or layer.attention
            for part, found in ((of_layer, attention), (layer.mlp, mlp)):
                add = lambda _, __, output, found=found: found.append(first(output))  # noqa: E731
                hooks.enter_context(part.register_forward_hook(add))
        hooks.enter_context(layers[-1].register_forward_hook(lambda _, __, output: states.append(first(output))))
        logits(model, tokens)
    return [torch.stack(found).flatten(1, 2).double() for found in (states, attention, mlp)]


def parts_of_all(model, sequences):
    """`parts` of sequences of any lengths, one after the other: N counts the tokens of all of them."""
    found = [parts(model, sequence[None]) for sequence in sequences]
    return [torch.cat(of_part, dim=1) for of_part in zip(*found, strict=True)]


def logits_of_all(model, sequences):
    """[N, V]: the logits at all tokens of sequences of any lengths."""
    return torch.cat([logits(model, sequence[None])[0] for sequence in sequences])


def loss_of_all(model, sequences):
    """The mean cross-entropy over all tokens of sequences of any lengths, which is no mean of their means."""
    losses, tokens = 0.0, 0
    for sequence in sequences:
        scores = model(sequence[None]).logits[0, :-1]
        losses = losses + torch.nn.functional.cross_entropy(scores, sequence[1:], reduction="sum")
        tokens += len(sequence) - 1
    return losses / tokens


def plain_distances(vectors):
    """[n, l] of one sequence by the formula, one pair after the other."""
    layers = len(vectors) - 1
    matrix = np.full((layers, layers), np.nan)
    for start, end in itertools.combinations(range(layers + 1), 2):
        a, b = vectors[start], vectors[end]
        matrix[end - start - 1, start] = np.arccos(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1)) / np.pi
    return matrix


@contextlib.contextmanager
def allocated():
    """Most bytes that torch's allocator gave this thread at once meanwhile, those inside its kernels among them."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        yield found
    waiting, changes = list(taken.profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    held: dict[int, int] = {}
    now = most = 0
    for _, place, size in sorted(changes):
        now += size if size > 0 else -held.pop(place, 0)  # what was there before is not counted when it goes
        held |= {place: size} if size > 0 else {}
        most = max(most, now)
    found.append(most)
