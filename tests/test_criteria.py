"""Registered texts are what was committed: their bytes by hash, in the repository's history, on pages and outside."""

import ast
import hashlib
import json
import subprocess

import pytest

from deeper_layers_companion.results.places import AROUND as ROOT
from deeper_layers_companion.studies import criteria

pytestmark = pytest.mark.quick
CRITERIA = criteria.list_criteria()


def read_committed(criterion: criteria.Criterion) -> list[str]:
    """The texts that the source held at its commit: the cells of a notebook, a docstring, or the whole file."""
    command = ["git", "show", f"{criterion.commit}:{criterion.source}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("this checkout lacks the commit")
    text = done.stdout.decode()
    if criterion.source.endswith(".ipynb"):
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    return [ast.get_docstring(ast.parse(text), clean=False) or ""] if criterion.source.endswith(".py") else [text]


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_a_registered_text_is_byte_for_byte_what_was_committed(criterion):
    file = criteria.REGISTERED / f"{criterion.name}.md"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == criterion.sha256
    assert criterion.text in read_committed(criterion)


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_a_page_shows_a_registered_text_whole_with_commit_and_date(criterion):
    shown = criterion._repr_markdown_()
    assert criterion.text in shown and criterion.commit.startswith(shown.partition("(")[2][:8])
    assert f"{criterion.committed:%B %Y}" in shown


def test_every_registered_file_has_its_hash_and_its_place_in_the_release_notes():
    assert {path.stem for path in criteria.REGISTERED.glob("*.md")} == {*CRITERIA}
    notes = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))["notes"]
    lines = [f"{one.name}.md, commit {one.commit}, SHA-256 {one.sha256}" for one in CRITERIA.values()]
    assert notes.endswith(": " + "; ".join(lines) + ".")


def test_known_criteria_stay():
    commits = {name: one.commit[:7] for name, one in CRITERIA.items()}
    first = {"letters_or_words": "66b431a", "last_layers": "50179ad", "healing_rates": "5501ada"}
    assert commits.items() >= (first | {"reasoning_or_stopping": "e9d2660"}).items()
