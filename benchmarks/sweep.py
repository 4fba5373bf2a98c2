"""The shared sweep beside lm-eval's own loop over pruned models, in one run on one machine.

(a) HFLM on each pruned model in turn; (b) a plain loop over the pruned models in our batches, nothing shared;
(c) the sweep; (d) one bare pass of the whole model's decoder, without its head, over the same distinct tokens.
(a) and (c) both begin with lm-eval's requests and end with log-likelihoods. A machine's speed drifts in the hour that
(a) takes: (c) and (d) are timed in three rounds among its cuts, and their medians stand beside its sum. Printed:
ratios, tokens a second, peak memory, share of padding, the largest difference of any log-likelihood, and answers that
differ.

    python -m benchmarks.sweep NAME --tasks boolq --limit 100 --rules simple --datasets FOLDER
"""

import argparse
import collections
import copy
import functools

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from benchmarks import side_by_side
from deeper_layers.cuts import Cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import cuts_of_rule
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.abilities import Abilities
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.walk import Batch

TIE = 1e-4
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tasks", required=True, help="lm-eval tasks, with commas")
    parser.add_argument("--limit", type=int, help="items a task")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--rules", default="simple", help="simple, or simple,similarity")
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth block size")
    parser.add_argument("--datasets", help="a local mirror of the hub")
    parser.add_argument("--batch", type=int, default=16, help="batch size of HFLM")
    parser.add_argument("--loop", action="store_true", help="measure (b) too")
    parser.add_argument(
        "--agreement", action="store_true", help="only (a) and (c), over the cuts of all rules, untimed"
    )
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = harness.load_tasks(options.tasks.split(","), num_fewshot=options.num_fewshot, datasets=options.datasets)
    families = cuts_by_rules(model, tokenizer, options.rules.split(","), options.every)
    asked = harness.collect_requests(loaded, model, tokenizer, limit=options.limit)
    instances = asked.instances
    some = list(families.values())[0][:3]
    loglikelihoods(model, asked.contexts[:8], asked.continuations[:8], some, max_length=asked.max_length)

    def swept(cuts):
        # from requests as they stand, as HFLM begins: tokenization is part of it
        contexts, continuations, max_length = harness.encode(instances, model, tokenizer)
        return loglikelihoods(model, contexts, continuations, cuts, max_length=max_length)

    if options.agreement:
        families = dict([families.popitem()])  # the last has the cuts of all rules
    before = side_by_side.held()
    plan = plan_requests(PrunedFamily(model, some), asked.contexts, asked.continuations, asked.max_length)
    every = sorted({cut for cuts in families.values() for cut in cuts})
    longest = families[list(families)[0]]
    points = () if options.agreement else range(1, len(longest) + 1, max(1, len(longest) // 3))
    runs = {name: functools.partial(swept, cuts) for name, cuts in families.items()}
    if not options.agreement:
        runs["bare"] = functools.partial(bare_pass, model, plan.pieces)
        runs |= {few: functools.partial(swept, longest[:few]) for few in points}
    rounds = 1 if options.agreement else ROUNDS
    naive, found, seconds, peaks = {}, {}, collections.defaultdict(list), []
    for number in range(rounds):
        # what comes first after HFLM is slower by a tenth: each time another
        for name in [*list(runs)[number:], *list(runs)[:number]]:
            answers, passed, peak = side_by_side.measured(runs[name])
            seconds[name].append(passed)
            if name in families:
                found[name] = answers[0]
                peaks.append(peak)
        print(
            f"round {number + 1} of {rounds}: " + ", ".join(f"{k} {t[-1]:.1f} s" for k, t in seconds.items()),
            flush=True,
        )
        naive |= {
            cut: answers for cut, *answers in hflm(model, tokenizer, instances, every[number::rounds], options.batch)
        }
    median = {name: float(np.median(of_rounds)) for name, of_rounds in seconds.items()}
    bare = median.get("bare")
    line = [
        {
            "cuts": few,
            "layer_steps_a_token": Tree(longest[:few], num_layers(model)).nodes,
            "seconds": round(median[few], 2),
        }
        for few in points
    ]
    content = {
        "model": options.model, "dtype": options.dtype, "tasks": options.tasks, "num_fewshot": options.num_fewshot,
        "requests": len(instances), "items": len({(i.task_name, i.doc_id) for i in instances}),
        "distinct_tokens": plan.tokens, "padding": round(plan.padding, 4),
        "seconds_bare": bare and round(bare, 2),
        "rounds": {str(name): [round(passed, 2) for passed in of_rounds] for name, of_rounds in seconds.items()},
        "bytes": {
            "weights": weights, "held_before": before, "peak_of_sweep": max(peaks),
            "peak_of_hflm": max(peak for _, _, peak in naive.values()),
        },
        "cost_against_cuts": line,
        "families": {},
    }  # fmt: skip
    for name, cuts in families.items():
        total = sum(naive[cut][1] for cut in cuts)
        content["families"][name] = {
            "cuts": len(cuts), "layer_steps_a_token": Tree(cuts, num_layers(model)).nodes,
            **agreement(instances, np.array([naive[cut][0] for cut in cuts]), found[name]),
        }  # fmt: skip
        if not options.agreement:
            content["families"][name] |= {
                "seconds_hflm": round(total, 1), "seconds_sweep": round(median[name], 2),
                "times_faster_than_hflm": round(total / median[name], 1),
                "bare_passes": round(median[name] / bare, 2),
                "distinct_tokens_a_second": round(plan.tokens / median[name]),
            }  # fmt: skip
        else:
            double = copy.deepcopy(model).double()
            exact = functools.partial(hflm, double, tokenizer, instances, batch=options.batch)
            content["families"][name]["where_furthest"] = where_furthest(naive, exact, cuts, found[name])
        if options.loop:
            _, looped, _ = side_by_side.measured(lambda cuts=cuts: plain_loop(model, asked, cuts))
            content["families"][name]["seconds_loop"] = round(looped, 1)
            content["families"][name]["times_faster_than_loop"] = round(looped / median[name], 1)
    side_by_side.keep(f"sweep-{options.name}", content)


def cuts_by_rules(model, tokenizer, rules: list[str], every: int) -> dict[str, list[Cut]]:
    """The cuts of each rule by itself and, where there are several, of all together."""
    layers = num_layers(model)
    sizes = range(0, layers - 1, every)
    distances = None
    if "similarity" in rules:
        batches = text_batches(tokenizer, corpora.texts("wikipedia"), samples=64, length=256)
        distances = angular_distances(model, batches)
    families = {rule: cuts_of_rule(rule, sizes, layers, distances) for rule in rules}
    if len(families) > 1:
        families[" and ".join(families)] = sorted({cut for cuts in families.values() for cut in cuts})
    return families


def hflm(model, tokenizer, instances, cuts, batch: int):
    """(a): for each cut the log-likelihoods [R], seconds and peak memory of HFLM on the pruned model."""
    for number, cut in enumerate(cuts):
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=batch)
        if number == 0:
            lm.loglikelihood(instances[:16], disable_tqdm=True)
        answers, seconds, peak = side_by_side.measured(lambda lm=lm: lm.loglikelihood(instances, disable_tqdm=True))
        print(f"HFLM on {cut}: {seconds:.1f} s", flush=True)
        yield cut, [logprob for logprob, _ in answers], seconds, peak


def plain_loop(model, asked, cuts) -> None:
    """(b): each pruned model by itself, in our batches."""
    nothing = Abilities()
    for cut in cuts:
        family = PrunedFamily(drop_layers(model, cut), [Cut(0, 0)], nothing)
        for piece in plan_requests(family, asked.contexts, asked.continuations, asked.max_length).pieces:
            family.run(piece)


@torch.inference_mode()
def bare_pass(model, pieces) -> None:
    """(d): the decoder without its head, over the distinct tokens in the sweep's batches."""
    network = PrunedFamily(model, [Cut(0, 0)]).whole
    beginning, shared = None, None
    for piece in pieces:
        if piece.shared != shared:
            shared = piece.shared
            beginning = DynamicCache() if shared else None
            if shared:
                how = {"use_cache": True, network.cache_argument: beginning}
                model.base_model(input_ids=torch.tensor([shared]), **how)
        for sequences in piece.batches:
            ids = Batch.of(sequences, len(shared), network.device).ids
            cache = {} if beginning is None else {network.cache_argument: Borrowed(beginning)}
            model.base_model(input_ids=ids, use_cache=bool(cache), **cache)


class Borrowed(DynamicCache):
    """Keys and values of one sequence before those of each of many, which are not kept."""

    def __init__(self, cache: DynamicCache):
        super().__init__()
        self.layers = cache.layers

    def update(self, key_states, value_states, layer_idx, *_, **__):
        before = (self.layers[layer_idx].keys, self.layers[layer_idx].values)
        return tuple(
            torch.cat([one.expand(len(own), *one.shape[1:]), own], dim=-2)
            for one, own in zip(before, (key_states, value_states), strict=True)
        )


def agreement(instances, naive, found) -> dict:
    """How far the log-likelihoods [C, R] of (a) and (c) agree, and the answers chosen by them."""
    items: dict = {}
    for number, instance in enumerate(instances):
        items.setdefault((instance.task_name, instance.doc_id), []).append(number)
    choices = differing = ties = 0
    for numbers in items.values():
        if len(numbers) < 2:
            continue
        ours, theirs = found[:, numbers], naive[:, numbers]
        best = np.sort(theirs, axis=1)
        tied = best[:, -1] - best[:, -2] <= TIE
        differs = ours.argmax(axis=1) != theirs.argmax(axis=1)
        choices += len(differs)
        ties += int((tied & differs).sum())
        differing += int((~tied & differs).sum())
    apart = np.abs(naive - found)
    return {
        "largest_difference": float(apart.max()), "log_likelihoods": apart.size,
        "further_apart_than_a_tie": int((apart > TIE).sum()),
        # a sum over many tokens is rounded to its own size, which is far from one nat
        "largest_difference_relative": float((apart / np.maximum(1, np.abs(naive))).max()),
        "choices": choices, "choices_that_differ": differing, "ties_that_differ": ties,
    }  # fmt: skip


def where_furthest(naive, exact, cuts, found) -> dict:
    """For the cut with the largest difference: how far the sweep and HFLM each are from HFLM on float64 weights.

    transformers computes norms in float32 at any dtype, so that even this is exact only to some 1e-5.
    """
    far = [np.abs(naive[cut][0] - answers).max() for cut, answers in zip(cuts, found, strict=True)]
    worst = int(np.argmax(far))
    cut, theirs = cuts[worst], np.array(naive[cuts[worst]][0])
    _, closer, *_ = next(exact([cut]))
    errors = {"sweep": np.abs(found[worst] - closer), "hflm": np.abs(theirs - closer)}
    return {
        "cut": [cut.start, cut.size], "log_likelihoods": len(theirs), "largest_size": float(np.abs(theirs).max()),
        "largest_difference": float(far[worst]),
        "largest_from_float64": {name: float(error.max()) for name, error in errors.items()},
        "further_from_float64_than_a_tie": {name: int((error > TIE).sum()) for name, error in errors.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
