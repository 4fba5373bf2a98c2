"""Units of measurement on disk: the only source of every figure.

A unit is one JSON file, `RESULTS/MODEL/KIND-NAME-KEYHASH.json`. Its key is everything that determines
the numbers; its provenance is everything that happened to be true while they were measured. A file with
that name is complete: it is written under a temporary name and renamed. A SHA-256 in it is that of all else
that is in it, and what it holds is what its kind asks for (schema.py), or it is no unit. Work in progress
lies in a folder beside it, in shards that are each complete in the same sense, so an interrupted measurement
goes on where it stopped and several machines can share one folder.
"""

import contextlib
import functools
import glob
import hashlib
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.files import read_json, read_plain, write_file
from deeper_layers.results.places import PUBLISHED, readable_folders, results_folder

if TYPE_CHECKING:  # slow: imported where there is a unit to read
    import pandas as pd

SETTLED = 2_000_000_000  # nanoseconds: a file written since may change again, and its times not tell
NUMBERS = ("value", "stderr", "distance")  # columns of rows in which null is what was not measured
OF_TASKS = ("sweep", "scan", "cuts", "shots", "loss", "similarity", "distances", "geometry", "blocks")
LONGEST = 120  # bytes of a name in the name of a file or folder, which may have 255


@dataclass(frozen=True)
class Unit:
    """One finished measurement.

    `rows` is a table (one measured value a row), `details` whatever else the measurement kept: the
    outcomes item by item, chance levels, fingerprints.
    """

    kind: str
    name: str
    key: dict
    provenance: dict
    rows: "pd.DataFrame"
    details: dict = field(default_factory=dict)
    path: Path | None = None

    def settings(self, *without: str) -> dict:
        """Its key without some entries: that of units alike in all else is the same."""
        return {name: value for name, value in self.key.items() if name not in without}


