"""Which tensors of a checkpoint belong to which layer, and what its configuration becomes after a cut.

For a model of transformers an empty one is built, which says whether the tensors are all there, and cut, which says
both. Code that comes with a checkpoint is not run: then config.json and the names of the tensors have to say it
themselves.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import CONFIG_MAPPING, DynamicCache, PreTrainedConfig, PreTrainedModel

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.config_text import cut_entries, write_cut_config
from deeper_layers.export.quantization_names import cut_quantization
from deeper_layers.export.tensor_writer import Entry
from deeper_layers.models.checkpoint_files import NUMBERED, Shard, numbered_groups, read_json
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
    """What becomes of a checkpoint: its new configuration, and which of its tensors belong to which layer."""

    config: dict  # of the cut model, as config.json holds it
    layers: int  # before the cut, L
    prefix: str  # before the number of a layer in the names of tensors, as in "model.layers."
    module: str | None  # the same in the names of modules, which can be longer; None where no model is built
    kept: tuple[int, ...]  # original index of every kept layer
    mtp: int = 0  # kept layers for multi-token prediction; most checkpoints number them after the others
    warnings: tuple[str, ...] = ()  # what whoever runs the cut model has to know, a sentence each
    left_out: frozenset[str] = frozenset()  # names of tensors of no dropped layer that are left out

    @property
    def numbers(self) -> dict[int, int]:
        """The new number of everything that is numbered like a layer and stays, by its old one."""
        return {old: new for new, old in enumerate([*self.kept, *range(self.layers, self.layers + self.mtp)])}

    def entries(self, shards: list[Shard]) -> list[Entry]:
        """The tensors that stay, under their new names."""
        tensors = {tensor.name: (shard, tensor) for shard in shards for tensor in shard.tensors}
        return [Entry(new, tensors[old][1].entry["dtype"], *tensors[old]) for old, new in self.renamed(tensors).items()]

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """New names of the tensors that stay, by their old ones."""
        new, found = self.numbers, {}
        for name in names:
            number = _number(name, self.prefix)
            if name not in self.left_out and (number is None or number in new):
                end = "" if number is None else name.removeprefix(f"{self.prefix}{number}")
                found[name] = name if number is None else f"{self.prefix}{new[number]}{end}"
        return found


def number_of_layers(folder: Path) -> int:
    """Number of layers L of a checkpoint, as its configuration states it.

    Raises:
        InputError: it states none, is of an encoder-decoder model, or can't be read.
    """
    config = read_json(folder / "config.json")
    check_configuration(config, folder)
    if _is_known(folder, config):
        return layers_of(read_config(str(folder), None, trust_remote_code=False))
    return _depth(folder, config)


def layout_after(cut: Cut, folder: Path, shards: list[Shard], *, mtp: bool = True) -> Layout:
    """The layout of the checkpoint in `folder`, whose safetensors are these, after a cut.

    `mtp`: layers for multi-token prediction stay where there are any.

    Raises:
        InputError: the cut does not fit, tensors are missing or of other shapes than the configuration says, or which
            of them are layers is not understood; they are listed.
    """
    config = read_json(folder / "config.json")
    shapes = {tensor.name: tuple(tensor.entry["shape"]) for shard in shards for tensor in shard.tensors}
    groups, pruned, module, warnings = numbered_groups(shapes), None, None, ()
    check_configuration(config, folder, groups)
    if _is_known(folder, config):
        known = read_config(str(folder), None, trust_remote_code=False)
        layers_of(known)  # refuses an encoder-decoder model
        model = built_empty(known, folder)
        layers = num_layers(model)
        cut.check(layers)
        check_tensors(model, folder, shapes)
        pruned = drop_layers(model, cut)
        module = next(name for name, found in model.named_modules() if found is decoder_layers(model)) + "."
        prefix, kept = _prefix_in(model, folder, shapes, layers, module), cut.kept(layers)
        written = write_cut_config(config, kept, layers, model.config, pruned.config, folder)
        warnings = _warnings(model, pruned, cut)
    else:
        layers = _depth(folder, config)
        kept, prefix = cut.kept(layers), _prefix_by_depth(folder, groups, list(shapes), layers, _predicting(config))
        written = cut_entries(config, kept, layers)
    numbers = {name: _number(name, prefix) for name in shapes}
    odd = [name for name, number in numbers.items() if number is None and name.startswith(prefix)]
    _refuse(folder, odd, f"called like those of layers ({prefix}0), and of no number")
    beyond = {name: number for name, number in numbers.items() if number is not None and number >= layers}
    unknown = [name for name, number in beyond.items() if number >= layers + _predicting(config)]
    _refuse(folder, unknown, f"of layers beyond the {layers} that its configuration states")
    left_out = frozenset() if mtp else frozenset([*beyond, *(name for name in shapes if name.startswith(MTP))])
    if not mtp:
        old = text_part(written)
        text = {key: 0 if key in PREDICTING else value for key, value in old.items()}
        written = text if old is written else {key: text if value is old else value for key, value in written.items()}
    held = len(set(beyond.values()) or groups.get(f"{MTP}layers.", ())) if mtp else 0
    layout = Layout(written, layers, prefix, module, tuple(kept), held, warnings, left_out)
    if pruned is not None:  # names that are almost those of layers may stand for others after the cut
        check_tensors(pruned, folder, {new: shapes[old] for old, new in layout.renamed(shapes).items()})
    if isinstance(config.get("quantization_config"), dict):
        prefixes = tuple(dict.fromkeys(filter(None, (prefix, module))))
        names = cut_quantization(
            config["quantization_config"], layout.numbers, list(shapes), prefixes, folder / "config.json"
        )
        layout = dataclasses.replace(layout, config=layout.config | {"quantization_config": names})
    return layout


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


def _prefix_in(
    model: PreTrainedModel, folder: Path, shapes: dict[str, tuple[int, ...]], layers: int, module: str
) -> str:
    """What stands before the numbers of the decoder's layers in the names of tensors."""
    groups = numbered_groups(shapes)
    fitting = [prefix for prefix, numbers in groups.items() if numbers >= set(range(layers))]
    # checkpoints of a base model lack the name of what holds it: "h." in the file is "transformer.h." in the model
    chosen = [prefix for prefix in fitting if module.endswith(prefix)] or fitting
    if len(chosen) > 1:  # a model that sees images has layers for these too, under names of an older version
        filled = {prefix: unread_without(model, shapes, prefix) for prefix in chosen}
        chosen = [p for p in chosen if filled[p] and all(name.startswith(module) for name in filled[p])]
    if len(chosen) != 1:
        raise InputError(
            f"{folder} has {len(chosen)} groups of tensors that can be its {layers} layers "
            f"({', '.join(groups) or 'none'}): expected exactly one, like {module}0"
        )
    # something else with numbers, which the model neither knows nor leaves out, may belong to layers of these numbers
    lists = [f"{name}." for name, _ in model.named_modules()]
    ignored = [MTP, *(model._keys_to_ignore_on_load_unexpected or ())]

    def is_known(group: str) -> bool:
        named = any(name.endswith(group) for name in lists) or any(re.search(pattern, group) for pattern in ignored)
        return group in chosen or named or bool(unread_without(model, shapes, group))

    others = [group for group in groups if not is_known(group)]
    _refuse(folder, [name for name in shapes if _prefix(name) in others], "numbered like layers, of no known name")
    return chosen[0]


