"""Find the files of a checkpoint and read their headers. Both are checked before anything is loaded.

A folder may come from a stranger. Only regular files inside it are used, and only headers that the safetensors library
accepts (https://github.com/huggingface/safetensors). Needs neither torch nor transformers.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from deeper_layers import files
from deeper_layers.errors import InputError, as_input_error

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTERS = (
    "adapter_config.json"  # transformers then takes the folder for adapters, and opens their model
)
MAX_HEADER_BYTES = (
    100_000_000  # bytes of a header, by the format; no other JSON of a checkpoint is larger
)
NUMBERED = re.compile(r"^(?P<prefix>(?:[^.\d]\w*\.)+)(?P<number>0|[1-9][0-9]{0,8})\.(?P<rest>.+)$")
ADVICE = "give a checkpoint saved by save_pretrained"
# files beside a model that can't change its numbers, and why not: all others count in its key
CANNOT_MATTER = {
    "README* LICENSE* NOTICE* USE_POLICY*": "words for people",
    "*.png *.jpg *.jpeg *.gif *.svg *.webp *.pdf": "pictures for people",
    ".*": "hidden files, of git and of editors",
    "*.bin *.pt *.pth *.ckpt *.pkl": "pickled weights and states of training, which are never opened",
    "*.h5 *.msgpack *.onnx *.onnx_data *.gguf *.tflite": "weights in other formats: safetensors alone are opened",
    "pruning.json": "the cuts that made the model, which stand in its weights already",
}
# of files in folders below, these alone are read
BELOW = ("**/*.py", "additional_chat_templates/*")


class Tensor(NamedTuple):
    """One tensor of a safetensors file, as its header says."""

    name: str
    dtype: str  # as the format calls it: F32, BF16, ...
    shape: list[int]
    path: Path
    metadata: dict[str, str] | None  # of the file


def local_path(name: str | Path) -> Path:
    """The path that a user typed, with ~ expanded. Check it with os.path.isdir and isfile, which never raise."""
    return Path(os.path.expanduser(name))


def is_gguf(path: str | Path) -> bool:
    """Whether a path is named as a GGUF file."""
    return Path(path).suffix.lower() == ".gguf"


def read_json(path: Path) -> dict:
    """Read a JSON object from a file of a checkpoint. Raises InputError where that fails, or it holds no object."""
    with as_input_error(f"{path} is no JSON that holds an object", ADVICE):
        try:
            content = files.read_json(path, MAX_HEADER_BYTES)
        except FileNotFoundError:
            raise InputError(f"{path.parent} has no {path.name}: {ADVICE}") from None
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content


def list_plain_files(folder: Path) -> list[Path]:
    """The files in a checkpoint's folder, sorted; in the hub's cache they are links to the blobs beside it. Raises
    InputError where a link leads elsewhere, or a file is no regular one."""
    root = Path(os.path.realpath(folder))
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    with as_input_error(f"{folder} is no folder of plain files", ADVICE):
        paths = [path for path in sorted(folder.iterdir()) if not path.is_dir()]
        for path in paths:
            if not path.is_file() or not any(
                Path(os.path.realpath(path)).is_relative_to(place) for place in allowed
            ):
                raise ValueError(f"{path.name} is no regular file, or leads out of it")
        return paths


def list_files_that_matter(folder: Path) -> list[Path]:
    """The files of a checkpoint that can change its numbers, sorted: all but those in CANNOT_MATTER, and of folders
    below those in BELOW. Raises what `list_plain_files` does."""
    paths = [path for path in list_plain_files(folder) if _can_matter(path)]
    below = set()
    for pattern in BELOW:
        below |= {path for path in folder.glob(pattern) if path.parent != folder and path.is_file()}
    return paths + sorted(below)


def _can_matter(path: Path) -> bool:
    """Whether a file can change a model's numbers."""
    patterns = " ".join(CANNOT_MATTER).split()
    return not any(fnmatchcase(path.name, pattern) for pattern in patterns)


def list_tensors(folder: Path) -> list[Tensor]:
    """All tensors that transformers would load from a folder, in the order of the index and of their bytes. Raises
    InputError where there are none, the folder holds adapters, or the files and the index disagree."""
    by_name = {path.name: path for path in list_plain_files(folder)}
    weight_map = {}
    if ADAPTERS in by_name:
        raise InputError(
            f"{folder} holds {ADAPTERS}, adapters of another model: merge them into it, and give that"
        )
    if SINGLE not in by_name:
        if INDEX not in by_name:
            raise InputError(
                f"{folder} has no safetensors (neither {SINGLE} nor {INDEX}): {ADVICE}; pickled weights (.bin, .pt) "
                "are not opened, as they can run code: save them again where you trust them"
            )
        index = read_json(by_name[INDEX])
        weight_map = index.get("weight_map")
        # transformers opens none without metadata
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not isinstance(index.get("metadata"), dict)
        ):
            raise InputError(
                f"{by_name[INDEX]} has no weight_map from tensors to files beside its metadata: {ADVICE}"
            )
        unknown = [
            name for name in weight_map.values() if not isinstance(name, str) or name not in by_name
        ]
        if unknown:
            raise InputError(
                f"{by_name[INDEX]} names {unknown[0]!r:.60}, which is no file beside it: {ADVICE}"
            )
    names = dict.fromkeys(weight_map.values() or [SINGLE])
    tensors = []
    for name in names:
        tensors += _read_header(by_name[name])
    counts = Counter(tensor.name for tensor in tensors)
    faulty = [
        *sorted(set(weight_map) - set(counts)),
        *(name for name, times in counts.items() if times > 1),
    ]
    if faulty:
        raise InputError(
            f"{folder} holds {faulty[0]} in {counts[faulty[0]]} files, expected one: fetch it again"
        )
    return tensors


def _read_header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of its bytes. Raises InputError where the file is damaged."""
    # the library checks names, types, shapes and offsets, and that no byte is left over; it calls a file without
    # permission to read a missing one, so that the file is opened here first
    with (
        as_input_error(f"{path} is not a whole safetensors file"),
        open(path, "rb"),
        safe_open(path, framework="np") as file,
    ):
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        origin = path, file.metadata()
        return [
            Tensor(name, tensor.get_dtype(), tensor.get_shape(), *origin)
            for name, tensor in slices.items()
        ]


def find_numbered_prefixes(names: Iterable[str]) -> dict[str, set[int]]:
    """The outermost numbered prefixes of tensor names, each with its numbers: {"model.layers.": {0, 1, ...}}."""
    groups: dict[str, set[int]] = {}
    for match in filter(None, map(NUMBERED.match, names)):
        groups.setdefault(match["prefix"], set()).add(int(match["number"]))
    return groups