def key_hash(key: dict) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the key in canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def content_hash(content: dict) -> str:
    """SHA-256, in hexadecimal, of what a unit holds, as canonical JSON without the entry "sha256"."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unit_path(kind: str, name: str, key: dict, folder: Path | None = None) -> Path:
    """The file of a unit. `key["model"]["name"]` names the folder of its model."""
    return results_folder(folder) / slug(key["model"]["name"]) / _file_name(kind, name, key)


def _file_name(kind: str, name: str, key: dict) -> str:
    return f"{slug(kind)}-{slug(name)}-{key_hash(key)}.json"


def slug(name: str) -> str:
    """The name of a file or folder for a model or a task, whatever is in its name: never one above, or hidden."""
    plain = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
    if plain.startswith(".") or not plain:
        plain = f"-{plain}"
    if len(plain.encode()) > LONGEST:
        plain = f"{plain.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return plain


def read_unit(path: Path) -> Unit | None:
    """A unit from its file; None, with a warning that names the file, when it can't be read or is none.

    It is read and checked once in a process, as long as the file stays: nobody changes a unit.
    """
    try:
        state = path.stat()
        if abs(time.time_ns() - state.st_mtime_ns) < SETTLED:
            return _read(path)
        return _read_once(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        warnings.warn(
            f"{path} is not a readable unit ({said}): it is measured again, and missing until then", stacklevel=2
        )
        return None


def _read(path: Path) -> Unit:
    """Raises OSError or ValueError for all that is no unit."""
    import pandas as pd  # slow, as is the next

    from deeper_layers.results.schema import check_unit

    content = read_json(path)
    check_unit(content)
    rows = pd.DataFrame(content["rows"])
    for name in NUMBERS:  # a column of nothing but null would be one of objects
        if name in rows and rows[name].dtype != float:
            rows[name] = rows[name].astype(float)
    if content.get("sha256") != content_hash(content):
        raise ValueError("its content is not that of its SHA-256")
    unit = Unit(
        content["kind"], content["name"], content["key"], content["provenance"],
        rows, content["details"], path,
    )  # fmt: skip
    if path.name != _file_name(unit.kind, unit.name, unit.key):
        raise ValueError("its name is not that of its kind, name and key")
    return unit


@functools.lru_cache(maxsize=4096)
def _read_once(path: Path, *state: int) -> Unit:
    return _read(path)


def find_unit(kind: str, name: str, key: dict, folder: Path | None = None) -> Unit | None:
    """The unit that answers for a key, with or without its "data": measured for its cuts, or for more; else None.

    Of several that with the fewest cuts, then the one that was written last, whatever the clock said. Where no folder
    is named, the published ones answer too.
    """
    found: list[Unit] = []
    for place in readable_folders(folder):
        found = found or _answers(kind, name, key, place)
    return max(found, key=lambda unit: (-len(unit.key.get("cuts", [])), *_order(unit)), default=None)


def _answers(kind: str, name: str, key: dict, folder: Path | None) -> list[Unit]:
    """All units that answer for a key, with or without its "data"."""
    open_to = {"cuts"} | ({"data"} - key.keys())

    def rest(key: dict) -> str:
        return key_hash({entry: value for entry, value in key.items() if entry not in open_to})

    def plain(cut: str | Sequence[int]) -> str | list[int]:
        return cut if isinstance(cut, str) else list(cut)

    def answers(unit: Unit) -> bool:
        cuts = unit.key.get("cuts", [])
        return rest(unit.key) == rest(key) and all(plain(cut) in cuts for cut in key.get("cuts", []))

    folder = unit_path(kind, name, key, folder).parent
    named = f"{slug(kind)}-{glob.escape(slug(name))}-*.json"
    return [unit for unit in map(read_unit, sorted(folder.glob(named))) if unit and answers(unit)]


def _order(unit: Unit) -> tuple[int, str]:
    """By which units of one thing are told from those written later; those of old have no number."""
    return unit.provenance.get("order", 0), unit.path.name if unit.path else ""


def is_measured(task: str, folder: Path | None = None) -> bool:
    """Whether results hold a unit of a task or corpus by this name, of any model: of a kind that is named by one."""
    name = glob.escape(slug(task))
    return any(any(place.glob(f"*/{kind}-{name}-*.json")) for place in readable_folders(folder) for kind in OF_TASKS)


def write_unit(
    kind: str, name: str, key: dict, provenance: dict, rows: "pd.DataFrame", details: dict, folder: Path | None = None
) -> Unit:
    """Write a finished measurement whole, and return it as it is read back.

    Raises:
        InputError: it can't be written.
        ValueError: it is not what a unit of its kind holds.
    """
    from deeper_layers.results.schema import check_unit  # slow

    path = unit_path(kind, name, key, folder)
    with warnings.catch_warnings(action="ignore"):  # a bad one was named when this one was looked for
        before = _answers(kind, name, {entry: value for entry, value in key.items() if entry != "data"}, folder)
    content = {
        "kind": kind,
        "name": name,
        "key": key,
        "provenance": provenance | {"order": 1 + max((_order(unit)[0] for unit in before), default=0)},
        "rows": [{k: _plain(v) for k, v in row.items()} for row in rows.to_dict("records")],
        "details": details,
    }
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read
    check_unit(content)
    write_file(path, (_json_by_lines(content | {"sha256": content_hash(content)}) + "\n").encode())
    unit = read_unit(path)
    assert unit is not None, f"{path} was written and can't be read"
    return unit


def whole_units(units: list[Unit]) -> list[Unit]:
    """Those that are not one task of a group whose unit is among them."""
    parts = {name for unit in units for name in unit.details.get("units") or []}
    return [unit for unit in units if unit.path is None or unit.path.name not in parts]


def has_parts(unit: Unit) -> bool:
    """Whether the units of its tasks, which that of a group stands on, can all be read."""
    return all(part_of(unit, name) for name in unit.details.get("units") or [])


def part_of(unit: Unit, name: str) -> Unit | None:
    """The unit of a task that the unit of a group stands on, by the name of its file; None where it can't be read.

    It lies beside that of the group, or among the published ones: there it was found where no folder was named.
    """
    if unit.path is None:
        return None
    own = unit.path.parent
    found = (read_unit(folder / name) for folder in (own, PUBLISHED / own.name))
    return next((part for part in found if part is not None and "outcomes" in part.details), None)


def all_units(folder: Path | None = None, kind: str | None = None, model: str | None = None) -> list[Unit]:
    """Every readable unit below a folder, sorted by path; of one kind, and of the model of one name, if given.

    Where no folder is named, the published ones come after them.
    """
    pattern = f"{'*' if model is None else slug(model)}/{'*' if kind is None else kind}-*.json"
    found: dict[tuple[str, str], Unit | None] = {}
    for place in readable_folders(folder):
        for path in sorted(place.glob(pattern)):
            if not found.get(own := (path.parent.name, path.name)):
                found[own] = read_unit(path)
    return [unit for unit in found.values() if unit is not None and kind in (None, unit.kind)]


def name_of(weights: str, folder: Path | None = None) -> str | None:
    """By which name results know a model's weights, whatever its file is called; None where they don't."""
    for place in readable_folders(folder):
        for path in sorted(place.glob("*/*.json")):
            with contextlib.suppress(OSError, ValueError):
                if weights.encode() not in read_plain(path):  # much faster than to check what most of them hold
                    continue
            if (unit := read_unit(path)) and unit.key["model"]["weights"] == weights:
                return unit.key["model"]["name"]
    return None


def _plain(value):
    """A value that JSON can hold; not-a-number becomes null, since it was not measured."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_by_lines(content: dict) -> str:
    """JSON with one row a line, so that a difference between two commits can be read."""
    rows = ",\n".join(json.dumps(row) for row in content["rows"])
    head = json.dumps(content | {"rows": ["ROWS"]}, indent=1, allow_nan=False)
    return head.replace('[\n  "ROWS"\n ]', f"[\n{rows}\n]", 1)
