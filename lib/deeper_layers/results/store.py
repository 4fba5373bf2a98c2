"""Results on disk: the only source of every figure.

A result is one JSON file, `RESULTS/MODEL/KIND-NAME-KEYHASH.json`. Its key is everything that determines the numbers;
its provenance is everything that happened to be true while they were measured. Its last line is the SHA-256 of all
bytes before. Work in progress lies in a folder beside it, see shards.py.
"""

import functools
import glob
import hashlib
import json
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.files import read_plain, write_file
from deeper_layers.results.packing import ITEM_BY_ITEM
from deeper_layers.results.places import readable_folders, results_folder
from deeper_layers.results.schema import GIVEN, KINDS, check_content

if TYPE_CHECKING:  # slow
    import pandas as pd

LONGEST = 120  # bytes of a name in the name of a file or folder, which may have 255
END = b'"sha256": "'  # begins the last line of a file
HEX = "[0-9a-f]" * 12


@dataclass(frozen=True)
class Result:
    """One finished measurement."""

    kind: str  # of `schema.KINDS`
    key: dict
    provenance: dict
    records: list[dict] = field(repr=False)  # its rows, one measured value each
    details: dict = field(repr=False)  # whatever else was kept
    path: Path | None = None

    @property
    def name(self) -> str:
        """What was measured, in short: its tasks, its corpus, its cut."""
        named = self.key[KINDS[self.kind].named]
        return named if isinstance(named, str) else "+".join(sorted(named))

    @property
    def place(self) -> str | None:  # below the folder of results
        return f"{self.path.parent.name}/{self.path.name}" if self.path else None

    @property
    def file_name(self) -> str:
        return f"{self.kind}-{slug(self.name)}-{key_hash(self.key)}.json"

    @functools.cached_property
    def rows(self) -> "pd.DataFrame":
        """The rows as a table, without what is packed; of a cut its start and size too."""
        import pandas as pd

        table = pd.DataFrame(self.records).drop(columns=["outcome", *ITEM_BY_ITEM], errors="ignore")
        if "cut" in table:
            cuts = [Cut.named(name) for name in table["cut"]]
            table.insert(2, "start", [cut.start for cut in cuts])
            table.insert(3, "size", [cut.size for cut in cuts])
        # null is not measured
        return table.astype({name: float for name in ("value", "stderr", "distance") if name in table})


def key_hash(key: dict) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the key in canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """The name of a file or folder for a model or a task, whatever is in its name: never one above, or hidden."""
    plain = re.sub(r"[^\w.-]", "-", name)
    if plain.startswith(".") or not plain:
        plain = f"-{plain}"
    if len(plain.encode()) > LONGEST:
        plain = f"{plain.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return plain


def result_path(kind: str, key: dict, folder: Path | None = None) -> Path:
    """The file of a result. `key["model"]["name"]` names the folder of its model."""
    return results_folder(folder) / slug(key["model"]["name"]) / Result(kind, key, {}, [], {}).file_name


