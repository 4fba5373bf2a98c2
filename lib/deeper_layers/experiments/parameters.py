"""The parameters of the notebooks and of the command, checked before anything is loaded.

papermill only warns of a parameter that a notebook does not have. So each notebook hands its names to one
of these classes right after its parameters; the fields are the parameters, with their types, defaults and what
they mean. A test holds the cell of parameters of every notebook against its class.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from deeper_layers import checks, data, results, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.common_parameters import (
    BITSANDBYTES,
    MEASURES,
    ListText,
    Parameters,
    Shown,
    check_one_of,
)
from deeper_layers.experiments.parameter_texts import Asked, block_sizes, layer_list, split, tasks_asked
from deeper_layers.export.llama_cpp import FILE_TYPES
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import FIELDS, PRESETS, RANK, HealingConfig
from deeper_layers.rules.choosing import DROPPING, RULES
from deeper_layers.sweeping.vllm_engine import ENGINES, check_installed

if TYPE_CHECKING:  # slow
    import pandas as pd

# parameters that, where given, replace a setting of the preset
SETTINGS = {"rank": "rank", "learning_rate": "learning_rate", "steps": "steps", "healing_seed": "seed",
            "adapters": "adapters", "auxiliary": "auxiliary", "objective": "objective",
            "temperature": "temperature"}  # fmt: skip


def setting(name: str, more: str = "") -> Any:
    """A parameter that replaces a setting of the preset: what it may be, `HealingConfig` says."""
    return Field(None, description=f"{FIELDS[name].description}{more}")


class SimilarityParameters(Parameters):
    """Parameters of notebooks/01-similarity.ipynb."""

    notebook: ClassVar[str] = "01-similarity"


class TaskParameters(Parameters):
    """What is asked of models that lack layers: by sweeps, healings and scans alike."""

    choosable: ClassVar[tuple[str, ...]] = RULES
    tasks: str = Field(
        "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu", description='"mmlu:5@20": 5-shot, 20 items'
    )
    rules: str = Field("similarity, simple", description="how the dropped block is chosen")
    sizes: ListText = Field("all", description='block sizes: "all" (0 to L-2), or like "0-8, 12"')
    limit: int | None = Field(120, ge=1, le=checks.MANY, description="items a task, from its beginning; None: all")
    num_fewshot: int | None = Field(
        None, ge=0, le=checks.SHOTS, description="examples in the prompt; None: the task's own number"
    )
    memory: int = Field(
        2, ge=1, le=2**20,
        description="GiB to keep beside the model: with more of it answers are generated in larger batches",
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        for rule in self.rule_list:
            check_one_of("rule", rule, self.choosable)
        for name, found in (("rules", self.rule_list), ("tasks", self.asked)):
            if not found:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected names separated by commas: give some")
        # lm-eval is slow to import: asked only of names that neither we nor results know
        ours, measured = data.embedded_tasks(), lambda task: results.is_measured(task, self.results_folder)
        if self.measure and (others := [task for task in self.task_list if task not in ours and not measured(task)]):
            sweeping.check_names(others)
        if self.measure:
            for task, shots in self.shots.items():
                if shots and task in ours:
                    raise InputError(data.without_examples(task, shots))
        for sizes in {self.sizes, *(asked.sizes for asked in self.asked.values())}:
            block_sizes(sizes, None)

    def open(self, source: Source):
        """The model and its tokenizer, once it is known that the items of tasks never measured here can be read."""
        for task in self.task_list:
            if task not in data.embedded_tasks() and not results.is_measured(task, self.results_folder):
                sweeping.load_tasks([task], datasets=self.datasets)
        return super().open(source)

    @property
    def memory_bytes(self) -> int:
        """What a sweep may keep beside the model."""
        return self.memory * 2**30

    def sweep_options(self, task: str) -> dict:
        """What `deeper_layers.sweep` is told besides the model, the task and the cuts."""
        asked = self.asked[task]
        return {
            "limit": asked.limit, "num_fewshot": asked.shots, "datasets": self.datasets, "memory": self.memory_bytes,
        }  # fmt: skip

    @property
    def task_list(self) -> list[str]:
        return list(self.asked)

    @property
    def asked(self) -> dict[str, Asked]:
        """What is asked of each task. Raises InputError for what stands after a name and is no such thing."""
        return tasks_asked(self.tasks, Asked(self.num_fewshot, self.limit, self.sizes))

    @property
    def shots(self) -> dict[str, int | None]:
        """For each task the number of examples in its prompt; None is the task's own."""
        return {task: asked.shots for task, asked in self.asked.items()}

    @property
    def limits(self) -> dict[str, int | None]:
        """For each task the number of items, from its beginning; None is all."""
        return {task: asked.limit for task, asked in self.asked.items()}

    @property
    def rule_list(self) -> list[str]:
        return list(dict.fromkeys(split(self.rules)))

    def size_list(self, num_layers: int, task: str | None = None) -> list[int]:
        """Block sizes in order, of a task or else of all, 0 among them since every curve starts at the whole model.

        Raises InputError for what is no list of sizes, or a size outside 0..L-1.
        """
        return block_sizes(self.asked[task].sizes if task else self.sizes, num_layers)

    def check_one_list_of_sizes(self) -> None:
        """Raise InputError where a task has block sizes of its own, which not every notebook can show."""
        if own := [task for task, asked in self.asked.items() if asked.sizes != self.sizes]:
            raise InputError(
                f"tasks has block sizes for {own[0]!r} alone: give the sizes of all in the parameter sizes"
            )


