"""What notebooks and the command take as parameters, checked before anything is loaded.

The fields of a class are the parameters, with their types, defaults and what they mean; lists are read from the text
that holds them once. papermill only warns of a parameter that a notebook does not have. So each notebook hands its
names to its class in notebook_parameters.py. A test holds the cell of parameters of every notebook against its class.
"""

import dataclasses
import functools
import importlib
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from deeper_layers import checks, data, models, results, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.base_parameters import (
    PUBLISHED,
    Asked,
    Names,
    Shown,
    Sizes,
    TaskNames,
    listed,
    names_of,
    one_of,
    read_numbers,
)
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import FIELDS, PRESETS, HealingConfig
from deeper_layers.rules.choosing import DROPPING, RULES
from deeper_layers.sweeping.vllm_engine import ENGINES, check_installed

if TYPE_CHECKING:  # slow
    import pandas as pd

BITSANDBYTES = ("nf4", "int8")
MEASURES = "deeper_layers.experiments.asked"  # by name, and only where something is measured: it imports these classes
DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu|hpu|npu)(:[0-9]{1,3})?")
# parameters that, where given, replace a setting of the preset
SETTINGS = {
    name: name for name in ("rank", "learning_rate", "steps", "adapters", "auxiliary", "objective", "temperature")
} | {"healing_seed": "seed"}

Dtype = Annotated[str, one_of("auto", *DTYPES)]
Quantization = Annotated[str | None, one_of(None, *BITSANDBYTES)]
Corpus = Annotated[str, one_of(*data.CORPORA)]
Preset = Annotated[str, one_of(*PRESETS)]
Rules = Annotated[Names, names_of(RULES)]


def setting(name: str, more: str = "") -> Any:
    """A parameter that replaces a setting of the preset: what it may be, `HealingConfig` says."""
    return Field(None, description=f"{FIELDS[name].description}{more}")


class Parameters(Shown):
    """What a notebook that can measure takes besides: how the model is opened, on which text layers are compared."""

    revision: str | None = Field(None, description="hub branch, tag or commit; for a .gguf file its expected SHA-256")
    dtype: Dtype = Field("auto", description='"auto" (the checkpoint\'s own), "float32", "bfloat16" or "float16"')
    device: str = Field("auto", description='"auto", "cpu", "cuda" or "mps"')
    quantization: Quantization = Field(None, description='None, "nf4" or "int8" (bitsandbytes)')
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    datasets: str | None = Field(
        None, description="folder of a local mirror of the hub; None: DATASETS_MIRROR, else the hub"
    )
    corpus: Corpus = Field(
        "wikipedia", description='text for the distances: "wikipedia" (embedded), "c4", "code" or "gsm8k_solutions"'
    )
    samples: int = Field(256, ge=2, le=data.DOCUMENTS, description="sequences for the distances")
    sequence_length: int = Field(512, ge=2, le=checks.TOKENS, description="each cut after so many tokens")
    seed: int = Field(0, ge=0, le=checks.SEED, description="of the draw of sequences")

    def check(self) -> None:
        super().check()
        if not DEVICE.fullmatch(self.device):
            raise InputError(
                f"device is {self.device!r}, expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps': choose one"
            )
        data.mirror(self.datasets)

    def measured(self) -> None:
        """Measure what results lack of the one model that is asked for, once."""
        if self.measure and self.model != PUBLISHED and not self._is_measured:
            importlib.import_module(MEASURES).measure(self)
            self._is_measured = True

    def distances(self) -> "pd.DataFrame":
        """Every angular distance; of the one model that is asked for those of the sequences that are asked for."""
        rows, name = super().distances(), models.model_name(self.model)
        drawn = {"samples": self.samples, "length": self.sequence_length, "seed": self.seed}
        alike = (rows[list(drawn)] == list(drawn.values())).all(axis=1)
        return rows[alike | (rows["model"] != name)].reset_index(drop=True)

    def source(self) -> Source:
        """The model, identified but not opened: by the name that results have for its weights, if they know them.

        Where nothing is to be measured, as results know it.
        """
        if not self.measure and (known := models.recorded_model(self.model, self.dtype, self.results_folder)):
            return known
        source = models.find_model(
            self.model, revision=self.revision, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )
        return self.known(source)

    def known(self, source: Source) -> Source:
        """A model by the name that results have for its weights, where its file has another."""
        name = results.name_of(source.weights, self.results_folder) if source.is_gguf else None
        return source if name is None else dataclasses.replace(source, name=name)

    def open(self, source: Source):
        """The model and its tokenizer, of which InputError is raised where it knows no words."""
        model, tokenizer = models.load_model(
            source, device=self.device, quantization=self.quantization, trust_remote_code=self.trust_remote_code
        )
        data.check_tokenizer(tokenizer)
        return model, tokenizer

    @property
    def key(self) -> dict:
        """What of the way a model is opened determines a measurement."""
        return {"quantization": self.quantization}

    @property
    def drawn(self) -> dict:
        """What determines the sequences of the distances, besides the tokenizer."""
        return {name: getattr(self, name) for name in ("corpus", "samples", "sequence_length", "seed")}


