"""The settings of a healing, and the paper's settings for each of its models. Needs no torch.

Source: Gromov et al., arXiv 2403.17887, section 3.3 and appendix A.1. Where the paper says nothing, defaults of
transformers' Trainer hold: AdamW with betas 0.9 and 0.999, gradients clipped at norm 1, no weight decay.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from deeper_layers.checks import LAYERS, MANY, SEED, TOKENS, explain_validation_error
from deeper_layers.errors import InputError

# far above all sensible values: no layer is as wide
MAX_RANK = 2**16
MAX_STEPS = 10**7


class WarmUp(int):
    """A number of warm-up steps that knows its share of all steps: it keeps that where these alone are replaced."""

    share: float


@dataclass(
    frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
)
class HealingConfig:
    """How to heal. Defaults are common to the paper's models. Raises InputError for an impossible setting."""

    rank: int = Field(ge=0, le=MAX_RANK, description="of the adapters")
    learning_rate: float = Field(gt=0, description="the highest, after the warm-up")
    sequence_length: int = Field(2048, ge=2, le=TOKENS, description="tokens in a sequence")
    steps: int = Field(5000, ge=1, le=MAX_STEPS, description="updates of the adapters")
    warmup_steps: int = Field(
        100,
        ge=0,
        description="of these, with a learning rate that rises from 0; then it falls as a cosine to 0",
    )
    batch_sequences: int = Field(16, ge=1, le=MANY, description="sequences in a step")
    at_once: int = Field(
        1, ge=1, le=MANY, description="sequences that run together; changes memory and speed only"
    )
    dropout: float = Field(
        0.05, ge=0, lt=1, description="share of an adapter's inputs dropped in training"
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        "nf4", description='of the weights below the adapters: "nf4", "int8" or None'
    )
    seed: int = Field(0, ge=0, le=SEED, description="of adapters, order of the text, and dropout")
    packed: bool = Field(
        True,
        description="documents joined and cut into sequences of full length; False, the paper's way: one document a "
        "sequence, cut after `sequence_length` tokens, the rest padding",
    )
    gradient_checkpointing: bool = Field(
        True, description="run layers again in the backward pass rather than keep what is in them"
    )
    save_every: int = Field(100, ge=1, le=MAX_STEPS, description="steps between checkpoints")
    adapters: Literal["all", "above"] = Field(
        "all", description='"all" layers (the paper), or those "above" the cut'
    )
    auxiliary: float = Field(
        0.0, ge=0, le=1e6, description="weight of the auxiliary loss at the cut"
    )
    objective: Literal["text", "distill"] = Field(
        "text",
        description='"text": to predict the next token, or "distill": as the unpruned model does',
    )
    temperature: float = Field(
        1.0, ge=0.01, le=100, description='of the logits, where the objective is "distill"'
    )

    last_layers: int = Field(
        0,
        ge=0,
        le=LAYERS,
        description="so many of the last layers that stay, and the head, are trained with all their weights, in place "
        "of adapters (rank 0) and on weights that are not quantized; 0: adapters are",
    )

    @model_validator(mode="after")
    def _check_settings(self):
        if self.warmup_steps > self.steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps}, expected some of the {self.steps} steps, or none"
            )
        if self.batch_sequences % self.at_once:
            raise InputError(
                f"at_once is {self.at_once}, expected a divisor of batch_sequences, which is {self.batch_sequences}"
            )
        if self.temperature != 1 and self.objective != "distill":
            raise InputError(
                f"temperature is {self.temperature}, which only the objective 'distill' has: leave it out"
            )
        if self.auxiliary and self.adapters == "above":
            raise InputError(
                "auxiliary needs adapters below the cut, and adapters is 'above': nothing there learns"
            )
        self._check_what_learns()
        warm_up = WarmUp(self.warmup_steps)
        warm_up.share = self.warmup_steps / self.steps
        object.__setattr__(self, "warmup_steps", warm_up)
        return self

    def _check_what_learns(self) -> None:
        """Raise InputError unless adapters are trained, or whole layers without all that only adapters have."""
        if not self.last_layers:
            if not self.rank:
                raise InputError(
                    "rank is 0, expected 1 or more, or last_layers that are trained: nothing learns"
                )
            return
        needed = {
            "rank": 0,
            "dropout": 0,
            "quantization": None,
            "adapters": "all",
            "auxiliary": 0,
            "objective": "text",
        }
        for name, value in needed.items():
            given = getattr(self, name)
            if given != value:
                raise InputError(
                    f"{name} is {given!r}, expected {value!r} with last_layers, which are trained with all their "
                    "weights, on text and without adapters: give that, or another preset"
                )

    @property
    def alpha(self) -> int:
        """The scale of the adapters, equal to their rank."""
        return self.rank

    @property
    def settings(self) -> dict:
        """The settings that determine the result of a healing, by name; distillation's and `last_layers` only where
        they are used."""
        unused = {"save_every"}
        if self.objective != "distill":
            unused |= {"objective", "temperature"}
        unused |= set() if self.last_layers else {"last_layers"}
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in unused
        }

    @property
    def tokens(self) -> int:
        """Tokens in all steps if every sequence is full."""
        return self.steps * self.batch_sequences * self.sequence_length


