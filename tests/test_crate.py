"""Results and book as an RO-Crate: every file is described, every result says what made it; and how this is cited."""

import json
import shutil
import zipfile

import pytest
import yaml

from deeper_layers.errors import InputError
from deeper_layers.results.places import AROUND as ROOT

NAMES = [path.name for path in sorted((ROOT / "results" / "Gemma-3-270m").glob("*.json"))[:2]]


@pytest.mark.thorough
def test_a_crate_says_of_each_result_what_made_it(tmp_path):
    pytest.importorskip("rocrate", reason="needs pip install -e '.[crate]'")
    from book.crate import PAPERS, crate_of

    results = tmp_path / "results"
    with pytest.raises(InputError, match="no folder|holds no result"):
        crate_of(results)
    (results / "Gemma-3-270m").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(ROOT / "results" / "Gemma-3-270m" / name, results / "Gemma-3-270m")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>Book</h1>")
    crate_of(results, tmp_path / "site").write_zip(tmp_path / "crate.zip")
    with zipfile.ZipFile(tmp_path / "crate.zip") as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
        content = json.loads(archive.read("ro-crate-metadata.json"))
    entities = {entity["@id"]: entity for entity in content["@graph"]}
    files = {f"results/Gemma-3-270m/{name}" for name in NAMES}
    assert inside == {"ro-crate-metadata.json", "book/index.html", *PAPERS, *files}
    assert {part["@id"] for part in entities["./"]["hasPart"]} == {"book/", *PAPERS, *files}
    for name in NAMES:
        action = entities[f"#measured-Gemma-3-270m/{name}"]
        assert action["result"] == {"@id": f"results/Gemma-3-270m/{name}"} and action["instrument"]["@id"] in entities
        assert entities[action["object"]["@id"]]["name"] == "Gemma-3-270m" and "processor" in action["description"]


@pytest.mark.quick
def test_both_ways_of_citing_say_the_same():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    assert all(zenodo[name] == cited[name] for name in ("title", "version", "license", "keywords"))
    assert zenodo["description"] == cited["abstract"] and zenodo["creators"] == cited["authors"]
    (paper,) = zenodo["related_identifiers"]
    assert paper["identifier"] == cited["preferred-citation"]["identifiers"][0]["value"]
