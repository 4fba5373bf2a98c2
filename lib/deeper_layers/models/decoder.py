"""Find the decoder layers of a model by its structure, whatever its family calls them."""

from torch import nn
from transformers import PreTrainedConfig

from deeper_layers.errors import InputError
from deeper_layers.models.configuration import layers_of, text_config


def num_layers(model: nn.Module) -> int:
    """Number of decoder layers L, as the model's configuration states it. Raises InputError where it states none."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise InputError(
            f"the model is a {type(model).__name__} without a configuration; expected a transformers "
            "model; open it with load_model or AutoModelForCausalLM.from_pretrained"
        )
    return layers_of(config)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of the L decoder layers of a model, in the order of the forward pass.

    They are the one `nn.ModuleList` that has as many entries as the configuration states layers, entries of related
    classes, and attention inside, unless no list of the model has attention. Where a model has two such lists (a vision
    tower of the same depth), the one whose owner carries the text configuration.

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
    lists = [
        (owner, layers)
        for owner in model.modules()
        for layers in owner.children()
        if isinstance(layers, nn.ModuleList) and len(layers) > 0
    ]
    # state-space models have none, nor have the few layers that a cut may leave of a hybrid
    lists = [entry for entry in lists if _has_attention(entry[1])] or lists
    found = [(owner, layers) for owner, layers in lists if len(layers) == length and _related(layers)]
    if len(found) > 1:
        kind = type(text_config(model.config))  # ty: ignore[invalid-argument-type]
        found = [entry for entry in found if type(getattr(entry[0], "config", None)) is kind]
    if len(found) == 1:
        return found[0][1]
    lengths = ", ".join(f"{len(layers)} in {type(owner).__name__}" for owner, layers in lists) or "none"
    raise InputError(
        f"{type(model).__name__} holds {len(found)} lists that can be its decoder layers (lists: {lengths}); expected "
        f"exactly one of num_hidden_layers = {length} related layers; open the model unchanged with load_model, or "
        "choose a decoder-only language model"
    )


def kinds_of_layers(model: nn.Module) -> list[int]:
    """The first layer of each kind: made of the same modules, and called the same by the configuration."""
    layers = decoder_layers(model)
    names = getattr(text_config(model.config), "layer_types", None) or [""] * len(layers)  # ty: ignore[invalid-argument-type]
    made_of = [(name, *map(type, layer.modules())) for name, layer in zip(names, layers, strict=True)]
    return [made_of.index(kind) for kind in dict.fromkeys(made_of)]


def _has_attention(layers: nn.ModuleList) -> bool:
    """Whether any layer holds a module that its name or class calls attention (in a hybrid not all do)."""
    return any("attention" in f"{name} {type(module).__name__}".lower() for name, module in layers.named_modules())


def _related(layers: nn.ModuleList) -> bool:
    """Whether all layers descend from one class more special than `nn.Module`."""
    return bool(set.intersection(*(set(type(layer).__mro__) for layer in layers)) - set(nn.Module.__mro__))
