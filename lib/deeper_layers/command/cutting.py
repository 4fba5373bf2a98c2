"""The one cut of `prune` and `heal`: by its place, by a rule, or of any shape, layer by layer."""

from collections.abc import Callable, Iterable

import click

from deeper_layers.command.options import exclude, is_typed
from deeper_layers.cuts import Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import SweepParameters, cut_of_lists
from deeper_layers.rules.choosing import REGISTERED


def cut_options(rules: Iterable[str], lists: Iterable[str], more: str = "") -> Callable:
    """Options --drop, of which `more` is said, --start, --rule, one of `rules`, and `lists`, for `typed_cut`."""
    rules, fields = list(rules), SweepParameters.model_fields
    words = f"{'; '.join(f'{name}: {REGISTERED[name].words}' for name in rules)}. What it needs is from results, or "
    options = [
        click.option("--drop", type=int, help=f"number of layers to drop{more}"),
        click.option("--start", type=int, help="the first of them, counted from 0, instead of a rule"),
        click.option(
            "--rule", type=click.Choice(rules), default="similarity", show_default=True, help=f"{words}measured now"
        ),
    ]
    for name in lists:
        about = str(fields[name].description).replace("rules and sizes", "--drop")
        options.append(click.option(f"--{name}", metavar="LIST", help=about))

    def decorate(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def typed_cut(drop: int | None, start: int | None, needed: bool = True, **lists: str | None) -> Cut | None:
    """The cut that was typed, by its place or in lists; None where a rule is to choose `drop` layers.

    Refuses what no model could make right, and where one is `needed`, no cut at all.
    """
    rule = is_typed("rule")
    exclude(start=start, rule=rule)
    for name, text in lists.items():
        if text is not None:
            exclude(**{name: text}, drop=drop, start=start, rule=rule)
    listed = cut_of_lists(**{name: lists.get(name) for name in ("layers", "attention", "mlp")})
    if drop is None and (start is not None or needed and listed is None):
        raise click.UsageError("--drop says how many layers go, --layers which: give one of them")
    block = Cut(start or 0, drop or 0)
    return listed if start is None else block


def choose(rule: str, drop: int, layers: int, measured: Callable, safe: Callable | None = None) -> Cut:
    """What a rule chooses, see `experiments.choosing.choose_cut`; where it can't, what can be done is said."""
    from deeper_layers.experiments.choosing import choose_cut  # slow

    try:
        return choose_cut(rule, drop, layers, measured, safe)
    except NotMeasuredError as error:
        raise NotMeasuredError(
            f"{error}; `deeper-layers distances` measures distances, and `sweep --rules` what a search needs; without "
            "them give --rule simple, or --start"
        ) from error
