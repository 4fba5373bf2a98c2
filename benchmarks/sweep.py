"""The shared sweep beside lm-eval's own loop over pruned models, in one run on one machine.

(a) HFLM on each pruned model in turn; (b) a plain loop over the pruned models in our batches, nothing shared;
(c) the sweep; (d) one bare pass of the whole model's decoder, without its head, over the same distinct tokens.
(a) and (c) both begin with lm-eval's requests and end with log-likelihoods. Printed: ratios, tokens a second,
peak memory, share of padding, the largest difference of any log-likelihood, and answers that differ.

    python -m benchmarks.sweep NAME --tasks boolq --limit 100 --rules simple --datasets FOLDER
"""

import argparse

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from benchmarks import side_by_side
from lib import corpora, evaluation
from lib.decoder import num_layers
from lib.family import Abilities, PrunedFamily
from lib.lending import Lent
from lib.models import load_model
from lib.network import Batch
from lib.pruning import Cut, drop_layers
from lib.selection import cuts_of_rule
from lib.similarity import angular_distances
from lib.sweep import loglikelihoods, plan_requests

TIE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tasks", required=True, help="lm-eval tasks, with commas")
    parser.add_argument("--limit", type=int, help="items a task")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--rules", default="simple", help="simple, or similarity,simple")
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth block size")
    parser.add_argument("--datasets", help="a local mirror of the hub")
    parser.add_argument("--batch", type=int, default=16, help="batch size of HFLM")
    parser.add_argument("--loop", action="store_true", help="measure (b) too")
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = evaluation.load_tasks(options.tasks.split(","), num_fewshot=options.num_fewshot, datasets=options.datasets)
    cuts = family_of_cuts(model, tokenizer, options.rules.split(","), options.every)
    asked = evaluation.collect_requests(loaded, model, tokenizer, limit=options.limit)
    instances = asked.instances
    plan = plan_requests(PrunedFamily(model, cuts), asked.contexts, asked.continuations, asked.max_length)
    loglikelihoods(model, asked.contexts[:8], asked.continuations[:8], cuts[:3], max_length=asked.max_length)

    def swept(some):
        again = evaluation.collect_requests(loaded, model, tokenizer, limit=options.limit)
        return loglikelihoods(model, again.contexts, again.continuations, some, max_length=again.max_length)

    before = side_by_side.held()
    (found, _), seconds, peak = side_by_side.measured(lambda: swept(cuts))
    _, bare, _ = side_by_side.measured(lambda: bare_pass(model, plan.pieces))
    line = []
    for number in (1, *range(8, len(cuts), 8)):
        some = cuts[:number]
        _, passed, _ = side_by_side.measured(lambda some=some: swept(some))
        line.append({"cuts": number, "layer_steps": PrunedFamily(model, some).layer_steps, "seconds": round(passed, 2)})
    line.append({"cuts": len(cuts), "layer_steps": plan.layer_steps // plan.tokens, "seconds": round(seconds, 2)})

    naive, naive_seconds, naive_peak = hflm(model, tokenizer, instances, cuts, options.batch)
    content = {
        "model": options.model, "dtype": options.dtype, "tasks": options.tasks, "num_fewshot": options.num_fewshot,
        "rules": options.rules, "cuts": len(cuts), "requests": len(instances),
        "items": len({(i.task_name, i.doc_id) for i in instances}), "distinct_tokens": plan.tokens,
        "padding": round(plan.padding, 4), "layer_steps_a_token": plan.layer_steps // plan.tokens,
        "seconds": {"hflm": round(naive_seconds, 1), "sweep": round(seconds, 2), "bare": round(bare, 2)},
        "times_faster_than_hflm": round(naive_seconds / seconds, 1),
        "bare_passes": round(seconds / bare, 2),
        "distinct_tokens_a_second": round(plan.tokens / seconds),
        "peak_bytes": {"weights": weights, "before": before, "sweep": peak, "hflm": naive_peak},
        "cost_against_cuts": line,
        **agreement(instances, naive, found),
    }  # fmt: skip
    if options.loop:
        _, looped, _ = side_by_side.measured(lambda: plain_loop(model, asked, cuts))
        content["seconds"]["loop"] = round(looped, 1)
        content["times_faster_than_loop"] = round(looped / seconds, 1)
    side_by_side.keep(f"sweep-{options.name}", content)


def family_of_cuts(model, tokenizer, rules: list[str], every: int) -> list[Cut]:
    layers = num_layers(model)
    sizes = range(0, layers - 1, every)
    distances = None
    if "similarity" in rules:
        batches = corpora.text_batches(tokenizer, corpora.texts("wikipedia"), samples=64, length=256)
        distances = angular_distances(model, batches)
    return sorted({cut for rule in rules for cut in cuts_of_rule(rule, sizes, layers, distances)})


def hflm(model, tokenizer, instances, cuts, batch: int):
    """(a): log-likelihoods [C, R], seconds and peak memory of HFLM on each pruned model."""
    found, seconds, peak = [], 0.0, 0
    for cut in cuts:
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=batch)
        if not found:
            lm.loglikelihood(instances[:16], disable_tqdm=True)
        answers, passed, most = side_by_side.measured(lambda lm=lm: lm.loglikelihood(instances, disable_tqdm=True))
        found.append([logprob for logprob, _ in answers])
        seconds, peak = seconds + passed, max(peak, most)
        print(f"HFLM on {cut}: {passed:.1f} s", flush=True)
    return np.array(found), seconds, peak


def plain_loop(model, asked, cuts) -> None:
    """(b): each pruned model by itself, in our batches."""
    nothing = Abilities(share=False, apart=False, score_only=None, branch=False)
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
            beginning = network.remember(torch.tensor([shared])) if shared else None
        for sequences in piece.batches:
            ids = Batch.of(sequences, len(shared), network.device).ids
            cache = {} if beginning is None else {network.cache_argument: Lent(beginning, len(ids))}
            model.base_model(input_ids=ids, use_cache=bool(cache), **cache)


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
    return {
        "largest_difference": float(np.abs(naive - found).max()),
        "choices": choices, "choices_that_differ": differing, "ties_that_differ": ties,
    }  # fmt: skip


if __name__ == "__main__":
    main()
