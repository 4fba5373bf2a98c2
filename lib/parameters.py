"""The parameters of the notebooks, checked before anything is loaded.

papermill only warns of a parameter that a notebook does not have. So each notebook hands its names to one
of these classes right after its parameters; the fields are the parameters, with their types and defaults.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from lib import corpora, evaluation, llama_cpp, models
from lib.errors import InputError
from lib.lists import Asked, block_sizes, split, tasks_asked, whole_numbers
from lib.presets import PRESETS, HealingConfig
from lib.results import ROOT
from lib.selection import RULES

LISTS = {"sizes", "ranks", "seeds", "again", "numbers", "orders"}
BITSANDBYTES = ("nf4", "int8")
# parameters that, where given, replace a setting of the preset
SETTINGS = {"rank": "rank", "learning_rate": "learning_rate", "steps": "steps", "healing_seed": "seed",
            "adapters": "adapters", "auxiliary": "auxiliary"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What every notebook takes: which model, opened how, and where results lie."""

    model: str = "embedded"  # "embedded", a hub id, a folder saved by save_pretrained, or a .gguf file
    revision: str | None = None  # hub branch, tag or commit; for a .gguf file its expected SHA-256
    dtype: str = "auto"  # "auto" (the checkpoint's own), "float32", "bfloat16", "float16"
    device: str = "auto"  # "auto", "cpu", "cuda", "mps"
    quantization: str | None = None  # None, "nf4" or "int8" (bitsandbytes)
    trust_remote_code: bool = False  # run code that comes with the checkpoint
    datasets: str | None = None  # folder of a local mirror of the hub; None: DATASETS_MIRROR, else the hub
    results: str = "results"  # folder of measured units, from the root of the repository
    corpus: str = "wikipedia"  # text for the distances: "wikipedia" (embedded) or "c4"
    samples: int = 256  # sequences for the distances
    sequence_length: int = 512  # each cut after so many tokens
    seed: int = 0  # of the draw of sequences
    measure: bool = True  # False: measure nothing, show what results hold

    @classmethod
    def from_names(cls, names: dict[str, object]):
        """The parameters among a notebook's global names.

        Raises InputError for a name that is no parameter, a value of the wrong type, an impossible value.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        given = {k: v for k, v in names.items() if _is_parameter(k, v)}
        # papermill makes a number of what was meant as a list with one number in it
        given |= {k: str(v) for k, v in given.items() if k in LISTS and type(v) is int}
        if unknown := sorted(set(given) - set(fields)):
            raise InputError(
                f"unknown parameter {', '.join(map(repr, unknown))}: this notebook takes {', '.join(fields)} "
                "(papermill --help-notebook describes them)"
            )
        hints = typing.get_type_hints(cls)
        for name, value in given.items():
            allowed = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
            if type(value) not in allowed:
                expected = " or ".join("None" if a is type(None) else a.__name__ for a in allowed)
                raise InputError(f"{name} is {value!r}, expected {expected}: correct the parameter")
        parameters = cls(**given)
        parameters.check()
        return parameters

    def check(self) -> None:
        """Raise InputError for a value that no model could make right."""
        for name in ("samples", "sequence_length"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} is {getattr(self, name)}, expected a whole number from 2")
        if self.corpus not in corpora.CORPORA:
            raise InputError(f"corpus is {self.corpus!r}, expected one of {', '.join(map(repr, corpora.CORPORA))}")
        if self.quantization not in (None, "nf4", "int8"):
            raise InputError(f"quantization is {self.quantization!r}, expected None, 'nf4' or 'int8'")
        corpora.mirror(self.datasets)

    def source(self) -> models.Source:
        """The model, identified but not opened; where nothing is to be measured, as results know it."""
        if not self.measure and (known := models.recorded_model(self.model, self.dtype, self.results_folder)):
            return known
        return models.find_model(
            self.model, revision=self.revision, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )

    def open(self, source: models.Source):
        """The model and its tokenizer."""
        return models.load_model(
            source, device=self.device, quantization=self.quantization, trust_remote_code=self.trust_remote_code
        )

    def shared_with(self, kind: type["Parameters"], **others):
        """The parameters of another notebook: as here what both have, but for `others`."""
        names = {field.name for field in dataclasses.fields(self)} & {field.name for field in dataclasses.fields(kind)}
        return kind(**({name: getattr(self, name) for name in names} | others))

    @property
    def results_folder(self) -> Path:
        return ROOT / self.results

    def number_list(self, name: str) -> list[int]:
        """The whole numbers of a parameter like `seeds`. Raises InputError for what is none."""
        return whole_numbers(name, getattr(self, name))

    @property
    def key(self) -> dict:
        """What of the way a model is opened determines a measurement."""
        return {"quantization": self.quantization}


@dataclass(frozen=True, kw_only=True)
class SimilarityParameters(Parameters):
    """Parameters of notebooks/01-similarity.ipynb."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringParameters(Parameters):
    """Parameters of notebooks/02-question-answering.ipynb."""

    tasks: str = "capitals, sums, embedded_piqa, embedded_boolq, embedded_mmlu"  # "mmlu:5@20": 5-shot, 20 items
    rules: str = "similarity, simple"  # how the dropped block is chosen
    sizes: str = "all"  # block sizes: "all" (0 to L-2), or like "0-8, 12"
    limit: int | None = 120  # items a task, from its beginning; None: all
    num_fewshot: int | None = None  # examples in the prompt; None: the task's own number
    memory: int = 1  # GiB to keep beside the model: with more of it answers are generated in larger batches

    def check(self) -> None:
        super().check()
        evaluation.check_limit(self.limit)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise InputError(f"num_fewshot is {self.num_fewshot}, expected None or a whole number from 0")
        if self.memory < 1:
            raise InputError(f"memory is {self.memory}, expected a whole number of GiB from 1")
        for rule in self.rule_list:
            if rule not in RULES:
                raise InputError(f"rule is {rule!r}, expected one of {', '.join(map(repr, RULES))}")
        if not self.task_list:
            raise InputError("tasks is empty, expected names of lm-eval tasks separated by commas")
        evaluation.check_names(self.task_list)
        for sizes in {self.sizes, *(asked.sizes for asked in self.asked.values())}:
            block_sizes(sizes, None)

    @property
    def memory_bytes(self) -> int:
        """What a sweep may keep beside the model."""
        return self.memory * 2**30

    def sweep_options(self, task: str) -> dict:
        """What `lib.sweep.sweep` is told besides the model, the task and the cuts."""
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
        asked = tasks_asked(self.tasks, Asked(self.num_fewshot, self.limit, self.sizes))
        for of_task in asked.values():
            evaluation.check_limit(of_task.limit)
        return asked

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
        return split(self.rules)

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


