"""What a reader does on the site, in a browser without a network."""

import re


def test_figures_can_be_taken_away(browser, site):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    for link, start in (
        ("#headline .downloads .picture", b"<?xml"),
        ("#headline .downloads a[download$=csv]", b"task,rule,size"),
    ):
        with page.expect_download() as download:
            page.locator(link).click()
        assert download.value.path().read_bytes().startswith(start)
    page.close()


def test_a_printed_page_shows_its_pictures_and_no_navigation(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 844}, color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    page.locator('#headline[data-drawn="true"]').wait_for(state="attached")
    page.emulate_media(media="print")
    assert page.locator("#headline .plot > img").is_visible()
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


def test_the_code_of_a_page_is_folded_and_its_command_can_be_copied(browser, site):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto((site / "executed" / "02-question-answering.html").as_uri())
    code = page.locator("details.code-of-page")
    assert not code.locator("pre").first.is_visible()
    code.locator("summary").click()
    assert code.locator("pre").first.inner_text().startswith("papermill notebooks/02-question-answering.ipynb")
    assert code.locator("button.copybtn").count() == 2
    context.close()


def test_the_house_is_drawn_in_light_and_in_dark(browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 844}, color_scheme="light")
    page.goto((site / "house.html").as_uri())
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.locator(f'html[data-theme="{scheme}"]').wait_for(state="attached")
        text, box = (page.locator(f"figure.house .room {part}").first for part in ("text", "rect"))
        colours.append([element.evaluate("e => getComputedStyle(e).fill") for element in (text, box)])
    assert colours[0][0] == colours[1][1] or len({*colours[0], *colours[1]}) == 4
    page.close()
