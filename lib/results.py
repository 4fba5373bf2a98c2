"""Units of measurement on disk: the only source of every figure.

A unit is one JSON file, `RESULTS/MODEL/KIND-NAME-KEYHASH.json`. Its key is everything that determines
the numbers; its provenance is everything that happened to be true while they were measured. A file with
that name is complete: it is written under a temporary name and renamed. Work in progress lies in a folder
beside it, in shards that are each complete in the same sense, so an interrupted measurement goes on where
it stopped and several machines can share one folder.
"""

import base64
import collections
import contextlib
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pickle
import platform
import resource
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PACKAGES = ("torch", "transformers", "lm-eval", "datasets", "numpy", "peft", "bitsandbytes", "gguf", "cyllama")


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


def origin(*units: Unit) -> str:
    """One line that traces a figure's numbers back: model, weights, data type, data, files and commits."""
    first = units[0]
    model = first.key["model"]
    weights = f"{first.details.get('weights', '')} weights {model['weights'][:19]}".strip()
    # the wheel or the hash of the documents; the files hold the rest
    data = ", ".join(dict.fromkeys(str(unit.key["data"]).partition(", ")[0] for unit in units))
    files = ", ".join(unit.path.name for unit in units)
    if len(units) > 6:  # the page of all measurements lists them
        counts = collections.Counter(unit.kind for unit in units)
        files = ", ".join(f"{number} unit{'s' * (number != 1)} {kind}-*.json" for kind, number in counts.items())
    commits = ", ".join(dict.fromkeys((unit.provenance["commit"] or "unknown")[:10] for unit in units))
    changed = ", with uncommitted changes" if any(unit.provenance["dirty"] for unit in units) else ""
    folder = f"{first.path.parent.parent.name}/{first.path.parent.name}"
    return (
        f"{model['name']}, {weights}, {first.key['dtype']}. Data: {data}. {folder}: {files}. Commit {commits}{changed}."
    )


def key_hash(key: dict) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the key in canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def unit_path(kind: str, name: str, key: dict, folder: Path = RESULTS) -> Path:
    """The file of a unit. `key["model"]["name"]` names the folder of its model."""
    return Path(folder) / _slug(key["model"]["name"]) / f"{kind}-{name}-{key_hash(key)}.json"


def _slug(model: str) -> str:
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


def find_unit(kind: str, name: str, key: dict, folder: Path = RESULTS) -> Unit | None:
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


def whole_units(units: list[Unit]) -> list[Unit]:
    """Those that are not one task of a group whose unit is among them."""
    parts = {name for unit in units for name in unit.details.get("units", [])}
    return [unit for unit in units if unit.path.name not in parts]


def all_units(folder: Path = RESULTS, kind: str | None = None, model: str | None = None) -> list[Unit]:
    """Every readable unit below a folder, sorted by path; of one kind, and of the model of one name, if given."""
    pattern = f"{'*' if model is None else _slug(model)}/{'*' if kind is None else kind}-*.json"
    units = (read_unit(path) for path in sorted(Path(folder).glob(pattern)))
    return [unit for unit in units if unit is not None and kind in (None, unit.kind)]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or complete, whatever kills the process meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def measure_or_load(
    kind: str,
    name: str,
    key: dict,
    measure: Callable[["Shards"], tuple[pd.DataFrame, dict]],
    folder: Path = RESULTS,
    *,
    data: Callable[[], str] | None = None,
    at_hand: bool = False,
    allowed: bool = True,
) -> Unit | None:
    """The unit of this key, or of more cuts: read where it exists, else measured by `measure(shards)` and written.

    `measure` returns the rows and the details; it may keep finished parts of its work in `shards`. `data`
    reads the data and gives the key's "data", their fingerprint. Where they are not `at_hand` but on a hub, it is
    only asked where no unit agrees in everything else: so a page is drawn from its units on a machine without a
    hub. Where measuring is not `allowed`, None for what results do not hold.
    """
    if data is not None and at_hand:
        key, data = key | {"data": data()}, None
    if (unit := find_unit(kind, name, key, folder)) is not None or not allowed:
        return unit
    if data is not None:
        key = key | {"data": data()}
    path = unit_path(kind, name, key, folder)
    shards = Shards(path.with_suffix(".partial"))
    state = provenance()  # before measuring: the code that runs is the code of now
    with _clock() as measured:
        rows, details = measure(shards)
    content = {
        "kind": kind,
        "name": name,
        "key": key,
        "provenance": state | measured | {"seconds_in_earlier_runs": shards.seconds_before},
        "rows": [{k: _plain(v) for k, v in row.items()} for row in rows.to_dict("records")],
        "details": details,
    }
    write_whole(path, (_json_by_lines(content) + "\n").encode())
    shards.remove()
    return read_unit(path)


class Shards:
    """Finished parts of one measurement, each an `.npz` file in a folder that goes when the unit is written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds_before = 0.0
        self._started = time.monotonic()

    def get(self, number: int) -> dict[str, np.ndarray] | None:
        """The arrays of shard `number`; None where it is missing or, with a warning, unreadable."""
        path = self.folder / f"{number:06d}.npz"
        try:
            # from memory: numpy leaves a file open that it can't read
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = dict(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            warnings.warn(f"{path} is not a readable shard ({error}): it is measured again", stacklevel=2)
            return None
        self.seconds_before += float(arrays.pop("seconds", 0.0))
        self._started = time.monotonic()
        return arrays

    def put(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Write shard `number` whole."""
        buffer = io.BytesIO()
        now = time.monotonic()
        np.savez(buffer, seconds=now - self._started, **arrays)
        self._started = now
        write_whole(self.folder / f"{number:06d}.npz", buffer.getvalue())

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def skip(bar, number: int | float) -> None:
    """Move a progress bar past work that shards hold: the time it says is left is that of the work that is left."""
    bar.initial += number
    bar.n += number
    bar.last_print_n += number
    bar.refresh()


def provenance() -> dict:
    """What was true while measuring: versions, commit, machine. Nothing here decides a number's file."""
    packages = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[package] = importlib.metadata.version(package)
    return {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": packages,
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _is_dirty(),
        "device": _device_name(),
    }


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


@contextlib.contextmanager
def _clock() -> Iterator[dict]:
    measured: dict = {}
    start = time.monotonic()
    yield measured
    measured["seconds"] = round(time.monotonic() - start, 2)
    # the operating system counts kibibytes on Linux, bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured["peak_memory_bytes"] = peak * (1 if sys.platform == "darwin" else 1024)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_dirty() -> bool | None:
    """Whether code differs from the commit; results themselves don't count, a measurement adds them."""
    status = _git("status", "--porcelain", "--", "lib", "notebooks", "pyproject.toml", "constraints.txt")
    return None if status is None else bool(status)


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    # how 16-bit numbers are rounded on the way depends on what the processor can do
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{platform.machine()} processor ({capability}), {threads} thread{'s' if threads > 1 else ''}"
