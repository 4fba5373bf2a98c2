"""What a subcommand answers: a text for people, JSON for scripts."""

import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from deeper_layers.errors import InputError

if TYPE_CHECKING:  # slow
    import pandas as pd


@dataclass(frozen=True)
class Answer:
    """What goes to stdout: `text`, or with --json `content`, which JSON can hold."""

    text: str
    content: dict


def answering(function: Callable[..., Answer]) -> Callable:
    """Give a command the option --json, and print what it returns; whatever is printed meanwhile goes to stderr."""

    @click.option("--json", "as_json", is_flag=True, help="print JSON, and nothing else on stdout")
    @functools.wraps(function)
    def answered(as_json: bool, **options) -> None:
        if sys.flags.optimize > 1:
            raise InputError("PYTHONOPTIMIZE is 2, and transformers reads its own docstrings: unset it, or set it to 1")
        with contextlib.redirect_stdout(sys.stderr):
            answer = function(**options)
        try:
            click.echo(json.dumps(answer.content, indent=1, allow_nan=False) if as_json else answer.text)
        except BrokenPipeError:
            raise
        except OSError as error:
            out = None if answer.content.get("dry_run") else answer.content.get("out")
            done = f"{out} is complete" if out else "all else is done"
            raise InputError(f"can't write to stdout ({error.strerror}): {done}, ask for the answer again") from error

    return answered


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as lines with aligned columns: the first column and words to the left, numbers to the right."""
    columns = {name: [name, *(row.get(name, "") for row in rows)] for name in rows[0]}
    lines = ["" for _ in range(len(rows) + 1)]
    for cells in columns.values():
        width = max(map(len, cells))
        right = all(cell[:1].isdigit() or not cell for cell in cells[1:])
        for i, cell in enumerate(cells):
            lines[i] += "  " + (cell.rjust(width) if right else cell.ljust(width))
    return "\n".join(line[2:].rstrip() for line in lines)


def records(rows: "pd.DataFrame") -> list[dict]:
    """Rows as JSON can hold them: what was not measured is null."""
    plain = rows.astype(object).to_dict("records")
    return [{name: _plain(value) for name, value in row.items()} for row in plain]


def _plain(value):
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
