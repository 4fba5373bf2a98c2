"""The built site, once for all tests and processes, and a browser to look at it."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deeper_layers_companion.results.places import AROUND as ROOT

# no graphics card and no background traffic: what is then requested, a page requested
CHROMIUM_FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
CHROMIUM_FLAGS += " --disable-component-update --disable-sync"


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id) -> Path:
    """The folder of the pages, built as `make book` does: only what is out of date.

    The first process that asks for it builds it, and the others wait; a build that failed is not tried again.
    """
    own = tmp_path_factory.getbasetemp()
    said = (own if worker_id == "master" else own.parent) / "site.txt"  # of all processes of this run
    with open(said.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            command = [Path(sys.executable).with_name("jupyter-book"), "build", "book/", "-W", "-n", "--keep-going"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
            said.write_text("" if done.returncode == 0 else done.stdout[-3000:] + done.stderr[-3000:])
    assert said.read_text() == ""
    return ROOT / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def pages(site) -> dict[str, str]:
    """The text of every page, by its address below the site."""
    names = [path.relative_to(site) for path in sorted(site.rglob("*.html"))]
    return {name.as_posix(): (site / name).read_text(encoding="utf-8") for name in names if "_static" not in name.parts}


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS.split())
        yield browser
        browser.close()
