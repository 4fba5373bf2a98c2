"""pruning.json of a sliced checkpoint: what was done to it, step by step, and what was written, for programs.

It says of every layer which one of the first model it was. It is our mark, too: a folder that holds the files that it
lists, each with the SHA-256 with which it was written, and nothing else, may be replaced where that is asked for.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tqdm import tqdm

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, in_bytes
from deeper_layers.files import read_json
from deeper_layers.package_index import hash_once
from deeper_layers.results.schema import Count, Name, StrictModel

LINEAGE = "pruning.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Step(StrictModel):
    """One cut: of which model, where, and how what is left was changed."""

    model: Name
    weights: Annotated[str, Field(pattern=r"^(sha256|hub):[\w.-]+$", max_length=200)] | None  # None: not hashed
    layers: Count  # of the model
    dropped: list[Count]  # of these
    attention: list[Count] = []  # of these, whose attention is silent: it adds nothing
    mlp: list[Count] = []  # the same of MLPs
    changed: str | None = None  # which rule changed the weights that stay, and how
    adapter: str | None = None  # fingerprint of the adapters that were added
    dtype: str | None = None  # to which the weights were cast
    command: str | None = None

    @property
    def cut(self) -> Cut:
        return Cut.of(self.dropped, self.attention, self.mlp)


class Lineage(StrictModel):
    """What pruning.json holds."""

    format: Literal["deeper-layers pruning 1"] = "deeper-layers pruning 1"
    base_model: str | None  # hub id of the first model, where it is known
    steps: Annotated[list[Step], Field(min_length=1)]
    kept: list[Count]  # of each layer its number in the first model
    files: dict[Name, Sha256] = {}  # of each but this one
    sha256: Sha256 | None = None  # of all this

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all but `sha256`, as canonical JSON."""
        content = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def lineage_after(before: Lineage | None, step: Step, hub: str | None) -> Lineage:
    """With one more step, or a first one, of the model of this hub id. Raises InputError where that begins with another
    number of layers."""
    whole = before or Lineage.model_construct(base_model=hub, steps=[], kept=[*range(step.layers)])
    if step.layers != len(whole.kept):
        raise InputError(f"{LINEAGE} is of {len(whole.kept)} layers, expected {step.layers}: remove that file")
    kept = [whole.kept[index] for index in step.cut.kept(step.layers)]
    return Lineage(base_model=whole.base_model, steps=[*whole.steps, step], kept=kept)


def read_lineage(folder: Path) -> Lineage | None:
    """Of a folder; None where it has none that we wrote."""
    try:
        return Lineage.model_validate(read_json(folder / LINEAGE))
    except (OSError, ValueError):
        return None


def write_lineage_text(lineage: Lineage, files: dict[str, str]) -> str:
    """What pruning.json says, beside files of these hashes."""
    whole = lineage.model_copy(update={"files": files})
    return json.dumps(whole.model_dump() | {"sha256": whole.digest}, indent=1) + "\n"


def check_our_folder(out: Path) -> None:
    """Raise InputError where OUT is there, and is not a folder that we wrote and nobody changed since."""
    if not os.path.lexists(out):
        return
    lineage, strange = None if out.is_symlink() else read_lineage(out), f"no {LINEAGE} as we write it"
    if lineage is not None and lineage.sha256 == lineage.digest:
        there = {path for path in out.iterdir() if path.name != LINEAGE}
        hashes = {path.name: path.is_file() and not path.is_symlink() and hash_once(path) for path in there}
        odd = sorted({name for name, _ in hashes.items() ^ lineage.files.items()})
        strange = f"{odd[0]} in it is not ours as it was written, or is missing" if odd else ""
    if strange:
        raise InputError(
            f"{out} exists and is not as it was written here ({strange}): move it away, or name another place"
        )


def check_apart(out: Path, *sources: Path) -> None:
    """Raise InputError where OUT is, holds or lies in what is read."""
    target = Path(os.path.realpath(out))
    for source in map(Path, map(os.path.realpath, sources)):
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise InputError(f"{out} and {source} overlap, and the second is read: give an out that lies elsewhere")


def writing(needed: int, folder: Path, out: Path) -> tqdm:
    """A bar of so many bytes that are written in a folder, for `out`. Raises InputError where they are not free."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"{out} needs {in_bytes(needed)}, where {in_bytes(free)} are free: free some, or use another disk"
        )
    return tqdm(total=needed, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr)
