"""What a notebook asks for and results lack, measured: a function for each class of parameters.

`measure` is called where one model is asked for, and writes results; what is there already is left as it is.
"""

import functools
import tempfile
from typing import TYPE_CHECKING

from deeper_layers import results
from deeper_layers.experiments.choices import compare_rules
from deeper_layers.experiments.choosing import choose_cuts
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment, distinct_cuts
from deeper_layers.experiments.geometry import measure_geometry
from deeper_layers.experiments.healings import heal_and_score
from deeper_layers.experiments.losses import blocks, scan, scan_cuts, score_text
from deeper_layers.experiments.notebook_parameters import (
    ComparedHealingsParameters,
    QuestionAnsweringParameters,
    ReproductionParameters,
    ScanParameters,
    TakeAwayParameters,
    WhichLayersParameters,
)
from deeper_layers.experiments.parameters import PUBLISHED, Parameters, TaskParameters
from deeper_layers.experiments.scoring import cuts_of_tasks, score_task
from deeper_layers.experiments.take_away import score_files, score_rounded

if TYPE_CHECKING:  # slow
    import pandas as pd


def measure(parameters: Parameters) -> None:
    """Measure what `parameters` ask of one model and results lack. Raises InputError for what can't be had."""
    _measure(parameters, Experiment(parameters))


@functools.singledispatch
def _measure(parameters: Parameters, experiment: Experiment) -> None:
    measure_distances(experiment)


@_measure.register
def _(parameters: TaskParameters, experiment: Experiment) -> None:
    for task, cuts in cuts_of_tasks(experiment).items():
        score_task(task, cuts, experiment)


@_measure.register
def _(parameters: QuestionAnsweringParameters, experiment: Experiment) -> None:
    for task, cuts in cuts_of_tasks(experiment).items():
        score_task(task, cuts, experiment)
        for prompt in parameters.prompts(task):
            for rule, of_rule in cuts.items():
                score_task(task, {rule: of_rule}, experiment, prompt=prompt)


@_measure.register
def _(parameters: ComparedHealingsParameters, experiment: Experiment) -> None:
    cuts_of = choose_cuts(parameters.size_list(experiment.source.num_layers), experiment)
    for text, asked in parameters.loss.items():
        score_text(text, asked, cuts_of, experiment)
    for task in parameters.asked:
        score_task(task, cuts_of, experiment)
    for config in parameters.configs():
        for cut in distinct_cuts(cuts_of):
            rules = [rule for rule, cuts in cuts_of.items() if cut in cuts]
            heal_and_score(cut, config, experiment, rules)


@_measure.register
def _(parameters: WhichLayersParameters, experiment: Experiment) -> None:
    layers = experiment.source.num_layers
    measure_distances(experiment, by_sequence=True)
    for text, asked in parameters.loss.items():
        score_text(text, asked, blocks(parameters.size_list(layers), layers), experiment)
    measure_geometry(experiment)
    compare_rules(experiment)


@_measure.register
def _(parameters: ScanParameters, experiment: Experiment) -> None:
    scan(scan_cuts(experiment), experiment)


@_measure.register
def _(parameters: TakeAwayParameters, experiment: Experiment) -> None:
    source, rule = experiment.source, parameters.rule_list[0]
    by_rule = experiment.but(rules=rule)
    if source.is_gguf:
        score_files(rule, choose_cuts([parameters.drop], by_rule)[rule][0], experiment)
    for bits in parameters.bits_list(source):
        score_rounded(bits, choose_cuts(parameters.size_list(source.num_layers), by_rule), experiment)


def again(parameters: ReproductionParameters) -> "pd.DataFrame":
    """Scores measured now, into a folder that goes, under the published cuts; see `ReproductionParameters.again`."""
    wanted = parameters if parameters.model != PUBLISHED else parameters.but(model="embedded")
    with tempfile.TemporaryDirectory() as folder:
        afresh = wanted.but(results=folder)
        if parameters.measure:
            experiment = Experiment(wanted)
            cuts_of = choose_cuts(wanted.size_list(experiment.source.num_layers), experiment)
            for task in wanted.asked:
                score_task(task, cuts_of, experiment.but(results=folder))
        return results.scores(afresh.results_folder)
