"""What a subcommand answers: a text for people, JSON for scripts."""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:  # slow
    import pandas as pd


class Answer(NamedTuple):
    """What goes to stdout: `text`, or with --json `content`, which JSON can hold; then the exit status."""

    text: str
    content: dict
    status: int = 0


def answering(function: Callable[..., Answer]) -> Callable:
    """Give a command the option --json, and print what it returns; whatever is printed meanwhile goes to stderr."""

    @click.option("--json", "as_json", is_flag=True, help="print JSON, and nothing else on stdout")
    @functools.wraps(function)
    def answered(as_json: bool, **options) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            answer = function(**options)
        click.echo(json.dumps(answer.content, indent=1, allow_nan=False) if as_json else answer.text)
        click.get_current_context().exit(answer.status)

    return answered


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows as lines with aligned columns: words to the left, numbers to the right."""
    columns = []
    for name in rows[0]:
        cells = [name, *(row.get(name, "") for row in rows)]
        width, right = max(map(len, cells)), all(cell[:1].isdigit() or not cell for cell in cells[1:])
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def records(rows: "pd.DataFrame") -> list[dict]:
    """Rows as JSON can hold them: what was not measured is null."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")
