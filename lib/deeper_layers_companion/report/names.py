"""Names and numbers in words. Names of models, tasks and devices come from others: they are shown as they are, and
never parsed as markup. Each markup language of a page has one escaping function, here or in markup.py.
"""

import html
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from deeper_layers.markup import as_code as as_code
from deeper_layers.markup import as_html as as_html
from deeper_layers.markup import as_markdown as as_markdown
from deeper_layers.markup import escape_invisible as escape_invisible
from deeper_layers_companion.rules.table import DESCRIBED

MISSING = "said missing"  # the class of a sentence that says that nothing was measured
LONGEST = 64  # characters of a name in a picture
MANY = 7  # a table of more columns is too wide for the column of the text
# first words of titles that are no names
PLAIN = (
    "Answers",
    "Capitals",
    "Chosen",
    "New",
    "Packaged",
    "Written",
)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
# the first letter of a formula, full-width ones too
FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "＝",
    "＋",
    "－",
    "＠",
)


def shorten(text: str) -> str:
    """A name short enough for a picture: only the beginning and the end of a long one."""
    text = escape_invisible(text)
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 + 1 :]}"


def as_csv(rows: pd.DataFrame) -> str:
    """Rows as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it."""

    def cell(value):
        if not isinstance(value, str):
            return value
        # without line breaks, which not all programs read within a cell
        text = escape_invisible(value)
        if text.startswith(FORMULA) and not NUMBER.fullmatch(text):
            return f"'{text}"
        return text

    return rows.rename(columns=cell).map(cell).to_csv(index=False)


def as_table(rows: pd.DataFrame, caption: str, form=None, missing: str | None = None) -> Styler:
    """Rows as a table of a page. `form` is one format, or one for each column; `missing` stands in empty cells.

    Numbers stay numbers for their formats. Cells, heads and caption are escaped. A table of many columns has the class
    "full-width", for which the site's theme makes room.
    """

    def cell(value):
        if isinstance(value, str):
            return html.escape(escape_invisible(value), quote=False)
        return value

    cells = rows.reset_index(drop=True).map(cell)
    table = (
        cells.style.hide(axis="index")
        .format(form, na_rep=missing)
        .format_index(cell, axis="columns")
    )
    if len(cells.columns) > MANY:
        table = table.set_table_attributes('class="full-width"')
    return table.set_caption(cell(caption))


TITLES = tomllib.loads(Path(__file__).with_name("titles.toml").read_text(encoding="utf-8"))
TOPICS = TITLES["tasks"]
RULES = {name: rule.title for name, rule in DESCRIBED.items()} | TITLES["texts"]
# from the most capable on
FIRST = (
    "Qwen2.5-Coder-1.5B-Instruct",
    "Gemma-3-270m",
    "SmolLM2-135M-Instruct",
)


def task_title(task: str) -> str:
    """The title of a task: "MMLU by letter", "Capitals in words"; its own name if it has none."""
    return TOPICS.get(task, task)


def title_within(title: str) -> str:
    """A title within a sentence: "capitals in words", but "MMLU by letter"."""
    if title.partition(" ")[0] in PLAIN:
        return title[0].lower() + title[1:]
    return title


def rule_title(rule: str | None) -> str:
    """The title of a rule or a text: "similarity-informed", "random, draw 2", "C4"; its own name if it has none."""
    if rule is None or rule != rule:
        return "chosen by hand"
    return RULES.get(rule, rule)


def sort_names(names, first: Iterable[str]) -> list[str]:
    """The names sorted: those of `first` in its order, then the others by name."""
    names = list(names)
    return [
        *dict.fromkeys(name for name in first if name in names),
        *sorted({*names}.difference(first)),
    ]


def sort_models(names, first: Iterable[str] = ()) -> list[str]:
    """The names of models sorted: those of `first` in its order, a reader's own by name, and the published ones."""
    names = list(names)
    own = sorted({*names} - {*FIRST})
    return sort_names(names, (*first, *own, *FIRST))


