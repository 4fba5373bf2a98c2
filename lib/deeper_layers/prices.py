"""What distances, a sweep and a healing cost on a machine that is not here: operations, bytes, seconds. Nothing runs.

A product and its sum are two operations, so a weight costs a token two. A sweep passes as many layers a token as its
tree has nodes. The weights of a healing don't learn: its way back costs what its way there does, and once more where
activations are computed anew (gradient checkpointing). Attention costs a token, for each key that it sees, what its
heads are wide. Norms, activations, adapters, the head where nothing asks for it, and transfers are left out.
"""

import dataclasses
import functools
import math
import re
from dataclasses import dataclass

from deeper_layers.checks import shown
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.presets import HealingConfig
from deeper_layers.sweeping.planning import BATCH_TOKENS, HEAD_ELEMENTS, ROWS
from deeper_layers.sweeping.tree import Tree

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT = {"nf4": 0.5 + 4 / 64, "int8": 1.0}  # bytes of a weight in bitsandbytes: nf4 has a float32 scale for each 64
OF_ADAPTER = 16  # bytes of a parameter that learns: itself, its gradient, two averages of AdamW, in float32
INSIDE = 8  # tensors of a layer that a way back keeps, each as wide as the widest; attention keeps no scores
NUMBER_OF_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")  # as configurations call it
# of a data sheet's matrix throughput: 38 to 43% when Llama 3.1 405B was trained (arXiv 2407.21783, table 4)
REACHED = 0.4
OF_A_PRODUCT = 0.75  # of the speed of a bare product: what layers reached on two cores in float32


@dataclass(frozen=True)
class Machine:
    """So many equal devices."""

    name: str
    memory: int | float  # bytes, of each
    bandwidth: float  # bytes read a second; 0: not known
    throughput: dict[str, float]  # operations a second as far as they are reached, by data type
    source: str  # where the numbers are from
    devices: int = 1


