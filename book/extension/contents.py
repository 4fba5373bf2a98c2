"""The table of contents: book/_toc.yml, and below its part "Models" one entry for each model that has records.

Such an entry is a page that says what was measured of the model and leads to its pages, which lie folded below it.
Nothing here is typed by hand: a model measured by anyone is in the next site.
"""

import functools
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from book.extension.outdated import made_of
from book.extension.pages import FOLDER, ROOT, Page, of_models, records_of, story
from deeper_layers.files import write_file
from deeper_layers.report.names import as_markdown, visible
from deeper_layers.results.units import all_units

CAPTION = "Models"


@functools.cache  # records and notebooks stay as they are while a book is built
def all_pages(root: Path = ROOT) -> tuple[list[Page], dict[str, list[Page]]]:
    """The pages of the story, and for each model those that are not among them."""
    records = records_of(root)
    told = story(named(contents(root)), records, root)
    used = [page.record for page in told if page.record]
    return told, of_models([record for record in records if record not in used], root)


def contents(root: Path = ROOT) -> dict:
    return yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))


def named(toc: dict) -> list[str]:
    """The names of the executed notebooks in a table of contents, in its order."""
    chapters = [chapter["file"] for part in toc.get("parts", []) for chapter in part["chapters"]]
    return [Path(file).name for file in chapters if file.startswith(f"{FOLDER}/")]


def with_models(toc: dict, models: dict[str, list[Page]]) -> dict:
    """A table of contents with an entry for each model, and its pages below it."""
    entries = [
        {
            "file": f"{FOLDER}/{pages[0].of_model}",
            "sections": [{"file": f"{FOLDER}/{page.name}", "title": visible(page.short)} for page in pages],
        }
        for pages in models.values()
    ]
    parts = [part | {"chapters": list(part["chapters"])} for part in toc["parts"]]
    for part in parts:
        if part.get("caption") == CAPTION:
            part["chapters"] += entries
            break
    else:
        parts += [{"caption": CAPTION, "chapters": entries}] if entries else []
    return toc | {"parts": parts}


def add_models(app: Sphinx, config: Config) -> None:
    """Before Sphinx reads the table of contents, add the models to it."""
    _, models = all_pages()
    folder = ROOT / "book" / FOLDER
    for model, pages in models.items():
        _write(folder / f"{pages[0].of_model}.md", f"# {as_markdown(model)}\n\n```{{model-pages}}\n```\n")
    toc = folder / "_toc.yml"
    _write(toc, yaml.safe_dump(with_models(contents(), models), sort_keys=False))
    config.external_toc_path = str(toc)


def _write(path: Path, text: str) -> None:
    """A file that is there already with this text stays as old as it is."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_file(path, text.encode())


class ModelPages(SphinxDirective):
    """The pages of one model, with the parameters in which each differs from its notebook as it stands."""

    def run(self) -> list[nodes.Node]:
        own = {f"{FOLDER}/{pages[0].of_model}": (model, pages) for model, pages in all_pages()[1].items()}
        model, pages = own.get(self.env.docname, ("", []))
        made_of(self.env, *{page.record.path.parent for page in pages})
        items = nodes.definition_list()
        for page in pages:
            link = addnodes.pending_xref(
                "", nodes.inline("", visible(page.short)), refdomain="std", reftype="doc", refexplicit=True,
                reftarget=f"/{FOLDER}/{page.name}", refdoc=self.env.docname, refwarn=True,
            )  # fmt: skip
            asked = [visible(f"{k} {v}") for k, v in page.record.parameters.items() if k != "model" and v is not None]
            definition = nodes.definition("", nodes.paragraph("", "; ".join(asked) or "the notebook as it stands"))
            items += nodes.definition_list_item("", nodes.term("", "", link), definition)
        return [
            nodes.paragraph("", f"{self.known(model)}What was measured of it, each page with its parameters:"),
            items,
        ]

    def known(self, model: str) -> str:
        """Depth and weights of the model, where results know them."""
        for unit in all_units(ROOT / "results", model=model):  # of all whose folder has that name
            if unit.key["model"]["name"] == model and {"num_layers", "weights"} <= set(unit.details):
                return visible(f"{unit.details['num_layers']} layers, {unit.details['weights']} weights. ")
        return ""


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", add_models, priority=100)  # before the contents are read
    app.add_directive("model-pages", ModelPages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
