"""What notebooks and the command take as parameters, checked before anything is loaded.

The fields of a class are the parameters: their names, types, defaults and what they mean. A list is a text, kept as it
was written and read where it is used. papermill only warns of a parameter that a notebook does not have, so each
notebook hands its names to its class in notebook_parameters.py. A test holds every cell of parameters to its class.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deeper_layers import checks, data, models, results, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.choosing import cuts_of_tasks
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import CutsOf, Experiment
from deeper_layers.experiments.scoring import score_each
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import FIELDS, PRESETS, HealingConfig
from deeper_layers.results.schema import GIVEN
from deeper_layers.rules.choosing import DROPPING, REGISTERED, RULES
from deeper_layers.sweeping.vllm_engine import ENGINES, check_installed

if TYPE_CHECKING:  # slow
    import pandas as pd

PUBLISHED = "published"  # in place of a model: all that results hold, nothing measured
BITSANDBYTES = ("nf4", "int8")
Kind = TypeVar("Kind", bound="Shown")  # not Self: shapes are checked method by method

LIST = r"[\s,]*({0})(\s*,[\s,]*({0}))*[\s,]*"
NUMBER = r"[0-9]{1,5}(\s*-\s*[0-9]{1,5})?"
# a name of lm-eval's, examples in the prompt, items; block sizes of its own
TASK = r"([\w.()-]+)(?::([0-9]{1,3}))?(?:@([1-9][0-9]{0,8}))?"
OWN_SIZES = rf"(?:/({NUMBER}(?:\+{NUMBER})*))?"


def split(text: str) -> list[str]:
    """The parts of a list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def numbers_in(text: str) -> list[int]:
    """The whole numbers of a list like "0-8, 12", rising; none of a word that stands for them."""
    found = set()
    for ends in re.findall(r"([0-9]+)(?:\s*-\s*([0-9]+))?", text):
        low, high = sorted((int(ends[0]), int(ends[1] or ends[0])))
        found |= set(range(low, high + 1))
    return sorted(found)


def one_of(known: Iterable[str], description: str | None = None) -> Any:
    """Marks one of the known names."""
    return Field(pattern=f"^({'|'.join(map(re.escape, known))})$", description=description)


def listed(item: str | Iterable[str], *words: str, description: str | None = None) -> Any:
    """Marks a list of what is like `item`, or of known names; or one of some words that stand for a list."""
    item = item if isinstance(item, str) else "|".join(map(re.escape, item))
    return Field(pattern=f"^({'|'.join([*words, LIST.format(item)])})$", description=description)


Dtype = Annotated[str, one_of(["auto", *DTYPES], '"auto" (the checkpoint\'s own), "float32", "bfloat16" or "float16"')]
Quantization = Annotated[str | None, one_of(BITSANDBYTES, 'None, "nf4" or "int8" (bitsandbytes)')]
Corpus = Annotated[str, one_of(data.CORPORA)]
Preset = Annotated[
    str, one_of(PRESETS, 'the paper\'s settings of one of its models ("Llama-2 7B", ...), "small", or "distill"')
]
Rules = Annotated[str, listed(RULES, description='who chooses the dropped block: "similarity", "simple", or both')]
AnyRules = Annotated[str, listed(DROPPING, description=f"who chooses what is dropped: {', '.join(DROPPING)}")]
Sizes = Annotated[str, listed(NUMBER, "all", description='block sizes: "all" (0 to L-2), or like "0-8, 12"')]
Tasks = Annotated[str, listed(TASK, description='"mmlu:5@20": 5-shot, 20 items')]
TasksOfSizes = Annotated[str, listed(TASK + OWN_SIZES, description='"mmlu:5@20/0-8": shots, items, sizes')]
Layers = Annotated[str | None, listed(NUMBER)]
# parameters that, where given, replace the setting of the preset
SETTINGS = {"rank", "learning_rate", "steps", "adapters", "auxiliary", "objective", "temperature"}


def setting(name: str, more: str = "") -> Any:
    """One of SETTINGS: what it may be, `HealingConfig` says."""
    return Field(None, description=f"{FIELDS[name].description}{more}")


