"""The result of a job: found, or measured under a lock and written.

A plan measures nothing: the jobs whose results are absent gather in `missing`.
"""

import contextlib
import warnings
from pathlib import Path
from typing import Any

from deeper_layers import files, models
from deeper_layers.errors import InputError
from deeper_layers.files import Timeout
from deeper_layers.models.sources import Source
from deeper_layers.sweeping.shards import Shards
from deeper_layers_companion import results
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.jobs.measure import FORMS
from deeper_layers_companion.jobs.subject import Subject, check_single_process
from deeper_layers_companion.results.store import Result


class Session(Subject):
    """A model, and all that is measured of it under some options."""

    def __init__(self, options: Any, source: Source | None = None, *, planning: bool = False):
        super().__init__(options, source, planning=planning)
        self.missing: dict[str, Job] = {}  # by their identity

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
        """The rows and details of a job, measured now, after the jobs that it needs. Finished parts of the work are
        kept in the shards."""
        needs = [self.get(needed) for needed in job.needs]
        return FORMS[job.form](job, needs, self, shards)

    def _measure_and_write(self, job: Job, key: dict) -> Result:
        """Measure now, going on from the parts that an interrupted run left, unless another process has finished it."""
        check_single_process()
        folder = self.options.folder
        if "data" not in key:
            key = self.find_key(job, complete=True)
        path = results.result_path(job.kind, key, folder)
        files.check_writable(path.parent)
        with files.locked(path, f"waiting for another process, which measures {path.stem}"):
            # the first search has warned of unreadable results
            with warnings.catch_warnings(action="ignore"):
                earlier = results.find_result(job.kind, key, folder)
            if earlier is not None and _is_enough(job, earlier):
                return earlier
            shards = Shards(path.with_suffix(".partial"))
            # before measuring, as the checkout may change
            provenance = results.provenance(models.device_name())
            with results.clock() as duration:
                rows, details = self.measure(job, shards)
            before = shards.seconds_before
            if earlier is not None:
                before += earlier.provenance["seconds"] + earlier.provenance.get(
                    "seconds_in_earlier_runs", 0
                )
            provenance |= duration | {"seconds_in_earlier_runs": before}
            details = details | {
                "num_layers": self.source.num_layers,
                "weights": self.source.quantized,
            }
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
