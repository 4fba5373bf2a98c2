"""Names that others gave are text in whatever language a page is written in: hostile ones come out as they went in."""

import csv
import io
import random
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from deeper_layers.report import figures, names
from tests import hostile

PIECES = [*hostile.NAMES, "\x00", "\u2028", "\x1b[31m", "<!--", "-->", "]]>", "\\", "&", "&#x3c;script>", "{", "}"]
COMMONMARK = MarkdownIt("commonmark")


def combinations(count: int) -> list[tuple[str, ...]]:
    """Four names each, put together of one to three pieces, always the same ones."""
    draw = random.Random(0)

    def name() -> str:
        return draw.choice(["", " ", "\n"]).join(draw.choices(PIECES, k=draw.randint(1, 3)))

    return [(name(), name(), name(), name()) for _ in range(count)]


class Elements(HTMLParser):
    """The elements of a text of HTML with their attributes, and the text between them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)
        self.close()
        assert not self.rawdata, "it ends within a tag"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(sorted(name for name, _ in attributes))))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    handle_decl = unknown_decl = handle_pi = handle_comment


def in_html(model, task, device, metric) -> str:
    model, task, device, metric = map(names.as_html, (model, task, device, metric))
    return f"<p title='{task}' class=\"{device}\">{model}, <b>{metric}</b></p>"


def in_table(model, task, device, metric) -> str:
    table = pd.DataFrame({task + "0": [task, metric], metric + "1": [1.5, float("nan")]})
    styled = names.as_table(table, model, {metric + "1": "{:.1f}"}, missing=names.as_html(device))
    return styled.set_uuid("x").to_html()


def in_markdown(model, task, device, metric) -> str:
    of_model, task, device, metric = map(names.as_markdown, (model, task, device, metric))
    text = f"# {of_model}\n{task}, 5 layers\n\n- **{device}**: x\n\n{metric} and {names.as_code(model)}"
    return COMMONMARK.render(text)


@pytest.mark.parametrize(("make", "count"), [(in_html, 300), (in_markdown, 300), (in_table, 20)])
def test_no_name_is_markup(make, count):
    """What is made of hostile names has the elements that plain names give, and no other, and shows the names."""
    plain = ("name0", "name1", "name2", "name3")
    expected = Elements(make(*plain))
    for given in combinations(count):
        found, shown = Elements(make(*given)), expected.text
        assert found.elements == expected.elements, given
        for before, after in zip(plain, given):
            shown = shown.replace(before, names.visible(after))
        assert " ".join(found.text.split()) == " ".join(shown.split()), given


def test_no_name_is_understood_by_plotly_or_a_spreadsheet():
    for model, task, device, metric in combinations(300):
        text = names.as_plotly(model)
        assert not re.search(r"[<{]", text) and len(text) < 6 * names.LONGEST
        rows = pd.DataFrame([[model, -1.5, -2], [task, 0.5, 3]], columns=[device, metric, "n"])
        (head, *cells) = csv.reader(io.StringIO(names.as_csv(rows)))
        assert len(cells) == 2 and [float(row[1]) for row in cells] == [-1.5, 0.5]
        for text in [*head, cells[0][0], cells[1][0]]:
            assert text.isprintable() and (text[:1] not in ("=", "+", "-", "@") or text == "-2")


@pytest.mark.parametrize(("columns", "wide"), [(7, False), (8, True)])
def test_a_table_of_many_columns_may_be_wider_than_the_text(columns, wide):
    table = names.as_table(pd.DataFrame([range(columns)]), "so many")
    assert ('class="full-width"' in table.to_html()) is wide


def test_figures_show_hostile_names():
    """One of each kind: nothing in them but what plain names give, and what a live plot draws is text."""

    def drawn(model, task, device, metric) -> str:
        same = {"model": model, "topic": task, "start": 1, "value": 0.5, "low": 0.4, "high": 0.6, "metric": metric}
        rows = [(rule, size, size / 4) for size in (0, 1, 2) for rule in (device, "similarity")]
        rows = pd.DataFrame(rows, columns=["rule", "size", "share"]).assign(**same, items=9)
        steps = pd.DataFrame({"model": model, "healing": device, "size": 2, "path": "p", "tokens": [1.0, 2.0]})
        look = {"x": "tokens", "y": "loss", "hue": "healing", "apart": "path", "shade": "size", "row": None}
        made = [figures.curves(rows), figures.in_rows(rows, y="topic", hue="rule")]
        made.append(figures.curves(steps.assign(loss=[2.0, 1.0]), **look))
        for text in (text for figure in made for text in texts_of(figure.live)):
            assert not re.search(r"<(?!br>|/?b>|/?extra>)", text), text
        return re.sub(r"base64,[^\"]*", "", "".join(figure._repr_html_() for figure in made))

    ours = [piece for piece in PIECES if piece.isascii()]  # the font of a picture does not have all others
    given = ("".join(ours[0::3]), "".join(ours[1::3]), "".join(ours[2::3]), ours[0])
    assert Elements(drawn(*given)).elements == Elements(drawn("a", "b", "c", "d")).elements


def texts_of(plot) -> list[str]:
    """Every text in a live plot."""
    parts = plot.values() if isinstance(plot, dict) else plot if isinstance(plot, list | tuple) else ()
    return [plot] if isinstance(plot, str) else [text for part in parts for text in texts_of(part)]
