"""The configuration of transformers 4: config.json and tokenizer_config.json as its last versions read them.

Transformers 5 writes rotary tables, experts and tokenizers under names that 4.57 does not know, and mostly passes
over in silence; other engines read the older names too. Both are written where they say the same.

Source: the configuration classes of transformers 4.57.6 beside those of 5.24 (parameters of the one that the other
does not write).
"""

from collections.abc import Iterator

OLDEST = "4.57"  # the oldest transformers that opens what is written here, as was tried when this was written

# what an entry of `rope_parameters` is called outside of it, by model_type
ROPE_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert-decoder": {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
}
# kinds of layers in the words of transformers 5, by model_type, where the older class takes no others
KINDS = {
    "granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"},
    "zamba2": {"linear_attention": "mamba"},
}


def find_transformers4_entries(config: dict, part: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """For each part of a configuration that lacks any: where it is, and the entries that transformers 4 reads."""
    words = _rope(config) if isinstance(config.get("rope_parameters"), dict) else {}
    if not part and isinstance(config.get("dtype"), str):
        words["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config:
        words["num_experts"] = config["num_local_experts"]
    if words := {name: value for name, value in words.items() if name not in config}:
        yield part, words
    for key, value in config.items():
        if isinstance(value, dict) and key != "quantization_config":
            yield from find_transformers4_entries(value, (*part, key))


def _rope(config: dict) -> dict:
    """Entries for rotary tables. Where each kind of layer has its own, those of full attention are the plain ones."""
    rope, words = config["rope_parameters"], {}
    near, far = rope.get("sliding_attention"), rope.get("full_attention", rope)
    if not isinstance(far, dict):
        return {}
    if "rope_theta" in far:
        words["rope_theta"] = far["rope_theta"]
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
    return {
        key: [kinds.get(kind, kind) for kind in value]
        if key in ("layer_types", "layers_block_type") and isinstance(value, list)
        else _plain(value)
        for key, value in config.items()
    }


def _plain(value):
    """Infinity is an object of its own in transformers 5."""
    if isinstance(value, dict):
        return float(value["__float__"]) if value.keys() == {"__float__"} else write_plainly(value)
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def convert_tokenizer_config(config: dict) -> dict:
    """tokenizer_config.json of transformers 5 as older versions read it, which newer ones read too."""
    words = dict(config)
    if words.get("tokenizer_class") == "TokenizersBackend":  # a name that older versions don't know
        words["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(words.get("extra_special_tokens"), list):  # older versions expect names for these
        words["additional_special_tokens"] = words.pop("extra_special_tokens")
    return words
