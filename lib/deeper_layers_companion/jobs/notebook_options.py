"""One class for each notebook: its options. Shared ones are in options.py; listing.py says what a notebook measures."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from deeper_layers import checks, data
from deeper_layers.errors import InputError
from deeper_layers.export.llama_cpp import FILE_TYPES
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers_companion import results
from deeper_layers_companion.jobs import listing
from deeper_layers_companion.jobs import options as kinds
from deeper_layers_companion.jobs.job import USUAL_LENGTH
from deeper_layers_companion.jobs.options import (
    NUMBER,
    CutsByRule,
    healing_setting,
    list_of,
    one_of,
    parse_numbers,
    split_list,
)
from deeper_layers_companion.jobs.select_cuts import list_blocks
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.schema import ACCURACY
from deeper_layers_companion.rules.table import DROPPING, END_MAPS, REGISTERED

if TYPE_CHECKING:  # slow to import
    import pandas as pd

TASKS_AND_TEXTS = '"mmlu:5@20": 5-shot, 20 items; losses too: "c4@32"'
POINTS = 4096  # tokens whose residuals are compared with each other
Numbers = Annotated[str, list_of(NUMBER, "none")]


class MeasuringParameters(kinds.Parameters):
    """Options of a notebook that measures, once, what results lack of the model that they name."""

    def measure_missing(self) -> None:
        if self.measure and self.model != kinds.PUBLISHED and not self._is_measured:
            listing.get_all(self.notebook, Session(self))
            self._is_measured = True


class SimilarityParameters(MeasuringParameters):
    notebook: ClassVar[str] = "01-similarity"


class QuestionAnsweringParameters(kinds.EarlyParameters, MeasuringParameters):
    notebook: ClassVar[str] = "02-question-answering"
    numbers: Numbers = Field(
        "none",
        description='other numbers of examples in the prompt to compare: "none", or like "0, 1, 3"',
    )
    # from 1: order 0, the task's own, is always compared
    orders: Numbers = Field(
        "none", description='seeds of shuffles of the examples to compare: "none", or like "1, 2"'
    )


class ReasoningParameters(kinds.TaskParameters, MeasuringParameters):
    notebook: ClassVar[str] = "03-reasoning"
    tasks: kinds.TasksOfSizes = "capitals, sums, sums_generated"


class ComparedHealingsParameters(kinds.HealingParameters, MeasuringParameters):
    """A healing, and other ranks and seeds to compare it with."""

    notebook: ClassVar[str] = "04-healing"
    ranks: Numbers = Field(
        "none", description='of the adapters to compare: "none", or like "2, 8, 64"'
    )
    seeds: Numbers = Field("none", description='of healing to compare: "none", or like "0, 1, 2"')


class WhichLayersParameters(kinds.TaskParameters, MeasuringParameters):
    notebook: ClassVar[str] = "05-which-layers"
    dtype: kinds.Dtype = "bfloat16"
    tasks: kinds.Tasks = "capitals, sums"
    rules: Annotated[str, list_of(REGISTERED, "all")] = Field(
        "all", description='rules to compare: "all", or like "similarity, block-influence"'
    )
    sizes: kinds.Sizes = Field(
        "all",
        description='block sizes whose every block is tried: "all" (0 to L-2), or like "0-8, 12"',
    )
    percent: Annotated[str, list_of(NUMBER)] = Field(
        "10, 20, 25, 33", description="of the layers, to be dropped by every rule"
    )
    text: kinds.Corpus = Field(
        "c4", description='on whose validation split losses are measured: "c4" or "wikipedia"'
    )
    loss_sequences: int = Field(32, ge=2, le=checks.MANY, description="for the loss on text")
    loss_length: int = Field(USUAL_LENGTH, ge=2, le=checks.TOKENS, description="tokens in each")
    calibration_sequences: int = Field(
        8,
        ge=1,
        le=checks.MANY,
        description="calibration sequences of loss_length tokens, of the corpus's training split",
    )
    bridge_sequences: int = Field(
        64,
        ge=1,
        le=checks.MANY,
        description="of them too, on which a bridge over dropped layers is fitted",
    )
    tokens: int = Field(
        8,
        ge=1,
        le=POINTS,
        description="for the geometry, kept of each sequence, evenly spaced up to the last",
    )
    neighbours: int = Field(
        10, ge=1, le=POINTS, description="of each token, which two layers may have in common"
    )
    skip_sequences: int = Field(
        32,
        ge=1,
        le=data.DOCUMENTS,
        description="of the sequences, those run again without each layer in turn",
    )

    def check(self) -> None:
        super().check()
        points = self.samples * self.tokens
        checks.check_whole_number(
            "samples times tokens", points, 1, POINTS, "each token is compared with each"
        )
        checks.check_whole_number("neighbours", self.neighbours, 1, points - 1, "ask for fewer")
        checks.check_whole_number(
            "skip_sequences", self.skip_sequences, 1, self.samples, "ask for fewer"
        )

    @property
    def texts(self) -> dict[str, dict]:
        return {self.text: {"limit": self.loss_sequences, "length": self.loss_length}}

    def list_share_sizes(self, num_layers: int) -> list[int]:
        """The block sizes for `percent`: at least one layer, and never all; halves are rounded up."""
        wanted = ((percent * num_layers + 50) // 100 for percent in parse_numbers(self.percent))
        return sorted({max(1, min(size, num_layers - 1)) for size in wanted})


class TextTaskParameters(kinds.TaskParameters, MeasuringParameters):
    """Parameters whose tasks may be texts too, on which losses are measured."""

    loss_length: int = Field(
        USUAL_LENGTH, ge=2, le=checks.TOKENS, description="tokens in each sequence of a corpus"
    )

    def check(self) -> None:
        super().check()
        for text in self.texts:
            if self.parsed_tasks[text]["limit"] is None:
                raise InputError(
                    f"limit is None, expected how many sequences of {text} to score: write {text}@32"
                )

    @property
    def task_list(self) -> list[str]:
        """The tasks of lm-eval, without the texts."""
        return [task for task in self.parsed_tasks if task not in data.CORPORA]

    @property
    def texts(self) -> dict[str, dict]:
        # solutions are never cut
        lengths = dict.fromkeys(data.CORPORA, self.loss_length) | {data.SOLUTIONS: 0}
        texts = {
            name: task["limit"] for name, task in self.parsed_tasks.items() if name in data.CORPORA
        }
        return {text: {"limit": limit, "length": lengths[text]} for text, limit in texts.items()}


class ScanParameters(TextTaskParameters):
    notebook: ClassVar[str] = "06-letters-or-words"
    tasks: kinds.TasksOfSizes = Field(
        "capitals, lettered_capitals, sums_two_digits", description=TASKS_AND_TEXTS
    )
    blocks: int | None = Field(
        4,
        ge=1,
        le=checks.LAYERS,
        description="layers in a block; None: the cuts of rules and sizes",
    )
    starts: kinds.Sizes = Field(
        "all", description='first layers of the blocks: "all", or like "10-24"'
    )

    def find_given_cuts(self, num_layers: int) -> CutsByRule | None:
        if self.blocks is None:
            return None
        return list_blocks([self.blocks], num_layers, parse_numbers(self.starts))


class EarlyScanParameters(ScanParameters, kinds.EarlyParameters):
    """The parameters of `deeper-layers scan`. Of blocks there are many of one size: half gone has no meaning."""

    notebook: ClassVar[str] = ""
    decides: kinds.Decides = ACCURACY


class LastLayersParameters(TextTaskParameters):
    """The registered study of what the last layers hold: its items, its cuts, its maps in the place of these layers."""

    notebook: ClassVar[str] = "11-what-do-the-last-layers-hold"
    shows_third_study: ClassVar[bool] = True
    corpus: kinds.Corpus = Field(
        "c4", description="text for the distances, and on which maps are fitted"
    )
    tasks: kinds.Tasks = Field(
        "answers_written, answers_by_letter, answers_in_words, answers_in_words_unasked, answers_written_stated, "
        "answers_by_letter_stated, answers_in_words_stated, c4@128",
        description=TASKS_AND_TEXTS,
    )
    rules: Annotated[str, list_of(DROPPING)] = Field(
        "reverse, simple, similarity",
        description='who chooses what is dropped; "reverse": the last layers',
    )
    sizes: kinds.Sizes = Field(
        "0-8", description='layers dropped: "all" (0 to L-2), or like "0-8, 12"'
    )
    limit: int | None = Field(
        None, ge=1, le=checks.MANY, description="items a task, from its beginning; None: all"
    )
    maps: Annotated[str, list_of(END_MAPS, "none")] = Field(
        "reverse-affine, reverse-low-rank",
        description='in the place of the last layers; or "none"',
    )
    map_sizes: Annotated[str, list_of(NUMBER)] = Field(
        "1-6", description="layers that a map replaces"
    )
    map_sequences: int = Field(
        256,
        ge=1,
        le=checks.MANY,
        description="sequences of loss_length tokens that maps see, of the corpus's training split",
    )

    @property
    def map_list(self) -> list[str]:
        return [] if self.maps == "none" else split_list(self.maps)

    @property
    def map_size_list(self) -> list[int]:
        return parse_numbers(self.map_sizes)

    @property
    def mapped_tasks(self) -> list[str]:
        return [name for name in [*self.texts, *self.task_list] if not name.endswith("_stated")]

    def describe_map(self, rule: str) -> dict:
        """The settings that determine a map, as they stand in the key of a result."""
        return {
            "corpus": self.corpus,
            "sequences": self.map_sequences,
            "length": self.loss_length,
        } | END_MAPS[rule]


class TakeAwayParameters(kinds.TaskParameters, MeasuringParameters):
    """Here dtype and quantization are those of the distances only."""

    notebook: ClassVar[str] = "08-take-away"
    tasks: kinds.Tasks = "capitals, sums_one_digit, sums_two_digits"
    rules: kinds.Rules = "similarity"
    sizes: kinds.Sizes = "0, 1, 2, 4, 6, 8"
    bits: Annotated[str, list_of([*DTYPES, *kinds.BITSANDBYTES, *FILE_TYPES], "auto")] = Field(
        "auto",
        description='kinds of weights to score: "auto", or like "bfloat16, nf4, Q8_0"; the last for a GGUF file',
    )
    drop: int = Field(
        8, ge=1, le=checks.LAYERS, description="layers that the file to take away lacks"
    )
    gguf_type: Annotated[
        str, one_of(FILE_TYPES, "type of llama.cpp's quantizer to which it is rounded in the end")
    ] = "Q4_1"
    text: kinds.Corpus = Field(
        "wikipedia", description='what heals it: "wikipedia" (embedded) or "c4"'
    )
    preset: kinds.Preset = "small"
    steps: int | None = healing_setting("steps", "; None: the preset's own")

    def check(self) -> None:
        super().check()
        self.make_config()

    def make_config(self) -> HealingConfig:
        """How the file is healed: on weights that are not quantized."""
        steps = {} if self.steps is None else {"steps": self.steps}
        return dataclasses.replace(PRESETS[self.preset], quantization=None, **steps)

    def list_bits(self, source: Source) -> list[str]:
        """The types of weights to score."""
        if self.bits != "auto":
            return split_list(self.bits)
        of_file = dict.fromkeys(["Q8_0", source.quantized, "Q2_K"]) if source.is_gguf else ()
        return ["bfloat16", "int8", "nf4", *of_file]


class ClaimsParameters(kinds.BaseParameters):
    notebook: ClassVar[str] = "07-claims"


class CostParameters(kinds.BaseParameters):
    notebook: ClassVar[str] = "09-cost"
    benchmarks: str = Field(
        "benchmarks/measured", description="folder of measurements, in the repository"
    )

    def check(self) -> None:
        super().check()
        folder = (results.repository() or Path()) / checks.check_path("benchmarks", self.benchmarks)
        if not any(folder.glob("sweep-*.json")):
            raise InputError(
                f"benchmarks is {self.benchmarks!r}, and {folder} holds no sweep-*.json: leave it out"
            )


class ReproductionParameters(kinds.TaskParameters):
    """Published results are measured again; the new results are not kept."""

    notebook: ClassVar[str] = "10-measured"
    shows_third_study: ClassVar[bool] = True
    tasks: kinds.Tasks = "capitals, sums_one_digit"
    rules: kinds.Rules = "similarity"
    sizes: kinds.Sizes = "0, 2, 8"

    def again(self) -> "pd.DataFrame":
        """Scores that are measured now, of the named model or else the embedded one, in a temporary folder.
        The cuts are the published ones. Empty if nothing is to be measured. Raises InputError if the model can't be
        opened."""
        options = self.replace(model="embedded") if self.model == kinds.PUBLISHED else self
        with tempfile.TemporaryDirectory() as folder:
            if self.measure:
                session = Session(options)
                again = session.replace(results=folder)
                for job in listing.list_sweep(session):
                    again.get(job)
            return results.scores(options.replace(results=folder).folder)
