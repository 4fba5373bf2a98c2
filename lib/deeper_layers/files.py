"""Files and folders that are absent or whole, and never in the place of somebody else's.

What is under way lies beside its place in a folder whose name nobody types, NAME.RANDOM.partial. In it are a lock, held
as long as its process lives, a mark that says what it is for, and what is made, which is renamed when it is whole. What
a killed process left is known by its mark and its free lock, and by nothing else.
"""

import contextlib
import glob
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from deeper_layers.errors import InputError

LOCK, MARK = "lock", "mark.json"
MADE, BEFORE = "made", "before"  # what is made, and what had its name until now
HEAD = '{"deeper-layers": "under way: this folder goes by itself, or by the same command"'
MOST = 2**28  # bytes of a file of JSON
ROOM = 2**24  # bytes that have to be free before something is measured
NAMED = 180  # bytes of a name in the name of its folder, which may have 255


def check_absent(path: Path) -> None:
    """Raise InputError where something has this name: a file, a folder, a link to nothing."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists: give a name that does not, so that nothing is overwritten")


def replace_any(path: Path) -> None:
    """In the place of `check_absent`, for what is the library's alone, like a result: whatever is there goes."""


@contextlib.contextmanager
def atomic_file(path: Path, check: Callable[[Path], None] = check_absent) -> Iterator[Path]:
    """Where to write a file that gets its name when the block ends without an error.

    `check` raises InputError where what has the name may not be replaced. It is asked again just before that is done.

    Raises:
        InputError: as `check`, or another process makes the same.
        OSError: it can't be written.
    """
    with _under_way(path, check) as folder:
        made = folder / MADE
        yield made
        _sync(made)
        _place(folder, path, check)


@contextlib.contextmanager
def atomic_dir(
    path: Path, check: Callable[[Path], None] = check_absent, of: dict | None = None, writes: list[str] | None = None
) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error. See `atomic_file`.

    Interrupted in the middle it is kept where `of` says what it is of, for JSON: the next one of the same is handed
    what is there. `writes` are the names of all its files: where anything else lies in it, it is nobody's to remove.
    """
    with _under_way(path, check, of, writes) as folder:
        made = folder / MADE
        made.mkdir(exist_ok=True)
        yield made
        for file in made.rglob("*"):
            _sync(file)
        _place(folder, path, check)


@contextlib.contextmanager
def passing_dir(path: Path) -> Iterator[Path]:
    """A folder beside `path` that goes when the block ends. What a killed process left of it goes with the next one."""
    with _under_way(path, replace_any) as folder:
        (folder / MADE).mkdir()
        yield folder / MADE


def write_file(path: Path, content: bytes) -> None:
    """Write a file of the library's own, like a result, whole: what has its name is replaced.

    Raises InputError where it can't be written: the disk is full, the folder may not be written to, or is none.
    """
    try:
        with atomic_file(path, replace_any) as made:
            made.write_bytes(content)
    except OSError as error:
        raise InputError(
            f"can't write {path} ({error.strerror or error}): mend that and run this again, what is finished is kept"
        ) from error


@contextlib.contextmanager
def locked(path: Path, wait: str | None = None) -> Iterator[None]:
    """Inside, this process alone is at work on what will be at `path`; the folder for it is there.

    Where another is, its end is waited for, and `wait` said once on stderr; without that, Timeout is raised.
    """
    place = path.with_suffix(".lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(blocking=False)
    except (Timeout, FileExistsError) as error:  # the second where it was made just now
        if wait is None:
            raise Timeout(str(place)) from error
        print(wait, file=sys.stderr, flush=True)
        with contextlib.suppress(FileExistsError):
            lock.acquire()
    except OSError:  # a file system without locks: two processes would do the same work, and write the same
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                place.unlink()  # while it is held: who waits for it finds out, and makes a new one
            lock.release()


def clear(path: Path) -> None:
    """Remove what killed processes left of `path`, unless the same can go on from it. What they had moved comes back.

    Raises InputError where a living process makes it.
    """
    _clear(path.parent, path.name)


def clear_all(folder: Path) -> None:
    """The same of all that is made in a folder, whatever living processes make there."""
    _clear(folder, None)


def _clear(parent: Path, name: str | None) -> None:
    for folder, said, lock in _left(parent, name, alone=name is not None):
        if said.get("of") is None or not (folder / MADE).is_dir():
            _remove(folder)
        lock.release()


def read_plain(path: Path, most: int = MOST) -> bytes:
    """All of a file. Raises OSError or ValueError where it is no plain one, or has more than `most` bytes."""
    if not stat.S_ISREG((found := os.stat(path)).st_mode):  # a named pipe would be waited for
        raise ValueError("it is no plain file")
    if found.st_size > most:
        raise ValueError(f"it has {found.st_size:,} bytes, expected at most {most:,}")
    return path.read_bytes()


def read_json(path: Path):
    """What a file of JSON holds. Raises OSError or ValueError for all that is not a whole file of standard JSON."""
    text = read_plain(path).decode("utf-8")
    try:
        content = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:  # half a character by itself can't be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return content


def check_writable(folder: Path) -> None:
    """Make a folder and try to write there; InputError where that can't be, before hours are spent on what goes in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"can't write in {folder} ({error.strerror}): mend that, or name another folder") from error


