"""The report as one PDF of at most ten pages, set by typst: `python -m book.article FILE.pdf`, or `make pdf`. Beside it
comes metadata.yaml in the form of ReScience C, whose empty places are for whoever submits it.

article.typ has the words. Every number, sentence and picture is what a page shows: it is named there like
"07-claims#claims-data" and taken from the executed notebook, so that PDF and site cannot differ. What results do not
hold is left out. The same pages give the same bytes: the date is that of the newest result, the fonts come in wheels.
"""

import base64
import datetime
import html
import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import typst
import yaml
from sphinx.application import Sphinx

from book.extension import running
from deeper_layers.errors import InputError
from deeper_layers.files import write_file
from deeper_layers_companion.report.names import escape_invisible, format_number, model_title, sort_models
from deeper_layers_companion.results.store import read_results
from deeper_layers_companion.studies import criteria

TEMPLATE = Path(__file__).with_name("article.typ")
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu Sans, in which figures are drawn
NAME = re.compile(r'"(\d\d-[\w-]+#[\w-]+)"')  # of a piece, in article.typ and here
MODELS = 3  # the columns of a table that fit on a page; the site shows all models
NOTHING = "Not measured."
EMPTY = {"orcid": "", "email": "", "affiliations": "1,*"}  # of an author; the star is for whom to write to


def read_pieces(names: Iterable[str]) -> dict[str, dict]:
    """What pages show, by its name "NOTEBOOK#ID": text of sentences, svg and caption of figures, rows as a frame."""
    pieces = {}
    for name in names:
        notebook, _, identifier = name.partition("#")
        pieces[name] = {"text": "", "svg": "", "caption": "", "rows": pd.DataFrame()}
        for shown in list_outputs(notebook):
            if f'id="{identifier}"' in shown or f'download="{identifier}.csv"' in shown:
                pieces[name] = read_piece(shown)
                break
    return pieces


def list_names() -> list[str]:
    """The names of all pieces that the template and this file ask for."""
    words = TEMPLATE.read_text(encoding="utf-8") + Path(__file__).read_text(encoding="utf-8")
    return sorted({*NAME.findall(words)})


def list_outputs(notebook: str) -> list[str]:
    """The HTML of each output of an executed notebook; nothing where it was not run."""
    path = running.EXECUTED / f"{notebook}.ipynb"
    if not path.exists():
        return []
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output.get("data", {}).get("text/html", "") for output in outputs]


def read_piece(shown: str) -> dict:
    """The parts of one output; those that it lacks are empty."""
    picture = re.search(r'data:image/svg\+xml;base64,([^"]+)', shown)
    table = re.search(r'href="data:text/csv[^,"]*,([^"]+)"', shown)
    caption = re.search(r"<figcaption>(.*?)<span", shown, re.DOTALL)
    text = as_plain(shown) if shown.startswith("<p") else ""
    return {
        "text": "" if text == NOTHING else text,
        "svg": base64.b64decode(picture[1]).decode() if picture else "",
        "caption": as_plain(caption[1]) if caption else "",
        "rows": pd.read_csv(io.BytesIO(base64.b64decode(table[1]))) if table else pd.DataFrame(),
    }


def as_plain(shown: str) -> str:
    return escape_invisible(html.unescape(re.sub(r"<[^>]+>", "", shown))).strip()


def tabulate_claims(rows: pd.DataFrame) -> dict:
    """The paper's claims: a row each, with a cell for each of the first models."""
    if rows.empty:
        return {"models": [], "others": 0, "rows": []}
    names = sort_models(rows["model"].unique())
    claims = []
    for _, of_claim in rows.groupby("claim", sort=False):
        by_model = of_claim.fillna({"words": "", "reason": ""}).set_index("model").to_dict("index")
        cells = []
        for name in names[:MODELS]:
            row = by_model[name]
            number = "" if pd.isna(row["value"]) else row["words"] or format_number(row, as_share=row["as_share"])
            cells.append({"verdict": row["verdict"], "number": number, "reason": row["reason"]})
        first = of_claim.iloc[0]
        columns = ("title", "sentence", "paper", "figure", "number", "differs")
        claims.append({column: str(first[column]) for column in columns} | {"cells": cells})
    models = [escape_invisible(model_title(name)) for name in names[:MODELS]]
    return {"models": models, "others": len(names) - len(models), "rows": claims}


def tabulate_half_gone(rows: pd.DataFrame) -> dict:
    """Where half is gone under the similarity-informed rule: a row a task, a cell for each of the first models."""
    if rows.empty:
        return {"models": [], "rows": []}
    words = rows[rows["rule"] == "similarity"].pivot(index="topic", columns="model", values="words").fillna("")
    names = sort_models(words.columns)[:MODELS]
    words = words[words[names].ne("").any(axis=1)]
    tasks = [{"task": escape_invisible(task), "cells": row[names].tolist()} for task, row in words.iterrows()]
    return {"models": [escape_invisible(model_title(name)) for name in names], "rows": tasks}


def tabulate_verdicts(rows: pd.DataFrame, value: str, verdict: str) -> list[dict]:
    """The registered numbers of a study with their intervals and verdicts, from the table of its page."""
    table = []
    for row in rows.to_dict("records"):
        number = "" if pd.isna(row[value]) else format_number(row[value], row[f"{value}_low"], row[f"{value}_high"])
        about = [row[column] for column in ("about", "place") if column in row]
        model = escape_invisible(model_title(row["model"]))
        names = {"model": model, "number": ": ".join([row["number"], ", ".join(about)]).removesuffix(": ")}
        table.append(names | {"value": number, "verdict": row[verdict]})
    return table


