"""Results on disk: the only source of every figure.

A result is one JSON file, `RESULTS/MODEL/KIND-NAME-KEYHASH.json`. Its key is everything that determines the numbers;
its provenance is the circumstances of the measurement. Its last line is the SHA-256 of all bytes before. Work in
progress is in a folder beside it, see shards.py.
"""

import functools
import glob
import hashlib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.files import read_plain_file, write_file
from deeper_layers.models.sources import Source
from deeper_layers.packing import ITEM_BY_ITEM
from deeper_layers_companion.results.places import readable_folders, results_folder
from deeper_layers_companion.results.schema import GIVEN, KINDS, check_content

if TYPE_CHECKING:  # slow to import
    import pandas as pd

LONGEST = 120  # bytes of a model's or task's name in the name of a file, which may have 255
END = b'"sha256": "'  # the beginning of the last line of a file
HEX = "[0-9a-f]" * 12


@dataclass(frozen=True)
class Result:
    """One finished measurement."""

    kind: str  # one of `schema.KINDS`
    key: dict
    provenance: dict
    records: list[dict] = field(repr=False)  # its rows, one measured value each
    details: dict = field(repr=False)  # further values
    path: Path | None = None

    @property
    def name(self) -> str:
        """What was measured, in short: the tasks, the corpus or the cut."""
        tasks_or_name = self.key.get("tasks") or self.key.get("corpus") or self.key["cut"]
        if isinstance(tasks_or_name, str):
            return tasks_or_name
        return "+".join(sorted(tasks_or_name))

    @property
    def place(self) -> str | None:  # below the folder of results
        return f"{self.path.parent.name}/{self.path.name}" if self.path else None

    @property
    def file_name(self) -> str:
        return f"{self.kind}-{slugify(self.name)}-{hash_key(self.key)}.json"

    @functools.cached_property
    def rows(self) -> "pd.DataFrame":
        """The rows as a table, without packed outcomes; a cut also has its start and size."""
        import pandas as pd

        table = pd.DataFrame(self.records).drop(columns=["outcome", *ITEM_BY_ITEM], errors="ignore")
        if "cut" in table:
            cuts = [Cut.named(name) for name in table["cut"]]
            table.insert(2, "start", [cut.start for cut in cuts])
            table.insert(3, "size", [cut.size for cut in cuts])
        # a null was not measured
        return table.astype(
            {name: float for name in ("value", "stderr", "distance") if name in table}
        )


def hash_key(key: dict) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the key in canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def slugify(name: str) -> str:
    """The name of a file or folder for any name of a model or task: never hidden, and never a folder above."""
    plain = re.sub(r"[^\w.-]", "-", name)
    if plain.startswith(".") or not plain:
        plain = f"-{plain}"
    if len(plain.encode()) > LONGEST:
        plain = f"{plain.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return plain


def result_path(kind: str, key: dict, folder: Path | None = None) -> Path:
    """The path of a result's file. `key["model"]["name"]` names its folder."""
    return (
        results_folder(folder)
        / slugify(key["model"]["name"])
        / Result(kind, key, {}, [], {}).file_name
    )


def read_result(path: Path) -> Result | None:
    """The result in a file, read again only if the file changed. None if it is missing or, with a warning, damaged."""
    try:
        state = path.stat()
        return _read_file(path, state.st_ino, state.st_size, state.st_mtime_ns)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warn_left_out(path, error)
        return None


@functools.lru_cache(maxsize=4096)
def _read_file(path: Path, *state: int) -> Result:
    text = read_plain_file(path)
    body, _, tail = text.rpartition(END)
    if hashlib.sha256(body).hexdigest() != tail[:64].decode(errors="replace"):
        raise ValueError("its content is not that of its SHA-256")
    result = Result(*check_content(json.loads(text)), path)
    if path.name != result.file_name:
        raise ValueError("its name is not that of its kind and key")
    return result


def warn_left_out(path: Path | None, error: Exception) -> None:
    """Warn of a file that is no complete result."""
    text = " ".join(str(error).split())
    warnings.warn(
        f"{path} is not a readable result ({text}): it is left out; remove it, and it is measured again",
        stacklevel=3,
    )


def find_result(kind: str, key: dict, folder: Path | None = None) -> Result | None:
    """The result for a key, with or without its "data", that has the key's cuts or more; else None.
    Of several the one with the fewest cuts, then the latest. Without a folder, published results are searched, too."""
    for place in readable_folders(folder):
        path = result_path(kind, key, place)
        paths = path.parent.glob(f"{glob.escape(path.stem[:-12])}{HEX}.json")
        matching = [
            result
            for result in map(read_result, sorted(paths))
            if result and _satisfies(result.key, key)
        ]
        if matching:
            matching.sort(key=lambda result: result.provenance["measured"], reverse=True)
            return min(
                matching,
                key=lambda result: (len(cut_names(result.key)), "by_sequence" in result.key),
            )
    return None


def _satisfies(key: dict, wanted: dict) -> bool:
    """Whether a result with this key has all cuts of the wanted key, and agrees with it in everything else."""
    ignored = {"cuts"} | {"data", "by_sequence"} - wanted.keys()
    if any(key.get(name) != wanted.get(name) for name in (key.keys() | wanted.keys()) - ignored):
        return False
    all_cuts = cut_names(key)
    cuts_by_rule = key.get("cuts") or {}
    for rule, cuts in (wanted.get("cuts") or {}).items():
        # the whole model, and cuts that no rule chose, may stand under any rule of the result
        anywhere = cuts if rule == GIVEN else {UNPRUNED.name} & {*cuts}
        if not all_cuts >= {*anywhere} or not {*cuts_by_rule.get(rule, ()), *anywhere} >= {*cuts}:
            return False
    return True


