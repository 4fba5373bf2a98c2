"""A page drawn from the source: the rooms of the library."""

import ast
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.running import ROOT
from deeper_layers_companion.report.names import as_html

PACKAGES = {"The method": "deeper_layers", "The companion": "deeper_layers_companion"}


class House(SphinxDirective):
    """The rooms of both packages: what each is for, from the docstring of its module."""

    def run(self) -> list[nodes.Node]:
        boxes = []
        for title, package in PACKAGES.items():
            folder = ROOT / "lib" / package
            paths = sorted([*folder.glob("*/__init__.py"), *folder.glob("[a-z]*.py")])
            rooms = "".join(self.describe_room(path) for path in paths)
            boxes.append(f"<section><h3>{title}: <code>{package}</code></h3><dl>{rooms}</dl></section>")
        return [nodes.raw("", f'<div class="house">{"".join(boxes)}</div>', format="html")]

    def describe_room(self, path: Path) -> str:
        """A room's name and the first paragraph of its docstring, as HTML."""
        self.env.note_dependency(str(path))
        name = path.parent.name if path.name == "__init__.py" else path.stem
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(docstring.partition("\n\n")[0].split())
        text = re.sub(r"`+(.*?)`+", r"<code>\1</code>", as_html(first))
        return f"<dt><code>{as_html(name)}</code></dt><dd>{text}</dd>"


def name_no_list(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """docutils calls the bibliography a list, but its parts no items: a screen reader would announce an empty one."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', "<div>")


def setup(app: Sphinx) -> dict:
    app.add_directive("house", House)
    app.connect("html-page-context", name_no_list)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
