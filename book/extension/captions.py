"""Figures and tables are numbered within their page: Figure 1, 2, ... and Table 1, 2, ... in front of their captions.

Sphinx's own numbers count through all pages, and know nothing of what notebooks draw. So ours are put in when a page's
HTML is there.
"""

import re
from collections import Counter

from sphinx.application import Sphinx

# the caption of a figure of ours, the caption of a table; of other elements none
CAPTION = re.compile(
    r'(?P<figure><figure\b[^>]*\bclass="(?:measured|house)\b(?:(?!</figure>).)*?<figcaption>)|(?P<table><caption\b[^>]*>)',
    re.DOTALL,
)
# a table in a region that is named, as on the page of claims: its name is its caption
NAMED = re.compile(
    r'(<div\b[^>]*\brole="region" aria-label="([^"]+)">(?:<p>(?:(?!</p>).)*</p>)?<table\b[^>]*>)(?!<caption)'
)


def numbered(body: str) -> str:
    """The HTML of a page with numbers in front of the captions of its figures and tables."""
    counts: Counter[str] = Counter()

    def number(found: re.Match) -> str:
        kind = found.lastgroup
        counts[kind] += 1
        return f'{found[0]}<span class="caption-count">{kind.title()} {counts[kind]}.</span> '

    return CAPTION.sub(number, NAMED.sub(r"\1<caption>\2</caption>", body))


def finish(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    if "body" not in context:
        return
    # docutils calls the bibliography a list, but its parts no items: a screen reader would announce an empty one
    body = re.sub(r'<div role="list" (?=class="citation-list")', "<div ", context["body"])
    context["body"] = numbered(body)


def without_numbers(app: Sphinx, config) -> None:
    """Sphinx's own numbers are off; a part of Jupyter Book for LaTeX turns them on, whatever _config.yml says."""
    config.numfig = False


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", without_numbers, priority=900)
    app.connect("html-page-context", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
