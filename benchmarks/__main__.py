"""Every measured file: the command that made it, the commit, and what of what it measures changed since.

    python -m benchmarks
    python -m benchmarks --rerun --datasets FOLDER --before CHECKOUT --mergekit PYTHON --optipfair PYTHON

With --rerun those that are out of date are measured again, one after another, which takes an idle machine and hours; a
command that needs a path that is not given is left out, and said so. Names choose among them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.outdated import PATHS, ROOT, Measured, measured


def main(root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="of files in benchmarks/measured; by default all")
    parser.add_argument("--rerun", action="store_true", help="measure again what is out of date")
    for option, word in PATHS.items():
        parser.add_argument(option, metavar=word, help="for the commands that take it")
    options = vars(parser.parse_args())
    found = [one for one in measured(root) if not options["names"] or one.name in options["names"]]
    if unknown := set(options["names"]) - {one.name for one in found}:
        parser.error(f"benchmarks/measured has no {sorted(unknown)[0]}")
    for one in found:
        print(f"{one.name}\n    {state(one)}\n    {one.command}")
    outdated = [one for one in found if one.outdated]
    print(f"{len(outdated)} of {len(found)} are out of date")
    if not options["rerun"]:
        return 0
    if subprocess.run(["git", "status", "--porcelain", "--", "lib"], cwd=root, capture_output=True).stdout:
        parser.error("lib/ has changes that are not committed: commit first, so that what is measured names its code")
    given = {option: path for option in PATHS if (path := options[option.removeprefix("--")]) is not None}
    return sum(not rerun(one, given, root) for one in outdated)


def state(one: Measured) -> str:
    """How up to date a file is, in words."""
    if one.changed is None:
        return f"of commit {one.commit[:7]}, which this clone lacks: taken for out of date"
    since = f"out of date: changed since are {', '.join(one.changed)}" if one.changed else "up to date"
    return f"of commit {one.commit[:7]}, {since}"


def rerun(one: Measured, given: dict[str, str], root: Path) -> bool:
    """Measure a file again; whether that was done."""
    try:
        _, *words = one.words(given)
    except KeyError as error:
        print(f"{one.name}: left out, it needs {error.args[0]} {PATHS[error.args[0]]}", flush=True)
        return False
    print(f"{one.name}: {one.command}", flush=True)
    return subprocess.run([sys.executable, *words], cwd=root).returncode == 0


if __name__ == "__main__":
    sys.exit(min(main(), 1))