def _prefix_by_depth(folder: Path, groups: dict[str, set[int]], names: list[str], layers: int, predicting: int) -> str:
    """The same for a model whose code comes with it, and is not run: by what config.json says."""
    fitting = [
        prefix for prefix, found in groups.items() if found in (set(range(layers)), set(range(layers + predicting)))
    ]
    odd = sorted(name for name in names if (_prefix(name) or "") in set(groups) - {*fitting, f"{MTP}layers."})
    if len(fitting) != 1 or odd:
        shown = ", ".join(odd[:3]) or ", ".join(fitting) or "none"
        raise InputError(
            f"{folder} has {len(fitting)} groups of tensors numbered like its {layers} layers, and {len(odd)} numbered "
            f"otherwise ({shown}): its code is not run, so which are layers is not guessed"
        )
    return fitting[0]


def _warnings(model: PreTrainedModel, pruned: PreTrainedModel, cut: Cut) -> tuple[str, ...]:
    """What is right in the cut model's logits, and yet not as one may expect."""
    said = []
    if _counts(model.config) and not _counts(pruned.config):
        said.append(
            "no layer with attention is left, and transformers counts tokens by the cache of one: generate() works "
            "with use_cache=False only"
        )
    inserted = len(getattr(getattr(model.config, "vision_config", None), "deepstack_visual_indexes", None) or [])
    if cut.size and cut.start < inserted:
        said.append(
            f"images: what the whole model adds after its layers 0..{inserted - 1} is added after the first {inserted} "
            "layers that stay, which are others"
        )
    return tuple(said)


def _counts(config: PreTrainedConfig) -> bool:
    """Whether a cache of the model says how many tokens it holds, as its forward pass asks it."""
    try:
        DynamicCache(config=config).get_seq_length()
    except ValueError:
        return False
    return True


def _predicting(config: dict) -> int:
    """Number of layers for multi-token prediction that a configuration states."""
    text = text_part(config)
    return next((text[key] for key in PREDICTING if type(text.get(key)) is int), 0)


def _refuse(folder: Path, names: list[str], what: str) -> None:
    if names:
        raise InputError(
            f"{folder} holds {len(names)} tensors {what} ({', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)}): "
            "what becomes of them after a cut is not guessed; leave them out of the checkpoint"
        )


def _depth(folder: Path, config: dict) -> int:
    """The number of layers that a config.json states."""
    depth = stated_layers(config)
    if depth is None:
        raise InputError(
            f"{folder / 'config.json'} states no number of layers ({', '.join(DEPTHS)}): expected one of these"
        )
    return depth


def _prefix(name: str) -> str | None:
    found = NUMBERED.match(name)
    return found["prefix"] if found else None


def _number(name: str, prefix: str) -> int | None:
    found = NUMBERED.match(name)
    return int(found["number"]) if found and found["prefix"] == prefix else None
