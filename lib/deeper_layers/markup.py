"""Names that others gave as text of a page: shown as they are, and never understood as HTML or Markdown."""

import html
import re

MARKUP = re.compile(r"([\\`*_{}\[\]()<>&$~^|!#+\-=.:])")  # in Markdown, within a line and at its beginning


def visible(text: str) -> str:
    """A text without anything that can't be seen: line breaks, a change of direction and the like as their codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_html(text: str) -> str:
    """A name in HTML, between tags or in an attribute."""
    return html.escape(visible(text))


def as_markdown(text: str) -> str:
    """A name in Markdown, in CommonMark and in the book's own."""
    return MARKUP.sub(r"\\\1", visible(text))


def as_code(text: str) -> str:
    """A name in Markdown, as code."""
    text = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"
