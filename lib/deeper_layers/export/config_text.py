"""config.json after a cut: the source's own JSON, in its order, with what the cut changes.

Whether it says what it should is for transformers to tell: it reads it again, and what it reads has to be the
configuration that the cut model has in memory. transformers 5 writes rotary tables, experts and tokenizers under names
that 4.57 does not know, and mostly passes over in silence; other engines read the older names too. Both are written
where they say the same.

Source: the configuration classes of transformers 4.57.6 beside those of 5.24 (parameters of the one that the other
does not write).
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from deeper_layers.errors import InputError, first_line
from deeper_layers.models.configuration import DEPTHS, text_part
from deeper_layers.models.per_layer import cut_entry

# what of a configuration no cut changes and building a model may, or what is renumbered by name (quantization_names.py)
BESIDE = ("transformers_version", "_name_or_path", "architectures", "dtype", "quantization_config")
# what an entry of `rope_parameters` is called outside of it, by model_type
ROPE_NAMES = dict.fromkeys(
    ("gpt_neox", "gpt_neox_japanese"), {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
)
ROPE_NAMES["modernbert-decoder"] = {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"}
# kinds of layers in the words of transformers 5, by model_type, where the older class takes no others
KINDS = {
    "granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"},
    "zamba2": {"linear_attention": "mamba"},
}
Part = tuple[str, ...]  # keys that lead to a part of a configuration


def cut_entries(config: dict, kept: list[int], layers: int) -> dict:
    """A config.json whose entries that describe layers are those of the kept ones; the others stay as they are."""
    text = text_part(config)

    def cut(part: dict) -> dict:
        found = {key: value if key in BESIDE else cut_entry(key, value, kept, layers) for key, value in part.items()}
        return found | {key: len(kept) for key in DEPTHS if type(part.get(key)) is int and part[key] == layers}

    # some hold the entries of the decoder twice, at the top and in its part
    at_top = text is config or any(config.get(name) == layers for name in DEPTHS)
    top = cut({key: value for key, value in config.items() if value is not text}) if at_top else config
    return {key: cut(text) if value is text else top[key] for key, value in config.items()}


def replace_text(config: dict, entries: dict) -> dict:
    """A configuration with other entries in the part that describes the decoder."""
    text = text_part(config)
    if text is config:
        return config | entries
    return {key: value | entries if value is text else value for key, value in config.items()}


def write_cut_config(
    source: dict, kept: list[int], layers: int, whole: PreTrainedConfig, pruned: PreTrainedConfig, where: Path
) -> dict:
    """The config.json of a model without some layers, for this and older versions of transformers.

    Args:
        source: the config.json that `whole` was read from.
        kept: original indices of the `layers` that stay.
        pruned: what the cut model in memory has.
        where: the folder of the source, for errors.

    Raises:
        InputError: transformers would read something else than `pruned`.
    """
    before, after = _as_dict(whole), _as_dict(pruned)

    def unlike(config: dict) -> list[tuple[Part, str]]:
        """Part and name of every entry that transformers would read otherwise."""
        try:
            return _unlike(_as_dict(type(whole).from_dict(copy.deepcopy(config))), after)
        except Exception as error:
            raise InputError(
                f"transformers can't read what a cut makes of {where / 'config.json'} ({first_line(error)}): choose "
                "another cut, or save the model again with save_pretrained"
            ) from error

    def refuse(part: Part, key: str) -> None:
        raise InputError(
            f"{where / 'config.json'} can't say in its own words what the cut makes of {'.'.join((*part, key))}: save "
            "the model again with save_pretrained of a current transformers, or choose another cut"
        )

    cut = write_plainly(cut_entries(source, kept, layers))
    for part, key in unlike(cut):
        # what transformers had worked out from the depth, and the source does not state
        if _at(before, part).get(key) == _at(after, part).get(key):
            refuse(part, key)
        held = _at(cut, part) if not part or part[0] in cut else cut  # some hold their parts at the top
        held[key] = _at(after, part)[key]
    cut = write_plainly(cut)
    for part, words in find_transformers4_entries(cut):
        for name, value in words.items():
            trial = copy.deepcopy(cut)
            _at(trial, part)[name] = value
            try:
                cut = cut if unlike(trial) else trial
            except InputError:
                continue
    for part, key in unlike(cut):
        refuse(part, key)
    return cut


def _as_dict(config: PreTrainedConfig) -> dict:
    return json.loads(config.to_json_string(use_diff=False))


def _unlike(found: dict, expected: dict, part: Part = ()) -> list[tuple[Part, str]]:
    """Part and name of every entry that is not as expected. Entries that nobody asked for may be there."""
    unlike = []
    for key, value in expected.items():
        if key in BESIDE or (key in found and found[key] == value):
            continue
        if isinstance(value, dict) and isinstance(found.get(key), dict) and "model_type" in value:
            unlike += _unlike(found[key], value, (*part, key))
        else:
            unlike.append((part, key))
    return unlike


def _at(config: dict, part: Part) -> dict:
    for key in part:
        config = config.setdefault(key, {})
    return config


# ---- the words of transformers 4 --------------------------------------------------------------------------------


def find_transformers4_entries(config: dict, part: Part = ()) -> Iterator[tuple[Part, dict]]:
    """For each part of a configuration that lacks any: where it is, and the entries that transformers 4 reads."""
    words = _rope(config) if isinstance(config.get("rope_parameters"), dict) else {}
    if not part and isinstance(config.get("dtype"), str):
        words["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config:
        words["num_experts"] = config["num_local_experts"]
    yield part, {name: value for name, value in words.items() if name not in config}
    for key, value in config.items():
        if isinstance(value, dict) and key != "quantization_config":
            yield from find_transformers4_entries(value, (*part, key))


def _rope(config: dict) -> dict:
    """Entries for rotary tables. Where each kind of layer has its own, those of full attention are the plain ones."""
    rope = config["rope_parameters"]
    near, far = rope.get("sliding_attention"), rope.get("full_attention", rope)
    if not isinstance(far, dict):
        return {}
    words = {"rope_theta": far["rope_theta"]} if "rope_theta" in far else {}
    if isinstance(near, dict) and near.get("rope_theta") != far.get("rope_theta"):
        words["rope_local_base_freq"] = near.get("rope_theta")
    if far.get("partial_rotary_factor") is not None:
        words["partial_rotary_factor"] = far["partial_rotary_factor"]
    rest = {key: value for key, value in far.items() if key not in ("rope_theta", "partial_rotary_factor")}
    words["rope_scaling"] = None if rest in ({}, {"rope_type": "default"}) else rest
    names = ROPE_NAMES.get(str(config.get("model_type")), {})
    return {names.get(name, name): value for name, value in words.items()}


def write_plainly(config: dict) -> dict:
    """A configuration with what older versions can't read in any place put plainly, which newer ones read too."""
    kinds = KINDS.get(str(config.get("model_type")), {})

    def plain(key: str, value):
        if isinstance(value, list) and key in ("layer_types", "layers_block_type"):
            return [kinds.get(kind, kind) for kind in value]
        if isinstance(value, list):
            return [plain("", entry) for entry in value]
        if not isinstance(value, dict):
            return value
        # infinity is an object of its own in transformers 5
        return float(value["__float__"]) if value.keys() == {"__float__"} else write_plainly(value)

    return {key: plain(key, value) for key, value in config.items()}


def convert_tokenizer_config(config: dict) -> dict:
    """tokenizer_config.json of transformers 5 as older versions read it, which newer ones read too."""
    words = dict(config)
    if words.get("tokenizer_class") == "TokenizersBackend":  # a name that older versions don't know
        words["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(words.get("extra_special_tokens"), list):  # older versions expect names for these
        words["additional_special_tokens"] = words.pop("extra_special_tokens")
    return words
