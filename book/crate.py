"""Results and book as an RO-Crate 1.2, one zip file that says of each result what made it.

`python -m book.crate OUT.zip` writes it by ro-crate-py; the site goes in where `make book` has built it.
"""

import datetime
import sys
from pathlib import Path

import yaml
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from deeper_layers.errors import InputError
from deeper_layers.files import atomic_file
from deeper_layers_companion.results.places import AROUND as ROOT
from deeper_layers_companion.results.store import read_results

PAPERS = ("README.md", "LICENSE", "CITATION.cff", "pyproject.toml", "constraints.txt")


def build_crate(results: Path = ROOT / "results", site: Path = ROOT / "book" / "_build" / "html") -> ROCrate:
    """The crate of a folder of results. Raises InputError where it holds none."""
    measured = [result for result in read_results(results) if result.path and result.path.is_relative_to(results)]
    if not measured:
        raise InputError(f"{results} holds no result: measure something, or name another folder")
    citation, crate = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")), ROCrate(version="1.2")

    def add_entity(identifier: str, kind: str, /, **about) -> ContextEntity:
        return crate.get(identifier) or crate.add(ContextEntity(crate, identifier, {"@type": kind, **about}))

    crate.name, crate.description, crate.keywords = citation["title"], citation["abstract"], citation["keywords"]
    crate.datePublished = datetime.datetime.fromisoformat(max(result.provenance["measured"] for result in measured))
    license, paper = citation["license"], citation["preferred-citation"]
    crate.license = add_entity(
        f"https://spdx.org/licenses/{license}", "CreativeWork", name=license, description="Of all."
    )
    author = add_entity("#authors", "Organization", name=", ".join(author["name"] for author in citation["authors"]))
    crate.root_dataset["author"] = crate.root_dataset["publisher"] = author
    crate.root_dataset["citation"] = add_entity(paper["url"], "ScholarlyArticle", name=paper["title"])
    software = add_entity("#software", "SoftwareApplication", name="deeper-layers", version=str(citation["version"]))
    for name in PAPERS:
        crate.add_file(ROOT / name, name, properties={"name": name, "encodingFormat": "text/plain"}, record_size=True)
    if (site / "index.html").is_file():
        crate.add_dataset(site, "book", properties={"name": "The book", "description": "Drawn from results/."})
    for result in measured:
        path, state, model = result.path.relative_to(results).as_posix(), result.provenance, result.key["model"]
        facts = {"name": f"{result.kind} {result.name} of {model['name']}", "dateCreated": state["measured"]}
        facts |= {"encodingFormat": "application/json", "description": "What was measured, and all that determined it."}
        made = {"result": crate.add_file(result.path, f"results/{path}", properties=facts, record_size=True)}
        made |= {"name": f"Measured: {facts['name']}", "startTime": state["measured"], "instrument": software}
        made["object"] = add_entity(f"#{model['weights']}", "CreativeWork", name=model["name"])
        made["description"] = f"{state['seconds']:.0f} s on {state['device']}, at commit {state['commit']}."
        crate.root_dataset.append_to("mentions", add_entity(f"#measured-{path}", "CreateAction", **made))
    return crate


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".zip"):
        sys.exit("expected the name of a file to write: python -m book.crate crate.zip")
    try:
        with atomic_file(Path(sys.argv[1])) as path:
            build_crate().write_zip(path)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
