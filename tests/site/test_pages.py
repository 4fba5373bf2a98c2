"""The site: built with warnings as errors, complete, free of outside resources. No browser here.

Notebooks whose page is out of date are run by the build itself.
"""

import html
import json
import re
import shlex
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from papermill.cli import _resolve_type

from book.extension import readme_figure, running, weight
from book.extension.contents import all_pages
from deeper_layers.report.claims import claims
from deeper_layers.report.statistics.topics import TOPICS
from tests.page import FIGURE, ROOT, numbers
from tests.site.looks import executed_pages
from tests.tiny import ALL_FAMILIES

MEASURES = "10-reproduction"  # the one notebook that shows only what it measures itself
OUTSIDE = ("mathjax", "thebe", "jsdelivr", "unpkg")


def test_every_page_of_the_contents_is_there_and_the_first_says_what_it_is(pages):
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    wanted = {f"{chapter['file']}.html" for part in contents["parts"] for chapter in part["chapters"]}
    assert wanted | {"index.html", "search.html"} <= set(pages)
    told = re.findall(r'<dt><a [^>]*href="([^"#]+)', pages["index.html"].text)
    assert set(told) == wanted - {"bibliography.html"}
    assert len(told) == len(set(told))


def test_the_page_of_families_has_each(pages):
    text = pages["families.html"].text
    assert "Not measured" not in text
    assert [name for name in ALL_FAMILIES if f"<p>{name}</p>" not in text] == []


def test_readme_shows_the_figure_of_the_page(site):
    assert readme_figure.FILE.read_bytes() == readme_figure.headline(), "run: python -m book.extension.readme_figure"


def test_links_images_and_scripts_exist(site, pages):
    missing = []
    for name, page in pages.items():
        for address in page.links + page.resources:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if not target.is_file():
                missing.append(f"{name}: {address}")
            elif parts.fragment and target.suffix == ".html":
                anchors = pages[target.relative_to(site).as_posix()].anchors
                if unquote(parts.fragment) not in anchors:
                    missing.append(f"{name}: {address}")
    assert not missing


def test_nothing_is_loaded_from_outside(site, pages):
    outside = []
    for name, page in pages.items():
        outside += [f"{name}: {a}" for a in page.resources if urlsplit(a).scheme not in ("", "data")]
        outside += [f"{name}: {a}" for a in page.resources if a.startswith("//")]
        outside += [f"{name}: {word}" for word in OUTSIDE if word in page.text.lower()]
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", sheet.read_text())
        outside += [f"{sheet.name}: {address}" for address in addresses]
    assert not outside


def test_formulas_are_written_into_the_page(pages):
    method = pages["method.html"].text
    assert method.count("<math ") > 10
    assert {f"({number})" for number in (1, 2, 3)} <= set(re.findall(r'class="eqno">(\(\d+\))', method))
    assert not re.search(r"<m[ion]>\\", method), "a command that the converter does not know"


def test_tables_are_tables(pages):
    """Tables in the Markdown of a notebook's output are not understood, and stay a line of strokes."""
    assert not [name for name, page in pages.items() if re.search(r"\|\s*:?-{2,}", page.text)]


def test_nothing_is_shown_by_its_type(pages):
    """An empty output of a notebook, say: <IPython.core.display.Markdown object>."""
    assert not [name for name, page in pages.items() if re.search(r"&lt;[\w.]+ object( at 0x\w+)?&gt;", page.text)]


def test_every_record_of_ours_is_drawn(pages):
    """One that is not would only be named in the build's output, so that results of others stop no book."""
    assert not [name for name, page in pages.items() if "Not drawn: " in page.text]


def test_plotting_scripts_only_where_there_is_a_figure(pages):
    for name, page in pages.items():
        assert bool(FIGURE.search(page.text)) == ("plotly.min.js" in page.text) == ("plots.js" in page.text), name


def test_the_first_page_shows_the_finding_and_the_headline_figure(pages):
    text = pages["index.html"].text
    assert len(FIGURE.findall(text)) == 2
    told = ["finding", "half-gone", "headline", "early-cliff", "given-back"]
    places = [text.index(f'id="{identifier}"') for identifier in told]
    assert places == sorted(places)
    assert "Not measured" not in pages["index.html"].text + pages["measured.html"].text


