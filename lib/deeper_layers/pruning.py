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
from deeper_layers.models.decoder import decoder_layers, layers_path, num_layers, output_parameters, renumber_configs

UNSTATED = "no configuration states a layer without one of its sublayers"


def drop_layers(model: nn.Module, cut: Cut) -> PreTrainedModel:
    """A model without the layers of a cut: the old input of layer `start` now feeds layer `stop`.

    Source: paper, section 3.2, step 3. The new model has its own modules and its own configuration, with
    layers renumbered from 0 and every per-layer entry of the configuration cut alike. It shares the
    parameters and buffers of the original, so that it costs no memory: training, moving or casting one
    changes the other (`copy.deepcopy` makes it independent). The original stays as it was.

    Two empty models, built from the old and the new configuration, show everything that depends on a layer's
    position. A position itself (`layer_idx`, wherever it is stored) is renumbered; any other difference in a
    kept layer means that a reloaded model would compute something else than the kept layers did.

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
    kept, words = cut.kept(num_layers(model)), cut.describe(num_layers(model))
    cut.check_of_layers(num_layers(model), f"{UNSTATED}; silence_sublayers gives the same numbers and saves no memory")
    path = layers_path(model)
    pruned = _copy_sharing_tensors(model)
    renumber_configs(pruned, kept)
    before, after = _build_empty_model(model, words), _build_empty_model(pruned, words)
    for network in (before, pruned):
        for index in reversed(cut.dropped):
            del network.get_submodule(path)[index]  # ty: ignore[not-subscriptable]
    if unstated := _adopt_differences(pruned, before, after, path, kept):
        raise InputError(
            f"a cut that {words} changes {unstated} of {type(pruned).__name__}, which depends on the depth in a "
            "way that its configuration cannot describe; expected layers that reload unchanged; choose another cut or "
            "model"
        )
    return pruned


def silence_sublayers(model: nn.Module, cut: Cut) -> PreTrainedModel:
    """A model without the layers of a cut, in which the attention or MLP that it drops of others adds nothing.

    The matrices that write into the residual are zero there: any tool loads the result and gives the same numbers. It
    saves no memory and no time: what is dropped still runs. Only what is zero is its own.

    Raises InputError as `drop_layers`, and where a sublayer or the matrix that ends it is not found.

    Example:
        >>> from deeper_layers import Cut, load_model, silence_sublayers
        >>> model, tokenizer = load_model("embedded")
        >>> silent = silence_sublayers(model, Cut.of(layers=[20], attention=[21, 24]))
        >>> silent.config.num_hidden_layers
        29
    """
    check_cut(cut)
    silent, kept = drop_layers(model, Cut.of(cut.dropped)), cut.kept(num_layers(model))
    for part, indices in ((ATTENTION, cut.attention), (MLP, cut.mlp)):
        for index in indices:
            for name, module in output_parameters(decoder_layers(silent)[kept.index(index)], part):
                setattr(module, name, nn.Parameter(torch.zeros_like(getattr(module, name)), requires_grad=False))
    return silent


def _copy_sharing_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """The same tree of new modules and configurations, over the same parameters, buffers and all else."""
    memo, copies = {}, {}
    for module in model.modules():
        values = vars(module).values()
        entries = [entry for table in values if isinstance(table, dict) for entry in table.values()]  # tensors, hooks
        # a forward that was replaced on the module, as accelerate does, is bound to it
        shared = [value for value in values if not isinstance(value, dict | types.MethodType | functools.partial)]
        for value in [*entries, *shared]:
            if isinstance(value, PreTrainedConfig | GenerationConfig):
                # one memo for all, as the modules of a model hold the same object or parts of it
                copy.deepcopy(value, copies)
            elif not isinstance(value, nn.Module):
                memo[id(value)] = value
    return copy.deepcopy(model, memo | copies)


def _build_empty_model(model: PreTrainedModel, description: str) -> PreTrainedModel:
    """What saving and reloading the model would build, without weights."""
    problem = f"a cut that {description} does not fit the configuration of {type(model).__name__}"
    with as_input_error(problem, "choose another cut or model"), torch.device("meta"):
        return type(model)(type(model.config).from_dict(model.config.to_dict()))


def _adopt_differences(
    pruned: PreTrainedModel, before: PreTrainedModel, after: PreTrainedModel, path: str, kept: list[int]
) -> str | None:
    """Set in `pruned` every plain attribute in which two empty models of equal depth, layers at `path`, differ.

    `before` is built from the old configuration and cut, `after` is built from the new one. Outside of the layers such
    an attribute follows from the configuration (whether any layer has a sliding window); inside it may only be the
    layer's position. Returns the name of what is neither; None where nothing is.
    """
    shapes = [{name: tensor.shape for name, tensor in empty.state_dict().items()} for empty in (before, after)]
    if unequal := shapes[0].items() ^ shapes[1].items():
        return min(name for name, _ in unequal)
    old_modules = dict(before.named_modules())
    for name, new in after.named_modules():
        old = old_modules.get(name)
        if type(old) is not type(new):
            return name
        layer = name.removeprefix(f"{path}.").split(".")[0] if name.startswith(f"{path}.") else None
        for attribute, value in vars(new).items():
            old_value = vars(old).get(attribute)
            if not isinstance(value, int | float | str | None) or old_value == value:
                continue
            if layer and (type(value) is not int or (old_value, value) != (kept[int(layer)], int(layer))):
                return f"{name}.{attribute}"
            setattr(pruned.get_submodule(name), attribute, value)
    return None
