"""pruning.json of a sliced checkpoint: every cut, step by step, and every written file, for programs to read.

It gives each layer's number in the first model. It also marks our folders: a folder that holds exactly the listed files
with the listed hashes was not changed, and may be replaced where the user asks for that.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import xxhash
from pydantic import Field
from tqdm import tqdm

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, format_bytes
from deeper_layers.files import read_json
from deeper_layers.package_index import file_hash, hash_once
from deeper_layers.schema import Count, Name, StrictModel

LINEAGE = "pruning.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# of weights, XXH3 of 128 bits: it tells whether a file is as it was written, and is quicker than a copy, where SHA-256
# is slower. Older folders have SHA-256 here, too
WeightsHash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
hash_weights = functools.partial(file_hash, algorithm=xxhash.xxh3_128)


class Step(StrictModel):
    """One cut: the model, its dropped layers, and the changes to the layers that stay."""

    model: Name
    weights: Annotated[str, Field(pattern=r"^(sha256|hub):[\w.-]+$", max_length=200)] | None  # None: not hashed
    layers: Count  # of the model
    dropped: list[Count]  # layers that were dropped
    attention: list[Count] = []  # layers whose attention was silenced: it adds nothing
    mlp: list[Count] = []  # layers whose MLP was silenced
    changed: str | None = None  # which rule changed the weights that stay, and how
    adapter: str | None = None  # fingerprint of the adapters that were added
    dtype: str | None = None  # data type to which the weights were cast
    command: str | None = None

    @property
    def cut(self) -> Cut:
        return Cut.of(self.dropped, self.attention, self.mlp)


class Lineage(StrictModel):
    """The content of pruning.json."""

    format: Literal["deeper-layers pruning 1"] = "deeper-layers pruning 1"
    base_model: str | None  # hub id of the first model, where it is known
    steps: Annotated[list[Step], Field(min_length=1)]
    kept: list[Count]  # each layer's number in the first model
    files: dict[Name, Sha256 | WeightsHash] = {}  # all files except pruning.json
    sha256: Sha256 | None = None  # see `digest`

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of everything except `sha256`, as canonical JSON."""
        content = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def extend_lineage(before: Lineage | None, step: Step, hub: str | None) -> Lineage:
    """The lineage with one more step, or a first one. Raises InputError for a step from another number of layers."""
    lineage = before or Lineage.model_construct(base_model=hub, steps=[], kept=[*range(step.layers)])
    if step.layers != len(lineage.kept):
        raise InputError(f"{LINEAGE} is of {len(lineage.kept)} layers, expected {step.layers}: remove that file")
    kept = [lineage.kept[index] for index in step.cut.kept(step.layers)]
    return Lineage(base_model=lineage.base_model, steps=[*lineage.steps, step], kept=kept)


def read_lineage(folder: Path) -> Lineage | None:
    """The lineage of a folder; None where it has none in our format."""
    try:
        return Lineage.model_validate(read_json(folder / LINEAGE))
    except (OSError, ValueError):
        return None


def format_lineage(lineage: Lineage, files: dict[str, str]) -> str:
    """The text of pruning.json for a folder whose files have these hashes."""
    whole = lineage.model_copy(update={"files": files})
    return json.dumps(whole.model_dump() | {"sha256": whole.digest}, indent=1) + "\n"


def check_our_folder(out: Path) -> None:
    """Raise InputError where OUT exists, unless it is a folder that was written here and not changed since."""
    if not os.path.lexists(out):
        return
    lineage, problem = None if out.is_symlink() else read_lineage(out), f"no {LINEAGE} as we write it"
    if lineage is not None and lineage.sha256 == lineage.digest:
        listed, paths = lineage.files, {path.name: path for path in out.iterdir() if path.name != LINEAGE}
        unchanged = {name for name, path in paths.items() if name in listed and _has_hash(path, listed[name])}
        changed = sorted((listed.keys() | paths.keys()) - unchanged)
        problem = f"{changed[0]} in it is not ours as it was written, or is missing" if changed else ""
    if problem:
        raise InputError(
            f"{out} exists and is not as it was written here ({problem}): move it away, or name another place"
        )


def _has_hash(path: Path, expected: str) -> bool:
    algorithm = xxhash.xxh3_128 if len(expected) == 32 else "sha256"
    return path.is_file() and not path.is_symlink() and hash_once(path, algorithm) == expected


def check_no_overlap(out: Path, *sources: Path) -> None:
    """Raise InputError where OUT equals, contains or lies in a folder or file that is read."""
    target = Path(os.path.realpath(out))
    for source in map(Path, map(os.path.realpath, sources)):
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise InputError(f"{out} and {source} overlap, and the second is read: give an out that lies elsewhere")


def open_progress_bar(needed: int, folder: Path, out: Path) -> tqdm:
    """A progress bar for `needed` bytes to be written in a folder. Raises InputError where the disk lacks space."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"{out} needs {format_bytes(needed)}, where {format_bytes(free)} are free: free some, or use another disk"
        )
    return tqdm(total=needed, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr)
