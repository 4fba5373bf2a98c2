"""One class for each notebook: its parameters, and what it measures of a model. Shared ones are in parameters.py."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from deeper_layers import checks, data
from deeper_layers.errors import InputError
from deeper_layers.export.llama_cpp import FILE_TYPES
from deeper_layers.models.sources import DTYPES
from deeper_layers_companion import results
from deeper_layers_companion.experiments import parameters as kinds
from deeper_layers_companion.experiments.choosing import choose_cuts, choose_cuts_for_tasks, compare_rules, list_blocks
from deeper_layers_companion.experiments.distances import find_or_measure_distances, find_or_measure_geometry
from deeper_layers_companion.experiments.experiment import CutsByRule, Experiment, sort_cuts
from deeper_layers_companion.experiments.healings import Healing
from deeper_layers_companion.experiments.parameters import (
    NUMBER,
    healing_setting,
    list_of,
    one_of,
    parse_numbers,
    split_list,
)
from deeper_layers_companion.experiments.scoring import score, score_each
from deeper_layers_companion.experiments.take_away import score_files, score_rounded
from deeper_layers_companion.rules.choosing import REGISTERED

if TYPE_CHECKING:  # slow to import
    import pandas as pd

USUAL_LENGTH = 256  # tokens of a sequence on which a loss is measured
POINTS = 4096  # tokens whose residuals are compared with each other
Numbers = Annotated[str, list_of(NUMBER, "none")]


class SimilarityParameters(kinds.Parameters):
    notebook: ClassVar[str] = "01-similarity"


class QuestionAnsweringParameters(kinds.TaskParameters):
    notebook: ClassVar[str] = "02-question-answering"
    numbers: Numbers = Field(
        "none", description='other numbers of examples in the prompt to compare: "none", or like "0, 1, 3"'
    )
    # from 1: order 0, the task's own, is always compared
    orders: Numbers = Field("none", description='seeds of shuffles of the examples to compare: "none", or like "1, 2"')

    def run(self, experiment: Experiment) -> None:
        for task, cuts in choose_cuts_for_tasks(experiment).items():
            score([task], cuts, experiment)
            usual = self.parsed_tasks[task]["shots"]
            prompts = [(number, 0) for number in parse_numbers(self.numbers)]
            prompts += [(usual, order) for order in parse_numbers(self.orders)]
            for shots, order in [(usual, 0), *prompts] if prompts else ():
                for rule, rule_cuts in cuts.items():
                    score([task], {rule: rule_cuts}, experiment, prompt={"shots": shots, "order": order})


class ReasoningParameters(kinds.TaskParameters):
    notebook: ClassVar[str] = "03-reasoning"
    tasks: kinds.TasksOfSizes = "capitals, sums, sums_generated"


class ComparedHealingsParameters(kinds.HealingParameters):
    """A healing, and other ranks and seeds to compare it with."""

    notebook: ClassVar[str] = "04-healing"
    ranks: Numbers = Field("none", description='of the adapters to compare: "none", or like "2, 8, 64"')
    seeds: Numbers = Field("none", description='of healing to compare: "none", or like "0, 1, 2"')

    def run(self, experiment: Experiment) -> None:
        cuts_by_rule = choose_cuts(self.list_sizes(experiment.source.num_layers), experiment)
        score_each(dict.fromkeys(self.task_settings, cuts_by_rule), experiment)
        configs = [self.make_config(), *(self.make_config(rank=rank) for rank in parse_numbers(self.ranks))]
        configs += [self.make_config(seed=seed) for seed in parse_numbers(self.seeds)]
        for config in dict.fromkeys(configs):
            for cut in sort_cuts(cuts_by_rule):
                rules = [rule for rule, cuts in cuts_by_rule.items() if cut in cuts]
                Healing(cut, config, experiment).heal_and_score(rules)


class WhichLayersParameters(kinds.TaskParameters):
    notebook: ClassVar[str] = "05-which-layers"
    dtype: kinds.Dtype = "bfloat16"
    tasks: kinds.Tasks = "capitals, sums"
    rules: Annotated[str, list_of(REGISTERED, "all")] = Field(
        "all", description='rules to compare: "all", or like "similarity, block-influence"'
    )
    sizes: kinds.Sizes = Field(
        "all", description='block sizes whose every block is tried: "all" (0 to L-2), or like "0-8, 12"'
    )
    percent: Annotated[str, list_of(NUMBER)] = Field(
        "10, 20, 25, 33", description="of the layers, to be dropped by every rule"
    )
    text: kinds.Corpus = Field("c4", description='on whose validation split losses are measured: "c4" or "wikipedia"')
    loss_sequences: int = Field(32, ge=2, le=checks.MANY, description="for the loss on text")
    loss_length: int = Field(USUAL_LENGTH, ge=2, le=checks.TOKENS, description="tokens in each")
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
        checks.check_whole_number("samples times tokens", points, 1, POINTS, "each token is compared with each")
        checks.check_whole_number("neighbours", self.neighbours, 1, points - 1, "ask for fewer")
        checks.check_whole_number("skip_sequences", self.skip_sequences, 1, self.samples, "ask for fewer")

    @property
    def texts(self) -> dict[str, dict]:
        return {self.text: {"limit": self.loss_sequences, "length": self.loss_length}}

    @property
    def calibration(self) -> dict:
        """The settings that determine the text on which rules are calibrated, and bridges are fitted."""
        settings = self.sequence_settings | self.model_dump(include={"calibration_sequences", "bridge_sequences"})
        # keys in results without a length are of the usual one
        return settings if self.loss_length == USUAL_LENGTH else settings | {"loss_length": self.loss_length}

    def list_share_sizes(self, num_layers: int) -> list[int]:
        """The block sizes for `percent`: at least one layer, and never all; halves are rounded up."""
        wanted = ((percent * num_layers + 50) // 100 for percent in parse_numbers(self.percent))
        return sorted({max(1, min(size, num_layers - 1)) for size in wanted})

    def run(self, experiment: Experiment) -> None:
        layers = experiment.source.num_layers
        find_or_measure_distances(experiment, by_sequence=True)
        score(self.texts, list_blocks(self.list_sizes(layers), layers), experiment)
        find_or_measure_geometry(experiment)
        compare_rules(experiment)


class ScanParameters(kinds.TaskParameters):
    """The parameters of `deeper-layers scan`, too."""

    notebook: ClassVar[str] = "06-letters-or-words"
    tasks: kinds.TasksOfSizes = Field(
        "capitals, lettered_capitals, sums_two_digits",
        description='"mmlu:5@20": 5-shot, 20 items; losses too: "c4@32"',
    )
    blocks: int | None = Field(
        4, ge=1, le=checks.LAYERS, description="layers in a block; None: the cuts of rules and sizes"
    )
    starts: kinds.Sizes = Field("all", description='first layers of the blocks: "all", or like "10-24"')
    loss_length: int = Field(256, ge=2, le=checks.TOKENS, description="tokens in each sequence of a corpus")

    def check(self) -> None:
        super().check()
        for text in self.texts:
            if self.parsed_tasks[text]["limit"] is None:
                raise InputError(f"limit is None, expected how many sequences of {text} to score: write {text}@32")

    @property
    def task_list(self) -> list[str]:
        """The tasks of lm-eval, without the texts."""
        return [task for task in self.parsed_tasks if task not in data.CORPORA]

    @property
    def texts(self) -> dict[str, dict]:
        lengths = dict.fromkeys(data.CORPORA, self.loss_length) | {data.SOLUTIONS: 0}  # solutions are never cut
        texts = {name: task["limit"] for name, task in self.parsed_tasks.items() if name in data.CORPORA}
        return {text: {"limit": limit, "length": lengths[text]} for text, limit in texts.items()}

    def find_given_cuts(self, num_layers: int) -> CutsByRule | None:
        return None if self.blocks is None else list_blocks([self.blocks], num_layers, parse_numbers(self.starts))


class TakeAwayParameters(kinds.TaskParameters):
    """Here dtype and quantization are those of the distances only."""

    notebook: ClassVar[str] = "08-take-away"
    tasks: kinds.Tasks = "capitals, sums_one_digit, sums_two_digits"
    rules: kinds.Rules = "similarity"
    sizes: kinds.Sizes = "0, 1, 2, 4, 6, 8"
    bits: Annotated[str, list_of([*DTYPES, *kinds.BITSANDBYTES, *FILE_TYPES], "auto")] = Field(
        "auto",
        description='kinds of weights to score: "auto", or like "bfloat16, nf4, Q8_0"; the last for a GGUF file',
    )
    drop: int = Field(8, ge=1, le=checks.LAYERS, description="layers that the file to take away lacks")
    gguf_type: Annotated[str, one_of(FILE_TYPES, "type of llama.cpp's quantizer to which it is rounded in the end")] = (
        "Q4_1"
    )
    text: kinds.Corpus = Field("wikipedia", description='what heals it: "wikipedia" (embedded) or "c4"')
    preset: kinds.Preset = "small"
    steps: int | None = healing_setting("steps", "; None: the preset's own")

    def check(self) -> None:
        super().check()
        self.healing_parameters()

    def healing_parameters(self) -> kinds.HealingParameters:
        """The parameters for healing the file: in bfloat16, and not quantized further."""
        shared = self.model_dump(include={*kinds.HealingParameters.model_fields})
        return kinds.HealingParameters(**shared | {"dtype": "bfloat16", "quantization": None})

    def run(self, experiment: Experiment) -> None:
        source, rule = experiment.source, self.rule_list[0]
        by_rule = experiment.replace(rules=rule)
        if source.is_gguf:
            score_files(rule, choose_cuts([self.drop], by_rule)[rule][0], experiment)
        cuts = choose_cuts(self.list_sizes(source.num_layers), by_rule)
        file_bits = dict.fromkeys(["Q8_0", source.quantized, "Q2_K"]) if source.is_gguf else ()
        for bits in ["bfloat16", "int8", "nf4", *file_bits] if self.bits == "auto" else split_list(self.bits):
            score_rounded(bits, cuts, experiment)


class ClaimsParameters(kinds.BaseParameters):
    notebook: ClassVar[str] = "07-claims"


class CostParameters(kinds.BaseParameters):
    notebook: ClassVar[str] = "09-cost"
    benchmarks: str = Field("benchmarks/measured", description="folder of measurements, in the repository")

    def check(self) -> None:
        super().check()
        folder = (results.repository() or Path()) / checks.check_path("benchmarks", self.benchmarks)
        if not any(folder.glob("sweep-*.json")):
            raise InputError(f"benchmarks is {self.benchmarks!r}, and {folder} holds no sweep-*.json: leave it out")


class ReproductionParameters(kinds.TaskParameters):
    """Published results are measured again; the new results are not kept."""

    notebook: ClassVar[str] = "10-measured"
    tasks: kinds.Tasks = "capitals, sums_one_digit"
    rules: kinds.Rules = "similarity"
    sizes: kinds.Sizes = "0, 2, 8"

    def measure_missing(self) -> None:
        """Do nothing: only `again` measures."""

    def again(self) -> "pd.DataFrame":
        """Scores that are measured now, of the named model or else the embedded one, in a temporary folder.
        The cuts are the published ones. Empty if nothing is to be measured. Raises InputError if the model can't be
        opened."""
        parameters = self.replace(model="embedded") if self.model == kinds.PUBLISHED else self
        with tempfile.TemporaryDirectory() as folder:
            if self.measure:
                experiment = Experiment(parameters)
                score_each(choose_cuts_for_tasks(experiment), experiment.replace(results=folder))
            return results.scores(parameters.replace(results=folder).folder)
