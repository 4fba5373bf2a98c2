"""In the place of an earlier output of ours, and of nothing else: the new one is complete before the old one goes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from deeper_layers.checkpoints.lineage import LINEAGE, read_lineage, strange_in
from deeper_layers.checkpoints.partial_folder import check_apart
from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import is_gguf


def check_replaceable(out: Path) -> None:
    """Raise InputError where OUT is there, and is not what an earlier run wrote and nobody changed since."""
    strange = _strange(out) if os.path.lexists(out) else None
    if strange:
        raise InputError(
            f"{out} exists and is not as a run like this one left it ({strange}): --overwrite replaces nothing else; "
            "move it away, or name another place"
        )


@contextlib.contextmanager
def in_the_place_of(out: Path, *sources: Path) -> Iterator[Path]:
    """Where to write what takes the place of OUT when the block ends without an error: OUT itself where it is absent.

    Raises InputError as `check_replaceable`, and where OUT is, holds or lies in one of the sources, which are read.
    """
    new, old = (out.with_name(f"{out.name}.{which}") for which in ("new", "old"))
    if not os.path.lexists(out) and os.path.lexists(old) and not _strange(old):
        os.rename(old, out)  # a run was killed between the two renames below
    check_replaceable(out)
    check_apart(out, *sources)
    if not os.path.lexists(out):
        yield out
        return
    for left in (new, old):
        if os.path.lexists(left):
            check_replaceable(left)
            _remove(left)
    yield new
    check_replaceable(out)
    try:
        os.rename(out, old)
        os.rename(new, out)
    except OSError as error:
        raise InputError(
            f"can't replace {out} ({error.strerror}): what is new is in {new}, what was, in {old}"
        ) from error
    _remove(old)


def _strange(out: Path) -> str | None:
    if is_gguf(out.name.removesuffix(".new").removesuffix(".old")):
        from deeper_layers.checkpoints.gguf_files import KEPT  # slow
        from deeper_layers.models.gguf_checks import read_gguf

        try:
            ours = not out.is_symlink() and KEPT in read_gguf(out).entries
        except InputError:
            ours = False
        return None if ours else "it is no GGUF file without some layers"
    return strange_in(out)


def _remove(path: Path) -> None:
    """What we wrote and nothing else: a folder with anything more in it stays."""
    if not path.is_dir():
        path.unlink()
        return
    lineage = read_lineage(path)
    names = [*(lineage.files if lineage else ()), LINEAGE]
    for name in names:
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()
