"""What a reader does on the site, in a browser without a network."""

import pytest


@pytest.fixture
def opened(browser, site):
    """A page of the site in the browser, of a screen of some width."""
    pages = []

    def at(name: str, width: int = 1280, **options):
        pages.append(browser.new_page(viewport={"width": width, "height": 844}, **options))
        pages[-1].goto((site / f"{name}.html").as_uri())
        return pages[-1]

    yield at
    for page in pages:
        page.close()


@pytest.mark.thorough
def test_figures_can_be_taken_away_and_lines_hidden_and_pages_printed_and_searched(opened):
    page = opened("executed/02-question-answering", color_scheme="dark")
    for link, start in ((".picture", b"<?xml"), ("a[download$=csv]", b"model,")):
        with page.expect_download() as download:
            page.locator(f"figure.measured .downloads {link}").first.click()
        assert download.value.path().read_bytes().startswith(start)
    page.locator("figure.measured .entry").first.click()
    hidden = "[...document.querySelectorAll('.live')].filter(plot => plot.data.some(of => of.visible === false)).length"
    assert page.evaluate(hidden) > 1, "in every panel"
    page.emulate_media(media="print")
    assert page.locator("figure.measured .plot > img").first.is_visible()
    assert not page.locator("figure.measured .live").first.is_visible()
    page.emulate_media(media="screen")
    page.keyboard.press("Control+k")
    page.keyboard.type("residual\n")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    plain = opened("executed/01-similarity", java_script_enabled=False).locator("figure.measured img").first
    assert plain.bounding_box()["width"] > 200, "without scripts figures are pictures"


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.thorough)])
def test_sliders_take_layers_away(opened, width):
    """By keyboard: another block, another size, the block of a rule, another model."""
    page = opened("explorer", width)
    page.wait_for_selector(".explorer[data-ready=true]")
    layers, tasks = page.locator(".explorer .stack span"), page.locator(".explorer .tasks")

    def dropped() -> list[int]:
        return [number - layers.count() for number, one in enumerate(layers.all()) if one.get_attribute("class")]

    def press(slider: str, key: str) -> None:
        page.focus(f".explorer .{slider} input")
        page.keyboard.press(key)

    before = tasks.inner_text()
    assert dropped() == [-4, -3, -2, -1]
    press("start", "ArrowLeft")
    assert dropped() == [-5, -4, -3, -2]
    assert tasks.inner_text() != before and {"keeps", "items"} <= {*tasks.inner_text().split()}
    page.get_by_label("simple heuristic").check()
    press("size", "ArrowRight")
    assert dropped() == [-6, -5, -4, -3, -2]
    page.select_option(".explorer select", label="Gemma-3-270m")
    assert layers.count() == 18 and "Gemma-3-270m without layers" in page.locator(".explorer .cut").inner_text()
    assert "The whole model only guesses: " in page.locator(".explorer .others").inner_text()


def test_the_first_screen_has_a_slider(opened):
    page = opened("index", 390)
    page.wait_for_selector(".explorer[data-ready=true]")
    slider = page.locator(".explorer .start input")
    assert slider.bounding_box()["y"] < 700 and not page.locator(".explorer select").is_visible()
