"""Make subcommands: the fields of a class of parameters are the options, and the answer of a function is printed. Also
the options for the one cut of `prune` and `heal`: by its place, by a rule, or layer by layer in any shape.

Names, types, defaults and help texts of options stand only in the classes.
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
from deeper_layers.errors import InputError, escape_invisible, first_line
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.presets import PRESETS
from deeper_layers_companion.jobs.options import Parameters, SweepParameters
from deeper_layers_companion.rules.table import REGISTERED

if TYPE_CHECKING:  # slow to import
    import pandas as pd

MODEL = (
    'MODEL is "embedded", a hub id, a folder saved by save_pretrained, or a .gguf file. Packaged, and fetched by name: '
    f'{", ".join(sorted({model.name for model in PACKAGED.values()}))}; "embedded" is {PACKAGED["embedded"].name}.'
)
LISTS = ("layers", "attention", "mlp")  # options that take a list of layers
CUT = ("start", "drop", "starts", "blocks", *LISTS)  # options that say which layers go
OF_LAYER = "the cut is of layer"  # begins the message for a cut that reaches past the last layer
NO_CUT = "--drop says how many layers go, --layers which: give one of them"


class Answer(NamedTuple):
    """The output on stdout: `parts`, which are texts and rows of tables, or with --json `content`; an exit status."""

    content: dict
    parts: Iterable[str | Sequence[dict] | None]
    status: int = 0


def print_answer(function: Callable[..., Answer]) -> Callable:
    """Give a command the option --json, and print its answer. All that it prints meanwhile goes to stderr."""

    @click.option("--json", "as_json", is_flag=True, help="print JSON, and nothing else on stdout")
    @functools.wraps(function)
    def run(as_json: bool, **options) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            answer = function(**options)
        if as_json:
            _print(json.dumps(answer.content, indent=1, allow_nan=False))
        else:
            parts = filter(None, answer.parts)
            _print(
                "\n\n".join(part if isinstance(part, str) else format_table(part) for part in parts)
            )
        click.get_current_context().exit(answer.status)

    return run


def _print(text: str) -> None:
    """Print an answer on stdout, without characters that move a terminal's cursor: names of others may hold them.
    Raises InputError where it can't be printed."""
    try:
        click.echo("\n".join(map(escape_invisible, text.split("\n"))))
    except BrokenPipeError:  # its reader has closed the pipe
        raise
    except OSError as error:
        raise InputError(
            f"can't print the answer ({first_line(error)}): what was measured or written before is complete, and "
            "stays; let the output go elsewhere"
        ) from error


def format_table(rows: Sequence[dict]) -> str:
    """Rows as lines with aligned columns; empty columns are left out."""
    columns = {}
    for name in rows[0]:
        cells = [row.get(name) for row in rows]
        if any(cell not in (None, "") for cell in cells):
            columns[name] = map(_format_range, cells)
    return tabulate(columns, headers="keys", tablefmt="plain", floatfmt=",.3f", missingval="")


def _format_range(cell: object) -> object:
    """A list of the least and the most value as "least to most", a whole number with commas; others as they are."""
    if isinstance(cell, list):
        return " to ".join(f"{end:,}" for end in cell)
    return f"{cell:,}" if type(cell) is int else cell


def as_dicts(rows: "pd.DataFrame") -> list[dict]:
    """Rows as dictionaries for JSON: missing values are null."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def subcommand(
    kind: type[Parameters],
    short: str,
    *,
    but: Iterable[str] = (),
    defaults: bool = True,
    needed: bool = True,
) -> Callable[[Callable[..., Answer]], click.Command]:
    """Make a command of a function. It takes MODEL, and as options all fields of `kind` `but` some.

    The function is called with an instance of `kind`, made from the options that were typed, and with the options that
    click's decorators declared before. `short` is the command's line in the list of commands, the docstring its help;
    `defaults` says whether the defaults of `kind` are shown, and `needed` whether MODEL is required.
    """
    fields = {
        name: field for name, field in kind.model_fields.items() if name not in {"model", *but}
    }

    def decorate(function: Callable[..., Answer]) -> click.Command:
        @print_answer
        def run(**options) -> Answer:
            values = {name: options.pop(name) for name in ("model", *fields)}
            typed = {name: value for name, value in values.items() if is_typed(name)}
            try:
                return function(kind(**typed), **options)
            except InputError as error:
                raise InputError(_name_options(str(error))) from error

        run.__click_params__ += [
            _make_option(name, fields[name], defaults) for name in reversed(fields)
        ]  # last first
        run.__click_params__ += [
            *vars(function).get("__click_params__", []),
            click.Argument(["model"], needed),
        ]
        help_text = f"{inspect.getdoc(function)}\n\n{MODEL}"
        return click.command(function.__name__, short_help=short, help=help_text)(run)

    return decorate


def is_typed(name: str) -> bool:
    """Whether an option of the running command was typed, rather than left at its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def exclude(name: str, *others: str, why: str = "") -> None:
    """Refuse an option that is typed together with any of the others; `why` says what is not plain."""
    if not is_typed(name):
        return
    flags = _find_flags()
    for other in filter(is_typed, others):
        raise click.UsageError(
            f"{flags[name]} and {flags[other]} exclude each other: give one of them{why}"
        )