@dataclass(frozen=True, kw_only=True)
class ReasoningParameters(QuestionAnsweringParameters):
    """Parameters of notebooks/04-reasoning.ipynb."""

    tasks: str = "capitals, sums, sums_generated"  # "mmlu:5@20/0-8": 5-shot, 20 items, sizes 0 to 8


@dataclass(frozen=True, kw_only=True)
class HealingParameters(QuestionAnsweringParameters):
    """Parameters of notebooks/03-healing.ipynb."""

    dtype: str = "bfloat16"
    quantization: str | None = "nf4"
    sizes: str = "0, 1, 3, 6, 9, 12, 15"
    text: str = "c4"  # what heals, and on whose validation split losses are measured: "c4" or "wikipedia"
    preset: str = "small"  # of lib.presets.PRESETS: the paper's settings of one of its models, or "small"
    rank: int | None = None  # of the adapters; None, here and in what follows: the preset's own
    learning_rate: float | None = None  # the highest, after the warm-up
    steps: int | None = None  # updates of the adapters
    healing_seed: int | None = None  # of adapters, order of the text, and dropout
    adapters: str | None = None  # "all" layers (the paper), or those "above" the cut
    auxiliary: float | None = None  # weight of the auxiliary loss at the cut
    loss_sequences: int = 128  # for the loss on text
    loss_length: int = 256  # tokens in each

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()
        if self.text not in corpora.CORPORA:
            raise InputError(f"text is {self.text!r}, expected one of {', '.join(map(repr, corpora.CORPORA))}")
        if self.preset not in PRESETS:
            raise InputError(f"preset is {self.preset!r}, expected one of {', '.join(map(repr, PRESETS))}")
        if self.loss_sequences < 1 or self.loss_length < 2:
            raise InputError(
                f"loss_sequences is {self.loss_sequences} and loss_length {self.loss_length}, expected at least 1 and 2"
            )
        self.config()

    def config(self, **others) -> HealingConfig:
        """The preset, with what these parameters, and then `others`, set otherwise.

        Raises InputError for an impossible setting.
        """
        named = {setting: getattr(self, name) for name, setting in SETTINGS.items()}
        given = {setting: value for setting, value in named.items() if value is not None} | others
        preset = PRESETS[self.preset]
        if "steps" in given:  # the same share of warm-up
            given.setdefault("warmup_steps", round(preset.warmup_steps * given["steps"] / preset.steps))
        return dataclasses.replace(preset, quantization=self.quantization, **given)

    @property
    def loss_key(self) -> dict:
        """What determines a loss on text, besides the model."""
        return {"text": self.text, "sequences": self.loss_sequences, "sequence_length": self.loss_length}


@dataclass(frozen=True, kw_only=True)
class AblationParameters(HealingParameters):
    """Parameters of notebooks/05-ablations.ipynb."""

    rules: str = "similarity"
    sizes: str = "3, 9, 15"
    ranks: str = "2, 8, 64"  # ranks of the adapters to compare
    seeds: str = "0, 1, 2"  # seeds of healing to compare
    auxiliary_weight: float = 1.0  # of the auxiliary loss, where healing with it is compared

    def check(self) -> None:
        super().check()
        for name in ("ranks", "seeds"):
            self.number_list(name)


