"""What every notebook takes as parameters, and how parameters are checked.

The fields are the parameters, with their types, defaults and what they mean.
"""

import dataclasses
import importlib
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from deeper_layers import checks, data, models, results
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameter_texts import whole_numbers
from deeper_layers.models.sources import DTYPES, Source

if TYPE_CHECKING:  # slow
    import pandas as pd

BITSANDBYTES = ("nf4", "int8")
MEASURES = "deeper_layers.experiments.asked"  # by name, and only where something is measured: it imports these classes
PUBLISHED = "published"  # in place of a model: all that results hold, nothing measured
FIRST = ("Qwen2.5-Coder-1.5B-Instruct", "Gemma-3-270m", "SmolLM2-135M-Instruct")  # on every page, in this order
# how pydantic names the ends of a range, and what it says of a number outside
LIMITS = (("ge", "gt"), ("le", "lt"))
RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
NUMBERS = {"int": "a whole number", "float": "a number"}

Kind = TypeVar("Kind", bound="Shown")
DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu|hpu|npu)(:[0-9]{1,3})?")
# papermill makes a number of what was meant as a list with one number in it
ListText = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int and abs(value) <= checks.SEED else value)
]


def numbers_from(least: int, most: int) -> AfterValidator:
    """What a ListText of whole numbers in a range is marked with."""

    def checked(text: str, info) -> str:
        whole_numbers(str(info.field_name), text, least, most)
        return text

    return AfterValidator(checked)


