"""How rules change the layers that they keep: a bridge over a cut, or merged layers.

Bridges make up for the dropped layers l..l+n-1. ReplaceMe (Shopkhoev et al., arXiv 2505.02819) changes layer l-1 by a
linear map A. The residual that leaves this layer is y + m, where m is what its MLP adds; A brings y + m A nearest to
the residual that entered layer l+n, by least squares, a closed form. The MLP ends in a matrix, and A is folded into it
exactly, where nothing stands between that matrix and the residual. LLM-Streamline (Chen et al., arXiv 2403.19135)
trains all weights of the layer below, by the mean squared error to the same target. Prune&Comp (Chen et al.,
arXiv 2507.18212) scales by one number: how much larger magnitudes are above the cut than below it.

Merges (LaCo, Yang et al., arXiv 2402.11187), as in the authors' notebooks: they add to the matrices of the first layer
what each next one differs from the sum so far, so that those of the last layer remain. Gains of norms and biases stay
those of the first layer. The paper's equation 1 takes differences from the first layer instead.

Letters in shapes: T tokens, D width.
"""

import copy
import functools
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers, output_parameters
from deeper_layers.models.measuring import measuring, to_double
from deeper_layers.models.network import Call, Network
from deeper_layers.pruning import drop_layers
from deeper_layers.similarity import iterate_residuals, show_progress
from deeper_layers_companion.rules.choosing import Likeness, MergedLayer, cut_of_merges
from deeper_layers_companion.rules.table import Rule

# of the test that the residual receives the MLP's output unchanged, on TRIAL tokens
TOLERANCE = 1e-6
TRIAL = 8
# training over all sequences, one a step
TRAINING_EPOCHS = 4
TRAINING_RATE = 1e-4


def change_model(
    model, rule: Rule, cut: Cut, merged: list[MergedLayer], sequences: list[torch.Tensor]
):
    """The pruned model of a rule that changes weights: with `merged` layers, or with a bridge over the cut, fitted on
    sequences of tokens, each [T]. The model given stays unchanged. See `merge_layers` and `bridge_cut`."""
    if rule.changes == "last taken":
        return merge_layers(model, merged)
    return bridge_cut(model, cut, sequences, rule.changes) if cut.size else model


def find_changed_tensors(model, changed, cut: Cut) -> dict[str, torch.Tensor]:
    """The parameters of a `change_model` that a rule replaced, by "NUMBER.NAME": the layer's number in the pruned
    model, and the parameter's name in that layer."""
    old_layers = decoder_layers(model)
    new_layers = decoder_layers(changed)
    tensors = {}
    for number, old_number in enumerate(cut.kept(len(old_layers))):
        for name, parameter in new_layers[number].named_parameters():
            old_parameter = old_layers[old_number].get_parameter(name)
            if parameter.data_ptr() != old_parameter.data_ptr():
                tensors[f"{number}.{name}"] = parameter.detach()
    return tensors


