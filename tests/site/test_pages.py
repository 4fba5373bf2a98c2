"""The site: built with warnings as errors, complete, free of outside resources. No browser here."""

import re
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.site.conftest import ROOT, build

OUTSIDE = re.compile(r"mathjax|thebe|jsdelivr|unpkg", re.IGNORECASE)
MOST_WORDS, OF_A_PAGE = 20_000, 900  # folded ones, figures, tables and code apart
FOLDED = re.compile(r"<(details|table|dl|script|style|pre|svg|math)\b.*?</\1>", re.DOTALL)


def test_the_pages_are_those_of_the_contents_and_can_be_read_in_an_hour(pages):
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    wanted = {f"{chapter['file']}.html" for part in contents["parts"] for chapter in part["chapters"]} | {"index.html"}
    assert wanted == set(pages) - {"search.html"} and len(wanted) == 17
    shown = {
        name: FOLDED.sub(" ", pages[name].text.partition("<article")[2].partition("</article>")[0]) for name in wanted
    }
    words = {name: len(re.sub(r"<[^>]*>", " ", text).split()) for name, text in shown.items()}
    assert sum(words.values()) < MOST_WORDS and max(words.values()) <= OF_A_PAGE, words


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
        wrong += [f"{name}: {word}" for word in OUTSIDE.findall(page.text)]
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", sheet.read_text())
        wrong += [f"{sheet.name}: {address}" for address in addresses]
    assert not wrong


def test_what_notebooks_show_is_understood_has_its_data_and_its_code_folded_at_the_end(pages):
    method = pages["method.html"].text
    assert method.count("<math ") > 10 and method.count('class="eqno">(') > 2, "formulas are written into the page"
    for name, page in pages.items():
        # no table that stays a line of strokes, object shown by its type, command that no formula knows, page unlinked
        assert not re.search(r"\|\s*:?-{2,}|&lt;[\w.]+ object( at 0x\w+)?&gt;|<m[ion]>\\|data-page=", page.text), name
        figures = re.findall(r'<figure class="measured".*?</figure>', page.text, re.DOTALL)
        for figure in figures:
            assert 'class="picture"' in figure and ".csv" in figure, name
            assert re.search(r"papermill notebooks/\d\d-[\w-]+\.ipynb out\.ipynb", figure), name
        assert bool(figures) == ("plotly.min.js" in page.text), name
        if name.startswith("executed/"):
            before, *code = page.text.split("Code of this page")
            assert len(code) == 1 and "cell_input" not in page.text and "trust_remote_code" not in before, name


@pytest.mark.thorough
def test_a_second_build_draws_nothing_again(site):
    drawn = sorted((ROOT / "book" / "executed").iterdir())
    before = [path.stat().st_mtime_ns for path in drawn]
    assert build() == "" and [path.stat().st_mtime_ns for path in drawn] == before
