"""Checkpoints of a healing under way: of our own making, whole or passed over, and no more than fit on the disk.

A checkpoint is one safetensors file, `checkpoint-STEP-HEALING.safetensors`: the adapters, AdamW's state of each, and
the states of the generators of random numbers; in its metadata how far the healing is, and a SHA-256 of all of it.
The learning rate and the order of the text follow from the step. Nothing in it is code, and only files that go by
such a name are ever removed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from peft import PeftModel
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.files import clear_all, write_file
from deeper_layers.presets import HealingConfig
from deeper_layers.results.schema import Checked, Count, Number

SETTINGS = "settings.json"
NAME = re.compile(r"checkpoint-(?P<step>\d{1,9})-(?P<healing>[0-9a-f]{12})\.safetensors")
KEPT = 2  # checkpoints: the last, and the one before


class Progress(Checked):
    """How far a healing is."""

    step: Count
    losses: list[Number]
    tokens: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Those of one healing.

    Attributes:
        place: the folder that they lie in.
        identity: what the healing is of, see `identity_of`.
    """

    place: Path
    identity: str

    @property
    def healing(self) -> str:
        """By which the healing goes in names of files."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    def write(self, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
        """Write one, and remove those before the last two. Raises InputError where it can't be written."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        said = progress.model_dump_json()
        metadata = {"progress": said, "sha256": self._hash(said, tensors)}
        write_file(self.place / f"checkpoint-{progress.step}-{self.healing}.safetensors", save(tensors, metadata))
        for path in self._found()[KEPT:]:
            _remove(path)

    def last(self, like: dict[str, torch.Tensor] | None = None) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        """The latest that is whole and of this healing; a warning names any later one that is not.

        `like` has tensors of the names, shapes and types that it must have. None where there is none.
        """
        for path in (found := self._found()):
            try:
                whole = self._read(path, like)
                for old in found[found.index(path) + KEPT :]:  # where a process was killed before it removed them
                    _remove(old)
                return whole
            except FileNotFoundError:  # removed by another process
                continue
            except Exception as error:  # what safetensors and torch raise for a damaged file has no end
                warnings.warn(
                    f"{path} is no whole checkpoint of this healing ({first_line(error)}): it is passed over, and the "
                    "one before it used",
                    stacklevel=2,
                )
        return None

    def _found(self) -> list[Path]:
        """The files of this healing's checkpoints, the latest first."""
        try:
            names = [found for name in os.listdir(self.place) if (found := NAME.fullmatch(name))]
        except FileNotFoundError:  # by a process that has finished
            return []
        ours = [found for found in names if found["healing"] == self.healing]
        return [self.place / found[0] for found in sorted(ours, key=lambda found: -int(found["step"]))]

    def _read(self, path: Path, like: dict[str, torch.Tensor] | None) -> tuple[Progress, dict[str, torch.Tensor]]:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited for
            raise ValueError("it is no plain file")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get("sha256") != self._hash(metadata["progress"], tensors):
            raise ValueError("its content is not that of its SHA-256")
        progress = Progress.model_validate_json(metadata["progress"])
        if not path.name.startswith(f"checkpoint-{progress.step}-") or len(progress.losses) != progress.step:
            raise ValueError("it is of another step than its name says")
        for name, tensor in (like or {}).items():
            if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"it lacks {name}, of shape {tuple(tensor.shape)} and type {tensor.dtype}")
        if like is not None and (odd := sorted(tensors.keys() - like.keys())):
            raise ValueError(f"it holds {odd[0]}, which is not of this healing")
        if not all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith("adapter.")):
            raise ValueError("its adapters are not finite")
        if "random" in tensors:
            torch.Generator().set_state(tensors["random"])
        return progress, tensors

    def _hash(self, progress: str, tensors: dict[str, torch.Tensor]) -> str:
        digest = hashlib.sha256(f"{self.identity}\0{progress}".encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"\0{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def identity_of(
    healed: PeftModel,
    config: HealingConfig,
    cut: Cut | None,
    sequences: list[torch.Tensor],
    teacher: PreTrainedModel | Path | None = None,
) -> str:
    """What a healing is of: its settings, its text, and of the models every shape and the smallest tensors."""
    digest = hashlib.sha256()
    for tokens in sequences:
        digest.update(tokens.numpy().tobytes() + b"\0")
    # states on disk are checked as they are read
    for model in [healed, teacher] if isinstance(teacher, PreTrainedModel) else [healed]:
        for name, parameter in model.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            if parameter.ndim == 1:
                digest.update(parameter.detach().float().cpu().numpy().tobytes())
    decisive = config.settings
    settings = {name: decisive.get(name) for name in dataclasses.asdict(config) if name in {*decisive, "save_every"}}
    return json.dumps({"config": settings, "cut": str(cut), "sha256": digest.hexdigest()}, indent=1)


@contextlib.contextmanager
def checkpoints_in(folder: Path | None, identity: str) -> Iterator[Checkpoints]:
    """The checkpoints in a folder, once it is known to hold this healing or none; without one, in a passing one.

    Raises InputError where it holds another healing, or can't be written to.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as passing:
            yield Checkpoints(Path(passing), identity)
        return
    path = Path(folder) / SETTINGS
    try:
        known = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise InputError(f"can't read {path} ({error.strerror}): mend that, or give another folder") from error
    if known is None:
        write_file(path, identity.encode())
    elif known != identity.encode():
        raise InputError(
            f"{folder} holds checkpoints of another healing (other settings, text, cut or model): give another folder, "
            "or delete this one"
        )
    clear_all(Path(folder))
    yield Checkpoints(Path(folder), identity)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints in a folder of ours, and the folder where nothing else is in it."""
    with contextlib.suppress(OSError):
        clear_all(folder)
        for path in folder.iterdir():
            if NAME.fullmatch(path.name) or path.name == SETTINGS:
                _remove(path)
        folder.rmdir()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is in nobody's way
        path.unlink()


def check_disk(place: Path, healed: PeftModel) -> None:
    """Raise InputError where three checkpoints don't fit: two are kept, and the next is written beside them."""
    trained = sum(p.numel() * p.element_size() for p in healed.parameters() if p.requires_grad)
    needed, free = 3 * 3 * trained, shutil.disk_usage(place).free  # values and two averages of AdamW, three times
    if free < needed:
        raise InputError(
            f"checkpoints need {needed / 2**20:,.0f} MiB in {place}, where {free / 2**20:,.0f} MiB are free: free some "
            "space, or give another folder"
        )
