"""Results and book as an RO-Crate: every file is described, every result says what made it; and how this is cited."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from deeper_layers.errors import InputError
from deeper_layers.results.places import AROUND as ROOT

MODEL = "Gemma-3-270m"


@pytest.mark.thorough
def test_a_crate_says_of_each_result_what_made_it(tmp_path):
    pytest.importorskip("rocrate", reason="needs pip install -e '.[crate]'")
    from book.crate import PAPERS, crate_of

    results = tmp_path / "results"
    with pytest.raises(InputError, match="no folder|holds no result"):
        crate_of(results)
    (results / MODEL).mkdir(parents=True)
    names = [
        Path(shutil.copy(path, results / MODEL)).name for path in sorted((ROOT / "results" / MODEL).glob("*.json"))[:2]
    ]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>Book</h1>")
    crate_of(results, tmp_path / "site").write_zip(tmp_path / "crate.zip")
    with zipfile.ZipFile(tmp_path / "crate.zip") as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
        content = json.loads(archive.read("ro-crate-metadata.json"))
    entities = {entity["@id"]: entity for entity in content["@graph"]}
    files = {f"results/{MODEL}/{name}" for name in names}
    assert inside == {"ro-crate-metadata.json", "book/index.html", *PAPERS, *files}
    assert {part["@id"] for part in entities["./"]["hasPart"]} == {"book/", *PAPERS, *files}
    for file in files:
        action = entities[f"#measured-{file.removeprefix('results/')}"]
        assert action["result"] == {"@id": file} and action["instrument"]["@id"] in entities
        assert entities[action["object"]["@id"]]["name"] == MODEL and "processor" in action["description"]


@pytest.mark.quick
def test_both_ways_of_citing_say_the_same():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    assert all(zenodo[name] == cited[name] for name in ("title", "version", "license", "keywords"))
    assert zenodo["description"] == cited["abstract"] and zenodo["creators"] == cited["authors"]
    (paper,) = zenodo["related_identifiers"]
    assert paper["identifier"] == cited["preferred-citation"]["identifiers"][0]["value"]
