"""Where measured units lie, and which checkout of this project is around."""

import stat
from pathlib import Path

from deeper_layers.errors import InputError

# where this package runs from a checkout, its root; a folder of the environment otherwise
AROUND = Path(__file__).resolve().parents[3]


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the root of a checkout of this project."""
    return (folder / "lib" / "deeper_layers" / "cuts.py").is_file()


def repository() -> Path | None:
    """The checkout that this package runs from, else the one in which the user stands; None where there is neither."""
    here = Path.cwd()
    return next((folder for folder in (AROUND, here, *here.parents) if is_checkout(folder)), None)


def results_folder(named: str | Path | None = None) -> Path:
    """The folder of measured units: the one that is named, from where the user stands.

    Without a name it is `results` of the repository where one is around, else of the working directory.

    Raises:
        InputError: the name is that of something else than a folder, or none that a folder can have.
    """
    if named is None:
        return (repository() or Path()) / "results"
    try:
        folder = Path(named).expanduser()
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError("it is no folder")
    except FileNotFoundError:
        return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a null byte, of a user who is not known
        said = getattr(error, "strerror", None) or error  # without the name, which may be long
        raise InputError(
            f"results is {str(named)[:200]!r}, which can't be used ({said}): name a folder, or one that can be made"
        ) from error
    return folder
