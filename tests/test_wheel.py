"""What leaves the repository: the library as a wheel with the published results, all of it as an RO-Crate, a citation.

Away from the repository the wheel answers from what is published.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from deeper_layers_companion.results.places import AROUND as ROOT

BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.mark.thorough
def test_a_wheel_has_what_is_published_and_answers_from_it(tmp_path):
    for name in ("lib", "results"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    quiet = {"capture_output": True, "text": True, "timeout": 300, "check": True}
    subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=tmp_path / "tree", **quiet)
    shutil.unpack_archive(*tmp_path.glob("*.whl"), tmp_path / "site", "zip")
    published = tmp_path / "site" / "deeper_layers_companion" / "results" / "published"
    units = {path.relative_to(ROOT / "results") for path in (ROOT / "results").glob("*/*.json")}
    assert {path.relative_to(published) for path in published.rglob("*.json")} == units and units
    registered = ROOT / "lib" / "deeper_layers_companion" / "studies" / "registered"
    packed = tmp_path / "site" / "deeper_layers_companion" / "studies" / "registered"
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == {
        path.name: path.read_bytes() for path in registered.iterdir()
    }
    (tmp_path / "here").mkdir()
    words = [sys.executable, "-m", "deeper_layers_companion", "distances", "embedded", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(words, cwd=tmp_path / "here", env=environment, **quiet)
    assert json.loads(done.stdout)["unit"].startswith(str(published))
    assert not list((tmp_path / "here").iterdir()), "what is only read is not written"


@pytest.mark.thorough
def test_a_crate_says_of_each_result_what_made_it(tmp_path):
    pytest.importorskip("rocrate", reason="needs pip install -e '.[crate]'")
    from book.crate import build_crate

    model = "Gemma-3-270m"
    shutil.copytree(ROOT / "results" / model, tmp_path / "results" / model)
    build_crate(tmp_path / "results").write_zip(tmp_path / "crate.zip")
    with zipfile.ZipFile(tmp_path / "crate.zip") as archive:
        inside = {name for name in archive.namelist() if name.startswith("results/") and name.endswith(".json")}
        entities = {one["@id"]: one for one in json.loads(archive.read("ro-crate-metadata.json"))["@graph"]}
    actions = {name.removeprefix("#measured-"): one for name, one in entities.items() if name.startswith("#measured-")}
    assert inside == {f"results/{place}" for place in actions} and len(inside) > 9
    for place, action in actions.items():
        assert action["result"] == {"@id": f"results/{place}"} and entities[action["object"]["@id"]]["name"] == model


@pytest.mark.quick
def test_both_ways_of_citing_say_the_same():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    assert all(zenodo[name] == cited[name] for name in ("title", "version", "license", "keywords"))
    assert zenodo["description"] == cited["abstract"] and zenodo["creators"] == cited["authors"]
