"""Healings of a tiny model as one of several processes that torchrun starts: MODEL OUT HEALINGS, the last in JSON.

Each process writes what came out of them to OUT/RANK.json. The suite runs the same healings in one process.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.healing.training import train
from deeper_layers.models.opening import load_model
from deeper_layers.presets import HealingConfig
from deeper_layers.pruning import drop_layers

TEXTS = [f"{i} and {i + 1} are numbers, {'and so are these ' * (i % 7)}{i * i}." for i in range(60)]
CONFIG = HealingConfig(
    rank=2, learning_rate=1e-2, sequence_length=32, batch_sequences=4, at_once=1, save_every=2, steps=4, warmup_steps=1,
    quantization=None, gradient_checkpointing=False, dropout=0.0, packed=False,
)  # fmt: skip


def healed(model: str, out: Path, healings: dict[str, dict]) -> dict[str, dict]:
    """What each healing gave, by its name: losses, tokens, and what its adapters sum up to; or what was wrong."""
    whole, tokenizer = load_model(model, dtype="float32", device="cpu")
    found: dict[str, dict] = {}
    for name, settings in healings.items():
        config, cut = dataclasses.replace(CONFIG, **settings), Cut(2, 2)
        try:
            adapted, record = train(
                drop_layers(whole, cut), tokenizer, TEXTS, config, cut=cut, whole=whole, folder=out / name
            )
        except InputError as error:
            found[name] = {"error": str(error)}
            continue
        sums = [float(p.detach().double().abs().sum()) for p in adapted.parameters() if p.requires_grad]
        found[name] = {"losses": record.losses, "tokens": record.tokens, "adapters": sums}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, model, out, healings = sys.argv
    content = healed(model, Path(out), json.loads(healings))
    (Path(out) / f"{os.environ['RANK']}.json").write_text(json.dumps(content))
