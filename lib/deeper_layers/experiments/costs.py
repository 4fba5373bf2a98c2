"""What distances, sweeps and healing cost on a machine, by arithmetic: operations, bytes, seconds. Nothing is run.

Operations count a product and its sum as two, so that a weight costs a token two. A sweep passes as many layers a token
as its tree has nodes (`family.tree`). A healing's weights don't learn: its way back costs what its way there does, and
where activations are computed anew (gradient checkpointing) once more. Attention costs a token, for each key that it
sees, what its heads are wide. What is left out: norms, activations, adapters, positions in the vocabulary that nothing
asks for, and what passes between devices. Needs no torch, but to read off a model what it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.machines import Machine
from deeper_layers.presets import HealingConfig
from deeper_layers.sweeping.tree import Tree

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
BATCH = 4096  # tokens that run together, as in family.planning
LOGITS = 2**24  # that are in memory at once, in float32, as in family.planning
# bytes a weight is kept in by bitsandbytes: nf4 has a scale of float32 for each 64
KEPT = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
OF_ADAPTER = 16  # bytes a parameter that learns: itself, its gradient, two averages of AdamW, in float32
NUMBER_OF_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")  # as configurations call it
INSIDE = 8  # tensors of a layer that a way back keeps, each as wide as the widest; with attention that keeps no scores


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that its costs follow from.

    Attributes:
        layers: how many.
        width: of the residual.
        inner: the widest that a layer is inside.
        vocabulary: tokens.
        parameters: of all, tied ones once.
        of_layers: of these, those of layers.
        used: of these, those that one token passes: of a mixture, the experts that it is sent to.
        linear: of these, those of linear modules, which quantization reaches.
        head: weights of the head.
        attending: operations a token and key, in all layers.
        remembered: numbers kept of a token, in all layers: keys and values.
        adapted: both widths of all modules that adapters go on, summed; None where no adapter can be put on.
    """

    layers: int
    width: int
    inner: int
    vocabulary: int
    parameters: int
    of_layers: int
    used: int
    linear: int
    head: int
    attending: int | float
    remembered: int | float
    adapted: int | None


