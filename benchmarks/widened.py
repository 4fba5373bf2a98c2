"""Products of 16 bits in float32 beside PyTorch's own, on a processor without arithmetic of 16 bits.

A pass forwards, one there and back through adapters as healing makes it, and a sweep over pruned models, each over
the same tokens; by turns.

    python -m benchmarks.widened NAME --tasks mmlu_anatomy --num-fewshot 5 --datasets FOLDER
"""

import argparse
import collections
import contextlib
import statistics
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks import side_by_side
from deeper_layers.cuts import simple_cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import sequences
from deeper_layers.healing.adapters import add_adapters
from deeper_layers.models.half_precision import attend, multiplies_sixteen_bits
from deeper_layers.models.opening import load_model
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import loglikelihoods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none", help="nf4, int8 or none")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tasks", default="capitals", help="of the sweep: lm-eval tasks, with commas")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--limit", type=int, default=10, help="items a task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--datasets", help="a local mirror of the hub")
    options = parser.parse_args()
    side_by_side.start()
    if multiplies_sixteen_bits():
        parser.error("this processor has arithmetic of 16 bits: nothing is widened on it")

    quantization = None if options.quantization == "none" else options.quantization
    tasks = options.tasks.split(",")
    loaded = harness.load_tasks(tasks, num_fewshot=options.num_fewshot, datasets=options.datasets)
    models, trained = {}, {}
    for way, chosen in WAYS.items():
        with chosen():
            models[way], tokenizer = load_model(options.model, dtype=options.dtype, quantization=quantization)
            torch.manual_seed(0)
            copied, _ = load_model(options.model, dtype=options.dtype, quantization=quantization)
            trained[way] = add_adapters(copied, rank=8, alpha=8, dropout=0.0).train()
    texts = corpora.texts("wikipedia", split="validation")
    ids = sequences(tokenizer, texts, length=options.length, tokens=options.length)[0].long()[None]
    asked = harness.collect_requests(loaded, models["plain"], tokenizer, limit=options.limit)
    layers = models["plain"].config.num_hidden_layers
    cuts = [simple_cut(layers, size) for size in range(layers - 1)]

    def forwards(way):
        with torch.no_grad():
            trained[way](input_ids=ids)

    def there_and_back(way):
        loss = trained[way](input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item()

    def sweep(way):
        return loglikelihoods(models[way], asked.contexts, asked.continuations, cuts, max_length=asked.max_length)[0]

    runs = {"forwards": forwards, "there_and_back": there_and_back, "sweep": sweep}
    seconds: dict = {name: collections.defaultdict(list) for name in runs}
    found: dict = {name: {} for name in runs}
    for _ in range(options.repeats):
        for way, chosen in WAYS.items():
            for name, run in runs.items():
                with chosen():
                    found[name][way], spent, _ = side_by_side.measured(lambda run=run, way=way: run(way))
                seconds[name][way].append(round(spent, 3))
                print(f"{name}, {way}: {spent:.2f} s", flush=True)
    of_weights = [[p.grad.flatten() for p in trained[way].parameters() if p.grad is not None] for way in WAYS]
    differences = np.abs(np.subtract(*found["sweep"].values()))

    side_by_side.keep(
        f"widened-{options.name}",
        {
            "model": options.model, "dtype": options.dtype, "quantization": quantization, "length": options.length,
            "tasks": options.tasks, "num_fewshot": options.num_fewshot, "pruned_models": len(cuts),
            "items": len({(i.task_name, i.doc_id) for i in asked.instances}), "seconds": seconds,
            "times_faster": {
                name: round(statistics.median(map(float.__truediv__, of_ways["plain"], of_ways["widened"])), 1)
                for name, of_ways in seconds.items()
            },
            "losses": found["there_and_back"],
            "cosine_of_gradients": round(torch.cosine_similarity(*map(torch.cat, of_weights), dim=0).item(), 5),
            "log_likelihoods_median_difference": float(np.median(differences)),
        },
    )  # fmt: skip


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """As on a processor with arithmetic of 16 bits: nothing is widened."""
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    try:
        with mock.patch.object(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512"):
            yield
    finally:
        AttentionInterface.register("sdpa", attend)


WAYS = {"plain": plain, "widened": contextlib.nullcontext}


if __name__ == "__main__":
    main()
