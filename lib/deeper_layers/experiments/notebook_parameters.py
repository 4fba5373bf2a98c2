"""The parameters of each notebook, a class for each; what they share is in parameters.py."""

import importlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from deeper_layers import checks, data
from deeper_layers.errors import InputError
from deeper_layers.experiments.base_parameters import (
    Names,
    Numbers,
    Shown,
    Sizes,
    TaskNames,
    listed,
    names_of,
    numbers_from,
    one_of,
)
from deeper_layers.experiments.parameters import (
    BITSANDBYTES,
    MEASURES,
    Corpus,
    Dtype,
    HealingParameters,
    Parameters,
    Preset,
    Quantization,
    Rules,
    TaskParameters,
    setting,
)
from deeper_layers.export.llama_cpp import FILE_TYPES
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import RANK, HealingConfig
from deeper_layers.rules.choosing import REGISTERED

if TYPE_CHECKING:  # slow
    import pandas as pd

OF_BLOCKS = 512  # tokens of a batch where many blocks run together: a part of the work is done in minutes
USUAL = 256  # tokens of a sequence on which a loss is measured
POINTS = 4096  # tokens whose residuals are compared with each other


class SimilarityParameters(Parameters):
    """Parameters of notebooks/01-similarity.ipynb."""

    notebook: ClassVar[str] = "01-similarity"


class QuestionAnsweringParameters(TaskParameters):
    """Parameters of notebooks/02-question-answering.ipynb."""

    notebook: ClassVar[str] = "02-question-answering"
    numbers: Annotated[Numbers, numbers_from(0, checks.SHOTS, "none")] = listed(
        "none", 'other numbers of examples in the prompt to compare: "none", or like "0, 1, 3"'
    )
    # from 1: the task's own order is there anyway
    orders: Annotated[Numbers, numbers_from(1, checks.SEED, "none")] = listed(
        "none", 'seeds of shuffles of the examples to compare: "none", or like "1, 2"'
    )

    def check(self) -> None:
        super().check()
        if (self.numbers or self.orders) and any(asked.shots is None for asked in self.asked.values()):
            raise InputError(
                f"num_fewshot is {self.num_fewshot} and tasks {self.tasks.text!r}, expected the number that "
                'others are compared with: give it, or write "mmlu:5"'
            )


class ReasoningParameters(TaskParameters):
    """Parameters of notebooks/03-reasoning.ipynb."""

    notebook: ClassVar[str] = "03-reasoning"
    tasks: TaskNames = listed("capitals, sums, sums_generated", '"mmlu:5@20/0-8": 5-shot, 20 items, sizes 0 to 8')


class ComparedHealingsParameters(HealingParameters):
    """Parameters of notebooks/04-healing.ipynb: a healing, and others to compare it with."""

    notebook: ClassVar[str] = "04-healing"
    ranks: Annotated[Numbers, numbers_from(1, RANK, "none")] = listed(
        "none", 'of the adapters to compare: "none", or like "2, 8, 64"'
    )
    seeds: Annotated[Numbers, numbers_from(0, checks.SEED, "none")] = listed(
        "none", 'of healing to compare: "none", or like "0, 1, 2"'
    )

    def configs(self) -> list[HealingConfig]:
        """Of every healing that is asked for, this one first."""
        others = [self.config(rank=rank) for rank in self.ranks] + [self.config(seed=seed) for seed in self.seeds]
        return list(dict.fromkeys([self.config(), *others]))


