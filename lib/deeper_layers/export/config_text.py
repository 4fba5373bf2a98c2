"""config.json after a cut: the source's own JSON, in its order, with what the cut changes.

transformers reads it again, and what it reads has to be the configuration that the cut model has in memory. It writes
rotary tables, experts and tokenizers under names that 4.57 does not know, and mostly passes over in silence; other
engines read the older names too. Both are written where they say the same.

Source: parameters of the configuration classes of transformers 4.57.6 that those of 5.24 do not write, and the reverse.
"""

import copy
import json
import re
import warnings
from pathlib import Path

from transformers import PreTrainedConfig

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.tensors import Layout, predicting
from deeper_layers.models.checkpoint_files import numbered_groups
from deeper_layers.models.configuration import DEPTHS, text_part
from deeper_layers.models.decoder import cut_entry
from deeper_layers.pruning import UNSTATED, drop_layers

# what of a configuration no cut changes and building a model may, or what is renumbered by name (cut_quantization)
BESIDE = ("transformers_version", "_name_or_path", "architectures", "dtype", "quantization_config")
# what an entry of `rope_parameters` is called outside of it, by model_type
ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
# kinds of layers in the words of transformers 5, by model_type, where the older class takes no others
KINDS = {"granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"}}
# in a quantization_config a module in a list, by its name or a pattern of compressed-tensors or GPTQModel; any pattern
NAMED = re.compile(
    r"(?P<begin>(?:re:|[-+]:)?[\^.*\\]*)(?P<list>(?:[A-Za-z_]\w*\\?\.)*(?P<last>[A-Za-z_]\w*)\\?\.)(?P<number>\d+)"
    r"(?P<rest>(?:\\?\..*)?)"
)
PATTERN = re.compile(r"re:|[-+]:|.*[*\\(\[|]")
GONE = object()  # what is of dropped layers alone


def cut_config(layout: Layout, cut: Cut) -> dict:
    """What config.json becomes after a cut. Raises InputError where that does not fit, or it can't say the result."""
    cut.check_of_layers(layout.layers, f"{UNSTATED}; silence=True (--silence) writes zeros where these end")
    config, where = cut_entries(layout.config, cut.kept(layout.layers), layout.layers), layout.folder / "config.json"
    if layout.model is not None:
        pruned = drop_layers(layout.model, cut).config
        config, vision = _read_as(config, pruned, where), getattr(pruned, "vision_config", None)
        inserted = len(getattr(vision, "deepstack_visual_indexes", None) or [])
        if cut.size and cut.start < inserted:
            said = f"images: what the whole model adds after its layers 0..{inserted - 1} is added after the first "
            warnings.warn(f"{said}{inserted} layers that stay, which are others", stacklevel=3)
    if layout.mtp is None:
        text_part(config).update(dict.fromkeys(predicting(config), 0))
    if isinstance(names := config.get("quantization_config"), dict):
        prefixes = (layout.prefix, layout.module)
        names = cut_quantization(
            names, layout.numbers(cut), [tensor.name for tensor in layout.tensors], prefixes, where
        )
        config["quantization_config"] = names
    return config


def cut_entries(config: dict, kept: list[int], layers: int) -> dict:
    """A config.json whose entries that describe layers are those of the kept ones; the others stay as they are."""
    text = text_part(config)

    def cut(part: dict) -> dict:
        found = {key: value if key in BESIDE else cut_entry(key, value, kept, layers) for key, value in part.items()}
        return found | {key: len(kept) for key in DEPTHS if part.get(key) == layers}

    found = {key: cut(value) if value is text else value for key, value in config.items()}
    # some hold the entries of the decoder twice, at the top and in its part
    return copy.deepcopy(cut(found) if text is config or any(config.get(name) == layers for name in DEPTHS) else found)


def _read_as(config: dict, pruned: PreTrainedConfig, where: Path) -> dict:
    """A config.json that transformers reads as the configuration which a cut model has in memory."""
    expected = _stated(pruned)

    def misread(config: dict) -> dict[tuple[str, ...], object] | None:
        """What transformers would read otherwise, as it should be; None where it can't read it."""
        try:
            found = _stated(type(pruned).from_dict(copy.deepcopy(config)))
        except Exception:  # the configuration classes raise many kinds
            return None
        return {keys: value for keys, value in expected.items() if keys not in found or found[keys] != value}

    for keys, value in (misread(config) or {}).items():
        # what transformers had worked out from the depth, and the source does not state
        (config if len(keys) == 1 else text_part(config))[keys[-1]] = value
    for written in (json.loads(json.dumps(config), object_hook=_older), config):
        if misread(written) == {}:
            return written
    raise InputError(
        f"{where} can't say in its own words what the cut makes of it: save the model again with save_pretrained of a "
        "current transformers, or choose another cut"
    )


