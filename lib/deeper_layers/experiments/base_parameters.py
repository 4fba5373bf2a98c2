"""What every notebook takes as parameters, how they are checked, and how lists in a text are read.

Lists are separated by commas, and read once, when the parameters are made.
"""

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from deeper_layers import checks, models, results
from deeper_layers.errors import InputError

if TYPE_CHECKING:  # slow
    import pandas as pd

PUBLISHED = "published"  # in place of a model: all that results hold, nothing measured
Kind = TypeVar("Kind", bound="Shown")

RANGE = re.compile(r"([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?")
# a name of lm-eval's; the last is that of a file too
TASK = re.compile(r"([\w.()-]+)(?::(?P<shots>[0-9]{1,4}))?(?:@(?P<limit>[0-9]{1,10}))?(?:/(?P<sizes>[0-9+-]+))?")


class Numbers(tuple[int, ...]):
    """Whole numbers as they were written, each once; empty where a word like "all" or "none" stands for them."""

    text: str


class Names(tuple[str, ...]):
    """Names as they were written, each once."""

    text: str


class Asked(NamedTuple):
    """What is asked of a task."""

    shots: int | None  # examples in the prompt; None: the task's own number
    limit: int | None  # items, from the beginning; None: all
    sizes: tuple[int, ...]  # block sizes; empty: all

    @property
    def key(self) -> dict:
        """What of it determines scores, as a key has it."""
        return {"shots": self.shots, "limit": self.limit}


class Tasks(tuple[tuple[str, dict], ...]):
    """Names of tasks, and fields of `Asked` that stand after each."""

    text: str


def split(text: str) -> list[str]:
    """The parts of a list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raise InputError for a value that is none of the known ones."""
    if value not in (known := list(known)):
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}")


def read_numbers(name: str, text: str, least: int = 0, most: int = checks.LAYERS, word: str | None = None) -> list[int]:
    """The whole numbers of a list like "0-8, 12"; none of a word that stands for them.

    Raises InputError for what is no such list, or not from `least` to `most`.
    """
    found: dict[int, None] = {}
    for part in [] if text == word else split(text) or [text]:
        written = RANGE.fullmatch(part)
        low, high = (int(written[1]), int(written[2] or written[1])) if written else (1, 0)
        if not least <= low <= high <= most or high - low > checks.LAYERS:
            like = "'0-8, 12'" + (f" or {word!r}" if word else "")
            raise InputError(
                f"{name} is {checks.shown(text)}, expected whole numbers from {least} to {most}: write like {like}"
            )
        found |= dict.fromkeys(range(low, high + 1))
    return list(found)


def read_tasks(name: str, text: str) -> list[tuple[str, dict]]:
    """Tasks and what is asked of each: "mmlu:5@20/0-8+12" is 5 examples, 20 items, sizes 0 to 8 and 12.

    Raises InputError for what stands after a name and is no such thing.
    """
    asked = []
    for part in _some(name, text):
        found = TASK.fullmatch(part)
        own: dict = {field: int(found[field]) for field in ("shots", "limit") if found[field]} if found else {}
        if not found or own.get("shots", 0) > checks.SHOTS or not 1 <= own.get("limit", 1) <= checks.MANY:
            raise InputError(
                f"{name} has {part!r}, expected a task or, for 5 examples in its prompt (at most {checks.SHOTS}), 20 "
                "items (from 1) and block sizes of its own, like 'mmlu:5@20/0-8+12'"
            )
        if found["sizes"]:
            own["sizes"] = tuple(read_numbers("sizes", found["sizes"].replace("+", ", ")))
        asked.append((found[1], own))
    return asked


def _some(name: str, text: str) -> list[str]:
    if not (found := split(text)):
        raise InputError(f"{name} is {text!r}, expected names separated by commas: give some")
    return list(dict.fromkeys(found))


def reading(kind: type, read: Callable[[str, str], Iterable]) -> PlainValidator:
    """What makes a list of its text. papermill makes a number of what was meant as a list with one number in it."""

    def made(value: object, info):
        text = str(value) if type(value) is int and abs(value) <= checks.SEED else value
        if not isinstance(text, str):
            raise InputError(f"{info.field_name} is {checks.shown(value)}, expected a text")
        found = kind(read(info.field_name, text))
        found.text = text
        return found

    return PlainValidator(made)


def numbers_from(least: int, most: int, word: str | None = None) -> PlainValidator:
    """Marks Numbers in a range; a word may stand for them."""
    return reading(Numbers, functools.partial(read_numbers, least=least, most=most, word=word))


def names_of(known: Iterable[str], word: str | None = None, meant: Iterable[str] = ()) -> PlainValidator:
    """Marks Names that are some of the known ones; a word may stand for those that are meant."""

    def read(name: str, text: str) -> Iterable[str]:
        if text == word:
            return meant
        for one in (found := _some(name, text)):
            if one not in known:
                raise InputError(f"{name} has {one!r}, expected some of {', '.join(map(repr, known))}")
        return found

    return reading(Names, read)


def one_of(*known: str | None) -> AfterValidator:
    """Marks a value that is one of the known ones."""

    def checked(value: object, info):
        check_one_of(info.field_name, value, known)
        return value

    return AfterValidator(checked)


TaskNames = Annotated[Tasks, reading(Tasks, read_tasks)]
Sizes = Annotated[Numbers, numbers_from(0, checks.LAYERS, "all")]


def listed(default: str, description: str) -> Any:
    """A parameter that is a list, read from a text."""
    return Field(default, validate_default=True, description=description)


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
        None, description="folder of results; None: results/ of the repository, else of this folder"
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
        said = first["msg"].replace("Input should be", "expected")
        return f"{first['loc'][0]} is {checks.shown(first['input'])}, {said}: correct the parameter"

    def __iter__(self):
        """Names and values as they can be given again: of a list its text."""
        for name, value in super().__iter__():
            if name in type(self).model_fields:  # what is cached lies beside them
                yield name, getattr(value, "text", value)

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
        """Where results lie."""
        return results.results_folder(self.results)

    @property
    def folder(self) -> Path | None:
        """Where results are read: None is the default folder and what is published."""
        return self.results_folder if self.results else None

    def scores(self) -> "pd.DataFrame":
        """Every score and loss, a row for each pruned model, rule and task: the columns are `results.COLUMNS`.

        What results lack of the one model that is asked for is measured before, and it comes first; then those of
        `report.names.FIRST`, then all others by name.
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
        from deeper_layers.report.names import FIRST, put_in_order  # slow

        return put_in_order(rows, (models.model_name(self.model), *FIRST))


def _is_parameter(name: str, value: object) -> bool:
    """Whether a notebook's global name was meant as a parameter: not an import, not one of IPython's own."""
    if name.startswith("_") or name in {"In", "Out"}:
        return False
    return value is None or isinstance(value, str | int | float | bool | list | tuple | dict)
