"""Reads a page again when what it is made of has changed, which the contents of files tell, and not their times.

Sphinx reads a page again when its file, or one that it includes, is newer than the last reading: after a clock was set
back, or an older file was put in its place, it would keep what is no longer true. And a page made of results depends
on folders too, where a file may come or go. A directive tells by `made_of` what its page is made of; before pages are
read, all of it is looked at again.
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

from book.extension.pages import ROOT

MADE_OF = "made of"
SOURCE_CODE = "book_source_code"  # of an environment: hashes of the modules that have a page


def made_of(env: BuildEnvironment, *paths: Path) -> None:
    """The page that is being read is made of these files and folders."""
    known = env.metadata[env.docname].setdefault(MADE_OF, {})
    for path in paths:
        inside = path.is_relative_to(ROOT)
        known[path.relative_to(ROOT).as_posix() if inside else path.as_posix()] = stamp([path])


def stamp(paths: Iterable[Path]) -> str:
    """What changes when a file among these, or below these, comes, goes or has another content."""
    found = hashlib.sha256()
    for path in files(paths):
        found.update(f"{path}\0{content(path)}\n".encode())
    return found.hexdigest()


def content(path: Path) -> str:
    """A hash of what is in a file."""
    state = path.stat()
    return _content(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.cache  # within one build, in which no clock is set
def _content(path: Path, *state: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def note_sources(app: Sphinx, doctree: nodes.document) -> None:
    """A page is made of its own file, too, and of those that it includes or documents."""
    source = Path(app.env.doc2path(app.env.docname))
    below = [Path(app.srcdir, name).resolve() for name in app.env.dependencies.get(app.env.docname, ())]
    made_of(app.env, source, *below)


def forget_source_code(app: Sphinx, env: BuildEnvironment) -> None:
    """Pages of source code whose module was another one when they were written, so that they are written again."""
    before, now = getattr(env, SOURCE_CODE, {}), {}
    for name, entry in getattr(env, "_viewcode_modules", {}).items():
        if entry:
            now[name] = hashlib.sha256(entry[0].encode()).hexdigest()
            if before.get(name) != now[name]:
                Path(app.outdir, "_modules", *name.split(".")).with_suffix(".html").unlink(missing_ok=True)
    setattr(env, SOURCE_CODE, now)


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
    app.connect("doctree-read", note_sources, priority=900)  # when what it includes is known
    app.connect("env-updated", forget_source_code)
    app.connect("build-finished", forget_a_build_with_warnings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