def _find_flags() -> dict[str, str]:
    """The flag of each parameter of the running command, like "--drop"."""
    return {option.name: option.opts[0] for option in click.get_current_context().command.params}


def _name_options(message: str) -> str:
    """A message of the library with its parameter as an option: "limit is 0" becomes "--limit is 0", and "the cut is
    of layer 5" becomes "--start 4 --drop 2 is of layer 5"."""
    typed = _find_typed_cut()
    if message.startswith(OF_LAYER) and typed:
        return message.replace(OF_LAYER, f"{typed} is of layer", 1)
    name, _, rest = message.partition(" ")
    flags = _find_flags() | {
        "size": next((f"--{of}" for of in ("drop", "sizes") if is_typed(of)), "size")
    }
    if name not in flags or not rest.startswith(("is ", "has ")):
        return message
    return f"{flags[name]} {rest.replace('None', 'none', 1)}"


def _find_typed_cut() -> str:
    """The options that were typed for the cut, as they were typed."""
    context = click.get_current_context()
    typed = [name for name in CUT if name in context.params and is_typed(name)]
    return " ".join(f"--{name} {context.params[name]}" for name in typed)


def _make_type_or_none(kind: type) -> Callable:
    """A click type that reads a value of this kind, or the word none."""

    def read(text: str):
        return None if text.lower() == "none" else kind(text)

    read.__name__ = f"{click.types.convert_type(kind).name}|none"  # the help shows this name
    return read


def _make_option(name: str, field: FieldInfo, show_default: bool) -> click.Option:
    words = (field.description or "").replace("None", "none")
    flag = f"--{name.strip('_').replace('_', '-')}"
    if field.default is True:  # on by default, turned off by --no-NAME
        words = words.removeprefix("False: ")
        return click.Option([f"--no-{flag[2:]}", name], flag_value=False, default=True, help=words)
    if field.default is False:
        return click.Option([flag], is_flag=True, help=words)
    words += f": {', '.join(PRESETS)}" if name == "preset" else ""
    kind, *none = typing.get_args(field.annotation) or (field.annotation,)
    if show_default and field.default != "":
        words += f"  [default: {'none' if field.default is None else field.default}]"
    return click.Option([flag, name], type=_make_type_or_none(kind) if none else kind, help=words)


# ---- the one cut -------------------------------------------------------------------------------------------------


def cut_options(rules: Iterable[str], lists: Iterable[str], more: str = "") -> Callable:
    """A decorator that adds the options of `read_cut`: --drop, whose help ends in `more`, --start, --rule, `lists`."""
    rules = list(rules)
    fields = SweepParameters.model_fields
    rule_help = "; ".join(f"{name}: {REGISTERED[name].words}" for name in rules)
    rule_help += ". What it needs is from results, or measured now"
    list_help = {
        name: str(fields[name].description).replace("rules and sizes", "--drop") for name in lists
    }
    options = [
        click.option("--drop", type=int, help=f"number of layers to drop{more}"),
        click.option(
            "--start", type=int, help="the first of them, counted from 0, instead of a rule"
        ),
        click.option(
            "--rule",
            type=click.Choice(rules),
            default="similarity",
            show_default=True,
            help=rule_help,
        ),
        *(
            click.option(f"--{name}", metavar="LIST", help=list_words)
            for name, list_words in list_help.items()
        ),
    ]
    return lambda function: functools.reduce(
        lambda decorated, option: option(decorated), reversed(options), function
    )


def exclude_rules() -> None:
    """Refuse a cut that is given layer by layer together with rules or sizes."""
    for name in LISTS:
        exclude(name, "rules", "sizes")


def read_cut(
    drop: int | None, start: int | None, instead: object = None, **lists: str | None
) -> Cut | None:
    """The cut that was typed, by its place or in lists; None if a rule chooses `drop` layers, or if the value `instead`
    determines the cut. Refuses what is wrong for every model."""
    exclude("start", "rule")
    for name in lists:
        exclude(name, "drop", "start", "rule")
    listed_cut = SweepParameters(**lists).given_cut
    if drop is None and (start is not None or not instead and listed_cut is None):
        raise click.UsageError(NO_CUT)
    return listed_cut if start is None else Cut(start, drop)
