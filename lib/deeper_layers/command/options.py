"""The fields of a parameter class as options: their names, types, defaults and help texts stand in the class alone."""

import functools
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.presets import PRESETS

# what the help of each says of its argument; docstrings would be gone under PYTHONOPTIMIZE=2
MODEL = (
    'MODEL is "embedded", a hub id, a folder saved by save_pretrained, or a .gguf file. Packaged, and fetched by name: '
    f'{", ".join(sorted({model.name for model in PACKAGED.values()}))}; "embedded" is {PACKAGED["embedded"].name}.'
)


class OrNone(click.ParamType):
    """A value, or the word none."""

    def __init__(self, kind: click.ParamType):
        self.kind, self.name = kind, f"{kind.name}|none"

    def convert(self, value, parameter, context):
        return None if str(value).lower() == "none" else self.kind.convert(value, parameter, context)


class Place(click.Path):
    """A path, completed as one, of which nothing is looked at yet."""

    def convert(self, value, parameter, context):
        return Path(value) if str(value).strip() else self.fail("it is empty, expected a path", parameter, context)


def asking(kind: type[Parameters], *, but: Iterable[str] = (), defaults: bool = True, needed: bool = True) -> Callable:
    """Give a command MODEL as its argument and the fields of `kind` as options, all `but` some.

    The function is called with `given`, the parameters that were typed, as `kind` takes them: what was left out is for
    the class to fill in, and defaults of other classes with the same fields stay theirs. `defaults` is whether those of
    `kind` are shown, `needed` whether there has to be a MODEL.
    """
    fields = {name: field for name, field in kind.model_fields.items() if name not in {"model", *but}}

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def asked(model: str | None, **typed):
            context, given = click.get_current_context(), {} if model is None else {"model": model}
            for name in fields:
                value = typed.pop(name)
                if is_typed(name):
                    given[name] = value
            try:
                return function(given=given, **typed)
            except InputError as error:
                raise InputError(_in_words_of_options(str(error), context.command)) from error

        for name in reversed(fields):
            asked = _option(name, fields[name], defaults)(asked)
        return click.argument("model", required=needed)(asked)

    return decorate


def is_typed(name: str) -> bool:
    """Whether an option of the command that runs was given, and is not its default."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def exclude(**given: object) -> None:
    """Refuse options of which only one can be had, by their names; None and False stand for one that was left out."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]
    if len(named) > 1:
        raise click.UsageError(f"{named[0]} and {named[1]} exclude each other: give one of them")


def _in_words_of_options(message: str, command: click.Command) -> str:
    """A message of the library, which says "limit is 0", as who typed --limit reads it."""
    name, _, rest = message.partition(" ")
    typed = {
        str(one.name): one.opts[0] if one.opts[0] != one.name else one.human_readable_name for one in command.params
    }
    typed["size"] = next((typed[one] for one in ("drop", "sizes") if one in typed and is_typed(one)), "size")
    if name not in typed or not rest.startswith(("is ", "has ")):
        return message
    return f"{typed[name]} {rest.replace('None', 'none', 1)}"


def _option(name: str, field: FieldInfo, show_default: bool) -> Callable:
    words, flag = (field.description or "").replace("None", "none"), f"--{name.replace('_', '-')}"
    if field.default is True:  # on by itself, and turned off by --no-NAME
        return click.option(
            f"--no-{flag[2:]}", name, flag_value=False, default=True, help=words.removeprefix("False: ")
        )
    if field.default is False:
        return click.option(flag, is_flag=True, help=words)
    words += f": {', '.join(PRESETS)}" if name == "preset" else ""
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    kind = click.types.convert_type(kinds[0] if kinds[0] in (int, float) else str)  # a list is read from a text
    if show_default:
        words += f"  [default: {'none' if field.default is None else field.default}]"
    return click.option(flag, type=OrNone(kind) if type(None) in kinds else kind, help=words)
