"""What dropping layers gains: parameters, bytes, and the speed of reading a prompt and of writing an answer.

All pruned models by turns, and that repeated, so that a machine that changes its pace changes it for all: a ratio is
always one of the same turn. `prefill` reads prompts, their last logits included; `decode` writes tokens greedily
through transformers, for one prompt and for several at once. The ideal is a model that is nothing but layers.

    python -m benchmarks.gained NAME --sizes 0,4,8,12,16,20,24,28
"""

import argparse
import statistics

import torch

from benchmarks import side_by_side
from deeper_layers.cuts import simple_cut
from deeper_layers.experiments.bits import checkpoint_bytes
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers

WAYS = ("prefill", "decode", "decode_many")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in benchmarks/measured")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sizes", default="0,4,8,12,16,20,24,28", help="block sizes of the simple rule, with commas")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt that is read")
    parser.add_argument("--tokens", type=int, default=32, help="tokens written after a prompt of 16")
    parser.add_argument("--batch", type=int, default=8, help="prompts, where several are written to at once")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    side_by_side.start()

    model, _ = load_model(options.model, dtype=options.dtype)
    layers, vocabulary = num_layers(model), model.get_output_embeddings().weight.shape[0]
    sizes = [int(size) for size in options.sizes.split(",")]
    models = {size: drop_layers(model, simple_cut(layers, size)) for size in sizes}
    ids = torch.tensor([[(7919 * i + 104729 * row) % vocabulary for i in range(max(options.prompt, 16))]
                        for row in range(options.batch)])  # fmt: skip

    @torch.inference_mode()
    def run(pruned, way: str) -> int:
        """One measurement; the number of tokens in it."""
        if way == "prefill":
            pruned(input_ids=ids[:1, : options.prompt], logits_to_keep=1, use_cache=False)
            return options.prompt
        prompts = ids[: options.batch if way == "decode_many" else 1, :16]
        pruned.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=options.tokens,
                        do_sample=False)  # fmt: skip
        return options.tokens * len(prompts)

    speeds: dict = {size: {way: [] for way in WAYS} for size in sizes}
    for pruned in models.values():
        pruned.generation_config.eos_token_id = None  # every model writes as many tokens
        pruned.generation_config.pad_token_id = 0
        for way in WAYS:
            run(pruned, way)
    for _ in range(options.repeats):
        for way in WAYS:
            for size, pruned in models.items():
                tokens, seconds, _ = side_by_side.measured(lambda pruned=pruned, way=way: run(pruned, way))
                speeds[size][way].append(round(tokens / seconds, 1))
    rows = []
    for size, pruned in models.items():
        times = {way: [a / b for a, b in zip(speeds[sizes[0]][way], speeds[size][way], strict=True)] for way in WAYS}
        rows.append({
            "size": size,
            "start": simple_cut(layers, size).start,
            "ideal": round(1 - size / layers, 4),
            "parameters": sum(p.numel() for p in pruned.parameters()),
            "bytes": checkpoint_bytes(pruned),
            "tokens_a_second": speeds[size],
            # of the time of the first size in the same turn: median, least, most
            "share_of_time": {
                way: [round(number, 4) for number in (statistics.median(t), min(t), max(t))] for way, t in times.items()
            },
        })  # fmt: skip
    side_by_side.keep(
        f"gained-{options.name}",
        {
            "model": options.model, "dtype": options.dtype, "layers": layers, "prompt": options.prompt,
            "tokens": options.tokens, "batch": options.batch, "repeats": options.repeats, "rows": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
