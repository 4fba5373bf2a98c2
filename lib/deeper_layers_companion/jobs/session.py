"""One model under some options: identified when first needed, opened once; its results found, or measured and written.

A session finds the result of a job, or has it measured under a lock, and writes it. A plan measures nothing: the jobs
whose results are absent gather in `missing`.
"""

import contextlib
import copy
import dataclasses
import functools
import os
import warnings
from pathlib import Path
from typing import Any

from deeper_layers import data, files, models
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.files import Timeout
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import Source
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion import results
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.results.store import Result


class Session:
    """A model and its results. `options` say which model, how it is opened and where results are; with `planning` no
    weights are read but for their hash, and that only if there are results under the model's name."""

    def __init__(self, options: Any, source: Source | None = None, *, planning: bool = False):
        self.options = options.replace(measure=False) if planning else options
        self.planning = planning
        self.missing: dict[str, Job] = {}  # by their identity
        self.drawn: dict[tuple, Any] = {}  # sequences of tokens, and maps, which several jobs use
        self._fingerprints: dict[str, str] = {}  # of data, which may take long to read
        self._opened: tuple | None = None  # data type and quantization, and what was opened in them
        if source:
            self.source = source

    @functools.cached_property
    def source(self) -> Source:
        """The model, identified but not opened. A GGUF file has the name that results have for its weights.

        If nothing is to be measured, the model is taken from results where they know it.
        """
        options, hashed = self.options, True
        if not options.measure and (recorded := self._find_recorded()):
            return recorded
        if self.planning:
            folder = results.slugify(models.model_name(options.model))
            is_known = any((place / folder).is_dir() for place in results.readable_folders(options.folder))
            hashed = is_known or is_gguf(options.model)
        how = {"revision": options.revision, "dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
        source = models.find_model(options.model, hashed=hashed, **how)
        name = results.find_model_name(source.weights, options.folder) if source.is_gguf else None
        return source if name is None else dataclasses.replace(source, name=name)

    def _find_recorded(self) -> Source | None:
        if self.planning:  # sizes and prices are of the model itself
            return None
        return results.find_recorded_model(self.options.model, self.options.dtype, self.options.folder)

    def replace(self, **changes) -> "Session":
        """The same model, opened or not, under other options, except those that say how it is opened."""
        changed = copy.copy(self)
        changed.options, changed.source = self.options.replace(**changes), self.source
        return changed

    def open(self, key: dict | None = None) -> tuple:
        """The model and its tokenizer, in the data type and quantization of a key; without one, as the options say. The
        same objects if it was opened so last. Raises InputError for a tokenizer without words."""
        key = key or {"dtype": self.source.dtype, "quantization": self.options.quantization}
        asked = key["dtype"], key["quantization"]
        if self._opened is None or self._opened[0] != asked:
            self._opened = None  # one model at a time
            source = dataclasses.replace(self.source, dtype=key["dtype"])
            how = {"device": self.options.device, "trust_remote_code": self.options.trust_remote_code}
            opened = models.load_model(source, quantization=key["quantization"], **how)
            data.check_tokenizer(opened[1])
            self._opened = asked, opened
        return self._opened[1]

    def find(self, job: Job) -> Result | None:
        """The result of a job, or one that has more cuts; None if results hold none.

        Data on a hub are fingerprinted only if no result agrees in everything else. So pages are drawn from results
        on a machine without a hub.
        """
        return results.find_result(job.kind, self.find_key(job), self.options.folder)

    def get(self, job: Job, needed: str = "") -> Any:
        """The result of a job: found, else measured and written; None if nothing is to be measured, and a plan notes
        that it is missing. If it is `needed`, what is missing in words, raises NotMeasuredError instead."""
        key = self.find_key(job)
        result = results.find_result(job.kind, key, self.options.folder)
        if self.options.measure:
            if result is None or not _is_enough(job, result):
                result = self._measure_and_write(job, key)
            if result.path:
                _remove_leftovers(result.path)
        elif result is None:
            self.missing.setdefault(job.identity, job)
            if needed:
                self.refuse(needed, job)
        return result

    def measure(self, job: Job, shards: Shards) -> tuple[list[dict], dict]:
        """The rows and details of a job, measured now. Finished parts of the work are kept in the shards."""
        from deeper_layers_companion.jobs.measure import FORMS  # whose functions open models by sessions

        return FORMS[job.form](job, self, shards)

    def refuse(self, what: str, job: Job | None = None) -> None:
        """Raise NotMeasuredError: `what`, of `job`, is not measured, and nothing is to be."""
        nearest = self.describe_nearest(job) if job else ""
        raise NotMeasuredError(
            f"not measured: {what} of {self.source.name} in {self.source.dtype}{nearest}; `deeper-layers distances` "
            "measures distances, `deeper-layers sweep` the rest"
        )

    def describe_nearest(self, job: Job) -> str:
        """The nearest that results hold to a job that they lack, in brackets; "" if they hold nothing like it."""
        nearest = results.describe_nearest(job.kind, self.find_key(job), self.options.folder)
        return f" ({nearest})" if nearest else ""

    def find_key(self, job: Job, *, complete: bool = False) -> dict:
        """The key of a job with the fingerprint of its data; without it where they are on a hub, unless the key is to
        be complete."""
        datasets = self.options.datasets
        if not complete and not all(data.is_available_offline(item.name, datasets) for item in job.reads):
            return job.key
        for item in job.reads:
            if str(item) not in self._fingerprints:
                self._fingerprints[str(item)] = item.fingerprint(datasets)
        found = dict.fromkeys(self._fingerprints[str(item)] for item in job.reads)  # each once
        return job.key | {"data": ", ".join(found)}

    def _measure_and_write(self, job: Job, key: dict) -> Result:
        """Measure now, continuing from the parts that an interrupted run left, unless another process has finished it.

        Raises InputError under torchrun or accelerate with several processes: all would wait for the first one.
        """
        if (processes := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
            raise InputError(
                f"WORLD_SIZE is {processes}, and a result is measured by one process: start one, or "
                "unset it; healing by several is deeper_layers.heal in a script of yours"
            )
        folder = self.options.folder
        if "data" not in key:
            key = self.find_key(job, complete=True)
        path = results.result_path(job.kind, key, folder)
        files.check_writable(path.parent)
        with files.locked(path, f"waiting for another process, which measures {path.stem}"):
            with warnings.catch_warnings(action="ignore"):  # the first search has warned of unreadable results
                earlier = results.find_result(job.kind, key, folder)
            if earlier is not None and _is_enough(job, earlier):
                return earlier
            shards = Shards(path.with_suffix(".partial"))
            provenance = results.provenance(models.device_name())  # before measuring, as the checkout may change
            with results.clock() as duration:
                rows, details = self.measure(job, shards)
            before = shards.seconds_before
            if earlier is not None:
                before += earlier.provenance["seconds"] + earlier.provenance.get("seconds_in_earlier_runs", 0)
            provenance |= duration | {"seconds_in_earlier_runs": before}
            details = details | {"num_layers": self.source.num_layers, "weights": self.source.quantized}
            return results.write_result(job.kind, key, provenance, rows, details, folder)


def _is_enough(job: Job, result: Result) -> bool:
    """Whether a result that was found is all that the job asks for."""
    if job.until is None:
        return True
    from deeper_layers_companion.jobs.looks import is_enough  # slow to import

    return is_enough(job, result)


def _remove_leftovers(path: Path) -> None:
    """Remove the shards and locks of processes that were killed after the result was written."""
    Shards(path.with_suffix(".partial")).remove()
    files.remove_leftovers(path.parent)
    if path.with_suffix(".lock").exists():
        with contextlib.suppress(Timeout, InputError), files.locked(path):
            pass
