"""The shared sweep beside lm-eval's own loop over pruned models, in one run on one machine.

(a) lm-eval's HFLM on each pruned model in turn; (b) the sweep over all of them; (c) one bare pass of the whole model's
decoder, without its head, over the same distinct tokens. (a) and (b) both begin with lm-eval's requests and end with
log-likelihoods. (b) and (c) are timed in three turns among the cuts of (a), which takes an hour.

    python -m benchmarks.sweep NAME --tasks boolq --limit 100 --rules simple,similarity --datasets FOLDER
"""

import copy
import itertools
import os

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from benchmarks import harness
from deeper_layers import angular_distances, drop_layers, load_model
from deeper_layers.cuts import Cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.network import Network
from deeper_layers.sweeping import harness as tasks
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.rules.table import REGISTERED

TIE = 1e-4
ROWS, SHARED = 4096, 48  # tokens of a batch of the bare pass; a common beginning shorter than this is not worth a cache


def main() -> None:
    options = harness.options(
        __doc__, tasks={"required": True, "help": "lm-eval tasks, with commas"}, limit={"type": int},
        num_fewshot={"type": int}, rules="simple", every=1, batch=16,
    )  # fmt: skip
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    loaded = tasks.load_tasks(options.tasks.split(","), num_fewshot=options.num_fewshot, datasets=options.datasets)
    asked = tasks.collect_requests(loaded, model, tokenizer, limit=options.limit)
    cuts_of = cuts_by_rules(model, tokenizer, options.rules.split(","), options.every)
    rows = distinct_rows(*zip(*asked.requests.pairs, strict=True))

    def swept(cuts):
        # from requests as they stand, as HFLM begins: tokenization is part of it
        return loglikelihoods(TreeModel(model, cuts), tasks.encode_requests(asked.instances, model, tokenizer))[0]

    loglikelihoods(TreeModel(model, [Cut(0, 0)]), tasks.encode_requests(asked.instances[:8], model, tokenizer))
    longest = next(iter(cuts_of.values()))
    points = list(range(1, len(longest) + 1, max(1, len(longest) // 3)))
    ways = {name: lambda cuts=cuts: swept(cuts) for name, cuts in cuts_of.items()}
    ways |= {str(few): lambda few=few: swept(longest[:few]) for few in points}
    ways["bare"] = lambda: bare_pass(model, rows)
    every, turns = sorted({cut for cuts in cuts_of.values() for cut in cuts}), 3
    before, theirs, found = harness.held(), {}, {name: [] for name in ways}
    for turn in range(turns):
        for name, runs in harness.by_turns(ways, 1).items():
            found[name] += runs
        for cut in every[turn::turns]:
            lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=options.batch)
            theirs[cut] = harness.timed(
                lambda lm=lm: [logprob for logprob, _ in lm.loglikelihood(asked.instances, disable_tqdm=True)]
            )
    median = {name: float(np.median([run.seconds for run in runs])) for name, runs in found.items()}
    content = {
        "model": options.model, "dtype": options.dtype, "tasks": options.tasks, "num_fewshot": options.num_fewshot,
        "requests": len(asked.instances), "items": len({(i.task_name, i.doc_id) for i in asked.instances}),
        "distinct_tokens": sum(map(len, rows)), "seconds_bare": round(median["bare"], 2),
        "rounds": harness.seconds(found),
        "bytes": {
            "weights": sum(p.numel() * p.element_size() for p in model.parameters()), "held_before": before,
            "peak_of_sweep": max(run.peak for name in cuts_of for run in found[name]),
            "peak_of_hflm": max(run.peak for run in theirs.values()),
        },
        "cost_against_cuts": [
            {"cuts": few, "layer_steps_a_token": Tree(longest[:few], num_layers(model)).nodes,
             "seconds": round(median[str(few)], 2)}
            for few in points
        ],
        "families": {},
    }  # fmt: skip
    for name, cuts in cuts_of.items():
        answers = np.array([theirs[cut].result for cut in cuts])
        total = sum(theirs[cut].seconds for cut in cuts)
        content["families"][name] = {
            "cuts": len(cuts), **agreement(asked.instances, answers, found[name][-1].result),
            "seconds_hflm": round(total, 1), "seconds_sweep": round(median[name], 2),
            "times_faster_than_hflm": round(total / median[name], 1),
            "bare_passes": harness.ratio(found, name, "bare"),
        }  # fmt: skip
    harness.keep(f"sweep-{options.name}", content)


def cuts_by_rules(model, tokenizer, rules: list[str], every: int = 1) -> dict[str, list[Cut]]:
    """The cuts of each rule by itself and, where there are several, of all together."""
    layers, distances = num_layers(model), None
    if "similarity" in rules:
        batches = text_batches(tokenizer, corpora.texts("wikipedia"), samples=64, length=256)
        distances = angular_distances(model, batches)
    cuts_of = {rule: REGISTERED[rule].choose(range(0, layers - 1, every), layers, distances) for rule in rules}
    if len(cuts_of) > 1:
        cuts_of[" and ".join(cuts_of)] = sorted({cut for cuts in cuts_of.values() for cut in cuts})
    return cuts_of


def distinct_rows(contexts: list[list[int]], continuations: list[list[int]]) -> list[tuple[int, ...]]:
    """Tokens that have to be run, once each: of requests that differ in the last token alone, one row."""
    pairs = zip(contexts, continuations, strict=True)
    return sorted({(*context, *continuation[:-1]) for context, continuation in pairs})


@torch.inference_mode()
def bare_pass(model, rows: list[tuple[int, ...]]) -> None:
    """(c): the decoder without its head, in batches of rows of nearly one length; a common beginning is run once."""
    argument = Network(model).cache_argument
    for _, alike in itertools.groupby(rows, lambda row: row[:SHARED]):
        group = sorted(alike, key=len)
        beginning = os.path.commonprefix(group)[: len(group[0]) - 1]
        cache = None
        if len(group) > 1 and len(beginning) >= SHARED:
            cache = DynamicCache()
            model.base_model(input_ids=torch.tensor([beginning]), **{argument: cache})
        rest = [row[len(beginning) if cache is not None else 0 :] for row in group]
        at_once = max(1, ROWS // len(rest[-1]))
        for first in range(0, len(rest), at_once):
            batch = rest[first : first + at_once]
            ids = torch.tensor([[*row, *[0] * (len(batch[-1]) - len(row))] for row in batch])
            given: dict = {"use_cache": False}
            if cache is not None:
                given = {argument: copy.deepcopy(cache)}
                given[argument].batch_repeat_interleave(len(batch))
            model.base_model(input_ids=ids, **given)


def agreement(instances, theirs: np.ndarray, ours: np.ndarray) -> dict:
    """How far the log-likelihoods [C, R] of (a) and (b) agree, and the answers chosen by them."""
    items: dict = {}
    for number, instance in enumerate(instances):
        items.setdefault((instance.task_name, instance.doc_id), []).append(number)
    counts = np.zeros(3, dtype=int)
    for numbers in filter(lambda numbers: len(numbers) > 1, items.values()):
        best = np.sort(theirs[:, numbers], axis=1)
        tied = best[:, -1] - best[:, -2] <= TIE
        differs = ours[:, numbers].argmax(axis=1) != theirs[:, numbers].argmax(axis=1)
        counts += [len(differs), (~tied & differs).sum(), (tied & differs).sum()]
    apart = np.abs(theirs - ours)
    return {
        "largest_difference": float(apart.max()), "log_likelihoods": apart.size,
        "further_apart_than_a_tie": int((apart > TIE).sum()),
        # a sum over many tokens is rounded to its own size, which is far from one nat
        "largest_difference_relative": float((apart / np.maximum(1, np.abs(theirs))).max()),
        **dict(zip(("choices", "choices_that_differ", "ties_that_differ"), counts.tolist())),
    }  # fmt: skip


if __name__ == "__main__":
    main()
