"""The parameters of each notebook, a class for each; what they share is in parameters.py."""

import importlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from deeper_layers import checks, data
from deeper_layers.errors import InputError
from deeper_layers.experiments.lists import NUMBER, listed, numbers_in, one_of, split
from deeper_layers.experiments.parameters import (
    BITSANDBYTES,
    MEASURES,
    Corpus,
    Dtype,
    HealingParameters,
    Parameters,
    Preset,
    Rules,
    Shown,
    Sizes,
    TaskParameters,
    Tasks,
    TasksOfSizes,
    setting,
)
from deeper_layers.export.llama_cpp import FILE_TYPES
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import HealingConfig
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
    numbers: Annotated[str, listed(NUMBER, "none")] = Field(
        "none", description='other numbers of examples in the prompt to compare: "none", or like "0, 1, 3"'
    )
    # from 1: the task's own order is there anyway
    orders: Annotated[str, listed(NUMBER, "none")] = Field(
        "none", description='seeds of shuffles of the examples to compare: "none", or like "1, 2"'
    )

    def check(self) -> None:
        super().check()
        if any(asked.shots is None and self.prompts(task) for task, asked in self.asked.items()):
            raise InputError(
                f"num_fewshot is {self.num_fewshot} and tasks {self.tasks!r}, expected the number that "
                'others are compared with: give it, or write "mmlu:5"'
            )

    def prompts(self, task: str) -> list[dict]:
        """The prompts that are compared: number ("shots") and "order" of their examples, the usual ones first."""
        usual, orders = self.asked[task].shots, numbers_in(self.orders)
        found = [(number, 0) for number in numbers_in(self.numbers)] + [(usual, order) for order in orders]
        return [{"shots": shots, "order": order} for shots, order in [(usual, 0), *found] if found]


class ReasoningParameters(TaskParameters):
    """Parameters of notebooks/03-reasoning.ipynb."""

    notebook: ClassVar[str] = "03-reasoning"
    tasks: TasksOfSizes = "capitals, sums, sums_generated"


class ComparedHealingsParameters(HealingParameters):
    """Parameters of notebooks/04-healing.ipynb: a healing, and others to compare it with."""

    notebook: ClassVar[str] = "04-healing"
    ranks: Annotated[str, listed(NUMBER, "none")] = Field(
        "none", description='of the adapters to compare: "none", or like "2, 8, 64"'
    )
    seeds: Annotated[str, listed(NUMBER, "none")] = Field(
        "none", description='of healing to compare: "none", or like "0, 1, 2"'
    )

    def configs(self) -> list[HealingConfig]:
        """Of every healing that is asked for, this one first."""
        ranks, seeds = numbers_in(self.ranks), numbers_in(self.seeds)
        others = [self.config(rank=rank) for rank in ranks] + [self.config(seed=seed) for seed in seeds]
        return list(dict.fromkeys([self.config(), *others]))


