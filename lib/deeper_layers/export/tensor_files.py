"""Some tensors of a safetensors file as a file of their own, under other names: copied as bytes."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.export.casting import written_bytes
from deeper_layers.files import partial_name
from deeper_layers.models.checkpoint_files import Shard, Tensor

CHUNK = 2**24  # bytes copied at a time
WINDOW = 2**28  # bytes after which the system need not hold them any longer
# what a system says that does not copy from file to file
NOT_IN_KERNEL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK)


class Hashing:
    """SHA-256 of what is written, taken in a second thread while the next bytes are copied."""

    def __init__(self):
        self.digest = hashlib.sha256()
        self.thread = ThreadPoolExecutor(1)
        self.last = self.thread.submit(int)

    def add(self, read, *arguments) -> None:
        """What `read(*arguments)` gives comes next; it is read when its turn comes."""
        self.last = self.thread.submit(lambda: self.digest.update(read(*arguments)))

    def wait(self) -> None:
        self.last.result()

    def hexdigest(self) -> str:
        self.wait()
        return self.digest.hexdigest()

    def __enter__(self) -> "Hashing":
        return self

    def __exit__(self, *_) -> None:
        self.thread.shutdown()


def copy_tensors(shard: Shard, out: Path, bar) -> str:
    """Write the tensors of a shard, in the order in which they lie, as a file that is absent or whole; its SHA-256."""
    tensors = sorted(shard.tensors, key=lambda tensor: tensor.entry["data_offsets"])
    header, place = {} if shard.metadata is None else {"__metadata__": shard.metadata}, 0
    for tensor in tensors:
        size = written_bytes(tensor)
        header[tensor.name] = tensor.entry | {"data_offsets": [place, place + size]}
        place += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format aligns data to 8 bytes
    head = len(head).to_bytes(8, "little") + head
    temporary = out.with_name(partial_name(out.name))
    with open(shard.path, "rb") as source, open(temporary, "wb") as target, Hashing() as hashing:
        target.write(head)
        hashing.add(bytes, head)
        for start, stop, update in _runs(tensors):
            if update is None:
                _copy(source, target, shard.start + start, stop - start, hashing, bar)
                continue
            source.seek(shard.start + start)
            for block in update(source.read):
                target.write(block)
                hashing.wait()  # so that few blocks are in memory
                hashing.add(bytes, block)
                bar.update(len(block))
        target.flush()
        _release(source, target, hashing)
        sha256 = hashing.hexdigest()
    os.replace(temporary, out)
    return sha256


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


def _copy(source, target, start: int, length: int, hashing: Hashing, bar) -> None:
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
        hashing.add(os.pread, source.fileno(), copied, start)
        if start // WINDOW != (start + copied) // WINDOW:
            _release(source, target, hashing)
        start, length = start + copied, length - copied
        bar.update(copied)


def _release(source, target, hashing: Hashing) -> None:
    """What was copied leaves the system's cache: to find memory for ever more of it takes longer than the copy."""
    if hasattr(os, "posix_fadvise"):  # Linux
        os.fdatasync(target.fileno())
        hashing.wait()
        for file in (source, target):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
