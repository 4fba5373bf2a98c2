"""Greedy searches by loss through the tree of layers, beside one pruned model after another.

(a) each candidate of a step alone: `drop_layers`, or its sublayers silenced, and its loss; (b) ours, in the same batch.
The same layers in the same order, or the benchmark fails. The price in bare passes of the whole model is printed
before; after it seconds of both by turns, their ratio, and how many bare passes they came to.

    python -m benchmarks.searching NAME --rules greedy,block-pruner --size 8
"""

import argparse
import contextlib
import functools
import statistics

import torch

from benchmarks import side_by_side
from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import sequences
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.models.sublayers import only
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.rules.rule import Known
from deeper_layers.sweeping.planning import BATCH_TOKENS
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.searching import losses_on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32", help="in which both give the same losses")
    parser.add_argument("--rules", default="greedy,block-pruner")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    texts = corpora.texts("wikipedia", split="train")
    text = sequences(tokenizer, texts, length=options.length, tokens=options.tokens)
    layers, sizes, found = num_layers(model), list(range(options.size + 1)), {}
    head = PrunedFamily(model, [Cut(0, 0)]).head_layers  # a bare pass is one of the layers and the head
    tokens = sum(map(len, text))
    if tokens > BATCH_TOKENS:
        parser.error(f"--tokens makes {tokens}, expected at most {BATCH_TOKENS}: both ways run one batch")
    ways = {"one_by_one": one_by_one(model, text), "ours": losses_on(model, text)}
    for way in ways.values():  # the first pass of a process is slow
        way([Cut(0, 0)])
    for rule in options.rules.split(","):
        seconds: dict[str, list[float]] = {way: [] for way in (*ways, "bare")}
        chosen = REGISTERED[rule]
        print(f"{rule}: {chosen.price(options.size, layers)}, over {tokens:,} tokens", flush=True)
        steps = chosen.passes(options.size, layers) * layers + chosen.heads(options.size, layers) * head
        price = steps / (layers + head)
        for _ in range(options.repeats):
            cuts = {}
            for way, losses in ways.items():
                choose = functools.partial(chosen.choose, sizes, Known(layers, losses=losses))
                cuts[way], took, _ = side_by_side.measured(choose)
                seconds[way].append(round(took, 2))
            _, took, _ = side_by_side.measured(lambda: ways["one_by_one"]([Cut(0, 0)]))
            seconds["bare"].append(round(took, 3))
            assert cuts["ours"] == cuts["one_by_one"], f"{rule}: other layers: {cuts}"
        pairs = zip(seconds["one_by_one"], seconds["ours"], strict=True)
        found[rule] = {
            "seconds": seconds,
            "times_faster": round(statistics.median(alone / ours for alone, ours in pairs), 2),
            "bare_passes": round(statistics.median(seconds["ours"]) / statistics.median(seconds["bare"]), 1),
            "bare_passes_priced": round(price, 1),
            "largest": cuts["ours"][-1].describe(layers),
            "same_layers": True,
        }
    content = {
        "model": options.model, "dtype": options.dtype, "layers": layers, "size": options.size, "tokens": tokens,
    }  # fmt: skip
    side_by_side.keep(f"searching-{options.name}", {**content, "rules": found})


def one_by_one(model, text):
    """(a): each pruned model for itself, all sequences in one batch."""
    ids = torch.stack(text).long()

    @torch.inference_mode()
    def loss(cut: Cut) -> float:
        pruned = drop_layers(model, Cut.of(cut.dropped))
        kept = cut.kept(num_layers(model))
        with contextlib.ExitStack() as stack:
            for part, indices in ((MLP, cut.attention), (ATTENTION, cut.mlp)):  # what still runs of them
                for index in indices:
                    stack.enter_context(only(decoder_layers(pruned)[kept.index(index)], part))
            logits = pruned(input_ids=ids, use_cache=False).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()))

    return lambda cuts: [loss(cut) for cut in cuts]


if __name__ == "__main__":
    main()
