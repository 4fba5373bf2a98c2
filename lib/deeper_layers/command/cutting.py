"""The one cut of `prune` and `heal`: by its place, or by a rule."""

from collections.abc import Callable

import click
import numpy as np

from deeper_layers.checks import LAYERS, whole_number
from deeper_layers.cuts import Cut, check_size
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.models.sources import Source
from deeper_layers.rules.choosing import RULES, cuts_of_rule


def cut_options(required: bool, more: str = "") -> Callable:
    """Options --drop, --start and --rule; `more` is said of --drop."""

    def decorate(function: Callable) -> Callable:
        function = click.option(
            "--rule", type=click.Choice(RULES), default="similarity", show_default=True,
            help="similarity: the most similar block, by distances from results or measured now; simple: the layers "
            "before the last",
        )(function)  # fmt: skip
        function = click.option("--start", type=int, help="the first of them, counted from 0, instead of a rule")(
            function
        )
        return click.option("--drop", type=int, required=required, help=f"number of layers to drop{more}")(function)

    return decorate


def chosen_cut(
    drop: int, start: int | None, rule: str, layers: int, measured: Callable[[], tuple[Parameters, Source, Callable]]
) -> Cut:
    """The cut that was asked for, checked against the model's depth.

    `measured()` is asked where distances are needed: parameters, source, and what opens the model.

    Raises InputError for a cut that does not fit, or distances that are not measured and not to be measured.
    """
    if start is not None:
        cut = Cut(start, drop)
        cut.check(layers)
        return cut
    check_size(drop, layers)  # before anything is measured
    (cut,) = cuts_of_rule(rule, [drop], layers, _distances(*measured()) if rule == "similarity" else None)
    return cut


def check_typed(drop: int | None, start: int | None) -> None:
    """Refuse what no model could make right: numbers of no layers, and --start beside a --rule that was typed."""
    for name, number in (("--drop", drop), ("--start", start)):
        if number is not None:
            whole_number(name, number, 0, LAYERS, "choose a number of layers")
    context = click.get_current_context()
    if start is not None and context.get_parameter_source("rule") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--start names the place, and --rule chooses it: give one of them")


def _distances(parameters: Parameters, source: Source, opened: Callable) -> np.ndarray:
    from deeper_layers.experiments.distances import distances_unit
    from deeper_layers.rules.similarity import distance_matrix

    return distance_matrix(distances_unit(parameters, source, opened).rows)
