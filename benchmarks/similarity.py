"""Every angular distance in one pass, beside a bare pass and beside one run for each block size.

(a) one run a block size n, as PruneMe works: all hidden states of all tokens, then the distances of that n; (b) a bare
pass of the decoder; (c) ours.

    python -m benchmarks.similarity NAME
"""

import numpy as np
import torch

from benchmarks import harness
from deeper_layers import decoder_layers, load_model, measure_distances
from deeper_layers.data import corpora
from deeper_layers.data.tokens import text_batches


def main() -> None:
    more = {"samples": {"type": int, "nargs": 2, "default": (64, 1024), "help": "few and many"}}
    options = harness.options(__doc__, length=256, **more)
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    texts = corpora.texts("wikipedia")
    few, many = (text_batches(tokenizer, texts, samples=n, length=options.length) for n in options.samples)
    for warm in (bare_pass, measure_distances):
        warm(model, few[:2])
    ways = {"bare": lambda: bare_pass(model, few), "ours": lambda: measure_distances(model, few)}
    found = harness.by_turns(ways, options.repeats)
    # every new width of a batch costs the kernels some memory once: both have met all of them before the peaks count
    bare_pass(model, many)
    peaks = {"bare_many": lambda: bare_pass(model, many), "many": lambda: measure_distances(model, many)}
    apart = harness.timed(lambda: one_run_a_size(model, few))
    ours = float(np.median([run.seconds for run in found["ours"]]))
    tokens = int(sum(batch["attention_mask"].sum() for batch in few))
    content = {
        "model": options.model, "dtype": options.dtype, "samples": options.samples, "length": options.length,
        "tokens": tokens, "padding": round(1 - tokens / sum(batch["input_ids"].numel() for batch in few), 4),
        "seconds": harness.seconds(found | {"one_run_a_size": [apart]}),
        "bare_passes": harness.ratio(found, "ours", "bare", 3),
        "times_faster_than_one_run_a_size": round(apart.seconds / ours, 1),
        "peak_bytes": {name: harness.timed(run).peak for name, run in ({"few": ways["ours"]} | peaks).items()}
        | {"one_run_a_size": apart.peak},
        "largest_difference_from_one_run_a_size": float(np.nanmax(np.abs(found["ours"][-1].result[0] - apart.result))),
    }  # fmt: skip
    harness.keep(f"similarity-{options.name}", content)


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
    layers = len(decoder_layers(model))
    matrix = np.full((layers, layers), np.nan)
    for size in range(1, layers):
        found = []
        for batch in batches:
            states = model.base_model(**batch, use_cache=False, output_hidden_states=True).hidden_states
            rows, last = torch.arange(len(states[0])), batch["attention_mask"].sum(dim=1) - 1
            ends = torch.stack([state[rows, last] for state in states[:-1]]).double()  # [L, B, d]
            cosine = torch.nn.functional.cosine_similarity(ends[:-size], ends[size:], dim=-1)
            found.append(torch.arccos(cosine.clamp(-1, 1)) / torch.pi)
        matrix[size - 1, : layers - size] = torch.cat(found, dim=1).mean(dim=1).numpy()
    return matrix


if __name__ == "__main__":
    main()
