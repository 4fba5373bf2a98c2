"""The files of a checkpoint: which of a folder a model is read from, and what is in them, checked before they are used.

A folder comes from strangers. Names count that are plain and lead nowhere else, files that are regular, and headers
that the safetensors library takes too. Needs neither torch nor transformers.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a header in JSON, the header
with name, type, shape and place of every tensor, then their bytes.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from deeper_layers.errors import InputError, first_line, forbidden
from deeper_layers.files import read_plain

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ADAPTERS = "adapter_config.json"  # for transformers the folder is then adapters of another model, which it opens
LARGEST = 100_000_000  # bytes of a header, by the format; no other JSON of a checkpoint is larger
NUMBERED = re.compile(r"^(?P<prefix>(?:[^.\d]\w*\.)+)(?P<number>0|[1-9][0-9]{0,8})\.(?P<rest>.+)$")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: its entry in the header, its new name, and what changes it, if anything.

    `update(read)` gets the tensor's bytes by calls of `read(number)` and yields as many new ones.
    """

    name: str
    entry: dict
    update: Callable[[Callable[[int], bytes]], Iterator[bytes]] | None = None

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
        content = json.loads(read_plain(path, LARGEST).decode("utf-8"), parse_constant=_infinity)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    except RecursionError:
        raise InputError(f"can't read {path} (nested too deeply): give a checkpoint saved by save_pretrained") from None
    except PermissionError as error:
        raise forbidden(path) from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path} ({error}): give a checkpoint saved by save_pretrained") from error
    return content


def read_config_json(folder: Path) -> dict:
    """The config.json of a folder. Raises InputError where there is none, or it can't be read."""
    path = folder / "config.json"
    if os.access(folder, os.X_OK) and not os.path.lexists(path):
        raise InputError(f"{folder} has no config.json: give a folder saved by save_pretrained")
    return read_json(path)


def _infinity(word: str) -> float:
    """What Python's JSON has beyond the standard's: infinity, which configurations hold as a limit, and no NaN."""
    if word == "NaN":
        raise ValueError("it holds NaN, which is no number")
    return float(word)


def folder_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder, sorted; folders in it are none of them.

    Raises:
        InputError: one leads out of the folder, is no regular file, or the folder can't be read.
    """
    try:
        paths = sorted(path for path in Path(folder).iterdir() if not path.is_dir())
        hidden = [path for path in paths if path.name.startswith(".")]
        left_out = {path for path in hidden if not stat.S_ISREG(path.lstat().st_mode)}
    except OSError as error:
        raise InputError(f"can't read the folder {folder} ({error.strerror}): give one that can be read") from error
    return [file_inside(folder, path.name) for path in paths if path not in left_out]


def file_inside(folder: Path, name: str) -> Path:
    """A file of a checkpoint's folder by its name.

    Raises:
        InputError: the name is a path, or leads out of the folder; there is no such file, or it is no regular one. In
            the hub's cache files lead to the blobs beside.
    """
    path, home = Path(folder) / name, Path(os.path.realpath(folder))
    if not _is_plain(name):
        raise InputError(f"{folder} names the file {name!r}, expected a plain name in that folder: fetch it again")
    real = Path(os.path.realpath(path))
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(one) for one in homes):
        raise InputError(f"{path} leads to {real}, out of its folder: put a copy of that file there instead")
    try:
        regular = stat.S_ISREG(real.stat().st_mode)
    except OSError as error:
        raise InputError(f"{path} is missing or can't be read ({error.strerror}): fetch it again") from error
    if not regular:
        raise InputError(f"{path} is no regular file: a checkpoint holds no others; remove it")
    return path


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors that transformers reads of a folder, in the order of its index, and that index, if it has one.

    Raises:
        InputError: there are none, a file is missing or leads elsewhere, the index is none, or the folder is one of
            adapters.
    """
    held = {path.name: path for path in folder_files(folder)}
    if ADAPTERS in held:
        raise InputError(f"{folder} holds {ADAPTERS}, adapters of another model: merge them into it, and give that")
    if SINGLE in held:
        return [held[SINGLE]], {}
    if INDEX in held:
        weight_map = read_index(held[INDEX])
        return [_named(folder, name) for name in dict.fromkeys(weight_map.values())], weight_map
    safe = [name for name in held if name.endswith(".safetensors")]
    pickled = [name for name in held if name.endswith(PICKLED)]
    if safe:
        raise InputError(f"{folder} has {safe[0]} and neither {SINGLE} nor {INDEX}: fetch the checkpoint again")
    if pickled:
        raise InputError(
            f"{folder} has no safetensors but {pickled[0]}, which can run code when it is read: load the model where "
            "you trust it and save it again with save_pretrained(folder, safe_serialization=True)"
        )
    raise InputError(f"{folder} has no safetensors: give a folder saved by save_pretrained")


