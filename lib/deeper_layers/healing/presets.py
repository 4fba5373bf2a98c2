"""How to heal: the settings of a healing, and the paper's for each of its models.

Source: Gromov et al., arXiv 2403.17887, section 3.3 and appendix A.1. What the paper leaves open is the Trainer's:
AdamW with betas 0.9 and 0.999, gradients clipped at norm 1, no weight decay.
"""

import dataclasses
import math
from dataclasses import dataclass

from deeper_layers.checks import MANY, SEED, TOKENS, shown, whole_number
from deeper_layers.errors import InputError

# the largest that make sense by far: no adapter is wider than a layer
RANK, STEPS, LEARNING_RATE, WEIGHT = 2**16, 10**7, 1.0, 1e6
TEMPERATURES = (0.01, 100)
OBJECTIVES = ("text", "distill")
BOUNDS = {
    "rank": (1, RANK), "sequence_length": (2, TOKENS), "steps": (1, STEPS), "batch_sequences": (1, MANY),
    "at_once": (1, MANY), "save_every": (1, STEPS), "seed": (0, SEED),
}  # fmt: skip


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
        objective: "text", to predict the next token (the paper), or "distill", to predict as the unpruned model does.
        temperature: by which logits are divided where the objective is "distill".
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
    objective: str = "text"
    temperature: float = 1.0

    def __post_init__(self):
        for name, (least, most) in BOUNDS.items():
            whole_number(name, getattr(self, name), least, most)
        whole_number("warmup_steps", self.warmup_steps, 0, self.steps, "choose some of the steps, or none")
        for name in ("learning_rate", "dropout", "auxiliary", "temperature"):
            if type(getattr(self, name)) not in (int, float):
                raise InputError(f"{name} is {shown(getattr(self, name))}, expected a number: give one")
        for name in ("packed", "gradient_checkpointing"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name} is {shown(getattr(self, name))}, expected True or False: give one")
        if self.batch_sequences % self.at_once:
            raise InputError(
                f"at_once is {self.at_once}, expected a divisor of batch_sequences, which is {self.batch_sequences}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}, expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}, expected a share from 0 to below 1")
        if self.adapters not in ("all", "above"):
            raise InputError(f"adapters is {self.adapters!r}, expected 'all' or 'above'")
        if self.quantization not in (None, "nf4", "int8"):
            raise InputError(f"quantization is {self.quantization!r}, expected None, 'nf4' or 'int8'")
        if not 0 <= self.auxiliary <= WEIGHT:
            raise InputError(f"auxiliary is {self.auxiliary}, expected a weight from 0 to {WEIGHT:.0f}")
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}, expected 'text' or 'distill'")
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            least, most = TEMPERATURES
            raise InputError(f"temperature is {self.temperature}, expected a number from {least} to {most}")
        if self.temperature != 1 and self.objective != "distill":
            raise InputError(f"temperature is {self.temperature}, which only the objective 'distill' has: leave it out")
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
        """Those by name that decide what a healing gives; those of distillation only where there is one.

        So a healing on text is named as it was before there was another objective.
        """
        unused = {"save_every"} | (set() if self.objective == "distill" else {"objective", "temperature"})
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in unused}

    @property
    def tokens(self) -> int:
        """Tokens in all steps, where every sequence is full."""
        return self.steps * self.batch_sequences * self.sequence_length


SMALL = HealingConfig(
    rank=8, learning_rate=5e-3, sequence_length=256, steps=60, warmup_steps=6, batch_sequences=8, at_once=4,
    gradient_checkpointing=False, save_every=10,
)  # fmt: skip
# the paper's models by the names of its table (appendix A.1); ours are "small", for a small model on a processor, and
# "distill", the same but for its objective
PRESETS = {
    "Llama-2 7B": HealingConfig(rank=2, learning_rate=3e-4, sequence_length=2048),
    "Llama-2 13B": HealingConfig(rank=64, learning_rate=3e-4, sequence_length=4096),
    "Llama-2 70B": HealingConfig(rank=8, learning_rate=3e-5, sequence_length=4096),
    "Qwen 7B": HealingConfig(rank=64, learning_rate=3e-4, sequence_length=2048),
    "Qwen 14B": HealingConfig(rank=64, learning_rate=3e-4, sequence_length=4096),
    "Mistral 7B": HealingConfig(rank=4, learning_rate=3e-6, sequence_length=2048),
    "Phi-2 2.7B": HealingConfig(rank=64, learning_rate=2e-4, sequence_length=2048),
    "small": SMALL,
    "distill": dataclasses.replace(SMALL, objective="distill"),
}  # fmt: skip
