"""The one cut of `prune` and `heal`: by its place, by a rule, or of any shape, layer by layer."""

from collections.abc import Callable, Iterable

import click
from click.core import ParameterSource

from deeper_layers.cuts import Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import SweepParameters, check_given
from deeper_layers.rules.choosing import REGISTERED


def cut_options(rules: Iterable[str], lists: Iterable[str], more: str = "") -> Callable:
    """Options --drop, --start, --rule, one of `rules`, and `lists`: some of layers, attention and mlp.

    `more` is said of --drop.
    """
    rules, fields = list(rules), SweepParameters.model_fields
    words = f"{'; '.join(f'{name}: {REGISTERED[name].words}' for name in rules)}. What it needs is from results, or "
    options = [
        click.option("--drop", type=int, help=f"number of layers to drop{more}"),
        click.option("--start", type=int, help="the first of them, counted from 0, instead of a rule"),
        click.option(
            "--rule", type=click.Choice(rules), default="similarity", show_default=True, help=f"{words}measured now"
        ),
        *(
            click.option(
                f"--{name}", metavar="LIST", help=str(fields[name].description).replace("rules and sizes", "--drop")
            )
            for name in lists
        ),
    ]

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def check_typed(drop: int | None, start: int | None, listed: Cut | None) -> None:
    """Refuse what no model could make right: numbers of no layers, and two ways to say which."""
    context = click.get_current_context()
    ruled = context.get_parameter_source("rule") is not ParameterSource.DEFAULT
    if start is not None and ruled:
        raise click.UsageError("--start names the place, and --rule chooses it: give one of them")
    if listed is not None and (drop is not None or start is not None or ruled):
        raise click.UsageError(
            "lists like --layers name what is dropped, and --drop, --start and --rule choose it: give one of them"
        )
    Cut(start or 0, drop or 0)


def check_fits(drop: int, start: int | None, listed: Cut | None, layers: int) -> None:
    """Refuse a cut that does not fit a model of so many layers, before anything is measured."""
    check_given(listed, layers) if listed else Cut(start or 0, drop).check(layers)


def choose(rule: str, drop: int, layers: int, measured: Callable, safe: Callable | None = None) -> Cut:
    """The cut of a rule, see `experiments.choosing.choose_cut`; what can be done is said where it is not measured."""
    from deeper_layers.experiments.choosing import choose_cut  # slow

    try:
        return choose_cut(rule, drop, layers, measured, safe)
    except NotMeasuredError as error:
        raise NotMeasuredError(
            f"{error}; `deeper-layers distances` measures distances, and `sweep --rules` what a search needs; without "
            "them give --rule simple, or --start"
        ) from error
