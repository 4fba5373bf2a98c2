"""A class for each notebook: its parameters, and what it measures of a model; what they share is in parameters.py."""

import tempfile
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from deeper_layers import checks, data, results
from deeper_layers.errors import InputError
from deeper_layers.experiments import parameters as kinds
from deeper_layers.experiments.choosing import blocks, choose_cuts, compare_rules, cuts_of_tasks
from deeper_layers.experiments.distances import measure_distances, measure_geometry
from deeper_layers.experiments.experiment import CutsOf, Experiment, distinct_cuts
from deeper_layers.experiments.healings import Healing
from deeper_layers.experiments.parameters import NUMBER, listed, numbers_in, one_of, setting, split
from deeper_layers.experiments.scoring import score, score_each
from deeper_layers.experiments.take_away import score_files, score_rounded
from deeper_layers.export.llama_cpp import FILE_TYPES
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import HealingConfig
from deeper_layers.rules.choosing import REGISTERED

if TYPE_CHECKING:  # slow
    import pandas as pd

USUAL = 256  # tokens of a sequence on which a loss is measured
POINTS = 4096  # tokens whose residuals are compared with each other
Numbers = Annotated[str, listed(NUMBER, "none")]


class SimilarityParameters(kinds.Parameters):
    notebook: ClassVar[str] = "01-similarity"


class QuestionAnsweringParameters(kinds.TaskParameters):
    notebook: ClassVar[str] = "02-question-answering"
    numbers: Numbers = Field(
        "none", description='other numbers of examples in the prompt to compare: "none", or like "0, 1, 3"'
    )
    # from 1: the task's own order is there anyway
    orders: Numbers = Field("none", description='seeds of shuffles of the examples to compare: "none", or like "1, 2"')

    def prompts(self, task: str) -> list[dict]:
        """The prompts that are compared: number ("shots") and "order" of their examples, the usual ones first."""
        usual, orders = self.asked[task]["shots"], numbers_in(self.orders)
        found = [(number, 0) for number in numbers_in(self.numbers)] + [(usual, order) for order in orders]
        return [{"shots": shots, "order": order} for shots, order in [(usual, 0), *found] if found]

    def run(self, experiment: Experiment) -> None:
        for task, cuts in cuts_of_tasks(experiment).items():
            score([task], cuts, experiment)
            for prompt in self.prompts(task):
                for rule, of_rule in cuts.items():
                    score([task], {rule: of_rule}, experiment, prompt=prompt)


class ReasoningParameters(kinds.TaskParameters):
    notebook: ClassVar[str] = "03-reasoning"
    tasks: kinds.TasksOfSizes = "capitals, sums, sums_generated"


class ComparedHealingsParameters(kinds.HealingParameters):
    """A healing, and others to compare it with."""

    notebook: ClassVar[str] = "04-healing"
    ranks: Numbers = Field("none", description='of the adapters to compare: "none", or like "2, 8, 64"')
    seeds: Numbers = Field("none", description='of healing to compare: "none", or like "0, 1, 2"')

    def configs(self) -> list[HealingConfig]:
        """Of every healing that is asked for, this one first."""
        ranks, seeds = numbers_in(self.ranks), numbers_in(self.seeds)
        others = [self.config(rank=rank) for rank in ranks] + [self.config(seed=seed) for seed in seeds]
        return list(dict.fromkeys([self.config(), *others]))

    def run(self, experiment: Experiment) -> None:
        cuts_of = choose_cuts(self.size_list(experiment.source.num_layers), experiment)
        score_each(dict.fromkeys(self.questions, cuts_of), experiment)
        for config in self.configs():
            for cut in distinct_cuts(cuts_of):
                rules = [rule for rule, cuts in cuts_of.items() if cut in cuts]
                Healing(cut, config, experiment).run_and_scores(rules)


