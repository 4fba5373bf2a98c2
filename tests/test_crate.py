"""Results and book as an RO-Crate: every file is described, every unit says what made it; and how the work is cited."""

import json
import shutil
import zipfile

import pytest
import yaml

from deeper_layers.errors import InputError
from deeper_layers.report.standards import processors, watt_hours
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.units import read_unit

NAMES = ("bits-int8-7f0d14376c64.json", "loss-c4-ed5464cd9c9a.json")
RECORD = "records/01-similarity-5b17322026e6.json"


@pytest.fixture
def results(tmp_path):
    """Two published units and a record, by themselves."""
    for name in (*NAMES, RECORD):
        target = tmp_path / "results" / "Gemma-3-270m" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "results" / "Gemma-3-270m" / name, target)
    return tmp_path / "results"


def test_a_crate_says_of_each_unit_what_made_it(results, tmp_path):
    pytest.importorskip("rocrate", reason="needs pip install -e '.[crate]'")
    from book.crate import crate_of

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>Book</h1>")
    crate_of(results, tmp_path / "site").write_zip(tmp_path / "crate.zip")
    with zipfile.ZipFile(tmp_path / "crate.zip") as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
        content = json.loads(archive.read("ro-crate-metadata.json"))
    assert content["@context"] == "https://w3id.org/ro/crate/1.2/context"
    entities = {entity["@id"]: entity for entity in content["@graph"]}
    parts = {part["@id"] for part in entities["./"]["hasPart"]}
    assert inside - {"ro-crate-metadata.json", "book/index.html"} == parts - {"book/"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert entities["./"]["name"] == cited["title"] and entities["./"]["license"]["@id"].endswith(cited["license"])
    for name in NAMES:
        unit = read_unit(results / "Gemma-3-270m" / name)
        action = entities[f"#measured-Gemma-3-270m/{name}"]
        assert action["result"] == {"@id": f"results/Gemma-3-270m/{name}"} and action["instrument"]["@id"] in entities
        assert action["startTime"] == unit.provenance["measured"] and unit.provenance["device"] in action["description"]
        assert entities[action["object"]["@id"]]["identifier"] == unit.key["model"]["weights"]
        took = [entities[one["@id"]]["name"] for one in action["additionalProperty"]]
        assert took == ["Seconds", "Peak memory, bytes", "Energy, Wh (estimate)"]


def test_a_folder_without_units_makes_no_crate(tmp_path):
    pytest.importorskip("rocrate", reason="needs pip install -e '.[crate]'")
    from book.crate import crate_of

    with pytest.raises(InputError, match="holds no unit"):
        crate_of(tmp_path)


def test_both_ways_of_citing_say_the_same():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    for name in ("title", "version", "license", "keywords"):
        assert zenodo[name] == cited[name], name
    assert zenodo["description"] == cited["abstract"] and zenodo["creators"] == cited["authors"]
    (paper,) = zenodo["related_identifiers"]
    assert paper["identifier"] == cited["preferred-citation"]["identifiers"][0]["value"]


def test_energy_is_of_processors_and_memory():
    assert [processors(f"x86_64 processor{more}") for more in (", 2 threads", " (AVX2), 1 thread")] == [2, 1]
    assert processors("NVIDIA H100 80GB HBM3") is None and watt_hours(60, "NVIDIA H100 80GB HBM3", 1) is None
    assert watt_hours(3600, "x86_64 processor, 2 threads", 10e9) == pytest.approx((24 + 3.725) * 1.67)
