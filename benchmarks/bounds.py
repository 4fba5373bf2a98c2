"""What bounds a batch on a card: products, weights to read, or launches of operators. Arithmetic; nothing is run.

Launches are counted on models without weights, of the shapes of the paper's Llama-2 (arXiv 2307.09288) and of the
embedded model. A batch of a sweep has 4,096 tokens; a token of generation is written for 8 answers at a time.

    python -m benchmarks.bounds

writes measured/bounds.json.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import harness
from deeper_layers.cuts import UNPRUNED
from deeper_layers.models import find_model, load_empty_model
from deeper_layers.sweeping.planning import BATCH_TOKENS
from deeper_layers_companion.jobs import price

MACHINES = ("h100", "a100", "rtx4090")
ANSWERS, LENGTH = 8, 256
LLAMAS = {  # width, inner width, layers, heads, heads of keys and values
    "Llama-2-7B": (4096, 11008, 32, 32, 32),
    "Llama-2-13B": (5120, 13824, 40, 40, 40),
    "Llama-2-70B": (8192, 28672, 80, 64, 8),
}


def main() -> None:
    rows = find_bounds("SmolLM2-135M-Instruct", load_empty_model(find_model("embedded")))
    for name, (width, inner, layers, heads, shared) in LLAMAS.items():
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
        )
        with torch.device("meta"):
            rows += find_bounds(name, LlamaForCausalLM(config))
    harness.keep("bounds", {"dtype": "bfloat16", "rows": rows})


def find_bounds(name: str, model) -> list[dict]:
    """A row for each machine: what binds, and from how many tokens on launches do not."""
    shape = price.read_shape(model)
    batch = price.sweep_cost(shape, [UNPRUNED], BATCH_TOKENS, 0, LENGTH, "bfloat16")
    token = price.writing_cost(shape, [UNPRUNED], ANSWERS, ANSWERS, 1, "bfloat16")
    rows = []
    for known in MACHINES:
        machine = price.find_machine(known)
        rows.append(
            {
                "model": name,
                "launches": shape.launches,
                "machine": known,
                "launches_bind_below": price.smallest_batch(shape, machine, "bfloat16"),
                "batch": batch.bound(machine, "bfloat16"),
                "token": token.bound(machine, "bfloat16"),
            }
        )
    return rows


if __name__ == "__main__":
    main()
