"""The one cut of `prune` and `heal`: by its place, by a rule, or of any shape, layer by layer."""

from collections.abc import Callable, Iterable

import click

from deeper_layers.command.options import exclude
from deeper_layers.cuts import Cut
from deeper_layers.experiments.parameters import SweepParameters
from deeper_layers.rules.choosing import REGISTERED

LISTS = ("layers", "attention", "mlp")


def cut_options(rules: Iterable[str], lists: Iterable[str], more: str = "") -> Callable:
    """Options --drop, of which `more` is said, --start, --rule, one of `rules`, and `lists`, for `typed_cut`."""
    rules, fields = list(rules), SweepParameters.model_fields
    words = "; ".join(f"{name}: {REGISTERED[name].words}" for name in rules)
    words += ". What it needs is from results, or measured now"
    options: dict[str, dict] = {
        "drop": {"type": int, "help": f"number of layers to drop{more}"},
        "start": {"type": int, "help": "the first of them, counted from 0, instead of a rule"},
        "rule": {"type": click.Choice(rules), "default": "similarity", "show_default": True, "help": words},
    }
    for name in lists:
        about = str(fields[name].description).replace("rules and sizes", "--drop")
        options[name] = {"metavar": "LIST", "help": about}

    def decorate(function: Callable) -> Callable:
        for name, how in reversed(options.items()):
            function = click.option(f"--{name}", **how)(function)
        return function

    return decorate


def typed_cut(drop: int | None, start: int | None, needed: bool = True, **lists: str | None) -> Cut | None:
    """The cut that was typed, by its place or in lists; None where a rule is to choose `drop` layers.

    Refuses what no model could make right, and where one is `needed`, no cut at all.
    """
    exclude("start", "rule")
    for name in lists:
        exclude(name, "drop", "start", "rule")
    listed = SweepParameters(**lists).given_cut
    if drop is None and (start is not None or needed and listed is None):
        raise click.UsageError("--drop says how many layers go, --layers which: give one of them")
    return listed if start is None else Cut(start, drop)