class WhichLayersParameters(TaskParameters):
    """Parameters of notebooks/05-which-layers.ipynb."""

    notebook: ClassVar[str] = "05-which-layers"
    own_sizes: ClassVar[bool] = False
    dtype: Dtype = Field(
        "bfloat16", description='in which the model computes: "auto", "float32", "bfloat16" or "float16"'
    )
    tasks: TaskNames = listed("capitals, sums", 'scored under every rule; "mmlu:5@20": 5-shot, 20 items')
    rules: Annotated[Names, names_of(REGISTERED, "all", REGISTERED)] = listed(
        "all", 'rules to compare: "all", or like "similarity, block-influence"'
    )
    sizes: Sizes = listed("all", 'block sizes whose every block is tried: "all" (0 to L-2), or like "0-8, 12"')
    percent: Annotated[Numbers, numbers_from(1, 99)] = listed(
        "10, 20, 25, 33", "of the layers, to be dropped by every rule"
    )
    text: Corpus = Field("c4", description='on whose validation split losses are measured: "c4" or "wikipedia"')
    loss_sequences: int = Field(32, ge=2, le=checks.MANY, description="for the loss on text")
    loss_length: int = Field(USUAL, ge=2, le=checks.TOKENS, description="tokens in each")
    calibration_sequences: int = Field(
        8, ge=1, le=checks.MANY, description="of the training split of the corpus, so long too, that rules look at"
    )
    bridge_sequences: int = Field(
        64, ge=1, le=checks.MANY, description="of them too, on which a bridge over dropped layers is fitted"
    )
    tokens: int = Field(
        8, ge=1, le=POINTS, description="for the geometry, kept of each sequence, evenly spaced up to the last"
    )
    neighbours: int = Field(10, ge=1, le=POINTS, description="of each token, which two layers may have in common")
    skip_sequences: int = Field(
        32, ge=1, le=data.DOCUMENTS, description="of the sequences, those run again without each layer in turn"
    )

    def check(self) -> None:
        super().check()
        if self.samples * self.tokens > POINTS:
            raise InputError(
                f"samples is {self.samples} and tokens {self.tokens}, {self.samples * self.tokens} tokens in all, "
                f"expected at most {POINTS}, as each is compared with each: ask for fewer"
            )
        if self.neighbours >= self.samples * self.tokens:
            raise InputError(
                f"neighbours is {self.neighbours}, expected fewer than samples times tokens, "
                f"{self.samples * self.tokens}: ask for fewer"
            )
        if self.skip_sequences > self.samples:
            raise InputError(
                f"skip_sequences is {self.skip_sequences}, expected at most samples, {self.samples}: ask for fewer"
            )

    @property
    def loss_key(self) -> dict:
        """What determines a loss on text, besides the model."""
        return {"text": self.text, "sequences": self.loss_sequences, "sequence_length": self.loss_length}

    @property
    def calibration(self) -> dict:
        """What determines what a rule looks at, and a bridge is fitted on."""
        names = ["calibration_sequences", "bridge_sequences"]
        if self.loss_length != USUAL:  # theirs too; a key without it is of the usual
            names.append("loss_length")
        return self.drawn | {name: getattr(self, name) for name in names}

    def shares(self, num_layers: int) -> list[int]:
        """How many layers each rule drops, at least one of them and never all; halves are rounded up."""
        wanted = ((percent * num_layers + 50) // 100 for percent in self.percent)
        return sorted({max(1, min(size, num_layers - 1)) for size in wanted})


class ScanParameters(TaskParameters):
    """Parameters of notebooks/06-letters-or-words.ipynb and of `deeper-layers scan`."""

    notebook: ClassVar[str] = "06-letters-or-words"
    tasks: TaskNames = listed(
        "capitals, lettered_capitals, sums_two_digits",
        '"mmlu:5@20": 5-shot, 20 items; losses too: "c4@32"',
    )
    blocks: int | None = Field(
        4, ge=1, le=checks.LAYERS, description="layers in a block; None: the cuts of rules and sizes"
    )
    starts: Sizes = listed("all", 'first layers of the blocks: "all", or like "10-24"')
    loss_length: int = Field(256, ge=2, le=checks.TOKENS, description="tokens in each sequence of a corpus")

    def check(self) -> None:
        super().check()
        for text in self.text_list:
            self.sequences(text)
            if (shots := self.asked[text].shots) not in (None, 0, self.num_fewshot):
                raise InputError(f"tasks has {shots} examples for {text}, which takes none: leave them out")

    def sweep_options(self, task: str) -> dict:
        """As of a sweep, in smaller parts: what is done of one is kept."""
        return super().sweep_options(task) | {"batch_tokens": OF_BLOCKS}

    @property
    def task_list(self) -> list[str]:
        """Those of lm-eval."""
        return [task for task in self.asked if task not in self.text_list]

    @property
    def text_list(self) -> list[str]:
        """What a loss is asked of."""
        return [task for task in self.asked if task in data.CORPORA]

    def sequences(self, text: str) -> int:
        """How many sequences of a text, or solutions, are scored. Raises InputError where all would be."""
        if (wanted := self.asked[text].limit) is None:
            raise InputError(f"limit is None, expected how many sequences of {text} are to be scored: write {text}@32")
        return wanted

    def block_list(self, num_layers: int) -> list[int]:
        """The first layer of each block. Raises InputError for blocks that the model is too small for."""
        size = self.blocks or 0
        if size >= num_layers:
            raise InputError(f"blocks is {size}, expected less than the model's {num_layers} layers: one has to stay")
        starts, last = self.starts or range(num_layers - size + 1), num_layers - size
        if max(starts) > last:
            raise InputError(f"starts is {self.starts.text!r}, expected 0 to {last} for blocks of {size} layers")
        return sorted(starts)


class TakeAwayParameters(TaskParameters):
    """Parameters of notebooks/08-take-away.ipynb."""

    notebook: ClassVar[str] = "08-take-away"
    own_sizes: ClassVar[bool] = False
    dtype: Dtype = Field(
        "auto", description='of the distances: "auto" (the checkpoint\'s own), "float32", "bfloat16" or "float16"'
    )
    quantization: Quantization = Field(None, description='of the distances: None, "nf4" or "int8" (bitsandbytes)')
    tasks: TaskNames = listed("capitals, sums_one_digit, sums_two_digits", '"mmlu:5@20": 5-shot, 20 items')
    rules: Rules = listed("similarity", "how the dropped block is chosen")
    sizes: Sizes = listed("0, 1, 2, 4, 6, 8", "block sizes, in every kind of weights")
    bits: Annotated[Names, names_of((*DTYPES, *BITSANDBYTES, *FILE_TYPES), "auto")] = listed(
        "auto", 'kinds of weights, like "bfloat16, int8, nf4, Q8_0, Q2_K"; the last two for a GGUF file'
    )
    drop: int = Field(8, ge=1, le=checks.LAYERS, description="layers that the file to take away lacks")
    gguf_type: Annotated[str, one_of(*FILE_TYPES)] = Field(
        "Q4_1", description="to which llama.cpp's quantizer rounds it in the end"
    )
    text: Corpus = Field("wikipedia", description='what heals it: "wikipedia" (embedded) or "c4"')
    preset: Preset = Field(
        "small", description='how: the paper\'s settings of one of its models ("Llama-2 7B", ...), or "small"'
    )
    steps: int | None = setting("steps", "; None: the preset's own")

    def check(self) -> None:
        super().check()
        self.healing().check()

    def bits_list(self, source: Source) -> list[str]:
        """Kinds of weights to compare. Raises InputError for llama.cpp's where the model is no GGUF file."""
        own = [source.quantized] if source.is_gguf else []
        if not self.bits:
            return ["bfloat16", "int8", "nf4", *dict.fromkeys(["Q8_0", *own, "Q2_K"] if own else [])]
        wrong = [bits for bits in self.bits if bits in FILE_TYPES]
        if wrong and self.measure and not source.is_gguf:
            raise InputError(f"bits has {wrong[0]!r}, and {source.name} is no GGUF file: leave it out")
        return list(self.bits)

    def healing(self) -> HealingParameters:
        """How the file heals: on weights as they are in it, in bfloat16."""
        return self.shared_with(HealingParameters, dtype="bfloat16", quantization=None)


class ClaimsParameters(Shown):
    """Parameters of notebooks/07-claims.ipynb, which measures nothing."""

    notebook: ClassVar[str] = "07-claims"


class CostParameters(Shown):
    """Parameters of notebooks/09-cost.ipynb, which shows benchmarks."""

    notebook: ClassVar[str] = "09-cost"
    benchmarks: str = Field("benchmarks/measured", description="folder of measurements, in the repository")


class ReproductionParameters(TaskParameters):
    """Parameters of notebooks/10-measured.ipynb, which measures again what results hold and keeps nothing."""

    notebook: ClassVar[str] = "10-measured"
    own_sizes: ClassVar[bool] = False
    tasks: TaskNames = listed("capitals, sums_one_digit", 'measured again; "mmlu:5@20": 5-shot, 20 items')
    rules: Rules = listed("similarity", "under which")
    sizes: Sizes = listed("0, 2, 8", 'block sizes: "all" (0 to L-2), or like "0-8, 12"')

    def measured(self) -> None:
        """Nothing before it is asked for: `again` measures."""

    def again(self) -> "pd.DataFrame":
        """Scores measured now, of the model that is asked for or else the embedded one, into a folder that goes.

        Empty where nothing is to be measured. Raises InputError where the model can't be had.
        """
        return importlib.import_module(MEASURES).again(self)