def read_index(path: Path) -> dict[str, str]:
    """Of each tensor the file, which is one of safetensors in the index's own folder. InputError where it is not."""
    index = read_json(path)
    weight_map = index.get("weight_map")
    if not isinstance(index.get("metadata"), dict):  # without it transformers opens none
        raise InputError(f"{path} has no metadata, or what is none: fetch the checkpoint again")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise InputError(f"{path} has no weight_map from tensors to files: fetch the checkpoint again")
    for name in dict.fromkeys(weight_map.values()):
        if not name.endswith(".safetensors"):
            raise InputError(f"{path} names {name!r}, expected *.safetensors: fetch the checkpoint again")
        if not _is_plain(name):
            raise InputError(f"{path} names {name!r}, expected a plain name in that folder: fetch it again")
    return weight_map


def _named(folder: Path, name: str) -> Path:
    if not os.path.lexists(folder / name):
        raise InputError(f"{folder / INDEX} names {name}, which is missing: fetch the checkpoint again")
    return file_inside(folder, name)


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def read_shards(folder: Path) -> list[Shard]:
    """Headers of all safetensors of a checkpoint, in the order of its index.

    Raises:
        InputError: as `weight_files`; a file is no whole safetensors file, lacks a tensor that the index names, or two
            hold the same.
    """
    paths, weight_map = weight_files(Path(folder))
    shards = [read_header(path) for path in paths]
    held = Counter(tensor.name for shard in shards for tensor in shard.tensors)
    if lost := sorted(set(weight_map) - set(held)):
        raise InputError(
            f"{folder / INDEX} names {lost[0]}, which {weight_map[lost[0]]} does not hold: fetch the checkpoint again"
        )
    if twice := [name for name, count in held.items() if count > 1]:
        raise InputError(f"{folder} holds {twice[0]} in two files, expected one: fetch the checkpoint again")
    if not held:
        raise InputError(f"{folder} holds no tensors: fetch the checkpoint again")
    return shards


def read_header(path: Path) -> Shard:
    """What one safetensors file holds. Raises InputError where it is damaged, or no such file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("no regular file")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(path.stat().st_size - 8, LARGEST):
                raise ValueError(f"its header would have {length:,} bytes")
            text = file.read(length)
        with safe_open(path, framework="np"):  # checks names, types, shapes and places, and that no byte is left over
            pass
        header = json.loads(text, object_pairs_hook=_once)
        if odd := [name for name, entry in header.items() if not isinstance(entry, dict | None)]:
            raise ValueError(f"its entry for {odd[0]!r} is no object")
        if odd := [name for name in header if not name.isprintable()]:
            raise ValueError(f"its name {odd[0]!r} has a character that can't be printed")
    except PermissionError as error:
        raise forbidden(path) from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({first_line(error)}): fetch it again") from error
    metadata = header.pop("__metadata__", None)
    return Shard(path, 8 + length, tuple(Tensor(name, entry) for name, entry in header.items()), metadata)


def _once(pairs: list[tuple]) -> dict:
    """An object of JSON in which no name stands twice, which readers take differently."""
    names = Counter(name for name, _ in pairs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{twice[0]!r} stands twice in its header")
    return dict(pairs)


def numbered_groups(names: Iterable[str]) -> dict[str, set[int]]:
    """Outermost numbered prefixes among tensor names, with their numbers: "model.layers." and {0, 1, ...}."""
    groups: dict[str, set[int]] = {}
    for name in names:
        if found := NUMBERED.match(name):
            groups.setdefault(found["prefix"], set()).add(int(found["number"]))
    return groups