class QuestionAnsweringParameters(TaskParameters):
    """Parameters of notebooks/02-question-answering.ipynb."""

    notebook: ClassVar[str] = "02-question-answering"
    numbers: ListText = Field(
        "none", description='other numbers of examples in the prompt to compare: "none", or like "0, 1, 3"'
    )
    # from 1: the task's own order is there anyway
    orders: ListText = Field("none", description='seeds of shuffles of the examples to compare: "none", or like "1, 2"')

    def check(self) -> None:
        super().check()
        self.number_list("numbers", 0, checks.SHOTS)
        self.number_list("orders", 1, checks.SEED)
        if (self.numbers, self.orders) != ("none", "none") and None in self.shots.values():
            raise InputError(
                f"num_fewshot is {self.num_fewshot} and tasks {self.tasks!r}, expected the number of examples which "
                'other numbers and orders are compared with: write "mmlu:5"'
            )


class ReasoningParameters(TaskParameters):
    """Parameters of notebooks/03-reasoning.ipynb."""

    notebook: ClassVar[str] = "03-reasoning"
    tasks: str = Field("capitals, sums, sums_generated", description='"mmlu:5@20/0-8": 5-shot, 20 items, sizes 0 to 8')


class HealingParameters(TaskParameters):
    """Parameters of `deeper-layers heal` and `deeper-layers report`."""

    dtype: str = Field(
        "bfloat16", description='in which the model computes: "auto", "float32", "bfloat16" or "float16"'
    )
    quantization: str | None = Field("nf4", description='None, "nf4" or "int8" (bitsandbytes)')
    sizes: ListText = Field("0, 1, 3, 6, 9, 12, 15", description='block sizes: "all" (0 to L-2), or like "0-8, 12"')
    text: str = Field(
        "c4", description='what heals, and on whose validation split losses are measured: "c4" or "wikipedia"'
    )
    preset: str = Field(
        "small", description='the paper\'s settings of one of its models ("Llama-2 7B", ...), "small", or "distill"'
    )
    rank: int | None = setting("rank", "; None, here and in what follows: the preset's own")
    learning_rate: float | None = setting("learning_rate")
    steps: int | None = setting("steps")
    healing_seed: int | None = Field(None, ge=0, le=checks.SEED, description=FIELDS["seed"].description)
    adapters: str | None = setting("adapters")
    auxiliary: float | None = setting("auxiliary")
    objective: str | None = setting("objective")
    temperature: float | None = setting("temperature")
    loss_sequences: int = Field(128, ge=2, le=checks.MANY, description="for the loss on text")
    loss_length: int = Field(256, ge=2, le=checks.TOKENS, description="tokens in each")

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()
        check_one_of("text", self.text, data.CORPORA)
        check_one_of("preset", self.preset, PRESETS)
        self.config()

    def config(self, **others) -> HealingConfig:
        """The preset, with what these parameters, and then `others`, set otherwise.

        Raises InputError for an impossible setting.
        """
        named = {setting: getattr(self, name) for name, setting in SETTINGS.items()}
        given = {setting: value for setting, value in named.items() if value is not None} | others
        preset = PRESETS[self.preset]
        if "steps" in given:  # the same share of warm-up
            given.setdefault(
                "warmup_steps", round(preset.warmup_steps * min(given["steps"], checks.MANY) / preset.steps)
            )
        return dataclasses.replace(preset, quantization=self.quantization, **given)

    @property
    def loss_key(self) -> dict:
        """What determines a loss on text, besides the model."""
        return {"text": self.text, "sequences": self.loss_sequences, "sequence_length": self.loss_length}


