"""A complete checkpoint uploaded to the hub, into a repository that is private unless asked otherwise."""

import glob
import re
from pathlib import Path

from deeper_layers.checks import shown
from deeper_layers.errors import InputError, first_line
from deeper_layers.export.lineage import LINEAGE, read_lineage

LONGEST = 96  # characters of a name, by the hub's rule for the part after the slash


def check_name(repository: str) -> None:
    """Raise InputError for what is no USER/NAME or ORGANISATION/NAME."""
    if len(repository) > LONGEST or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
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
    try:
        api = HfApi()
        api.whoami()
        try:
            found = api.repo_info(repository)
        except RepositoryNotFoundError:
            return
    except Exception as error:  # whatever a server and the ways to it can answer
        raise _refused(repository, error) from error
    if not found.private and not public:
        raise InputError(
            f"--push-to-hub is {repository}, which is there and public: add --public to upload to it, or name another"
        )


def push(path: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a folder or a GGUF file as one commit; its address.

    Raises InputError where the hub does not take it: what was written stays where it is.
    """
    from huggingface_hub import HfApi  # slow

    try:
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        if path.is_dir():
            wrote = read_lineage(path)
            names = [] if wrote is None else [LINEAGE, *wrote.files]  # and nothing that came into the folder since
            api.upload_folder(
                repo_id=repository,
                folder_path=path,
                commit_message=message,
                allow_patterns=[glob.escape(name) for name in names],
            )
        else:
            api.upload_file(repo_id=repository, path_or_fileobj=path, path_in_repo=path.name, commit_message=message)
    except Exception as error:  # whatever a server and the ways to it can answer
        raise _refused(repository, error, f"; {path} is complete, and stays") from error
    return f"{api.endpoint}/{repository}"


def _refused(repository: str, error: Exception, more: str = "") -> InputError:
    return InputError(
        f"can't upload to {repository} ({first_line(error)}): check the name, the token's rights and the "
        f"connection{more}"
    )
