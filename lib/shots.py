"""Number and order of the examples in a prompt (Gromov et al. 2024, figure 7): for each of both a measured unit."""

import dataclasses
import functools
from collections.abc import Callable

from lib import corpora, evaluation
from lib.models import Source
from lib.parameters import AblationParameters
from lib.pruning import Cut
from lib.results import Unit, measure_or_load
from lib.sweep import sweep

VERSION = 1  # part of every unit's key: raise it when a change here changes numbers


def shots_unit(
    shots: int, order: int, cuts: list[Cut], parameters: AblationParameters, source: Source, opened: Callable
) -> Unit | None:
    """The pruned models, not healed, on the parameters' `shot_task`: read from results, else measured.

    `shots` examples stand in each prompt, in the task's own order for `order` 0, else shuffled with that as the
    seed. Rows as a sweep has them, of the task or group alone. The model that `opened()` returns is not quantized.
    None where nothing is to be measured and results hold no such unit.
    """
    task, limit = parameters.shot_task, parameters.shot_limit
    key = {
        "model": source.key,
        "dtype": source.dtype,
        **dataclasses.replace(parameters, quantization=None).key,
        "task": task,
        "cuts": [[cut.start, cut.size] for cut in cuts],
        "limit": limit,
        "num_fewshot": shots,
        "order": order,
        "version": VERSION,
    }

    def measure(shards):
        table = sweep(
            *opened(), [task], cuts, limit=limit, num_fewshot=shots, fewshot_order=order,
            datasets=parameters.datasets, memory=parameters.memory_bytes, shards=shards,
        )  # fmt: skip
        details = {**table.attrs, "num_layers": source.num_layers, "weights": source.quantized}
        own = table[table["task"] == task]
        return (table if own.empty else own).reset_index(drop=True), details

    return measure_or_load(
        "shots", f"{task}-{shots}-{order}", key, measure, parameters.results_folder,
        data=functools.partial(evaluation.data_fingerprint, task, parameters.datasets),
        at_hand=corpora.is_at_hand(task, parameters.datasets), allowed=parameters.measure,
    )  # fmt: skip