class Shown(BaseModel):
    """What every notebook takes: which model, or all, and where results lie.

    Raises InputError for an unknown name, a value of the wrong type, an impossible value: one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    notebook: ClassVar[str] = ""  # whose parameters these are
    _is_measured: bool = False

    model: str = Field(
        PUBLISHED,
        description='"published": all results; "embedded", a hub id, a folder of save_pretrained, or a .gguf file',
    )
    results: str | None = Field(
        None, description="folder of results; None: results/ of the repository, else of this folder"
    )
    measure: bool = Field(True, description="False: measure nothing, show what results hold")

    def __init__(self, **given):
        fields = type(self).model_fields
        if unknown := [name for name in given if name not in fields]:
            raise InputError(f"unknown parameter {unknown[0]!r}: expected some of {', '.join(fields)}")
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise checks.refused(error, fields) from None

    @classmethod
    def from_names(cls: type[Kind], names: dict[str, object]) -> Kind:
        """The parameters among a notebook's global names, and what was given besides: no imports, no tables."""
        plain = (name for name, value in names.items() if isinstance(value, str | int | float) and name[0] != "_")
        return cls(**{name: names[name] for name in [*cls.model_fields, *plain] if name in names})

    @field_validator("*", mode="before")
    @classmethod
    def _usable_text(cls, value: object, info) -> object:
        # papermill makes a number of what was meant as a list with one number in it
        if type(value) is int and abs(value) <= checks.SEED and cls.model_fields[info.field_name].annotation is str:
            value = str(value)
        return checks.text(info.field_name, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _checked(self):
        self.check()
        return self

    def check(self) -> None:
        """Raise InputError for a value that no model could make right."""
        checks.place("model", self.model)
        results.results_folder(self.results)

    def but(self: Kind, **others) -> Kind:
        """The same parameters, with some set otherwise."""
        return type(self)(**(self.model_dump() | others))

    @property
    def folder(self) -> Path:
        """Where results lie."""
        return results.results_folder(self.results)

    def scores(self) -> "pd.DataFrame":
        """Every score and loss, a row for each pruned model, rule and task: see `results.scores`.

        What results lack of the one model that is asked for is measured before, and it comes first; then those of
        `report.names.FIRST`, then all others by name.
        """
        return self._shown(results.scores)

    def distances(self) -> "pd.DataFrame":
        """Every angular distance, a row for each block, in the same way."""
        return self._shown(results.distances)

    def measured(self) -> None:
        """Nothing is: there is nothing to measure here."""

    def _shown(self, read: "Callable[[Path], pd.DataFrame]") -> "pd.DataFrame":
        from deeper_layers.report.names import FIRST, put_in_order  # slow

        self.measured()
        return put_in_order(read(self.folder), (models.model_name(self.model), *FIRST))


class Parameters(Shown):
    """What a notebook that can measure takes besides: how the model is opened, on which text layers are compared."""

    revision: str | None = Field(None, description="hub branch, tag or commit; for a .gguf file its expected SHA-256")
    dtype: Dtype = "auto"
    device: str = Field(
        "auto",
        pattern="^(auto|cpu|(cuda|mps|xpu|hpu|npu)(:[0-9]{1,3})?)$",
        description='"auto", "cpu", "cuda" or "mps"',
    )
    quantization: Quantization = None
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
        data.mirror(self.datasets)

    def run(self, experiment: Experiment) -> None:
        """Measure what the notebook shows of one model and results lack: InputError is raised for what can't be had."""
        measure_distances(experiment)

    def measured(self) -> None:
        """Measure what results lack of the one model that is asked for, once."""
        if self.measure and self.model != PUBLISHED and not self._is_measured:
            self.run(Experiment(self))
            self._is_measured = True

    def distances(self) -> "pd.DataFrame":
        """Every angular distance; of the one model that is asked for those of the sequences that are asked for."""
        drawn = {"samples": self.samples, "length": self.sequence_length, "seed": self.seed}
        rows = super().distances()
        others = rows["model"] != models.model_name(self.model)
        return rows[others | (rows[[*drawn]] == [*drawn.values()]).all(axis=1)].reset_index(drop=True)

    def source(self, hashed: bool = True) -> Source:
        """The model, identified but not opened, by the name that results have for the weights of a GGUF file.

        Where nothing is to be measured, as results know it. Local weights are read for their hash unless `hashed` is
        False.
        """
        if not self.measure and (known := models.recorded_model(self.model, self.dtype, self.folder)):
            return known
        how = self.model_dump(include={"revision", "dtype", "trust_remote_code"})
        source = models.find_model(self.model, hashed=hashed, **how)
        name = results.name_of(source.weights, self.folder) if source.is_gguf else None
        return source if name is None else dataclasses.replace(source, name=name)

    def open(self, source: Source):
        """The model and its tokenizer, of which InputError is raised where it knows no words."""
        how = self.model_dump(include={"device", "quantization", "trust_remote_code"})
        model, tokenizer = models.load_model(source, **how)
        data.check_tokenizer(tokenizer)
        return model, tokenizer

    @property
    def key(self) -> dict:
        """What of the way a model is opened determines a measurement."""
        return {"quantization": self.quantization}

    @property
    def drawn(self) -> dict:
        """What determines the sequences of the distances, besides the tokenizer."""
        return self.model_dump(include={"corpus", "samples", "sequence_length", "seed"})


class TaskParameters(Parameters):
    """What is asked of models that lack layers: by sweeps, healings and scans alike."""

    tasks: TasksOfSizes = "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu"
    rules: Rules = "similarity, simple"
    sizes: Sizes = "all"
    limit: int | None = Field(120, ge=1, le=checks.MANY, description="items a task, from its beginning; None: all")
    num_fewshot: int | None = Field(
        None, ge=0, le=checks.SHOTS, description="examples in the prompt; None: the task's own number"
    )
    memory: int = Field(
        2,
        ge=1,
        le=2**20,
        description="GiB to keep beside the model: with more of it answers are generated in larger batches",
    )

    def check(self) -> None:
        super().check()
        tasks, ours = self.task_list if self.measure else [], data.embedded_tasks()
        for task in tasks:
            if task in ours and (shots := self.asked[task]["shots"]):
                raise InputError(data.without_examples(task, shots))
        # lm-eval is slow to import: asked only of names that neither we nor results know
        if new := [task for task in tasks if task not in ours and not results.is_measured(task, self.folder)]:
            sweeping.check_names(new)

    @functools.cached_property
    def asked(self) -> dict[str, dict]:
        """What is asked of each task: "mmlu:5@20/0-8+12" is 5 "shots", a "limit" of 20 items, "sizes" 0 to 8 and 12.

        What is not written behind a name holds for all. Raises InputError for a task of which two things are asked.
        """
        asked: dict[str, dict] = {}
        for name, shots, limit, sizes, *_ in re.findall(TASK + OWN_SIZES, self.tasks):
            prompt = {"shots": int(shots) if shots else self.num_fewshot, "limit": int(limit) if limit else self.limit}
            of_task = prompt | {"sizes": sizes or self.sizes}
            if asked.setdefault(name, of_task) != of_task:
                raise InputError(f"tasks has {name!r} twice, and asks other things of it: leave one of them out")
        return asked

    @property
    def task_list(self) -> list[str]:
        return list(self.asked)

    @property
    def texts(self) -> dict[str, dict]:
        """The texts on which losses are measured, and what is asked of each."""
        return {}

    @property
    def questions(self) -> dict[str, dict]:
        """What is asked of each text and task, as a key has it."""
        return self.texts | {name: {of: self.asked[name][of] for of in ("shots", "limit")} for name in self.task_list}

    @property
    def rule_list(self) -> list[str]:
        return list(REGISTERED) if self.rules == "all" else split(self.rules)

    def size_list(self, num_layers: int, task: str | None = None) -> list[int]:
        """Block sizes in order, of a task or else of all, 0 among them since every curve starts at the whole model.

        Raises InputError for a size outside 0..L-1.
        """
        sizes = numbers_in(self.asked[task]["sizes"] if task else self.sizes) or range(num_layers - 1)
        checks.whole_number("size", max(sizes), 0, num_layers - 1, f"the last of {num_layers} layers is never dropped")
        return sorted({0, *sizes})

    def named_cuts(self, num_layers: int) -> CutsOf | None:
        """What is dropped of such a model, where that is said cut by cut; None where rules choose."""
        return None

    def run(self, experiment: Experiment) -> None:
        score_each(cuts_of_tasks(experiment), experiment)


class HealingParameters(TaskParameters):
    """Parameters of `deeper-layers heal` and `deeper-layers report`."""

    tasks: Tasks = "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu"
    dtype: Dtype = "bfloat16"
    quantization: Quantization = "nf4"
    sizes: Sizes = "0, 1, 3, 6, 9, 12, 15"
    text: Corpus = Field(
        "c4", description='what heals, and on whose validation split losses are measured: "c4" or "wikipedia"'
    )
    preset: Preset = "small"
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
        given, preset = self.model_dump(include=SETTINGS, exclude_none=True), PRESETS[self.preset]
        if "steps" in given:  # the same share of warm-up
            share = preset.warmup_steps / preset.steps
            given["warmup_steps"] = round(share * min(given["steps"], checks.MANY))
        seed = preset.seed if self.healing_seed is None else self.healing_seed
        given = {"seed": seed, "quantization": self.quantization} | given | others
        return dataclasses.replace(preset, **given)

    @property
    def texts(self) -> dict[str, dict]:
        return {self.text: {"limit": self.loss_sequences, "length": self.loss_length}}


class SweepParameters(TaskParameters):
    """Parameters of `deeper-layers sweep` and `plan`: any rule, a cut of any shape, and an engine."""

    rules: AnyRules = "similarity, simple"
    layers: Layers = Field(None, description='layers to drop, like "3, 7-9", instead of rules and sizes')
    attention: Layers = Field(None, description="layers that lose their attention, in the same way")
    mlp: Layers = Field(None, description="layers that lose their MLP, in the same way")
    engine: Annotated[str | None, one_of(ENGINES, f"what writes answers: none (ours), or {', '.join(ENGINES)}")] = None

    def check(self) -> None:
        super().check()
        if self.engine and self.measure:
            check_installed(self.engine)

    @functools.cached_property
    def given_cut(self) -> Cut | None:
        """The cut that was given layer by layer; None where rules choose."""
        lists = self.model_dump(include={"layers", "attention", "mlp"}, exclude_none=True)
        return Cut.of(**{name: numbers_in(text) for name, text in lists.items()}) if lists else None

    def named_cuts(self, num_layers: int) -> CutsOf | None:
        if (cut := self.given_cut) is None:
            return None
        cut.check(num_layers)
        return {GIVEN: [UNPRUNED, cut]}
