"""Reads a page again when what it is made of has changed.

Sphinx knows the files that a page includes, but a page made of results depends on folders too, where a file may come
or go. A directive tells by `made_of` what its page is made of; before pages are read, all of it is looked at again.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

from book.extension.pages import ROOT

MADE_OF = "made of"


def made_of(env: BuildEnvironment, *paths: Path) -> None:
    """The page that is being read is made of these files and folders."""
    known = env.metadata[env.docname].setdefault(MADE_OF, {})
    known.update({path.relative_to(ROOT).as_posix(): stamp([path]) for path in paths})


def stamp(paths: Iterable[Path]) -> str:
    """What changes when a file among these, or below these, comes, goes or is written."""
    found = hashlib.sha256()
    for path in files(paths):
        state = path.stat()
        found.update(f"{path}\0{state.st_mtime_ns}\0{state.st_size}\n".encode())
    return found.hexdigest()


def files(paths: Iterable[Path]) -> list[Path]:
    """The files below some folders, but for caches and unfinished measurements."""
    found = {below for path in paths for below in ([path] if path.is_file() else path.rglob("*"))}
    hidden = ("__pycache__", ".partial")
    return sorted(path for path in found if path.is_file() and not any(word in str(path) for word in hidden))


def changed(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages that Sphinx would keep and that are made of something else now."""
    return [
        docname
        for docname in env.found_docs - added - changed
        if any(stamp([ROOT / path]) != then for path, then in env.metadata[docname].get(MADE_OF, {}).items())
    ]


def note_own_files(app: Sphinx, config: Config) -> None:
    """A change of the extension is a reason to read all pages again, one of style sheets and scripts to write them."""
    config.book_extension = stamp([ROOT / "book" / "extension"])
    config.book_assets = stamp([ROOT / "book" / "assets"])


def forget_a_build_with_warnings(app: Sphinx, exception: Exception | None) -> None:
    """A page is read once, and its warnings are said once: after a build with any, the next one reads all again."""
    if exception is not None or app._warncount:
        (Path(app.doctreedir) / "environment.pickle").unlink(missing_ok=True)


def setup(app: Sphinx) -> dict:
    app.add_config_value("book_extension", "", "env", str)
    app.add_config_value("book_assets", "", "html", str)
    app.connect("config-inited", note_own_files)
    app.connect("env-get-outdated", changed)
    app.connect("build-finished", forget_a_build_with_warnings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
