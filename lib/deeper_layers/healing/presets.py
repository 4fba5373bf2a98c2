"""How to heal: the settings of a healing, and the paper's for each of its models.

Source: Gromov et al., arXiv 2403.17887, section 3.3 and appendix A.1. What the paper leaves open is the Trainer's:
AdamW with betas 0.9 and 0.999, gradients clipped at norm 1, no weight decay.
"""

import dataclasses
import math
from dataclasses import dataclass

from deeper_layers.errors import InputError

MOST = 2**31  # of any number of steps, tokens or sequences
KINDS = {int: int, float: int | float, bool: bool, str: str}  # what a field of one type may hold
EXPECTED = {int: "a whole number", float: "a number", bool: "True or False", str: "a word"}


@dataclass(frozen=True, kw_only=True)
class HealingConfig:
    """How to heal. What has a default is common to the paper's models, or left open by it (marked).

    Attributes:
        rank: of the adapters; alpha, which scales them, is equal to it.
        learning_rate: the highest, reached after the warm-up; then a cosine down to 0.
        sequence_length: tokens in a sequence.
        steps: updates of the adapters.
        warmup_steps: of these, with a learning rate that rises from 0.
        batch_sequences: sequences in a step.
        at_once: sequences that run together; gradients are summed over a step. Changes memory and speed only.
        dropout: share of the inputs to an adapter dropped in training.
        quantization: of the weights below the adapters: "nf4", "int8" or None.
        seed: of adapters, order of documents and sequences, and dropout.
        packed: documents joined and cut into sequences of full length; False is the paper's way, one document a
            sequence, cut after `sequence_length` tokens, the rest padding (open: the paper does not say "packed").
        gradient_checkpointing: run layers again in the backward pass rather than keep what is in them.
        save_every: steps between checkpoints.
        adapters: "all" layers (the paper), or those "above" the cut.
        auxiliary: weight of the footnote's loss: mean square of the difference between the residual entering the
            cut and the one the unpruned model has after the dropped layers, over the mean square of the latter.
    """

    rank: int
    learning_rate: float
    sequence_length: int = 2048
    steps: int = 5000
    warmup_steps: int = 100
    batch_sequences: int = 16
    at_once: int = 1
    dropout: float = 0.05
    quantization: str | None = "nf4"
    seed: int = 0
    packed: bool = True
    gradient_checkpointing: bool = True
    save_every: int = 100
    adapters: str = "all"
    auxiliary: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), KINDS.get(field.type)
            if kind and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
                raise InputError(f"{field.name} is {value!r}, expected {EXPECTED[field.type]}: correct it")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{field.name} is {value}, expected a finite number: correct it")
        for name in ("rank", "sequence_length", "steps", "batch_sequences", "at_once", "save_every"):
            if not 1 <= getattr(self, name) < MOST:
                raise InputError(f"{name} is {getattr(self, name)}, expected a whole number from 1 to {MOST - 1:,}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, expected a whole number from 0 to {2**32 - 1:,}")
        if self.sequence_length < 2:
            raise InputError("sequence_length is 1, expected at least 2: the first token foretells the second")
        if self.batch_sequences % self.at_once:
            raise InputError(
                f"at_once is {self.at_once}, expected a divisor of batch_sequences, which is {self.batch_sequences}"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise InputError(f"warmup_steps is {self.warmup_steps}, expected 0 to steps, which is {self.steps}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}, expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, expected a share from 0 to below 1")
        if self.adapters not in ("all", "above"):
            raise InputError(f"adapters is {self.adapters!r}, expected 'all' or 'above'")
        if self.quantization not in (None, "nf4", "int8"):
            raise InputError(f"quantization is {self.quantization!r}, expected None, 'nf4' or 'int8'")
        if self.auxiliary < 0:
            raise InputError(f"auxiliary is {self.auxiliary}, expected a weight from 0")
        if self.auxiliary and self.adapters == "above":
            raise InputError(
                "auxiliary needs adapters below the cut, and adapters is 'above': nothing there would learn"
            )

    @property
    def alpha(self) -> int:
        """The scale of the adapters, equal to their rank."""
        return self.rank

    @property
    def settings(self) -> dict:
        """Those by name that decide what a healing gives."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "save_every"}

    @property
    def tokens(self) -> int:
        """Tokens in all steps, where every sequence is full."""
        return self.steps * self.batch_sequences * self.sequence_length


# the paper's models by the names of its table (appendix A.1); "small" is ours, for a small model on a processor
PRESETS = {
    "Llama-2 7B": HealingConfig(rank=2, learning_rate=3e-4, sequence_length=2048),
    "Llama-2 13B": HealingConfig(rank=64, learning_rate=3e-4, sequence_length=4096),
    "Llama-2 70B": HealingConfig(rank=8, learning_rate=3e-5, sequence_length=4096),
    "Qwen 7B": HealingConfig(rank=64, learning_rate=3e-4, sequence_length=2048),
    "Qwen 14B": HealingConfig(rank=64, learning_rate=3e-4, sequence_length=4096),
    "Mistral 7B": HealingConfig(rank=4, learning_rate=3e-6, sequence_length=2048),
    "Phi-2 2.7B": HealingConfig(rank=64, learning_rate=2e-4, sequence_length=2048),
    "small": HealingConfig(
        rank=8, learning_rate=5e-3, sequence_length=256, steps=60, warmup_steps=6, batch_sequences=8, at_once=4,
        gradient_checkpointing=False, save_every=10,
    ),
}  # fmt: skip
