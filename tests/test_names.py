"""Names that others gave are text in whatever language a page is written in: hostile ones come out as they went in."""

import csv
import io
import json
import random
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from book.extension import captions, contents, measured, pages, titles
from deeper_layers.cuts import Cut
from deeper_layers.report import names
from deeper_layers.report.claims import claims
from deeper_layers.report.claims.verdicts import UNMEASURED, Obstacle, Ruling
from deeper_layers.report.figures import paper_figures
from deeper_layers.report.statistics.curves import COLUMNS
from deeper_layers.results.records import Record
from deeper_layers.results.units import all_units, write_unit
from tests import hostile
from tests import notebook as notebooks

PIECES = [
    *hostile.NAMES,
    "\x00",
    "\u2028",
    "\x1b[31m",
    "<!--",
    "-->",
    "]]>",
    "\\",
    "&",
    "&#x3c;script>",
    "{",
    "}",
]
PUBLISHED = "SmolLM2-135M-Instruct"
# what notebooks show: text, tables, figures
OURS = {"p", "strong", "em", "code", "ul", "li", "figure", "div", "img", "script", "figcaption", "small", "span", "a",
        "i", "table", "style", "thead", "tbody", "tr", "th", "td", "caption"}  # fmt: skip
COMMONMARK = MarkdownIt("commonmark")


def combinations(count: int) -> list[tuple[str, ...]]:
    """A model, a task, a device, a metric: each put together of one to three pieces, always the same ones."""
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


def same_page(make, given: tuple[str, ...]) -> str:
    """The text of what `make` makes of hostile names: it has the elements that plain names give, and no other."""
    plain = tuple(f"name{number}" for number in range(len(given)))
    found, expected = Elements(make(*given)), Elements(make(*plain))
    assert found.elements == expected.elements, given
    shown = expected.text
    for before, after in zip(plain, given):
        shown = shown.replace(before, names.visible(after))
    assert " ".join(found.text.split()) == " ".join(shown.split()), given
    return found.text


def in_html(model, task, device, metric) -> str:
    model, task, device, metric = map(names.as_html, (model, task, device, metric))
    return f"<p title='{task}' class=\"{device}\">{model}, <b>{metric}</b></p>"


def in_table(model, task, device, metric) -> str:
    table = pd.DataFrame({task + "0": [task, metric], metric + "1": [1.5, float("nan")]})
    styled = names.as_table(table, model, {metric + "1": "{:.1f}"}, missing=names.as_html(device))
    return styled.set_uuid("x").to_html()


def in_claims(model, task, device, metric) -> str:
    rulings = {
        claim.identifier: {model: [Ruling(task, [], Obstacle(UNMEASURED, device), topic=metric)]}
        for claim in claims.CLAIMS
    }
    parts = claims.summary_table, claims.figure_table, claims.details, claims.result
    return captions.numbered("".join(part(rulings) for part in parts))


def in_markdown(model, task, device, metric) -> str:
    lines = [
        f"# {names.as_markdown(model)}",
        f"{names.as_markdown(task)}, 5 layers",
        "",
        f"- **{names.as_markdown(device)}**: x",
    ]
    return COMMONMARK.render("\n".join([*lines, "", f"{names.as_markdown(metric)} and {names.as_code(model)}"]))


@pytest.mark.parametrize(("columns", "wide"), [(7, False), (8, True)])
def test_a_table_of_many_columns_may_be_wider_than_the_text(columns, wide):
    table = names.as_table(pd.DataFrame([range(columns)]), "so many")
    assert ('class="full-width"' in table.to_html()) is wide


def test_no_name_is_markup():
    for given in combinations(300):
        same_page(in_html, given)
        same_page(in_markdown, given)
    for given in combinations(20):
        same_page(in_claims, given)
        same_page(in_table, given)


@pytest.mark.parametrize("language", ["plotly", "csv", "navigation", "search", "title"])
def test_no_name_is_understood(language):
    for given in combinations(300):
        model, task, device, metric = given
        if language == "plotly":
            text = names.as_plotly(model)
            assert not re.search(r"[<{]", text) and len(text) < 6 * names.LONGEST
        elif language == "csv":
            rows = pd.DataFrame([[model, -1.5, -2], [task, 0.5, 3]], columns=[device, metric, "n"])
            (head, *cells) = csv.reader(io.StringIO(names.as_csv(rows)))
            assert len(cells) == 2 and [float(row[1]) for row in cells] == [-1.5, 0.5]
            for text in [*head, cells[0][0], cells[1][0]]:
                assert text.isprintable() and (text[:1] not in ("=", "+", "-", "@") or text == "-2")
        elif language == "navigation":
            record = Record(
                "01-similarity", model, {"model": model}, task, None, device, pages.ROOT / "a" / "b" / "c.json"
            )
            toc = contents.with_models({"parts": []}, pages.of_models([record]))
            ((entry,),) = [part["chapters"] for part in yaml.safe_load(yaml.safe_dump(toc))["parts"]]
            assert entry["file"] == "executed/model-a" and entry["sections"][0]["title"].isprintable()
        elif language == "search":
            index = f"{titles.INDEX}{json.dumps({'alltitles': {model: []}, 'titles': ['<b>']})})"
            assert titles.as_text(titles.as_text(index)) == titles.as_text(index)
            found = json.loads(titles.as_text(index)[len(titles.INDEX) : -1])
            assert not any("<" in title for title in found["alltitles"]) and found["titles"] == ["<b>"]
        else:
            context = {"pagetitle": model, "root_title": task}
            titles.in_page(None, "page", "page.html", context, None)
            assert Elements(" ".join(context.values())).elements == []


