"""Safetensors files as bytes: what is in them, and copies of some of it under other names.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a header in JSON, the
header with name, type, shape and place of every tensor, then their bytes.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deeper_layers.errors import InputError

CHUNK = 2**24  # bytes copied at a time
WINDOW = 2**28  # bytes after which the system need not hold them any longer
# what a system says that does not copy from file to file
NOT_IN_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK)
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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


def read_shards(folder: Path) -> list[Shard]:
    """Headers of all safetensors of a checkpoint, in the order of its index.

    Raises:
        InputError: the index names a file that is missing, a file is truncated, or there is none.
    """
    folder = Path(folder)
    index = folder / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map", {})
        paths = [folder / name for name in dict.fromkeys(weight_map.values())]
        if missing := [path.name for path in paths if not path.exists()]:
            raise InputError(f"{index} names {missing[0]}, which is missing: fetch the checkpoint again")
    else:
        paths, weight_map = sorted(folder.glob("*.safetensors")), {}
    if not paths:
        pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
        raise InputError(
            f"{folder} has no safetensors"
            + (f" but {pickled[0]}, which can run code when it is read: load the model where you trust it and save it "
               "again with save_pretrained(folder)" if pickled else ": give a folder saved by save_pretrained")
        )  # fmt: skip
    shards = [read_header(path) for path in paths]
    held = {tensor.name for shard in shards for tensor in shard.tensors}
    if lost := sorted(set(weight_map) - held):
        raise InputError(
            f"{index} names {lost[0]}, which {weight_map[lost[0]]} does not hold: fetch the checkpoint again"
        )
    return shards


def copy_tensors(shard: Shard, out: Path, bar) -> None:
    """Write the tensors of a shard, in the order in which they lie, as a file that is absent or complete."""
    tensors = sorted(shard.tensors, key=lambda tensor: tensor.entry["data_offsets"])
    header, place = {} if shard.metadata is None else {"__metadata__": shard.metadata}, 0
    for tensor in tensors:
        header[tensor.name] = tensor.entry | {"data_offsets": [place, place + tensor.bytes]}
        place += tensor.bytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format aligns data to 8 bytes
    temporary = out.with_name(f".{out.name}.partial")
    with open(shard.path, "rb") as source, open(temporary, "wb") as target:
        target.write(len(head).to_bytes(8, "little") + head)
        for start, stop, update in _runs(tensors):
            if update is None:
                _copy(source, target, shard.start + start, stop - start, bar)
                continue
            source.seek(shard.start + start)
            for block in update(source.read):
                target.write(block)
                bar.update(len(block))
        target.flush()
        os.fsync(target.fileno())
        _release(source, target)
    os.replace(temporary, out)


def _runs(tensors: list[Tensor]) -> Iterator[tuple]:
    """Where bytes lie that are copied together, or one tensor that changes: (start, stop, update)."""
    run = None
    for tensor in tensors:
        first, last = tensor.entry["data_offsets"]
        if run is not None and run[1:] == (first, None) and tensor.update is None:
            run = run[0], last, None
            continue
        if run is not None:
            yield run
        run = first, last, tensor.update
    if run is not None:
        yield run


def _copy(source, target, start: int, length: int, bar) -> None:
    """Bytes of one file to the end of another, inside the kernel where it can: half the time of read and write."""
    target.flush()
    while length:
        try:
            copied = os.sendfile(target.fileno(), source.fileno(), start, min(CHUNK, length))
        except OSError as error:
            if error.errno not in NOT_IN_KERNEL:
                raise
            copied = target.write(os.pread(source.fileno(), min(CHUNK, length), start))
            target.flush()
        if copied == 0:
            raise InputError(f"{source.name} ended while it was copied: fetch it again")
        if start // WINDOW != (start + copied) // WINDOW:
            _release(source, target)
        start, length = start + copied, length - copied
        bar.update(copied)


def _release(source, target) -> None:
    """What was copied leaves the system's cache: to find memory for ever more of it takes longer than the copy."""
    if hasattr(os, "posix_fadvise"):  # Linux
        os.fdatasync(target.fileno())
        for file in (source, target):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_header(path: Path) -> Shard:
    """What one safetensors file holds. Raises InputError where it is truncated, or no such file."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None)
        tensors = tuple(Tensor(name, entry) for name, entry in header.items())
        end = max((tensor.entry["data_offsets"][1] for tensor in tensors), default=0)
        if 8 + length + end != size:
            raise ValueError(f"its tensors end at byte {8 + length + end:,}, the file at {size:,}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}): fetch it again") from error
    return Shard(path, 8 + length, tensors, metadata)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path} ({error}): give a checkpoint saved by save_pretrained") from error
