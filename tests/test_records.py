"""Records of what notebooks were asked for: written once, read back, and never a reason to stop."""

import json

import pytest

from deeper_layers.experiments.parameters import SimilarityParameters, TakeAwayParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.records import Record, all_records, record_path, write_record


def test_what_decides_nothing_is_left_out_and_the_name_stands_for_the_path(tmp_path):
    given = {"model": "/somewhere/tiny", "limit": None, "tasks": "capitals", "device": "cpu", "results": "mine"}
    path = write_record("02-question-answering", "tiny", given | {"measure": False}, tmp_path)
    (record,) = all_records(tmp_path)
    assert record.parameters == {"model": "tiny", "limit": None, "tasks": "capitals"}
    assert (record.notebook, record.model, record.page, record.title) == ("02-question-answering", "tiny", None, None)
    assert path == record.path == record_path(record.notebook, "tiny", record.parameters, tmp_path)
    assert path.parent == tmp_path / "tiny" / "records"
    assert "/somewhere" not in path.read_text()


def test_the_same_run_again_rewrites_nothing(tmp_path):
    path = write_record("01-similarity", "tiny", {"samples": 8}, tmp_path, page="01-similarity", title="First")
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert write_record("01-similarity", "tiny", {"samples": 8, "memory": 2}, tmp_path) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert all_records(tmp_path)[0].title == "First"
    assert write_record("01-similarity", "tiny", {"samples": 9}, tmp_path) != path
    assert len(all_records(tmp_path)) == 2


def test_the_order_of_parameters_does_not_name_a_record(tmp_path):
    names = {record_path("x", "tiny", given, tmp_path) for given in ({"a": 1, "b": 2}, {"b": 2, "a": 1})}
    assert len(names) == 1


def test_records_are_in_the_order_in_which_they_were_written(tmp_path):
    for number, time in enumerate(("2026-03-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00")):
        path = write_record("01-similarity", "tiny", {"seed": number}, tmp_path)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"recorded": time}))
    assert [record.parameters["seed"] for record in all_records(tmp_path)] == [1, 0]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"notebook": "01-similarity"}', '{"notebook": 1, "unknown": 2}', "\x00"]
)
def test_an_unreadable_record_is_a_warning_that_names_the_file(tmp_path, content):
    good = write_record("01-similarity", "tiny", {}, tmp_path)
    bad = good.with_name("01-similarity-000000000000.json")
    bad.write_text(content)
    with pytest.warns(UserWarning, match=r"01-similarity-000000000000\.json is not a readable record"):
        records = all_records(tmp_path)
    assert [record.path for record in records] == [good]


def test_a_record_whose_content_was_changed_is_not_its_own_any_more(tmp_path):
    path = write_record("01-similarity", "tiny", {"seed": 1}, tmp_path)
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.warns(UserWarning, match="its name is not that of"):
        assert all_records(tmp_path) == []


def test_every_record_of_this_repository_is_readable():
    records = all_records()
    assert records and all(isinstance(record, Record) for record in records)


def test_the_defaults_of_a_notebook_are_the_record_that_is_there(tmp_path):
    """Running a notebook of the story again adds no page."""
    parameters = SimilarityParameters.from_names({"results": str(tmp_path)})
    parameters.record(parameters.source())
    (record,) = all_records(tmp_path)
    published = [other for other in all_records() if other.model == record.model]
    assert record.path.name in {other.path.name for other in published if other.notebook == record.notebook}


@pytest.mark.parametrize(
    "file, bits", [("model.gguf", "bfloat16, int8, nf4, Q8_0, Q4_1, Q2_K"), (None, "bfloat16, int8, nf4")]
)
def test_kinds_of_weights_that_follow_from_the_file_are_written_out(tmp_path, file, bits):
    """Where the page is drawn there is the name of the model, which doesn't say whether it was a GGUF file."""
    source = Source("mine", "sha256:0", 5, "float32", "Q4_1", "mine", gguf=file and tmp_path / file)
    asked = TakeAwayParameters.from_names({"model": str(tmp_path / "mine"), "results": str(tmp_path)})
    asked.record(source)
    (record,) = all_records(tmp_path)
    assert record.parameters == {"model": "mine", "dtype": "float32", "bits": bits}
    shown = TakeAwayParameters.from_names(record.parameters | {"results": str(tmp_path), "measure": False})
    assert shown.bits_list(Source("mine", "sha256:0", 5, "float32", "Q4_1", "mine")) == bits.split(", ")
