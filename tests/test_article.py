"""The report as a PDF: the same bytes again, few pages, what was registered, and no word where nothing was measured."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from book.extension import running
from deeper_layers_companion.results.places import AROUND as ROOT

pytest.importorskip("typst", reason="needs pip install -e '.[book]'")
from book import article  # noqa: E402
from deeper_layers_companion.studies import criteria  # noqa: E402


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A place where no page was drawn and no result is kept."""
    monkeypatch.setattr(running, "EXECUTED", tmp_path / "executed")
    monkeypatch.setenv("DEEPER_LAYERS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("deeper_layers_companion.results.places.PUBLISHED", tmp_path / "none")
    return tmp_path


def test_without_results_it_is_set_and_says_that_no_page_shows_a_verdict(nothing):
    data = article.collect()
    assert data["claims"]["rows"] == [] and len(data["registered"]) == len(criteria.list_criteria())
    article.write_pdf(nothing / "article.pdf")
    first = (nothing / "article.pdf").read_bytes()
    assert first.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", first)) <= 10
    article.write_pdf(nothing / "again.pdf")
    assert (nothing / "again.pdf").read_bytes() == first


def test_hashes_of_all_registered_texts_stand_in_it(nothing):
    """So that a time stamp of the file is one of the texts."""
    shown = open_query(article.collect(), "<registered>")
    for one in criteria.list_criteria().values():
        assert one.commit in shown
        assert one.sha256[:32] in shown and one.sha256[32:] in shown


def open_query(data: dict, selector: str) -> str:
    """What stands in the element of the document with this label, as JSON."""
    return str(article.open_compiler(data).query(selector))


@pytest.mark.quick
def test_verdicts_of_the_third_study_are_those_of_its_page():
    cells = {"prediction": "1. letters", "prompt": "stated", "A": "0.5 (0.4 to 0.6): open", "B": "not measured"}
    expected = {"model": "A", "number": "1. letters, stated", "value": "0.5 (0.4 to 0.6)", "verdict": "open"}
    assert article.read_verdicts(pd.DataFrame([cells])) == [expected]
    assert article.read_verdicts(pd.DataFrame()) == []


@pytest.mark.quick
def test_metadata_of_a_submission_say_what_the_citation_says(tmp_path):
    article.write_metadata(tmp_path / "metadata.yaml")
    told = yaml.safe_load((tmp_path / "metadata.yaml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (told["title"], told["version"]) == (citation["title"], citation["version"])
    assert [author["name"] for author in told["authors"]] == [author["name"] for author in citation["authors"]]
    paper = {name: value for row in told["replication"] for name, value in row.items()}
    assert citation["preferred-citation"]["title"] in paper["cite"]
    assert (paper["url"], paper["doi"]) == ("https://arxiv.org/abs/2403.17887", "10.48550/arXiv.2403.17887")
    assert f"{{{paper['bib']}," in (ROOT / told["bibliography"]).read_text(encoding="utf-8")
    assert {"url": ""} in told["code"]


def test_a_wrong_name_of_the_file_is_told():
    command = [sys.executable, "-m", "book.article", "article.doc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "expected the name of a file to write" in done.stderr
