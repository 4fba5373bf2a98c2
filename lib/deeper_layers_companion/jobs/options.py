"""The options of notebooks and of the command, checked before anything is loaded.

The fields of a class are the parameters, with their types, defaults and descriptions. A list is a text, kept as it was
written and parsed where it is used. papermill only warns of a parameter that a notebook does not have, so each notebook
hands its names to its class in notebook_options.py. A test compares every cell of parameters with its class.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deeper_layers import checks, data, models, sweeping
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.sources import DTYPES
from deeper_layers.presets import FIELDS, PRESETS, HealingConfig
from deeper_layers_companion import results
from deeper_layers_companion.jobs.until import DURATION, Until, parse_seconds
from deeper_layers_companion.results.schema import ACCURACY, GIVEN, HALF_GONE
from deeper_layers_companion.rules.table import DROPPING, REGISTERED, RULES

if TYPE_CHECKING:  # slow to import
    import pandas as pd

CutsByRule = dict[str, list[Cut]]  # the keys are names of rules
BITSANDBYTES = ("nf4", "int8")  # quantizations of weights that compute in bfloat16
PUBLISHED = "published"  # in place of a model: show all results, measure nothing
Kind = TypeVar("Kind", bound="BaseParameters")  # not Self: shapes are checked method by method

LIST = r"[\s,]*({0})(\s*,[\s,]*({0}))*[\s,]*"
NUMBER = r"[0-9]{1,5}(\s*-\s*[0-9]{1,5})?"
# the name of a task of lm-eval, the number of examples in the prompt, the number of items; then block sizes
TASK = r"([\w.()-]+)(?::([0-9]{1,3}))?(?:@([1-9][0-9]{0,8}))?"
OWN_SIZES = rf"(?:/({NUMBER}(?:\+{NUMBER})*))?"


def split_list(text: str) -> list[str]:
    """The distinct parts of a list with commas, in order."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_numbers(text: str) -> list[int]:
    """The whole numbers of a list like "0-8, 12", rising; [] for a word like "all" or "none"."""
    numbers = set()
    for ends in re.findall(r"([0-9]+)(?:\s*-\s*([0-9]+))?", text):
        low, high = sorted((int(ends[0]), int(ends[1] or ends[0])))
        numbers |= set(range(low, high + 1))
    return sorted(numbers)


# what is expected, in words, of one part of a list
EXPECTED = {
    NUMBER: 'numbers like "0-8, 12"',
    TASK: 'tasks like "mmlu:5@20": 5 examples in the prompt, 20 items, of which there is at least 1',
    TASK
    + OWN_SIZES: 'tasks like "mmlu:5@20/0-8": 5 examples in the prompt, 20 items, of which there is at least 1, '
    "block sizes 0 to 8",
}


def one_of(names: Iterable[str], description: str | None = None) -> Any:
    """A field that takes one of these names."""
    names = list(names)
    pattern = f"^({'|'.join(map(re.escape, names))})$"
    return Field(pattern=pattern, description=description, title=f"one of {', '.join(names)}")


def list_of(item: str | Iterable[str], *words: str, description: str | None = None) -> Any:
    """A field that takes a list of what the pattern `item` matches, or of these names; or one of `words` instead."""
    if isinstance(item, str):
        expected = EXPECTED[item]
    else:
        names = list(item)
        item = "|".join(map(re.escape, names))
        expected = f"some of {', '.join(names)}"
    pattern = f"^({'|'.join([*words, LIST.format(item)])})$"
    return Field(pattern=pattern, description=description, title=", or ".join([expected, *words]))


Dtype = Annotated[
    str,
    one_of(["auto", *DTYPES], '"auto" (the checkpoint\'s own), "float32", "bfloat16" or "float16"'),
]
Quantization = Annotated[str | None, one_of(BITSANDBYTES, 'None, "nf4" or "int8" (bitsandbytes)')]
Corpus = Annotated[str, one_of(data.CORPORA)]
Preset = Annotated[
    str,
    one_of(
        PRESETS,
        'the paper\'s for one of its models ("Llama-2 7B", ...), "small", "distill", or "head-and-last-3"',
    ),
]
Rules = Annotated[
    str,
    list_of(RULES, description='who chooses the dropped block: "similarity", "simple", or both'),
]
AnyRules = Annotated[
    str, list_of(DROPPING, description=f"who chooses what is dropped: {', '.join(DROPPING)}")
]
Sizes = Annotated[
    str, list_of(NUMBER, "all", description='block sizes: "all" (0 to L-2), or like "0-8, 12"')
]
Tasks = Annotated[str, list_of(TASK, description='"mmlu:5@20": 5-shot, 20 items')]
TasksOfSizes = Annotated[
    str, list_of(TASK + OWN_SIZES, description='"mmlu:5@20/0-8": shots, items, sizes')
]
Decides = Annotated[
    str,
    one_of((HALF_GONE, ACCURACY), 'what has to be so precise: "half gone", or every "accuracy"'),
]
Layers = Annotated[str | None, list_of(NUMBER)]
# parameters that replace a setting of the preset, if they are given
SETTINGS = {"rank", "learning_rate", "steps", "adapters", "auxiliary", "objective", "temperature"}


