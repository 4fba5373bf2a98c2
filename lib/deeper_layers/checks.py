"""Check values from users before they are used: whole numbers, texts and paths.

Nothing is opened here: reading a pipe or a device in the place of a folder would block.
"""

import functools
import inspect
import operator
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deeper_layers.errors import InputError, as_input_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

Function = TypeVar("Function", bound=Callable)
LAYERS = 10_000  # more than any model has: lists of that many layers stay small
SEED = 2**32 - 1  # the largest that numpy and torch both take
TOKENS = 2**20  # of one sequence
SHOTS = 1000  # examples in one prompt
MANY = 10**9  # of items, steps, sequences: no run has more
TEXT = 4096  # characters; a path can't be longer either
# characters that no text has: null, and halves of surrogate pairs
ODD = re.compile("[\0\ud800-\udfff]")


def check_whole_number(
    name: str, value: object, least: int, most: int, advice: str = "choose one of these"
) -> int:
    """The value as an integer from `least` to `most`; numpy's and torch's count too. Raises InputError otherwise."""
    try:
        number = operator.index(value)  # ty: ignore[invalid-argument-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise InputError(
            f"{name} is {short_repr(value)}; expected a whole number from {least} to {most}; {advice}"
        )
    return number


def check_text(name: str, value: object) -> str:
    """The value, where it is a text. Raises InputError where it is empty, too long or no Unicode."""
    if not isinstance(value, str) or not value.strip() or len(value) > TEXT or ODD.search(value):
        raise InputError(
            f"{name} is {short_repr(value)}, expected Unicode text without null characters, at most {TEXT} and not "
            "empty: correct it, or leave it out"
        )
    return value


def check_path(name: str, value: str | Path) -> Path:
    """The path of a file or folder, which need not exist. Raises InputError for what can be neither."""
    with as_input_error(
        f"{name} is {short_repr(str(value))}", "expected a file or a folder, name one"
    ):
        path = Path(check_text(name, str(value))).expanduser()
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("a pipe or a device")
    return path


def check_new_folder(name: str, value: str | Path, *, writable: bool = False) -> Path:
    """The path of a folder that exists or can be made; it is not made. Raises InputError where it can't be."""
    path = check_path(name, value)
    ancestor = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not ancestor.is_dir() or writable and not os.access(ancestor, os.W_OK | os.X_OK):
        kind = "folder to write in" if ancestor.is_dir() else "folder"
        raise InputError(
            f"{name} is {short_repr(str(value))}, and {ancestor} is no {kind}: name another place"
        )
    return path


def check_types(function: Function) -> Function:
    """A decorator: the function raises InputError for an argument that is of no type in its annotation, which is a
    class or a union of classes."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args, **kwargs):
        for name, value in (*zip(parameters, args), *kwargs.items()):
            # else Python refuses the name
            kind = parameters[name].annotation if name in parameters else object
            if not isinstance(value, kind):
                kinds = [
                    of.__name__.removesuffix("Type") for of in typing.get_args(kind) or (kind,)
                ]
                raise InputError(
                    f"{name} is {short_repr(value)}, expected {' or '.join(kinds)}: give one"
                )
        return function(*args, **kwargs)

    return checked  # ty: ignore[invalid-explicit-return]


def explain_validation_error(
    error: "ValidationError", fields: "Mapping[str, FieldInfo]"
) -> InputError:
    """The first error of pydantic in one line, or the error that a check of ours raised in it. A field's title says
    what is expected where its description, the help text, does not."""
    first = error.errors(include_url=False)[0]
    raised = first.get("ctx", {}).get("error")
    if raised:
        return InputError(str(raised))
    name = str(first["loc"][0])
    message = first["msg"].replace("Input should be", "expected")
    if first["type"] in ("string_pattern_mismatch", "string_type"):
        field = fields[name]
        is_text = first["type"] == "string_pattern_mismatch"
        message = f"expected {field.title or (field.description if is_text else 'a text')}"
        if type(None) in typing.get_args(field.annotation):
            message += ", or None"
    value = "missing" if first["type"] == "missing" else short_repr(first["input"])
    return InputError(f"{name} is {value}, {message}: correct the parameter")


def short_repr(value: object) -> str:
    """The repr of a value, with the middle left out where it is long."""
    try:
        words = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        words = f"a {type(value).__name__}"
    return words if len(words) <= 200 else f"{words[:150]} ... {words[-40:]}"
