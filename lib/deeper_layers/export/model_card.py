"""README.md of a sliced checkpoint: how to use it, where it comes from, what was dropped and added, what was measured.

model_card.md.jinja has its text; the hub reads its head. Facts that the source states (a folder in its README.md, a
GGUF file in its metadata) are passed on, but not trusted: names are escaped, and the source's card is only linked.
"""

import contextlib
import json
import shlex
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader

from deeper_layers.cuts import find_ranges, mergekit_yaml
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.lineage import Lineage
from deeper_layers.files import read_plain_file
from deeper_layers.markup import as_code, as_markdown, escape_invisible
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_json
from deeper_layers.models.gguf_reading import read_gguf
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import HUB_ID

LONGEST_CARD = 2**20  # bytes of a card that are read at most
# entries of a card's head that also hold for the pruned model
PASSED_ON = ("language", "license", "license_name", "license_link", "pipeline_tag")
FILTERS = {
    "markdown": as_markdown,
    "code": as_code,
    "visible": escape_invisible,
    "one_line": lambda text: " ".join(text.split()),
    "last_name": lambda module: module.rpartition(".")[2],
    "python": lambda name: (
        json.dumps(name) if name.isascii() else repr(name)
    ),  # JSON writes other text as surrogates
    "shell": lambda name: shlex.quote(escape_invisible(name)),
}


class SourceFacts(NamedTuple):
    """The facts that a source states and that are passed on."""

    entries: dict  # of the head of its card
    hub: str | None = None  # hub id of the source, or of the model that it says it is a copy of
    quantized: str = ""  # kind of weights of a GGUF file


def read_facts(source: str, folder: Path) -> SourceFacts:
    """The facts of a source, which is given as the user named it; `folder` holds its checkpoint."""
    path = local_path(source)
    task = {"pipeline_tag": "text-generation"}
    packaged = PACKAGED.get(source)
    if packaged:
        return SourceFacts(
            {"license": packaged.license} | task, packaged.hub, quantized=packaged.quantized
        )
    if is_gguf(path):
        header = read_gguf(path)
        entries = {
            "license": header.get("general.license"),
            "language": header.get("general.languages"),
        }
        return SourceFacts(task | _select_passed_on(entries), quantized=header.quantized)
    head = {}
    # YAML of others raises many kinds, and the card is not needed
    with contextlib.suppress(Exception):
        card = ModelCard(
            read_plain_file(folder / "README.md", LONGEST_CARD).decode(),
            ignore_metadata_errors=True,
        )
        head = card.data.to_dict()
    if "vision_config" in read_json(folder / "config.json"):
        task = {"pipeline_tag": "image-text-to-text"}
    hub = source
    if not HUB_ID.fullmatch(source) or path.exists():
        hub = str(head.get("base_model"))
    return SourceFacts(task | _select_passed_on(head), hub if HUB_ID.fullmatch(hub) else None)


def _select_passed_on(entries: dict) -> dict:
    """The entries in PASSED_ON that are a text or a list of texts, and not empty."""
    chosen = {name: entries.get(name) for name in PASSED_ON}
    texts = {name: value for name, value in chosen.items() if isinstance(value, str | list)}
    return {name: value for name, value in texts.items() if {*map(type, value)} == {str}}


def render_model_card(
    lineage: Lineage, facts: SourceFacts, revision: str | None, adapter: Adapter | None, **context
) -> str:
    """The card of a checkpoint, in Markdown.

    `context` is for the template: the `name` by which the checkpoint is opened, its `config`, `scores` from results,
    and `predicting`: whether layers for multi-token prediction are "kept" or "left out", or "" where there are none.
    """
    step = lineage.steps[-1]
    hub = facts.hub or lineage.base_model
    kept = find_ranges(lineage.kept)  # of the first model
    # the hub has relations for adapters, merges, quantized and fine-tuned models: a healed model is fine-tuned
    entries: dict = facts.entries | ({"base_model_relation": "finetune"} if hub and adapter else {})
    data = ModelCardData(
        library_name="transformers", tags=["layer-pruning"], base_model=hub, **entries
    )
    if hub:
        yaml = mergekit_yaml(kept, hub, revision)
        where = ", of its weights before they were quantized" if facts.quantized else ""
    else:  # without a hub id mergekit needs the source in a local folder
        folder = f"./{step.model}"
        yaml = mergekit_yaml(find_ranges(step.cut.kept(step.layers)), folder)
        where = f", run beside a folder {as_code(folder)} with the source"
    # mergekit copies layers as they are
    if not all(each.cut.is_of_layers for each in lineage.steps):
        yaml = ""
    context |= {
        "lineage": lineage,
        "facts": facts,
        "revision": revision,
        "adapter": adapter,
        "kept": kept,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    card = environment.get_template("model_card.md.jinja").render(
        context, head=data.to_yaml(), hub=hub, yaml=yaml, where=where
    )
    return card.rstrip() + "\n"
