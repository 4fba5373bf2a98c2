"""What a notebook was asked for, written down beside what it measured: the book makes its pages from these records.

A record is one small file, `RESULTS/MODEL/records/NOTEBOOK-HASH.json`, of a notebook and the parameters that decide
what it shows. Asked for the same again it stays as it is, so the hash of the parameters names it. No torch here.
"""

import datetime
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from deeper_layers.files import clear_all, read_json, write_file
from deeper_layers.results.places import results_folder
from deeper_layers.results.schema import Checked, Time, in_words
from deeper_layers.results.units import key_hash, unit_path

# where and how a notebook ran, which decides nothing that it shows
NOT_SHOWN = frozenset({"device", "results", "datasets", "memory", "trust_remote_code", "measure"})


PlainName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=120)]  # of a notebook or a page: no path
Literal = None | bool | int | Annotated[float, Field(allow_inf_nan=False)] | str


class Content(Checked):
    """What the file of a record holds."""

    notebook: PlainName
    model: Annotated[str, Field(min_length=1)]
    parameters: dict[str, Literal | list[Literal]]
    recorded: Time
    page: PlainName | None = None
    title: str | None = None


@dataclass(frozen=True)
class Record:
    """One run of a notebook on a model, as a page can show it again."""

    notebook: str  # file name without its ending, like "02-question-answering"
    model: str  # as the units of this folder name it
    parameters: dict  # those that are not the notebook's defaults; the model's name among them
    recorded: str  # ISO time of the first such run
    page: str | None = None  # its page in the story, where it has one there
    title: str | None = None  # of that page, where it is not the notebook's own
    path: Path | None = field(default=None, compare=False)


def write_record(
    notebook: str,
    model: str,
    parameters: Mapping[str, object],
    folder: Path | None = None,
    *,
    page: str | None = None,
    title: str | None = None,
) -> Path:
    """Write down that a notebook ran with `parameters`, those that differ from its defaults; return the file.

    `model` is its name in the keys of units. It stands for the path or the hub id that was given as a parameter, so
    that the page is drawn wherever the results are. A record that is there already is left alone.
    """
    shown = {name: value for name, value in parameters.items() if name not in NOT_SHOWN}
    if "model" in shown:
        shown["model"] = model
    path = record_path(notebook, model, shown, folder)
    clear_all(path.parent)
    if _read(path) is None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {"notebook": notebook, "model": model, "parameters": shown, "recorded": now}
        content |= {name: value for name, value in (("page", page), ("title", title)) if value is not None}
        Content.model_validate(content)
        write_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path


def record_path(notebook: str, model: str, parameters: Mapping[str, object], folder: Path | None = None) -> Path:
    """The file of a record: in the folder of its model, named after the notebook and the hash of the parameters."""
    of_model = unit_path("", "", {"model": {"name": model}}, folder).parent
    return of_model / "records" / _file_name(notebook, parameters)


def _file_name(notebook: str, parameters: Mapping[str, object]) -> str:
    return f"{notebook}-{key_hash(dict(parameters))}.json"


def all_records(folder: Path | None = None) -> list[Record]:
    """Every readable record below a folder of results: by model, then in the order in which they were written."""
    found = (_read(path) for path in sorted(results_folder(folder).glob("*/records/*.json")))
    return sorted(filter(None, found), key=lambda record: (record.model, record.recorded, str(record.path)))


def _read(path: Path) -> Record | None:
    """A record from its file; None where there is none, or, with a warning that names the file, none to be read."""
    try:
        content = read_json(path)
        Content.model_validate(content)
        record = Record(**content, path=path)
        if path.name != _file_name(record.notebook, record.parameters):
            raise ValueError("its name is not that of its notebook and parameters")
        if path != record_path(record.notebook, record.model, record.parameters, path.parents[2]):
            raise ValueError("its folder is not that of its model")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        said = in_words(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        warnings.warn(f"{path} is not a readable record ({said}): it has no page", stacklevel=2)
        return None
    return record
