"""Files that others may damage, hold or fill up: read within bounds, written in spite of a race, cleaned up after.

What can't be read is an OSError or a ValueError, which whoever reads turns into words; what can't be written is an
InputError that names the place.
"""

import json
import os
import re
import shutil
import stat
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.results.files import write_whole

MOST = 2**28  # bytes of a file of JSON
ROOM = 2**24  # bytes that have to be free before something is measured
TRIES = 20  # a folder that another process removes while it is written to is made again so often
# what `write_whole` leaves where it is killed, and who wrote it: of units and records, shards, what healing writes
LEFT = re.compile(
    r"\.(?:.+-[0-9a-f]{12}\.json|\d{6}\.npz|checkpoint-\d+-[0-9a-f]{12}\.safetensors|adapter_model\.safetensors"
    r"|adapter_config\.json|healing\.json|record\.json|settings\.json)\.(?P<process>\d{1,9})\.partial"
)


def read_json(path: Path):
    """What a file of JSON holds. Raises OSError or ValueError for all that is not a whole file of standard JSON."""
    if not stat.S_ISREG((found := os.stat(path)).st_mode):  # a named pipe would be waited for
        raise ValueError("it is no plain file")
    if found.st_size > MOST:
        raise ValueError(f"it has {found.st_size:,} bytes, expected at most {MOST:,}")
    text = path.read_bytes().decode("utf-8")
    try:
        content = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:  # half a character by itself can't be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is absent or complete, also where another process cleans up the folder meanwhile.

    Raises:
        InputError: it can't be written: the disk is full, the folder may not be written to, or is none.
    """
    for left in reversed(range(TRIES)):
        try:
            write_whole(path, content)
            return
        except (FileNotFoundError, FileExistsError) as error:
            if not left:
                raise _unwritable(path, error) from error
        except OSError as error:
            raise _unwritable(path, error) from error


def check_room(folder: Path) -> None:
    """Raise InputError where next to nothing is free for what will be measured."""
    if (free := shutil.disk_usage(folder).free) < ROOM:
        raise InputError(
            f"{free / 2**20:,.1f} MiB are free for {folder}, expected at least {ROOM / 2**20:.0f}: free some space, or "
            "name another folder"
        )


def clean(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in a folder; nothing else.

    A process of another machine that goes by the same number keeps its file, or writes it again (see `write_file`).
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if (found := LEFT.fullmatch(name)) and not _runs(int(found["process"])):
            remove_file(folder / name)


def remove_file(path: Path) -> None:
    """Remove a file of ours, where it is there and may be removed: it is in nobody's way."""
    try:
        path.unlink()
    except OSError:
        return


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _refuse(constant: str):
    raise ValueError(f"it holds {constant}, which is no number")


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"can't write {path} ({error.strerror or error}): mend that and run this again, what is finished is kept"
    )