def put_in_order(rows: pd.DataFrame, first: Iterable[str] = ()) -> pd.DataFrame:
    """Rows sorted by model as `sort_models` sorts them."""
    order = sort_models(rows["model"].unique(), first)
    return rows.sort_values(
        "model", key=lambda models: models.map(order.index), kind="stable", ignore_index=True
    )


def model_title(model: str) -> str:
    """A model's name, shortened for figures."""
    return model.rpartition("/")[2].removesuffix("-Instruct")


def join_words(words: Iterable[str]) -> str:
    """Words as a list in a sentence: "A, B and C"."""
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def join_verdicts(rows: pd.DataFrame, form: str = "{model}") -> str:
    """What became of one prediction in every model, in one sentence's words: "supported in A, at floor in B and C".
    `rows` have model and verdict; `form` names a model with other columns, like "{model} ({value:.0%})"."""
    by_verdict: dict[str, list[str]] = {}
    for row in put_in_order(rows).to_dict("records"):
        named = form.format(**row | {"model": model_title(row["model"])})
        by_verdict.setdefault(row["verdict"], []).append(named)
    return ", ".join(f"{verdict} in {join_words(models)}" for verdict, models in by_verdict.items())


def format_number(value, low=None, high=None, *, as_share: bool = False, digits: int = 2) -> str:
    """A number in prose: "0.91 (0.85 to 0.97)", or "11% (7 to 14%)". `value` may be an Estimate or a row of a frame."""
    if not isinstance(value, (int, float)):
        fields = value if isinstance(value, dict) else vars(value)
        value = fields["value"]
        low = fields["low"]
        high = fields["high"]
    if pd.isna(value):
        return "not measured"

    def form(number: int | float) -> str:
        style = f".{max(digits - 2, 0)}%" if as_share else f".{digits}f"
        return "never" if math.isinf(number) else f"{number:{style}}"

    if pd.isna(low) or math.isinf(low):
        return form(value)
    if low == high:
        return f"{form(value)} (the same in all draws)"
    return f"{form(value)} ({form(low).removesuffix('%')} to {form(high)})"


class Sentences:
    """Sentences that a notebook shows as HTML, with a name by which other pages include them."""

    def __init__(self, sentences: list[str], name: str):
        self.sentences = sentences
        self.name = name

    def __str__(self) -> str:
        return " ".join(self.sentences) or "Not measured."

    def _repr_html_(self) -> str:
        kind = "said" if self.sentences else MISSING  # which the book shows once a page
        return f'<p class="{kind}" id="{as_html(self.name)}">{as_html(str(self))}</p>'


def said_together(
    sentence: str, part: str, rows: pd.DataFrame, *, name: str = "answer"
) -> Sentences:
    """One sentence of all rows of a frame, with {parts} in it: `part`, with the columns of a row in it, for each. A
    sentence with {model} in it is one of each model, with the columns of its first row.

    Example:
        >>> rows = pd.DataFrame({"model": ["a", "b"], "kept": [1, 2]})
        >>> print(said_together("It keeps {parts}.", "{kept} in {model}", rows))
        It keeps 1 in a and 2 in b.
    """
    groups = [rows] if len(rows) else []
    if "{model}" in sentence:
        groups = [of_model for _, of_model in rows.groupby("model", sort=False)]
    sentences = []
    for group in groups:
        parts = join_words(said(part, group).sentences)
        sentences += said(sentence, group.head(1).assign(parts=parts)).sentences
    return Sentences(sentences, name)


def said(sentence: str, rows: pd.DataFrame, *, name: str = "answer") -> Sentences:
    """One sentence for each row of a frame, with the row's columns in place of {column}, so that no number in prose is
    typed by hand. Of a model its title stands there.

    Example:
        >>> print(said("{model} keeps {kept:.0%}.", pd.DataFrame({"model": ["a", "b"], "kept": [0.5, 0.25]})))
        a keeps 50%. b keeps 25%.
    """
    if "model" in rows:
        rows = rows.assign(model=rows["model"].map(model_title))
    return Sentences([sentence.format(**row) for row in rows.to_dict("records")], name)
