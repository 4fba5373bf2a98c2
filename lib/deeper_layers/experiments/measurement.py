"""One class for what is measured: what determines its numbers, which data it reads, and how it is measured."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from deeper_layers import data, files, models, results, sweeping
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.files import Timeout
from deeper_layers.models.sources import Source
from deeper_layers.results.shards import Shards, skip
from deeper_layers.results.store import Result


class Data(NamedTuple):
    """Documents of a corpus or items of a task: the name by which they are read, and what tells others from them."""

    name: str
    fingerprint: Callable[[], str]


def items_of(tasks: Iterable[str], datasets: str | None) -> list[Data]:
    """The items of some tasks, in the order of their names."""

    def fingerprint(task: str) -> str:
        # lm-eval is slow to import: ours are known without it
        embedded = task in data.embedded_tasks()
        return data.embedded_fingerprint(task) if embedded else sweeping.data_fingerprint(task, datasets)

    return [Data(task, lambda task=task: fingerprint(task)) for task in sorted(tasks)]


def text_of(corpus: str, datasets: str | None, **part) -> Data:
    """Documents of a corpus; `part` is split and documents, as `deeper_layers.data.texts` takes them."""
    return Data(corpus, lambda: data.text_fingerprint(corpus, datasets=datasets, **part))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What results hold, or can hold once it was measured: a kind, settings, data, and a function.

    `settings` is, with the model, its data type and the data, all that determines the numbers: literals alone, no path
    and no device. `measure` returns the rows and the details; it may keep finished parts of its work in the shards that
    it is given; it is None where results are only asked what they hold.
    """

    kind: str
    source: Source
    settings: dict
    reads: list[Data]
    measure: Callable[[Shards], tuple[list[dict], dict]] | None = field(repr=False)
    dtype: str | None = None  # where it is not the source's

    @property
    def key(self) -> dict:
        """All that determines the numbers but the data."""
        return {"model": self.source.key, "dtype": self.dtype or self.source.dtype, **self.settings}

    @property
    def fingerprint(self) -> str:
        """Of the data: what several share is said once."""
        return ", ".join(dict.fromkeys(read.fingerprint() for read in self.reads))

    def result(self, parameters: Parameters, wait: bool = True) -> Result | None:
        """The result: read where results hold it, or one of more cuts; else measured and written.

        Of many processes one measures it, and the others wait; where `wait` is False, Timeout is raised.

        Data that are not at hand but on a hub are only read where no result agrees in everything else: so a page is
        drawn from results on a machine without a hub. Where `parameters.measure` is False, None for what results do
        not hold.
        """
        folder, key = parameters.results_folder, self.key
        at_hand = all(data.is_at_hand(read.name, parameters.datasets) for read in self.reads)
        if at_hand:
            key["data"] = self.fingerprint
        found = results.find_result(self.kind, key, folder)
        if found is None and parameters.measure:
            key["data"] = self.fingerprint
            found = self._locked(key, folder, wait)
        if found is not None and parameters.measure and found.path:
            _tidy(found.path)
        return found

    def _locked(self, key: dict, folder: Path, wait: bool) -> Result:
        """Measured now, unless another process was faster.

        Raises InputError in one of several processes that torchrun or accelerate started: all would wait for the first.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and a result is measured by one process: start one; "
                "healing by several is deeper_layers.heal in a script of yours"
            )
        path = results.result_path(self.kind, key, folder)
        files.check_writable(path.parent)
        files.check_room(path.parent)
        with files.locked(path, f"waiting for another process, which measures {path.stem}" if wait else None):
            with warnings.catch_warnings(action="ignore"):  # a bad one was named when it was looked for
                found = results.find_result(self.kind, key, folder)
            return found or self._measured(key, folder, path)

    def _measured(self, key: dict, folder: Path, path: Path) -> Result:
        """Measured, and written: the parts that an interrupted run left are taken up."""
        assert self.measure is not None
        shards = Shards(path.with_suffix(".partial"))
        shards.check()
        state = results.provenance(models.device_name())  # before measuring: the code that runs is the code of now
        with results.clock() as measured:
            rows, details = self.measure(shards)
        state |= measured | {"seconds_in_earlier_runs": shards.seconds_before}
        details = details | {"num_layers": self.source.num_layers, "weights": self.source.quantized}
        return results.write_result(self.kind, key, state, rows, details, folder)


def _tidy(path: Path) -> None:
    """Remove what processes left that were killed when the result was there already."""
    Shards(path.with_suffix(".partial")).remove()
    files.clear_all(path.parent)
    if path.with_suffix(".lock").exists():
        with contextlib.suppress(Timeout), files.locked(path):
            pass


def each(asked: Iterable[Callable[[bool], Result | None]]) -> list[Result | None]:
    """Some results in order; each is asked for by a function of `wait`, as `Measurement.result` has it.

    Those that other processes are at work on are waited for when all others are there.
    """
    found: dict[int, Result | None] = {}
    taken = {}
    for number, ask in enumerate(asked):
        try:
            found[number] = ask(False)
        except Timeout:
            taken[number] = ask
    found |= {number: ask(True) for number, ask in taken.items()}
    return [found[number] for number in sorted(found)]


def in_batches(
    shards: Shards, first: int, batches: list[dict], run: Callable, like: dict[str, tuple], what: str
) -> Iterator[dict[str, np.ndarray]]:
    """What `run` gives for each batch, in their order: from its shard, or now, and then kept there.

    `run` is handed the batches that no shard is of, and gives for each its arrays, one batch after another. `like` has
    their types and shapes (see `Shards.get`), `what` says what runs, beside the time left; shards count from `first`.
    """
    known = [
        shards.get(first + number, {"ids": batch["input_ids"].numpy()}, like) for number, batch in enumerate(batches)
    ]
    bar = tqdm(desc=what, unit="batch", total=len(batches), mininterval=5, file=sys.stderr)
    skip(bar, sum(found is not None for found in known))
    running = run(batch for batch, found in zip(batches, known) if found is None)
    for number, (batch, found) in enumerate(zip(batches, known)):
        if found is None:
            found = next(running)
            shards.put(first + number, found | {"ids": batch["input_ids"].numpy()})
            bar.update()
        yield found
    bar.close()
