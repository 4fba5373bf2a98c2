"""A complete checkpoint uploaded to the hub, into a repository that is private unless asked otherwise."""

import contextlib
import glob
import re
from collections.abc import Iterator
from pathlib import Path

from deeper_layers.checks import shown
from deeper_layers.errors import InputError, first_line
from deeper_layers.export.lineage import LINEAGE, read_lineage


def check_name(repository: str) -> None:
    """Raise InputError for what is no USER/NAME or ORGANISATION/NAME."""
    if len(repository) > 96 or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):  # the hub's longest
        raise InputError(f"--push-to-hub is {shown(repository)}, expected USER/NAME or ORGANISATION/NAME: correct it")


def check_repository(repository: str, *, public: bool) -> None:
    """Ask the hub, before anything is written, whether a checkpoint may be uploaded there.

    Raises InputError as `check_name`, without a token, for one that the hub does not take, a repository that is public
    where `public` is not asked for, and a hub that can't be reached.
    """
    from huggingface_hub import HfApi, get_token  # slow
    from huggingface_hub.errors import RepositoryNotFoundError

    check_name(repository)
    if get_token() is None:
        raise InputError(
            "--push-to-hub needs a token of the hub that may write, and there is none: run `hf auth login`, or set "
            "HF_TOKEN"
        )
    with _reached(repository):
        HfApi().whoami()
        try:
            is_public = not HfApi().repo_info(repository).private
        except RepositoryNotFoundError:
            is_public = False
    if is_public and not public:
        raise InputError(
            f"--push-to-hub is {repository}, which is there and public: add --public to upload to it, or name another"
        )


def push(path: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a folder or a GGUF file as one commit; its address.

    Raises InputError where the hub does not take it: what was written stays where it is.
    """
    from huggingface_hub import HfApi  # slow

    with _reached(repository, f"; {path} is complete, and stays"):
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        if path.is_file():
            api.upload_file(repo_id=repository, path_or_fileobj=path, path_in_repo=path.name, commit_message=message)
        else:  # nothing that came into the folder since it was written
            wrote = read_lineage(path)
            ours = [] if wrote is None else [glob.escape(name) for name in (LINEAGE, *wrote.files)]
            api.upload_folder(repo_id=repository, folder_path=path, commit_message=message, allow_patterns=ours)
    return f"{api.endpoint}/{repository}"


@contextlib.contextmanager
def _reached(repository: str, more: str = "") -> Iterator[None]:
    """Whatever a server and the ways to it can answer is one line."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"can't upload to {repository} ({first_line(error)}): check the name, the token's rights and the "
            f"connection{more}"
        ) from error