def test_a_page_states_its_weight(site, pages):
    for name, page in pages.items():
        found = re.search(r'class="page-weight">This page weighs (\d\.\d\d) MB', page.text)
        assert found, name
        assert float(found[1]) * 1e6 > (site / name).stat().st_size
        assert ("searchindex.js" in page.text) == (name == "search.html"), name
    icons = (site / weight.ICONS).read_text()
    assert len(icons) < 200_000
    used = set(re.findall(r"fa-solid fa-([a-z-]+)", pages["index.html"].text))
    assert len(used) > 3 and all(f'"{icon}":[' in icons or f"{icon}:[" in icons for icon in used)


def test_the_claims_page_is_complete(pages):
    text = pages["executed/09-claims.html"].text
    for claim in claims.CLAIMS:
        assert text.count(f'id="claim-{claim.identifier}"') == 1
    # of the claims, of the figures, of the tasks, and how many claims agree
    assert text.count('<th scope="row"') == len(claims.CLAIMS) + len(claims.FIGURES) + len(TOPICS) + 1
    assert 'id="result"' in text and 'id="result"' in pages["index.html"].text


def test_every_model_has_one_entry_and_its_pages_below_it(pages):
    """In the navigation of the first page: what belongs to a model lies folded below its own page."""
    navigation = pages["index.html"].text.partition('class="bd-links ')[2].partition("</nav>")[0]
    _, models = all_pages()
    assert models
    for of_model in models.values():
        for page in of_model:
            assert navigation.count(f'href="executed/{page.name}.html"') == 1
    top = re.findall(r'<li class="toctree-l1[^"]*"><a [^>]*href="executed/(model-[^"]+)\.html"', navigation)
    assert len(top) == len(models)


@pytest.mark.parametrize("kind", ["Figure", "Table"])
def test_figures_and_tables_are_numbered_within_their_page(pages, kind):
    for name, page in pages.items():
        if name != "genindex.html" and not name.startswith("_modules/"):
            count = (
                len(re.findall(r"<figure class=\"(?:measured|house)\"", page.text)) if kind == "Figure" else page.tables
            )
            assert numbers(page, kind) == list(range(1, count + 1)), f"{name}: a {kind.lower()} without a caption"
            assert "caption-number" not in page.text, f"{name}: numbers of Sphinx's own"


def test_an_executed_page_is_an_article_with_its_code_at_the_end(pages):
    for page in executed_pages():
        text = pages[f"executed/{page.name}.html"].text
        assert "cell_input" not in text and text.count('<details class="code-of-page">') == 1, page.name
        article, _, code = text.partition('<details class="code-of-page">')
        assert "papermill" in code and f"notebooks/{page.notebook}.ipynb" in code
        assert "trust_remote_code" not in article, f"{page.name} shows its parameters"


def test_the_line_at_the_end_of_a_page_is_the_record(pages):
    """As a shell reads it, and papermill after it."""
    for page in executed_pages():
        text = pages[f"executed/{page.name}.html"].text
        shown = re.search(r'<details class="code-of-page">.*?<pre>(.*?)</pre>', text, re.DOTALL)[1]
        words = shlex.split(html.unescape(re.sub("<[^>]*>", "", shown)))
        assert words[:3] == ["papermill", f"notebooks/{page.notebook}.ipynb", "out.ipynb"]
        given = dict(zip(words[4::3], map(_resolve_type, words[5::3])))
        wanted = page.record.parameters if page.record else {}
        assert {k: str(v) for k, v in given.items()} == {k: str(v) for k, v in wanted.items()}


def test_what_a_notebook_loaded_is_noted_and_not_shown(site):
    """The library's files among the modules of its kernel: those that take torch only where something is measured."""
    known = json.loads((ROOT / "book" / "executed" / "inputs.json").read_text())
    for page in executed_pages():
        code = known[page.name]["code"]
        assert "lib/deeper_layers/__init__.py" in code
        assert ("lib/deeper_layers/models/opening.py" in code) == running.may_measure(page), page.name
        assert page.notebook == MEASURES or not running.may_measure(page)
        sources = {cell.source for cell in nbformat.read(page.executed, 4).cells}
        assert not {running.LOADED, running.WITHOUT} & sources
