"""What a reader does on the site, in a browser without a network."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

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
def test_figures_can_be_taken_away_and_pointed_at_and_pages_printed_and_searched(opened):
    page = opened("executed/02-question-answering", color_scheme="dark")
    for link, start in ((".picture", b"<?xml"), ("a[download$=csv]", b"model,")):
        address = page.locator(f"figure.measured .downloads {link}").first.evaluate("link => link.href")
        assert Path(unquote(urlsplit(address).path)).read_bytes().startswith(start)
    dot = page.locator("figure.measured .panel svg svg path[transform]").first
    dot.scroll_into_view_if_needed()
    dot.hover(force=True)  # another dot may lie on it
    assert "items" in page.locator("figure.measured .tip:visible").inner_text()
    page.emulate_media(media="print")
    assert page.locator("figure.measured .plot > img").first.is_visible()
    assert not page.locator("figure.measured .panels").first.is_visible()
    page.emulate_media(media="screen")
    page.keyboard.press("Control+k")
    page.keyboard.type("residual\n")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    plain = opened("executed/01-similarity", java_script_enabled=False).locator("figure.measured img").first
    assert plain.bounding_box()["width"] > 200, "without scripts figures are pictures"


def list_dropped(page) -> list[int]:
    cells = page.locator(".explorer .strip span").all()
    return [number for number, cell in enumerate(cells) if cell.get_attribute("class")]


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.thorough)])
def test_the_first_figure_is_moved_by_keyboard_and_its_address_shows_the_same(opened, width):
    page = opened("index", width)
    block, said = page.locator(".explorer .block"), page.locator(".explorer .cut")
    assert block.bounding_box()["y"] < 700 and list_dropped(page) == [13, 14, 15, 16]
    assert "layers 13 to 16, the 4 most similar of 28" in said.inner_text()
    assert "20% of MMLU's letters" in said.inner_text() and "98% of written facts" in said.inner_text()
    block.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    assert list_dropped(page) == [14, 15, 16] and page.url.endswith("&start=14&size=3")
    assert "the 3 most similar" in said.inner_text() and "Not measured: capitals' letters" not in said.inner_text()
    page.keyboard.press("End")
    assert list_dropped(page) == [25, 26, 27] and block.get_attribute("aria-valuetext") == "layers 25 to 27"
    assert "Not measured: " in said.inner_text(), "what was not measured is told"
    other = opened("explorer", width)
    other.goto(f"{other.url}#{page.url.partition('#')[2]}")
    assert list_dropped(other) == [25, 26, 27] and other.locator(".explorer .cut").inner_text() == said.inner_text()


def test_the_block_is_dragged_and_the_cuts_of_rules_are_one_click_away(opened):
    page = opened("explorer")
    box = page.locator(".explorer .block").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 1.5, box["y"] + 10, steps=4)
    page.mouse.up()
    assert list_dropped(page) == [17, 18, 19, 20]
    box = page.locator(".explorer .block").bounding_box()
    page.mouse.move(box["x"] + box["width"], box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 2000, box["y"] + 10, steps=4)
    page.mouse.up()
    assert list_dropped(page) == [*range(17, 28)], "an end that is dragged resizes the block"
    for _ in range(7):
        page.get_by_role("button", name="one layer less").click()
    page.get_by_role("button", name="the 4 before the last").click()
    assert list_dropped(page) == [23, 24, 25, 26]
    page.select_option(".explorer select", label="Gemma-3-270m")
    assert page.locator(".explorer .strip span").count() == 18
    assert "The whole model only guesses: " in page.locator(".explorer .others").inner_text()
    assert "model=Gemma-3-270m" in page.url


def test_without_scripts_the_first_figure_is_a_picture_and_a_sentence(opened):
    page = opened("index", 390, java_script_enabled=False)
    assert page.locator(".explorer .still").bounding_box()["width"] > 300
    assert "20% of MMLU's letters" in page.locator(".explorer .cut").inner_text()
    assert not page.locator(".explorer form").is_visible()
