"""Losses on text of pruned models with and without comparing each with the whole model, turn by turn.

    python -m benchmarks.agreement NAME

writes measured/agreement-NAME.json.
"""

import numpy as np

from benchmarks import harness
from deeper_layers import load_model
from deeper_layers.cuts import UNPRUNED, simple_cut
from deeper_layers.data import corpora
from deeper_layers.data.tokens import token_sequences
from deeper_layers.models.decoder import num_layers
from deeper_layers.sweeping.agreement import MEASURES
from deeper_layers.sweeping.sweeps import text_loss


def main() -> None:
    options = harness.options(__doc__, sequences=8, length=128, every=2)
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    layers = num_layers(model)
    cuts = [UNPRUNED, *(simple_cut(layers, size) for size in range(1, layers, options.every))]
    tokens = options.sequences * options.length
    text = token_sequences(tokenizer, corpora.texts("wikipedia"), length=options.length, tokens=tokens)
    ways = {
        "losses": lambda: text_loss(model, cuts, text)[0],
        "compared": lambda: text_loss(model, cuts, text, compares=True)[0],
    }
    text_loss(model, cuts[:2], text[:1], compares=True)
    found = harness.by_turns(ways, options.repeats)
    losses, compared = (found[name][-1].result for name in ways)
    content = {
        "model": options.model,
        "dtype": options.dtype,
        "cuts": len(cuts),
        "tokens": tokens,
        "seconds": harness.seconds(found),
        "of_time_without": harness.ratio(found, "compared", "losses", 3),
        "peak_bytes": {name: max(run.peak for run in runs) for name, runs in found.items()},
        "largest_difference_of_losses": float(np.abs(losses["value"] - compared["value"]).max()),
        "by_size": compared[["size", "value", *MEASURES]].round(4).to_dict("records"),
    }
    harness.keep(f"agreement-{options.name}", content)


if __name__ == "__main__":
    main()
