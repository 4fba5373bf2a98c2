"""Which tensors of a checkpoint belong to which layer.

For a model of transformers an empty one is built, which says whether the tensors are all there. Code that comes with a
checkpoint is not run: then config.json and the names of the tensors have to say it themselves.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.tensors import Entries, read_entries
from deeper_layers.models.checkpoint_files import NUMBERED, numbered_groups, read_json
from deeper_layers.models.configuration import (
    built_empty,
    check_configuration,
    check_tensors,
    layers_of,
    read_config,
    stated_layers,
    text_part,
    unread_without,
)
from deeper_layers.models.decoder import decoder_layers

# what configurations call the number of layers for multi-token prediction, whose tensors come after the last layer's
PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
MTP = "mtp."  # where these tensors have a name of their own, it begins so


@dataclass(frozen=True)
class Layout:
    """Which tensors of a checkpoint belong to which of its layers."""

    folder: Path
    config: dict  # what config.json holds
    tensors: Entries  # of all files
    model: PreTrainedModel | None  # an empty one; None where its code comes with it
    layers: int  # L
    prefix: str  # before the number of a layer in the names of tensors, as in "model.layers."
    module: str  # the same in the names of modules, which can be longer
    mtp: int | None  # layers for multi-token prediction, which most number after the others; None: left out

    def numbers(self, cut: Cut) -> dict[int, int]:
        """The new number of everything that is numbered like a layer and stays, by its old one."""
        kept = [*cut.kept(self.layers), *range(self.layers, self.layers + (self.mtp or 0))]
        return {old: new for new, old in enumerate(kept)}

    def entries(self, cut: Cut) -> Entries:
        """The tensors that stay, by their new names."""
        new, found = self.numbers(cut), {}
        for name, entry in self.tensors.items():
            number = _number(name, self.prefix)
            if number in new:
                name = name.replace(f"{self.prefix}{number}.", f"{self.prefix}{new[number]}.", 1)
            if number in new or (number < 0 and (self.mtp is not None or not name.startswith(MTP))):
                found[name] = replace(entry, edits=[])
        return found


def read_layout(folder: Path, *, mtp: bool = True) -> Layout:
    """The layout of the checkpoint in a folder. `mtp`: layers for multi-token prediction stay where there are any.

    Raises InputError where tensors are missing or of other shapes than the configuration says, or it is not understood
    which of them are layers.
    """
    tensors, config = read_entries(folder), read_json(folder / "config.json")
    shapes = {name: tuple(entry.shape) for name, entry in tensors.items()}
    groups, layers, model, module = numbered_groups(tensors), stated_layers(config) or 0, None, ""
    check_configuration(config, folder)
    if not isinstance(config.get("auto_map"), dict):  # else its code comes with it
        known = read_config(folder)
        layers, model = layers_of(known), built_empty(known, folder)
        check_tensors(model, folder, shapes)
        module = next(name for name, found in model.named_modules() if found is decoder_layers(model)) + "."
    chosen = [prefix for prefix, numbers in groups.items() if layers and numbers >= set(range(layers))]
    if model is not None and len(chosen) > 1:  # one that sees images has layers for these too
        filled = {prefix: unread_without(model, shapes, prefix) for prefix in chosen}
        chosen = [p for p in chosen if filled[p] and all(name.startswith(module) for name in filled[p])]
    if len(chosen) != 1:
        raise InputError(
            f"{folder} has {len(chosen)} groups of tensors that can be its {layers} layers "
            f"({', '.join(groups) or 'none'}), expected exactly one: which are layers is not guessed"
        )
    (prefix,), last = chosen, layers + max(predicting(config).values(), default=0)
    beyond = {number for number in groups[prefix] if number >= layers}
    odd = [name for name in tensors if name.startswith(prefix) and not 0 <= _number(name, prefix) < last]
    if model is None:  # else transformers says what it reads of the others, and that is the same after the cut
        odd += [name for name in tensors if NUMBERED.match(name) and not name.startswith((prefix, MTP))]
    if odd:
        raise InputError(
            f"{folder} holds {len(odd)} tensors that may belong to layers beside its {layers}, {prefix}0 and so on "
            f"({', '.join(sorted(odd)[:3])}{', ...' * (len(odd) > 3)}): what becomes of them after a cut is not "
            "guessed; leave them out of the checkpoint"
        )
    more = len(beyond or groups.get(f"{MTP}layers.", ())) if mtp else None
    return Layout(folder, config, tensors, model, layers, prefix, module or prefix, more)


def predicting(config: dict) -> dict[str, int]:
    """What a configuration says of its number of layers for multi-token prediction, under whatever name."""
    text = text_part(config)
    return {key: text[key] for key in PREDICTING if type(text.get(key)) is int}


def _number(name: str, prefix: str) -> int:
    """Of the layer that a tensor is of; -1 where it is of none."""
    found = NUMBERED.match(name)
    return int(found["number"]) if found and found["prefix"] == prefix else -1
