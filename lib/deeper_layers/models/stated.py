"""What a model says of itself before anything is fetched whole, converted or opened: soon, and without torch."""

import os
import re
from pathlib import Path

from deeper_layers.errors import InputError, first_line
from deeper_layers.models.checkpoint_files import local_path, read_json
from deeper_layers.models.configuration import DEPTHS, text_part
from deeper_layers.models.packaged import PACKAGED

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def stated_config(model: str, revision: str | None = None) -> dict:
    """What config.json of a model holds; of a GGUF file, or a packaged model, kind and number of layers alone.

    Raises InputError for a name that is neither a file, a folder nor a hub id, and for a file that can't be read.
    """
    path = local_path(model)
    if packaged := PACKAGED.get(model):
        return {"model_type": packaged.model_type, "num_hidden_layers": packaged.num_layers}
    if path.suffix == ".gguf":
        from deeper_layers.models.gguf_checks import architecture, layers_of, read_gguf  # slow

        header = read_gguf(path)
        return {"model_type": architecture(header).replace("-", "_"), "num_hidden_layers": layers_of(header)}
    if os.path.isdir(path):
        if not os.path.lexists(path / "config.json"):
            raise InputError(f"{path} has no config.json: give a folder saved by save_pretrained")
        return read_json(path / "config.json")
    check_hub_id(model)
    from huggingface_hub import hf_hub_download  # slow

    try:
        return read_json(Path(hf_hub_download(model, "config.json", revision=revision)))
    except InputError:
        raise
    except Exception as error:  # whatever a server and the ways to it can answer
        raise InputError(f"can't fetch {model!r} ({first_line(error)}): check the name and the connection") from error


def stated_layers(config: dict) -> int | None:
    """Number of layers that a configuration states in plain words; None where only its code knows."""
    text = text_part(config)
    return next((text[name] for name in DEPTHS if type(text.get(name)) is int), None)


def check_hub_id(model: str) -> None:
    """Raise InputError for what can't be one."""
    if not HUB_ID.fullmatch(model):
        raise InputError(f"{model!r} is no file, no folder and no hub id (ORGANISATION/NAME)")
