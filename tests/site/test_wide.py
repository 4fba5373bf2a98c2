"""One page of each kind on a screen 1280 pixels wide. A file of its own, so that it runs beside the other widths."""

from tests.site.looks import problems_of


def test_pages_of_each_kind_open_without_a_network_and_are_accessible(browser, site, pages):
    assert not problems_of(browser, site, pages, 1280)
