"""A model without the layers of a cut, in memory.

Source: Gromov et al., arXiv 2403.17887, section 3.2, step 3.
"""

import copy
import functools
import types

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from deeper_layers.cuts import ATTENTION, MLP, Cut, check_cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.decoder import (
    decoder_layers,
    layers_path,
    num_layers,
    output_parameters,
    renumber_configs,
)

UNSTATED = "no configuration states a layer without one of its sublayers"


def drop_layers(model: nn.Module, cut: Cut) -> PreTrainedModel:
    """A model without the layers of a cut: the old input of layer `start` now feeds layer `stop`.

    Source: paper, section 3.2, step 3. The new model has its own modules and its own configuration, with
    layers renumbered from 0 and every per-layer entry of the configuration cut in the same way. It shares
    parameters and buffers with the original and so costs no memory: training, moving or casting one changes
    the other (`copy.deepcopy` makes it independent). The original stays as it was.

    Two empty models, built from the old and the new configuration, show all that depends on a layer's
    position. The position itself (`layer_idx`, wherever it is stored) is renumbered. Any other difference in a
    kept layer means that a reloaded model would compute something else, and is an error.

    Args:
        model: a decoder-only transformers model with L layers.
        cut: the layers to drop.

    Returns:
        A model of the same class with L - cut.size layers.

    Raises:
        InputError: the model is not a decoder-only transformers model, the cut does not fit it, or its
            configuration cannot describe the kept layers.

    Example:
        >>> from deeper_layers import drop_layers, load_model, simple_cut
        >>> model, tokenizer = load_model("embedded")
        >>> pruned = drop_layers(model, simple_cut(num_layers=30, size=4))
        >>> pruned.config.num_hidden_layers, model.config.num_hidden_layers
        (26, 30)
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"the model is a {type(model).__name__}; expected a transformers PreTrainedModel; unwrap it "
            "first (adapters: model.merge_and_unload())"
        )
    check_cut(cut)
    kept = cut.kept(num_layers(model))
    words = cut.describe(num_layers(model))
    cut.check_of_layers(
        num_layers(model), f"{UNSTATED}; zero_sublayers gives the same numbers and saves no memory"
    )
    path = layers_path(model)
    pruned = _copy_sharing_tensors(model)
    renumber_configs(pruned, kept)
    before = _build_empty_model(model, words)
    after = _build_empty_model(pruned, words)
    for network in (before, pruned):
        for index in reversed(cut.dropped):
            del network.get_submodule(path)[index]  # ty: ignore[not-subscriptable]
    unstated = _adopt_differences(pruned, before, after, path, kept)
    if unstated:
        raise InputError(
            f"a cut that {words} changes {unstated} of {type(pruned).__name__}, which depends on the depth in a "
            "way that its configuration cannot describe; expected layers that reload unchanged; choose another cut or "
            "model"
        )
    return pruned


def zero_sublayers(model: nn.Module, cut: Cut) -> PreTrainedModel:
    """A model without the dropped layers of a cut, in which each dropped attention or MLP adds nothing.

    The matrices with which it writes into the residual are zero, so that any tool loads the result and gives the same
    numbers. Dropped sublayers still run: no memory and no time is saved. Only the zeros are not shared with the model.

    Raises InputError as `drop_layers`, and where a sublayer or the matrix that ends it is not found.

    Example:
        >>> from deeper_layers import Cut, load_model, zero_sublayers
        >>> model, tokenizer = load_model("embedded")
        >>> silent = zero_sublayers(model, Cut.of(layers=[20], attention=[21, 24]))
        >>> silent.config.num_hidden_layers
        29
    """
    check_cut(cut)
    silent = drop_layers(model, Cut.of(cut.dropped))
    kept = cut.kept(num_layers(model))
    for part, indices in ((ATTENTION, cut.attention), (MLP, cut.mlp)):
        for index in indices:
            for name, module in output_parameters(decoder_layers(silent)[kept.index(index)], part):
                setattr(
                    module,
                    name,
                    nn.Parameter(torch.zeros_like(getattr(module, name)), requires_grad=False),
                )
    return silent


silence_sublayers = zero_sublayers  # its earlier name


def _copy_sharing_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the modules and configurations of a model, and share parameters, buffers and everything else."""
    memo = {}
    copies = {}
    for module in model.modules():
        entries = []
        for value in vars(module).values():
            if isinstance(value, dict):  # of tensors, hooks
                entries += value.values()
            # not shared: a forward that accelerate replaced is bound to its module
            elif not isinstance(value, types.MethodType | functools.partial):
                entries.append(value)
        for value in entries:
            if isinstance(value, PreTrainedConfig | GenerationConfig):
                # one memo for all, as modules hold the same configuration or parts of it
                copy.deepcopy(value, copies)
            elif not isinstance(value, nn.Module):
                memo[id(value)] = value
    return copy.deepcopy(model, memo | copies)


def _build_empty_model(model: PreTrainedModel, description: str) -> PreTrainedModel:
    """The model that saving and reloading would build, without weights."""
    problem = f"a cut that {description} does not fit the configuration of {type(model).__name__}"
    with as_input_error(problem, "choose another cut or model"), torch.device("meta"):
        return type(model)(type(model.config).from_dict(model.config.to_dict()))


def _list_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _adopt_differences(
    pruned: PreTrainedModel,
    before: PreTrainedModel,
    after: PreTrainedModel,
    path: str,
    kept: list[int],
) -> str | None:
    """Set in `pruned` every plain attribute in which two empty models of equal depth differ; layers are at `path`.

    `before` is built from the old configuration and cut, `after` is built from the new one. Outside of the layers such
    an attribute follows from the configuration (does any layer have a sliding window?). Inside a layer it may only be
    the layer's position. Returns the name of the first other difference, or None.
    """
    unequal = _list_shapes(before).items() ^ _list_shapes(after).items()
    if unequal:
        return min(name for name, _ in unequal)
    old_modules = dict(before.named_modules())
    for name, new in after.named_modules():
        old = old_modules.get(name)
        if type(old) is not type(new):
            return name
        layer = None
        if name.startswith(f"{path}."):
            layer = name.removeprefix(f"{path}.").split(".")[0]
        for attribute, value in vars(new).items():
            old_value = vars(old).get(attribute)
            if not isinstance(value, int | float | str | None) or old_value == value:
                continue
            if layer and (
                type(value) is not int or (old_value, value) != (kept[int(layer)], int(layer))
            ):
                return f"{name}.{attribute}"
            setattr(pruned.get_submodule(name), attribute, value)
    return None
