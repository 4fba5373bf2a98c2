"""Names and numbers in words. Names that others gave, of models, tasks and devices, are shown as they are, and never
understood as markup: each language that a page is written in has one function here or in markup.py.
"""

import html
import math
import re
import tomllib
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from deeper_layers.markup import as_code as as_code
from deeper_layers.markup import as_html as as_html
from deeper_layers.markup import as_markdown as as_markdown
from deeper_layers.markup import visible as visible

LONGEST = 64  # characters of a name in a picture
SHORT = 20  # characters of a cell that stays on one line where the screen is wide
MANY = 7  # columns: a table of more is too wide for the text's own column
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # wide ones too


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
        return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text

    return rows.rename(columns=cell).map(cell).to_csv(index=False)


def as_table(rows: pd.DataFrame, caption: str, form=None, missing: str | None = None) -> Styler:
    """Rows as a table of a page; `form` is a format, or one for each column; `missing` stands for what is not there.

    Numbers stay numbers for their formats; names in cells and heads, and the caption, are text. Short cells are of the
    class "short", a table of many columns is of the class "full-width", before which the site's theme steps aside.
    """

    def cell(value):
        return html.escape(visible(value), quote=False) if isinstance(value, str) else value

    names = {name: cell(name) for name in rows.columns}
    if isinstance(form, dict):
        form = {names[name]: how for name, how in form.items()}
    cells = rows.rename(columns=names).reset_index(drop=True).map(cell)
    short = cells.map(lambda value: "short" if isinstance(value, str) and len(value) <= SHORT else "")
    shown = cells.style.hide(axis="index").format(form, na_rep=missing).set_td_classes(short)
    if len(cells.columns) > MANY:
        shown = shown.set_table_attributes('class="full-width"')
    return shown.set_caption(cell(caption))


TITLES = tomllib.loads(Path(__file__).with_name("titles.toml").read_text(encoding="utf-8"))
TOPICS, RULES = TITLES["tasks"], TITLES["rules"] | TITLES["texts"]
FIRST = ("Qwen2.5-Coder-1.5B-Instruct", "Gemma-3-270m", "SmolLM2-135M-Instruct")  # that can show most


def topic(task: str) -> str:
    """A task in words: "MMLU, letter chosen", "Capitals, words chosen", "Facts, written"; its own name if unknown."""
    return TOPICS.get(task, task)


def rule_title(rule: str | None) -> str:
    """A rule or a text in words: "similarity-informed", "random, draw 2", "C4"; its own name if unknown."""
    if rule is None or rule != rule:
        return "chosen by hand"
    return RULES.get(rule, rule.replace("random-", "random, draw "))


def in_order(names, first: tuple[str, ...] = FIRST) -> list[str]:
    """Some names, those of `first` before the others, which keep their order by name."""
    names = list(names)
    return [*dict.fromkeys(name for name in first if name in names), *sorted({*names} - {*first})]


def put_in_order(rows: pd.DataFrame, first: tuple[str, ...] = FIRST) -> pd.DataFrame:
    """Rows by model, those of `first` before the others."""
    places = {name: place for place, name in enumerate(in_order(rows["model"].unique(), first))}
    return rows.sort_values("model", key=lambda of: of.map(places), kind="stable", ignore_index=True)


def model_title(model: str) -> str:
    """A model's name as figures have room for it."""
    return model.rpartition("/")[2].removesuffix("-Instruct")


def say(value, low=None, high=None, *, as_share: bool = False, digits: int = 2) -> str:
    """A number in prose: "0.91 (0.85 to 0.97)", or "11% (7 to 14%)"; of an Estimate or a row of a frame too."""
    if not isinstance(value, (int, float)):
        of = value if isinstance(value, dict) else vars(value)
        value, low, high = of["value"], of["low"], of["high"]
    if pd.isna(value):
        return "not measured"

    def form(one: int | float, mark: str) -> str:
        if math.isinf(one):
            return "never"
        return f"{100 * one:.{max(digits - 2, 0)}f}{mark}" if as_share else f"{one:.{digits}f}"

    if low is None or pd.isna(low):
        return form(value, "%")
    return f"{form(value, '%')} ({form(low, '')} to {form(high, '%')})"


class Said:
    """Some sentences, as HTML that has a name, by which other pages show them too."""

    def __init__(self, sentences: list[str], name: str):
        self.sentences, self.name = sentences, name

    def __str__(self) -> str:
        return " ".join(self.sentences) or "Not measured."

    def _repr_html_(self) -> str:
        return f'<p class="said" id="{as_html(self.name)}">{as_html(str(self))}</p>'


def said(sentence: str, rows: pd.DataFrame, *, name: str = "answer") -> Said:
    """One sentence for each row of a frame, with its columns where the sentence has them in braces, so that no number
    in prose is typed.

    Example:
        >>> print(said("{model} keeps {kept:.0%}.", pd.DataFrame({"model": ["a", "b"], "kept": [0.5, 0.25]})))
        a keeps 50%. b keeps 25%.
    """
    return Said([sentence.format(**row) for row in rows.to_dict("records")], name)
