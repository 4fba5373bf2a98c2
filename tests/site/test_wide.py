"""Every page on a screen 1280 pixels wide, in dark, where letters are hardest to see."""

from tests.site.looks import CONTRAST, problems_of


def test_every_page_opens_without_a_network_and_can_be_read(browser, site, pages):
    assert not problems_of(browser, site, pages, 1280, "dark", CONTRAST)