@dataclass(frozen=True)
class Cost:
    """What has to be done, whatever does it.

    Attributes:
        operations: in products of matrices.
        tokens: that pass.
        memory: bytes held at once, weights among them.
        weights: bytes of the weights, each read once a batch from memory, or once a round from disk.
        batches: of tokens.
        shares: into how many parts the work can be split at most.
    """

    operations: int | float
    tokens: int
    memory: int | float
    weights: int | float
    batches: int
    shares: int

    def devices(self, machine: Machine) -> int:
        """How many devices of a machine hold this once, layer after layer."""
        return math.ceil(self.memory / machine.memory)

    def seconds(self, machine: Machine, dtype: str) -> float | None:
        """Predicted, with the work shared between as many copies as the machine holds; None where it holds none.

        Devices that hold one copy together run its layers one after another.
        """
        copies = min(machine.devices // self.devices(machine), self.shares)
        if not copies:
            return None
        reading = self.batches * self.weights / machine.bandwidth if machine.bandwidth else 0.0
        return max(self.operations / machine.throughput[dtype], reading) / copies


def distances_cost(shape: Shape, tokens: int, length: int | float, dtype: str) -> Cost:
    """Of all distances on so many tokens, in sequences of this length: one pass, without the head."""
    return _pass(shape, tokens, tokens * shape.layers, length, dtype, alive=1)


def sweep_cost(
    shape: Shape, cuts: list[Cut], tokens: int, scored: int, length: int | float, dtype: str,
    unknown: Sequence[int] = (),
) -> Cost:  # fmt: skip
    """Of a sweep over the distinct `tokens` of its requests.

    `scored` positions have their logits asked for in each pruned model; a sequence has `length` tokens on average.
    `unknown` has the sizes of further cuts, not known yet: as if they shared nothing.
    """
    tree = Tree(cuts, shape.layers)
    nodes = tree.nodes + sum(shape.layers - size for size in unknown)
    lent = length * nodes / shape.layers * shape.remembered * ITEMSIZE[dtype]
    steps, scored = tokens * nodes, scored * (len(cuts) + len(unknown))
    alive = tree.alive + 2 * len(unknown)  # of each, what enters a layer and what leaves it
    return _pass(shape, tokens, steps, length, dtype, alive=alive, scored=scored, lent=lent)


def _pass(
    shape: Shape, tokens: int, layer_steps: int, length: int | float, dtype: str, *, alive: int, scored: int = 0,
    lent: int | float = 0,
) -> Cost:  # fmt: skip
    size, batch = ITEMSIZE[dtype], min(BATCH, tokens)
    # a token sees half of its sequence on average
    operations = layer_steps / shape.layers * (2 * shape.used + shape.attending * length / 2) + 2 * scored * shape.head
    weights = shape.parameters * size
    logits = 4 * min(LOGITS, scored * shape.vocabulary)
    memory = weights + batch * size * (alive * shape.width + 3 * shape.inner) + lent + logits
    batches = math.ceil(tokens / BATCH)
    return Cost(operations, tokens, memory, weights, batches, shares=batches)


def healing_cost(shape: Shape, cut: Cut, config: HealingConfig, dtype: str) -> Cost:
    """Of a healing, without the layers of a cut. Raises InputError where no adapter can be put on the model."""
    if shape.adapted is None:
        raise InputError("its layers have no linear modules outside of attention that adapters could be put on")
    size, share = ITEMSIZE[dtype], 1 - cut.size / shape.layers
    there = share * (2 * shape.used + shape.attending * config.sequence_length / 2)
    ways = 3 if config.gradient_checkpointing else 2
    operations = config.tokens * (ways * there + 2 * 2 * shape.head)
    kept = KEPT.get(config.quantization or "", size)
    weights = (shape.parameters - (1 - share) * shape.of_layers) * size - share * shape.linear * (size - kept)
    at_once = config.at_once * config.sequence_length
    inside = INSIDE * at_once * shape.inner * size
    layers = share * shape.layers
    activations = layers * at_once * shape.width * size + inside if config.gradient_checkpointing else layers * inside
    logits = at_once * shape.vocabulary * (size + 4)
    adapters = OF_ADAPTER * config.rank * share * shape.adapted
    shares = config.batch_sequences // config.at_once
    memory = weights + activations + logits + adapters
    return Cost(operations, config.tokens, memory, weights, config.steps * shares, shares)


def duration(seconds: int | float | None) -> str:
    """Seconds in words: to two digits, as a prediction deserves; None is what no number of copies could do."""
    if seconds is None:
        return "too large"
    for unit, length, least in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= least:
            return f"{seconds / length:,.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def shape_of(model) -> Shape:
    """The shape of a model of transformers, which may be one without weights (`models.empty_model`)."""
    from torch import nn  # only to read a model, as is the next

    from deeper_layers.healing.adapters import ffn_modules
    from deeper_layers.models.decoder import decoder_layers, text_config
    from deeper_layers.models.network import Network

    config, layers = text_config(model.config), decoder_layers(model)
    named = list(layers.named_parameters())
    experts = sum(p.numel() for name, p in named if "experts" in name.split("."))
    number = next((n for n in (getattr(config, name, None) for name in NUMBER_OF_EXPERTS) if n), 1)
    asked = getattr(config, "num_experts_per_tok", None) or 1
    of_layers = sum(p.numel() for _, p in named)
    heads = getattr(config, "num_attention_heads", 0) or 0
    wide = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    both = (getattr(config, "qk_head_dim", None) or wide) + (getattr(config, "v_head_dim", None) or wide)
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    inner = max([config.hidden_size, *(m.out_features for m in linear)])
    try:
        modules = [model.get_submodule(name) for name in ffn_modules(model)]
        adapted = sum(sum(module.weight.shape) for module in modules)
    except InputError:
        adapted = None
    network = Network(model)
    return Shape(
        layers=len(layers), width=config.hidden_size, inner=inner, vocabulary=network.head.weight.shape[0],
        parameters=sum(p.numel() for p in model.parameters()), of_layers=of_layers,
        used=of_layers - experts + experts * min(asked, number) // number,
        linear=sum(module.weight.numel() for module in linear), head=network.head.weight.numel(),
        attending=2 * heads * both * len(layers),
        remembered=network.bytes_remembered / network.dtype.itemsize * len(layers), adapted=adapted,
    )  # fmt: skip
