"""Every angular distance in one pass, beside a bare pass and beside one run for each block size.

(a) one run a block size n, as PruneMe works: all hidden states of all tokens, then the distances of that n;
(b) one bare pass of the decoder over the same batches; (c) ours. Printed: ratios, peak memory at few and at
many samples, and the largest difference from a plain loop in float64.

    python -m benchmarks.similarity NAME
"""

import argparse
import math

import numpy as np
import torch

from benchmarks import side_by_side
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.similarity import measure_distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--samples", type=int, nargs=2, default=(64, 1024), help="few and many")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    side_by_side.start()

    model, tokenizer = load_model(options.model, dtype=options.dtype)
    texts = corpora.texts("wikipedia")
    few, many = (text_batches(tokenizer, texts, samples=n, length=options.length) for n in options.samples)
    bare_pass(model, few[:2])
    measure_distances(model, few[:2])

    # by turns, so that a machine that changes its pace changes it for both
    bare, ours = [], []
    for _ in range(options.repeats):
        bare.append(side_by_side.measured(lambda: bare_pass(model, few))[1])
        ours.append(side_by_side.measured(lambda: measure_distances(model, few))[1])
    # every new width of a batch costs the kernels some memory once: both have met all of them before the peaks count
    bare_pass(model, many)
    (mean, _, _), _, peak_few = side_by_side.measured(lambda: measure_distances(model, few))
    _, _, peak_many = side_by_side.measured(lambda: measure_distances(model, many))
    _, _, peak_bare = side_by_side.measured(lambda: bare_pass(model, many))
    one_by_one, apart, peak_apart = side_by_side.measured(lambda: one_run_a_size(model, few))
    exact, kept = load_model(options.model, dtype="float32")[0], few[:4]
    tokens = int(sum(batch["attention_mask"].sum() for batch in few))
    content = {
        "model": options.model, "dtype": options.dtype, "samples": options.samples, "length": options.length,
        "tokens": tokens,
        "padding": round(1 - tokens / sum(batch["input_ids"].numel() for batch in few), 4),
        "seconds": {
            "bare": [round(s, 2) for s in bare], "ours": [round(s, 2) for s in ours], "one_run_a_size": round(apart, 1),
        },
        "bare_passes": round(float(np.median(np.array(ours) / np.array(bare))), 3),
        "times_faster_than_one_run_a_size": round(apart / float(np.median(ours)), 1),
        "peak_bytes": {"few": peak_few, "many": peak_many, "bare_many": peak_bare, "one_run_a_size": peak_apart},
        "largest_difference_from_float64_loop": float(
            np.nanmax(np.abs(measure_distances(exact, kept)[0] - plain_loop(exact, kept)))
        ),
        "largest_difference_from_one_run_a_size": float(np.nanmax(np.abs(mean - one_by_one))),
    }  # fmt: skip
    side_by_side.keep(f"similarity-{options.name}", content)


@torch.inference_mode()
def bare_pass(model, batches) -> None:
    """(b)"""
    for batch in batches:
        model.base_model(**batch, use_cache=False)


@torch.inference_mode()
def one_run_a_size(model, batches) -> np.ndarray:
    """(a): distances [n, l] from a pass over the data for each n; blocks that end after the last layer left out.

    They would be compared with `hidden_states[-1]`, which lies after the final norm.
    """
    layers = num_layers(model)
    matrix = np.full((layers, layers), np.nan)
    for size in range(1, layers):
        total, count = torch.zeros(layers - size, dtype=torch.float64), 0
        for batch in batches:
            states = model.base_model(**batch, use_cache=False, output_hidden_states=True).hidden_states
            last = batch["attention_mask"].sum(dim=1) - 1
            rows = torch.arange(len(last))
            for start in range(layers - size):
                total[start] += angles(states[start][rows, last], states[start + size][rows, last]).sum()
            count += len(last)
        matrix[size - 1, : layers - size] = (total / count).numpy()
    return matrix


@torch.inference_mode()
def plain_loop(model, batches) -> np.ndarray:
    """Distances [n, l] by the definition: a sequence at a time, without padding, a pair of residuals at a time."""
    layers = decoder_layers(model)
    sums, count, residuals = np.zeros((len(layers), len(layers))), 0, []
    hooks = [layer.register_forward_pre_hook(lambda _, given: residuals.append(given[0][0, -1])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, __, output: residuals.append(output[0, -1])))
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            residuals.clear()
            model.base_model(input_ids=ids[mask.bool()][None], use_cache=False)
            for size in range(1, len(layers) + 1):
                for start in range(len(layers) - size + 1):
                    a, b = (residuals[i].double().tolist() for i in (start, start + size))
                    sums[size - 1, start] += angle(a, b)
            count += 1
    for hook in hooks:
        hook.remove()
    matrix = sums / count
    for size in range(1, len(layers) + 1):
        matrix[size - 1, len(layers) - size + 1 :] = np.nan
    return matrix


def angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
    return torch.arccos(cosine.clamp(-1, 1)) / torch.pi


def angle(a: list[float], b: list[float]) -> float:
    """In units of pi, without a library."""
    cosine = math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
        math.fsum(x * x for x in a) * math.fsum(y * y for y in b)
    )
    return math.acos(max(-1.0, min(1.0, cosine))) / math.pi


if __name__ == "__main__":
    main()