# device: GB, TB/s, TFLOPS without sparsity in 16 bits and in float32 (which PyTorch does not multiply in TF32), source
SHEETS = {
    "h100": (80, 3.35, 989.4, 67, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
    "h200": (141, 4.8, 989.4, 67, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
    "a100": (80, 2.039, 312, 19.5, "NVIDIA A100 Tensor Core GPU data sheet (80 GB, SXM)"),
    "l40s": (48, 0.864, 362, 91.6, "NVIDIA L40S data sheet"),
    "mi300x": (192, 5.3, 1307.4, 163.4, "AMD Instinct MI300X data sheet"),
    "rtx4090": (24, 1.008, 165.2, 82.6, "NVIDIA Ada GPU architecture white paper, appendix A"),
}


def find_machine(name: str) -> Machine:
    """A machine by its name: a device of the table, and after an x how many. Raises InputError for any other."""
    found = re.fullmatch(rf"({'|'.join(SHEETS)})(?:x([1-9][0-9]{{0,5}}))?", name)
    if found is None:
        raise InputError(
            f"machine is {shown(name)}, expected 'this' or one of {', '.join(SHEETS)}, and how many, like h100x8"
        )
    gigabytes, terabytes, half, single, source = SHEETS[found[1]]
    reached = {dtype: REACHED * half * 1e12 for dtype in ("bfloat16", "float16")} | {"float32": REACHED * single * 1e12}
    return Machine(name, gigabytes * 1e9, terabytes * 1e12, reached, source, int(found[2] or 1))


@functools.cache
def this_machine(width: int, inner: int, dtype: str, device: str = "auto") -> Machine:
    """The machine at hand, by trials of products as wide as a model's: in float32, bfloat16 and its own data type."""
    import psutil

    from deeper_layers.models.half_precision import product_speed
    from deeper_layers.models.opening import choose_device, device_name, free_memory

    where, tried_in = choose_device(device), dict.fromkeys(["float32", "bfloat16", dtype])
    throughput = {of: OF_A_PRODUCT * product_speed(of, width, inner, where) for of in tried_in}
    tried = f"tried on {device_name()} at a load of {psutil.getloadavg()[0]:.1f}"
    return Machine("this", free_memory(where), 0.0, throughput, tried)


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that its costs follow from."""

    layers: int
    width: int  # of the residual
    inner: int  # the widest that a layer is inside
    vocabulary: int  # tokens
    parameters: int  # of all, tied ones once
    of_layers: int  # of these, those of layers
    used: int  # of these, those that one token passes: of a mixture, the experts that it is sent to
    linear: int  # of these, those of linear modules, which quantization reaches
    head: int  # weights
    attending: int | float  # operations a token and key, in all layers
    remembered: int | float  # numbers kept of a token, in all layers: keys and values
    adapted: int | None  # both widths of all modules that adapters go on, summed; None where none can be put on


def shape_of(model) -> Shape:
    """The shape of a model of transformers, which may be one without weights (`models.empty_model`)."""
    import torch
    from torch import nn

    from deeper_layers.healing.adapters import ffn_modules
    from deeper_layers.models.configuration import text_config
    from deeper_layers.models.decoder import decoder_layers
    from deeper_layers.models.network import Network

    if model.device.type == "meta":  # where experts can be run in this format alone
        model = model.to(torch.bfloat16)
    config, layers, network = text_config(model.config), decoder_layers(model), Network(model)
    stated = lambda name, otherwise=0: getattr(config, name, None) or otherwise  # noqa: E731
    sizes = {name: parameter.numel() for name, parameter in layers.named_parameters()}
    experts = sum(size for name, size in sizes.items() if "experts" in name.split("."))
    number = max(1, *map(stated, NUMBER_OF_EXPERTS))
    heads = stated("num_attention_heads")
    wide = stated("head_dim", config.hidden_size // max(heads, 1))
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    try:
        adapted = sum(sum(model.get_submodule(name).weight.shape) for name in ffn_modules(model))
    except InputError:
        adapted = None
    return Shape(
        layers=len(layers),
        width=config.hidden_size,
        inner=max([config.hidden_size, *(module.out_features for module in linear)]),
        vocabulary=network.head.weight.shape[0],
        parameters=model.num_parameters(),
        of_layers=sum(sizes.values()),
        used=sum(sizes.values()) - experts + experts * min(stated("num_experts_per_tok", 1), number) // number,
        linear=sum(module.weight.numel() for module in linear),
        head=network.head.weight.numel(),
        attending=2 * heads * (stated("qk_head_dim", wide) + stated("v_head_dim", wide)) * len(layers),
        remembered=network.bytes_remembered / network.dtype.itemsize * len(layers),
        adapted=adapted,
    )


@dataclass(frozen=True)
class Cost:
    """What some work takes."""

    operations: int | float  # in products of matrices
    memory: int | float  # bytes held at once
    weights: int | float  # of these, those of weights
    batches: int  # each reads the weights once
    shares: int  # into how many parts it can be split at most

    def devices(self, machine: Machine) -> int:
        """How many devices of a machine hold this once, layer after layer."""
        return math.ceil(self.memory / machine.memory)

    def seconds(self, machine: Machine, dtype: str) -> float | None:
        """Predicted, with the work shared between as many copies as the machine holds; None where it holds none."""
        copies = min(machine.devices // self.devices(machine), self.shares)
        if not copies:
            return None
        reading = self.batches * self.weights / machine.bandwidth if machine.bandwidth else 0.0
        return max(self.operations / machine.throughput[dtype], reading) / copies


def distances_cost(shape: Shape, tokens: int, length: int | float, dtype: str) -> Cost:
    """Of all distances on so many tokens, in sequences of this length: one pass, without the head."""
    return sweep_cost(shape, [UNPRUNED], tokens, 0, length, dtype)


def sweep_cost(shape: Shape, cuts: list[Cut], tokens: int, scored: int, length: int | float, dtype: str) -> Cost:
    """Of a sweep over the distinct `tokens` of its requests, in sequences of `length` on average, `scored` positions of
    which have logits in each pruned model."""
    tree, size, batches, logits = (
        Tree(cuts, shape.layers),
        ITEMSIZE[dtype],
        math.ceil(tokens / BATCH_TOKENS),
        scored * len(cuts),
    )
    passes = tree.nodes / shape.layers  # of the whole model
    # a token sees half of its sequence on average
    operations = tokens * passes * (2 * shape.used + shape.attending * length / 2) + 2 * logits * shape.head
    weights, lent = shape.parameters * size, length * passes * shape.remembered * size
    states = min(BATCH_TOKENS, tokens) * size * (tree.alive * shape.width + 3 * shape.inner)
    memory = weights + states + lent + 4 * min(HEAD_ELEMENTS, logits * shape.vocabulary)
    return Cost(operations, memory, weights, batches, shares=batches)


def writing_cost(shape: Shape, cuts: list[Cut], answers: int, prompts: int, longest: int, dtype: str) -> Cost:
    """Of so many written answers of each pruned model, all as long as they may be; the prompts have so many tokens.

    Where some end earlier it is less. Of a batch each token reads the weights once.
    """
    tokens, length = prompts + answers * longest, prompts / answers + longest
    of_sweep = sweep_cost(shape, cuts, tokens, answers * longest, length, dtype)
    return dataclasses.replace(of_sweep, batches=longest * math.ceil(answers / ROWS))


def healing_cost(shape: Shape, cut: Cut, config: HealingConfig, dtype: str) -> Cost:
    """Of a healing, without the layers of a cut. Raises InputError where no adapter can be put on the model."""
    if shape.adapted is None:
        raise InputError("its layers have no linear modules outside of attention that adapters could be put on")
    size, share, shares = ITEMSIZE[dtype], 1 - cut.size / shape.layers, config.batch_sequences // config.at_once
    there = share * (2 * shape.used + shape.attending * config.sequence_length / 2)
    ways = 3 if config.gradient_checkpointing else 2
    operations = config.tokens * (ways * there + 2 * 2 * shape.head)
    kept = KEPT.get(config.quantization or "", size)
    weights = (shape.parameters - (1 - share) * shape.of_layers) * size - share * shape.linear * (size - kept)
    tokens, layers = config.at_once * config.sequence_length, share * shape.layers
    inside = INSIDE * tokens * shape.inner * size
    activations = layers * tokens * shape.width * size + inside if config.gradient_checkpointing else layers * inside
    learning = tokens * shape.vocabulary * (size + 4) + OF_ADAPTER * config.rank * share * shape.adapted
    return Cost(operations, weights + activations + learning, weights, config.steps * shares, shares)


def duration(seconds: int | float | None) -> str:
    """Seconds in words, to two digits; None is what no number of copies could do."""
    if seconds is None:
        return "too large"
    for unit, length, least in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= least:
            return f"{seconds / length:,.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
