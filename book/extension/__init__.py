"""What this book needs beyond Jupyter Book: notebooks run when their page is out of date, figures on several pages, the
explorer, and formulas without scripts. Read first: running.py."""

import hashlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def note_own_code(app: Sphinx, config: Config) -> None:
    """A change of this extension is a reason to read all pages again."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    config.book_extension = hashlib.sha256(code).hexdigest()


def setup(app: Sphinx) -> dict:
    app.add_config_value("book_extension", "", "env", str)
    app.connect("config-inited", note_own_code)
    for part in ("running", "figures", "explorer", "places", "pages", "ways", "mathml"):
        app.setup_extension(f"{__name__}.{part}")
    app.setup_extension("book.article")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
