"""One model under some parameters, and its measurements. A measurement is a kind, settings, data, and a function.

Every measurement goes through `Experiment.find_or_measure`: it is read from results, or measured now and written.
"""

import contextlib
import copy
import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from deeper_layers import data, files, models, sweeping
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.files import Timeout
from deeper_layers.models.sources import Source
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion import results
from deeper_layers_companion.results.store import Result

CutsByRule = dict[str, list[Cut]]  # the keys are names of rules


class Data(NamedTuple):
    """Names data that a measurement reads: the items of a task, or documents of a corpus."""

    name: str
    part: dict = {}  # for a corpus: split and documents, arguments of `deeper_layers.data.texts`

    def fingerprint(self, datasets: str | None) -> str:
        """A text that changes when the data change."""
        if self.name in data.CORPORA:
            return data.text_fingerprint(self.name, datasets=datasets, **self.part)
        if self.name in data.embedded_tasks():  # lm-eval is slow to import, and not needed for these
            return data.embedded_fingerprint(self.name)
        return sweeping.data_fingerprint(self.name, datasets)


def sort_cuts(cuts_by_rule: CutsByRule) -> list[Cut]:
    """The distinct cuts of all rules, sorted."""
    return sorted({cut for cuts in cuts_by_rule.values() for cut in cuts}, key=dataclasses.astuple)


def name_cuts(cuts_by_rule: CutsByRule) -> dict[str, list[str]]:
    """The names of the cuts, as they stand in the key of a result."""
    return {rule: [cut.name for cut in cuts] for rule, cuts in cuts_by_rule.items()}


class Experiment:
    """One model under some parameters: identified when first needed, opened when something has to be measured.

    `parameters` are of the class that the measurement needs. `open_model()` returns the model and its tokenizer, the
    same objects each time. A plan measures nothing: it collects in `missing` the kind and key of each absent result.
    """

    def __init__(
        self,
        parameters: Any,
        source: Source | None = None,
        open_model: Callable | None = None,
        *,
        missing: dict[str, tuple[str, dict]] | None = None,
    ):
        self.parameters, self.missing = parameters, missing
        self.open_model = open_model or functools.cache(lambda: parameters.open(self.source))
        if source:
            self.source = source

    @functools.cached_property
    def source(self) -> Source:
        return self.parameters.find_source()

    def replace(self, *, dtype: str | None = None, **changes) -> "Experiment":
        """The same model with other parameters, except those that say how it is opened; or with another data type, to
        read the results in it."""
        changed = copy.copy(self)
        changed.parameters = self.parameters.replace(**changes)
        changed.source = dataclasses.replace(self.source, dtype=dtype or self.source.dtype)
        return changed

    def find_or_measure(
        self,
        kind: str,
        settings: dict,
        reads: Iterable[Data],
        measure: Callable[[Shards], tuple[list[dict], dict]],
    ) -> Result | None:
        """The result for these settings, or one that has more cuts: read from results, else measured and written; None
        if `parameters.measure` is False and results do not hold it.

        Data on a hub are fingerprinted only if no result agrees in everything else. So pages are drawn from results
        on a machine without a hub.

        Args:
            settings: with the model, its data type and the data, all that determines the numbers: literals, no path
                and no device.
            measure: returns rows and details. It may keep finished parts of its work in the shards that it is given.
        """
        folder, datasets, reads = self.parameters.folder, self.parameters.datasets, list(reads)
        key = {"model": self.source.key, "dtype": self.source.dtype, **settings}

        @functools.cache
        def fingerprint_data() -> dict:
            return {"data": ", ".join(dict.fromkeys(item.fingerprint(datasets) for item in reads))}  # each once

        if all(data.is_available_offline(item.name, datasets) for item in reads):
            key |= fingerprint_data()
        result = results.find_result(kind, key, folder)
        if self.parameters.measure:
            result = result or self._measure_and_write(kind, key | fingerprint_data(), folder, measure)
            if result.path:
                _remove_leftovers(result.path)
        elif result is None and self.missing is not None:
            self.missing[json.dumps([kind, key], sort_keys=True)] = kind, key
        return result

    def require(self, result: Result | None, what: str) -> Result:
        """The result. Raises NotMeasuredError, with its name `what`, if there is none."""
        if result is None:
            raise NotMeasuredError(
                f"not measured: {what} of {self.source.name} in {self.source.dtype}; `deeper-layers distances` "
                "measures distances, `deeper-layers sweep` the rest"
            )
        return result

    def _measure_and_write(self, kind: str, key: dict, folder: Path, measure: Callable) -> Result:
        """Measure now, continuing from the parts that an interrupted run left, unless another process has finished it.

        Raises InputError under torchrun or accelerate with several processes: all would wait for the first one.
        """
        if (processes := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
            raise InputError(
                f"WORLD_SIZE is {processes}, and a result is measured by one process: start one, or "
                "unset it; healing by several is deeper_layers.heal in a script of yours"
            )
        path = results.result_path(kind, key, folder)
        files.check_writable(path.parent)
        with files.locked(path, f"waiting for another process, which measures {path.stem}"):
            with warnings.catch_warnings(action="ignore"):  # the first search has warned of unreadable results
                if result := results.find_result(kind, key, folder):
                    return result
            shards = Shards(path.with_suffix(".partial"))
            provenance = results.provenance(models.device_name())  # before measuring, as the checkout may change
            with results.clock() as duration:
                rows, details = measure(shards)
            provenance |= duration | {"seconds_in_earlier_runs": shards.seconds_before}
            details = details | {"num_layers": self.source.num_layers, "weights": self.source.quantized}
            return results.write_result(kind, key, provenance, rows, details, folder)


def _remove_leftovers(path: Path) -> None:
    """Remove the shards and locks of processes that were killed after the result was written."""
    Shards(path.with_suffix(".partial")).remove()
    files.remove_leftovers(path.parent)
    if path.with_suffix(".lock").exists():
        with contextlib.suppress(Timeout, InputError), files.locked(path):
            pass
