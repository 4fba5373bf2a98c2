"""The site: built with warnings as errors, complete, free of outside resources, alive in a browser without a network.

Notebooks whose page is out of date are run by the build itself.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

from book import readme_figure, weight
from deeper_layers.report import claims
from deeper_layers.report.evidence import TOPICS
from tests.page import FIGURE, Page
from tests.tiny import ALL_FAMILIES

ROOT = Path(__file__).resolve().parents[1]
# no graphics card and no background traffic: what is then requested, a page requested
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# without fetching style sheets anew, which a page opened as a file may not do
AXE = {"resultTypes": ["violations"], "preload": False}
OUTSIDE = ("mathjax", "thebe", "jsdelivr", "unpkg")
TABLES_ONLY = {"09-claims", "10-reproduction"}
HEAVIEST = {"index.html": 1_000_000}  # bytes of a page and all it loads, plotly apart
HEAVIER = 3_000_000  # of any other page


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("book")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "book/", "-W", "-n", "--keep-going"]
    done = subprocess.run([*command, "--path-output", folder], cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, "Page"]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html")) if is_page(path)}


def is_page(path: Path) -> bool:
    return "_static" not in path.parts


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
    assert readme_figure.FILE.read_bytes() == readme_figure.headline(), "run: python -m book.readme_figure"


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


def test_plotting_scripts_only_where_there_is_a_figure(pages):
    for name, page in pages.items():
        assert bool(FIGURE.search(page.text)) == ("plotly.min.js" in page.text) == ("plots.js" in page.text), name


def test_the_first_page_shows_the_headline_figure(pages):
    assert len(FIGURE.findall(pages["index.html"].text)) == 1
    assert "Not measured" not in pages["index.html"].text + pages["measured.html"].text


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def expected_figures(name: str) -> int:
    """How many figures a page must show: those its notebook drew, and the headline on the first page."""
    notebook = ROOT / "book" / Path(name).with_suffix(".ipynb")
    if not notebook.exists():
        return int(name == "index.html")
    if notebook.stem in TABLES_ONLY:
        return 0
    outputs = [output for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", [])]
    figures = sum(len(FIGURE.findall(output.get("data", {}).get("text/html", ""))) for output in outputs)
    assert figures, f"{name}: its notebook drew no figure"
    return figures


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_opens_without_a_network_and_is_accessible(browser, site, pages, width):
    """In light and in dark: complete, inside the screen, nothing asked of others, no serious fault by axe."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    problems = []
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme="light")
    for name in pages:
        page = context.new_page()
        complain = Complaints(name, problems)
        page.on("request", complain.request)
        page.on("requestfailed", lambda request, complain=complain: complain("failed request", request.url[:200]))
        page.on("console", complain.console)
        page.on("pageerror", lambda error, complain=complain: complain("error", error))
        page.goto((site / name).as_uri())
        page.wait_for_load_state("load")
        expected, drawn = expected_figures(name), 'figure.measured[data-drawn="true"]'
        if expected:
            page.locator(drawn).nth(expected - 1).wait_for(state="attached", timeout=60_000)
        counts = [page.locator(selector).count() for selector in ("figure.measured", drawn)]
        if counts != [expected, expected]:
            complain("figures, drawn figures, expected", (*counts, expected))
        complain.wider(page)
        complain.faults(axe.run(page, options=AXE))
        page.emulate_media(color_scheme="dark")
        page.locator('html[data-theme="dark"]').wait_for(state="attached")
        complain.wider(page)
        complain.faults(axe.run(page, options=AXE | {"runOnly": ["color-contrast"]}))
        if complain.bytes > HEAVIEST.get(name, HEAVIER):
            complain("bytes", complain.bytes)
        page.close()
    context.close()
    assert not problems