class ComparedHealingsParameters(HealingParameters):
    """Parameters of notebooks/04-healing.ipynb: a healing, and others to compare it with."""

    notebook: ClassVar[str] = "04-healing"
    ranks: ListText = Field("none", description='of the adapters to compare: "none", or like "2, 8, 64"')
    seeds: ListText = Field("none", description='of healing to compare: "none", or like "0, 1, 2"')

    def check(self) -> None:
        super().check()
        self.number_list("ranks", 1, RANK)
        self.number_list("seeds", 0, checks.SEED)

    def configs(self) -> list[HealingConfig]:
        """Of every healing that is asked for, this one first."""
        others = [self.config(rank=rank) for rank in self.number_list("ranks", 1, RANK)]
        others += [self.config(seed=seed) for seed in self.number_list("seeds", 0, checks.SEED)]
        return list(dict.fromkeys([self.config(), *others]))


class TakeAwayParameters(TaskParameters):
    """Parameters of notebooks/08-take-away.ipynb."""

    notebook: ClassVar[str] = "08-take-away"
    dtype: str = Field(
        "auto", description='of the distances: "auto" (the checkpoint\'s own), "float32", "bfloat16" or "float16"'
    )
    quantization: str | None = Field(None, description='of the distances: None, "nf4" or "int8" (bitsandbytes)')
    tasks: str = Field("capitals, sums_one_digit, sums_two_digits", description='"mmlu:5@20": 5-shot, 20 items')
    rules: str = Field("similarity", description="how the dropped block is chosen")
    sizes: ListText = Field("0, 1, 2, 4, 6, 8", description="block sizes, in every kind of weights")
    bits: str = Field(
        "auto", description='kinds of weights, like "bfloat16, int8, nf4, Q8_0, Q2_K"; the last two for a GGUF file'
    )
    drop: int = Field(8, ge=1, le=checks.LAYERS, description="layers that the file to take away lacks")
    gguf_type: str = Field("Q4_1", description="to which llama.cpp's quantizer rounds it in the end")
    text: str = Field("wikipedia", description='what heals it: "wikipedia" (embedded) or "c4"')
    preset: str = Field(
        "small", description='how: the paper\'s settings of one of its models ("Llama-2 7B", ...), or "small"'
    )
    steps: int | None = setting("steps", "; None: the preset's own")

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()
        known = (*DTYPES, *BITSANDBYTES, *FILE_TYPES)
        wrong = [bits for bits in split(self.bits) or [self.bits] if bits not in known and self.bits != "auto"]
        if wrong:
            raise InputError(f"bits has {wrong[0]!r}, expected 'auto' or some of {', '.join(known)}")
        if self.gguf_type not in FILE_TYPES:
            raise InputError(f"gguf_type is {self.gguf_type!r}, expected one of {', '.join(FILE_TYPES)}")
        self.healing().check()

    def bits_list(self, source: Source) -> list[str]:
        """Kinds of weights to compare. Raises InputError for llama.cpp's where the model is no GGUF file."""
        own = [source.quantized] if source.is_gguf else []
        if self.bits == "auto":
            return ["bfloat16", "int8", "nf4", *dict.fromkeys(["Q8_0", *own, "Q2_K"] if own else [])]
        asked = split(self.bits)
        wrong = [bits for bits in asked if bits in FILE_TYPES]
        if wrong and self.measure and not source.is_gguf:
            raise InputError(f"bits has {wrong[0]!r}, and {source.name} is no GGUF file: leave it out")
        return asked

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
    tasks: str = Field("capitals, sums_one_digit", description='measured again; "mmlu:5@20": 5-shot, 20 items')
    rules: str = Field("similarity", description="under which")
    sizes: ListText = Field("0, 2, 8", description='block sizes: "all" (0 to L-2), or like "0-8, 12"')

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()

    def measured(self) -> None:
        """Nothing before it is asked for: `again` measures."""

    def again(self) -> "pd.DataFrame":
        """Scores measured now, of the model that is asked for or else the embedded one, into a folder that goes.

        Empty where nothing is to be measured. Raises InputError where the model can't be had.
        """
        return importlib.import_module(MEASURES).again(self)


