"""Find a model's layers and their two sublayers by its structure, and adapt its configuration to a cut.

A dropped sublayer adds nothing to the residual: it returns zeros in the form of its own output.
"""

import contextlib
import inspect
import re
from collections.abc import Callable, Collection

import torch
from torch import nn
from transformers import GPTNeoConfig, PreTrainedConfig, PreTrainedModel

from deeper_layers.cuts import ATTENTION, MLP, WHOLE
from deeper_layers.errors import InputError
from deeper_layers.models.configuration import count_layers, text_config

# what model families call their sublayers
SUBLAYER_NAMES = {
    ATTENTION: ("self_attn", "attention", "attn", "self_attention"),
    MLP: ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"),
}
# the matrix that ends a sublayer and writes into the residual
OUTPUT_MATRICES = tuple(
    "o_proj out_proj c_proj dense dense_4h_to_h down_proj fc_out fc2 w2 linear_v wo".split()
)
# configuration entries that are a boundary between layers: all layers below it are of one kind
BOUNDARIES = (
    "max_window_layers",
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layer_start_index",
)


def num_layers(model: nn.Module) -> int:
    """Number of decoder layers L, as the model's configuration states it. Raises InputError where it states none."""
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not isinstance(config, PreTrainedConfig):
        raise InputError(
            f"the model is a {type(model).__name__}, expected one of transformers: open it with load_model"
        )
    return count_layers(config)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of the L decoder layers of a model, in the order of the forward pass.

    It is the one `nn.ModuleList` with as many entries as the configuration states, entries of related classes, and
    attention inside, which is not required where no list of the model has attention. Where two lists fit (a vision
    tower of the same depth), it is the one whose owner carries the text configuration.

    Args:
        model: a decoder-only transformers model.

    Raises:
        InputError: no list fits the configuration, or more than one does.

    Example:
        >>> from deeper_layers import decoder_layers, load_model
        >>> model, tokenizer = load_model("embedded")
        >>> len(decoder_layers(model))
        30
    """
    length = num_layers(model)
    lists = []
    for owner in model.modules():
        lists += [
            (owner, child)
            for child in owner.children()
            if isinstance(child, nn.ModuleList) and len(child)
        ]

    def attends(layers: nn.ModuleList) -> bool:
        return any(
            "attention" in f"{name} {type(module).__name__}".lower()
            for name, module in layers.named_modules()
        )

    def related(layers: nn.ModuleList) -> bool:
        classes = [set(type(layer).__mro__) for layer in layers]
        return bool(set.intersection(*classes) - set(nn.Module.__mro__))

    # state-space models have no attention, and a cut may leave a hybrid without it
    lists = [(owner, layers) for owner, layers in lists if attends(layers)] or lists
    candidates = [
        (owner, layers) for owner, layers in lists if len(layers) == length and related(layers)
    ]
    if len(candidates) > 1:
        kind = type(text_config(model.config))  # ty: ignore[invalid-argument-type]
        candidates = [
            entry for entry in candidates if type(getattr(entry[0], "config", None)) is kind
        ]
    if len(candidates) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(candidates)} lists that can be its {length} decoder layers, expected "
            "one: open the model with load_model, or choose a decoder-only language model"
        )
    return candidates[0][1]


def layers_path(model: nn.Module) -> str:
    """The name of the list of decoder layers in a model, as in "model.layers"."""
    layers = decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)


def first_layer_of_each_kind(model: nn.Module) -> list[int]:
    """Indices of the first layer of each kind: layers with the same modules and the same type in the configuration."""
    layers = decoder_layers(model)
    names = getattr(text_config(model.config), "layer_types", None) or [""] * len(layers)  # ty: ignore[invalid-argument-type]
    kinds = [(name, *map(type, layer.modules())) for name, layer in zip(names, layers, strict=True)]
    return [kinds.index(kind) for kind in dict.fromkeys(kinds)]


# ---- attention and MLP -------------------------------------------------------------------------------------------


def find_sublayer(layer: nn.Module, part: str) -> nn.Module:
    """The attention or the MLP of a layer. Raises InputError where it is not found."""
    modules = [child for name, child in layer.named_children() if name in SUBLAYER_NAMES[part]]
    if len(modules) != 1:
        names = ", ".join(SUBLAYER_NAMES[part])
        raise InputError(
            f"{type(layer).__name__} has no {part} of a known name ({names}): drop whole layers"
        )
    return modules[0]


def output_parameters(layer: nn.Module, part: str) -> list[tuple[str, nn.Module]]:
    """The parameters (name and owning module) that make a sublayer add nothing when they are zero."""
    find_sublayer(layer, part)
    split_names = [
        name.rpartition(".")
        for name, _ in layer.named_parameters()
        if is_output_parameter(name, part)
    ]
    if not split_names:
        raise InputError(
            f"the {part} of {type(layer).__name__} ends with no matrix of a known name: drop whole layers"
        )
    return [(name, layer.get_submodule(path)) for path, _, name in split_names]


def is_output_parameter(name: str, part: str) -> bool:
    """Whether a tensor, by its name in the layer like "mlp.down_proj.weight", is an output parameter of `part`."""
    first, *rest = name.split(".")
    # the module's name; where the matrices of experts are stored together, the parameter's own name
    last_words = [*rest[-2:-1], *(word.removesuffix("_bias") for word in rest[-1:])]
    return first in SUBLAYER_NAMES[part] and any(word in OUTPUT_MATRICES for word in last_words)


def running_only(layer: nn.Module, part: str) -> contextlib.AbstractContextManager:
    """Inside, a layer runs only this part of it: its attention, its MLP, or all of it."""
    if part == WHOLE:
        return contextlib.nullcontext()
    other = MLP if part == ATTENTION else ATTENTION
    return find_sublayer(layer, other).register_forward_hook(_add_nothing, with_kwargs=True)


def is_parallel(layer: nn.Module, call: Callable, residual: torch.Tensor) -> bool:
    """Whether a layer's MLP takes the same input with and without attention; `call(forward, residual)` runs a layer."""
    inputs: list[torch.Tensor] = []

    def record_input(module, arguments, named):
        inputs.append([*arguments, *named.values()][0])

    with find_sublayer(layer, MLP).register_forward_pre_hook(record_input, with_kwargs=True):
        call(layer.forward, residual)
        with running_only(layer, MLP):
            call(layer.forward, residual)
    return torch.equal(*inputs)


