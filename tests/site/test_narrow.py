"""Every page on a screen 390 pixels wide. A file of its own, so that it runs beside the other width."""

from tests.site.looks import problems_of


def test_every_page_opens_without_a_network_and_is_accessible(browser, site, pages):
    assert not problems_of(browser, site, pages, 390, "light")
