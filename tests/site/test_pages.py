"""The site: built with warnings as errors, complete, free of outside resources. No browser here."""

import re
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.site.conftest import ROOT, build

OUTSIDE = ("mathjax", "thebe", "jsdelivr", "unpkg")
MOST_WORDS, OF_A_PAGE, OF_THE_FIRST = 20_000, 900, 500  # folded ones, tables and code apart


def words_of(text: str) -> int:
    """Words of a page that a reader sees without unfolding anything, figures and code apart."""
    article = text.partition("<article")[2].partition("</article>")[0]
    for folded in ("details", "table", "dl", "script", "style", "pre", "svg", "math"):
        article = re.sub(rf"<{folded}\b.*?</{folded}>", " ", article, flags=re.DOTALL)
    return len(re.sub(r"<[^>]*>", " ", article).split())


def test_the_pages_are_those_of_the_contents(pages):
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    wanted = {f"{chapter['file']}.html" for part in contents["parts"] for chapter in part["chapters"]} | {"index.html"}
    assert wanted == set(pages) - {"search.html"}
    assert len(wanted) == 17


def test_the_site_can_be_read_in_an_hour(pages):
    words = {name: words_of(page.text) for name, page in pages.items() if name != "search.html"}
    assert sum(words.values()) < MOST_WORDS, words
    assert max(words.values()) <= OF_A_PAGE, words
    assert words_of(pages["index.html"].text.partition('id="three-ways-on"')[0] + "</article>") <= OF_THE_FIRST


def test_links_images_and_scripts_exist_and_nothing_is_loaded_from_outside(site, pages):
    wrong = []
    for name, page in pages.items():
        for address in page.links + page.resources:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            other = pages.get(target.relative_to(site).as_posix()) if target.is_relative_to(site) else None
            if not target.is_file() or (parts.fragment and other and unquote(parts.fragment) not in other.anchors):
                wrong.append(f"{name}: {address}")
        wrong += [f"{name}: {a}" for a in page.resources if urlsplit(a).scheme not in ("", "data") or a[:2] == "//"]
        wrong += [f"{name}: {word}" for word in OUTSIDE if word in page.text.lower()]
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", sheet.read_text())
        wrong += [f"{sheet.name}: {address}" for address in addresses]
    assert not wrong


def test_formulas_are_written_into_the_page(pages):
    method = pages["method.html"].text
    assert method.count("<math ") > 10
    assert {f"({number})" for number in (1, 2, 3)} <= set(re.findall(r'class="eqno">(\(\d+\))', method))
    assert not re.search(r"<m[ion]>\\", method), "a command that the converter does not know"


def test_what_notebooks_show_is_understood_has_its_data_and_its_code_folded_at_the_end(pages):
    for name, page in pages.items():
        # no table that stays a line of strokes, no object shown by its type
        assert not re.search(r"\|\s*:?-{2,}|&lt;[\w.]+ object( at 0x\w+)?&gt;", page.text), name
        figures = re.findall(r'<figure class="measured".*?</figure>', page.text, re.DOTALL)
        for figure in figures:
            assert 'class="picture"' in figure and ".csv" in figure, name
            assert re.search(r"papermill notebooks/\d\d-[\w-]+\.ipynb out\.ipynb", figure), name
        assert bool(figures) == ("plotly.min.js" in page.text), name
        if name.startswith("executed/"):
            assert "cell_input" not in page.text and page.text.count("Code of this page") == 1, name
            assert "trust_remote_code" not in page.text.partition("Code of this page")[0], f"{name} shows parameters"


@pytest.mark.thorough
def test_a_second_build_draws_nothing_again(site):
    drawn = sorted((site.parents[1] / "executed").iterdir())
    before = [path.stat().st_mtime_ns for path in drawn]
    assert build() == ""
    assert [path.stat().st_mtime_ns for path in drawn] == before