class TaskParameters(Parameters):
    """What is asked of models that lack layers: by sweeps, healings and scans alike."""

    own_sizes: ClassVar[bool] = True  # a task may have block sizes of its own, which not every notebook can show
    tasks: TaskNames = listed(
        "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu", '"mmlu:5@20": 5-shot, 20 items'
    )
    rules: Rules = listed("similarity, simple", "how the dropped block is chosen")
    sizes: Sizes = listed("all", 'block sizes: "all" (0 to L-2), or like "0-8, 12"')
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
        if not self.own_sizes and (own := [name for name, of_task in self.tasks if "sizes" in of_task]):
            raise InputError(
                f"tasks has block sizes for {own[0]!r} alone: give the sizes of all in the parameter sizes"
            )
        # lm-eval is slow to import: asked only of names that neither we nor results know
        ours, measured = data.embedded_tasks(), lambda task: results.is_measured(task, self.results_folder)
        if self.measure and (others := [task for task in self.task_list if task not in ours and not measured(task)]):
            sweeping.check_names(others)
        if self.measure:
            for task, asked in self.asked.items():
                if asked.shots and task in ours:
                    raise InputError(data.without_examples(task, asked.shots))

    def open(self, source: Source):
        """The model and its tokenizer, once it is known that the items of tasks never measured here can be read."""
        for task in self.task_list:
            if task not in data.embedded_tasks() and not results.is_measured(task, self.results_folder):
                sweeping.load_tasks([task], datasets=self.datasets)
        return super().open(source)

    def sweep_options(self, task: str) -> dict:
        """What `deeper_layers.sweep` is told besides the model, the task and the cuts."""
        asked = self.asked[task]
        return {
            "limit": asked.limit,
            "num_fewshot": asked.shots,
            "datasets": self.datasets,
            "memory": self.memory * 2**30,
        }

    @property
    def task_list(self) -> list[str]:
        return list(self.asked)

    @functools.cached_property
    def asked(self) -> dict[str, Asked]:
        """What is asked of each task: what is left out in the list holds for all."""
        of_all, asked = Asked(self.num_fewshot, self.limit, self.sizes), {}
        for name, own in self.tasks:
            of_task = of_all._replace(**own)
            if asked.setdefault(name, of_task) != of_task:
                raise InputError(f"tasks has {name!r} twice, and asks other things of it: leave one of them out")
        return asked

    @property
    def rule_list(self) -> list[str]:
        return list(self.rules)

    def size_list(self, num_layers: int, task: str | None = None) -> list[int]:
        """Block sizes in order, of a task or else of all, 0 among them since every curve starts at the whole model.

        Raises InputError for a size outside 0..L-1.
        """
        sizes = (self.asked[task].sizes if task else self.sizes) or range(num_layers - 1)
        if (largest := max(sizes)) > num_layers - 1:
            raise InputError(
                f"size is {largest}, expected 0 to {num_layers - 1} for a model of {num_layers} layers, as the "
                "last layer is never dropped: choose sizes in that range"
            )
        return sorted({0, *sizes})


class HealingParameters(TaskParameters):
    """Parameters of `deeper-layers heal` and `deeper-layers report`."""

    own_sizes: ClassVar[bool] = False
    dtype: Dtype = Field(
        "bfloat16", description='in which the model computes: "auto", "float32", "bfloat16" or "float16"'
    )
    quantization: Quantization = Field("nf4", description='None, "nf4" or "int8" (bitsandbytes)')
    sizes: Sizes = listed("0, 1, 3, 6, 9, 12, 15", 'block sizes: "all" (0 to L-2), or like "0-8, 12"')
    text: Corpus = Field(
        "c4", description='what heals, and on whose validation split losses are measured: "c4" or "wikipedia"'
    )
    preset: Preset = Field(
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


class SweepParameters(TaskParameters):
    """Parameters of `deeper-layers sweep` and `plan`: any rule, a cut of any shape, and an engine."""

    rules: Annotated[Names, names_of(DROPPING)] = listed(
        "similarity, simple", f"who chooses what is dropped: {', '.join(DROPPING)}"
    )
    layers: str | None = Field(None, description='layers to drop, like "3, 7-9", instead of rules and sizes')
    attention: str | None = Field(None, description="layers that lose their attention, in the same way")
    mlp: str | None = Field(None, description="layers that lose their MLP, in the same way")
    engine: Annotated[str | None, one_of(None, *ENGINES)] = Field(
        None, description=f"what writes answers: none (ours), or {', '.join(ENGINES)}"
    )

    def check(self) -> None:
        super().check()
        for name in ("rules", "sizes"):
            if (given := getattr(self, name).text) != type(self).model_fields[name].default and self.given_cut:
                raise InputError(
                    f"{name} is {given!r} beside a cut that is given layer by layer: leave one of them out"
                )
        if self.engine and self.measure:
            check_installed(self.engine)

    @functools.cached_property
    def given_cut(self) -> Cut | None:
        """The cut that was given layer by layer; None where rules choose."""
        return cut_of_lists(self.layers, self.attention, self.mlp)


def cut_of_lists(layers: str | None, attention: str | None, mlp: str | None) -> Cut | None:
    """The cut of layers in lists like "3, 7-9"; None without one. Raises InputError for what is no such list."""
    lists = {"layers": layers, "attention": attention, "mlp": mlp}
    found = {name: read_numbers(name, text, most=checks.LAYERS - 1) for name, text in lists.items() if text is not None}
    return Cut.of(**found) if found else None
