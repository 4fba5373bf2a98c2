"""Ways in and out: whom to cite, the version and its date, the claims at a glance, and all results as files."""

import base64
import io
import re
import tomllib
from pathlib import Path

import pandas as pd
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.extension.figures import TABLE
from book.extension.running import EXECUTED, FILES, ROOT, list_loaded
from deeper_layers.files import write_file
from deeper_layers_companion import results
from deeper_layers_companion.report.names import as_html, model_title, sort_models
from deeper_layers_companion.results.frames import VECTORS

CLAIMS = "07-claims"
# not colour alone
SIGNS = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "at floor": "▁", "not tested": "–"}
TABLES = ("scores", "distances", "healing", "geometry", "runs")
PARQUET = FILES / "results.parquet"


def write_tables(target: Path) -> list[str]:
    """All results as CSV, and the scores as `target`, a Parquet file; returns the code that wrote them."""
    for name in TABLES:
        table = getattr(results, name)()
        table = table.drop(columns=[column for column in VECTORS if column in table])
        write_file(target.with_name(f"{name}.csv"), table.to_csv(index=False).encode())
        if name == "scores":
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
    write_file(target, buffer.getvalue())
    return list_loaded()


def read_claims() -> pd.DataFrame:
    """The claims with their verdicts, as the page of claims holds them."""
    path = EXECUTED / f"{CLAIMS}.ipynb"
    text = path.read_text(encoding="utf-8").replace('\\"', '"') if path.exists() else ""
    found = dict(TABLE.findall(text)).get("claims-data", "")
    return pd.read_csv(io.BytesIO(base64.b64decode(found))) if found else pd.DataFrame()


class ClaimsMatrix(SphinxDirective):
    """A row for each claim, a column for each model: the verdict as a sign, a word and a colour."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(EXECUTED / f"{CLAIMS}.ipynb"))
        claims = read_claims()
        if claims.empty:
            return [nodes.paragraph("", "No claim was judged.")]
        models = sort_models(claims["model"].unique())
        heads = "".join(f'<th scope="col">{as_html(model_title(model))}</th>' for model in models)
        rows = []
        for title, of_claim in claims.groupby("title", sort=False):
            verdicts = dict(zip(of_claim["model"], of_claim["verdict"]))
            cells = "".join(self.draw_cell(model, verdicts.get(model, "not tested")) for model in models)
            rows.append(f'<tr><th scope="row">{as_html(title)}</th>{cells}</tr>')
        body = f"<thead><tr><th>The paper's claim</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return [nodes.raw("", f'<table class="claims-matrix">{body}</table>', format="html")]

    def draw_cell(self, model: str, verdict: str) -> str:
        kind, name = re.sub(r"\W", "-", verdict), as_html(model_title(model))
        sign = f'<span aria-hidden="true">{SIGNS.get(verdict, "")}</span>'
        return f'<td class="{kind}" data-model="{name}">{sign} {as_html(verdict)}</td>'


class Citation(SphinxDirective):
    """Version, date and licence in a line, then what to cite, as BibTeX with a button that copies it."""

    def run(self) -> list[nodes.Node]:
        for name in ("CITATION.cff", "pyproject.toml"):
            self.env.note_dependency(str(ROOT / name))
        self.env.note_dependency(str(PARQUET))
        about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        days = pd.read_csv(FILES / "runs.csv")["measured"].dropna().str[:10]
        measured = days.max() if len(days) else "never"
        authors = ", ".join(write_author(author) for author in about["authors"])
        line = f"By {authors}. Version {project['version']}, last measured {measured}, {about['license']}."
        own = {"author": f"{{{authors}}}", "title": about["title"], "version": about["version"]}
        own |= {"year": measured[:4]} if len(days) else {}
        paper = about["preferred-citation"]
        names = " and ".join(write_author(author) for author in paper["authors"])
        of_paper = {"author": names, "title": paper["title"], "year": paper["year"], "url": paper["url"]}
        of_paper["booktitle"] = paper["collection-title"]
        text = write_bibtex("software", "deeperlayers", own) + write_bibtex("inproceedings", "gromov", of_paper)
        return [nodes.paragraph("", line), nodes.literal_block(text, text, language="bibtex")]


def write_author(author: dict) -> str:
    """An author of CITATION.cff as BibTeX has it."""
    return author.get("name") or f"{author['family-names']}, {author['given-names']}"


def write_bibtex(kind: str, key: str, fields: dict) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}\n"


def setup(app: Sphinx) -> dict:
    app.add_directive("claims-matrix", ClaimsMatrix)
    app.add_directive("citation", Citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
