"""What the tests of the book read in a built page."""

from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """The links, resources and anchors of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.links, self.resources, self.anchors = [], [], set()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        for name in ("href", "src", "data", "poster"):
            if attributes.get(name):
                (self.links if tag in ("a", "form") else self.resources).append(attributes[name])
