"""Damaged folders of adapters, each the same for its number, and what comes of slicing with them and of opening them.

`python -m tests.fuzz.adapter_cases` tries many, see trying.py.
"""

import contextlib
import copy
import functools
import io
import json
import random
import shutil
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import IDENTITY, SETTINGS, WEIGHTS, read_adapter
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.export.tensor_writer import Entry
from deeper_layers.healing.adapters import add_adapters, load_adapters, merge_adapters, save_adapters
from deeper_layers.models.checkpoint_files import read_shards
from deeper_layers.models.sources import model_key
from deeper_layers.pruning import drop_layers
from tests.fuzz import trying
from tests.fuzz.unit_cases import DEEP, ODD, change, places, torn
from tests.tiny import tiny_model

CUT = Cut(2, 2)
COURSE = {
    "config": {"rank": 3, "learning_rate": 0.005, "sequence_length": 32, "steps": 4, "warmup_steps": 1, "seed": 0,
               "quantization": None,
               "adapters": "all", "auxiliary": 0.0},
    "text": "wikipedia", "losses": [3.0, 2.0, 2.5, 1.5], "tokens": 512, "distinct_tokens": 512,
    "trained_parameters": 10, "seconds": 1.5,
}  # fmt: skip
TYPES = (torch.int8, torch.int64, torch.complex64, torch.float64, torch.float16, torch.bool, torch.float8_e4m3fn)


class Ran:
    """What a pickle that is opened leaves behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@functools.cache
def whole():
    return tiny_model("llama")


def made(folder: Path) -> None:
    """A model in a folder, and good adapters for it."""
    with contextlib.redirect_stderr(io.StringIO()):
        whole().save_pretrained(folder / "whole")
    adapted = add_adapters(drop_layers(whole(), CUT), rank=3, alpha=5, dropout=0.0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    with contextlib.redirect_stderr(io.StringIO()):
        slice_checkpoint(folder / "whole", CUT, folder / "pruned")
    save_adapters(adapted, folder / "good", model_key(str(folder / "whole"), folder / "whole"), CUT, COURSE)


def damage(number: int, folder: Path) -> None:
    """Damage the adapters in `folder`, made by `made`."""
    draw = random.Random(number)
    ways = (settings, settings, settings, settings, identity, tensors, tensors, tensors, bytes_of, files)
    for _ in range(draw.choice((1, 1, 1, 2))):
        draw.choice(ways)(folder, draw)


def settings(folder: Path, draw: random.Random) -> None:
    heeded = ("r", "lora_alpha", "rank_pattern", "target_modules", "layers_to_transform", "peft_type")
    of_json(folder / SETTINGS, draw, *heeded)


def identity(folder: Path, draw: random.Random) -> None:
    of_json(folder / IDENTITY, draw, "base", "cut", "healing")


def of_json(path: Path, draw: random.Random, *heeded: str) -> None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # was damaged before
        return
    if not isinstance(content, dict) or draw.random() < 0.1:
        content = copy.deepcopy(draw.choice(ODD))
    elif draw.random() < 0.5:
        content[draw.choice(heeded)] = copy.deepcopy(draw.choice(ODD))
    elif draw.random() < 0.1:
        content["rank_pattern"] = {draw.choice(("mlp.up_proj", "(a+)+$", "down_proj", ".*")): draw.choice((3, 7))}
    elif content:
        part = draw.choice(list(content))
        change(content, draw.choice(places(content[part], (part,))), draw)
    text = json.dumps(content).encode()
    path.write_bytes(text.replace(json.dumps(DEEP).encode(), b"[" * 50_000 + b"]" * 50_000))


def tensors(folder: Path, draw: random.Random) -> None:
    try:
        content = load_file(folder / WEIGHTS)
    except Exception:  # was damaged before
        return
    for _ in range(draw.choice((1, 1, 3))):
        if content:
            content = of_tensors(content, draw.choice(sorted(content)), draw)
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / WEIGHTS)


def of_tensors(content: dict, name: str, draw: random.Random) -> dict:
    tensor, way = content[name].clone(), draw.randrange(10)
    if way == 0:
        content.pop(name)
    elif way == 1:  # A and B
        content = {other: found for other, found in content.items() if name.rpartition(".lora_")[0] not in other}
    elif way in (2, 3) and tensor.is_floating_point() and tensor.numel():
        odd = (float("nan"), float("inf"), -float("inf"), 3e38)
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice(odd)
        content[name] = tensor
    elif way == 4:
        content[name] = tensor.to(draw.choice(TYPES))
    elif way == 5:
        content[name] = draw.choice((tensor.T, tensor[:1], tensor[:, :1], tensor[0], tensor[None], tensor[:0]))
    elif way == 6:
        moved = draw.choice(("lora_A", "lora_B", "up_proj", "model.layers.0", "base_model", ".weight"))
        other = name.replace(moved, draw.choice(("lora_B", "lm_head", "model.layers.9", "x", "", "../x")))
        content[other] = content.pop(name)
    elif way == 7:
        content[draw.choice(("x", "base_model.model.x", "base_model.model.lm_head.lora_A.weight"))] = tensor
    elif way == 8:
        content = {other: found * 1e38 if found.dtype == torch.float32 else found for other, found in content.items()}
    elif way == 9:
        content = {other: found.to(torch.bfloat16) for other, found in content.items()}
    return content


def bytes_of(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice((WEIGHTS, WEIGHTS, SETTINGS, IDENTITY))
    if path.is_file() and (content := path.read_bytes()):
        path.write_bytes(torn(content, draw) if draw.random() < 0.7 else content[: draw.randrange(300)])


def files(folder: Path, draw: random.Random) -> None:
    """A file missing, a folder in its place, or a pickle beside it or instead of it."""
    path, way = folder / draw.choice((WEIGHTS, WEIGHTS, SETTINGS, IDENTITY)), draw.randrange(4)
    if path.is_dir():
        return
    path.unlink(missing_ok=True)
    if way == 0:
        path.mkdir()
    if way >= 1:
        for name in ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"):
            torch.save({"x": Ran(folder.parent / "ran")}, folder / name)
    if way == 3:
        torch.save({"x": Ran(folder.parent / "ran")}, path)


def on_disk(adapter: Path, base: dict, folder: Path) -> dict[str, torch.Tensor]:
    """The pruned checkpoint's tensors as slicing with these adapters writes them."""
    found = read_adapter(adapter)
    if found.base is not None:
        found.check(base, CUT)
    tensors = load_file(folder / "pruned" / "model.safetensors")
    (shard,) = read_shards(folder / "pruned")
    entries = [Entry(tensor.name, tensor.entry["dtype"], shard, tensor) for tensor in shard.tensors]
    edits = found.edits(entries, "model.layers.", "model.layers.")
    return {name: edits[name](tensor, slice(None)) if name in edits else tensor for name, tensor in tensors.items()}


