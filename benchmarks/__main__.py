"""Every measured file: the command that made it, its commit, its ratios, and what of what it measures changed since.

    python -m benchmarks
    python -m benchmarks sweep-boolq

The command, typed again with paths in place of FOLDER, CHECKOUT and PYTHON on an idle machine, measures it anew.
"""

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks.harness import MEASURED, ROOT

# of each program, the rooms and files of lib/deeper_layers whose change can change what it measures
MEASURES = {
    "before": ("models", "pruning.py", "similarity.py", "sweeping", "healing", "export"),
    "engines": ("pruning.py", "export"),
    "generation": ("models", "pruning.py", "sweeping"),
    "prompts": ("data", "sweeping"),
    "similarity": ("models", "similarity.py"),
    "slicing": ("models", "export"),
    "sweep": ("models", "pruning.py", "sweeping"),
}


def main(root: Path = ROOT, folder: Path = MEASURED) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="of files in benchmarks/measured; by default all")
    names = parser.parse_args().names
    contents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if unknown := set(names) - set(contents):
        parser.error(f"benchmarks/measured has no {sorted(unknown)[0]}")
    for name in names or contents:
        content = contents[name]
        program, changed = content["command"].split()[2].partition(".")[2], None
        if program in MEASURES:
            changed = changed_since(content["provenance"]["commit"], program, root)
        print(f"{name}: {state(content, program, changed)}\n    {content['command']}{ratios(content)}", flush=True)


def changed_since(commit: str, program: str, root: Path) -> list[str]:
    """What of the places that a program measures is not as it was at a commit; all of them where it is not there."""
    places = [f"lib/deeper_layers/{name}" for name in MEASURES[program]]
    done = subprocess.run(
        ["git", "diff", "--name-only", commit, "--", *places], cwd=root, capture_output=True, text=True
    )
    files = done.stdout.splitlines()
    return [place for place in places if done.returncode or any(f"{file}/".startswith(f"{place}/") for file in files)]


def state(content: dict, program: str, changed: list[str] | None) -> str:
    """How up to date a file is, in words."""
    of = f"of commit {content['provenance']['commit'][:7]}"
    if program not in MEASURES:
        return f"{of}, measured once: its program is there"
    return f"{of}, out of date: changed since are {', '.join(changed)}" if changed else f"{of}, up to date"


def ratios(content: dict, at: str = "") -> str:
    """Every "times faster" and "bare passes" of a file, wherever in it, a line each."""
    lines = ""
    for key, value in content.items():
        if isinstance(value, dict):
            lines += ratios(value, f"{at}{key}: ")
        elif key.startswith(("times_faster", "bare_passes", "of_", "after_to_before")) and isinstance(value, float):
            lines += f"\n    {at}{key.replace('_', ' ')} {value:.2f}"
    return lines


if __name__ == "__main__":
    main()
