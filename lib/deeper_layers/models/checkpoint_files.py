"""The files of a checkpoint: which of a folder a model is read from, and what is in them, checked before they are used.

A folder comes from strangers. Names count that are plain and lead nowhere else, files that are regular, and headers
that the safetensors library takes. Needs neither torch nor transformers.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a header in JSON, the header
with name, type, shape and place of every tensor, then their bytes.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from deeper_layers import files
from deeper_layers.errors import InputError, unreadable

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTERS = "adapter_config.json"  # for transformers the folder is then adapters of another model, which it opens
LARGEST = 100_000_000  # bytes of a header, by the format; no other JSON of a checkpoint is larger
NUMBERED = re.compile(r"^(?P<prefix>(?:[^.\d]\w*\.)+)(?P<number>0|[1-9][0-9]{0,8})\.(?P<rest>.+)$")
AGAIN = "give a checkpoint saved by save_pretrained"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: its name and its entry in the header."""

    name: str
    entry: dict

    @property
    def bytes(self) -> int:
        start, stop = self.entry["data_offsets"]
        return stop - start


@dataclass(frozen=True)
class Shard:
    """One safetensors file: where its data begins, what is in it, its metadata."""

    path: Path
    start: int
    tensors: tuple[Tensor, ...]
    metadata: dict | None


def local_path(name: str | Path) -> Path:
    """The path that a user means. Asking whether it is there raises nothing, see os.path.isdir and isfile."""
    return Path(os.path.expanduser(name))


def is_gguf(path: str | Path) -> bool:
    """Whether a path is named as a GGUF file."""
    return Path(path).suffix.lower() == ".gguf"


def read_json(path: Path) -> dict:
    """A JSON file of a checkpoint, which holds an object. Raises InputError where it does not, or can't be read."""
    try:
        content = files.read_json(path, LARGEST, infinite=True)  # which configurations hold as a limit
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise unreadable(path, "a file of JSON that holds an object", error, AGAIN) from error
    return content


def folder_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder, sorted; folders in it are none of them.

    Raises InputError where one leads out of the folder or is no regular file, or the folder can't be read.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    except OSError as error:
        raise unreadable(folder, "a folder that can be read", error, AGAIN) from error
    return [file_inside(folder, name) for name in names]


def file_inside(folder: Path, name: str) -> Path:
    """A regular file of a checkpoint's folder by its name.

    In the hub's cache files lead to the blobs beside. Raises InputError where the name is a path, leads out of the
    folder, or is that of no regular file.
    """
    path, home = folder / name, Path(os.path.realpath(folder))
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        if re.search(r"[/\\\0]", name) or name in ("", ".", ".."):
            raise ValueError("it is no plain name")
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(one) for one in homes):
            raise ValueError("it leads out of its folder")
        if not stat.S_ISREG(real.stat().st_mode):
            raise ValueError("it is no regular file")
    except (OSError, ValueError) as error:
        raise unreadable(path, "a file in that folder", error, "put a copy of the file there instead") from error
    return path


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors that transformers reads of a folder, in the order of its index, and that index, if it has one.

    Raises InputError where there are none, the index is none, or the folder is one of adapters.
    """
    held = {path.name: path for path in folder_files(folder)}
    if ADAPTERS in held:
        raise InputError(f"{folder} holds {ADAPTERS}, adapters of another model: merge them into it, and give that")
    if SINGLE in held:
        return [held[SINGLE]], {}
    if INDEX not in held:
        raise InputError(
            f"{folder} has no safetensors (neither {SINGLE} nor {INDEX}): give a folder saved by save_pretrained; "
            "pickled weights (.bin, .pt) are not opened, as they can run code: save them again where you trust them"
        )
    index = read_json(held[INDEX])
    weight_map = index.get("weight_map")
    # transformers opens none without metadata
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(index.get("metadata"), dict):
        raise InputError(f"{held[INDEX]} has no weight_map from tensors to files beside its metadata: fetch it again")
    if odd := [name for name in weight_map.values() if not isinstance(name, str) or not name.endswith(".safetensors")]:
        raise InputError(f"{held[INDEX]} names {odd[0]!r:.60}, expected *.safetensors for each tensor: fetch it again")
    return [file_inside(folder, name) for name in dict.fromkeys(weight_map.values())], weight_map


def read_shards(folder: Path) -> list[Shard]:
    """Headers of all safetensors of a checkpoint, in the order of its index.

    Raises InputError as `weight_files`, and where a file is no whole safetensors file, lacks a tensor that the index
    names, or holds one that another holds too.
    """
    paths, weight_map = weight_files(folder)
    shards = [read_header(path) for path in paths]
    held = Counter(tensor.name for shard in shards for tensor in shard.tensors)
    if lost := sorted(set(weight_map) - set(held)):
        raise InputError(f"{folder / INDEX} names {lost[0]}, which no file holds: fetch the checkpoint again")
    if twice := [name for name, count in held.items() if count > 1]:
        raise InputError(f"{folder} holds {twice[0]} in two files, expected one: fetch the checkpoint again")
    return shards


def read_header(path: Path) -> Shard:
    """What one safetensors file holds. Raises InputError where it is damaged, or no such file."""
    try:
        # the library checks names, types, shapes and places, and that no byte is left over; of a file that may not be
        # read it says that there is none, so that it is opened here first
        with open(path, "rb") as file, safe_open(path, framework="np"):
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        if odd := [name for name, entry in header.items() if not isinstance(entry, dict)]:
            raise ValueError(f"its entry for {odd[0]!r:.60} is no object")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise unreadable(path, "a whole safetensors file", error) from error
    metadata = header.pop("__metadata__", None)
    return Shard(path, 8 + length, tuple(Tensor(name, entry) for name, entry in header.items()), metadata)


def numbered_groups(names: Iterable[str]) -> dict[str, set[int]]:
    """Outermost numbered prefixes among tensor names, with their numbers: "model.layers." and {0, 1, ...}."""
    groups: dict[str, set[int]] = {}
    for name in names:
        if found := NUMBERED.match(name):
            groups.setdefault(found["prefix"], set()).add(int(found["number"]))
    return groups
