"""What a notebook asks for and results lack, measured: a function for each class of parameters.

`measure` is called where one model is asked for, and writes results; what is there already is left as it is.
"""

import functools
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from deeper_layers import results
from deeper_layers.experiments.base_parameters import PUBLISHED
from deeper_layers.experiments.choices import compare_rules
from deeper_layers.experiments.distances import distances_unit
from deeper_layers.experiments.geometry import geometry_unit
from deeper_layers.experiments.healings import heal_and_score
from deeper_layers.experiments.losses import blocks, of_corpus, scan, scan_cuts, score_text
from deeper_layers.experiments.notebook_parameters import (
    ComparedHealingsParameters,
    QuestionAnsweringParameters,
    ReproductionParameters,
    ScanParameters,
    TakeAwayParameters,
    WhichLayersParameters,
)
from deeper_layers.experiments.parameters import Parameters, TaskParameters
from deeper_layers.experiments.scoring import chooser, cuts_of_tasks, distinct_cuts, score_task
from deeper_layers.experiments.take_away import score_files, score_rounded
from deeper_layers.models.sources import Source

if TYPE_CHECKING:  # slow
    import pandas as pd


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
        score_task(task, cuts, parameters, source, opened)


@_measure.register
def _(parameters: QuestionAnsweringParameters, source: Source, opened: Callable) -> None:
    numbers, orders = parameters.numbers, parameters.orders
    for task, cuts in cuts_of_tasks(parameters, source, opened).items():
        score_task(task, cuts, parameters, source, opened)
        if (usual := parameters.asked[task].shots) is None or not (numbers or orders):
            continue
        for shots, order in [(usual, 0), *((number, 0) for number in numbers), *((usual, order) for order in orders)]:
            for rule, of_rule in cuts.items():
                score_task(task, {rule: of_rule}, parameters, source, opened, shots=shots, order=order)


@_measure.register
def _(parameters: ComparedHealingsParameters, source: Source, opened: Callable) -> None:
    cuts_of = chooser(parameters, source, opened)(parameters.size_list(source.num_layers))
    score_text(of_corpus(parameters.loss_key, parameters.datasets), cuts_of, parameters, source, opened)
    for task in parameters.task_list:
        score_task(task, cuts_of, parameters, source, opened)
    for config in parameters.configs():
        for cut in distinct_cuts(cuts_of):
            rules = [rule for rule, cuts in cuts_of.items() if cut in cuts]
            heal_and_score(cut, config, parameters, source, opened, rules)


@_measure.register
def _(parameters: WhichLayersParameters, source: Source, opened: Callable) -> None:
    distances = distances_unit(parameters, source, opened, by_sequence=True)
    every = blocks(parameters.size_list(source.num_layers), source.num_layers)
    score_text(of_corpus(parameters.loss_key, parameters.datasets), every, parameters, source, opened)
    geometry_unit(parameters, source, opened)
    compare_rules(parameters, source, opened, distances)


@_measure.register
def _(parameters: ScanParameters, source: Source, opened: Callable) -> None:
    scan(scan_cuts(parameters, source, opened), parameters, source, opened)


@_measure.register
def _(parameters: TakeAwayParameters, source: Source, opened: Callable) -> None:
    rule = parameters.rule_list[0]
    cuts_of = chooser(parameters.but(rules=rule), source, opened)
    if source.is_gguf:
        score_files(rule, cuts_of([parameters.drop])[rule][-1], parameters, source)
    for bits in parameters.bits_list(source):
        score_rounded(bits, cuts_of(parameters.size_list(source.num_layers)), parameters, source)


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
                score_task(task, cuts_of, afresh, source, opened)
        return results.scores(afresh.results_folder)