class WhichLayersParameters(kinds.TaskParameters):
    notebook: ClassVar[str] = "05-which-layers"
    dtype: kinds.Dtype = "bfloat16"
    tasks: kinds.Tasks = "capitals, sums"
    rules: Annotated[str, listed(REGISTERED, "all")] = Field(
        "all", description='rules to compare: "all", or like "similarity, block-influence"'
    )
    sizes: kinds.Sizes = Field(
        "all", description='block sizes whose every block is tried: "all" (0 to L-2), or like "0-8, 12"'
    )
    percent: Annotated[str, listed(NUMBER)] = Field(
        "10, 20, 25, 33", description="of the layers, to be dropped by every rule"
    )
    text: kinds.Corpus = Field("c4", description='on whose validation split losses are measured: "c4" or "wikipedia"')
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
        checks.whole_number("samples times tokens", points, 1, POINTS, "each token is compared with each")
        checks.whole_number("neighbours", self.neighbours, 1, points - 1, "ask for fewer")
        checks.whole_number("skip_sequences", self.skip_sequences, 1, self.samples, "ask for fewer")

    @property
    def texts(self) -> dict[str, dict]:
        return {self.text: {"limit": self.loss_sequences, "length": self.loss_length}}

    @property
    def calibration(self) -> dict:
        """What determines what a rule looks at, and a bridge is fitted on."""
        asked = self.drawn | self.model_dump(include={"calibration_sequences", "bridge_sequences"})
        # their length too; a key without it is of the usual
        return asked if self.loss_length == USUAL else asked | {"loss_length": self.loss_length}

    def shares(self, num_layers: int) -> list[int]:
        """How many layers each rule drops, at least one of them and never all; halves are rounded up."""
        wanted = ((percent * num_layers + 50) // 100 for percent in numbers_in(self.percent))
        return sorted({max(1, min(size, num_layers - 1)) for size in wanted})

    def run(self, experiment: Experiment) -> None:
        layers = experiment.source.num_layers
        measure_distances(experiment, by_sequence=True)
        score(self.texts, blocks(self.size_list(layers), layers), experiment)
        measure_geometry(experiment)
        compare_rules(experiment)


class ScanParameters(kinds.TaskParameters):
    """Of `deeper-layers scan` too."""

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
            if self.asked[text]["limit"] is None:
                raise InputError(f"limit is None, expected how many sequences of {text} to score: write {text}@32")

    @property
    def task_list(self) -> list[str]:
        """Those of lm-eval."""
        return [task for task in self.asked if task not in data.CORPORA]

    @property
    def texts(self) -> dict[str, dict]:
        lengths = dict.fromkeys(data.CORPORA, self.loss_length) | {data.SOLUTIONS: 0}  # one is as long as it is
        texts = {name: asked["limit"] for name, asked in self.asked.items() if name in data.CORPORA}
        return {text: {"limit": limit, "length": lengths[text]} for text, limit in texts.items()}

    def named_cuts(self, num_layers: int) -> CutsOf | None:
        return None if self.blocks is None else blocks([self.blocks], num_layers, numbers_in(self.starts))


class TakeAwayParameters(kinds.TaskParameters):
    """dtype and quantization are of the distances alone."""

    notebook: ClassVar[str] = "08-take-away"
    tasks: kinds.Tasks = "capitals, sums_one_digit, sums_two_digits"
    rules: kinds.Rules = "similarity"
    sizes: kinds.Sizes = "0, 1, 2, 4, 6, 8"
    bits: Annotated[str, listed([*DTYPES, *kinds.BITSANDBYTES, *FILE_TYPES], "auto")] = Field(
        "auto",
        description='kinds of weights to score: "auto", or like "bfloat16, nf4, Q8_0"; the last for a GGUF file',
    )
    drop: int = Field(8, ge=1, le=checks.LAYERS, description="layers that the file to take away lacks")
    gguf_type: Annotated[str, one_of(FILE_TYPES, "type of llama.cpp's quantizer to which it is rounded in the end")] = (
        "Q4_1"
    )
    text: kinds.Corpus = Field("wikipedia", description='what heals it: "wikipedia" (embedded) or "c4"')
    preset: kinds.Preset = "small"
    steps: int | None = setting("steps", "; None: the preset's own")

    def check(self) -> None:
        super().check()
        self.healing()

    def bits_list(self, source: Source) -> list[str]:
        """Kinds of weights to compare; of a GGUF file its own and llama.cpp's too."""
        if self.bits == "auto":
            of_file = dict.fromkeys(["Q8_0", source.quantized, "Q2_K"]) if source.is_gguf else ()
            return ["bfloat16", "int8", "nf4", *of_file]
        return split(self.bits)

    def healing(self) -> kinds.HealingParameters:
        """How the file heals: on weights as they are in it, in bfloat16."""
        both = self.model_dump(include={*kinds.HealingParameters.model_fields})
        return kinds.HealingParameters(**both | {"dtype": "bfloat16", "quantization": None})

    def run(self, experiment: Experiment) -> None:
        source, rule = experiment.source, self.rule_list[0]
        by_rule = experiment.but(rules=rule)
        if source.is_gguf:
            score_files(rule, choose_cuts([self.drop], by_rule)[rule][0], experiment)
        cuts = choose_cuts(self.size_list(source.num_layers), by_rule)
        for bits in self.bits_list(source):
            score_rounded(bits, cuts, experiment)


class ClaimsParameters(kinds.Shown):
    notebook: ClassVar[str] = "07-claims"


class CostParameters(kinds.Shown):
    notebook: ClassVar[str] = "09-cost"
    benchmarks: str = Field("benchmarks/measured", description="folder of measurements, in the repository")


class ReproductionParameters(kinds.TaskParameters):
    """What results hold is measured again, and nothing kept."""

    notebook: ClassVar[str] = "10-measured"
    tasks: kinds.Tasks = "capitals, sums_one_digit"
    rules: kinds.Rules = "similarity"
    sizes: kinds.Sizes = "0, 2, 8"

    def measured(self) -> None:
        """Nothing before it is asked for: `again` measures."""

    def again(self) -> "pd.DataFrame":
        """Scores measured now, of the model that is asked for or else the embedded one, into a folder that goes.

        The cuts are the published ones. Empty where nothing is to be measured. Raises InputError where the model can't
        be had.
        """
        wanted = self.but(model="embedded") if self.model == kinds.PUBLISHED else self
        with tempfile.TemporaryDirectory() as folder:
            if self.measure:
                experiment = Experiment(wanted)
                score_each(cuts_of_tasks(experiment), experiment.but(results=folder))
            return results.scores(wanted.but(results=folder).folder)