def check_one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raise InputError for a value that is none of the known ones."""
    if value not in (known := list(known)):
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}")


class Shown(BaseModel):
    """What every notebook shows: which model, or all, and where results lie.

    Raises InputError for an unknown name, a value of the wrong type, an impossible value: one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    notebook: ClassVar[str] = ""  # whose parameters these are
    _is_measured: bool = PrivateAttr(False)

    model: str = Field(
        PUBLISHED,
        description='"published": all results; "embedded", a hub id, a folder of save_pretrained, or a .gguf file',
    )
    results: str | None = Field(
        None, description="folder of measured units; None: results/ of the repository, else of this folder"
    )
    measure: bool = Field(True, description="False: measure nothing, show what results hold")

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise InputError(self._in_words(error)) from None

    @classmethod
    def from_names(cls: type[Kind], names: dict[str, object]) -> Kind:
        """The parameters among a notebook's global names."""
        return cls(**{name: value for name, value in names.items() if _is_parameter(name, value)})

    @field_validator("*", mode="before")
    @classmethod
    def _usable_text(cls, value: object, info) -> object:
        return checks.text(str(info.field_name), value) if isinstance(value, str) else value

    @classmethod
    def _in_words(cls, error: ValidationError) -> str:
        """The first mistake in one line, unknown names before all others."""
        found = error.errors(include_url=False)
        if unknown := sorted(str(one["loc"][0]) for one in found if one["type"] == "extra_forbidden"):
            return (
                f"unknown parameter {', '.join(map(repr, unknown))}: expected some of {', '.join(cls.model_fields)} "
                "(papermill --help-notebook describes them)"
            )
        first = found[0]
        if "error" in (raised := first.get("ctx", {})):  # by a check of ours
            if not isinstance(raised["error"], InputError):
                raise raised["error"]  # a fault of the check
            return str(raised["error"])
        name = str(first["loc"][0])
        field = cls.model_fields[name]
        kinds = typing.get_args(field.annotation) or (field.annotation,)
        expected = ["None" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds]
        if first["type"] in RANGES:
            ends = [
                getattr(limit, end)
                for ends in LIMITS
                for limit in field.metadata
                for end in ends
                if hasattr(limit, end)
            ]
            if len(ends) < 2:  # they are of another class: as pydantic says it
                return f"{name} is {checks.shown(first['input'])}, {first['msg'].lower()}: correct the parameter"
            low, high = ends
            expected = [*expected[1:], f"{NUMBERS[expected[0]]} from {low} to {high}"]
        return f"{name} is {checks.shown(first['input'])}, expected {' or '.join(expected)}: correct the parameter"

    @model_validator(mode="after")
    def _checked(self):
        self.check()
        return self

    def check(self) -> None:
        """Raise InputError for a value that no model could make right."""
        checks.place("model", self.model)
        if self.results is not None:
            checks.new_folder("results", self.results)

    def but(self: Kind, **others) -> Kind:
        """The same parameters, with some set otherwise."""
        return type(self)(**(dict(self) | others))

    def shared_with(self, kind: type[Kind], **others) -> Kind:
        """The parameters of another notebook: as here what both have, but for `others`."""
        both = {name: value for name, value in self if name in kind.model_fields}
        return kind(**(both | others))

    @property
    def results_folder(self) -> Path:
        """Where units lie."""
        return results.results_folder(self.results)

    @property
    def folder(self) -> Path | None:
        """Where results are read: None is the default folder and what is published."""
        return self.results_folder if self.results else None

    def scores(self) -> "pd.DataFrame":
        """Every score and loss, a row for each pruned model, rule and task: the columns are `results.COLUMNS`.

        What results lack of the one model that is asked for is measured before, and it comes first; then those of
        FIRST, then all others by name.
        """
        self.measured()
        return self._in_order(results.scores(self.folder))

    def distances(self) -> "pd.DataFrame":
        """Every angular distance, a row for each block, in the same way."""
        self.measured()
        return self._in_order(results.distances(self.folder))

    def measured(self) -> None:
        """Nothing is: there is nothing to measure here."""

    def _in_order(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        first = (models.model_name(self.model), *FIRST)
        names = sorted(rows["model"].unique(), key=lambda name: (_place(name, first), name))
        places = {name: place for place, name in enumerate(names)}
        return rows.sort_values("model", key=lambda names: names.map(places), kind="stable").reset_index(drop=True)


class Parameters(Shown):
    """What a notebook that can measure takes besides: how the model is opened, on which text layers are compared."""

    revision: str | None = Field(None, description="hub branch, tag or commit; for a .gguf file its expected SHA-256")
    dtype: str = Field("auto", description='"auto" (the checkpoint\'s own), "float32", "bfloat16" or "float16"')
    device: str = Field("auto", description='"auto", "cpu", "cuda" or "mps"')
    quantization: str | None = Field(None, description='None, "nf4" or "int8" (bitsandbytes)')
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")
    datasets: str | None = Field(
        None, description="folder of a local mirror of the hub; None: DATASETS_MIRROR, else the hub"
    )
    corpus: str = Field("wikipedia", description='text for the distances: "wikipedia" (embedded) or "c4"')
    samples: int = Field(256, ge=2, le=data.DOCUMENTS, description="sequences for the distances")
    sequence_length: int = Field(512, ge=2, le=checks.TOKENS, description="each cut after so many tokens")
    seed: int = Field(0, ge=0, le=checks.SEED, description="of the draw of sequences")

    def check(self) -> None:
        super().check()
        check_one_of("corpus", self.corpus, data.CORPORA)
        check_one_of("dtype", self.dtype, ("auto", *DTYPES))
        if not DEVICE.fullmatch(self.device):
            raise InputError(
                f"device is {self.device!r}, expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps': choose one"
            )
        if self.quantization not in (None, *BITSANDBYTES):
            raise InputError(f"quantization is {self.quantization!r}, expected None, 'nf4' or 'int8'")
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

    def number_list(self, name: str, least: int = 0, most: int = checks.MANY) -> list[int]:
        """The whole numbers of a parameter like `seeds`; none where it says "none"."""
        text = getattr(self, name)
        return [] if text == "none" else whole_numbers(name, text, least, most)

    @property
    def key(self) -> dict:
        """What of the way a model is opened determines a measurement."""
        return {"quantization": self.quantization}

    @property
    def drawn(self) -> dict:
        """What determines the sequences of the distances, besides the tokenizer."""
        return {name: getattr(self, name) for name in ("corpus", "samples", "sequence_length", "seed")}


def _place(name: str, first: tuple[str, ...]) -> int:
    """Where a name stands among these; after all of them where it does not."""
    return first.index(name) if name in first else len(first)


def _is_parameter(name: str, value: object) -> bool:
    """Whether a notebook's global name was meant as a parameter: not an import, not one of IPython's own."""
    if name.startswith("_") or name in {"In", "Out"}:
        return False
    return value is None or isinstance(value, str | int | float | bool | list | tuple | dict)