def healing_setting(name: str, more: str = "") -> Any:
    """A field for one of SETTINGS. `HealingConfig` checks its value."""
    return Field(None, description=f"{FIELDS[name].description}{more}")


class BaseParameters(BaseModel):
    """The parameters of every notebook: which model, or all, and the folder of results. Raises InputError, in one line,
    for an unknown name, a value of the wrong type, or an impossible value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    notebook: ClassVar[str] = ""  # the notebook with these parameters
    shows_third_study: ClassVar[bool] = False  # which has a page of its own
    _is_measured: bool = False

    model: str = Field(
        PUBLISHED,
        description='"published": all results; "embedded", a hub id, a folder of save_pretrained, or a .gguf file',
    )
    results: str | None = Field(
        None, description="folder of results; None: results/ of the repository, else of this folder"
    )
    measure: bool = Field(True, description="False: measure nothing, show what results hold")

    def __init__(self, **values):
        fields = type(self).model_fields
        if unknown := [name for name in values if name not in fields]:
            raise InputError(
                f"unknown parameter {unknown[0]!r}: expected some of {', '.join(fields)}"
            )
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise checks.explain_validation_error(error, fields) from None
        self.check()

    @classmethod
    def from_names(cls: type[Kind], names: dict[str, object]) -> Kind:
        """The parameters from a notebook's global names. Other plain values are passed on, to be refused by name."""
        plain = (
            name
            for name, value in names.items()
            if isinstance(value, str | int | float) and name[0] != "_"
        )
        return cls(**{name: names[name] for name in [*cls.model_fields, *plain] if name in names})

    @field_validator("*", mode="before")
    @classmethod
    def _convert_text(cls, value: object, info) -> object:
        # papermill turns a list with one number in it into a number
        if (
            type(value) is int
            and abs(value) <= checks.SEED
            and cls.model_fields[info.field_name].annotation is str
        ):
            value = str(value)
        return checks.check_text(info.field_name, value) if isinstance(value, str) else value

    def check(self) -> None:
        """Raise InputError for a value that is wrong for every model."""
        checks.check_path("model", self.model)
        results.results_folder(self.results)

    def replace(self: Kind, **changes) -> Kind:
        """A copy of the parameters with some changes."""
        return type(self)(**(self.model_dump() | changes))

    @property
    def folder(self) -> Path:
        """The folder of results."""
        return results.results_folder(self.results)

    def scores(self) -> "pd.DataFrame":
        """Every score and loss, one row for each pruned model, rule and task: see `results.scores`.

        If `model` names one model, its missing results are measured before, and its rows come first. Then come all
        other models that are not published, by name, then those of `report.names.FIRST`.
        """
        from deeper_layers_companion.report.pairing import drop_third_study  # slow to import

        rows = self._read_frame(results.scores)
        return rows if self.shows_third_study else drop_third_study(rows)

    def distances(self) -> "pd.DataFrame":
        """Every angular distance, one row for each block, with models in the same order."""
        return self._read_frame(results.distances)

    def measure_missing(self) -> None:
        """Do nothing: the options of a notebook measure, see notebook_options.py."""

    def _read_frame(self, read: "Callable[[Path], pd.DataFrame]") -> "pd.DataFrame":
        from deeper_layers_companion.report.names import put_in_order  # slow to import

        self.measure_missing()
        return put_in_order(read(self.folder), (models.model_name(self.model),))


