"""Words that nobody should type, for every option of every subcommand: seeded, as many as are asked for.

`python -m tests.fuzz.words --count 10000 --seed 7` types them, opens no model, and prints the calls that end in
anything but a line that says what was wrong. What it finds becomes a line of tests/test_refused.py.
"""

import argparse
import contextlib
import random
import string
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import click
from click.testing import CliRunner, Result

from deeper_layers import checks, data, export, models, sweeping
from deeper_layers.command import main
from deeper_layers.command.group import SUBCOMMANDS
from deeper_layers.errors import InputError

ODD = "\t\n\r\x00\x07\x1b \u00b2\u0663\u0669é漢字🦙\u202e\ud800"
LETTERS = string.ascii_letters + string.digits + string.punctuation + ODD
NUMBERS = ["-0", "0", "1", "-1", "+5", "1_000", "٣", "²", "1e400", "nan", "-inf", "0x1F", "1.5", "2147483648",
           "18446744073709551616", "9" * 4300, "9" * 5000, "-" + "9" * 40, "none", "None", "auto", "all"]  # fmt: skip
PLACES = ["/", ".", "..", "~", "~nobody/x", "~no such user/x", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem",
          "/proc/self/fd", "a/../../b", "//", "\\\\server\\share", "a" * 300, "a/" * 3000, "/nowhere/at/all", "x.gguf",
          "/dev/null/x.gguf", "con\x00cat", "file:///etc/passwd", "https://example.org/x", "-", "--"]  # fmt: skip
PARTS = ["0-8", "8-0", "0-", "-3", "0-99999999999", "capitals", "capitals:5", "capitals:-1", "mmlu:5@20/0-8+12", "*",
         "**", "capitals@0", "sums:99999999999999999999", "../../x", "[a-", "simple", "similarity", "best", "", " ",
         "Q8_0", "nf4", "humaneval", "{{7*7}}", "$(true)", "%s%n", "capitals/0-99999999999"]  # fmt: skip
KINDS: list[Callable[[random.Random], str]] = [
    lambda draw: "".join(draw.choices(LETTERS, k=draw.randint(1, 30))),
    lambda draw: draw.choice(NUMBERS),
    lambda draw: str(draw.randint(-(10 ** draw.randint(1, 60)), 10 ** draw.randint(1, 60))),
    lambda draw: draw.choice(PLACES),
    lambda draw: draw.choice([",", ", ", ";", " "]).join(draw.choices(PARTS + NUMBERS[:16], k=draw.randint(1, 6))),
    lambda draw: draw.choice(["a", "9", ",", "-", "../", "é", "0-1,"]) * draw.choice([200, 4097, 100_000]),
    lambda draw: "",
]


def call(draw: random.Random) -> list[str]:
    """A subcommand, its arguments and some options, of which one or two are such words and the others left out."""
    name = draw.choice([name for name in SUBCOMMANDS if name != "results"])  # that one is a group of its own
    command = main.get_command(click.Context(main), name)
    options = [one for one in command.params if isinstance(one, click.Option) and not one.is_flag]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    word = lambda: draw.choice(KINDS)(draw)  # noqa: E731
    words = [name, *(word() if draw.random() < 0.2 else "embedded" for _ in arguments)]
    for option in draw.sample(options, min(len(options), draw.choice([1, 1, 2]))):
        words += [option.opts[0], word()]
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


def fault(done: Result) -> str | None:
    """What is wrong with how a call ended; None where it ended as it should."""
    lines = done.stderr.strip().splitlines() or [""]
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"raised {done.exception!r}"
    if done.exit_code not in (1, 2) or not lines[-1].lower().startswith("error: "):
        return f"ended with {done.exit_code}: {done.stderr[-500:]!r}"
    if "Traceback" in done.output or (done.exit_code == 1 and len(lines) != 1):
        return f"said more than one line: {done.stderr[-500:]!r}"
    return None


def faults(count: int, seed: int) -> dict[str, str]:
    """Calls that end otherwise, and how."""
    draw, found = random.Random(seed), {}
    with closed():
        for _ in range(count):
            words = call(draw)
            if said := fault(CliRunner().invoke(main, words)):
                found[repr(words)[:2000]] = said
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        wrong = faults(asked.count, asked.seed)
        left = sorted(map(str, Path().rglob("*")))
    for words, said in wrong.items():
        print(words, said, sep="\n    ")
    print(f"{asked.count} calls, {len(wrong)} ended otherwise, left behind: {left or 'nothing'}")
    raise SystemExit(bool(wrong))
