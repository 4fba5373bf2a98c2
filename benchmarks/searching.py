"""Greedy search by loss through the tree of layers beside a loop over its candidates, in the same batches.

Both search by themselves, to the same number of layers, step by step in turns; a bare pass of the whole model over the
same tokens is timed in the same turns. The price in bare passes is printed before. Printed after: both orders and
whether they are one, the ratio of times, bare passes, the largest difference of a loss.

    python -m benchmarks.searching NAME --samples 16 --length 128
"""

import argparse
import time

import numpy as np
import torch

from benchmarks import side_by_side
from benchmarks.sweep import bare_pass
from deeper_layers.cuts import Cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches
from deeper_layers.evaluation.searching import losses_on
from deeper_layers.evaluation.sweeps import plan_requests
from deeper_layers.family.abilities import Abilities
from deeper_layers.family.pruned_family import PrunedFamily
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import REGISTERED
from deeper_layers.rules.greedy import greedy_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--drop", type=int, help="layers to drop in the end; by default half of them")
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    layers = num_layers(model)
    most = options.drop or layers // 2
    batches = text_batches(tokenizer, corpora.texts("wikipedia"), samples=options.samples, length=options.length)
    sequences = [
        ids[mask.bool()] for b in batches for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
    ]
    tokens = sum(map(len, sequences))
    price = REGISTERED["greedy"].passes(most, layers)
    print(f"greedy: at most {price:,.1f} bare passes over {tokens:,} tokens", flush=True)
    loop = Loop(model, sequences)
    losses = {"tree": losses_on(model, sequences), "loop": loop.losses}
    seconds: dict[str, list[float]] = {"tree": [], "loop": [], "bare": []}
    found: dict[str, list] = {"tree": [], "loop": []}

    def side(way: str):
        """The losses of a step, timed."""

        def timed(cuts: list[Cut]):
            start = time.perf_counter()
            of_step = losses[way](cuts)
            seconds[way].append(time.perf_counter() - start)
            found[way].append(of_step)
            print(f"{way}, step {len(found[way])} of {most}: {seconds[way][-1]:.1f} s", flush=True)
            return of_step

        return timed

    losses["tree"]([Cut(1, 1), Cut(2, 1)])  # the first pass of a process is slow
    orders: dict[str, list[int]] = {"tree": [], "loop": []}
    for step in range(most):
        for way in ("tree", "loop") if step % 2 else ("loop", "tree"):
            orders[way] = next_of(orders[way], layers, side(way))
        _, passed, _ = side_by_side.measured(lambda: bare_pass(model, loop.pieces))
        seconds["bare"].append(passed)
    total = {way: sum(seconds[way]) for way in orders}
    bare = float(np.median(seconds["bare"]))
    apart = max(float(np.abs(np.subtract(*of_step)).max()) for of_step in zip(found["tree"], found["loop"]))
    side_by_side.keep(
        f"searching-{options.name}",
        {
            "model": options.model, "dtype": options.dtype, "layers": layers, "dropped": most, "tokens": tokens,
            "orders": orders, "same_order": orders["tree"] == orders["loop"], "largest_difference": apart,
            "seconds": {way: round(passed, 1) for way, passed in total.items()}, "seconds_bare": round(bare, 3),
            "times_faster_than_loop": round(total["loop"] / total["tree"], 2),
            "bare_passes": {way: round(passed / bare, 1) for way, passed in total.items()},
            "bare_passes_priced": round(price, 1),
        },
    )  # fmt: skip


def next_of(order: list[int], layers: int, losses) -> list[int]:
    """An order with the layer that the search drops next."""
    known = iter(order)

    def or_known(cuts: list[Cut]):
        """Losses by which the layers that are dropped already win again."""
        layer = next(known, None)
        return losses(cuts) if layer is None else [float(layer not in cut.dropped) for cut in cuts]

    return greedy_order(len(order) + 1, layers, or_known)


class Loop:
    """Each candidate by itself, in our batches, nothing shared."""

    def __init__(self, model, sequences: list[torch.Tensor]):
        self.model, self.tokens = model, sum(len(ids) - 1 for ids in sequences)
        rows = [ids.tolist() for ids in sequences]
        whole = PrunedFamily(model, [Cut(0, 0)], Abilities())
        plan = plan_requests(whole, [ids[:1] for ids in rows], [ids[1:] for ids in rows], max(map(len, rows)))
        self.pieces = plan.pieces

    def losses(self, cuts: list[Cut]) -> list[float]:
        found = []
        for cut in cuts:
            family = PrunedFamily(drop_layers(self.model, cut), [Cut(0, 0)], Abilities())
            found.append(-sum(family.run(piece)[0].sum() for piece in self.pieces) / self.tokens)
        return found


if __name__ == "__main__":
    main()
