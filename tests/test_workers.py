"""Many workers on one folder of results: a unit is measured by one of them, whoever dies meanwhile."""

import functools
import multiprocessing
import threading
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

from deeper_layers import results
from deeper_layers.errors import InputError
from deeper_layers.experiments.measurement import Data, Measurement, each
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.files import Timeout, locked
from deeper_layers.models.sources import Source
from deeper_layers.results.store import all_results
from deeper_layers.rules.similarity import distance_table

UNITS, WORKERS, LAYERS = 20, 6, 5
SOURCE = Source("random", "sha256:0", num_layers=LAYERS, dtype="float32", quantized="none", folder="")

SETTINGS = {"quantization": None, "samples": 64, "sequence_length": 1, "seed": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """To ask git takes longer than all the rest."""
    state = results.provenance("a processor")
    monkeypatch.setattr(results, "provenance", lambda _: state)


def distances_of(number: int, folder: Path) -> functools.partial:
    """The angular distances of random residuals; each time that they are measured a line is written."""

    def measure(shards):
        with open(folder / "measured", "a") as file:  # of one line, whole
            file.write(f"{number}\n")
        rng = np.random.default_rng(number)
        states = rng.normal(size=(LAYERS + 1, 64, 16)).cumsum(axis=0)
        states /= np.linalg.norm(states, axis=-1, keepdims=True)
        table = np.full((LAYERS, LAYERS), np.nan)
        for size in range(1, LAYERS + 1):
            cosine = (states[:-size] * states[size:]).sum(axis=-1).clip(-1, 1)
            table[size - 1, : LAYERS + 1 - size] = np.arccos(cosine).mean(axis=-1) / np.pi
        rows = distance_table(table, np.where(np.isnan(table), np.nan, 0.01), 64)
        return rows.to_dict("records"), {"tokens": 64}

    of_it = Measurement(
        kind="distances", source=SOURCE, settings=SETTINGS | {"corpus": f"text-{number}"},
        reads=[Data("wikipedia", lambda: "made up")], measure=measure,
    )  # fmt: skip
    return functools.partial(of_it.result, Parameters(results=str(folder / "results")))


def at_once(number: int, work) -> list:
    """What so many processes said of the same work, begun at the same time."""
    context = multiprocessing.get_context("fork")
    start, said = context.Barrier(number), context.Queue()

    def one(index):
        start.wait()
        with warnings.catch_warnings(action="error"):
            try:
                said.put(work(index))
            except BaseException:
                said.put(traceback.format_exc())

    with warnings.catch_warnings(action="ignore"):
        workers = [context.Process(target=one, args=(index,)) for index in range(number)]
        for worker in workers:
            worker.start()
    found = [said.get(timeout=100) for _ in workers]
    for worker in workers:
        worker.join()
    return found


def test_six_workers_on_twenty_results_measure_each_once(tmp_path):
    def work(_):
        units = each([distances_of(number, tmp_path) for number in range(UNITS)])
        return [unit.path.name for unit in units]

    said = at_once(WORKERS, work)
    assert all(isinstance(one, list) for one in said), said[0]
    units = all_results(tmp_path / "results")
    assert len(units) == UNITS and all(sorted(one) == sorted(unit.path.name for unit in units) for one in said)
    assert sorted(map(int, (tmp_path / "measured").read_text().split())) == list(range(UNITS))
    left = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(unit.path for unit in units)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["random"]


def test_a_worker_takes_another_unit_and_waits_for_the_taken_one_at_the_end(tmp_path):
    path = distances_of(0, tmp_path)(True).path
    path.unlink()
    holding, over = threading.Event(), threading.Event()

    def hold():
        with locked(path):
            holding.set()
            over.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    holding.wait(20)
    with pytest.raises(Timeout):
        distances_of(0, tmp_path)(False)
    order = []

    def asked(number, wait):
        order.append((number, wait))
        over.set() if wait else None
        return distances_of(number, tmp_path)(wait)

    units = each([functools.partial(asked, number) for number in range(3)])
    other.join()
    assert order == [(0, False), (1, False), (2, False), (0, True)]
    assert [unit.name for unit in units] == ["text-0", "text-1", "text-2"]


# ---- the dead --------------------------------------------------------------------------------------------


def test_what_was_left_beside_a_unit_that_is_there_goes(tmp_path):
    path = distances_of(0, tmp_path)(True).path
    path.with_suffix(".lock").touch()
    distances_of(0, tmp_path)(True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_processes_that_work_together_are_told_that_one_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="^WORLD_SIZE is 2, and a result is measured by one process"):
        distances_of(0, tmp_path)()
    assert not (tmp_path / "measured").exists()
