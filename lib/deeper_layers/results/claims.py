"""Who is at work on a unit: one process at a time, on one machine or on many that share the folder.

Beside the unit to come lies a folder, `UNIT.claim/`, with one empty file named after its holder: the machine, the
process, when that began. Both are only ever renamed, which a shared file system (NFS too) does for one of many: a
prepared folder takes the place of none, and whoever takes over renames the holder's file to its own. A holder on this
machine is dead when its process is gone; one elsewhere when it has not touched its file for a while, by the clock of
the file system.
"""

import contextlib
import errno
import functools
import itertools
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from deeper_layers.errors import InputError
from deeper_layers.files.staging import remove_abandoned, staging_folder

BEAT = 15  # seconds between two touches
STALE = 120  # seconds without one; a client of NFS may believe for 60 what it saw before
REUSED = 5  # seconds by which the beginnings of two processes of one number differ; clocks are set meanwhile
WAITS = 0.2, 2.0  # seconds between two looks, at first and in the end
THERE = (errno.ENOTEMPTY, errno.EEXIST)
_held: set[str] = set()  # by this process
_numbers = itertools.count()


class Taken(Exception):
    """Another process is at work on it."""


class Holder(NamedTuple):
    """Who has a claim, as its file is named."""

    machine: str
    process: int
    began: int  # seconds since 1970
    number: int = 0  # of the process's claims

    NAME = re.compile(r"(.+)\.(\d+)\.(\d+)\.(\d+)")

    def __str__(self) -> str:
        return ".".join(map(str, self))

    @classmethod
    def of(cls, name: str) -> "Holder | None":
        found = cls.NAME.fullmatch(name)
        return found and cls(found[1], *(int(number) for number in found.groups()[1:]))

    @classmethod
    def this(cls) -> "Holder":
        return cls(_machine(), os.getpid(), int(psutil.Process().create_time()), next(_numbers))


@contextlib.contextmanager
def claimed(path: Path, wait: bool = True) -> Iterator[None]:
    """Inside, this process alone is at work on the unit that will be at `path`; its folder is there.

    Raises:
        Taken: another process is, and `wait` is False. Otherwise that is waited for.
        InputError: it can't be claimed: the folder may not be written to, or something else lies in the claim's place.
    """
    place, own = path.with_suffix(".claim"), Holder.this()
    try:
        remove_abandoned(place.parent)
        _take(place, own, wait)
    except OSError as error:
        raise InputError(
            f"can't write {place} ({error.strerror or error}): mend that and run this again, what is finished is kept"
        ) from error
    _held.add(str(own))
    over = threading.Event()
    threading.Thread(target=_beat, args=(place / str(own), over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _held.discard(str(own))
        _give_back(place, own)


def clear(path: Path) -> None:
    """Remove what a dead process left of its claim on a unit that is there, or of what it prepared for one."""
    remove_abandoned(path.parent)
    if path.with_suffix(".claim").is_dir():
        with contextlib.suppress(Taken, InputError), claimed(path, wait=False):
            pass


def _take(place: Path, own: Holder, wait: bool) -> None:
    """Raises Taken, InputError or OSError."""
    told, pause = None, WAITS[0]
    while True:
        holder = _holder(place)
        if holder is None:
            if _made(place, own):
                return
        elif _is_dead(place, holder):
            with contextlib.suppress(FileNotFoundError):  # another took it over, or it was given back
                os.utime(place / str(holder))  # first, as nobody may take it for abandoned when it has our name
                os.rename(place / str(holder), place / str(own))
                return
        elif not wait:
            raise Taken(holder)
        else:
            if told != holder:
                said = f"waiting for process {holder.process} on {holder.machine}, which measures {place.stem}"
                print(said, file=sys.stderr, flush=True)
            told, pause = holder, min(pause * 1.2, WAITS[1])
            time.sleep(pause)


def _holder(place: Path) -> Holder | None:
    """Who has a claim; None where nobody has. Raises InputError for what is no claim."""
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError(f"can't write in {place}, which is no folder: move it away, it is not ours") from None
    holders = [holder for holder in map(Holder.of, names) if holder]
    if names and not holders:
        raise InputError(f"{place} holds {min(names)!r}, expected who measures: move it away, it is not ours")
    return holders[0] if holders else None


def _made(place: Path, own: Holder) -> bool:
    """Whether a claim that nobody has is ours now."""
    with staging_folder(place.parent) as folder:
        made = folder / place.name
        made.mkdir()
        (made / str(own)).touch()
        try:
            os.rename(made, place)
        except OSError as error:
            if error.errno in THERE:
                return False
            # asked twice where its first answer was lost, a server has done it and finds nothing to rename
            if not (place / str(own)).exists():
                raise
    return True


def _give_back(place: Path, own: Holder) -> None:
    """Where another took it over, as it heard nothing of us for long, it stays."""
    with contextlib.suppress(OSError):
        os.unlink(place / str(own))
        os.rmdir(place)  # unless another has it by now


def _beat(file: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)


def _is_dead(place: Path, holder: Holder) -> bool:
    if holder.machine != _machine():
        return _age(place / str(holder)) > STALE
    if str(holder) in _held:
        return False  # another thread
    try:
        process = psutil.Process(holder.process)
        lives = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - holder.began) < REUSED
    except psutil.NoSuchProcess:
        return True
    return not lives or holder.process == os.getpid()  # ours, that could not be given back


def _age(file: Path) -> float:
    """Seconds since a file was touched, by the clock that says so; 0 where it is gone."""
    with tempfile.TemporaryFile(dir=file.parent.parent) as now:
        try:
            return os.fstat(now.fileno()).st_mtime - os.stat(file).st_mtime
        except FileNotFoundError:
            return 0.0


@functools.cache
def _machine() -> str:
    """A name of this machine as its processes are numbered: another when it was started anew, and in a container."""
    parts = [re.sub(r"[^\w-]", "-", socket.gethostname())]
    with contextlib.suppress(OSError):  # no Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        parts += [boot, os.readlink("/proc/self/ns/pid").strip("pid:[]")]
    return "-".join(parts)