@dataclass(frozen=True, kw_only=True)
class ShotParameters(QuestionAnsweringParameters):
    """Parameters of notebooks/11-shots.ipynb."""

    tasks: str = "mmlu"  # "mmlu@20": 20 items of it
    rules: str = "similarity"
    sizes: str = "0-6"
    limit: int | None = 10  # items a task, from its beginning; None: all
    num_fewshot: int | None = 5  # examples in the prompt beside which others are compared
    numbers: str = "0, 1, 3"  # other numbers of examples to compare
    orders: str = "1, 2"  # seeds of shuffles of the num_fewshot examples to compare

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()
        if len(self.rule_list) != 1:
            raise InputError(f"rules is {self.rules!r}, expected one of {', '.join(map(repr, RULES))}")
        if self.num_fewshot is None or set(self.shots.values()) != {self.num_fewshot}:
            raise InputError(
                f"num_fewshot is {self.num_fewshot} and tasks {self.tasks!r}, expected one number of examples, "
                "which other numbers and orders are compared with: give it in num_fewshot alone"
            )
        for name in ("numbers", "orders"):
            self.number_list(name)
        if 0 in self.number_list("orders"):
            raise InputError(f"orders is {self.orders!r}, expected seeds from 1: the task's own order is there anyway")


@dataclass(frozen=True, kw_only=True)
class TakeAwayParameters(QuestionAnsweringParameters):
    """Parameters of notebooks/08-take-away.ipynb."""

    tasks: str = "capitals, sums_one_digit, sums_two_digits"  # "mmlu:5@20": 5-shot, 20 items
    rules: str = "similarity"  # how the dropped block is chosen
    sizes: str = "0, 1, 2, 4, 6, 8"  # block sizes, in every kind of weights
    bits: str = "auto"  # kinds of weights, like "bfloat16, int8, nf4, Q8_0, Q2_K"; the last two for a GGUF file
    drop: int = 8  # layers that the file to take away lacks
    gguf_type: str = "Q4_1"  # to which llama.cpp's quantizer rounds it in the end
    text: str = "wikipedia"  # what heals it: "wikipedia" (embedded) or "c4"
    preset: str = "small"  # how: the paper's settings of one of its models ("Llama-2 7B", ...), or "small"
    steps: int | None = None  # updates of the adapters; None: the preset's own

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()
        known = (*models.DTYPES, *BITSANDBYTES, *llama_cpp.FILE_TYPES)
        if wrong := [bits for bits in split(self.bits) if bits not in known and self.bits != "auto"]:
            raise InputError(f"bits has {wrong[0]!r}, expected 'auto' or some of {', '.join(known)}")
        if self.drop < 1:
            raise InputError(f"drop is {self.drop}, expected a number of layers from 1")
        if self.gguf_type not in llama_cpp.FILE_TYPES:
            raise InputError(f"gguf_type is {self.gguf_type!r}, expected one of {', '.join(llama_cpp.FILE_TYPES)}")
        self.healing().check()

    def bits_list(self, source: models.Source) -> list[str]:
        """Kinds of weights to compare. Raises InputError for llama.cpp's where the model is no GGUF file."""
        own = [source.quantized] if source.is_gguf else []
        if self.bits == "auto":
            return ["bfloat16", "int8", "nf4", *dict.fromkeys(["Q8_0", *own, "Q2_K"] if own else [])]
        asked = split(self.bits)
        wrong = [bits for bits in asked if bits in llama_cpp.FILE_TYPES]
        if wrong and self.measure and not source.is_gguf:
            raise InputError(f"bits has {wrong[0]!r}, and {source.name} is no GGUF file: leave it out")
        return asked

    def healing(self) -> HealingParameters:
        """How the file heals: on weights as they are in it, in bfloat16."""
        return self.shared_with(HealingParameters, dtype="bfloat16", quantization=None)


@dataclass(frozen=True, kw_only=True)
class ReproductionParameters(QuestionAnsweringParameters):
    """Parameters of notebooks/10-reproduction.ipynb."""

    tasks: str = "capitals, sums_one_digit"  # "mmlu:5@20": 5-shot, 20 items
    rules: str = "similarity, simple"  # under which the published numbers were measured
    again: str = "1, 2, 4, 8"  # block sizes to measure again, similarity-informed, besides the whole model
    sequences_again: int = 16  # sequences for the distances

    def check(self) -> None:
        super().check()
        self.check_one_list_of_sizes()
        if self.sequences_again < 2:
            raise InputError(f"sequences_again is {self.sequences_again}, expected a whole number from 2")
        self.afresh("again").check()

    def afresh(self, folder: str) -> QuestionAnsweringParameters:
        """What is measured again, with its results in a folder of its own."""
        return self.shared_with(
            QuestionAnsweringParameters, results=folder, sizes=f"0, {self.again}", rules="similarity",
            samples=self.sequences_again, measure=True,
        )  # fmt: skip


def _is_parameter(name: str, value: object) -> bool:
    """Whether a notebook's global name was meant as a parameter: not an import, not one of IPython's own."""
    if name.startswith("_") or name in {"In", "Out"}:
        return False
    return value is None or isinstance(value, str | int | float | bool | list | tuple | dict)
