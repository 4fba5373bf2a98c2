"""Many workers on one folder of results: a result is measured by one of them, whoever dies meanwhile."""

import contextlib
import multiprocessing
import threading
import traceback
import warnings

import pytest

from deeper_layers import results
from deeper_layers.errors import InputError
from deeper_layers.experiments import scoring
from deeper_layers.experiments.experiment import Data, Experiment
from deeper_layers.experiments.parameters import Parameters, SweepParameters
from deeper_layers.files import Timeout, locked
from deeper_layers.models.sources import Source
from deeper_layers.results.store import all_results

RESULTS, WORKERS = 20, 6
SOURCE = Source("random", "sha256:0", num_layers=5, dtype="float32", quantized="none", folder="")
SETTINGS = {"quantization": None, "samples": 64, "sequence_length": 1, "seed": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """To ask git takes longer than all the rest."""
    state = results.provenance("a processor")
    monkeypatch.setattr(results, "provenance", lambda _: state)


def measured(number: int, folder, waits: bool = True):
    """Some distances; each time that they are measured a line is written."""

    def measure(shards):
        with open(folder / "measured", "a") as file:  # of one line, whole
            file.write(f"{number}\n")
        row = {"start": 0, "size": 1, "distance": number / 100, "stderr": None, "samples": 64}
        return [row], {"tokens": 64}

    experiment = Experiment(Parameters(results=str(folder / "results")), SOURCE, waits=waits)
    reads = [Data("wikipedia", lambda: "made up")]
    return experiment.result("distances", SETTINGS | {"corpus": f"text-{number}"}, reads, measure)


def at_once(number: int, work) -> list:
    """What so many processes said of the same work, begun at the same time."""
    context = multiprocessing.get_context("fork")
    start, said = context.Barrier(number), context.Queue()

    def one():
        start.wait()
        with warnings.catch_warnings(action="error"):
            try:
                said.put(work())
            except BaseException:
                said.put(traceback.format_exc())

    with warnings.catch_warnings(action="ignore"):
        workers = [context.Process(target=one) for _ in range(number)]
        for worker in workers:
            worker.start()
    found = [said.get(timeout=100) for _ in workers]
    for worker in workers:
        worker.join()
    return found


def test_six_workers_on_twenty_results_measure_each_once(tmp_path):
    said = at_once(WORKERS, lambda: sorted(measured(number, tmp_path).path.name for number in range(RESULTS)))
    found = all_results(tmp_path / "results")
    assert len(found) == RESULTS and all(one == sorted(result.path.name for result in found) for one in said), said[0]
    assert sorted(map(int, (tmp_path / "measured").read_text().split())) == list(range(RESULTS))
    left = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(result.path for result in found)


@contextlib.contextmanager
def held(path):
    """While another is at work on what will be there."""
    holding, over = threading.Event(), threading.Event()

    def hold():
        with locked(path):
            holding.set()
            over.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    holding.wait(20)
    yield over
    other.join()


def test_a_worker_takes_another_task_and_waits_for_the_taken_one_at_the_end(tmp_path, monkeypatch):
    path = measured(0, tmp_path).path
    path.unlink()
    order, tasks = [], ["capitals", "sums_two_digits", "sums_one_digit"]
    with held(path) as over:
        with pytest.raises(Timeout):
            measured(0, tmp_path, waits=False)

        def score_task(task, cuts_of, experiment, **_):
            order.append((task, experiment.waits))
            over.set() if experiment.waits else None
            return measured(tasks.index(task), tmp_path, experiment.waits)

        monkeypatch.setattr(scoring, "score_task", score_task)
        asked = SweepParameters(tasks=", ".join(tasks), rules="simple")
        _, found = scoring.sweep_tasks(asked, SOURCE)
    assert order == [*((task, False) for task in tasks), ("capitals", True)]
    assert [result.name for result in found.values()] == ["text-0", "text-1", "text-2"]


def test_what_was_left_beside_a_result_that_is_there_goes(tmp_path):
    path = measured(0, tmp_path).path
    path.with_suffix(".lock").touch()
    measured(0, tmp_path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_processes_that_work_together_are_told_that_one_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="^WORLD_SIZE is 2, and a result is measured by one process"):
        measured(0, tmp_path)
    assert not (tmp_path / "measured").exists()
