"""Many workers on one folder of results: a result is measured by one of them, whoever dies meanwhile."""

import multiprocessing
import warnings
from types import SimpleNamespace

import pytest

from deeper_layers.errors import InputError
from deeper_layers.models.sources import Source
from deeper_layers_companion import results
from deeper_layers_companion.experiments.experiment import Experiment
from deeper_layers_companion.experiments.parameters import Parameters
from deeper_layers_companion.results.store import read_results

RESULTS, WORKERS = 20, 6
SOURCE = Source("random", "sha256:0", num_layers=5, dtype="float32", quantized="none", folder="")
SETTINGS = {"quantization": None, "samples": 64, "sequence_length": 1, "seed": 0}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Some distances, by their number; each time that they are measured a line is written."""
    state = results.provenance("a processor")  # to ask git takes longer than all the rest
    monkeypatch.setattr(results, "provenance", lambda _: state)

    def measured(number: int):
        def measure(shards):
            with open(tmp_path / "measured", "a") as file:  # of one line, whole
                file.write(f"{number}\n")
            row = {"start": 0, "size": 1, "distance": number / 100, "stderr": None, "samples": 64}
            return [row], {"tokens": 64}

        experiment = Experiment(Parameters(results=str(tmp_path / "results")), SOURCE)
        reads = [SimpleNamespace(name="wikipedia", fingerprint=lambda _: "made up")]
        return experiment.find_or_measure("distances", SETTINGS | {"corpus": f"text-{number}"}, reads, measure)

    return measured


def test_six_workers_on_twenty_results_measure_each_once(measured, tmp_path):
    context = multiprocessing.get_context("fork")
    start, said = context.Barrier(WORKERS), context.Queue()

    def work():
        start.wait()
        with warnings.catch_warnings(action="error"):
            try:
                said.put(sorted(measured(number).path.name for number in range(RESULTS)))
            except BaseException as error:
                said.put(repr(error))

    with warnings.catch_warnings(action="ignore"):
        workers = [context.Process(target=work) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
    answers = [said.get(timeout=100) for _ in workers]
    for worker in workers:
        worker.join()
    found = read_results(tmp_path / "results")
    assert answers == WORKERS * [sorted(result.path.name for result in found)]
    assert sorted(map(int, (tmp_path / "measured").read_text().split())) == list(range(RESULTS))
    left = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(result.path for result in found)


def test_what_was_left_beside_a_result_that_is_there_goes(measured):
    path = measured(0).path
    path.with_suffix(".lock").touch()
    measured(0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_processes_that_work_together_are_told_that_one_measures(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="^WORLD_SIZE is 2, and a result is measured by one process"):
        measured(0)
    assert not (tmp_path / "measured").exists()
