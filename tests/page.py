"""What the tests of the book read in a built page."""

import re
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURE = re.compile(r'<figure\b[^>]*\bclass="measured"')


class Page(HTMLParser):
    """The links, resources and anchors of one page, and how many tables it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.links, self.resources, self.anchors = [], [], set()
        self.tables = 0
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        for name in ("href", "src", "data", "poster"):
            if attributes.get(name):
                (self.links if tag in ("a", "form") else self.resources).append(attributes[name])
        self.tables += tag == "table"


def numbers(page: Page, kind: str) -> list[int]:
    """The numbers of a page's figures or tables, in its order."""
    return [int(number) for number in re.findall(rf'<span class="caption-count">{kind} (\d+)\.</span>', page.text)]
