"""Number and order of the examples in a prompt: for each of both a measured unit (paper, figure 7)."""

from collections.abc import Callable

from deeper_layers import sweeping
from deeper_layers.cuts import Cut
from deeper_layers.experiments.measurement import Measurement, items_of
from deeper_layers.experiments.parameters import QuestionAnsweringParameters
from deeper_layers.models.sources import Source
from deeper_layers.results.units import Unit

VERSION = 2  # part of every unit's key: raise it when a change here or in evaluation changes numbers


def shots_unit(
    task: str, shots: int, order: int, cuts: list[Cut], parameters: QuestionAnsweringParameters, source: Source,
    opened: Callable,
) -> Unit | None:  # fmt: skip
    """The pruned models, not healed, on a task: read from results, else measured.

    `shots` examples stand in each prompt, in the task's own order for `order` 0, else shuffled with that as the
    seed. Rows as a sweep has them, of the task or group alone. `cuts` are those of the parameters' one rule.
    None where nothing is to be measured and results hold no such unit.
    """

    def measure(shards):
        options: dict = parameters.sweep_options(task) | {"num_fewshot": shots}
        table = sweeping.sweep(*opened(), [task], cuts, **options, fewshot_order=order, shards=shards)
        own = table[table["task"] == task]
        return (table if own.empty else own).reset_index(drop=True), dict(table.attrs)

    return Measurement(
        kind="shots", name=f"{task}-{shots}-{order}", version=VERSION, source=source, measure=measure,
        settings={
            **parameters.key, "task": task, "rule": parameters.rules, "cuts": [[cut.start, cut.size] for cut in cuts],
            "limit": parameters.limits[task], "num_fewshot": shots, "order": order,
        },
        reads=items_of([task], parameters.datasets),
    ).unit(parameters)  # fmt: skip
