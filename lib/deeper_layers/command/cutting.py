"""The one cut of `prune` and `heal`: by its place, by a rule, or of any shape, layer by layer."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import click
from click.core import ParameterSource

from deeper_layers.command.options import exclude
from deeper_layers.cuts import Cut
from deeper_layers.errors import NotMeasuredError
from deeper_layers.experiments.parameters import SweepParameters, check_given, cut_of_lists
from deeper_layers.rules.choosing import REGISTERED


def cut_options(rules: Iterable[str], lists: Iterable[str], more: str = "") -> Callable:
    """Options --drop, --start, --rule, one of `rules`, and `lists`: some of layers, attention and mlp.

    `more` is said of --drop. What was typed is for `Wanted.typed`.
    """
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


class Wanted(NamedTuple):
    """Which layers are to go: so many, at a place or where a rule says, or those that are listed."""

    drop: int | None
    start: int | None
    rule: str
    listed: Cut | None

    @classmethod
    def typed(cls, drop: int | None, start: int | None, rule: str, **lists: str | None) -> "Wanted":
        """From the options of `cut_options`. Refuses what no model could make right."""
        ruled = click.get_current_context().get_parameter_source("rule") is not ParameterSource.DEFAULT
        exclude(start=start, rule=ruled)
        for name, text in lists.items():
            if text is not None:
                exclude(**{name: text}, drop=drop, start=start, rule=ruled)
        listed = cut_of_lists(*(lists.get(name) for name in ("layers", "attention", "mlp")))
        Cut(start or 0, drop or 0)
        return cls(drop, start, rule, listed)

    @property
    def given(self) -> Cut | None:
        """The cut that no rule has to choose."""
        return self.listed or (None if self.start is None else Cut(self.start, self.drop or 0))

    def check(self, layers: int | None) -> None:
        """Refuse no cut, and one that does not fit a model of so many layers (None: not known yet)."""
        if self.drop is None and self.listed is None:
            raise click.UsageError("--drop says how many layers go, --layers which: give one of them")
        if layers is not None and self.listed:
            check_given(self.listed, layers)
        elif layers is not None:
            Cut(self.start or 0, self.drop or 0).check(layers)

    def choose(self, layers: int, measured: Callable, safe: Callable | None = None) -> Cut:
        """The cut, see `experiments.choosing.choose_cut`; what can be done is said where what it needs is missing."""
        from deeper_layers.experiments.choosing import choose_cut  # slow

        try:
            return self.given or choose_cut(self.rule, self.drop or 0, layers, measured, safe)
        except NotMeasuredError as error:
            raise NotMeasuredError(
                f"{error}; `deeper-layers distances` measures distances, and `sweep --rules` what a search needs; "
                "without them give --rule simple, or --start"
            ) from error
