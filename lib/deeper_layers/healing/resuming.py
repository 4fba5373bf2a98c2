"""Checkpoints of a healing under way: whose they are, which is the last whole one, whether they fit on the disk."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.healing.presets import HealingConfig
from deeper_layers.results.files import write_whole

COMPLETE = "complete"  # a file in a checkpoint, written last


def identity_of(healed: PeftModel, config: HealingConfig, cut: Cut | None, sequences: list[torch.Tensor]) -> str:
    """What a healing is of: its settings, its text, and of the model every shape and the smallest tensors."""
    digest = hashlib.sha256()
    for tokens in sequences:
        digest.update(tokens.numpy().tobytes() + b"\0")
    for name, parameter in healed.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.ndim == 1:
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    settings = dataclasses.asdict(config) | {"save_every": None}
    return json.dumps({"config": settings, "cut": str(cut), "sha256": digest.hexdigest()}, indent=1)


@contextlib.contextmanager
def place_of(folder: Path | None, identity: str) -> Iterator[Path]:
    """The folder of checkpoints, once it is known to hold this healing or none; without one, a passing one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as passing:
            yield Path(passing)
        return
    path = Path(folder) / "settings.json"
    if path.exists() and path.read_text(encoding="utf-8") != identity:
        raise InputError(
            f"{folder} holds checkpoints of another healing (other settings, text, cut or model): give another folder, "
            "or delete this one"
        )
    write_whole(path, identity.encode())
    yield Path(folder)


def last_checkpoint(place: Path) -> Path | None:
    """The latest checkpoint that was written whole; what was not is removed."""
    found = sorted(place.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    return next((path for path in reversed(found) if path.exists()), None)


def check_disk(place: Path, healed: PeftModel) -> None:
    """Raise InputError where three checkpoints don't fit: two are kept, and the next is written beside them."""
    trained = sum(p.numel() * p.element_size() for p in healed.parameters() if p.requires_grad)
    needed, free = 3 * 3 * trained, shutil.disk_usage(place).free  # values and two averages of AdamW, three times
    if free < needed:
        raise InputError(
            f"checkpoints need {needed / 2**20:,.0f} MiB in {place}, where {free / 2**20:,.0f} MiB are free: free some "
            "space, or give another folder"
        )