def _set_parameter(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace a parameter by a new one of the same data type. The old one is shared with the other model."""
    setattr(module, name, nn.Parameter(tensor.to(getattr(module, name)), requires_grad=False))


def _check_unquantized(model) -> None:
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise InputError(
            "quantized weights can't be merged, bridged or trained: open the model without that"
        )


# ---- bridges -----------------------------------------------------------------------------------------------------


@measuring
def bridge_cut(model, cut: Cut, sequences: list[torch.Tensor], method: str = "least squares"):
    """A model without the layers of a cut, with a bridge that is fitted on sequences of tokens, each [T].

    Raises InputError where the cut is no block that starts at layer 1 or above, weights are quantized, there are fewer
    tokens than the residual is wide, or no linear map can be folded into the MLP: it ends in no single matrix, or its
    output is normalized or scaled afterwards.
    """
    if not (cut.is_block and cut.start):
        description = cut.describe(num_layers(model))
        raise InputError(
            f"a cut that {description} has no layer below it to bridge it: drop a block from layer 1 on"
        )
    _check_unquantized(model)
    pruned = drop_layers(model, cut)
    below = cut.start - 1
    if method == "trained":
        states = _record_residuals(model, sequences, below, cut.stop)
        decoder_layers(pruned)[below] = _train_layer(model, below, states, sequences)
        return pruned
    writer = _find_mlp_output(model, below)
    if method == "scaled":
        return _scale_layers_above(
            pruned, cut.start, _record_residuals(model, sequences, cut.start, cut.stop)
        )
    count = sum(map(len, sequences))
    width = writer.out_features
    if count < width:
        raise InputError(
            f"there are {count} tokens to fit a map of {width} by {width} on: give more sequences (samples)"
        )
    outputs: list[torch.Tensor] = []
    with writer.register_forward_hook(lambda _, __, output: outputs.append(to_double(output[0]))):
        leaving, target = torch.cat(_record_residuals(model, sequences, cut.start, cut.stop), dim=1)
    added = torch.cat(outputs)
    bridge = torch.linalg.lstsq(added, target - (leaving - added)).solution
    (_, module), *_ = output_parameters(decoder_layers(pruned)[below], MLP)
    _set_parameter(module, "weight", bridge.mT @ to_double(writer.weight))
    if writer.bias is not None:
        _set_parameter(module, "bias", to_double(writer.bias) @ bridge)
    return pruned


def _record_residuals(model, sequences: list[torch.Tensor], *states: int) -> list[torch.Tensor]:
    """The residuals that enter two layers of the whole model, for each sequence [T]: [2, T, D], float64."""
    passes = iterate_residuals(model, show_progress(sequences, "bridge, residuals"))
    return [residuals[list(states)] for residuals in passes]


def _find_mlp_output(model, layer: int) -> nn.Linear:
    """The last matrix of a layer's MLP. Raises InputError where the residual does not receive its output unchanged."""
    error = InputError(
        f"the MLP of layer {layer} of {type(model).__name__} ends in no single matrix, or what it adds is normalized "
        "or scaled on its way into the residual, so that no linear map can be folded in exactly: choose another rule"
    )
    module, *others = {module for _, module in output_parameters(decoder_layers(model)[layer], MLP)}
    if others or type(module) is not nn.Linear:
        raise error
    # tried in double precision on random residuals, so that rounding can't hide a difference
    generator = torch.Generator().manual_seed(0)
    width = module.out_features
    place = to_double(module.weight[:0]).device  # where there are such numbers
    residual = torch.randn(1, TRIAL, width, generator=generator, dtype=torch.float64).to(place)
    shift = torch.linspace(-1, 1, width).to(residual)
    copied = copy.deepcopy(decoder_layers(model)[layer]).to(place).double()
    call = _get_call(model, torch.arange(TRIAL), layer, place, torch.float64)
    with torch.inference_mode():
        untouched = call(copied, residual)
        output_parameters(copied, MLP)[0][1].register_forward_hook(
            lambda _, __, output: output + shift
        )
        moved = call(copied, residual) - untouched
    if (moved - shift).abs().max() > TOLERANCE:
        raise error
    return module


def _scale_layers_above(pruned, start: int, states: list[torch.Tensor]):
    """Divide what the layers above a cut add by the growth of magnitudes over it.

    These layers and the last norm only see the residual's direction, so this equals the authors' way: they multiply
    what comes before the cut, the embeddings too, which a head may share. As in their code, magnitudes are means over
    tokens, and the growth is the mean of their ratios over sequences and channels.
    """
    below, above = torch.stack([residuals.abs().mean(dim=1) for residuals in states], dim=1)
    ratio = float((above / below).mean())
    for layer in decoder_layers(pruned)[start:]:
        for name, module in [*output_parameters(layer, ATTENTION), *output_parameters(layer, MLP)]:
            _set_parameter(module, name, to_double(getattr(module, name)) / ratio)
    return pruned


def _train_layer(
    model, below: int, states: list[torch.Tensor], sequences: list[torch.Tensor]
) -> nn.Module:
    """A copy of the layer below a cut, trained to output the residual that enters the layer above the cut."""
    layer = copy.deepcopy(decoder_layers(model)[below])
    weight = next(layer.parameters())
    dtype = weight.dtype
    pairs = [residuals.float().cpu() for residuals in states]
    layer.float().requires_grad_(True)

    def loss(number: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            entering, target = pairs[number].clone().to(weight.device)
            call = _get_call(model, sequences[number], below, weight.device, torch.float32)
        return nn.functional.mse_loss(call(layer, entering[None])[0], target)

    _minimize(loss, layer.parameters(), len(sequences))
    return layer.to(dtype).requires_grad_(False)


def _minimize(loss: Callable, parameters: Iterable, items: int) -> None:
    """Minimize a loss over all items by Adam, one of them a step, each epoch in an order that a fixed seed draws."""
    optimizer = torch.optim.Adam(parameters, lr=TRAINING_RATE)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(TRAINING_EPOCHS):
        batches += torch.randperm(items, generator=generator).split(1)
    with torch.enable_grad():
        for batch in show_progress(batches, "bridge", "step"):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()


def _get_call(
    model, sequence: torch.Tensor, layer: int, place: torch.device, dtype: torch.dtype
) -> Call:
    """The arguments of a layer besides the residual for tokens [T], in one place, with real numbers in a data type."""
    network = Network(model)
    call = network.layer_inputs(sequence[None].to(network.device)).calls[layer]

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        moved = tensor.to(place)
        return moved.to(dtype) if moved.is_floating_point() else moved

    return Call(*tree_map_only(torch.Tensor, cast, (call.arguments, call.named)))


# ---- merges ------------------------------------------------------------------------------------------------------


def merge_layers(model, layers: list[MergedLayer]):
    """A model of some of its layers, and of layers that were merged into the first of them.

    Args:
        layers: in rising order, like [0, (1, 2, 3), 4]; parts of a merged layer may be merged layers.

    Raises InputError where layers to be merged have matrices of other names or shapes, or are quantized.
    """
    _check_unquantized(model)
    pruned = drop_layers(model, cut_of_merges(layers, num_layers(model)))
    for layer, merged in zip(decoder_layers(pruned), layers, strict=True):
        if not isinstance(merged, int):
            for path, matrix in _merge_matrices(model, merged).items():
                owner, _, name = path.rpartition(".")
                _set_parameter(layer.get_submodule(owner), name, matrix)
    return pruned


def _merge_matrices(model, layer: MergedLayer) -> dict[str, torch.Tensor]:
    """The matrices of a layer, by name; of a merged one those of the last layer in it."""
    if isinstance(layer, int):
        return {
            name: p.detach()
            for name, p in decoder_layers(model)[layer].named_parameters()
            if p.ndim > 1
        }
    base, *others = (_merge_matrices(model, part) for part in layer)
    for part, other in zip(layer[1:], others, strict=True):
        if {name: m.shape for name, m in other.items()} != {
            name: m.shape for name, m in base.items()
        }:
            raise InputError(
                f"layer {part} has other matrices than {layer[0]}, and can't be merged into it: drop it"
            )
    return others[-1]


def build_likeness(model, sequences: list[torch.Tensor]) -> Likeness:
    """A function that compares models of merged layers with the whole one, on sequences [T]; it remembers its results.

    It returns the mean over sequences of the cosine of the final states, those of a sequence as one vector. Source: the
    authors' notebooks, which take the states after the final norm.
    """
    states = [
        _compute_final_states(model, sequence)
        for sequence in show_progress(sequences, "final states")
    ]
    progress = show_progress(None, "models of merged layers compared", "model")

    @functools.cache
    def compare(layers: tuple[MergedLayer, ...]) -> float:
        progress.update()
        merged = merge_layers(model, list(layers))
        total = 0.0
        for whole_state, sequence in zip(states, sequences, strict=True):
            state = _compute_final_states(merged, sequence)
            total += float(nn.functional.cosine_similarity(whole_state, state, dim=0))
        return total / len(states)

    return lambda layers: compare(tuple(layers))


@measuring
@torch.inference_mode()
def _compute_final_states(model, sequence: torch.Tensor) -> torch.Tensor:
    ids = sequence[None].to(model.get_input_embeddings().weight.device)
    return (
        model.base_model(input_ids=ids, use_cache=False).last_hidden_state.cpu().double().flatten()
    )
