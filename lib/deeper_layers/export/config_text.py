"""config.json after a cut: the source's own JSON, in its order, with the entries that the cut changes.

transformers must read from it the configuration that the cut model has in memory. transformers 5 writes rotary tables,
experts and tokenizers under names that 4.57 mostly ignores without a warning, and other engines read the older names,
too. Both names are written where they have the same meaning.

Source: the parameters of the configuration classes of transformers 4.57.6 and 5.24 that only one of them writes.
"""

import copy
import json
import re
import warnings
from pathlib import Path

from transformers import PreTrainedConfig

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.tensors import Layout, read_mtp_counts
from deeper_layers.models.checkpoint_files import find_numbered_prefixes
from deeper_layers.models.configuration import DEPTHS, text_part
from deeper_layers.models.decoder import cut_entry
from deeper_layers.pruning import UNSTATED, drop_layers

# entries that no cut changes but building a model may, and the one that cut_quantization renumbers
UNCUT = ("transformers_version", "_name_or_path", "architectures", "dtype", "quantization_config")
# by model_type: names of entries of `rope_parameters` when they stand outside of it
ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
# by model_type: the older class's names of layer kinds, by the names in transformers 5
OLDER_KINDS = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}
# in a quantization_config: a module in a list, by its name or a pattern of compressed-tensors or GPTQModel; any pattern
MODULE_NAME = re.compile(
    r"(?P<begin>(?:re:|[-+]:)?[\^.*\\]*)(?P<list>(?:[A-Za-z_]\w*\\?\.)*(?P<last>[A-Za-z_]\w*)\\?\.)(?P<number>\d+)"
    r"(?P<rest>(?:\\?\..*)?)"
)
PATTERN = re.compile(r"re:|[-+]:|.*[*\\(\[|]")
DROPPED = object()  # stands for entries that belong to dropped layers only


def cut_config(layout: Layout, cut: Cut) -> dict:
    """config.json after a cut. Raises InputError where the cut does not fit, or config.json can't express it."""
    cut.check_of_layers(
        layout.layers, f"{UNSTATED}; silence=True (--silence) writes zeros where these end"
    )
    config = cut_entries(layout.config, cut.kept(layout.layers), layout.layers)
    path = layout.folder / "config.json"
    if layout.model is not None:
        pruned = drop_layers(layout.model, cut).config
        config = _fit_to_model(config, pruned, path)
        vision = getattr(pruned, "vision_config", None)
        inserted = len(getattr(vision, "deepstack_visual_indexes", None) or [])
        if cut.size and cut.start < inserted:
            message = f"images: what the whole model adds after its layers 0..{inserted - 1} is added after the first "
            warnings.warn(f"{message}{inserted} layers that stay, which are others", stacklevel=3)
    if layout.mtp is None:
        text_part(config).update(dict.fromkeys(read_mtp_counts(config), 0))
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        numbers = layout.new_numbers(cut)
        names = [tensor.name for tensor in layout.tensors]
        prefixes = (layout.prefix, layout.module)
        config["quantization_config"] = cut_quantization(
            quantization, numbers, names, prefixes, path
        )
    return config


def cut_entries(config: dict, kept: list[int], layers: int) -> dict:
    """A config.json in which entries with a value for each layer keep the values of kept layers; others stay as is."""
    text = text_part(config)

    def cut(part: dict) -> dict:
        parts = dict(part)
        for key in part.keys() - {*UNCUT}:
            parts[key] = cut_entry(key, part[key], kept, layers)
        for key in DEPTHS:
            if part.get(key) == layers:
                parts[key] = len(kept)
        return parts

    parts = {key: cut(value) if value is text else value for key, value in config.items()}
    # some configurations hold the decoder's entries twice, at the top and in its part
    if text is config or any(config.get(name) == layers for name in DEPTHS):
        parts = cut(parts)
    return copy.deepcopy(parts)


def _fit_to_model(config: dict, pruned: PreTrainedConfig, path: Path) -> dict:
    """A config.json that transformers reads as `pruned`, the configuration of the cut model in memory."""
    expected = _list_entries(pruned)

    def find_misread(config: dict) -> dict[tuple[str, ...], object] | None:
        """The expected values that transformers reads differently; None where it can't read the configuration."""
        try:
            entries = _list_entries(type(pruned).from_dict(copy.deepcopy(config)))
        except Exception:  # the configuration classes raise many kinds
            return None
        return {
            keys: value
            for keys, value in expected.items()
            if keys not in entries or entries[keys] != value
        }

    for keys, value in (find_misread(config) or {}).items():
        # transformers computed it from the depth, and the source does not state it
        part = config if len(keys) == 1 else text_part(config)
        part[keys[-1]] = value
    for candidate in (json.loads(json.dumps(config), object_hook=_add_older_names), config):
        if find_misread(candidate) == {}:
            return candidate
    raise InputError(
        f"{path} can't say in its own words what the cut makes of it: save the model again with save_pretrained of a "
        "current transformers, or choose another cut"
    )


