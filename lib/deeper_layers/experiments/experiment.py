"""One model under some parameters, and what is measured of it: a kind, settings, data, and a function.

Every measurement goes through `Experiment.result`: results hold it already, or it is measured now and written.
"""

import contextlib
import copy
import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from deeper_layers import data, files, models, results, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.files import Timeout
from deeper_layers.models.sources import Source
from deeper_layers.results.shards import Shards
from deeper_layers.results.store import Result

CutsOf = dict[str, list[Cut]]  # by rule


class Data(NamedTuple):
    """Items of a task, or documents of a corpus."""

    name: str
    part: dict = {}  # of a corpus: split and documents, as `deeper_layers.data.texts` has them

    def fingerprint(self, datasets: str | None) -> str:
        """What tells them from others."""
        if self.name in data.CORPORA:
            return data.text_fingerprint(self.name, datasets=datasets, **self.part)
        if self.name in data.embedded_tasks():  # lm-eval is slow to import: ours are known without it
            return data.embedded_fingerprint(self.name)
        return sweeping.data_fingerprint(self.name, datasets)


def distinct_cuts(cuts_of: CutsOf) -> list[Cut]:
    """The cuts of some rules, each once, in order."""
    return sorted({cut for cuts in cuts_of.values() for cut in cuts}, key=dataclasses.astuple)


def named(cuts_of: CutsOf) -> dict[str, list[str]]:
    """The cuts of some rules as a key has them."""
    return {rule: [cut.name for cut in cuts] for rule, cuts in cuts_of.items()}


class Experiment:
    """One model under some parameters: identified where it is asked for, opened where something has to be measured.

    `parameters` are of the class that the measurement needs; `opened()` gives model and tokenizer, the same ones each
    time. A plan has `lacking`, and measures nothing: kind and key of all that results lack are put there.
    """

    def __init__(
        self,
        parameters: Any,
        source: Source | None = None,
        opened: Callable | None = None,
        *,
        lacking: list[tuple[str, dict]] | None = None,
    ):
        self.parameters, self.lacking = parameters, lacking
        self.opened = opened or functools.cache(lambda: parameters.open(self.source))
        if source:
            self.source = source

    @functools.cached_property
    def source(self) -> Source:
        return self.parameters.source()

    def but(self, *, dtype: str | None = None, **others) -> "Experiment":
        """The same model, with some parameters set otherwise that are not of how it is opened; or as if in another
        data type, to read its results."""
        found = copy.copy(self)
        found.parameters = self.parameters.but(**others)
        found.source = dataclasses.replace(self.source, dtype=dtype or self.source.dtype)
        return found

    def result(
        self,
        kind: str,
        settings: dict,
        reads: Iterable[Data],
        measure: Callable[[Shards], tuple[list[dict], dict]],
    ) -> Result | None:
        """The result: read where results hold it, or one of more cuts; else measured and written.

        Data that are not at hand but on a hub are only read where no result agrees in everything else: so a page is
        drawn from results on a machine without a hub.

        Args:
            settings: all that determines the numbers, with the model, its data type and the data: literals alone, no
                path and no device.
            measure: gives rows and details; it may keep finished parts of its work in the shards that it is given.

        Returns:
            None where `parameters.measure` is False and results do not hold it.
        """
        folder, datasets, reads = self.parameters.folder, self.parameters.datasets, list(reads)
        key = {"model": self.source.key, "dtype": self.source.dtype, **settings}

        @functools.cache
        def of_data() -> dict:
            return {"data": ", ".join(dict.fromkeys(of.fingerprint(datasets) for of in reads))}  # each said once

        if all(data.is_at_hand(of.name, datasets) for of in reads):
            key |= of_data()
        found = results.find_result(kind, key, folder)
        if self.parameters.measure:
            found = found or self._measured(kind, key | of_data(), folder, measure)
            if found.path:
                _tidy(found.path)
        elif found is None and self.lacking is not None:
            self.lacking.append((kind, key))
        return found

    def required(self, found: Result | None, what: str) -> Result:
        """A result without which there is no going on. Raises NotMeasuredError where there is none."""
        if found is None:
            raise NotMeasuredError(
                f"not measured: {what} of {self.source.name} in {self.source.dtype}; `deeper-layers distances` "
                "measures distances, `deeper-layers sweep` the rest"
            )
        return found

    def _measured(self, kind: str, key: dict, folder: Path, measure: Callable) -> Result:
        """Measured now, from the parts that an interrupted run left, unless another process was faster.

        Raises InputError in one of several processes that torchrun or accelerate started: all would wait for the first.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and a result is measured by one process: start one; "
                "healing by several is deeper_layers.heal in a script of yours"
            )
        path = results.result_path(kind, key, folder)
        files.check_writable(path.parent)
        with files.locked(path, f"waiting for another process, which measures {path.stem}"):
            with warnings.catch_warnings(action="ignore"):  # a bad one was named when it was looked for
                if found := results.find_result(kind, key, folder):
                    return found
            shards = Shards(path.with_suffix(".partial"))
            state = results.provenance(models.device_name())  # before: the code that runs is the code of now
            with results.clock() as took:
                rows, details = measure(shards)
            state |= took | {"seconds_in_earlier_runs": shards.seconds_before}
            details = details | {"num_layers": self.source.num_layers, "weights": self.source.quantized}
            return results.write_result(kind, key, state, rows, details, folder)


def _tidy(path: Path) -> None:
    """Remove what processes left that were killed when the result was there already."""
    Shards(path.with_suffix(".partial")).remove()
    files.clear_all(path.parent)
    if path.with_suffix(".lock").exists():
        with contextlib.suppress(Timeout), files.locked(path):
            pass
