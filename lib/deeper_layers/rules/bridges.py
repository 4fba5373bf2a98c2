"""What a rule makes of the layers that it keeps: a bridge over a cut, or layers that were merged (merging.py).

Over a cut the layer below it is changed so that it leaves what entered the layer above. Two linear maps of what its MLP
adds (ReplaceMe, Shopkhoev et al., arXiv 2505.02819): the residual that leaves layer l-1 is y + m, with m what the MLP
adds; the map A is that for which y + m A comes nearest to the residual that entered layer l+n, by least squares (a
closed form) or by cosine (a short descent that starts there; the authors' starts at the identity). The MLP ends in a
matrix: A is folded into it, exactly, wherever nothing stands between the two. A layer that is trained on the same
target, all its weights, by the mean squared error (LLM-Streamline, Chen et al., arXiv 2403.19135). And one number, by
which magnitudes above the cut exceed those below it (Prune&Comp, Chen et al., arXiv 2507.18212).

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
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.network import Call, Network
from deeper_layers.models.sublayers import writers
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.choosing import COSINE, LAST_TAKEN, LEAST_SQUARES, MERGED, SCALED, TRAINED, Rule
from deeper_layers.rules.laco import Merged
from deeper_layers.rules.merging import merged_model
from deeper_layers.similarity import residuals_of, watched

EXACT, TRIED = 1e-6, 8  # what the MLP adds arrives in the residual as it is, tried on so many tokens
EPOCHS, AT_ONCE, COSINE_RATE = 10, 1024, 1e-4  # of the descent by cosine: over all tokens, so many a step
ROUNDS, TRAINING_RATE = 4, 1e-4  # of training: over all sequences, one a step


def changed_model(model, rule: Rule, cut: Cut, merged: list[Merged], sequences: list[torch.Tensor]):
    """What a rule that changes weights leaves of a model, which stays as it was.

    Args:
        cut: what it drops.
        merged: the layers that are left, merged ones among them, where it merges; see `merged_layers`.
        sequences: tokens that a bridge is fitted on, each [T].

    Raises:
        InputError: what `merged_model` and `bridged` raise.
    """
    if rule.changes in (MERGED, LAST_TAKEN):
        return merged_model(model, merged, rule.changes)
    return bridged(model, cut, sequences, rule.changes) if cut.size else model


def changed_tensors(model, changed, cut: Cut) -> dict[str, torch.Tensor]:
    """Of what a rule left of a model after a cut: the parameters that are not those which the layer had before.

    By "number of the layer in what is left.name in it".
    """
    found, layers = {}, decoder_layers(model)
    for number, (layer, before) in enumerate(zip(decoder_layers(changed), cut.kept(len(layers)), strict=True)):
        own = {name: parameter.data_ptr() for name, parameter in layers[before].named_parameters()}
        for name, parameter in layer.named_parameters():
            if parameter.data_ptr() != own.get(name):
                found[f"{number}.{name}"] = parameter.detach()
    return found


def bridged(model, cut: Cut, sequences: list[torch.Tensor], how: str = LEAST_SQUARES):
    """A model without the layers of a cut, whose layer below it makes up for them.

    Args:
        model: a decoder-only transformers model of L layers, which stays as it was.
        cut: a block that starts at layer 1 or above.
        sequences: tokens to fit it on, each [T].
        how: "least squares", "cosine", "trained", or "scaled".

    Returns:
        A model of the same class with L - cut.size layers: saved by `save_pretrained` it opens in plain transformers.

    Raises:
        InputError: the cut is no such block, its weights are quantized, there are fewer tokens than the residual is
            wide, the MLP ends in no matrix of its own or what it adds is normalized or scaled afterwards, so that no
            linear map can be folded in; what `drop_layers` raises.
    """
    cut.check(layers := num_layers(model))
    if not cut.is_block or not cut.size or not cut.start:
        raise InputError(
            f"a cut that {cut.describe(layers)} has no layer below it to bridge it: drop a block from layer 1 on"
        )
    pruned, below = drop_layers(model, cut), cut.start - 1
    if how == TRAINED:
        decoder_layers(pruned)[below] = _trained_layer(model, below, cut.stop, sequences)
        return pruned
    writer = _writer(model, below)
    if how == SCALED:
        return _scaled(pruned, cut, _magnitude_gap(model, cut, sequences))
    added, rest, wanted = _sides(model, writer, cut, sequences)
    found = torch.linalg.lstsq(added, wanted - rest).solution
    if how == COSINE:
        found = _nearest_by_cosine(found, added, rest, wanted)
    (_, changed), *_ = writers(decoder_layers(pruned)[below], MLP)
    with torch.no_grad():
        changed.weight = nn.Parameter((found.mT @ writer.weight.double()).to(writer.weight), requires_grad=False)
        if writer.bias is not None:
            changed.bias = nn.Parameter((writer.bias.double() @ found).to(writer.bias), requires_grad=False)
    return pruned


def _writer(model, layer: int) -> nn.Linear:
    """The matrix that ends the MLP of a layer, once it is known that the residual gets what it gives as it is."""
    found = {module for _, module in writers(decoder_layers(model)[layer], MLP)}
    if len(found) != 1 or type(module := found.pop()) is not nn.Linear or not module.weight.is_floating_point():
        raise InputError(
            f"the MLP of layer {layer} of {type(model).__name__} ends in no single matrix of real numbers, so that no "
            "linear map can be folded into it: choose another rule"
        )
    # in double precision on residuals of our own: what rounding leaves open is decided here
    draw = torch.Generator().manual_seed(0)
    residual = torch.randn(1, TRIED, module.out_features, generator=draw, dtype=torch.float64).to(module.weight.device)
    shift = torch.linspace(-1, 1, module.out_features, dtype=torch.float64, device=module.weight.device)
    apart = copy.deepcopy(decoder_layers(model)[layer]).double()
    (_, ending), *_ = writers(apart, MLP)
    call = _call_of(model, torch.arange(TRIED), layer, torch.float64)
    with torch.inference_mode():
        before = call(apart, residual)
        ending.register_forward_hook(lambda _, __, output: output + shift)
        moved = call(apart, residual) - before
    if (moved - shift).abs().max() > EXACT:
        raise InputError(
            f"what the MLP of layer {layer} of {type(model).__name__} adds is normalized or scaled on its way into the "
            "residual, so that no linear map can be folded into it exactly: choose another rule"
        )
    return module


def _sides(model, writer: nn.Linear, cut: Cut, sequences: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What the MLP below a cut adds, what else leaves its layer, and what enters the layer above; each [T, D]."""
    if (tokens := sum(map(len, sequences))) < (width := writer.out_features):
        raise InputError(
            f"there are {tokens} tokens to fit a map of {width} by {width} on: give more sequences (samples)"
        )
    added, ends = [], []
    with writer.register_forward_hook(lambda _, __, output: added.append(output[0].double())):
        for sequence in watched(sequences, "bridge, residuals"):
            ends.append(residuals_of(model, sequence)[[cut.start, cut.stop]])
    below, above = torch.cat(ends, dim=1)
    return (of_mlp := torch.cat(added)), below - of_mlp, above