def check_room(folder: Path) -> None:
    """Raise InputError where next to nothing is free for what will be measured."""
    if (free := shutil.disk_usage(folder).free) < ROOM:
        raise InputError(
            f"{free / 2**20:,.1f} MiB are free for {folder}, expected at least {ROOM / 2**20:.0f}: free some space, or "
            "name another folder"
        )


@contextlib.contextmanager
def _under_way(
    path: Path, check: Callable[[Path], None], of: dict | None = None, writes: list[str] | None = None
) -> Iterator[Path]:
    """The folder in which something is made: it goes when the block ends, or is kept as `atomic_dir` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # a name that is too long is known before anything is made
    folder, lock = _taken_up(path, of, alone=check is not replace_any) or _begun(path, {"of": of, "writes": writes})
    try:
        check(path)
        yield folder
    except BaseException:
        _put_back(folder)
        if of is None or not (folder / MADE).is_dir() or not os.listdir(folder / MADE):
            _remove(folder)
        raise
    else:
        _remove(folder)
    finally:
        lock.release()


def _taken_up(path: Path, of: dict | None, alone: bool) -> tuple[Path, FileLock] | None:
    """What a killed process left of the same, to go on from; all else that such processes left of `path` goes."""
    found = None
    for folder, said, lock in _left(path.parent, path.name, alone):
        if found is None and of is not None and said.get("of") == of:
            found = folder, lock
        else:
            _remove(folder)
            lock.release()
    return found


def _begun(path: Path, said: dict) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_short(path.name)}.", suffix=".partial"))
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except (FileNotFoundError, FileExistsError, Timeout):  # another process took it for a dead one's just before
            continue
        except OSError:  # a file system without locks: nothing is taken for dead there
            pass
        text = json.dumps(said | {"for": path.name})
        try:
            with open(folder / MARK, "wb", buffering=0) as mark:  # by one call: torn, it is a beginning of this
                mark.write(f"{HEAD}, {text[1:]}".encode())
        except BaseException:
            _remove(folder)
            lock.release()
            raise
        return folder, lock


def _left(parent: Path, name: str | None, alone: bool) -> Iterator[tuple[Path, dict, FileLock]]:
    """What killed processes left of one name, or of any: the folder, what its mark says, its lock, held from here on.

    Raises InputError where a living process makes what is to be made `alone`.
    """
    named = "*" if name is None else glob.escape(_short(name))
    for folder in map(Path, glob.glob(f"{glob.escape(str(parent))}/{named}.????????.partial", include_hidden=True)):
        said = _said(folder)
        if said is None or name not in (None, said.get("for", name)):
            continue
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if alone:
                path = parent / (name or "")
                raise InputError(f"another process writes {path}: wait until it ends, or give another name") from None
            continue
        except OSError:
            continue
        if _said(folder) is None:  # its process has just finished it
            lock.release()
            continue
        yield folder, said, lock


def _said(folder: Path) -> dict | None:
    """What the mark of a folder says, where all that is in it is ours; None where it is not."""
    try:
        names = set(os.listdir(folder))
        text = (folder / MARK).read_text(encoding="utf-8") if MARK in names else ""
        made = set(os.listdir(folder / MADE)) if (folder / MADE).is_dir() else set()
        begun = names <= {LOCK, MARK} and (LOCK not in names or not (folder / LOCK).stat().st_size)
    except (OSError, ValueError):
        return None
    if folder.is_symlink() or not names <= {LOCK, MARK, MADE, BEFORE}:
        return None
    try:
        said = json.loads(text) if text.startswith(HEAD) else {}
    except ValueError:  # its process was killed while it wrote this
        said = {}
    if not said:
        return {} if begun and HEAD.startswith(text[: len(HEAD)]) else None
    writes = said.get("writes")
    ours = writes is None or made <= {*writes, *(partial_name(name) for name in writes)}
    return said if ours and isinstance(said.get("for"), str) else None


def partial_name(name: str) -> str:
    """Of a file in a folder of `atomic_dir` as long as it is written: one by its own name is whole."""
    return f".{name}.partial"


def _place(folder: Path, path: Path, check: Callable[[Path], None]) -> None:
    """Give what is whole its name."""
    made = folder / MADE
    check(path)
    if made.is_file() and not os.path.lexists(path):
        try:
            return os.link(made, path)  # unlike a rename it fails where the name was taken just now
        except FileExistsError:
            check(path)
        except OSError:  # a file system that knows no second name of a file
            pass
    if made.is_dir() and os.path.lexists(path):
        os.rename(path, folder / BEFORE)
    os.rename(made, path)


def _put_back(folder: Path) -> None:
    """What was moved out of the way, where nothing took its place."""
    if os.path.lexists(folder / BEFORE):
        path = folder.parent / json.loads((folder / MARK).read_text(encoding="utf-8"))["for"]
        if not os.path.lexists(path):
            os.rename(folder / BEFORE, path)


def _remove(folder: Path) -> None:
    """The mark and the lock go last: without them a folder would be taken for somebody's."""
    with contextlib.suppress(OSError):  # what stays goes when the next one begins there
        _put_back(folder)
        for name in (MADE, BEFORE, MARK, LOCK):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _sync(file: Path) -> None:
    if file.is_file():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def _short(name: str) -> str:
    return name.encode()[:NAMED].decode(errors="ignore")


def _refuse(constant: str):
    raise ValueError(f"it holds {constant}, which is no number")
