"""What the book reads again is told by contents and not by times, and two builds do not write at once."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.extension import alone, inputs, outdated

LONG_AGO = 1_000_000_000  # seconds since 1970


@pytest.fixture
def build(tmp_path):
    """Build a small site, of three pages of which one includes a file, and return the names of the pages read."""
    (tmp_path / "book").mkdir()
    for name, text in {
        "index": "One\n===\n\n.. toctree::\n\n   two\n   three",
        "two": "Two\n===",
        "three": "T\n=\n\n.. include:: part.txt",
    }.items():
        (tmp_path / "book" / f"{name}.rst").write_text(text)
    (tmp_path / "book" / "part.txt").write_text("as it was")

    def made() -> set[str]:
        read: list[str] = []
        book, out = tmp_path / "book", tmp_path / "out"
        with patch_docutils(str(book)), docutils_namespace():
            options = {"extensions": ["book.extension.outdated"], "exclude_patterns": ["part.txt"]}
            app = Sphinx(book, None, out, out / "doctrees", "html", options, status=None, warning=None)
            app.connect("source-read", lambda app, name, content: read.append(name))
            app.build()
        return set(read)

    return made


def set_back(path, text: str) -> None:
    path.write_text(text)
    os.utime(path, (LONG_AGO, LONG_AGO))


def test_a_page_is_read_again_when_its_content_changes_whatever_the_clock_says(build, tmp_path):
    assert build() == {"index", "two", "three"}
    assert build() == set()
    set_back(tmp_path / "book" / "two.rst", "Two\n===\n\nAnother text.")
    assert build() == {"two"}
    assert "Another text." in (tmp_path / "out" / "two.html").read_text()
    set_back(tmp_path / "book" / "part.txt", "as it is now")
    assert build() == {"three"}
    assert "as it is now" in (tmp_path / "out" / "three.html").read_text()
    assert build() == set()


def test_a_stamp_is_of_contents(tmp_path):
    path = tmp_path / "unit.json"
    path.write_text("as it was")
    before = outdated.stamp([tmp_path])
    set_back(path, "as it was")
    assert outdated.stamp([tmp_path]) == before, "written again as it was"
    state = path.stat()
    path.write_text("as it is!")  # as long
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert outdated.stamp([tmp_path]) != before
    said = inputs._said(path, tmp_path)
    set_back(path, "as it was")
    assert inputs._said(path, tmp_path) != said


def test_pages_of_source_code_are_written_again_when_it_changed(tmp_path):
    page = tmp_path / "_modules" / "deeper_layers" / "cuts.html"
    page.parent.mkdir(parents=True)
    app, env = (
        SimpleNamespace(outdir=tmp_path),
        SimpleNamespace(_viewcode_modules={"deeper_layers.cuts": ("a = 1",), "no": False}),
    )
    outdated.forget_source_code(app, env)
    page.write_text("a = 1")
    outdated.forget_source_code(app, env)
    assert page.exists()
    env._viewcode_modules["deeper_layers.cuts"] = ("a = 2",)
    outdated.forget_source_code(app, env)
    assert not page.exists()


def test_a_second_build_waits_for_the_first_and_says_so(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(alone, "ROOT", tmp_path)
    monkeypatch.setattr(alone.logger, "info", said.append)
    first, second = SimpleNamespace(), SimpleNamespace()
    alone.begin(first, None)

    def another() -> None:
        alone.begin(second, None)
        said.append("begins")
        alone.end(second, None)

    waiting = threading.Thread(target=another)
    waiting.start()
    while not said:
        time.sleep(0.01)
    alone.end(first, None)
    waiting.join(timeout=10)
    assert said == ["another build of this book is under way: waiting until it is done", "begins"]
    with FileLock(tmp_path / "book" / "executed" / ".lock", timeout=0):
        pass
