"""A class of parameters as a subcommand: its fields are the options, and what a function answers is printed; and the
options of the one cut of `prune` and `heal`: by its place, by a rule, or of any shape, layer by layer.

Names, types, defaults and help texts of options stand in the classes alone.
"""

import contextlib
import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo
from tabulate import tabulate

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import Parameters, SweepParameters
from deeper_layers.models.sources import PACKAGED
from deeper_layers.presets import PRESETS
from deeper_layers.rules.choosing import REGISTERED

if TYPE_CHECKING:  # slow
    import pandas as pd

MODEL = (
    'MODEL is "embedded", a hub id, a folder saved by save_pretrained, or a .gguf file. Packaged, and fetched by name: '
    f'{", ".join(sorted({model.name for model in PACKAGED.values()}))}; "embedded" is {PACKAGED["embedded"].name}.'
)
LISTS = ("layers", "attention", "mlp")
NO_CUT = "--drop says how many layers go, --layers which: give one of them"


class Answer(NamedTuple):
    """What goes to stdout: `parts`, texts and rows of tables, or with --json `content`; then the exit status."""

    content: dict
    parts: Iterable[str | Sequence[dict] | None]
    status: int = 0


def answering(function: Callable[..., Answer]) -> Callable:
    """Give a command the option --json, and print what it returns; whatever is printed meanwhile goes to stderr."""

    @click.option("--json", "as_json", is_flag=True, help="print JSON, and nothing else on stdout")
    @functools.wraps(function)
    def answered(as_json: bool, **options) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            answer = function(**options)
        parts = (part if isinstance(part, str) else table(part) for part in answer.parts if part)
        click.echo(json.dumps(answer.content, indent=1, allow_nan=False) if as_json else "\n\n".join(parts))
        click.get_current_context().exit(answer.status)

    return answered


def table(rows: Sequence[dict]) -> str:
    """Rows as lines with aligned columns; one of nothing is left out."""
    names = [name for name in rows[0] if any(row.get(name) not in (None, "") for row in rows)]
    cells = [[_range(row.get(name)) for name in names] for row in rows]
    return tabulate(cells, names, tablefmt="plain", floatfmt=",.3f", intfmt=",", missingval="")


def _range(cell: object) -> object:
    """The least and the most of a list in words."""
    return " to ".join(f"{end:,}" for end in cell) if isinstance(cell, list) else cell


def records(rows: "pd.DataFrame") -> list[dict]:
    """Rows as JSON can hold them: what was not measured is null."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def subcommand(
    kind: type[Parameters], short: str, *, but: Iterable[str] = (), defaults: bool = True, needed: bool = True
) -> Callable[[Callable[..., Answer]], click.Command]:
    """Make a command of a function: MODEL and the fields of `kind`, all `but` some, are what is typed.

    The function is called with the parameters, of which those are set that were typed, and with the options that were
    declared of it before. `short` is its line among other commands, its docstring the help; `defaults` is whether those
    of `kind` are shown, `needed` whether there has to be a MODEL.
    """
    fields = {name: field for name, field in kind.model_fields.items() if name not in {"model", *but}}

    def decorate(function: Callable[..., Answer]) -> click.Command:
        @answering
        def asked(**typed) -> Answer:
            given = {name: typed.pop(name) for name in ("model", *fields)}
            try:
                return function(kind(**{name: value for name, value in given.items() if is_typed(name)}), **typed)
            except InputError as error:
                raise InputError(_in_words_of_options(str(error))) from error

        asked.__click_params__ += [_option(name, fields[name], defaults) for name in reversed(fields)]  # last first
        asked.__click_params__ += [*vars(function).get("__click_params__", []), click.Argument(["model"], needed)]
        words = f"{inspect.getdoc(function)}\n\n{MODEL}"
        return click.command(function.__name__, short_help=short, help=words)(asked)

    return decorate


def is_typed(name: str) -> bool:
    """Whether an option of the command that runs was given, and is not its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def exclude(name: str, *others: str) -> None:
    """Refuse an option beside any of some others."""
    for other in filter(is_typed, others if is_typed(name) else ()):
        raise click.UsageError(f"{_flags()[name]} and {_flags()[other]} exclude each other: give one of them")


def _flags() -> dict[str, str]:
    """How each parameter of the command that runs is typed."""
    return {option.name: option.opts[0] for option in click.get_current_context().command.params}


def _in_words_of_options(message: str) -> str:
    """A message of the library, which says "limit is 0", as who typed --limit reads it."""
    name, _, rest = message.partition(" ")
    flags = _flags() | {"size": next((f"--{of}" for of in ("drop", "sizes") if is_typed(of)), "size")}
    if name not in flags or not rest.startswith(("is ", "has ")):
        return message
    return f"{flags[name]} {rest.replace('None', 'none', 1)}"


def _or_none(kind: type) -> Callable:
    """What reads a value, or the word none."""

    def read(text: str):
        return None if text.lower() == "none" else kind(text)

    read.__name__ = f"{click.types.convert_type(kind).name}|none"  # as the help shows it
    return read


def _option(name: str, field: FieldInfo, show_default: bool) -> click.Option:
    words, flag = (field.description or "").replace("None", "none"), f"--{name.strip('_').replace('_', '-')}"
    if field.default is True:  # on by itself, and turned off by --no-NAME
        words = words.removeprefix("False: ")
        return click.Option([f"--no-{flag[2:]}", name], flag_value=False, default=True, help=words)
    if field.default is False:
        return click.Option([flag], is_flag=True, help=words)
    words += f": {', '.join(PRESETS)}" if name == "preset" else ""
    kind, *none = typing.get_args(field.annotation) or (field.annotation,)
    if show_default and field.default != "":
        words += f"  [default: {'none' if field.default is None else field.default}]"
    return click.Option([flag, name], type=_or_none(kind) if none else kind, help=words)


# ---- the one cut -------------------------------------------------------------------------------------------------


def cut_options(rules: Iterable[str], lists: Iterable[str], more: str = "") -> Callable:
    """Options --drop, of which `more` is said, --start, --rule, one of `rules`, and `lists`, for `typed_cut`."""
    rules, fields = list(rules), SweepParameters.model_fields
    words = "; ".join(f"{name}: {REGISTERED[name].words}" for name in rules)
    words += ". What it needs is from results, or measured now"
    abouts = {name: str(fields[name].description).replace("rules and sizes", "--drop") for name in lists}
    options = [
        click.option("--drop", type=int, help=f"number of layers to drop{more}"),
        click.option("--start", type=int, help="the first of them, counted from 0, instead of a rule"),
        click.option("--rule", type=click.Choice(rules), default="similarity", show_default=True, help=words),
        *(click.option(f"--{name}", metavar="LIST", help=about) for name, about in abouts.items()),
    ]
    return lambda function: functools.reduce(lambda found, option: option(found), reversed(options), function)


def exclude_rules() -> None:
    """Refuse a cut that is given layer by layer beside rules and sizes."""
    for name in LISTS:
        exclude(name, "rules", "sizes")


def typed_cut(drop: int | None, start: int | None, instead: object = None, **lists: str | None) -> Cut | None:
    """The cut that was typed, by its place or in lists; None where a rule is to choose `drop` layers, or what was given
    `instead` says it. Refuses what no model could make right."""
    exclude("start", "rule")
    for name in lists:
        exclude(name, "drop", "start", "rule")
    listed = SweepParameters(**lists).given_cut
    if drop is None and (start is not None or not instead and listed is None):
        raise click.UsageError(NO_CUT)
    return listed if start is None else Cut(start, drop)
