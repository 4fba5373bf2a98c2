"""Names that others gave are text in whatever language a page is written in: hostile ones come out as they went in."""

import csv
import io
import json
import random
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from deeper_layers.report import figures, names
from tests import hostile

PIECES = [*hostile.NAMES, "\x00", "\u2028", "\x1b[31m", "<!--", "-->", "]]>", "\\", "&", "&#x3c;script>", "{", "}"]
PLAIN = ("name0", "name1", "name2", "name3")


def drawn(count: int) -> list[list[str]]:
    """Four names each, put together of one to three pieces, always the same ones."""
    draw = random.Random(0)
    pieces = lambda: draw.choices(PIECES, k=draw.randint(1, 3))  # noqa: E731
    return [[draw.choice(["", " ", "\n"]).join(pieces()) for _ in PLAIN] for _ in range(count)]


class Elements(HTMLParser):
    """The elements of a text of HTML with their attributes, and the text between them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)
        self.close()
        assert not self.rawdata, "it ends within a tag"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, sorted(name for name, _ in attributes)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    handle_decl = unknown_decl = handle_pi = handle_comment


def in_html(model, task, device, metric) -> str:
    table = pd.DataFrame({task + "0": [task, metric], metric + "1": [1.5, float("nan")]})
    styled = names.as_table(table, model, {metric + "1": "{:.1f}"}, missing=names.as_html(device))
    return f"<p title='{names.as_html(task)}'>" + styled.set_uuid("x").to_html()


def in_markdown(*given) -> str:
    model, task, device, metric = map(names.as_markdown, given)
    text = f"# {model}\n{task}, 5 layers\n\n- **{device}**: x\n\n{metric} and {names.as_code(given[0])}"
    return MarkdownIt("commonmark").render(text)


@pytest.mark.parametrize(("make", "count"), [(in_html, 30), (in_markdown, 300)])
def test_hostile_names_give_the_elements_that_plain_ones_give_and_are_shown(make, count):
    expected = Elements(make(*PLAIN))
    for given in drawn(count):
        found, shown = Elements(make(*given)), expected.text
        for before, after in zip(PLAIN, given):
            shown = shown.replace(before, names.visible(after))
        assert (found.elements, found.text.split()) == (expected.elements, shown.split()), given


def test_no_name_is_understood_by_plotly_or_a_spreadsheet():
    for model, task, device, metric in drawn(300):
        assert not re.search(r"[<{]", names.as_plotly(model)) and len(names.as_plotly(model)) < 6 * names.LONGEST
        rows = pd.DataFrame([[model, -1.5, -2], [task, 0.5, 3]], columns=[device, metric, "n"])
        head, *cells = csv.reader(io.StringIO(names.as_csv(rows)))
        assert [float(row[1]) for row in cells] == [-1.5, 0.5]
        for text in [*head, *(row[0] for row in cells)]:
            assert text.isprintable() and (text[:1] not in ("=", "+", "-", "@") or text == "-2")


def test_figures_show_hostile_names_as_text():
    def in_figures(model, task, device, metric) -> str:
        same = {"model": model, "topic": task, "start": 1, "value": 0.5, "low": 0.4, "high": 0.6, "metric": metric}
        rows = pd.DataFrame([same | {"rule": device, "size": size, "share": size / 4, "items": 9} for size in range(3)])
        steps = rows.assign(healing=device, path="p", tokens=[0.0, 1.0, 2.0], loss=[2.0, 1.0, 1.0])
        look = {"x": "tokens", "y": "loss", "hue": "healing", "apart": "path", "shade": "size", "row": None}
        made = [figures.curves(rows), figures.in_rows(rows, y="topic", hue="rule"), figures.curves(steps, **look)]
        for figure in made:
            assert not re.search(r"<(?!br>|/?b>|/?extra>)", json.dumps(figure.live, default=str))
        return re.sub(r"base64,[^\"]*", "", "".join(figure._repr_html_() for figure in made))

    ours = [piece for piece in PIECES if piece.isascii()]  # the font of a picture does not have all others
    given = ("".join(ours[0::3]), "".join(ours[1::3]), "".join(ours[2::3]), ours[0])
    assert Elements(in_figures(*given)).elements == Elements(in_figures("a", "b", "c", "d")).elements
