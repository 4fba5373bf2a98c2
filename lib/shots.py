"""Number and order of the examples in a prompt (Gromov et al. 2024, figure 7): for each of both a measured unit."""

import functools
from collections.abc import Callable

from lib import corpora, evaluation
from lib.models import Source
from lib.parameters import ShotParameters
from lib.pruning import Cut
from lib.results import Unit, measure_or_load
from lib.sweep import sweep

VERSION = 2  # part of every unit's key: raise it when a change here changes numbers


def shots_unit(
    task: str, shots: int, order: int, cuts: list[Cut], parameters: ShotParameters, source: Source, opened: Callable
) -> Unit | None:
    """The pruned models, not healed, on a task: read from results, else measured.

    `shots` examples stand in each prompt, in the task's own order for `order` 0, else shuffled with that as the
    seed. Rows as a sweep has them, of the task or group alone. `cuts` are those of the parameters' one rule.
    None where nothing is to be measured and results hold no such unit.
    """
    key = {
        "model": source.key,
        "dtype": source.dtype,
        **parameters.key,
        "task": task,
        "rule": parameters.rules,
        "cuts": [[cut.start, cut.size] for cut in cuts],
        "limit": parameters.limits[task],
        "num_fewshot": shots,
        "order": order,
        "version": VERSION,
    }

    def measure(shards):
        table = sweep(
            *opened(), [task], cuts, **parameters.sweep_options(task) | {"num_fewshot": shots}, fewshot_order=order,
            shards=shards,
        )  # fmt: skip
        details = {**table.attrs, "num_layers": source.num_layers, "weights": source.quantized}
        own = table[table["task"] == task]
        return (table if own.empty else own).reset_index(drop=True), details

    return measure_or_load(
        "shots", f"{task}-{shots}-{order}", key, measure, parameters.results_folder,
        data=functools.partial(evaluation.data_fingerprint, task, parameters.datasets),
        at_hand=corpora.is_at_hand(task, parameters.datasets), allowed=parameters.measure,
    )  # fmt: skip