def _raise_input_errors(init: Callable) -> Callable:
    """Wraps pydantic's `__init__`: an impossible setting raises InputError with a message of one line."""

    def __init__(self, **settings):
        warm_up = settings.get("warmup_steps")
        steps = settings.get("steps")
        # `dataclasses.replace` hands on what it does not replace
        if isinstance(warm_up, WarmUp) and type(steps) is int:
            settings["warmup_steps"] = round(warm_up.share * min(steps, MAX_STEPS))
        try:
            init(self, **settings)
        except ValidationError as error:
            raise explain_validation_error(error, FIELDS) from None

    return __init__


HealingConfig.__init__ = _raise_input_errors(HealingConfig.__init__)  # ty: ignore[invalid-assignment]
FIELDS = vars(HealingConfig)["__pydantic_fields__"]
HealingConfig.__doc__ = "\n".join(
    [
        f"{HealingConfig.__doc__}",
        "",
        "Attributes:",
        *(f"    {name}: {f.description}" for name, f in FIELDS.items()),
    ]
)
# the paper's models by the names of its table (appendix A.1): rank, learning rate, tokens in a sequence
PAPER = {
    "Llama-2 7B": (2, 3e-4, 2048),
    "Llama-2 13B": (64, 3e-4, 4096),
    "Llama-2 70B": (8, 3e-5, 4096),
    "Qwen 7B": (64, 3e-4, 2048),
    "Qwen 14B": (64, 3e-4, 4096),
    "Mistral 7B": (4, 3e-6, 2048),
    "Phi-2 2.7B": (64, 2e-4, 2048),
}
PRESETS = {
    name: HealingConfig(rank=rank, learning_rate=rate, sequence_length=length)
    for name, (rank, rate, length) in PAPER.items()
}
# our own presets: for a small model on a processor, by text or by distillation
SHORT_RUN: dict[str, Any] = {
    "steps": 60,
    "warmup_steps": 6,
    "batch_sequences": 8,
    "at_once": 4,
    "save_every": 10,
}
SMALL = HealingConfig(
    rank=8, learning_rate=5e-3, sequence_length=256, gradient_checkpointing=False, **SHORT_RUN
)
PRESETS |= {"small": SMALL, "distill": dataclasses.replace(SMALL, objective="distill")}
# Lu et al., arXiv 2411.15558 (ICLR 2026): without the last layers, tune the head and the last three that stay. Theirs
# are 1,600 steps of 64 instructions at a rate of 1e-5; here a short run on text, as long as "small", at a rate that
# was chosen by the training loss of six steps (SmolLM2-135M without its last 4 layers: 7.7 nats at 1e-3, 9.2 at 3e-4)
PRESETS["head-and-last-3"] = dataclasses.replace(
    SMALL, rank=0, dropout=0.0, quantization=None, last_layers=3, learning_rate=1e-3
)