class SweepParameters(TaskParameters):
    """Parameters of `deeper-layers sweep` and `plan`: any rule, a cut of any shape, and an engine."""

    choosable: ClassVar[tuple[str, ...]] = DROPPING
    rules: str = Field("similarity, simple", description=f"who chooses what is dropped: {', '.join(DROPPING)}")
    layers: str | None = Field(None, description='layers to drop, like "3, 7-9", instead of rules and sizes')
    attention: str | None = Field(None, description="layers that lose their attention, in the same way")
    mlp: str | None = Field(None, description="layers that lose their MLP, in the same way")
    engine: str | None = Field(None, description=f"what writes answers: none (ours), or {', '.join(ENGINES)}")

    def check(self) -> None:
        super().check()
        fields = type(self).model_fields
        chosen = [name for name in ("rules", "sizes") if getattr(self, name) != fields[name].default]
        if self.given_cut is not None and chosen:
            raise InputError(
                f"{chosen[0]} is {getattr(self, chosen[0])!r} beside a cut that is given layer by layer: leave one of "
                "them out"
            )
        check_one_of("engine", self.engine, (None, *ENGINES))
        if self.engine and self.measure:
            check_installed(self.engine)

    @property
    def given_cut(self) -> Cut | None:
        """The cut that was given layer by layer; None where rules choose."""
        return cut_of_lists(self.layers, self.attention, self.mlp)


def cut_of_lists(layers: str | None, attention: str | None, mlp: str | None) -> Cut | None:
    """The cut of lists like "3, 7-9"; None where there is none. Raises InputError for what is no such list."""
    lists = {"layers": layers, "attention": attention, "mlp": mlp}
    found = {name: layer_list(name, text) for name, text in lists.items() if text is not None}
    return Cut.of(**found) if found else None


def check_given(cut: Cut, layers: int) -> None:
    """Raise InputError for a cut that does not fit a model of so many layers, in the words of the lists."""
    for name, indices in (("layers", cut.dropped), ("attention", cut.attention), ("mlp", cut.mlp)):
        if indices and indices[-1] >= layers:
            raise InputError(
                f"{name} is a list up to {indices[-1]}; expected layers 0 to {layers - 1}: the model has {layers}"
            )
    if cut.size == layers:
        raise InputError(f"layers is a list of all {layers} of the model: one has to stay")
    cut.check(layers)
