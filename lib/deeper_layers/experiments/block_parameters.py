"""The parameters of what asks of every layer, or every block of layers: notebooks 05 and 06, and scans."""

from typing import Annotated, ClassVar

from pydantic import Field

from deeper_layers import checks, data
from deeper_layers.errors import InputError
from deeper_layers.experiments.common_parameters import ListText, check_one_of, numbers_from
from deeper_layers.experiments.parameter_texts import places, split
from deeper_layers.experiments.parameters import TaskParameters
from deeper_layers.rules.choosing import REGISTERED

OF_BLOCKS = 512  # tokens of a batch where many blocks run together: a part of the work is done in minutes
USUAL = 256  # tokens of a sequence on which a loss is measured
POINTS = 4096  # tokens whose residuals are compared with each other


class WhichLayersParameters(TaskParameters):
    """Parameters of notebooks/05-which-layers.ipynb."""

    notebook: ClassVar[str] = "05-which-layers"
    choosable: ClassVar[tuple[str, ...]] = tuple(REGISTERED)
    dtype: str = Field(
        "bfloat16", description='in which the model computes: "auto", "float32", "bfloat16" or "float16"'
    )
    tasks: str = Field("capitals, sums", description='scored under every rule; "mmlu:5@20": 5-shot, 20 items')
    rules: str = Field("all", description='rules to compare: "all", or like "similarity, block-influence"')
    sizes: ListText = Field(
        "all", description='block sizes whose every block is tried: "all" (0 to L-2), or like "0-8, 12"'
    )
    percent: Annotated[ListText, numbers_from(1, 99)] = Field(
        "10, 20, 25, 33", description="of the layers, to be dropped by every rule"
    )
    text: str = Field("c4", description='on whose validation split losses are measured: "c4" or "wikipedia"')
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
        self.check_one_list_of_sizes()
        check_one_of("text", self.text, data.CORPORA)
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
    def rule_list(self) -> list[str]:
        return list(REGISTERED) if self.rules == "all" else list(dict.fromkeys(split(self.rules)))

    @property
    def calibration(self) -> dict:
        """What determines what a rule looks at, and a bridge is fitted on."""
        names = ["calibration_sequences", "bridge_sequences"]
        if self.loss_length != USUAL:  # theirs too; a key without it is of the usual
            names.append("loss_length")
        return self.drawn | {name: getattr(self, name) for name in names}

    def shares(self, num_layers: int) -> list[int]:
        """How many layers each rule drops, at least one of them and never all; halves are rounded up."""
        wanted = ((percent * num_layers + 50) // 100 for percent in self.number_list("percent"))
        return sorted({max(1, min(size, num_layers - 1)) for size in wanted})


class ScanParameters(TaskParameters):
    """Parameters of notebooks/06-letters-or-words.ipynb and of `deeper-layers scan`."""

    notebook: ClassVar[str] = "06-letters-or-words"
    tasks: str = Field(
        "capitals, lettered_capitals, sums_two_digits",
        description='"mmlu:5@20": 5-shot, 20 items; losses too: "c4@32"',
    )
    blocks: int | None = Field(
        4, ge=1, le=checks.LAYERS, description="layers in a block; None: the cuts of rules and sizes"
    )
    starts: ListText = Field("all", description='first layers of the blocks: "all", or like "10-24"')
    loss_length: int = Field(256, ge=2, le=checks.TOKENS, description="tokens in each sequence of a corpus")

    def check(self) -> None:
        super().check()
        places("starts", self.starts, checks.LAYERS)
        for text in self.text_list:
            self.sequences(text)
            if self.shots[text] not in (None, 0, self.num_fewshot):
                raise InputError(f"tasks has {self.shots[text]} examples for {text}, which takes none: leave them out")

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
        return [task for task in self.asked if task in (*data.CORPORA, data.SOLUTIONS)]

    def sequences(self, text: str) -> int:
        """How many sequences of a text, or solutions, are scored. Raises InputError where all would be."""
        if (wanted := self.limits[text]) is None:
            raise InputError(f"limit is None, expected how many sequences of {text} are to be scored: write {text}@32")
        return wanted

    def block_list(self, num_layers: int) -> list[int]:
        """The first layer of each block. Raises InputError for blocks that the model is too small for."""
        size = self.blocks or 0
        if size >= num_layers:
            raise InputError(f"blocks is {size}, expected less than the model's {num_layers} layers: one has to stay")
        return places("starts", self.starts, num_layers - size)