class Parameters(BaseParameters):
    """Further parameters of a notebook that measures: how the model is opened, and the text for the distances."""

    revision: str | None = Field(
        None, description="hub branch, tag or commit; for a .gguf file its expected SHA-256"
    )
    dtype: Dtype = "auto"
    device: str = Field(
        "auto",
        pattern="^(auto|cpu|(cuda|mps|xpu|hpu|npu)(:[0-9]{1,3})?)$",
        title="one of auto, cpu, cuda, cuda:1, mps",
        description='"auto", "cpu", "cuda" or "mps"',
    )
    quantization: Quantization = None
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    datasets: str | None = Field(
        None, description="folder of a local mirror of the hub; None: DATASETS_MIRROR, else the hub"
    )
    corpus: Corpus = Field(
        "wikipedia",
        description='text for the distances: "wikipedia" (embedded), "c4", "code" or "gsm8k_solutions"',
    )
    samples: int = Field(256, ge=2, le=data.DOCUMENTS, description="sequences for the distances")
    sequence_length: int = Field(
        512, ge=2, le=checks.TOKENS, description="each cut after so many tokens"
    )
    seed: int = Field(0, ge=0, le=checks.SEED, description="of the draw of sequences")

    def check(self) -> None:
        super().check()
        data.find_mirror(self.datasets)

    def distances(self) -> "pd.DataFrame":
        """Every angular distance; for the model of these parameters only those on the sequences of these parameters."""
        wanted = {"samples": self.samples, "length": self.sequence_length, "seed": self.seed}
        rows = super().distances()
        others = rows["model"] != models.model_name(self.model)
        return rows[others | (rows[[*wanted]] == [*wanted.values()]).all(axis=1)].reset_index(
            drop=True
        )


class TaskParameters(Parameters):
    """The parameters that sweeps, healings and scans share: which tasks, rules and block sizes."""

    tasks: TasksOfSizes = "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu"
    rules: Rules = "similarity, simple"
    sizes: Sizes = "all"
    limit: int | None = Field(
        120, ge=1, le=checks.MANY, description="items a task, from its beginning; None: all"
    )
    num_fewshot: int | None = Field(
        None,
        ge=0,
        le=checks.SHOTS,
        description="examples in the prompt; None: the task's own number",
    )
    memory: int = Field(
        2,
        ge=1,
        le=2**20,
        description="GiB to keep beside the model: with more of it answers are generated in larger batches",
    )

    def check(self) -> None:
        super().check()
        tasks = self.task_list if self.measure else []
        embedded = data.embedded_tasks()
        for task in tasks:
            if task in embedded and (shots := self.parsed_tasks[task]["shots"]):
                raise InputError(data.no_examples_message(task, shots))
        # lm-eval is slow to import: it checks only names that are neither embedded tasks nor in results
        if unknown := [
            task
            for task in tasks
            if task not in embedded and not results.is_measured(task, self.folder)
        ]:
            sweeping.check_names(unknown)

    @functools.cached_property
    def parsed_tasks(self) -> dict[str, dict]:
        """The options of each task: "mmlu:5@20/0-8+12" is 5 "shots", a "limit" of 20 items, "sizes" 0 to 8 and 12.

        Options that a task does not name are those for all tasks. Raises InputError for a task with two sets of them.
        """
        tasks: dict[str, dict] = {}
        for name, shots, limit, sizes, *_ in re.findall(TASK + OWN_SIZES, self.tasks):
            prompt = {
                "shots": int(shots) if shots else self.num_fewshot,
                "limit": int(limit) if limit else self.limit,
            }
            task_options = prompt | {"sizes": sizes or self.sizes}
            if tasks.setdefault(name, task_options) != task_options:
                raise InputError(
                    f"tasks has {name!r} twice, and asks other things of it: leave one of them out"
                )
        return tasks

    @property
    def task_list(self) -> list[str]:
        return list(self.parsed_tasks)

    @property
    def texts(self) -> dict[str, dict]:
        """The texts on which losses are measured, each with its settings."""
        return {}

    def find_until(self, task: str) -> Until | None:
        """When asking the items of a task stops; None: all are asked, or the first ones up to the limit."""
        return None

    @property
    def rule_list(self) -> list[str]:
        return list(REGISTERED) if self.rules == "all" else split_list(self.rules)

    def list_sizes(self, num_layers: int, task: str | None = None) -> list[int]:
        """Block sizes in order, for a task or for all. They include 0, as every curve starts at the whole model.
        Raises InputError for a size outside 0..L-1."""
        sizes = parse_numbers(self.parsed_tasks[task]["sizes"] if task else self.sizes) or range(
            num_layers - 1
        )
        checks.check_whole_number(
            "size",
            max(sizes),
            0,
            num_layers - 1,
            f"the last of {num_layers} layers is never dropped",
        )
        return sorted({0, *sizes})

    def find_given_cuts(self, num_layers: int) -> CutsByRule | None:
        """The cuts that the parameters give explicitly, for a model of so many layers; None if rules choose."""
        return None


