"""Names that others gave are text in whatever language a page is written in: hostile ones come out as they went in."""

import csv
import html
import io
import json
import random
import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from deeper_layers_companion.report import figures, names
from tests import hostile

PIECES = [*hostile.NAMES, "\x00", "\u2028", "\x1b[31m", "<!--", "-->", "]]>", "\\", "&", "&#x3c;script>", "{", "}"]
PLAIN = ("name0", "name1", "name2", "name3")
QUOTED = "\"[^\"]*\"|'[^']*'"
TAG = re.compile(rf"<(?:[^<>\"']|{QUOTED})*>")


def drawn(count: int) -> list[list[str]]:
    """Four names each, put together of one to three pieces, always the same ones."""
    draw = random.Random(0)
    pieces = lambda: draw.choices(PIECES, k=draw.randint(1, 3))  # noqa: E731
    return [[draw.choice(["", " ", "\n"]).join(pieces()) for _ in PLAIN] for _ in range(count)]


def elements(page: str) -> list[str]:
    """The tags of a page, without the values of their attributes."""
    return [re.sub(QUOTED, "", tag) for tag in TAG.findall(page)]


def shown(page: str) -> list[str]:
    """The words between its tags."""
    between = TAG.sub("", page)
    assert "<" not in between
    return html.unescape(between).split()


def in_html(model, task, device, metric) -> str:
    table = pd.DataFrame({task + "0": [task, metric], metric + "1": [1.5, float("nan")]})
    styled = names.as_table(table, model, {metric + "1": "{:.1f}"}, missing=names.as_html(device))
    page = f"<p title='{names.as_html(task)}'>" + styled.set_uuid("x").to_html()
    return re.sub("<style.*?</style>", "", page, flags=re.DOTALL)


def in_markdown(*given) -> str:
    model, task, device, metric = map(names.as_markdown, given)
    text = f"# {model}\n{task}, 5 layers\n\n- **{device}**: x\n\n{metric} and {names.as_code(given[0])}"
    return MarkdownIt("commonmark").render(text)


@pytest.mark.parametrize(("make", "count"), [(in_html, 30), (in_markdown, 300)])
def test_hostile_names_give_the_elements_that_plain_ones_give_and_are_shown(make, count):
    plain = make(*PLAIN)
    for given in drawn(count):
        page, expected = make(*given), " ".join(shown(plain))
        for before, after in zip(PLAIN, given):
            expected = expected.replace(before, names.escape_invisible(after))
        assert (elements(page), shown(page)) == (elements(plain), expected.split()), given


def test_no_name_is_understood_by_plotly_or_a_spreadsheet():
    for model, task, device, metric in drawn(300):
        assert not re.search(r"[<{]", names.as_plotly(model)) and len(names.as_plotly(model)) < 6 * names.LONGEST
        rows = pd.DataFrame([[model, -1.5, -2], [task, 0.5, 3]], columns=[device, metric, "n"])
        head, *cells = csv.reader(io.StringIO(names.as_csv(rows)))
        assert [float(row[1]) for row in cells] == [-1.5, 0.5]
        for text in [*head, *(row[0] for row in cells)]:
            assert text.isprintable() and (text[:1] not in ("=", "+", "-", "@") or text == "-2")


def test_figures_show_hostile_names_as_text():
    given = "".join(piece for piece in PIECES if piece.isascii())  # the font of a picture does not have all others
    tags = []
    for name in ("a", given):
        same = {"model": name, "topic": name, "rule": name, "metric": name, "start": 1, "low": 0.4, "high": 0.6}
        rows = pd.DataFrame([same | {"value": 0.5, "size": i, "share": i / 4, "items": 9} for i in range(3)])
        made = [figures.curves(rows), figures.in_rows(rows, y="topic", hue="rule")]
        for figure in made:
            assert not re.search(r"<(?!br>|/?b>|/?extra>)", json.dumps(figure.live, default=str))
        tags.append(elements("".join(figure._repr_html_() for figure in made)))
    assert tags[0] == tags[1]
