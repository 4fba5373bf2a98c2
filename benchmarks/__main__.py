"""Every measured file: the command that made it, its commit, its ratios, and how much of the library changed since.

    python -m benchmarks
    python -m benchmarks sweep-boolq

The command, typed again with paths in place of FOLDER, CHECKOUT and PYTHON on an idle machine, measures it anew.
"""

import argparse
import json
import subprocess

from benchmarks.harness import MEASURED, ROOT


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in MEASURED.glob("*.json"))
    parser.add_argument("names", nargs="*", choices=[[], *known], metavar="NAME", help="by default all")
    for name in parser.parse_args().names or known:
        content = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
        commit = content["provenance"]["commit"]
        command = ["git", "diff", "--shortstat", commit, "--", "lib"]
        since = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        print(f"{name}: of commit {commit[:7]}{since and f', since then {since} in lib'}\n    {content['command']}")
        print_ratios(content)


def print_ratios(content: dict, at: str = "") -> None:
    """Every "times faster" and "bare passes" of a file, wherever in it, a line each."""
    for key, value in content.items():
        if isinstance(value, dict):
            print_ratios(value, f"{at}{key}: ")
        elif key.startswith(("times_faster", "bare_passes", "of_", "now_to_before")) and isinstance(value, float):
            print(f"    {at}{key.replace('_', ' ')} {value:.2f}")


if __name__ == "__main__":
    main()
