"""The library as a wheel: away from the repository it has the published units, read from one source of truth."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from deeper_layers.results import places
from deeper_layers.results.places import AROUND as ROOT

BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def test_published_units_are_the_repositorys():
    assert places.PUBLISHED.resolve() == ROOT / "results"
    assert places.readable_folders() == [ROOT / "results"], "looked for once"


@pytest.mark.thorough
def test_a_wheel_has_what_is_published_and_answers_from_it(tmp_path):
    for name in ("lib", "results"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    quiet = {"capture_output": True, "text": True, "timeout": 300, "check": True}
    subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=tmp_path / "tree", **quiet)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    published = tmp_path / "site" / "deeper_layers" / "results" / "published"
    units = {path.relative_to(ROOT / "results") for path in (ROOT / "results").glob("*/*.json")}
    assert {path.relative_to(published) for path in published.rglob("*.json")} == units and units
    (tmp_path / "here").mkdir()
    words = [sys.executable, "-m", "deeper_layers", "distances", "embedded", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(words, cwd=tmp_path / "here", env=environment, **quiet)
    assert json.loads(done.stdout)["unit"].startswith(str(published))
    assert not list((tmp_path / "here").iterdir()), "what is only read is not written"
