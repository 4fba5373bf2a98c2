"""pruning.json of a sliced checkpoint: every cut, step by step, for programs to read.

It gives each layer's number in the first model.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from tqdm import tqdm

from deeper_layers.checks import check_path
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, format_bytes
from deeper_layers.files import read_json
from deeper_layers.schema import Count, Name, StrictModel

LINEAGE = "pruning.json"


class Step(StrictModel):
    """One cut: the model, its dropped layers, and the changes to the layers that stay."""

    model: Name
    # None: not hashed
    weights: Annotated[str, Field(pattern=r"^(sha256|hub):[\w.-]+$", max_length=200)] | None
    layers: Count  # of the model
    dropped: list[Count]  # layers that were dropped
    attention: list[Count] = []  # layers whose attention was silenced: it adds nothing
    mlp: list[Count] = []  # layers whose MLP was silenced
    changed: str | None = None  # which rule changed the weights that stay, and how
    adapter: str | None = None  # fingerprint of the adapters that were added
    dtype: str | None = None  # data type to which the weights were cast
    command: str | None = None

    @classmethod
    def of(cls, cut: Cut, **fields) -> "Step":
        """The step of a cut, with all other fields."""
        return cls(dropped=[*cut.dropped], attention=[*cut.attention], mlp=[*cut.mlp], **fields)

    @property
    def cut(self) -> Cut:
        return Cut.of(self.dropped, self.attention, self.mlp)


class Lineage(StrictModel):
    """The content of pruning.json. Older ones have hashes of all files, too, which are not read."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["deeper-layers pruning 1"] = "deeper-layers pruning 1"
    base_model: str | None  # hub id of the first model, where it is known
    steps: Annotated[list[Step], Field(min_length=1)]
    kept: list[Count]  # each layer's number in the first model

    @property
    def cut(self) -> Cut:
        """All that the steps dropped or silenced, by the numbers of the first model's layers."""
        numbers = [*range(self.steps[0].layers)]
        parts = {"dropped": set(), "attention": set(), "mlp": set()}
        for step in self.steps:
            for name, layers in parts.items():
                layers |= {numbers[index] for index in getattr(step, name)}
            numbers = [numbers[index] for index in step.cut.kept(step.layers)]
        gone = parts["dropped"]
        return Cut.of(sorted(gone), sorted(parts["attention"] - gone), sorted(parts["mlp"] - gone))


def extend_lineage(before: Lineage | None, step: Step, hub: str | None) -> Lineage:
    """The lineage with one more step, or a first one. Raises InputError for a step from another number of layers."""
    lineage = before or Lineage.model_construct(
        base_model=hub, steps=[], kept=[*range(step.layers)]
    )
    if step.layers != len(lineage.kept):
        raise InputError(
            f"{LINEAGE} is of {len(lineage.kept)} layers, expected {step.layers}: remove that file"
        )
    kept = [lineage.kept[index] for index in step.cut.kept(step.layers)]
    return Lineage(base_model=lineage.base_model, steps=[*lineage.steps, step], kept=kept)


def read_lineage(folder: Path) -> Lineage | None:
    """The lineage of a folder; None where it has none in our format."""
    try:
        return Lineage.model_validate(read_json(folder / LINEAGE))
    except (OSError, ValueError):
        return None


def read_cut_like(folder: Path, layers: int) -> Cut:
    """The cut that a folder's pruning.json records, for another model of `layers` layers.

    Raises InputError where the folder has none, or it is of a model of another depth.
    """
    lineage = read_lineage(folder)
    if lineage is None:
        raise InputError(
            f"{folder} has no {LINEAGE} of ours: give a folder that `deeper-layers prune` wrote"
        )
    if lineage.steps[0].layers != layers:
        raise InputError(
            f"{folder} was cut from a model of {lineage.steps[0].layers} layers, and this one has {layers}: give a "
            "model of as many"
        )
    return lineage.cut


def format_lineage(lineage: Lineage) -> str:
    """The text of pruning.json."""
    return json.dumps(lineage.model_dump(), indent=1) + "\n"


def check_no_overlap(out: Path, model: Path, adapter: str | Path | None) -> None:
    """Raise InputError where OUT equals, contains or lies in a folder or file that is read, or a path can be none."""
    read = [model]
    if adapter is not None:
        read.append(check_path("adapter", adapter))
    target = Path(os.path.realpath(out))
    for source in map(Path, map(os.path.realpath, read)):
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise InputError(
                f"{out} and {source} overlap, and the second is read: give an out that lies elsewhere"
            )


def check_disk_space(needed: int, folder: Path, out: Path) -> None:
    """Raise InputError where the disk of a folder lacks space for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{out} needs {format_bytes(needed)}, where {format_bytes(free)} are free: free some, or use another disk"
        )


def show_bytes_written(needed: int) -> tqdm:
    """A progress bar of the bytes written, on stderr."""
    return tqdm(
        total=needed, unit="B", unit_scale=True, desc="slicing", mininterval=5, file=sys.stderr
    )
