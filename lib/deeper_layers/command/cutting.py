"""The one cut of `prune` and `heal`: by its place, by a rule, for some engines, or of any shape, layer by layer."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import click

from deeper_layers.checks import LAYERS, whole_number
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.experiments.parameters import Parameters, SweepParameters, check_given
from deeper_layers.models.sources import Source
from deeper_layers.rules.choosing import DROPPING, REGISTERED, RULES, cuts_of_rule

Safe = Callable[[list[Cut]], list[Cut]]  # of some cuts those that are read rightly


def cut_options(more: str = "", rules: Iterable[str] = DROPPING) -> Callable:
    """Options --drop, --start and --rule, one of `rules`; `more` is said of --drop."""
    rules = list(rules)

    def decorate(function: Callable) -> Callable:
        function = click.option(
            "--rule", type=click.Choice(rules), default="similarity", show_default=True,
            help=f"{'; '.join(f'{name}: {REGISTERED[name].words}' for name in rules)}. What it needs is from "
            "results, or measured now",
        )(function)  # fmt: skip
        function = click.option("--start", type=int, help="the first of them, counted from 0, instead of a rule")(
            function
        )
        return click.option("--drop", type=int, help=f"number of layers to drop{more}")(function)

    return decorate


def list_options(*names: str) -> Callable:
    """Options of these names, of layers, attention and mlp: a cut by lists."""

    def decorate(function: Callable) -> Callable:
        for name in reversed(names):
            words = (SweepParameters.model_fields[name].description or "").replace("rules and sizes", "--drop")
            function = click.option(f"--{name}", metavar="LIST", help=words)(function)
        return function

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
        if not REGISTERED[rule].needs:
            return cuts_of_rule(rule, [drop], layers)[0]
        return _chosen(rule, drop, *measured())
    if rule not in RULES:
        raise InputError(f"--rule is {rule} with --for, which chooses among blocks: give one of {', '.join(RULES)}")
    if not (passing := safe([Cut(first, drop) for first in range(layers - drop)])):
        raise InputError(
            f"--drop is {drop}, and no block of so many layers before the last can go without an engine of --for "
            "taking others for what they are not: choose another number, or leave out --for"
        )
    if rule == "simple":
        return passing[-1]
    from deeper_layers.experiments.distances import distances_to_choose  # slow

    parameters, source, opened = measured()
    with _how_to_measure():
        rows = distances_to_choose(parameters, source, opened).rows
    row = rows[rows["size"] == drop].set_index("start")["distance"]
    return min(passing, key=lambda cut: row[cut.start])


def check_fits(drop: int, start: int | None, layers: int, given: Cut | None = None) -> None:
    """Refuse a cut that does not fit a model, or one that is `given` by lists, in the words of the options."""
    if given is not None:
        return check_given(given, layers)
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


def check_typed(drop: int | None, start: int | None, given: Cut | None = None) -> None:
    """Refuse what no model could make right: numbers of no layers, and two ways to say which."""
    for name, number in (("--drop", drop), ("--start", start)):
        if number is not None:
            whole_number(name, number, 0, LAYERS, "choose a number of layers")
    context = click.get_current_context()
    ruled = context.get_parameter_source("rule") is not click.core.ParameterSource.DEFAULT
    if start is not None and ruled:
        raise click.UsageError("--start names the place, and --rule chooses it: give one of them")
    if given is not None and (drop is not None or start is not None or ruled):
        raise click.UsageError(
            "lists like --layers name what is dropped, and --drop, --start and --rule choose it: give one of them"
        )


def _chosen(rule: str, drop: int, parameters: Parameters, source: Source, opened: Callable) -> Cut:
    from deeper_layers.experiments.choosing import chosen_cuts  # slow
    from deeper_layers.experiments.distances import distances_to_choose

    with _how_to_measure():
        return chosen_cuts(rule, [drop], parameters, source, opened, distances_to_choose)[0]


@contextlib.contextmanager
def _how_to_measure() -> Iterator[None]:
    """What a rule needs and results do not hold, where nothing is to be measured: say what can be done."""
    try:
        yield
    except NotMeasuredError as error:
        raise NotMeasuredError(
            f"{error}; `deeper-layers distances` measures distances, and `sweep --rules` what a search needs; without "
            "them give --rule simple, or --start"
        ) from error
