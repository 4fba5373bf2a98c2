"""Are the numbers right on this machine? Every trial of trials.py, on little, beside its plain loop.

`check_model` runs all trials on the processor in float32, and then on the device in each data type that it has; without
a device, on the processor in bfloat16.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from deeper_layers import models
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError, first_line, is_out_of_memory
from deeper_layers.models.network import is_streamed
from deeper_layers.models.opening import choose_device, device_name
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.schema import ModelKey
from deeper_layers.sweeping import harness
from deeper_layers_companion import results
from deeper_layers_companion.jobs.trials import ITEMS, KINDS, LEFT, TEXTS, Asked, Opened, open_at
from deeper_layers_companion.results import check_report
from deeper_layers_companion.results.check_report import CheckReport, Trial, describe_fit
from deeper_layers_companion.results.schema import Provenance


def check_model(model: str, device: str = "auto", **opening) -> CheckReport:
    """Run all trials of a model, and say what differs. `opening` are a revision and `trust_remote_code`.

    Raises InputError where the model can't be opened, or the device is not there.
    """
    place = choose_device(device)
    found = functools.partial(models.find_model, model, **opening)
    source = found(dtype="float32")
    places = [("cpu", "float32")]
    if place == "cpu":
        places.append(("cpu", "bfloat16"))
    else:
        places += [(place, dtype) for dtype in DTYPES if has_dtype(place, dtype)]
    provenance = results.provenance(device_name())
    with (
        results.clock() as duration,
        tempfile.TemporaryDirectory(prefix="deeper-layers-check-") as folder,
    ):
        asked = _ask(model, source, opening, Path(folder) / "slice")
        trials: list[Trial] = []
        for where, dtype in tqdm(places, desc="check", unit="place", file=sys.stderr, disable=None):
            trials += _run_trials(asked, where, found(dtype=dtype), trials)
    return CheckReport(
        check=check_report.VERSION,
        model=ModelKey(**source.key),
        layers=source.num_layers,
        provenance=Provenance(**provenance, **duration),
        trials=trials,
        fit=describe_fit(trials),
    )


def _ask(model: str, source: Source, opening: dict, folder: Path) -> Asked:
    """Open the model that knows the answers, and ask."""
    reference = open_at(source, "cpu", opening)
    layers = source.num_layers
    cuts = [UNPRUNED, simple_cut(layers, max(1, layers // 10)), Cut.of([layers // 3, layers // 2])]
    tokenize = reference.tokenizer
    rows = [tokenize(text)["input_ids"] for text in TEXTS]
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    tasks = harness.collect_requests(harness.load_tasks(["capitals"]), *reference, limit=ITEMS)
    batch = {"input_ids": ids, "attention_mask": mask}
    sliced = Cut(LEFT // 2, layers - LEFT) if layers > LEFT else cuts[1]
    return Asked(model, opening, reference, cuts, batch, tasks.requests, sliced, folder)


def has_dtype(device: str, dtype: str) -> bool:
    """Whether a device multiplies matrices of a data type."""
    try:
        matrix = torch.ones(2, 2, device=device, dtype=getattr(torch, dtype))
        return (matrix @ matrix).cpu().float().sum().item() == 8
    except (RuntimeError, TypeError):
        return False


def _run_trials(asked: Asked, place: str, source: Source, before: list[Trial]) -> list[Trial]:
    """All trials on one device in one data type. What the processor in float32 could not do is not tried again."""
    is_reference = (place, source.dtype) == ("cpu", "float32")
    untried = {trial.trial: trial.untried for trial in before[: len(KINDS)] if trial.untried}
    try:
        opened = asked.reference if is_reference else open_at(source, place, asked.opening)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        opened = None
        untried = dict.fromkeys(KINDS, f"the weights do not fit ({first_line(error)})")
    if opened and is_streamed(opened.model):
        untried["training"] = "layers that stay on disk are not trained"
    rows = []
    for name, kind in KINDS.items():
        row: dict = {"trial": name, "device": place, "dtype": source.dtype, "unit": kind.unit}
        row["stated"] = kind.stated[source.dtype]
        if opened is None or name in untried:
            rows.append(Trial(**row, untried=untried[name]))
        else:
            rows.append(Trial(**row, **_run_trial(name, opened, asked, place, is_reference)))
    return rows


def _run_trial(name: str, opened: Opened, asked: Asked, place: str, is_reference: bool) -> dict:
    """What a trial found: how far its numbers are from the plain ones, its time and memory; or why there are none."""
    try:
        expected = asked.expect(name)
        started = time.perf_counter()
        found = KINDS[name].run(opened, asked)
    except Exception as error:  # whatever a device's code raises
        if is_out_of_memory(error):
            return {"untried": f"it does not fit ({first_line(error)})"}
        if is_reference and isinstance(error, InputError):
            return {"untried": first_line(error)}
        return {"failed": f"{type(error).__name__}: {first_line(error)}"}
    difference = float(np.abs(found.numbers - expected).max())
    measured = {
        "seconds": round(time.perf_counter() - started, 2),
        "pace": round(found.tokens / found.seconds),
    }
    measured["memory_bytes"] = _find_most_bytes(place)
    if not np.isfinite(difference):
        return measured | {"failed": "numbers are not finite"}
    return measured | {"difference": difference}


def _find_most_bytes(place: str) -> int | None:
    """Most bytes that were in use so far: on a device those that torch gave out, on the processor this process's."""
    if place == "cpu":
        with results.clock() as duration:
            pass
        return duration["peak_memory_bytes"]
    return torch.cuda.max_memory_allocated(place) if place.startswith("cuda") else None