def _list_entries(config: PreTrainedConfig) -> dict[tuple[str, ...], object]:
    """All entries of a configuration and its parts, each by the keys that lead to it."""
    entries = {}

    def add(part: dict, *keys: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict) and "model_type" in value:
                add(value, *keys, key)
            elif key not in UNCUT:
                entries[*keys, key] = value

    add(json.loads(config.to_json_string(use_diff=False)))
    return entries


def _add_older_names(part: dict) -> dict | float:
    """A part of a configuration with the older names added, or in their place where both versions read the older."""
    if part.keys() == {"__float__"}:  # infinity
        return float(part["__float__"])
    kind = str(part.get("model_type"))
    added = {}
    for key in ("layer_types", "layers_block_type"):
        if isinstance(part.get(key), list):
            part[key] = [OLDER_KINDS.get(kind, {}).get(name, name) for name in part[key]]
    rope = part.get("rope_parameters")
    if isinstance(rope, dict):
        # where each kind of layer has its own table, the older names describe that of full attention
        local = rope.get("sliding_attention") or {}
        full = dict(rope.get("full_attention") or rope)
        theta = full.pop("rope_theta", None)
        local_theta = local.get("rope_theta")
        older = {"rope_theta": theta, "rope_local_base_freq": local_theta}
        if local_theta == theta:
            del older["rope_local_base_freq"]
        older["partial_rotary_factor"] = full.pop("partial_rotary_factor", None)
        names = ROPE_NAMES.get(kind, {})
        added = {names.get(name, name): value for name, value in older.items() if value is not None}
        added["rope_scaling"] = None if full in ({}, {"rope_type": "default"}) else full
    if "transformers_version" in part and isinstance(part.get("dtype"), str):
        added["torch_dtype"] = part["dtype"]
    if "num_local_experts" in part:
        added["num_experts"] = part["num_local_experts"]
    return part | {name: value for name, value in added.items() if name not in part}


def set_dtype(config: dict, dtype: str) -> None:
    """Set the data type of a config.json wherever it states one, and in at least one place."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.update({name: dtype for name in ("dtype", "torch_dtype") if name in part})
    if "dtype" not in config:
        config["torch_dtype"] = dtype


def cut_quantization(
    quantization: dict,
    new_numbers: dict[int, int],
    tensors: list[str],
    prefixes: tuple[str, ...],
    path: Path,
) -> dict:
    """The quantization_config of a checkpoint after a cut: module names get new layer numbers, or are left out.

    `new_numbers` maps old numbers of kept layers to new ones, `tensors` are the names of all tensors of the whole
    checkpoint, `prefixes` stand before a layer's number in names of tensors and modules: "model.layers.". Raises
    InputError where a name or pattern may belong to these layers, but not surely to one of them.
    """
    known_lists = {*find_numbered_prefixes(tensors), *prefixes}
    list_names = [p.split(".")[-2] for p in prefixes]

    def renumber_name(text: str):
        """A name or pattern with the new number of its layer, or DROPPED."""
        match = MODULE_NAME.fullmatch(text)
        if match and match["last"] in list_names:
            list_name = match["list"].replace("\\", "")
            lists = {name for name in known_lists if f".{name}".endswith(f".{list_name}")}
            if lists and lists <= {*prefixes}:
                number = new_numbers.get(int(match["number"]))
                if number is None:
                    return DROPPED
                return f"{match['begin']}{match['list']}{number}{match['rest']}"
            is_sure = lists and lists.isdisjoint(prefixes)
        else:  # it names no layer, unless it is a pattern with a separate number
            is_sure = match or not PATTERN.match(text) or not re.search(r"(?<!\w)\d", text)
        if is_sure:
            return text
        raise InputError(
            f"the quantization_config of {path} has the pattern {text!r:.80}, which names layers in a way that can't "
            "be renumbered surely: write the names of these modules there instead"
        )

    def renumber_value(value):
        if isinstance(value, dict):
            entries = {renumber_value(key): renumber_value(entry) for key, entry in value.items()}
            # a group with targets in dropped layers only is dropped
            if value.get("targets") and not entries["targets"]:
                return DROPPED
            return {key: entry for key, entry in entries.items() if DROPPED not in (key, entry)}
        if isinstance(value, list):
            return [entry for entry in map(renumber_value, value) if entry is not DROPPED]
        if isinstance(value, str):
            return renumber_name(value)
        return value

    return renumber_value(quantization)