def read_verdicts(rows: pd.DataFrame) -> list[dict]:
    """What was judged of the third study, from the table of its page: its cells are like "0.5 (0.4 to 0.6): open"."""
    table = []
    for row in rows.to_dict("records"):
        for model, cell in list(row.items())[2:]:
            value, _, verdict = str(cell).rpartition(": ")
            if value:
                number = f"{row['prediction']}, {row['prompt']}"
                table.append({"model": escape_invisible(model), "number": number, "value": value, "verdict": verdict})
    return table


def collect() -> dict:
    """All that article.typ is given, as it goes into JSON."""
    citation = yaml.safe_load((running.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    measured = [result.provenance["measured"] for result in read_results()]
    date = datetime.datetime.fromisoformat(max(measured, default="1980-01-01T00:00:00+00:00"))
    pieces = read_pieces(list_names())
    rows = {name: piece.pop("rows") for name, piece in pieces.items()}
    halves = rows["06-letters-or-words#halves"]
    if len(halves):
        halves = halves[halves["judged"] == "by the registered rule"]
        halves = halves.rename(columns={"low": "value_low", "high": "value_high"})
    judged = rows["06-letters-or-words#judged"]
    distances = rows["01-similarity#distance-curves"]
    columns = ["model", "layers", "dtype", "samples", "length", "corpus"]
    models = distances.drop_duplicates("model")[columns] if len(distances) else pd.DataFrame()
    return {
        "citation": {name: citation[name] for name in ("title", "abstract", "version", "license", "keywords")},
        "authors": [author["name"] for author in citation["authors"]],
        "paper": citation["preferred-citation"],
        "date": [date.year, date.month, date.day],
        "seconds": int(date.timestamp()),
        "pieces": pieces,
        "models": models.astype(str).map(escape_invisible).to_dict("records"),
        "claims": tabulate_claims(rows["07-claims#claims-data"]),
        "halves": tabulate_half_gone(rows["02-question-answering#half-gone"]),
        "registered": [one.model_dump(mode="json") for one in criteria.list_criteria().values()],
        "verdicts": {
            "letters_or_words": tabulate_verdicts(judged, "registered", "registered_verdict"),
            "last_layers": tabulate_verdicts(halves, "value", "verdict"),
            "what-the-last-layers-hold": read_verdicts(rows["11-what-do-the-last-layers-hold#verdicts"]),
        },
    }


def describe_submission() -> dict:
    """What ReScience C's metadata.yaml says, in its order; "" where only who submits it, or an editor, knows."""
    citation = yaml.safe_load((running.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    names = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
    cite = f"{', '.join(names)} ({paper['year']}). {paper['title']}. {paper['collection-title']}."
    doi = next(one["value"] for one in paper["identifiers"] if one["type"] == "doi")
    return {
        "title": citation["title"],
        "version": citation["version"],
        "authors": [{"name": author["name"], **EMPTY} for author in citation["authors"]],
        "affiliations": [{"code": 1, "name": "", "address": ""}],
        "keywords": ", ".join([*citation["keywords"], "Python"]),
        "code": [{"url": ""}, {"doi": ""}, {"swh": ""}],
        "data": [{"url": ""}, {"doi": ""}],
        "replication": [{"cite": cite}, {"bib": "gromov2024unreasonable"}, {"url": paper["url"]}, {"doi": doi}],
        "abstract": citation["abstract"],
        "bibliography": "book/references.bib",
        "type": "Replication",
        "domain": "Machine Learning",
        "language": "Python",
        "review": [{"url": ""}],
        "contributors": [{"name": "", "orcid": "", "role": role} for role in ("editor", "reviewer", "reviewer")],
        "dates": [{"received": ""}, {"accepted": ""}, {"published": ""}],
        "article": [{"number": ""}, {"doi": ""}, {"url": ""}],
        "journal": [{"name": "ReScience C"}, {"issn": "2430-3658"}, {"volume": ""}, {"issue": ""}],
    }


def write_metadata(target: Path) -> None:
    content = yaml.safe_dump(describe_submission(), sort_keys=False, allow_unicode=True, width=120)
    write_file(target, content.encode())


def open_compiler(data: dict) -> typst.Compiler:
    """The template with its data, without fonts of the system and without packages from elsewhere."""
    fonts = typst.Fonts(include_system_fonts=False, font_paths=[str(FONTS)])
    inputs = {"data": json.dumps(data, sort_keys=True)}
    return typst.Compiler(str(TEMPLATE), root=str(TEMPLATE.parent), font_paths=fonts, sys_inputs=inputs)


def write_pdf(target: Path) -> None:
    """Write the PDF; one that has these bytes already stays as it is, so that Sphinx reads no page again."""
    data = collect()
    content = open_compiler(data).compile(format="pdf", timestamp=data["seconds"])
    if not target.exists() or target.read_bytes() != content:
        write_file(target, content)


def write_page_file(app: Sphinx) -> None:
    write_pdf(running.FILES / "article.pdf")


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", write_page_file, priority=600)  # after the pages are drawn
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".pdf"):
        sys.exit("expected the name of a file to write: python -m book.article article.pdf")
    try:
        running.draw_pages(None)
        write_pdf(Path(sys.argv[1]))
        write_metadata(Path(sys.argv[1]).with_name("metadata.yaml"))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