class WhichLayersParameters(TaskParameters):
    """Parameters of notebooks/05-which-layers.ipynb."""

    notebook: ClassVar[str] = "05-which-layers"
    dtype: Dtype = "bfloat16"
    tasks: Tasks = "capitals, sums"
    rules: Annotated[str, listed(REGISTERED, "all")] = Field(
        "all", description='rules to compare: "all", or like "similarity, block-influence"'
    )
    sizes: Sizes = Field(
        "all", description='block sizes whose every block is tried: "all" (0 to L-2), or like "0-8, 12"'
    )
    percent: Annotated[str, listed(NUMBER)] = Field(
        "10, 20, 25, 33", description="of the layers, to be dropped by every rule"
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
        points = self.samples * self.tokens
        for name, given, most in (
            ("samples times tokens", points, POINTS),  # each token is compared with each
            ("neighbours", self.neighbours, points - 1),
            ("skip_sequences", self.skip_sequences, self.samples),
        ):
            if given > most:
                raise InputError(f"{name} is {given}, expected at most {most}: ask for fewer")

    @property
    def loss(self) -> dict[str, dict]:
        """The text on which losses are measured, and what is asked of it, as a key has it."""
        return {self.text: {"limit": self.loss_sequences, "length": self.loss_length}}

    @property
    def calibration(self) -> dict:
        """What determines what a rule looks at, and a bridge is fitted on."""
        names = ["calibration_sequences", "bridge_sequences"]
        if self.loss_length != USUAL:  # theirs too; a key without it is of the usual
            names.append("loss_length")
        return self.drawn | {name: getattr(self, name) for name in names}

    def shares(self, num_layers: int) -> list[int]:
        """How many layers each rule drops, at least one of them and never all; halves are rounded up."""
        wanted = ((percent * num_layers + 50) // 100 for percent in numbers_in(self.percent))
        return sorted({max(1, min(size, num_layers - 1)) for size in wanted})


class ScanParameters(TaskParameters):
    """Parameters of notebooks/06-letters-or-words.ipynb and of `deeper-layers scan`."""

    notebook: ClassVar[str] = "06-letters-or-words"
    tasks: TasksOfSizes = Field(
        "capitals, lettered_capitals, sums_two_digits",
        description='"mmlu:5@20": 5-shot, 20 items; losses too: "c4@32"',
    )
    blocks: int | None = Field(
        4, ge=1, le=checks.LAYERS, description="layers in a block; None: the cuts of rules and sizes"
    )
    starts: Sizes = Field("all", description='first layers of the blocks: "all", or like "10-24"')
    loss_length: int = Field(256, ge=2, le=checks.TOKENS, description="tokens in each sequence of a corpus")

    def check(self) -> None:
        super().check()
        for text in self.texts:
            if (shots := self.asked[text].shots) not in (None, 0, self.num_fewshot):
                raise InputError(f"tasks has {shots} examples for {text}, which takes none: leave them out")

    def sweep_options(self, task: str) -> dict:
        """As of a sweep, in smaller parts: what is done of one is kept."""
        return super().sweep_options(task) | {"batch_tokens": OF_BLOCKS}

    @property
    def task_list(self) -> list[str]:
        """Those of lm-eval."""
        return [task for task in self.asked if task not in self.texts]

    @property
    def texts(self) -> dict[str, dict]:
        """The texts on which losses are measured, and what is asked of each, as a key has it.

        Raises InputError where a text would be taken whole.
        """
        found = {}
        for text in (text for text in self.asked if text in data.CORPORA):
            if (limit := self.asked[text].limit) is None:
                raise InputError(
                    f"limit is None, expected how many sequences of {text} are to be scored: write {text}@32"
                )
            # a solution is as long as it is
            found[text] = {"limit": limit, "length": 0 if text == data.SOLUTIONS else self.loss_length}
        return found


class TakeAwayParameters(TaskParameters):
    """Parameters of notebooks/08-take-away.ipynb; dtype and quantization are of the distances alone."""

    notebook: ClassVar[str] = "08-take-away"
    tasks: Tasks = "capitals, sums_one_digit, sums_two_digits"
    rules: Rules = "similarity"
    sizes: Sizes = "0, 1, 2, 4, 6, 8"
    bits: Annotated[str, listed([*DTYPES, *BITSANDBYTES, *FILE_TYPES], "auto")] = Field(
        "auto",
        description='kinds of weights to score: "auto", or like "bfloat16, nf4, Q8_0"; the last for a GGUF file',
    )
    drop: int = Field(8, ge=1, le=checks.LAYERS, description="layers that the file to take away lacks")
    gguf_type: Annotated[str, one_of(FILE_TYPES, "type of llama.cpp's quantizer to which it is rounded in the end")] = (
        "Q4_1"
    )
    text: Corpus = Field("wikipedia", description='what heals it: "wikipedia" (embedded) or "c4"')
    preset: Preset = "small"
    steps: int | None = setting("steps", "; None: the preset's own")

    def check(self) -> None:
        super().check()
        self.healing().check()

    def bits_list(self, source: Source) -> list[str]:
        """Kinds of weights to compare; of a GGUF file its own and llama.cpp's too."""
        if self.bits == "auto":
            of_file = dict.fromkeys(["Q8_0", source.quantized, "Q2_K"]) if source.is_gguf else ()
            return ["bfloat16", "int8", "nf4", *of_file]
        return split(self.bits)

    def healing(self) -> HealingParameters:
        """How the file heals: on weights as they are in it, in bfloat16."""
        both = {name: value for name, value in self if name in HealingParameters.model_fields}
        return HealingParameters(**both | {"dtype": "bfloat16", "quantization": None})


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
    tasks: Tasks = "capitals, sums_one_digit"
    rules: Rules = "similarity"
    sizes: Sizes = "0, 2, 8"

    def measured(self) -> None:
        """Nothing before it is asked for: `again` measures."""

    def again(self) -> "pd.DataFrame":
        """Scores measured now, of the model that is asked for or else the embedded one, into a folder that goes.

        Empty where nothing is to be measured. Raises InputError where the model can't be had.
        """
        return importlib.import_module(MEASURES).again(self)
