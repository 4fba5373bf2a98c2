"""One build of a book at a time: they write the same files, and a second one waits until the first is done."""

from filelock import FileLock, Timeout
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

from book.extension.pages import FOLDER, ROOT

logger = logging.getLogger(__name__)


def begin(app: Sphinx, config: Config) -> None:
    """Take the lock, which ends with the process if not before."""
    folder = ROOT / "book" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    app.book_lock = FileLock(folder / ".lock")  # ty: ignore[unresolved-attribute]
    try:
        app.book_lock.acquire(timeout=0)
    except Timeout:
        logger.info("another build of this book is under way: waiting until it is done")
        app.book_lock.acquire()


def end(app: Sphinx, exception: Exception | None) -> None:
    app.book_lock.release()  # ty: ignore[unresolved-attribute]


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", begin, priority=1)  # before anything is written
    app.connect("build-finished", end, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