def read_result(path: Path) -> Result | None:
    """A result from its file, read once as long as that stays; None, with a warning that names it, where it is none."""
    try:
        state = path.stat()
        return _read(path, state.st_ino, state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        left_out(path, error)
        return None


@functools.lru_cache(maxsize=4096)
def _read(path: Path, *state: int) -> Result:
    text = read_plain(path)
    body, _, tail = text.rpartition(END)
    if hashlib.sha256(body).hexdigest() != tail[:64].decode(errors="replace"):
        raise ValueError("its content is not that of its SHA-256")
    result = _checked(json.loads(text), path)
    if path.name != result.file_name:
        raise ValueError("its name is not that of its kind and key")
    return result


def _checked(content: dict, path: Path) -> Result:
    check_content(content)
    return Result(*(content[name] for name in ("kind", "key", "provenance", "rows", "details")), path)


def left_out(path: Path | None, error: Exception) -> None:
    """Warn of a file that is no whole result."""
    said = " ".join(str(error).split())
    warnings.warn(
        f"{path} is not a readable result ({said}): it is left out; remove it, and it is measured again", stacklevel=3
    )


def find_result(kind: str, key: dict, folder: Path | None = None) -> Result | None:
    """The result that answers for a key, with or without its "data": measured for its cuts, or for more; else None.

    Of several that with the fewest cuts, then the last one. Where no folder is named, the published ones answer too.
    """
    for place in readable_folders(folder):
        path = result_path(kind, key, place)
        named = path.parent.glob(f"{glob.escape(path.stem[:-12])}{HEX}.json")
        found = [one for one in map(read_result, sorted(named)) if one and _answers(one.key, key)]
        if found:
            found.sort(key=lambda one: one.provenance["measured"], reverse=True)
            return min(found, key=lambda one: (len(cut_names(one.key)), "by_sequence" in one.key))
    return None


def _answers(kept: dict, asked: dict) -> bool:
    """Whether what was measured for one key holds what another asks: cuts of its rules, and all else the same."""
    loose = {"cuts", "by_sequence", *({"data"} - asked.keys())}
    differs = any(kept.get(name) != asked.get(name) for name in (kept.keys() | asked.keys()) - loose)
    if differs or asked.get("by_sequence") and not kept.get("by_sequence"):
        return False
    every, of_rules = cut_names(kept), kept.get("cuts") or {}
    return all(
        # the whole model is no rule's choice, and what is given cut by cut may have been anybody's
        cut in (every if rule == GIVEN or cut == UNPRUNED.name else of_rules.get(rule, ()))
        for rule, cuts in (asked.get("cuts") or {}).items()
        for cut in cuts
    )


def cut_names(key: dict) -> set[str]:
    """The cuts of a key of scores, of all its rules."""
    return {cut for cuts in (key.get("cuts") or {}).values() for cut in cuts}


def is_measured(task: str, folder: Path | None = None) -> bool:
    """Whether results hold a task, group or text by this name, alone, of any model."""
    named = f"*/*-{glob.escape(slug(task))}-{HEX}.json"
    return any(any(place.glob(named)) for place in readable_folders(folder))


def write_result(
    kind: str, key: dict, provenance: dict, records: list[dict], details: dict, folder: Path | None = None
) -> Result:
    """Write a finished measurement whole, and return it as it will be read.

    Raises InputError where it can't be written, ValueError where it is not what a result of its kind holds.
    """
    rows = [{name: _plain(value) for name, value in row.items()} for row in records]
    content = {"kind": kind, "version": KINDS[kind].version, "key": key, "provenance": provenance, "details": details}
    content = json.loads(json.dumps(content | {"rows": rows}, allow_nan=False))
    result = _checked(content, path := result_path(kind, key, folder))
    write_file(path, text_of(content))
    return result


def text_of(content: dict) -> bytes:
    """JSON with a row or an entry a line, so that a difference between two commits can be read, and its SHA-256."""
    lines = []
    for name, value in content.items():
        text = json.dumps(value)
        if name == "rows":
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        elif isinstance(value, dict):
            text = "{\n" + ",\n".join(f" {json.dumps(entry)}: {json.dumps(of)}" for entry, of in value.items()) + "\n}"
        lines.append(f"{json.dumps(name)}: {text}")
    body = ("{\n" + ",\n".join(lines) + ",\n").encode()
    return body + END + f'{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def _plain(value):
    """A value that JSON can hold; not-a-number becomes null, since it was not measured."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def all_results(folder: Path | None = None, kind: str | None = None, model: str | None = None) -> list[Result]:
    """Every readable result below a folder, or, where none is named, the published ones too, sorted by path."""
    found: dict[Path, Path] = {}
    for place in reversed(readable_folders(folder)):
        paths = place.glob(f"{slug(model) if model else '*'}/{kind or '*'}-*.json")
        found |= {path.relative_to(place): path for path in paths}
    every = filter(None, (read_result(found[place]) for place in sorted(found)))
    return [one for one in every if model in (None, one.key["model"]["name"])]


def name_of(weights: str, folder: Path | None = None) -> str | None:
    """By which name results know a model's weights, whatever its file is called; None where they don't."""
    of_models = (one.key["model"] for one in all_results(folder))
    return next((model["name"] for model in of_models if model["weights"] == weights), None)