def _stated(config: PreTrainedConfig) -> dict[tuple[str, ...], object]:
    return _entries(json.loads(config.to_json_string(use_diff=False)))


def _entries(part: dict, *keys: str) -> dict[tuple[str, ...], object]:
    """Those of a configuration and its parts, each by the keys that lead to it."""
    found = {}
    for key, value in part.items():
        if isinstance(value, dict) and "model_type" in value:
            found |= _entries(value, *keys, key)
        elif key not in BESIDE:
            found[*keys, key] = value
    return found


def _older(part: dict) -> dict | float:
    """A part of a configuration in words of both versions, or of the older one alone where both read these."""
    if part.keys() == {"__float__"}:  # infinity
        return float(part["__float__"])
    kind, words = str(part.get("model_type")), {}
    for key in ("layer_types", "layers_block_type"):
        if isinstance(part.get(key), list):
            part[key] = [KINDS.get(kind, {}).get(name, name) for name in part[key]]
    if isinstance(rope := part.get("rope_parameters"), dict):
        # where each kind of layer has its own table, that of full attention is the plain one
        near, far = rope.get("sliding_attention") or {}, dict(rope.get("full_attention") or rope)
        theta, local = far.pop("rope_theta", None), near.get("rope_theta")
        found = {"rope_theta": theta, "rope_local_base_freq": None if local == theta else local}
        found["partial_rotary_factor"] = far.pop("partial_rotary_factor", None)
        names = ROPE_NAMES.get(kind, {})
        words = {names.get(name, name): value for name, value in found.items() if value is not None}
        words["rope_scaling"] = None if far in ({}, {"rope_type": "default"}) else far
    if "transformers_version" in part and isinstance(part.get("dtype"), str):
        words["torch_dtype"] = part["dtype"]
    if "num_local_experts" in part:
        words["num_experts"] = part["num_local_experts"]
    return part | {name: value for name, value in words.items() if name not in part}


def state_dtype(config: dict, dtype: str) -> None:
    """Have a config.json state a data type where it stated another, and in one place at least."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.update({name: dtype for name in ("dtype", "torch_dtype") if name in part})
    if "dtype" not in config:
        config["torch_dtype"] = dtype


def cut_quantization(
    quantization: dict, new: dict[int, int], tensors: list[str], prefixes: tuple[str, ...], where: Path
) -> dict:
    """The quantization_config of a checkpoint without some layers: names renumbered, those of dropped layers left out.

    `new` are numbers of the layers that stay by their old ones, `tensors` all of the whole checkpoint, `prefixes` what
    stands before the number of a layer in names of tensors and of modules: "model.layers.". Raises InputError where a
    name or a pattern may be of these layers, and it is not sure of which.
    """
    lists, words = {*numbered_groups(tensors), *prefixes}, [prefix.split(".")[-2] for prefix in prefixes]

    def renumbered(text: str):
        """A name or pattern with the new number of its layer; GONE where that is dropped."""
        found = NAMED.fullmatch(text)
        if found and found["last"] in words:
            before = found["list"].replace("\\", "")
            of = {name for name in lists if f".{name}".endswith(f".{before}")}
            if of and of <= {*prefixes}:
                number = new.get(int(found["number"]))
                return GONE if number is None else f"{found['begin']}{found['list']}{number}{found['rest']}"
            is_sure = of and of.isdisjoint(prefixes)
        else:  # of no layer, unless it is a pattern with a number by itself
            is_sure = found or not PATTERN.match(text) or not re.search(r"(?<!\w)\d", text)
        if is_sure:
            return text
        raise InputError(
            f"the quantization_config of {where} has the pattern {text!r:.80}, which names layers in a way that can't "
            "be renumbered surely: write the names of these modules there instead"
        )

    def changed(value):
        if isinstance(value, dict):
            entries = {changed(key): changed(entry) for key, entry in value.items()}
            # a group of dropped layers alone goes as a whole
            if value.get("targets") and not entries["targets"]:
                return GONE
            return {key: entry for key, entry in entries.items() if GONE not in (key, entry)}
        if isinstance(value, list):
            return [entry for entry in map(changed, value) if entry is not GONE]
        return renumbered(value) if isinstance(value, str) else value

    return changed(quantization)
