"""What a rule makes of the layers that it keeps: a bridge over a cut, or layers that were merged.

Bridges: the layer below a cut is changed so that it leaves what entered the layer above. Two linear maps of what its
MLP adds (ReplaceMe, Shopkhoev et al., arXiv 2505.02819): the residual that leaves layer l-1 is y + m, with m what the
MLP adds; the map A is that for which y + m A comes nearest to the residual that entered layer l+n, by least squares (a
closed form) or by cosine (a short descent that starts there; the authors' starts at the identity). The MLP ends in a
matrix: A is folded into it, exactly, wherever nothing stands between the two. A layer that is trained on the same
target, all its weights, by the mean squared error (LLM-Streamline, Chen et al., arXiv 2403.19135). And one number, by
which magnitudes above the cut exceed those below it (Prune&Comp, Chen et al., arXiv 2507.18212).

Merges (LaCo, Yang et al., arXiv 2402.11187, section 3.1): the matrices of layer l become W(l) + sum over k of
W(l+k) - W(l). In the authors' notebooks each difference is taken from what the sum has become by then, so that it
telescopes to the matrices of the last of these layers. Gains of norms and biases stay those of the first layer.

Letters in shapes: T tokens, D width.
"""

import copy
import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers, writers
from deeper_layers.models.network import Call, Network
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import Likeness, Merged, Rule, cut_of
from deeper_layers.similarity import residuals_of, watched

EXACT, TRIED = 1e-6, 8  # what the MLP adds arrives in the residual as it is, tried on so many tokens
EPOCHS, AT_ONCE, COSINE_RATE = 10, 1024, 1e-4  # of the descent by cosine: over all tokens, so many a step
ROUNDS, TRAINING_RATE = 4, 1e-4  # of training: over all sequences, one a step


def changed_model(model, rule: Rule, cut: Cut, merged: list[Merged], sequences: list[torch.Tensor]):
    """What a rule that changes weights leaves of a model, which stays as it was: `merged` layers, or a bridge over a
    cut, fitted on sequences of tokens, each [T]. See `merged_model` and `bridged`."""
    if rule.changes in ("merged", "last taken"):
        return merged_model(model, merged, rule.changes)
    return bridged(model, cut, sequences, rule.changes) if cut.size else model


def changed_tensors(model, changed, cut: Cut) -> dict[str, torch.Tensor]:
    """Of what a rule left of a model after a cut: the parameters that are not those which the layer had before, by
    "number of the layer in what is left.name in it"."""
    layers = decoder_layers(model)
    return {
        f"{number}.{name}": parameter.detach()
        for number, (layer, before) in enumerate(zip(decoder_layers(changed), cut.kept(len(layers)), strict=True))
        for name, parameter in layer.named_parameters()
        if parameter.data_ptr() != layers[before].get_parameter(name).data_ptr()
    }


