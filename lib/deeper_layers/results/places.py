"""Where results lie, and which checkout of this project is around."""

import os
from pathlib import Path

from deeper_layers import checks

VARIABLE = "DEEPER_LAYERS_RESULTS"  # of the environment: a folder in place of the repository's results/
# the published results, which come with the library: a link to the repository's results/, a folder of its own where
# it is installed
PUBLISHED = Path(__file__).with_name("published")
# where this package runs from a checkout, its root; a folder of the environment otherwise
AROUND = Path(__file__).resolve().parents[3]


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the root of a checkout of this project."""
    return (folder / "lib" / "deeper_layers" / "cuts.py").is_file()


def repository() -> Path | None:
    """The checkout that this package runs from, else the one in which the user stands; None where there is neither."""
    here = Path.cwd()
    return next(filter(is_checkout, (AROUND, here, *here.parents)), None)


def results_folder(named: str | Path | None = None) -> Path:
    """The folder of results: the one that is named, else that of VARIABLE, else `results` of the repository around, or
    of the working directory. Raises InputError where that can be no folder."""
    if named is None:
        named = os.environ.get(VARIABLE) or (repository() or Path()) / "results"
    return checks.new_folder("results", named)


def readable_folders(folder: Path | None = None) -> list[Path]:
    """Where results are looked for: in a folder and, where none was named, in the published ones behind it."""
    folder, default = results_folder(folder), results_folder()
    behind = folder == default and PUBLISHED.is_dir() and PUBLISHED.resolve() != default.resolve()
    return [folder, PUBLISHED] if behind else [folder]
