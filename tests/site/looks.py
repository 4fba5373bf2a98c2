"""How a page is looked at in a browser: complete, inside the screen, nothing asked of others, no fault by axe."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from book.extension.contents import all_pages
from tests.page import FIGURE, ROOT

# without fetching style sheets anew, which a page opened as a file may not do
AXE = {"resultTypes": ["violations"], "preload": False}
SHORTER = "document.querySelectorAll('tbody tr:nth-child(n + 6)').forEach(row => row.remove())"  # rows are alike
CONTRAST = AXE | {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
TABLES_ONLY = {"10-reproduction", "15-standards"}
HEAVIEST = {"index.html": 1_000_000}  # bytes of a page and all it loads, plotly apart
HEAVIER = 3_000_000  # of any other page
WIDE = 1000  # pixels


def kind_of(name: str) -> str:
    """What a page is one of: pages of one notebook, and of source code, differ in their content alone."""
    folder, _, rest = name.partition("/")
    by_notebook = {f"{page.name}.html": page.notebook for page in executed_pages()}
    return by_notebook.get(rest, name) if folder == "executed" else "_modules" if folder == "_modules" else name


def executed_pages() -> list:
    told, models = all_pages()
    return [*told, *sum(models.values(), [])]


def problems_of(browser, site: Path, names, width: int) -> list[str]:
    """What is wrong on some pages on a screen of one width, in light and, one page of each kind, in dark.

    axe, which takes most of the time, looks at one page of each kind: in light on a narrow screen, in dark on a wide
    one, there for its contrast, and on the first page for all that is beside the text. A wide screen shows one page of
    each kind alone: pages of one kind can differ in what does not fit, and that shows on the narrow one.
    """
    looked_at: set[str] = set()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme="light")
    page = context.new_page()  # one for all: its process keeps what it has compiled of plotly
    complain = Complaints(page)
    for name in names:
        kind = kind_of(name)
        first = kind not in looked_at
        looked_at.add(kind)
        if not first and (width >= WIDE or kind == "_modules"):
            continue
        complain.begin(name)
        page.goto((site / name).as_uri())
        page.wait_for_load_state("load")
        expected, drawn = expected_figures(name), 'figure.measured[data-drawn="true"]'
        if expected:
            page.locator(drawn).nth(expected - 1).wait_for(state="attached", timeout=60_000)
        counts = [page.locator(selector).count() for selector in ("figure.measured", drawn)]
        if counts != [expected, expected]:
            complain("figures, drawn figures, expected", (*counts, expected))
        # the code at the end is a part of the page, and folded in the same way everywhere
        page.evaluate("document.querySelectorAll('details').forEach(folded => { folded.open = true; })")
        complain.wider()
        if first and width < WIDE:
            page.evaluate(SHORTER)
            complain.faults(axe.run(page, options=AXE))
        if first:
            page.emulate_media(color_scheme="dark")
            page.locator('html[data-theme="dark"]').wait_for(state="attached")
            complain.wider()
            if width >= WIDE:
                page.evaluate(SHORTER)
                complain.faults(axe.run(page, options=AXE if len(looked_at) == 1 else CONTRAST))
            page.emulate_media(color_scheme="light")
        if complain.bytes > HEAVIEST.get(name, HEAVIER):
            complain("bytes", complain.bytes)
    context.close()
    return complain.problems


def expected_figures(name: str) -> int:
    """How many figures a page must show: those its notebook drew, and two on the first page."""
    notebook = ROOT / "book" / Path(name).with_suffix(".ipynb")
    if not notebook.exists():
        return 2 * int(name == "index.html")
    if notebook.stem in TABLES_ONLY:
        return 0
    outputs = [output for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", [])]
    figures = sum(len(FIGURE.findall(output.get("data", {}).get("text/html", ""))) for output in outputs)
    assert figures, f"{name}: its notebook drew no figure"
    return figures


class Complaints:
    """What goes wrong while a browser's page opens one page of the site after another."""

    def __init__(self, page):
        self.page, self.problems = page, []
        page.on("request", self.request)
        page.on("requestfailed", lambda request: self("failed request", request.url[:200]))
        page.on("console", self.console)
        page.on("pageerror", lambda error: self("error", error))

    def begin(self, name: str) -> None:
        self.name, self.bytes = name, 0

    def __call__(self, what: str, value) -> None:
        self.problems.append(f"{self.name}: {what}: {value}")

    def request(self, request) -> None:
        if not request.url.startswith(("file://", "data:", "blob:")):
            self("request to the outside", request.url[:200])
        path = Path(unquote(urlsplit(request.url).path))
        if request.url.startswith("file://") and path.name != "plotly.min.js" and path.exists():
            self.bytes += path.stat().st_size

    def wider(self) -> None:
        wide = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
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