def _set(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """A parameter of its own, in the type of the one in its place: the other model shares that."""
    setattr(module, name, nn.Parameter(tensor.to(getattr(module, name)), requires_grad=False))


def _check_real(model) -> None:
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise InputError("quantized weights can't be merged, bridged or trained: open the model without that")


# ---- bridges -----------------------------------------------------------------------------------------------------


def bridged(model, cut: Cut, sequences: list[torch.Tensor], how: str = "least squares"):
    """A model without the layers of a cut, whose layer below makes up for them, by sequences of tokens, each [T].

    Raises InputError where the cut is no block that starts at layer 1 or above, weights are quantized, there are fewer
    tokens than the residual is wide, or the MLP ends in no matrix of its own or what it adds is normalized or scaled
    afterwards, so that no linear map can be folded in.
    """
    if not (cut.is_block and cut.start):
        said = cut.describe(num_layers(model))
        raise InputError(f"a cut that {said} has no layer below it to bridge it: drop a block from layer 1 on")
    _check_real(model)
    pruned, below = drop_layers(model, cut), cut.start - 1
    if how == "trained":
        ends = _ends(model, sequences, below, cut.stop)
        decoder_layers(pruned)[below] = _trained_layer(model, below, ends, sequences)
        return pruned
    writer = _writer(model, below)
    if how == "scaled":
        return _scaled(pruned, cut.start, _ends(model, sequences, cut.start, cut.stop))
    if (tokens := sum(map(len, sequences))) < (width := writer.out_features):
        raise InputError(
            f"there are {tokens} tokens to fit a map of {width} by {width} on: give more sequences (samples)"
        )
    adding: list[torch.Tensor] = []
    with writer.register_forward_hook(lambda _, __, output: adding.append(output[0].double())):
        left, wanted = torch.cat(_ends(model, sequences, cut.start, cut.stop), dim=1)
    added = torch.cat(adding)
    found = torch.linalg.lstsq(added, wanted - (left - added)).solution
    if how == "cosine":
        found = _nearest_by_cosine(found, added, left - added, wanted)
    (_, changed), *_ = writers(decoder_layers(pruned)[below], MLP)
    _set(changed, "weight", found.mT @ writer.weight.double())
    if writer.bias is not None:
        _set(changed, "bias", writer.bias.double() @ found)
    return pruned


def _ends(model, sequences: list[torch.Tensor], *states: int) -> list[torch.Tensor]:
    """Of each sequence [T] two residuals, [2, T, D] in float64: what enters these layers of the whole model."""
    found = residuals_of(model, watched(sequences, "bridge, residuals"))
    return [residuals[list(states)] for residuals in found]


def _writer(model, layer: int) -> nn.Linear:
    """The matrix that ends the MLP of a layer, once it is known that the residual gets what it gives as it is."""
    refused = InputError(
        f"the MLP of layer {layer} of {type(model).__name__} ends in no single matrix, or what it adds is normalized "
        "or scaled on its way into the residual, so that no linear map can be folded in exactly: choose another rule"
    )
    found = {module for _, module in writers(decoder_layers(model)[layer], MLP)}
    if len(found) != 1 or type(module := found.pop()) is not nn.Linear:
        raise refused
    # in double precision on residuals of our own: what rounding leaves open is decided here
    draw, width = torch.Generator().manual_seed(0), module.out_features
    residual = torch.randn(1, TRIED, width, generator=draw, dtype=torch.float64).to(module.weight.device)
    shift = torch.linspace(-1, 1, width).to(residual)
    apart, call = copy.deepcopy(decoder_layers(model)[layer]).double(), _call_of(model, torch.arange(TRIED), layer)
    with torch.inference_mode():
        before = call(apart, residual)
        writers(apart, MLP)[0][1].register_forward_hook(lambda _, __, output: output + shift)
        moved = call(apart, residual) - before
    if (moved - shift).abs().max() > EXACT:
        raise refused
    return module


def _scaled(pruned, start: int, ends: list[torch.Tensor]):
    """What the layers above a cut add, divided by how magnitudes grow over it: all that they and the last norm see is a
    direction. The authors multiply what comes before instead, embeddings too, which a head may share. Means are over
    tokens, and then of ratios over sequences and channels, as in their code.
    """
    below, above = torch.stack([residuals.abs().mean(dim=1) for residuals in ends], dim=1)
    gap = float((above / below).mean())
    for layer in decoder_layers(pruned)[start:]:
        for name, module in [*writers(layer, ATTENTION), *writers(layer, MLP)]:
            _set(module, name, getattr(module, name).double() / gap)
    return pruned


def _nearest_by_cosine(start: torch.Tensor, *sides: torch.Tensor) -> torch.Tensor:
    """The map that makes the mean cosine largest, from a first one, by Adam over the tokens in a fixed order."""
    found = nn.Parameter(start.float().clone())

    def loss(some: torch.Tensor) -> torch.Tensor:
        m, y, z = (side[some.to(side.device)].float() for side in sides)
        return 1 - nn.functional.cosine_similarity(m @ found + y, z, dim=-1).mean()

    _descend(torch.optim.Adam([found], lr=COSINE_RATE), loss, len(sides[0]), EPOCHS, AT_ONCE)
    return found.detach().double()


def _trained_layer(model, below: int, ends: list[torch.Tensor], sequences: list[torch.Tensor]) -> nn.Module:
    """A layer trained to turn what enters it into what enters the layer above the cut."""
    layer = copy.deepcopy(decoder_layers(model)[below])
    weight = next(layer.parameters())
    dtype, pairs = weight.dtype, [residuals.float().cpu() for residuals in ends]
    layer.float().requires_grad_(True)

    def loss(number: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            entering, wanted = pairs[number].clone().to(weight.device)
            call = _call_of(model, sequences[number], below, torch.float32)
        return nn.functional.mse_loss(call(layer, entering[None])[0], wanted)

    steps = torch.optim.AdamW(layer.parameters(), lr=TRAINING_RATE, weight_decay=0.0)
    _descend(steps, loss, len(sequences), ROUNDS, 1)
    return layer.to(dtype).requires_grad_(False)


def _descend(
    steps: torch.optim.Optimizer, loss: Callable[[torch.Tensor], torch.Tensor], items: int, rounds: int, at_once: int
) -> None:
    """Take steps down a loss of some items, in rounds over all of them in an order that is always the same."""
    draw = torch.Generator().manual_seed(0)
    batches = [some for _ in range(rounds) for some in torch.randperm(items, generator=draw).split(at_once)]
    with torch.enable_grad():
        for some in watched(batches, "bridge", "step"):
            steps.zero_grad()
            loss(some).backward()
            steps.step()


def _call_of(model, sequence: torch.Tensor, layer: int, dtype: torch.dtype = torch.float64) -> Call:
    """What a layer is handed for tokens [T] besides the residual, real numbers in a data type."""
    network = Network(model)
    call = network.handed(sequence[None].to(network.device)).calls[layer]
    cast = functools.partial(tree_map_only, torch.Tensor, lambda one: one.to(dtype) if one.is_floating_point() else one)
    return Call(*cast((call.arguments, call.named)))


# ---- merges ------------------------------------------------------------------------------------------------------


def merged_model(model, layers: list[Merged], how: str = "merged"):
    """A model of these layers in place of its own, each a number, or some merged into the first of them.

    Args:
        layers: in rising order, like [0, (1, 2, 3), 4]; parts of a merged one may be merged ones.
        how: "merged", as printed in the paper, or "last taken", as in the authors' notebooks.

    Raises InputError where layers to be merged have matrices of other names or shapes, or no real numbers.
    """
    _check_real(model)
    pruned = drop_layers(model, cut_of(layers, num_layers(model)))
    for layer, merged in zip(decoder_layers(pruned), layers, strict=True):
        if isinstance(merged, tuple):
            for path, matrix in _matrices(model, merged, how).items():
                owner, _, name = path.rpartition(".")
                _set(layer.get_submodule(owner), name, matrix)
    return pruned


def _matrices(model, layer: Merged, how: str) -> dict[str, torch.Tensor]:
    if isinstance(layer, int):
        return {name: p.detach() for name, p in decoder_layers(model)[layer].named_parameters() if p.ndim > 1}
    base, *others = (_matrices(model, part, how) for part in layer)
    for part, other in zip(layer[1:], others, strict=True):
        if {name: m.shape for name, m in other.items()} != {name: m.shape for name, m in base.items()}:
            raise InputError(f"layer {part} has other matrices than {layer[0]}, and can't be merged into it: drop it")
    if how == "last taken":
        return others[-1]
    return {
        name: (first.double() + sum(other[name].double() - first.double() for other in others)).to(first.dtype)
        for name, first in base.items()
    }


def likeness_on(model, sequences: list[torch.Tensor], how: str = "merged") -> Likeness:
    """What compares models of merged layers with the whole one: the cosine of all final states of a sequence, [T] each.

    Source: the authors' notebooks: states after the final norm, of a whole sequence as one vector; mean over sequences.
    What was asked before is remembered.
    """
    states = [_final_states(model, sequence) for sequence in watched(sequences, "final states")]
    bar = watched(None, "models of merged layers compared", "model")

    @functools.cache
    def found(layers: tuple[Merged, ...]) -> float:
        bar.update()
        other = merged_model(model, list(layers), how)
        pairs = zip(states, (_final_states(other, sequence) for sequence in sequences), strict=True)
        return sum(float(nn.functional.cosine_similarity(*pair, dim=0)) for pair in pairs) / len(states)

    return lambda layers: found(tuple(layers))


@torch.inference_mode()
def _final_states(model, sequence: torch.Tensor) -> torch.Tensor:
    ids = sequence[None].to(model.get_input_embeddings().weight.device)
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state.double().flatten().cpu()
