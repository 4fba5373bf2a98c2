"""The page "How this is built": the rooms of the library as a picture and in words."""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.house_drawing import drawn
from book.extension.outdated import made_of
from book.extension.pages import LIBRARY
from book.extension.rooms import Room, rooms_of


class House(SphinxDirective):
    """The picture of the rooms, and what each is for."""

    def run(self) -> list[nodes.Node]:
        made_of(self.env, LIBRARY)
        try:
            rooms = rooms_of(LIBRARY)
        except ValueError as error:
            return [self.state.document.reporter.warning(str(error), line=self.lineno)]
        return [nodes.raw("", drawn(rooms), format="html"), in_words(rooms)]


def in_words(rooms: list[Room]) -> nodes.Node:
    """Each room with its purpose and its neighbours, from the top floor down."""
    told = {"light": "no PyTorch", "partly": "PyTorch in some of its modules", "heavy": "PyTorch"}
    items = nodes.definition_list(classes=["rooms"])
    for room in reversed(rooms):
        term = nodes.term("", "", nodes.literal("", room.name), nodes.Text(f" ({told[room.weight]})"))
        used = sorted(other.name for other in rooms if room.name in other.imports)
        neighbours = [("imports", room.imports), ("when asked, imports", room.when_asked), ("is imported by", used)]
        said = "; ".join(f"{how} {', '.join(names)}" for how, names in neighbours if names)
        definition = nodes.definition("", paragraph(room.purpose))
        if said:
            definition += nodes.paragraph("", said[0].upper() + said[1:] + ".")
        items += nodes.definition_list_item("", term, definition)
    return items


def paragraph(text: str) -> nodes.Node:
    """A paragraph in which what stands between backticks is code."""
    parts = re.split(r"`+([^`]+)`+", text)
    found = nodes.paragraph()
    found += [nodes.literal("", part) if odd % 2 else nodes.Text(part) for odd, part in enumerate(parts)]
    return found


def setup(app: Sphinx) -> dict:
    app.add_directive("house", House)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
