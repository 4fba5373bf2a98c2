"""How pages look in a browser: figures drawn, inside the screen, nothing asked of others, no fault by axe.

On a screen 390 pixels wide, and on one of 1280 in dark, where letters are hardest to see. Three pages by default.
"""

import pytest

# without fetching style sheets anew, which a page opened as a file may not do
AXE = {"resultTypes": ["violations"], "preload": False}
SCREENS = [
    pytest.param(390, "light", AXE, id="narrow"),
    pytest.param(1280, "dark", AXE | {"runOnly": {"type": "rule", "values": ["color-contrast"]}}, id="wide"),
]
FEW = ("index.html", "explorer.html", "executed/07-claims.html")
SHORTER = "document.querySelectorAll('tbody tr:nth-child(n + 6)').forEach(row => row.remove())"  # rows are alike
NOT_DRAWN = "[...document.querySelectorAll('figure.measured:not([data-drawn])')].map(figure => figure.id)"
OPENED = "document.querySelectorAll('details').forEach(folded => { folded.open = true; })"


@pytest.mark.parametrize(("width", "scheme", "options"), SCREENS)
def test_three_pages_open_without_a_network_and_are_accessible(browser, site, width, scheme, options):
    assert not problems_of(browser, site, FEW, width, scheme, options)


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "scheme", "options"), SCREENS)
def test_every_page_does(browser, site, pages, width, scheme, options):
    assert not problems_of(browser, site, pages, width, scheme, options)


def problems_of(browser, site, names, width: int, scheme: str, options: dict) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    problems: list[str] = []
    name = ""

    def complain(what: str, value) -> None:
        problems.append(f"{name}: {what}: {value}")

    def request(asked) -> None:
        if not asked.url.startswith(("file://", "data:", "blob:")):
            complain("request to the outside", asked.url[:200])

    page.on("request", request)
    page.on("requestfailed", lambda asked: complain("failed request", asked.url[:200]))
    page.on("console", lambda message: complain("console", message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complain("error", error))
    for name in names:
        page.goto((site / name).as_uri())
        page.wait_for_load_state("load")
        try:
            page.wait_for_function(f"!{NOT_DRAWN}.length", timeout=60_000)
        except Exception:
            complain("not drawn", page.evaluate(NOT_DRAWN))
        for _ in range(2):  # as it opens, and with all that is folded
            wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            if wide[0] > wide[1] + 1:
                complain("wider than the screen", wide)
            page.evaluate(OPENED)
        page.evaluate(SHORTER)
        for fault in axe.run(page, options=options).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                complain(fault["id"], [node["target"] for node in fault["nodes"]][:4])
    page.close()
    return problems
