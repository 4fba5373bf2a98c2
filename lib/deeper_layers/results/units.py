"""Units of measurement on disk: the only source of every figure.

A unit is one JSON file, `RESULTS/MODEL/KIND-NAME-KEYHASH.json`. Its key is everything that determines
the numbers; its provenance is everything that happened to be true while they were measured. A file with
that name is complete: it is written under a temporary name and renamed. Work in progress lies in a folder
beside it, in shards that are each complete in the same sense, so an interrupted measurement goes on where
it stopped and several machines can share one folder.
"""

import base64
import hashlib
import json
import math
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from deeper_layers.results.files import write_whole
from deeper_layers.results.places import results_folder


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
    rows: pd.DataFrame
    details: dict = field(default_factory=dict)
    path: Path | None = None


def key_hash(key: dict) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the key in canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def unit_path(kind: str, name: str, key: dict, folder: Path | None = None) -> Path:
    """The file of a unit. `key["model"]["name"]` names the folder of its model."""
    return results_folder(folder) / slug(key["model"]["name"]) / f"{kind}-{name}-{key_hash(key)}.json"


def slug(model: str) -> str:
    """The folder of a model, whatever is in its name."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in model)


def read_unit(path: Path) -> Unit | None:
    """A unit from its file; None, with a warning that names the file, when it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        unit = Unit(
            content["kind"], content["name"], content["key"], content["provenance"],
            pd.DataFrame(content["rows"]), content["details"], path,
        )  # fmt: skip
        if key_hash(unit.key) != path.stem.rsplit("-", 1)[1]:
            raise ValueError("its key does not match its name")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        warnings.warn(f"{path} is not a readable unit ({error}): it is measured again", stacklevel=2)
        return None
    return unit


def find_unit(kind: str, name: str, key: dict, folder: Path | None = None) -> Unit | None:
    """The unit that answers for a key, with or without its "data": measured for its cuts, or for more; else None.

    Of several that with the fewest cuts, the latest.
    """
    open_to = {"cuts"} | ({"data"} - key.keys())

    def rest(key: dict) -> str:
        return key_hash({entry: value for entry, value in key.items() if entry not in open_to})

    def answers(unit: Unit) -> bool:
        cuts = unit.key.get("cuts", [])
        return rest(unit.key) == rest(key) and all(list(cut) in cuts for cut in key.get("cuts", []))

    folder = unit_path(kind, name, key, folder).parent
    found = [unit for unit in map(read_unit, folder.glob(f"{kind}-{name}-*.json")) if unit and answers(unit)]
    return max(found, key=lambda unit: (-len(unit.key.get("cuts", [])), unit.provenance["measured"]), default=None)


def is_measured(task: str, folder: Path | None = None) -> bool:
    """Whether results hold a unit of a task or corpus by this name, of any model."""
    return any(results_folder(folder).glob(f"*/*-{task}-*.json"))


def write_unit(
    kind: str, name: str, key: dict, provenance: dict, rows: pd.DataFrame, details: dict, folder: Path | None = None
) -> Unit:
    """Write a finished measurement whole, and return it as it is read back."""
    path = unit_path(kind, name, key, folder)
    content = {
        "kind": kind,
        "name": name,
        "key": key,
        "provenance": provenance,
        "rows": [{k: _plain(v) for k, v in row.items()} for row in rows.to_dict("records")],
        "details": details,
    }
    write_whole(path, (_json_by_lines(content) + "\n").encode())
    unit = read_unit(path)
    assert unit is not None, f"{path} was written and can't be read"
    return unit


def whole_units(units: list[Unit]) -> list[Unit]:
    """Those that are not one task of a group whose unit is among them."""
    parts = {name for unit in units for name in unit.details.get("units", [])}
    return [unit for unit in units if unit.path is None or unit.path.name not in parts]


def all_units(folder: Path | None = None, kind: str | None = None, model: str | None = None) -> list[Unit]:
    """Every readable unit below a folder, sorted by path; of one kind, and of the model of one name, if given."""
    pattern = f"{'*' if model is None else slug(model)}/{'*' if kind is None else kind}-*.json"
    units = (read_unit(path) for path in sorted(results_folder(folder).glob(pattern)))
    return [unit for unit in units if unit is not None and kind in (None, unit.kind)]


def pack(values: np.ndarray) -> str:
    """Small whole numbers (0 to 255), one a measured item, as text for JSON: zlib, then base 64."""
    values = np.asarray(values)
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"outcomes must lie in 0..255, got {values.min()}..{values.max()}")
    return base64.b64encode(zlib.compress(values.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The inverse of `pack`: a vector of unsigned bytes, one an item."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


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