class Complaints:
    """What went wrong on one page, appended to a list."""

    def __init__(self, name: str, problems: list):
        self.name, self.problems, self.bytes = name, problems, 0

    def __call__(self, what: str, value) -> None:
        self.problems.append(f"{self.name}: {what}: {value}")

    def request(self, request) -> None:
        if not request.url.startswith(("file://", "data:", "blob:")):
            self("request to the outside", request.url[:200])
        path = Path(unquote(urlsplit(request.url).path))
        if request.url.startswith("file://") and path.name != "plotly.min.js" and path.exists():
            self.bytes += path.stat().st_size

    def wider(self, page) -> None:
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if wide[0] > wide[1] + 1:
            self("wider than the screen", wide)

    def faults(self, found) -> None:
        """What axe calls serious or critical."""
        for fault in found.response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                self(fault["id"], [node["target"] for node in fault["nodes"]])

    def console(self, message) -> None:
        if message.type == "error":
            self("console", message.text)


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


def test_figures_can_be_taken_away(browser, site):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    for link, start in ((".downloads .picture", b"<?xml"), (".downloads a[download$=csv]", b"task,rule,size")):
        with page.expect_download() as download:
            page.locator(link).click()
        assert download.value.path().read_bytes().startswith(start)
    page.close()


def test_a_printed_page_shows_its_pictures_and_no_navigation(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 844}, color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    page.locator('figure.measured[data-drawn="true"]').wait_for(state="attached")
    page.emulate_media(media="print")
    assert page.locator("figure.measured .plot > img").is_visible()
    for hidden in (
        "figure.measured .live",
        ".bd-sidebar-primary",
        ".bd-header-article",
        ".downloads",
        ".prev-next-area",
    ):
        assert not page.locator(hidden).first.is_visible(), hidden
    # dark letters, whatever the theme: paper is white
    colour = page.locator("article p").first.evaluate("e => getComputedStyle(e).color")
    assert sum(map(int, re.findall(r"\d+", colour)[:3])) < 200
    page.close()


def test_the_claims_page_is_complete(pages):
    text = pages["executed/09-claims.html"].text
    for claim in claims.CLAIMS:
        assert text.count(f'id="claim-{claim.identifier}"') == 1
    # of the claims, of the figures, of the tasks, and how many claims agree
    assert text.count('<th scope="row"') == len(claims.CLAIMS) + len(claims.FIGURES) + len(TOPICS) + 1
    assert 'id="result"' in text and 'id="result"' in pages["index.html"].text


def test_search_finds_pages_in_a_folder(browser, site):
    page = browser.new_page()
    page.goto((site / "executed" / "09-claims.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("residual\n")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    page.close()


def test_figures_without_scripts_are_pictures(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    box = page.locator("figure.measured img").first.bounding_box()
    assert box["width"] > 200 and box["height"] > 100
    context.close()


def test_the_slider_removes_layers(browser, site):
    """By keyboard: from the whole model to one of half its layers, each task with its interval or "not measured"."""
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((site / "explorer.html").as_uri())
    page.wait_for_selector("#explorer[data-ready=true]")
    assert page.locator(".explorer-stack .dropped").count() == 0
    layers = page.locator(".explorer-stack span").count()
    before = page.locator(".explorer-tasks").inner_text()
    page.focus("#explorer-size")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator(".explorer-stack .dropped").count() == 5
    assert f"5 of {layers}" in page.locator(".explorer-cut").inner_text()
    after = page.locator(".explorer-tasks").inner_text()
    assert after != before and "of answers flip" in after and " items" in after
    page.select_option("#explorer-rule", label="simple heuristic")
    assert page.locator(".explorer-stack .dropped").count() == 5
    assert page.locator(".explorer-stack span").nth(layers - 2).get_attribute("class") == "dropped"
    facts = dict(zip(page.locator(".explorer dt").all_inner_texts(), page.locator(".explorer dd").all_inner_texts()))
    assert {"Parameters", "Memory of the weights", "Reading a prompt takes", "Writing takes"} <= set(facts)
    titles = page.locator(".explorer .task .title").all_inner_texts()
    assert len(titles) == len(set(titles)) > 1
    page.close()
