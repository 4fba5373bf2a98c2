"""Escape names that others gave, so that a page shows them and never reads them as HTML or Markdown."""

import html
import re

from deeper_layers.errors import escape_invisible

# special in Markdown, within a line or at its beginning
MARKUP = re.compile(r"([\\`*_{}\[\]()<>&$~^|!#+\-=.:])")


def as_html(text: str) -> str:
    """A name in HTML, between tags or in an attribute."""
    return html.escape(escape_invisible(text))


def as_markdown(text: str) -> str:
    """A name in Markdown, in CommonMark and in the book's own."""
    return MARKUP.sub(r"\\\1", escape_invisible(text))


def as_code(text: str) -> str:
    """A name in Markdown, as code."""
    text = escape_invisible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"
