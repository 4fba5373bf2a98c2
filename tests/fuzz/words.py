"""Words that nobody should type, for every option of every subcommand: seeded, as many as are asked for.

No model is opened. What is found becomes a line of tests/test_refused.py.
"""

import contextlib
import random
import string
from collections.abc import Iterator
from unittest import mock

import click
from click.testing import CliRunner

from deeper_layers import checks, data, export, models, sweeping
from deeper_layers.command import main
from deeper_layers.command.group import SUBCOMMANDS
from deeper_layers.errors import InputError

LETTERS = string.printable + "\x00\x07\x1b \u00b2\u0663é漢字🦙\u202e\ud800"
WORDS = r"""
    -0 0 1 -1 +5 1_000 ٣ ² 1e400 nan -inf 0x1F 1.5 2147483648 18446744073709551616 none None auto all / . .. ~ ~nobody/x
    a/../../b /dev/null /dev/zero /dev/stdin /proc/self/mem // \\server\share /nowhere/at/all x.gguf file:///etc/passwd
    https://example.org/x - -- 0-8 8-0 0- -3 0-99999999999 capitals capitals:5 capitals:-1 capitals@0 * ** [a- {{7*7}}
    mmlu:5@20/0-8+12 sums:99999999999999 simple similarity best Q8_0 nf4 humaneval $(true) %s%n capitals/0-99999999999
""".split()
LONG = ["9" * 5000, "-" + "9" * 40, "a/" * 3000, "é" * 100_000, "0-1," * 4097, "con\x00cat", "~no such user/x", ""]


def word(draw: random.Random) -> str:
    letters = "".join(draw.choices(LETTERS, k=draw.randint(1, 30)))
    number = str(draw.randint(-(10 ** draw.randint(1, 60)), 10 ** draw.randint(1, 60)))
    several = draw.choice([",", ", ", ";", " "]).join(draw.choices(WORDS, k=draw.randint(1, 6)))
    return draw.choice([letters, number, several, draw.choice(WORDS), draw.choice(LONG)])


def call(draw: random.Random) -> list[str]:
    """A subcommand, its arguments and some options, of which one or two are such words and the others left out."""
    name = draw.choice([name for name in SUBCOMMANDS if name != "results"])  # that one is a group of its own
    command = main.get_command(click.Context(main), name)
    options = [one for one in command.params if isinstance(one, click.Option) and not one.is_flag]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    words = [name, *(word(draw) if draw.random() < 0.2 else "embedded" for _ in arguments)]
    for option in draw.sample(options, min(len(options), draw.choice([1, 1, 2]))):
        words += [option.opts[0], word(draw)]
    return words + (["--drop", "3"] if name in ("heal", "prune") and "--drop" not in words else [])


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """While it lasts, nothing of a model is read and lm-eval is not imported: whatever would, ends in one line."""

    def reached(*_, **__):
        raise InputError("a model would be read now")

    def known(names):
        if unknown := set(names) - {*data.embedded_tasks(), "mmlu", "boolq"}:
            raise InputError(f"unknown task {checks.shown(sorted(unknown))}")

    names = ["find_model", "load_model", "checkpoint_folder", "empty_model", "sizes_of", "stated_config"]
    # names of a room are loaded when they are asked for, which is what this saves
    with (
        mock.patch.dict(vars(models), dict.fromkeys(names, reached)),
        mock.patch.dict(vars(export), {"read_adapter": reached}),
        mock.patch.dict(vars(sweeping), {"check_names": known}),
    ):
        yield


def faults(count: int, seed: int) -> dict[str, str]:
    """Calls that end otherwise than in one line, and how."""
    draw, found = random.Random(seed), {}
    with closed():
        for _ in range(count):
            words = call(draw)
            done = CliRunner().invoke(main, words)
            lines = done.stderr.strip().splitlines() or [""]
            is_said = lines[-1].lower().startswith("error: ") and isinstance(done.exception, SystemExit)
            if not is_said or done.exit_code != 2 and (done.exit_code != 1 or len(lines) > 1):
                found[repr(words)[:2000]] = f"{done.exit_code} {done.exception!r} {done.stderr[-500:]!r}"
    return found
