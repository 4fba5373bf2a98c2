"""One model under some options: identified when first needed, and opened once; what results hold of it."""

import copy
import dataclasses
import functools
import os
from typing import Any, TypeVar

from deeper_layers import data, models
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import Source
from deeper_layers_companion import results
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.results.store import Result

Kind = TypeVar("Kind", bound="Subject")  # not Self: shapes are checked method by method


def check_single_process() -> None:
    """Raise InputError under torchrun or accelerate with several processes: all would write the same files."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise InputError(
            f"WORLD_SIZE is {processes}, and a result is measured by one process: start one, or "
            "unset it; healing by several is deeper_layers.heal in a script of yours"
        )


class Subject:
    """A model that is measured. `options` say which, how it is opened and where results are; with `planning` no weights
    are read but for their hash, and that only if there are results under the model's name."""

    def __init__(self, options: Any, source: Source | None = None, *, planning: bool = False):
        self.options = options.replace(measure=False) if planning else options
        self.planning = planning
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
        options = self.options
        hashed = True
        if not options.measure and (recorded := self._find_recorded()):
            return recorded
        if self.planning:
            folder = results.slugify(models.model_name(options.model))
            is_known = any(
                (place / folder).is_dir() for place in results.readable_folders(options.folder)
            )
            hashed = is_known or is_gguf(options.model)
        how = {
            "revision": options.revision,
            "dtype": options.dtype,
            "trust_remote_code": options.trust_remote_code,
        }
        source = models.find_model(options.model, hashed=hashed, **how)
        name = results.find_model_name(source.weights, options.folder) if source.is_gguf else None
        return source if name is None else dataclasses.replace(source, name=name)

    def _find_recorded(self) -> Source | None:
        if self.planning:  # sizes and prices are of the model itself
            return None
        return results.find_recorded_model(
            self.options.model, self.options.dtype, self.options.folder
        )

    def replace(self: Kind, **changes) -> Kind:
        """The same model, opened or not, under other options, except those that say how it is opened."""
        changed = copy.copy(self)
        changed.options = self.options.replace(**changes)
        changed.source = self.source
        return changed

    def open(self, key: dict | None = None) -> tuple:
        """The model and its tokenizer, in the data type and quantization of a key; without one, as the options say. The
        same objects if it was opened so last. Raises InputError for a tokenizer without words."""
        key = key or {"dtype": self.source.dtype, "quantization": self.options.quantization}
        asked = key["dtype"], key["quantization"]
        if self._opened is None or self._opened[0] != asked:
            self._opened = None  # one model at a time
            source = dataclasses.replace(self.source, dtype=key["dtype"])
            how = {
                "device": self.options.device,
                "trust_remote_code": self.options.trust_remote_code,
            }
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
        if not complete and not all(
            data.is_available_offline(item.name, datasets) for item in job.reads
        ):
            return job.key
        for item in job.reads:
            if str(item) not in self._fingerprints:
                self._fingerprints[str(item)] = item.fingerprint(datasets)
        found = dict.fromkeys(self._fingerprints[str(item)] for item in job.reads)  # each once
        return job.key | {"data": ", ".join(found)}
