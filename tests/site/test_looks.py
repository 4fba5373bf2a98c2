"""How pages look in a browser: figures drawn, inside the screen, nothing asked of others, no fault by axe.

On a screen 390 pixels wide, and on one of 1280 in dark, where letters are hardest to see. Three pages by default.
"""

import pytest

# without fetching style sheets anew, which a page opened as a file may not do
AXE = {"resultTypes": ["violations"], "preload": False}
SCREENS = {
    "narrow": (390, "light", AXE),
    "wide": (1280, "dark", AXE | {"runOnly": {"type": "rule", "values": ["color-contrast"]}}),
}
FEW = ("index.html", "explorer.html", "executed/07-claims.html")
SHORTER = "document.querySelectorAll('tbody tr:nth-child(n + 6)').forEach(row => row.remove())"  # rows are alike
NOT_DRAWN = "[...document.querySelectorAll('figure.measured:not([data-drawn])')].map(figure => figure.id)"
OPENED = "document.querySelectorAll('details').forEach(folded => { folded.open = true; })"
WIDER = "document.documentElement.scrollWidth > innerWidth + 1"


@pytest.mark.parametrize("which", ["three pages", pytest.param("every page", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("screen", SCREENS)
def test_pages_open_without_a_network_and_are_accessible(screen, which, browser, site, pages):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    width, scheme, options = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    problems: list[tuple] = []

    def request(asked) -> None:
        if not asked.url.startswith(("file://", "data:", "blob:")):
            problems.append((page.url, "request to the outside", asked.url[:200]))

    page.on("request", request)
    page.on("requestfailed", lambda asked: problems.append((page.url, "failed request", asked.url[:200])))
    page.on("console", lambda said: problems.append((page.url, said.text)) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append((page.url, error)))
    for name in FEW if which == "three pages" else pages:
        page.goto((site / name).as_uri(), wait_until="load")
        try:
            page.wait_for_function(f"!{NOT_DRAWN}.length", timeout=60_000)
        except Exception:
            problems.append((name, "not drawn", page.evaluate(NOT_DRAWN)))
        for _ in range(2):  # as it opens, and with all that is folded
            problems += [(name, "wider than the screen")] * page.evaluate(WIDER)
            page.evaluate(OPENED)
        page.evaluate(SHORTER)
        for fault in axe.run(page, options=options).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                problems.append((name, fault["id"], [node["target"] for node in fault["nodes"]][:4]))
    page.close()
    assert not problems