class EarlyParameters(TaskParameters):
    """The parameters of a sweep that may stop before the last item."""

    precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop asking once half gone is known so well: 0.05 is a twentieth of the layers, either way",
    )
    decides: Decides = HALF_GONE
    within: str | None = Field(
        None,
        pattern=f"^{DURATION}$",
        title='a time like "90s", "2min" or "1h"',
        description='stop asking after this time, like "90s", "2min" or "1h", shared equally among the tasks',
    )

    def __init__(self, **values):
        if values.get("precision") is not None or values.get("within") is not None:
            values = {"limit": None} | values  # the limit is for those who ask all up to it
        super().__init__(**values)

    def find_until(self, task: str) -> Until | None:
        if self.precision is None and self.within is None or task in self.texts:
            return None
        seconds = None
        if self.within is not None:
            seconds = parse_seconds(self.within) / len(set(self.parsed_tasks) - set(self.texts))
        return Until(self.precision, self.decides, self.parsed_tasks[task]["limit"], seconds)


class HealingParameters(TaskParameters):
    """The parameters of `deeper-layers heal` and `deeper-layers report`."""

    tasks: Tasks = "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu"
    dtype: Dtype = "bfloat16"
    quantization: Quantization = "nf4"
    sizes: Sizes = "0, 1, 3, 6, 9, 12, 15"
    text: Corpus = Field(
        "c4",
        description='what heals, and on whose validation split losses are measured: "c4" or "wikipedia"',
    )
    preset: Preset = "small"
    rank: int | None = healing_setting("rank", "; None, here and in what follows: the preset's own")
    learning_rate: float | None = healing_setting("learning_rate")
    steps: int | None = healing_setting("steps")
    healing_seed: int | None = Field(
        None, ge=0, le=checks.SEED, description=FIELDS["seed"].description
    )
    adapters: str | None = healing_setting("adapters")
    auxiliary: float | None = healing_setting("auxiliary")
    objective: str | None = healing_setting("objective")
    temperature: float | None = healing_setting("temperature")
    loss_sequences: int = Field(128, ge=2, le=checks.MANY, description="for the loss on text")
    loss_length: int = Field(256, ge=2, le=checks.TOKENS, description="tokens in each")

    def __init__(self, **values):
        trained_whole = [name for name, preset in PRESETS.items() if preset.last_layers]
        if values.get("preset") in trained_whole:  # as they are, not quantized as usual
            values = {"quantization": None} | values
        super().__init__(**values)

    def check(self) -> None:
        super().check()
        self.make_config()

    def make_config(self, **others) -> HealingConfig:
        """The preset, changed by these parameters, then by `others`. Raises InputError for an impossible setting."""
        settings = self.model_dump(include=SETTINGS, exclude_none=True)
        preset = PRESETS[self.preset]
        seed = preset.seed if self.healing_seed is None else self.healing_seed
        settings = {"seed": seed, "quantization": self.quantization} | settings | others
        return dataclasses.replace(preset, **settings)

    @property
    def texts(self) -> dict[str, dict]:
        return {self.text: {"limit": self.loss_sequences, "length": self.loss_length}}


class SweepParameters(EarlyParameters):
    """The parameters of `deeper-layers sweep` and `plan`: any rule, and a cut of any shape."""

    rules: AnyRules = "similarity, simple"
    layers: Layers = Field(
        None, description='layers to drop, like "3, 7-9", instead of rules and sizes'
    )
    attention: Layers = Field(None, description="layers that lose their attention, in the same way")
    mlp: Layers = Field(None, description="layers that lose their MLP, in the same way")

    @functools.cached_property
    def given_cut(self) -> Cut | None:
        """The cut that was given layer by layer; None if rules choose."""
        lists = self.model_dump(include={"layers", "attention", "mlp"}, exclude_none=True)
        return (
            Cut.of(**{name: parse_numbers(text) for name, text in lists.items()}) if lists else None
        )

    def find_given_cuts(self, num_layers: int) -> CutsByRule | None:
        if (cut := self.given_cut) is None:
            return None
        cut.check(num_layers)
        return {GIVEN: [UNPRUNED, cut]}
