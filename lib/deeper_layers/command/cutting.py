"""The one cut of `prune` and `heal`: by its place, or by a rule, and where asked one that some engines read rightly."""

from collections.abc import Callable

import click
import numpy as np

from deeper_layers.checks import LAYERS, whole_number
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.models.sources import Source
from deeper_layers.rules.choosing import RULES, cuts_of_rule

Safe = Callable[[list[Cut]], list[Cut]]  # of some cuts those that are read rightly


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
    drop: int,
    start: int | None,
    rule: str,
    layers: int,
    measured: Callable[[], tuple[Parameters, Source, Callable]],
    safe: Safe | None = None,
) -> Cut:
    """The cut that was asked for, checked against the model's depth.

    `measured()` is asked where distances are needed: parameters, source, and what opens the model. With `safe` it is
    the best of the rule's candidates that pass: the most similar block, or that nearest to the simple heuristic's.

    Raises InputError for a cut that does not fit or pass, or distances that are not measured and not to be measured.
    """
    check_fits(drop, start, layers)  # before anything is measured
    if start is not None:
        return Cut(start, drop)
    if safe is None or drop == 0:
        distances = _distances(*measured()) if rule == "similarity" else None
        return cuts_of_rule(rule, [drop], layers, distances)[0]
    if not (passing := safe([Cut(first, drop) for first in range(layers - drop)])):
        raise InputError(
            f"--drop is {drop}, and no block of so many layers before the last can go without an engine of --for "
            "taking others for what they are not: choose another number, or leave out --for"
        )
    if rule == "simple":
        return passing[-1]
    row = _distances(*measured())[drop - 1]
    return min(passing, key=lambda cut: row[cut.start])


def check_fits(drop: int, start: int | None, layers: int) -> None:
    """Refuse a cut that does not fit a model, in the words of the options."""
    if not 0 <= drop < layers:
        raise InputError(
            f"--drop is {drop}; expected 0 to {layers - 1} for a model of {layers} layers, as one has to stay: choose "
            "a number in that range"
        )
    if start is not None and not 0 <= start <= layers - drop:
        raise InputError(
            f"--start is {start} with --drop {drop}; expected 0 to {layers - drop}, as the layers of the model are 0 "
            f"to {layers - 1}: choose one in that range, or drop fewer"
        )


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

    try:
        return distance_matrix(distances_unit(parameters, source, opened).rows)
    except InputError as error:
        if parameters.measure:
            raise
        raise InputError(
            f"{error}; `deeper-layers distances` measures them, without them give --rule simple, or --start"
        ) from error
