"""What a configuration says of each layer, once only some of the layers stay."""

import re

from transformers import GPTNeoConfig, PreTrainedConfig, PreTrainedModel

from deeper_layers.models.configuration import text_config
from deeper_layers.models.decoder import num_layers

# configuration entries that are a boundary between layers: all layers below it are of one kind
BOUNDARIES = ("max_window_layers", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")


def renumber_configs(pruned: PreTrainedModel, kept: list[int]) -> None:
    """Adapt every configuration of the decoder that the modules hold to the kept layers, in place."""
    length, config_class = num_layers(pruned), type(text_config(pruned.config))
    # usually one object that all modules hold, but a module may hold a copy of its own
    held = [vars(module).get("config") for module in pruned.modules()]
    texts = [config.get_text_config(decoder=True) for config in held if isinstance(config, PreTrainedConfig)]
    for config in {id(text): text for text in texts if type(text) is config_class}.values():
        # of layers that are unlike the rest; transformers keeps these apart from the other entries
        overrides = config.to_dict().get("per_layer_config")
        for name, value in list(vars(config).items()):
            if (changed := cut_entry(name, value, kept, length)) != value:
                setattr(config, name, changed)
        config.num_hidden_layers = len(kept)
        if overrides:
            config.per_layer_config = cut_entry("per_layer_config", overrides, kept, length)


def cut_entry(name: str, value, kept: list[int], layers: int):
    """What becomes of an entry of a configuration when of `layers` layers only those of the indices `kept` stay.

    It can hold a value for each layer, a boundary between layers, indices of some, or a value for each of some indices.
    """
    # lists of special tokens or class names can have any length, and those of other layers are not of these
    if name.endswith("token_id") or name == "architectures" or name.startswith("mtp"):
        return value
    if name == "attention_types" and isinstance(value, list):  # of GPT-Neo: kinds, and how often these are repeated
        kinds = GPTNeoConfig.expand_attention_types_params(value)
        return [[[kinds[index] for index in kept], 1]] if len(kinds) == layers else value
    if name in BOUNDARIES and type(value) is int:
        return sum(index < value for index in kept)
    new = {old: position for position, old in enumerate(kept)}
    if isinstance(value, dict) and value and _are_indices([str(key) for key in value], name, layers):
        return {type(key)(new[int(key)]): entry for key, entry in value.items() if int(key) in new}
    if isinstance(value, list | tuple):
        if _are_indices(value, name, layers):
            return type(value)(new[index] for index in value if index in new)
        return type(value)(value[index] for index in kept) if len(value) == layers else value
    if isinstance(value, str) and name.endswith("_pattern") and len(value) == layers:  # of Nemotron-H: a letter each
        return "".join(value[index] for index in kept)
    return value


def _are_indices(values: list | tuple, name: str, layers: int) -> bool:
    """Whether these are indices of layers: by the entry's name, and rising from 0 to layers - 1 at most."""
    if not ("layer" in name or "idx" in name) or not all(re.fullmatch(r"\d+", str(value)) for value in values):
        return False
    numbers = [int(value) for value in values]
    # of two layers, [0, 1] says yes or no of each
    flags = layers == 2 and numbers == [0, 1]
    return not flags and numbers == sorted(set(numbers)) and all(number < layers for number in numbers)
