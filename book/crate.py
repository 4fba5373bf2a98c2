"""Results and book as an RO-Crate 1.2: one zip file that says of each measurement what it is of and what made it.

    python -m book.crate OUT.zip

Written by ro-crate-py (`pip install -e '.[crate]'`) from the units and records in results/ and from CITATION.cff. The
site goes in where `make book` has built it. See https://w3id.org/ro/crate/1.2
"""

import datetime
import json
import sys
from pathlib import Path

import yaml
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from book.extension.measured import describe, taken
from deeper_layers.errors import InputError
from deeper_layers.files import atomic_file
from deeper_layers.report.measured import watt_hours
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.records import all_records
from deeper_layers.results.units import Unit, all_units

SITE = ROOT / "book" / "_build" / "html"
PAPERS = {  # in the crate as they are
    "README.md": "What this is, and how to use it.",
    "LICENSE": "Under which code and results may be used.",
    "CITATION.cff": "How to cite it.",
    "pyproject.toml": "The packages that it needs.",
    "constraints.txt": "The versions of packages that were tested.",
}
LICENSE = "https://spdx.org/licenses/{}"
JSON = "application/json"


def crate_of(results: Path = ROOT / "results", site: Path = SITE) -> ROCrate:
    """The crate of a folder of results. Raises InputError where it holds no unit."""
    units = [unit for unit in all_units(results) if unit.path and unit.path.is_relative_to(results)]
    if not units:
        raise InputError(f"{results} holds no unit: measure something, or name another folder")
    crate = ROCrate(version="1.2")
    software = _described(crate, max(unit.provenance["measured"] for unit in units))
    for name, about in PAPERS.items():
        properties = {"name": name, "description": about, "encodingFormat": "text/plain"}
        crate.add_file(ROOT / name, name, properties=properties, record_size=True)
    if (site / "index.html").is_file():
        properties = {"name": "The book, as a site", "description": "Every figure is drawn from the files in results/."}
        crate.add_dataset(site, "book", properties=properties)
    for unit in units:
        _add_unit(crate, unit, results, software)
    for record in all_records(results):
        properties = {
            "name": f"What the notebook {record.notebook} was asked for on {record.model}",
            "description": "A notebook and its parameters.", "encodingFormat": JSON, "dateCreated": record.recorded,
        }  # fmt: skip
        path = record.path.relative_to(results).as_posix()
        crate.add_file(record.path, f"results/{path}", properties=properties, record_size=True)
    return crate


def _described(crate: ROCrate, published: str) -> ContextEntity:
    """What the whole is, from CITATION.cff; the entity of the software is returned."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    crate.name, crate.description, crate.keywords = cited["title"], cited["abstract"], cited["keywords"]
    crate.datePublished = datetime.datetime.fromisoformat(published)
    license = LICENSE.format(cited["license"])
    crate.license = _entity(crate, license, "CreativeWork", name=cited["license"], description="Of code and results.")
    authors = [_entity(crate, f"#{i}", "Organization", name=one["name"]) for i, one in enumerate(cited["authors"], 1)]
    crate.root_dataset["author"] = crate.root_dataset["publisher"] = authors if len(authors) > 1 else authors[0]
    paper = cited["preferred-citation"]
    crate.root_dataset["citation"] = _entity(
        crate, paper["url"], "ScholarlyArticle", name=paper["title"],
        author=[
            _entity(crate, f"#{one['family-names']}", "Person", name=f"{one['given-names']} {one['family-names']}")
            for one in paper["authors"]
        ],
    )  # fmt: skip
    return _entity(
        crate, "#deeper-layers", "SoftwareApplication", name="deeper-layers", version=str(cited["version"]),
        softwareVersion=str(cited["version"]), description=cited["abstract"], url="https://arxiv.org/abs/2403.17887",
    )  # fmt: skip


def _add_unit(crate: ROCrate, unit: Unit, results: Path, software: ContextEntity) -> None:
    """A unit's file, and the action that it came from: on what, by what, when, and what it took."""
    state, said = unit.provenance, describe(unit)
    seconds, memory = taken(unit)
    energy = watt_hours(seconds, state["device"], memory)
    path = unit.path.relative_to(results).as_posix()
    file = crate.add_file(
        unit.path, f"results/{path}",
        properties={
            "name": f"{unit.key['model']['name']}: {said['What']}", "encodingFormat": JSON,
            "description": "Measured values, the answers item by item, and all that determined them.",
            "dateCreated": state["measured"],
        },
        record_size=True,
    )  # fmt: skip
    model = unit.key["model"]
    versions = ", ".join(f"{name} {version}" for name, version in state["packages"].items())
    took = {"Seconds": f"{seconds:.0f}", "Peak memory, bytes": str(memory)}
    took |= {} if energy is None else {"Energy, Wh (estimate)": f"{energy:.2g}"}
    action = _entity(
        crate, f"#measured-{path}", "CreateAction", name=f"Measured: {said['What']}",
        description=f"On {state['device']}, with {versions}; commit {state['commit'] or 'not recorded'}.",
        startTime=state["measured"], instrument=software, result=file,
        object=_entity(
            crate, f"#model-{model['weights']}", "CreativeWork", name=model["name"], identifier=model["weights"]
        ),
        additionalProperty=[
            _entity(crate, f"#{name.split(',')[0].lower()}-{path}", "PropertyValue", name=name, value=value)
            for name, value in took.items()
        ],
    )  # fmt: skip
    crate.root_dataset.append_to("mentions", action)


def _entity(crate: ROCrate, identifier: str, kind: str, /, **properties) -> ContextEntity:
    """The entity of this name: made where it is not there yet."""
    found = crate.get(identifier)
    return found or crate.add(ContextEntity(crate, identifier, properties={"@type": kind, **properties}))


def main(words: list[str]) -> None:
    if len(words) != 1 or not words[0].endswith(".zip"):
        sys.exit("expected the name of a file to write, like crate.zip: python -m book.crate crate.zip")
    try:
        with atomic_file(Path(words[0])) as path:
            crate = crate_of()
            crate.write_zip(path)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"crate": words[0], "files": len(crate.data_entities)}))


if __name__ == "__main__":
    main(sys.argv[1:])
