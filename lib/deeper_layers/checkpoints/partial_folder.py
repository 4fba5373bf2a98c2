"""The folder that becomes OUT when it is complete: OUT.partial, held by one process at a time.

A file in it says what it will be and which files that takes. Only what that file proves to be ours is completed or
begun anew; a folder of anyone else is left alone. At the end OUT is made, empty; then the folder takes its place, which
fails where someone put something there; then the state file goes. A run after a kill goes on from any of these.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deeper_layers.errors import InputError
from deeper_layers.files.whole import LEFT
from deeper_layers.models.checkpoint_files import read_json

STATE = ".slicing.json"
FORMAT = "deeper-layers slicing 1"


def partial_of(out: Path) -> Path:
    """The folder that becomes OUT."""
    return out.with_name(f"{out.name}.partial")


def check_new(out: str | Path) -> None:
    """Raise InputError where the folder to write is there already, unless a run that was killed at its end left it."""
    out = Path(out)
    if out.name in ("", "..") or "\0" in str(out):
        raise InputError(f"out is {str(out)!r}, expected the path of a folder that does not exist")
    if not os.path.lexists(out) or (out / STATE).is_file():
        return
    if not (_is_empty(out) and (partial_of(out) / STATE).is_file()):
        raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten")


def check_apart(out: Path, *sources: Path) -> None:
    """Raise InputError where OUT or OUT.partial is, holds or lies in one of the folders that are read."""
    for written in (out, partial_of(out)):
        target = Path(os.path.realpath(written))
        for source in map(Path, map(os.path.realpath, sources)):
            if target.is_relative_to(source) or source.is_relative_to(target):
                raise InputError(
                    f"{written} and {source} overlap, and the second is read: give an out that lies elsewhere, so that "
                    "nothing is lost"
                )


def is_complete(out: Path, state: dict) -> bool:
    """Whether OUT is what a run of the same slicing made that was killed at its very end; then it is finished here.

    Raises InputError where OUT is another's.
    """
    if not os.path.lexists(out / STATE):
        return False
    if read_json(out / STATE) != {"format": FORMAT} | state:
        raise InputError(f"{out} exists: give a folder that does not, so that nothing is overwritten")
    (out / STATE).unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def partial_folder(out: Path, state: dict) -> Iterator[Path]:
    """The folder OUT.partial, to be filled; it becomes OUT where the block ends without an error.

    `state`: what it is of, for JSON; "writes" lists the names of all files.

    Raises:
        InputError: OUT.partial is not ours, or another process fills it; OUT came to be meanwhile.
        OSError: it can't be made, or not be renamed.
    """
    partial, given = partial_of(out), out.is_dir()
    out.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise _not_ours(partial, "it is no folder")
    with contextlib.suppress(FileExistsError):
        partial.mkdir()
    if not (partial / STATE).exists() and not _is_empty(partial):
        raise _not_ours(partial, f"it holds no {STATE}")
    with _locked(partial / STATE) as file:
        try:
            if not given and os.path.lexists(out):  # another has just finished
                raise _came_to_be(out, partial)
            _begin(partial, file, {"format": FORMAT} | state)
            yield partial
        except BaseException:
            _remove_empty(partial)
            raise
        if not given:
            try:
                out.mkdir()
            except FileExistsError:
                raise _came_to_be(out, partial) from None
        try:
            os.rename(partial, out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise _came_to_be(out, partial) from None
        (out / STATE).unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The state file, open and held by this process alone."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except BlockingIOError:
            held = False
        if not held:  # or it was, and that process has just finished
            raise InputError(f"another process writes {path.parent}: wait until it ends, or give another folder")
        yield file


def _begin(partial: Path, file: BinaryIO, state: dict) -> None:
    """Make the folder one of this state: what is there of the same stays, what is ours of another goes."""
    names = sorted(set(os.listdir(partial)) - {STATE})
    text = file.read()
    if not names and _begins_as_ours(text):
        _write_state(file, state)
        return
    found = _decoded(text)
    if found is None:
        raise _not_ours(partial, f"its {STATE} is not that of a slicing")
    temporary = {name for name in names if any(_is_temporary(name, written) for written in found["writes"])}
    if strange := [n for n in names if n not in {*found["writes"], *temporary} or not _is_file(partial / n)]:
        raise _not_ours(partial, f"it is of {found.get('source')}, cut {found.get('cut')}, and holds {strange[0]}")
    for name in names:
        if name in temporary or found != state:
            (partial / name).unlink()
    if found != state:
        _write_state(file, state)


def _remove_empty(partial: Path) -> None:
    """The folder goes where nothing was written that a next run could go on from."""
    if os.listdir(partial) == [STATE] and _begins_as_ours((partial / STATE).read_bytes()):
        (partial / STATE).unlink()
        partial.rmdir()


def _write_state(file: BinaryIO, state: dict) -> None:
    """In place, since the file is the lock; torn, it says nothing, and the folder holds nothing else then."""
    file.seek(0)
    file.truncate()
    file.write(_encoded(state))
    file.flush()
    os.fsync(file.fileno())


def _encoded(state: dict) -> bytes:
    return json.dumps(state).encode()


def _begins_as_ours(text: bytes) -> bool:
    """Whether we wrote this state, which may be torn."""
    head = _encoded({"format": FORMAT})[:-1]
    return text[: len(head)] == head[: len(text)]


def _decoded(text: bytes) -> dict | None:
    """A state that we wrote; None for anything else."""
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(state, dict) and state.get("format") == FORMAT and isinstance(state.get("writes"), list)
    return state if ours and all(isinstance(name, str) for name in state["writes"]) else None


def _is_temporary(name: str, written: str) -> bool:
    """Whether a run that was killed left this in place of a file that it wrote."""
    left = LEFT.fullmatch(name)
    return name == f".{written}.partial" or (left is not None and left["name"] == written)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not os.listdir(folder)


def _came_to_be(out: Path, partial: Path) -> InputError:
    return InputError(
        f"{out} came to be meanwhile: move it away and run this again, which goes on from {partial}, or give another "
        "folder"
    )


def _not_ours(partial: Path, why: str) -> InputError:
    return InputError(
        f"{partial} is not a folder that a run like this one left ({why}): move it away, so that nothing in it is lost"
    )