def test_a_table_of_measurements_shows_names_as_text():
    for given in combinations(30):
        (box,) = [measured.table(given[0], [{given[1]: given[2], "n": given[3]}])]
        assert [text.astext() for text in box.findall(lambda node: node.tagname == "entry")] == [
            names.visible(given[1]), "n", names.visible(given[2]), names.visible(given[3]),
        ]  # fmt: skip
        assert measured.folded(given[0], [{"n": 1}])[0].astext().count("<") == 3


def test_figures_show_hostile_names():
    """One of each kind: nothing in them but what plain names give, and what a live plot draws is text."""
    cuts = [Cut(0, 0), Cut(2, 1), Cut(1, 2)]

    def drawn(model, task, device, metric) -> str:
        rows = [
            (task, rule, c.size, c.start, c.size / 4, 0.5, 0.4, 0.6, 9, metric) for c in cuts for rule in ("a", "b")
        ]
        rows = pd.DataFrame(rows, columns=COLUMNS)
        options = {"tasks": {task: task}, "model": model, "provenance": device}
        made = [
            paper_figures.accuracy_curves(rows, {task: {"chance": 0.25}}, rules={"a": model, "b": device}, **options),
            paper_figures.headline(rows, {}, rule="a", **options),
            paper_figures.training_curves({device: pd.DataFrame({"tokens": [1, 2], "loss": [2.0, 1.0]})}, model=model),
        ]
        for figure in made:
            plot = figure.interactive.to_plotly_json()
            for text in texts_of(plot):
                assert names.as_plotly(model) in text or "<script" not in text
                assert not re.search(r"<(?!br>|/?extra>|/?span)", text), text
        return re.sub(r"base64,[^\"]*", "", "".join(figure.saying(task)._repr_html_() for figure in made))

    ours = [piece for piece in PIECES if piece.isascii()]  # the font of a picture does not have all others
    given = ("".join(ours[0::3]), "".join(ours[1::3]), "".join(ours[2::3]), ours[0])
    assert Elements(drawn(*given)).elements == Elements(drawn("a", "b", "c", "d")).elements


def texts_of(plot) -> list[str]:
    """Every text in a live plot."""
    if isinstance(plot, str):
        return [plot]
    parts = plot.values() if isinstance(plot, dict) else plot if isinstance(plot, list | tuple | np.ndarray) else ()
    return [text for part in parts for text in texts_of(part)]


@pytest.fixture(scope="module")
def renamed(tmp_path_factory):
    """The published units of one model once more, by a hostile name, on a hostile device, with hostile weights."""
    name, folder = "".join(hostile.NAMES[:6]), tmp_path_factory.mktemp("results")
    units = [unit for unit in all_units() if unit.key["model"]["name"] == PUBLISHED]
    files: dict[str, str] = {}
    for unit in sorted(units, key=lambda unit: "units" in unit.details):  # groups after the tasks that they name
        key = unit.key | {"model": unit.key["model"] | {"name": name}}
        details = unit.details | {"weights": name}
        if "units" in details:
            details["units"] = [files[part] for part in details["units"]]
        provenance = unit.provenance | {"device": name}
        files[unit.path.name] = write_unit(unit.kind, unit.name, key, provenance, unit.rows, details, folder).path.name
    return name, folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook", ["02-question-answering", "03-healing", "04-reasoning", "05-ablations", "11-shots"]
)
def test_notebooks_show_hostile_names(notebook, renamed, monkeypatch):
    as_text = notebooks.as_text

    def in_html(value) -> str:
        return COMMONMARK.render(as_text(value)) if hasattr(value, "_repr_markdown_") else as_text(value)

    monkeypatch.setattr(notebooks, "as_text", in_html)
    name, folder = renamed
    dtype = {"dtype": "bfloat16"} if notebook == "11-shots" else {}
    page = Elements(notebooks.run(notebook, model=name, measure=False, results=str(folder), **dtype))
    assert {tag for tag, _ in page.elements} <= OURS
    assert not [which for _, which in page.elements if any(attribute.startswith("on") for attribute in which)]
    assert page.text.count(names.visible(name)) > 1
