"""The text of a healing as sequences of tokens, in whole steps: the same for whoever teaches and whoever learns."""

import torch

from deeper_layers.checks import shown
from deeper_layers.data.tokens import sequences
from deeper_layers.errors import InputError
from deeper_layers.presets import HealingConfig


def sequences_to_learn(tokenizer, texts: list[str], config: HealingConfig) -> list[torch.Tensor]:
    """Sequences [T] in the order of the seed, as many as fill whole steps. Raises InputError where they fill none."""
    if not isinstance(config, HealingConfig):
        raise InputError(f"config is {shown(config)}, expected a HealingConfig: PRESETS['small'] is one")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"texts is {shown(texts)}, expected a list of documents: put them into one")
    found = sequences(
        tokenizer, texts, length=config.sequence_length, seed=config.seed, packed=config.packed, tokens=config.tokens
    )
    if len(found) < config.batch_sequences:
        raise InputError(
            f"the texts fill {len(found)} sequences ({sum(map(len, found)):,} tokens), and one step needs "
            f"{config.batch_sequences} of {config.sequence_length} tokens: give more text, or lower batch_sequences or "
            "sequence_length"
        )
    return found[: len(found) // config.batch_sequences * config.batch_sequences]
