"""The site: built with warnings as errors, complete, free of outside resources. No browser here."""

import html
import os
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from book import article
from deeper_layers_companion.results.places import AROUND as ROOT

OUTSIDE = re.compile(r"mathjax|thebe|jsdelivr|unpkg", re.IGNORECASE)
ADDRESS = re.compile(r"""<(\w+)\b[^>]*?\s(?:href|src|data|poster)="([^"]+)\"""")
SCRIPT = re.compile(r"(<script\b[^>]*>).*?</script>", re.DOTALL)
HEAVIEST = 800_000  # bytes of a page
MOST_WORDS, OF_A_PAGE = 20_000, 900  # folded ones, figures, tables and code apart
FOLDED = re.compile(r"<(details|table|dl|script|style|pre|svg|math)\b.*?</\1>", re.DOTALL)


def test_the_pages_are_those_of_the_contents_and_can_be_read_in_an_hour(pages):
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    wanted = {f"{chapter['file']}.html" for part in contents["parts"] for chapter in part["chapters"]} | {"index.html"}
    assert wanted == set(pages) - {"search.html"} and len(wanted) == 18
    shown = {name: FOLDED.sub(" ", pages[name].partition("<article")[2].partition("</article>")[0]) for name in wanted}
    words = {name: len(re.sub(r"<[^>]*>", " ", text).split()) for name, text in shown.items()}
    assert sum(words.values()) < MOST_WORDS and max(words.values()) <= OF_A_PAGE, words


def test_the_report_as_pdf_is_linked_and_has_every_piece_that_it_names(site, pages):
    (link,) = re.findall(r'href="([^"]+/article.pdf)"', pages["index.html"])
    content = (site / link).read_bytes()
    assert content.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", content)) <= 10
    pieces = article.read_pieces(article.list_names())
    missing = [name for name, piece in pieces.items() if not (piece["text"] or piece["svg"] or len(piece["rows"]))]
    assert pieces and not missing


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
    stands: dict[str, list[str]] = {}
    for name, page in pages.items():
        # no table that stays a line of strokes, object shown by its type, command that no formula knows, page unlinked
        assert not re.search(r"\|\s*:?-{2,}|&lt;[\w.]+ object( at 0x\w+)?&gt;|<m[ion]>\\|data-page=", page), name
        figures = re.findall(r'<figure class="measured".*?</figure>', page, re.DOTALL)
        for figure in figures:
            assert 'class="picture"' in figure and ".csv" in figure and "Figure " in figure, name
            assert re.search(r"python -m book\.extension\.figures \d\d-[\w-]+#[\w-]+ [\w-]+\.svg", figure), name
        assert bool(figures) == ("plots.js" in page) and len(page) < HEAVIEST, name
        stands[name] = re.findall(r'<figure class="measured"[^>]* id="([\w-]+)"', page)
        if name.startswith("executed/"):
            before, *code = page.split("Code of this page")
            assert len(code) == 1 and "cell_input" not in page and "trust_remote_code" not in before, name
    places = [place for names in stands.values() for place in names]
    assert len(set(places)) == len(places), "a figure on two pages"


def test_the_three_lines_of_pandas_answer_their_question(site, monkeypatch, capsys):
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    monkeypatch.chdir(site / "_static")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    printed = capsys.readouterr().out
    assert "Qwen2.5-Coder-1.5B-Instruct" in printed and "0.741" in printed, "the whole model's share of right answers"


@pytest.mark.thorough
@pytest.mark.parametrize("figure", ["01-similarity#texts", "02-question-answering#flips", "10-measured#hours"])
def test_the_command_under_a_figure_draws_that_figure(site, tmp_path, figure):
    notebook, _, name = figure.partition("#")
    page = (site / "executed" / f"{notebook}.html").read_text(encoding="utf-8")
    command = f"python -m book.extension.figures {figure} {name}.svg"
    assert command in html.unescape(page)
    target = tmp_path / f"{name}.svg"
    subprocess.run([sys.executable, "-m", "book.extension.figures", figure, target], cwd=ROOT, check=True, timeout=600)
    assert target.read_bytes() == (site / "_static" / f"{notebook[:2]}-{name}.svg").read_bytes()
