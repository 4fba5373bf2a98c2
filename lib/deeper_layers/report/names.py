"""Names that others gave, of models, tasks and devices, as text: shown as they are, and never understood as markup.

Each language that a page is written in has one function here, and whoever puts a name into it goes through that.
"""

import html
import re

import pandas as pd
from pandas.io.formats.style import Styler

LONGEST = 64  # characters of a name in a picture
MARKUP = re.compile(r"([\\`*_{}\[\]()<>&$~^|!#+\-=.:])")  # in Markdown, within a line and at its beginning
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # wide ones too


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


def as_plotly(text: str) -> str:
    """A name in a text of a live plot, which knows some tags and, where one points at something, %{places}."""
    return html.escape(clipped(text), quote=False).replace("{", "&#123;")


def clipped(text: str) -> str:
    """A name that a picture has room for: of a long one the beginning and the end."""
    text = visible(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 + 1 :]}"


def as_csv(rows: pd.DataFrame) -> str:
    """Rows as CSV in which no text is a formula: a spreadsheet would run it. An apostrophe before it makes it text."""

    def cell(value):
        if not isinstance(value, str):
            return value
        text = visible(value)  # a line break within a cell is not quoted everywhere
        return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text

    return rows.rename(columns=cell).map(cell).to_csv(index=False)


def as_table(rows: pd.DataFrame, caption: str, form=None, missing: str | None = None) -> Styler:
    """Rows as a table of a page; `form` is a format, or one for each column; `missing` stands for what is not there.

    Numbers stay numbers for their formats; names in cells and heads, and the caption, are text.
    """

    def cell(value):
        return html.escape(visible(value), quote=False) if isinstance(value, str) else value

    names = {name: cell(name) for name in rows.columns}
    if isinstance(form, dict):
        form = {names[name]: how for name, how in form.items()}
    shown = rows.rename(columns=names).map(cell).style.hide(axis="index").format(form, na_rep=missing)
    return shown.set_caption(cell(caption))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
