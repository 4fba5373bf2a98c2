"""What this book needs beyond Jupyter Book: one Sphinx extension, one idea a file.

One build runs at a time (`alone`). Before anything is read, `contents` makes the pages of every measured model from
the records in results/ and puts them into the table of contents; `running` runs the notebooks whose page is out of
date, several at once. While pages are read, `article` turns a notebook into an article, and the directives put in
what is measured or generated: `figures`, `measured`, `explorer`, `families`, `engines`, `speed`, `machines`,
`house`. When pages are written, `captions`, `mathml`, `titles` and `weight` finish them. `outdated` knows which page to
read again.
"""

from sphinx.application import Sphinx

PARTS = (
    "alone",
    "contents",
    "running",
    "article",
    "figures",
    "measured",
    "explorer",
    "families",
    "engines",
    "speed",
    "machines",
    "house",
    "captions",
    "mathml",
    "titles",
    "weight",
    "outdated",
)


def setup(app: Sphinx) -> dict:
    for part in PARTS:
        app.setup_extension(f"{__name__}.{part}")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
