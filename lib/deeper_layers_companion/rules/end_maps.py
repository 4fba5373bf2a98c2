"""A map in the place of a model's last layers: do these layers translate what the others know, or hold it?

The map goes from the residual x that enters the first dropped layer to the one that leaves the last layer, before the
final norm. It sees text alone. *Affine*: W x + b by least squares, as the translators of Belrose et al. (tuned lens,
arXiv 2303.08112) are, but fitted on residuals. *Low rank*: x + U V x + b, trained on the divergence from the whole
model's next-token distribution, as those translators are. The first token of each sequence is left out: in many models
its residual is some hundred times as long as the others and would decide the fit.

Letters in shapes: N tokens of all sequences, D width, R rank.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import nn

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.network import Network
from deeper_layers.pruning import drop_layers
from deeper_layers.similarity import iterate_residuals, show_progress
from deeper_layers_companion.rules.table import END_MAPS

RANK, STEPS, RATE, POSITIONS = END_MAPS[
    "reverse-low-rank"
].values()  # each step sees POSITIONS of one sequence


class EndResiduals:
    """Residuals of sequences of tokens, each [T], recorded in one pass: what enters the last `most` layers, and what
    leaves the last one, in the model's data type on the processor."""

    def __init__(self, model, sequences: Iterable[torch.Tensor], most: int):
        self.layers = num_layers(model)
        if not 0 < most < self.layers:
            raise InputError(
                f"size is {most}; expected 1 to {self.layers - 1} for a model of {self.layers} layers: choose another"
            )
        recorded = []
        dtype = Network(model).dtype
        for residuals in iterate_residuals(
            model, show_progress(list(sequences), "residuals of the last layers")
        ):
            recorded.append(residuals[-most - 1 :, 1:].to(dtype).cpu())
        if not recorded:
            raise InputError("there is no sequence to fit a map on: give at least one")
        self.lengths = [residuals.shape[1] for residuals in recorded]
        self.residuals = torch.cat(recorded, dim=1)  # [most + 1, N, D]

    def entering(self, size: int) -> Float[torch.Tensor, "N D"]:
        """What enters the first of the last `size` layers; with size 0, what leaves the last layer."""
        return self.residuals[-size - 1]


def replace_last_layers(model, size: int, map_residual: nn.Module):
    """The model without its last `size` layers, whose last layer hands its output through a map. The model given stays
    unchanged, and shares its weights."""
    layers = num_layers(model)
    pruned = drop_layers(model, Cut(layers - size, size))
    map_residual = map_residual.to(Network(model).device)

    def map_output(_, __, output):
        if isinstance(output, tuple):
            return map_residual(output[0]), *output[1:]
        return map_residual(output)

    decoder_layers(pruned)[-1].register_forward_hook(map_output)
    return pruned


class ResidualMap(nn.Module):
    """x + x A + b in float32, handed on in the data type of x."""

    def __init__(self, matrices: list[torch.Tensor], bias: torch.Tensor):
        super().__init__()
        self.matrices = nn.ParameterList(
            nn.Parameter(matrix, requires_grad=False) for matrix in matrices
        )
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        added = residual.float()
        for matrix in self.matrices:
            added = added @ matrix
        return (residual.float() + added + self.bias).to(residual.dtype)


def fit_affine_map(residuals: EndResiduals, size: int) -> ResidualMap:
    """The affine map with the least squared error. Raises InputError where there are fewer tokens than unknowns."""
    entering = residuals.entering(size)
    count, width = entering.shape
    if count <= width + 1:
        raise InputError(
            f"there are {count} tokens to fit a map of {width} by {width} on: give more sequences"
        )
    ones = torch.ones(count, 1, dtype=torch.float64)
    inputs = torch.cat([entering.double(), ones], dim=1)
    # the normal equations, in double precision: [D + 1, D + 1] in place of [N, D + 1]
    target = residuals.entering(0).double() - entering.double()
    gram = inputs.mT @ inputs
    solution = torch.linalg.lstsq(gram, inputs.mT @ target, driver="gelsd").solution
    return ResidualMap([solution[:-1].float()], solution[-1].float())


def train_low_rank_map(model, residuals: EndResiduals, size: int) -> ResidualMap:
    """The map of rank RANK after STEPS steps of Adam, on KL(whole model, mapped model) of the next token."""
    network = Network(model)
    entering = residuals.entering(size)
    leaving = residuals.entering(0)
    width = entering.shape[1]
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(width, RANK, generator=generator) / width**0.5
    trained = ResidualMap([down, torch.zeros(RANK, width)], torch.zeros(width)).to(network.device)
    trained.requires_grad_(True)
    parameters = list(trained.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    ends = torch.tensor(residuals.lengths).cumsum(0)
    for step in show_progress(range(STEPS), f"map over the last {size} layers", "step"):
        sequence = step % len(residuals.lengths)
        length = residuals.lengths[sequence]
        drawn = torch.randperm(length, generator=generator)[:POSITIONS]
        positions = int(ends[sequence]) - length + drawn
        with torch.no_grad():
            wanted = torch.log_softmax(_compute_logits(network, leaving[positions]), dim=-1)
        given = torch.log_softmax(
            _compute_logits(network, trained(entering[positions].to(network.device))), dim=-1
        )
        loss = nn.functional.kl_div(given, wanted, log_target=True, reduction="batchmean")
        # not by loss.backward(), which would leave gradients at the model's own weights
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
    return trained.requires_grad_(False)


def _compute_logits(
    network: Network, residuals: Float[torch.Tensor, "N D"]
) -> Float[torch.Tensor, "N V"]:
    """The logits, in float32, of residuals that leave the last layer."""
    return network.logits(residuals.to(network.device)).float()


FITTED: dict[str, Callable] = {
    "reverse-affine": lambda model, residuals, size: fit_affine_map(residuals, size),
    "reverse-low-rank": train_low_rank_map,
}
