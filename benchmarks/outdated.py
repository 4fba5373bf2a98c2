"""Which measured files are out of date: what each benchmark measures stands here, and nowhere else."""

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

# of each benchmark, by its name, the rooms and files of lib/deeper_layers whose change can change what it measures
MEASURES = {
    "damaged": ("models", "checkpoints"),
    "families": ("models", "pruning.py", "checkpoints"),
    "gained": ("models", "pruning.py"),
    "generation": ("models", "pruning.py", "family", "evaluation"),
    "healing": ("models", "pruning.py", "healing"),
    "predicted": ("models", "similarity.py", "family", "evaluation", "healing"),
    "prompts": ("data", "evaluation"),
    "rebuilt": ("models", "family", "evaluation"),
    "searching": ("models", "pruning.py", "rules", "family", "evaluation"),
    "similarity": ("models", "similarity.py"),
    "slicing": ("models", "checkpoints"),
    "streaming": ("models", "similarity.py", "family", "evaluation"),
    "sweep": ("models", "pruning.py", "family", "evaluation"),
    "unasked": ("models", "family", "evaluation"),
    "widened": ("models", "healing", "family", "evaluation"),
}
# options that take a path, and what stands for it where the command is kept
PATHS = {"--datasets": "FOLDER", "--before": "CHECKOUT", "--mergekit": "PYTHON", "--optipfair": "PYTHON"}
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Measured:
    """A file of benchmarks/measured.

    Attributes:
        name: its own, without the ending.
        command: that made it, with words for paths.
        commit: that it was measured at.
        changed: what it measures that changed since; None where that can't be known, as this clone lacks the commit.
    """

    name: str
    command: str
    commit: str
    changed: tuple[str, ...] | None

    @property
    def outdated(self) -> bool:
        return self.changed is None or bool(self.changed)

    def words(self, given: dict[str, str]) -> list[str]:
        """The command's words, with paths. Raises KeyError for an option whose path is not given."""
        words = shlex.split(self.command)
        return [
            given[before] if before in PATHS and word == PATHS[before] else word
            for before, word in zip(["", *words], words, strict=False)
        ]


def measured(root: Path = ROOT) -> list[Measured]:
    """Every measured file, by name; but those of programs that are at their commit alone, like verdicts.json."""
    paths = sorted((root / "benchmarks" / "measured").glob("*.json"))
    return [_read(path, root) for path in paths if path.stem.split("-")[0] in MEASURES]


def _read(path: Path, root: Path) -> Measured:
    content = json.loads(path.read_text(encoding="utf-8"))
    commit, kind = content["provenance"]["commit"], path.stem.split("-")[0]
    return Measured(path.stem, content["command"], commit, _changed(kind, commit, root))


def _changed(kind: str, commit: str, root: Path) -> tuple[str, ...] | None:
    """What of a benchmark's rooms, or of itself, is not as it was."""
    places = {name: f"lib/deeper_layers/{name}" for name in MEASURES[kind]} | {"itself": f"benchmarks/{kind}.py"}
    command = ["git", "diff", "--name-only", commit, "--", *places.values()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        return None
    files = done.stdout.splitlines()
    return tuple(name for name, place in places.items() if any(f"{file}/".startswith(f"{place}/") for file in files))
