"""What a source says of itself that a card passes on: licence, task, base model, its own words. None is trusted.

A folder says it in the head of its README.md, a GGUF file in its metadata, and of a packaged model we know it.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deeper_layers.files import read_plain
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_json
from deeper_layers.models.configuration import HUB_ID
from deeper_layers.models.packaged import PACKAGED

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
    path, task = local_path(source), "text-generation"
    by_hash = {f"sha256:{model.sha256}": model for model in PACKAGED.values()}
    if known := PACKAGED.get(source) or by_hash.get(weights or ""):
        return Facts({"license": known.license, "pipeline_tag": task}, known.hub)
    if is_gguf(path):
        from deeper_layers.models.gguf_header import read_gguf  # slow

        header = read_gguf(path)
        said = {"license": header.get("general.license"), "language": header.get("general.languages")}
        return Facts({"pipeline_tag": task} | _passed_on(said))
    head, text = _read_card(folder / "README.md")
    if "vision_config" in read_json(folder / "config.json"):
        task = "image-text-to-text"
    base = head.get("base_model")
    if HUB_ID.fullmatch(source) and not path.exists():
        base = source
    hub = base if isinstance(base, str) and HUB_ID.fullmatch(base) else None
    return Facts({"pipeline_tag": task} | _passed_on(head), hub, text)


def _read_card(path: Path) -> tuple[dict, str]:
    """The head of a card and its text; empty where it can't be read."""
    from huggingface_hub import ModelCard  # slow

    try:
        card = ModelCard(read_plain(path, LONGEST).decode("utf-8"), ignore_metadata_errors=True)
        return card.data.to_dict(), card.text.strip()
    except Exception:  # whatever a YAML of strangers raises: the card is not needed
        return {}, ""


def _passed_on(said: dict) -> dict:
    """Those of PASSED_ON that are a short text, or a list of such."""
    found = {}
    for name in PASSED_ON:
        value = said.get(name)
        texts = value if isinstance(value, list) else [value]
        if 0 < len(texts) <= 200 and all(isinstance(text, str) and 0 < len(text) <= 200 for text in texts):
            found[name] = value
    return found