def outcome(number: int, folder: Path) -> str:
    """What comes of damaged adapters: "clear" (one line), "harmless" (one model on disk and in memory), or what broke.

    `folder` holds what `made` made.
    """
    adapter, ran = folder / "adapter", folder / "ran"
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(folder / "good", adapter)
    damage(number, adapter)
    base = json.loads((folder / "good" / IDENTITY).read_text())["base"]
    found, weights = [], {}
    for use in (
        lambda: on_disk(adapter, base, folder),
        lambda: merge_adapters(load_adapters(drop_layers(whole(), CUT), adapter, base, CUT)).state_dict(),
    ):
        if found == ["clear"] and number % 40:  # refused by what both ask first, as a rule
            break
        try:
            with warnings.catch_warnings(action="error"):
                before, weights = weights, use()
            finite = all(bool(tensor.isfinite().all()) for tensor in weights.values())
            equal = all(torch.equal(tensor, weights[name]) for name, tensor in before.items())
            found.append("weights that are not finite" if not finite else "harmless" if equal else "two models")
        except InputError as error:
            said = str(error)
            found.append("clear" if "\n" not in said and len(said) < 1500 else f"said {said[:3000]}")
        except BaseException:
            found.append(traceback.format_exc())
    if ran.exists():
        ran.unlink()
        return "a pickle was opened"
    return next((what for what in found if what not in trying.GOOD), "clear" if "clear" in found else "harmless")


def outcomes(numbers: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """For each number what was damaged, and what came of it."""
    made(folder)
    for number in numbers:
        yield number, "adapters", outcome(number, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trying.main(outcomes)
