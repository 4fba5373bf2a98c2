"""What a source says of itself that a card passes on: licence, task, base model, its own words. None is trusted.

A folder says it in the head of its README.md, a GGUF file in its metadata, and of a packaged model we know it.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.files import read_plain
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_json
from deeper_layers.models.configuration import HUB_ID
from deeper_layers.models.packaged import PACKAGED

CARD = "README.md"
LONGEST = 2**20  # bytes of a card that is read
# entries of a card's head that hold for what is made of the model too
PASSED_ON = ("language", "license", "license_name", "license_link", "pipeline_tag")


@dataclass(frozen=True)
class Facts:
    """What is passed on: entries of the head, the hub id of the model, and the card's text."""

    entries: dict = field(default_factory=dict)
    hub: str | None = None  # of the source itself, or of the model that it is a copy of, as far as it says so
    text: str = ""


def read_facts(source: str, weights: str | None, folder: Path) -> Facts:
    """What is known of a source, as the user named it; `folder` holds its checkpoint, and `weights` is its hash."""
    path = local_path(source)
    sha256 = (weights or "").removeprefix("sha256:")
    known = PACKAGED.get(source) or next((model for model in PACKAGED.values() if model.sha256 == sha256), None)
    if known:
        return Facts({"license": known.license, "pipeline_tag": "text-generation"}, known.hub)
    if is_gguf(path):
        return Facts({"pipeline_tag": "text-generation"} | _of_gguf(path))
    head, text = _read_card(folder / CARD)
    entries = {name: value for name in PASSED_ON if (value := _plain(head.get(name))) is not None}
    if "pipeline_tag" not in entries:
        entries["pipeline_tag"] = "image-text-to-text" if _sees(folder) else "text-generation"
    base = head.get("base_model")
    hub = source if HUB_ID.fullmatch(source) and not path.exists() else base if _is_hub_id(base) else None
    return Facts(entries, hub, text)


def _read_card(path: Path) -> tuple[dict, str]:
    """The head of a card and its text; empty where it can't be read."""
    from huggingface_hub import ModelCard  # slow

    try:
        card = ModelCard(read_plain(path, LONGEST).decode("utf-8"), ignore_metadata_errors=True)
        return card.data.to_dict(), card.text.strip()
    except Exception:  # whatever a YAML of strangers raises: the card is not needed
        return {}, ""


def _of_gguf(path: Path) -> dict:
    from deeper_layers.models.gguf_header import read_gguf  # slow

    try:
        header = read_gguf(path)
    except InputError:
        return {}
    said = {"license": header.get("general.license"), "language": header.get("general.languages")}
    return {name: value for name in said if (value := _plain(said[name])) is not None}


def _plain(value):
    """A short text, or a list of such; None for all else."""
    if isinstance(value, str):
        return value if 0 < len(value) <= 200 else None
    fitting = isinstance(value, list) and 0 < len(value) <= 200 and all(_plain(one) == one for one in value)
    return value if fitting and all(isinstance(one, str) for one in value) else None


def _is_hub_id(value) -> bool:
    return isinstance(value, str) and HUB_ID.fullmatch(value) is not None


def _sees(folder: Path) -> bool:
    try:
        return "vision_config" in read_json(folder / "config.json")
    except InputError:
        return False
