"""Which tensors of a checkpoint belong to which layer, and what its configuration becomes after a cut.

For a model of transformers an empty one is built, which says whether the tensors are all there, and cut, which says
both. Code that comes with a checkpoint is not run: then config.json and the names of the tensors have to say it
themselves.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from transformers import CONFIG_MAPPING, PreTrainedModel

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.config_text import cut_entries, replace_text, write_cut_config
from deeper_layers.export.quantization_names import cut_quantization
from deeper_layers.export.tensor_writer import Entry
from deeper_layers.models.checkpoint_files import NUMBERED, Shard, numbered_groups, read_json, read_shards
from deeper_layers.models.configuration import (
    DEPTHS,
    check_configuration,
    layers_of,
    read_config,
    stated_layers,
    text_part,
)
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.weight_check import built_empty, check_tensors, unread_without
from deeper_layers.pruning import drop_layers

# what configurations call the number of layers for multi-token prediction, whose tensors come after the last layer's
PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
MTP = "mtp."  # where these tensors have a name of their own, it begins so


@dataclass(frozen=True)
class Layout:
    """Which tensors of a checkpoint belong to which of its layers."""

    folder: Path
    config: dict  # what config.json holds
    shards: list[Shard]
    shapes: dict[str, tuple[int, ...]]  # of all tensors
    model: PreTrainedModel | None  # an empty one; None where its code comes with it
    layers: int  # L
    prefix: str  # before the number of a layer in the names of tensors, as in "model.layers."
    module: str | None  # the same in the names of modules, which can be longer; None where no model is built
    mtp: int | None  # layers for multi-token prediction, which most number after the others; None: left out

    def numbers(self, cut: Cut) -> dict[int, int]:
        """The new number of everything that is numbered like a layer and stays, by its old one."""
        kept = [*cut.kept(self.layers), *range(self.layers, self.layers + (self.mtp or 0))]
        return {old: new for new, old in enumerate(kept)}

    def renamed(self, cut: Cut) -> dict[str, str]:
        """New names of the tensors that stay, by their old ones."""
        new, found = self.numbers(cut), {}
        for name in self.shapes:
            number = _number(name, self.prefix)
            if number in new:
                found[name] = f"{self.prefix}{new[number]}{name.removeprefix(f'{self.prefix}{number}')}"
            elif number is None and not (self.mtp is None and name.startswith(MTP)):
                found[name] = name
        return found

    def entries(self, cut: Cut) -> list[Entry]:
        """The tensors that stay, under their new names, as they lie in their files."""
        new = self.renamed(cut)
        return [
            Entry(new[tensor.name], tensor.entry["dtype"], shard, tensor)
            for shard in self.shards
            for tensor in sorted(shard.tensors, key=lambda tensor: tensor.entry["data_offsets"])
            if tensor.name in new
        ]


def number_of_layers(folder: Path) -> int:
    """Number of layers L of a checkpoint. Raises InputError as `read_layout`."""
    return read_layout(folder).layers


def read_layout(folder: Path, *, mtp: bool = True) -> Layout:
    """The layout of the checkpoint in a folder. `mtp`: layers for multi-token prediction stay where there are any.

    Raises:
        InputError: tensors are missing or of other shapes than the configuration says, or which of them are layers is
            not understood; they are listed.
    """
    shards, config, model, module = read_shards(folder), read_json(folder / "config.json"), None, None
    shapes = {tensor.name: tuple(tensor.entry["shape"]) for shard in shards for tensor in shard.tensors}
    groups = numbered_groups(shapes)
    check_configuration(config, folder, groups)
    if _is_known(folder, config):
        known = read_config(str(folder), None, trust_remote_code=False)
        layers_of(known)  # refuses an encoder-decoder model
        model = built_empty(known, folder)
        check_tensors(model, folder, shapes)
        module = next(name for name, found in model.named_modules() if found is decoder_layers(model)) + "."
    layers = stated_layers(config) if model is None else num_layers(model)
    if layers is None:
        raise InputError(f"{folder / 'config.json'} states no number of layers: expected one of {', '.join(DEPTHS)}")
    prefix, odd = _find_prefix(folder, shapes, layers, model, module)
    last = layers + next(iter(_predicting(config).values()), 0)
    beyond = {number for number in groups[prefix] if number >= layers}
    for name in shapes:
        number = _number(name, prefix)
        if (number is None and name.startswith(prefix)) or (number is not None and number >= last):
            odd.append(name)
    if odd:
        raise InputError(
            f"{folder} holds {len(odd)} tensors that may belong to layers beside its {layers}, {prefix}0 and so on "
            f"({', '.join(sorted(odd)[:3])}{', ...' * (len(odd) > 3)}): what becomes of them after a cut is not "
            "guessed; leave them out of the checkpoint"
        )
    more = len(beyond or groups.get(f"{MTP}layers.", ())) if mtp else None
    return Layout(folder, config, shards, shapes, model, layers, prefix, module, more)


def cut_config(layout: Layout, cut: Cut) -> tuple[dict, list[str]]:
    """What config.json becomes after a cut, and what whoever runs the cut model has to know, a sentence each.

    Raises InputError where the cut does not fit, or the configuration can't say what it makes.
    """
    config, folder, model, kept, warnings = layout.config, layout.folder, layout.model, cut.kept(layout.layers), []
    if model is None:
        written = cut_entries(config, kept, layout.layers)
    else:
        pruned = drop_layers(model, cut)
        # names that are almost those of layers may stand for others after the cut
        check_tensors(pruned, folder, {new: layout.shapes[old] for old, new in layout.renamed(cut).items()})
        written = write_cut_config(config, kept, layout.layers, model.config, pruned.config, folder)
        vision = getattr(model.config, "vision_config", None)
        inserted = len(getattr(vision, "deepstack_visual_indexes", None) or [])
        if cut.size and cut.start < inserted:
            warnings.append(
                f"images: what the whole model adds after its layers 0..{inserted - 1} is added after the first "
                f"{inserted} layers that stay, which are others"
            )
    if layout.mtp is None:
        written = replace_text(written, dict.fromkeys(_predicting(written), 0))
    if isinstance(names := config.get("quantization_config"), dict):
        prefixes = tuple(dict.fromkeys(filter(None, (layout.prefix, layout.module))))
        names = cut_quantization(names, layout.numbers(cut), list(layout.shapes), prefixes, folder / "config.json")
        written = written | {"quantization_config": names}
    return written, warnings


def _is_known(folder: Path, config: dict) -> bool:
    """Whether the model is one of transformers; else its code comes with it. InputError where neither is so."""
    kind, code = config.get("model_type"), config.get("auto_map")
    if isinstance(code, dict) and code:
        return False
    if "auto_map" in config or not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(
            f"{folder / 'config.json'} has model_type {kind!r:.40}, which this transformers does not know, and names "
            "no code that comes with it (auto_map): repair it, or install a newer transformers"
        )
    return True


def _find_prefix(
    folder: Path, shapes: dict[str, tuple[int, ...]], layers: int, model: PreTrainedModel | None, module: str | None
) -> tuple[str, list[str]]:
    """What stands before the numbers of the decoder's layers in the names of tensors, and which others are numbered
    and of no known name: these may belong to layers of the same numbers.

    Raises InputError where the first is not sure.
    """
    groups = numbered_groups(shapes)
    chosen = [prefix for prefix, numbers in groups.items() if numbers >= set(range(layers))]
    lists, ignored = [], [MTP]
    if model is not None and module is not None:
        # checkpoints of a base model lack the name of what holds it: "h." in the file is "transformer.h." in the model
        chosen = [prefix for prefix in chosen if module.endswith(prefix)] or chosen
        if len(chosen) > 1:  # a model that sees images has layers for these too, under names of an older version
            filled = {prefix: unread_without(model, shapes, prefix) for prefix in chosen}
            chosen = [p for p in chosen if filled[p] and all(name.startswith(module) for name in filled[p])]
        lists = [f"{name}." for name, _ in model.named_modules()]
        ignored += model._keys_to_ignore_on_load_unexpected or ()
    if len(chosen) != 1:
        raise InputError(
            f"{folder} has {len(chosen)} groups of tensors that can be its {layers} layers "
            f"({', '.join(groups) or 'none'}), expected exactly one: which are layers is not guessed"
        )

    def is_known(group: str) -> bool:
        named = any(name.endswith(group) for name in lists) or any(re.search(pattern, group) for pattern in ignored)
        return group in chosen or named or (model is not None and bool(unread_without(model, shapes, group)))

    others = [group for group in groups if not is_known(group)]
    return chosen[0], [name for name in shapes if (found := NUMBERED.match(name)) and found["prefix"] in others]


def _predicting(config: dict) -> dict[str, int]:
    """What a configuration says of its number of layers for multi-token prediction, under whatever name."""
    text = text_part(config)
    return {key: text[key] for key in PREDICTING if type(text.get(key)) is int}


def _number(name: str, prefix: str) -> int | None:
    found = NUMBERED.match(name)
    return int(found["number"]) if found and found["prefix"] == prefix else None
