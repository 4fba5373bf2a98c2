"""A page drawn from the source: the rooms of the library."""

import ast
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.running import ROOT
from deeper_layers.report.names import as_html

HOUSE = ROOT / "lib" / "deeper_layers"
WINGS = {
    "Reading": ("results", "report", "studies"),  # a page whose results exist loads these and the ground alone
    "Both stand on": ("errors", "checks", "markup", "files", "cuts", "presets", "package_index"),
}


class House(SphinxDirective):
    """The rooms of the library in wings: what each is for, from the docstring of its module."""

    def run(self) -> list[nodes.Node]:
        wings: dict[str, list[str]] = {"Measuring": [], **{wing: [] for wing in WINGS}}
        for path in sorted([*HOUSE.glob("*/__init__.py"), *HOUSE.glob("[a-z]*.py")]):
            room = path.parent.name if path.name == "__init__.py" else path.stem
            self.env.note_dependency(str(path))
            text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
            wing = next((wing for wing, rooms in WINGS.items() if room in rooms), "Measuring")
            text = re.sub(r"`+(.*?)`+", r"<code>\1</code>", as_html(" ".join(text.split())))
            wings[wing].append(f"<dt><code>{as_html(room)}</code></dt><dd>{text}</dd>")
        boxes = [f"<section><h3>{wing}</h3><dl>{''.join(rooms)}</dl></section>" for wing, rooms in wings.items()]
        return [nodes.raw("", f'<div class="house">{"".join(boxes)}</div>', format="html")]


def name_no_list(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """docutils calls the bibliography a list, but its parts no items: a screen reader would announce an empty one."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', "<div>")


def setup(app: Sphinx) -> dict:
    app.add_directive("house", House)
    app.connect("html-page-context", name_no_list)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
