"""What a notebook asks for and results lack, measured: a function for each class of parameters.

`measure` is called where one model is asked for, and writes units of results; what is there already is left as it is.
"""

import functools
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from deeper_layers import results
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.bits import bits_unit
from deeper_layers.experiments.block_parameters import ScanParameters, WhichLayersParameters
from deeper_layers.experiments.choices import changed_models, choice_unit, score_units
from deeper_layers.experiments.common_parameters import PUBLISHED, Parameters
from deeper_layers.experiments.distances import distances_unit
from deeper_layers.experiments.geometry import geometry_unit
from deeper_layers.experiments.healings import healing_unit
from deeper_layers.experiments.losses import loss_unit, map_unit
from deeper_layers.experiments.parameters import (
    ComparedHealingsParameters,
    QuestionAnsweringParameters,
    ReproductionParameters,
    TakeAwayParameters,
    TaskParameters,
)
from deeper_layers.experiments.scans import scan_cuts, scanned
from deeper_layers.experiments.shots import shots_unit
from deeper_layers.experiments.sweeps import chooser, cuts_of_tasks, distinct_cuts, sweep_unit
from deeper_layers.experiments.take_away import take_away_unit
from deeper_layers.models.sources import Source
from deeper_layers.rules.choosing import cuts_of_rule
from deeper_layers.rules.similarity import distance_matrix

if TYPE_CHECKING:  # slow
    import pandas as pd

    from deeper_layers.results.units import Unit


def measure(parameters: Parameters) -> None:
    """Measure what `parameters` ask of one model and results lack. Raises InputError for what can't be had."""
    source = parameters.source()
    _measure(parameters, source, functools.cache(lambda: parameters.open(source)))


@functools.singledispatch
def _measure(parameters: Parameters, source: Source, opened: Callable) -> None:
    distances_unit(parameters, source, opened)


@_measure.register
def _(parameters: TaskParameters, source: Source, opened: Callable) -> None:
    for task, cuts in cuts_of_tasks(parameters, source, opened).items():
        sweep_unit(task, cuts, parameters, source, opened)


@_measure.register
def _(parameters: QuestionAnsweringParameters, source: Source, opened: Callable) -> None:
    numbers, orders = parameters.number_list("numbers"), parameters.number_list("orders")
    for task, cuts in cuts_of_tasks(parameters, source, opened).items():
        sweep_unit(task, cuts, parameters, source, opened)
        if (usual := parameters.shots[task]) is None or not (numbers or orders):
            continue
        for shots, order in [(usual, 0), *((number, 0) for number in numbers), *((usual, order) for order in orders)]:
            for rule, of_rule in cuts.items():
                shots_unit(task, shots, order, of_rule, parameters.but(rules=rule), source, opened)


@_measure.register
def _(parameters: ComparedHealingsParameters, source: Source, opened: Callable) -> None:
    cuts_of = chooser(parameters, source, opened)(parameters.size_list(source.num_layers))
    loss_unit(distinct_cuts(cuts_of), parameters, source, opened)
    for task in parameters.task_list:
        sweep_unit(task, cuts_of, parameters, source, opened)
    for config in parameters.configs():
        for cut in distinct_cuts(cuts_of):
            healing_unit(cut, config, parameters, source, opened)


@_measure.register
def _(parameters: WhichLayersParameters, source: Source, opened: Callable) -> None:
    distances = distances_unit(parameters, source, opened, by_sequence=True)
    map_unit(parameters, source, opened)
    geometry_unit(parameters, source, opened)
    sizes, units = parameters.shares(source.num_layers), {}
    for rule in parameters.rule_list:
        try:
            units[rule] = choice_unit(rule, sizes, parameters, source, opened)
        except InputError as error:  # not every rule fits every model
            print(f"{rule}: {error}; it is left out", file=sys.stderr)
    choices = {rule: _choices(unit) for rule, unit in units.items()}
    known = distance_matrix(distances.rows)
    for rule in {"similarity", "simple"} & set(choices):
        cuts = cuts_of_rule(rule, sizes, source.num_layers, known)
        choices[rule] = dict(zip(sizes, cuts, strict=True))
    made = changed_models(units, parameters, opened)
    for task in parameters.task_list:
        score_units(task, choices, units, parameters, source, opened, made)


@_measure.register
def _(parameters: ScanParameters, source: Source, opened: Callable) -> None:
    scanned(scan_cuts(parameters, source, opened), parameters, source, opened)


@_measure.register
def _(parameters: TakeAwayParameters, source: Source, opened: Callable) -> None:
    rule = parameters.rule_list[0]
    cuts_of = chooser(parameters.but(rules=rule), source, opened)
    if source.is_gguf:
        take_away_unit(cuts_of([parameters.drop])[rule][-1], parameters, source)
    for bits in parameters.bits_list(source):
        bits_unit(bits, cuts_of(parameters.size_list(source.num_layers))[rule], parameters, source)


def again(parameters: ReproductionParameters) -> "pd.DataFrame":
    """Scores measured now, into a folder that goes, under the published cuts; see `ReproductionParameters.again`."""
    wanted = parameters if parameters.model != PUBLISHED else parameters.but(model="embedded")
    with tempfile.TemporaryDirectory() as folder:
        afresh = wanted.but(results=folder)
        if parameters.measure:
            source = wanted.source()
            opened = functools.cache(lambda: wanted.open(source))
            cuts_of = chooser(wanted, source, opened)(wanted.size_list(source.num_layers))
            for task in wanted.task_list:
                sweep_unit(task, cuts_of, afresh, source, opened)
        return results.scores(afresh.results_folder)


def _choices(unit: "Unit") -> dict[int, Cut]:
    """What a rule drops, by size, as its unit has it."""
    rows = unit.rows[unit.rows["size"] > 0].to_dict("records")
    return {row["size"]: Cut.of(row["layers"], row["attention"], row["mlp"]) for row in rows}