def _magnitude_gap(model, cut: Cut, sequences: list[torch.Tensor]) -> float:
    """What enters the layer above a cut over what enters its first layer.

    Mean magnitudes over the tokens of a sequence, then the mean of their ratios over sequences and channels, as in the
    authors' code.
    """
    ratios = []
    for sequence in watched(sequences, "bridge, residuals"):
        found = residuals_of(model, sequence)
        above, below = (found[place].double().abs().mean(dim=0) for place in (cut.stop, cut.start))
        ratios.append(above / below)
    return float(torch.stack(ratios).mean())


def _scaled(pruned, cut: Cut, gap: float):
    """What the layers above a cut add, divided by the gap: all that they and the last norm see is a direction.

    The authors multiply what comes before instead, embeddings too, which a head may share.
    """
    for layer in decoder_layers(pruned)[cut.start :]:
        for name, module in [*writers(layer, ATTENTION), *writers(layer, MLP)]:
            weight = getattr(module, name)
            setattr(module, name, nn.Parameter((weight.double() / gap).to(weight), requires_grad=False))
    return pruned


def _nearest_by_cosine(start: torch.Tensor, *sides: torch.Tensor) -> torch.Tensor:
    """The map that makes the mean cosine largest, from a first one, by Adam over the tokens in a fixed order."""
    found = nn.Parameter(start.float().clone())

    def loss(some: torch.Tensor) -> torch.Tensor:
        m, y, z = (side[some.to(side.device)].float() for side in sides)
        return 1 - nn.functional.cosine_similarity(m @ found + y, z, dim=-1).mean()

    _descend(torch.optim.Adam([found], lr=COSINE_RATE), loss, len(sides[0]), EPOCHS, AT_ONCE)
    return found.detach().double()


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


def _trained_layer(model, below: int, above: int, sequences: list[torch.Tensor]) -> nn.Module:
    """A layer trained to turn what enters it into what enters the layer above the cut.

    Both are kept for all sequences: one pass of the whole model over them, and 8 T D bytes in memory.
    """
    layer = copy.deepcopy(decoder_layers(model)[below])
    if not all(parameter.is_floating_point() for parameter in layer.parameters()):
        raise InputError(f"layer {below} has quantized weights, which can't be trained: open the model without that")
    if not sequences:
        raise InputError("there is no sequence to train a layer on: give at least one")
    dtype, device = (getattr(next(layer.parameters()), name) for name in ("dtype", "device"))
    pairs = []
    for sequence in watched(sequences, "bridge, residuals"):
        found = residuals_of(model, sequence)
        pairs.append(tuple(found[place].float().cpu() for place in (below, above)))
    layer.float().requires_grad_(True)
    steps = torch.optim.AdamW(layer.parameters(), lr=TRAINING_RATE, weight_decay=0.0)

    def loss(number: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            entering, wanted = (residual.clone().to(device) for residual in pairs[number])
            call = _call_of(model, sequences[number], below, torch.float32)
        return nn.functional.mse_loss(call(layer, entering[None])[0], wanted)

    _descend(steps, loss, len(sequences), ROUNDS, 1)
    return layer.to(dtype).requires_grad_(False)


def _call_of(model, sequence: torch.Tensor, layer: int, dtype: torch.dtype) -> Call:
    """What a layer is handed for tokens [T] besides the residual, real numbers in a data type."""
    network = Network(model)
    call = network.handed(sequence[None].to(network.device)).calls[layer]
    cast = functools.partial(tree_map_only, torch.Tensor, lambda one: one.to(dtype) if one.is_floating_point() else one)
    return Call(cast(call.arguments), {name: cast(value) for name, value in call.named.items()})
