"""pruning.json of a sliced checkpoint: what was done to it, step by step, and what was written, for programs.

It says of every layer which one of the first model it was. A folder that holds what this file lists and nothing else
is ours, and may be replaced where that is asked for.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from deeper_layers.cuts import Cut, ranges
from deeper_layers.errors import InputError
from deeper_layers.files.whole import read_json, write_whole
from deeper_layers.results.schema import Checked, Count, Name

LINEAGE = "pruning.json"
FORMAT = "deeper-layers pruning 1"
Hash = Annotated[str, Field(pattern=r"^(sha256|hub):[\w.-]+$", max_length=200)]


class Step(Checked):
    """One cut: of which model, where, and how what is left was changed."""

    model: Name
    weights: Hash | None  # of the model; None where they were not read for their hash
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


class Lineage(Checked):
    """What pruning.json holds."""

    format: Literal["deeper-layers pruning 1"] = FORMAT
    base_model: str | None  # hub id of the first model, where it is known
    steps: Annotated[list[Step], Field(min_length=1)]
    kept: list[Count]  # of each layer its number in the first model
    files: dict[Name, Count] = {}  # bytes of each file but this one

    @property
    def layers(self) -> int:
        """Of the first model."""
        return self.steps[0].layers

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The kept layers of the first model as ranges with an exclusive end."""
        return ranges(self.kept)

    def after(self, step: Step) -> "Lineage":
        """With one more step. Raises InputError where that begins with another number of layers."""
        if step.layers != len(self.kept):
            raise InputError(f"{LINEAGE} is of {len(self.kept)} layers, expected {step.layers}: remove that file")
        kept = [self.kept[index] for index in step.cut.kept(step.layers)]
        return Lineage(base_model=self.base_model, steps=[*self.steps, step], kept=kept)


def begun(base_model: str | None, step: Step) -> Lineage:
    """The lineage of a first cut."""
    return Lineage(base_model=base_model, steps=[step], kept=step.cut.kept(step.layers))


def read_lineage(folder: Path) -> Lineage | None:
    """Of a folder; None where it has none that we wrote."""
    try:
        return Lineage.model_validate(read_json(folder / LINEAGE))
    except (OSError, ValueError, ValidationError):
        return None


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Beside what is complete."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    content = lineage.model_copy(update={"files": {name: size for name, size in sizes.items() if name != LINEAGE}})
    write_whole(folder / LINEAGE, (json.dumps(content.model_dump(), indent=1) + "\n").encode())


def strange_in(folder: Path) -> str | None:
    """What of a folder keeps it from being one that we wrote and nobody changed since; None where nothing does."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder"
    lineage = read_lineage(folder)
    if lineage is None:
        return f"it has no {LINEAGE} of ours"
    for entry in sorted(folder.iterdir()):
        if entry.name == LINEAGE:
            continue
        if entry.name not in lineage.files or entry.is_symlink() or not entry.is_file():
            return f"{entry.name} in it is not ours"
        if entry.stat().st_size != lineage.files[entry.name]:
            return f"{entry.name} in it was changed since"
    return None
