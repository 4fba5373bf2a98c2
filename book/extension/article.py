"""A notebook as an article: its text, figures and tables; its code folded at the end, with the line that reruns it.

The executed notebook stays as papermill wrote it. What a reader sees is changed while it is read.
"""

import json
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.contents import all_pages
from book.extension.pages import FOLDER, Page, code_of
from deeper_layers.report.names import as_markdown

CODE = "```{code-of-page}\n```"


def read_as_article(app: Sphinx, docname: str, content: list[str]) -> None:
    """Take the code out of a notebook that is about to be read, give it its title, and put the code at its end."""
    if page := page_of(docname):
        content[0] = json.dumps(article(json.loads(content[0]), page))


def article(notebook: dict, page: Page) -> dict:
    """The notebook as a page shows it."""
    cells = [dict(cell) for cell in notebook["cells"]]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["metadata"] = {"tags": ["remove-input"]}
    if cells and cells[0]["cell_type"] == "markdown":
        text = "".join(cells[0]["source"])
        cells[0]["source"] = re.sub(r"\A# .*", lambda _: f"# {as_markdown(page.title)}", text)
    cells.append({"cell_type": "markdown", "id": "code-of-page", "metadata": {}, "source": CODE})
    return notebook | {"cells": cells}


def page_of(docname: str) -> Page | None:
    """The page of a document that is an executed notebook."""
    folder, _, name = docname.rpartition("/")
    if folder != FOLDER:
        return None
    told, models = all_pages()
    return next((page for page in [*told, *sum(models.values(), [])] if page.name == name), None)


class CodeOfPage(SphinxDirective):
    """Folded: the command line that makes this page again, and the code of its notebook."""

    def run(self) -> list[nodes.Node]:
        page = page_of(self.env.docname)
        if page.record:
            self.env.note_dependency(str(page.record.path))
        command = nodes.literal_block(page.command, page.command, language="bash")
        code = code_of(page.source)
        opening = '<details class="code-of-page"><summary>Code of this page</summary>'
        return [
            nodes.raw("", opening, format="html"),
            nodes.paragraph("", "This page is a notebook. From the root of the repository it runs again by"),
            command,
            nodes.paragraph("", "", nodes.Text("Its code, "), nodes.literal("", f"notebooks/{page.notebook}.ipynb"),
                            nodes.Text(":")),
            nodes.literal_block(code, code, language="python"),
            nodes.raw("", "</details>", format="html"),
        ]  # fmt: skip


def setup(app: Sphinx) -> dict:
    app.connect("source-read", read_as_article)
    app.add_directive("code-of-page", CodeOfPage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