def _add_nothing(module, arguments, named, output):
    """Replace a sublayer's output by zeros, or by the residual where the sublayer itself adds its output to that."""
    bound = inspect.signature(module.forward).bind(*arguments, **named).arguments
    if isinstance(output, tuple):
        residual, *others = output
    else:
        residual = output
    zeros = bound["residual"] if "residual" in bound else torch.zeros_like(residual)
    return (zeros, *others) if isinstance(output, tuple) else zeros


# ---- what a configuration says of each layer, once only some of them stay ----------------------------------------


def renumber_configs(pruned: PreTrainedModel, kept: list[int]) -> None:
    """Adapt every decoder configuration that a module holds to the kept layers, in place."""
    length = num_layers(pruned)
    config_class = type(text_config(pruned.config))
    # usually one object that all modules hold, but a module may hold a copy of its own
    configs = [vars(module).get("config") for module in pruned.modules()]
    decoders = [
        config.get_text_config(decoder=True)
        for config in configs
        if isinstance(config, PreTrainedConfig)
    ]
    for config in {id(text): text for text in decoders if type(text) is config_class}.values():
        # settings of single layers, which transformers keeps apart from the other entries
        overrides = config.to_dict().get("per_layer_config")
        for name, value in list(vars(config).items()):
            new_value = cut_entry(name, value, kept, length)
            if new_value != value:
                setattr(config, name, new_value)
        config.num_hidden_layers = len(kept)
        if overrides:
            config.per_layer_config = cut_entry("per_layer_config", overrides, kept, length)


def cut_entry(name: str, value, kept: list[int], layers: int):
    """The new value of a configuration entry when only the layers with the indices `kept` stay, of `layers` layers. An
    entry may hold a value for each layer, a boundary between layers, indices of layers, or values by index."""
    # special tokens and class names can be as many by chance, and "mtp" entries describe other layers
    if name.endswith("token_id") or name == "architectures" or name.startswith("mtp"):
        return value
    # GPT-Neo: kinds, and how often they repeat
    if name == "attention_types" and isinstance(value, list):
        kinds = GPTNeoConfig.expand_attention_types_params(value)
        return [[[kinds[index] for index in kept], 1]] if len(kinds) == layers else value
    if name in BOUNDARIES and type(value) is int:
        return sum(index < value for index in kept)
    new_index = {old: position for position, old in enumerate(kept)}
    picked = value
    if isinstance(value, str | list | tuple) and len(value) == layers:
        picked = [value[index] for index in kept]
    if isinstance(value, str):  # Nemotron-H: a letter for each layer
        return "".join(picked) if name.endswith("_pattern") else value
    if not isinstance(value, dict | list | tuple) or not _are_indices(value, name, layers):
        return type(value)(picked) if isinstance(value, list | tuple) else value
    if isinstance(value, dict):
        return {
            type(key)(new_index[int(key)]): entry
            for key, entry in value.items()
            if int(key) in new_index
        }
    return type(value)(new_index[index] for index in value if index in new_index)


def _are_indices(values: Collection, name: str, layers: int) -> bool:
    """Whether an entry holds indices of layers: its name says so, and its values rise and stay below `layers`."""
    if not ("layer" in name or "idx" in name) or not all(
        re.fullmatch(r"\d+", str(value)) for value in values
    ):
        return False
    numbers = [int(value) for value in values]
    # for two layers [0, 1] is a flag for each, and not two indices
    flags = layers == 2 and numbers == [0, 1]
    return (
        not flags and numbers == sorted(set(numbers)) and all(number < layers for number in numbers)
    )
