"""Titles of pages are text wherever they stand: the theme and the search write some of them as HTML."""

import html
import json
from pathlib import Path

from sphinx.application import Sphinx

INDEX = "Search.setIndex("


def in_page(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """What the theme takes from a page's own text, without its markup, and puts into the page as it is."""
    for name in ("pagetitle", "root_title", "page_description"):
        if name in context:
            context[name] = html.escape(context[name])


def in_search(app: Sphinx, exception: Exception | None) -> None:
    """The headings among which a reader searches: those found are put into the page as they are."""
    path = Path(app.outdir) / "searchindex.js"
    if exception is None and path.exists():
        path.write_text(as_text(path.read_text(encoding="utf-8")), encoding="utf-8")


def as_text(index: str) -> str:
    """A search index whose headings and entries hold no tag; what was escaped before stays as it is."""
    content = json.loads(index.removeprefix(INDEX).removesuffix(")"))
    for name in ("alltitles", "indexentries"):
        content[name] = {text.replace("<", "&lt;"): places for text, places in content.get(name, {}).items()}
    return f"{INDEX}{json.dumps(content, sort_keys=True)})"


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", in_page, priority=900)  # after the theme
    app.connect("build-finished", in_search)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
