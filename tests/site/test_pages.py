"""The site: built with warnings as errors, complete, free of outside resources. No browser here."""

import html
import os
import re
from urllib.parse import unquote, urlsplit

import yaml

from deeper_layers_companion.results.places import AROUND as ROOT

OUTSIDE = re.compile(r"mathjax|thebe|jsdelivr|unpkg", re.IGNORECASE)
ADDRESS = re.compile(r"""<(\w+)\b[^>]*?\s(?:href|src|data|poster)="([^"]+)\"""")
SCRIPT = re.compile(r"(<script\b[^>]*>).*?</script>", re.DOTALL)
MOST_WORDS, OF_A_PAGE = 20_000, 900  # folded ones, figures, tables and code apart
FOLDED = re.compile(r"<(details|table|dl|script|style|pre|svg|math)\b.*?</\1>", re.DOTALL)


def test_the_pages_are_those_of_the_contents_and_can_be_read_in_an_hour(pages):
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    wanted = {f"{chapter['file']}.html" for part in contents["parts"] for chapter in part["chapters"]} | {"index.html"}
    assert wanted == set(pages) - {"search.html"} and len(wanted) == 17
    shown = {name: FOLDED.sub(" ", pages[name].partition("<article")[2].partition("</article>")[0]) for name in wanted}
    words = {name: len(re.sub(r"<[^>]*>", " ", text).split()) for name, text in shown.items()}
    assert sum(words.values()) < MOST_WORDS and max(words.values()) <= OF_A_PAGE, words


def test_links_images_and_scripts_exist_and_nothing_is_loaded_from_outside(site, pages):
    wrong = []
    for name, page in pages.items():
        for tag, address in ADDRESS.findall(SCRIPT.sub(r"\1", page)):
            parts = urlsplit(html.unescape(address))
            if parts.scheme or parts.netloc:
                wrong += [f"{name}: {address}"] * (tag not in ("a", "form") and parts.scheme != "data")
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            other = pages.get(os.path.relpath(target, site), "")
            anchor = f'id="{unquote(parts.fragment)}"'
            if not target.is_file() or (parts.fragment and other and anchor not in other):
                wrong.append(f"{name}: {address}")
        wrong += [f"{name}: {word}" for word in OUTSIDE.findall(page)]
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", sheet.read_text())
        wrong += [f"{sheet.name}: {address}" for address in addresses]
    assert not wrong


def test_what_notebooks_show_is_understood_has_its_data_and_its_code_folded_at_the_end(pages):
    method = pages["method.html"]
    assert method.count("<math ") > 10 and method.count('class="eqno">(') > 2, "formulas are written into the page"
    for name, page in pages.items():
        # no table that stays a line of strokes, object shown by its type, command that no formula knows, page unlinked
        assert not re.search(r"\|\s*:?-{2,}|&lt;[\w.]+ object( at 0x\w+)?&gt;|<m[ion]>\\|data-page=", page), name
        figures = re.findall(r'<figure class="measured".*?</figure>', page, re.DOTALL)
        for figure in figures:
            assert 'class="picture"' in figure and ".csv" in figure, name
            assert re.search(r"papermill notebooks/\d\d-[\w-]+\.ipynb out\.ipynb", figure), name
        assert bool(figures) == ("plotly.min.js" in page), name
        if name.startswith("executed/"):
            before, *code = page.split("Code of this page")
            assert len(code) == 1 and "cell_input" not in page and "trust_remote_code" not in before, name