def cut_names(key: dict) -> set[str]:
    """The names of all cuts in a key of scores."""
    cuts_by_rule = key.get("cuts") or {}
    return set().union(*cuts_by_rule.values())


def describe_nearest(kind: str, key: dict, folder: Path | None = None) -> str:
    """In words the result of the same model and tasks that agrees with a key in most, and what it has else; "" if
    results hold none."""
    wanted = _flatten(key)
    tasks = set(key.get("tasks", {}))
    found = []
    for result in read_results(folder, kind, key["model"]["name"]):
        if tasks <= set(result.key.get("tasks", {})):
            held = _flatten(result.key)
            names = sorted((held.keys() | wanted.keys()) - {"data", "by_sequence"})
            differing = [name for name in names if held.get(name) != wanted.get(name)]
            words = [f"{name} {held.get(name)}, not {wanted.get(name)}" for name in differing]
            missing = len(cut_names(key) - cut_names(result.key))
            if missing:
                words.append(f"without {missing} of the cuts")
            found.append((len(words), result.name, "; ".join(words)))
    if not found:
        return ""
    _, name, words = min(found)
    return f"the nearest that results hold of it is {name} with {words}" if words else ""


def _flatten(key: dict, prefix: str = "") -> dict[str, object]:
    """The entries of a key without its cuts, by their names joined with dots; of "model" and "tasks" without these."""
    flat: dict[str, object] = {}
    for name, value in key.items():
        if isinstance(value, dict) and name != "cuts":
            flat |= _flatten(value, prefix if name in ("model", "tasks") else f"{prefix}{name} ")
        elif name != "cuts":
            flat[prefix + name] = value
    return flat


def is_measured(task: str, folder: Path | None = None) -> bool:
    """Whether results hold this task, group or text, in a file of its own, for any model."""
    pattern = f"*/*-{glob.escape(slugify(task))}-{HEX}.json"
    return any(any(place.glob(pattern)) for place in readable_folders(folder))


def write_result(
    kind: str,
    key: dict,
    provenance: dict,
    records: list[dict],
    details: dict,
    folder: Path | None = None,
) -> Result:
    """Write a finished measurement in one step, and return it as it will be read. Raises InputError if it can't be
    written, ValueError if it is not the content of a result of its kind."""
    content = {
        "kind": kind,
        "version": KINDS[kind].version,
        "key": key,
        "provenance": provenance,
        "details": details,
    }
    text = json.dumps(content | {"rows": records}, default=np.generic.item)
    content = json.loads(
        text, parse_constant=lambda _: None
    )  # not-a-number becomes null, which means not measured
    path = result_path(kind, key, folder)
    result = Result(*check_content(content), path)
    write_file(path, serialize(content))
    return result


def serialize(content: dict) -> bytes:
    """The content as JSON, one row or entry a line, so that diffs of commits are readable; then its SHA-256."""
    lines = []
    for name, value in content.items():
        text = json.dumps(value)
        if name == "rows":
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        elif isinstance(value, dict):
            text = (
                "{\n"
                + ",\n".join(
                    f" {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items()
                )
                + "\n}"
            )
        lines.append(f"{json.dumps(name)}: {text}")
    body = ("{\n" + ",\n".join(lines) + ",\n").encode()
    return body + END + f'{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def read_results(
    folder: Path | None = None, kind: str | None = None, model: str | None = None
) -> list[Result]:
    """Every readable result below a folder, sorted by path; without a folder, the published ones too."""
    paths_by_place: dict[Path, Path] = {}
    for place in reversed(readable_folders(folder)):
        paths = place.glob(f"{slugify(model) if model else '*'}/{kind or '*'}-*.json")
        paths_by_place |= {path.relative_to(place): path for path in paths}
    results = []
    for _, path in sorted(paths_by_place.items()):
        result = read_result(path)
        if result and model in (None, result.key["model"]["name"]):
            results.append(result)
    return results


def find_misplaced(folder: Path) -> list[str]:
    """A line for each file below a folder of results that no table reads, as it has not the place and name of a result,
    and for each result in the folder of another model."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if path.is_symlink() and not path.exists():
            lines.append(f"{path} is a link to nothing: remove it")
        elif path.parent.parent != folder or not path.match("*-*.json"):
            lines.append(
                f"{path} is no result by its place and name (MODEL/KIND-NAME-KEYHASH.json): remove it"
            )
    for result in read_results(folder):
        name = slugify(result.key["model"]["name"])
        if result.path and result.path.parent.name != name:
            lines.append(
                f"{result.path} is of the model {result.key['model']['name']}: move it into {name}"
            )
    return lines


def find_model_name(weights: str, folder: Path | None = None) -> str | None:
    """The name that results have for these weights, whatever the file is called; None if they have none."""
    models = (result.key["model"] for result in read_results(folder))
    return next((model["name"] for model in models if model["weights"] == weights), None)


def find_recorded_model(
    name: str, dtype: str = "auto", folder: Path | None = None
) -> Source | None:
    """The Source of a model in results, by name and data type, or None: enough to show what was measured."""
    for result in read_results(folder, model=name):
        own_dtype = result.key["dtype"]
        details = result.details
        if dtype in ("auto", own_dtype) and "weights" in details:
            description = {"num_layers": details["num_layers"], "quantized": details["weights"]}
            return Source(**result.key["model"], **description, dtype=own_dtype, folder=name)
    return None
