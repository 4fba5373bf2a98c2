"""The price of distances, a sweep or a healing on any machine: operations, bytes, seconds. Nothing is run.

A multiplication and an addition are two operations, so each weight costs two operations a token. In a sweep a token
passes each node of the tree once. In a healing the weights do not learn, so a backward pass costs as much as a forward
pass, and gradient checkpointing adds a forward pass. Attention costs each token and key in proportion to the width of
the heads. Norms, activation functions, adapters, a head whose logits are not needed, and transfers are left out.
"""

import dataclasses
import functools
import math
import re
from dataclasses import dataclass

from deeper_layers.checks import short_repr
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.presets import HealingConfig
from deeper_layers.sweeping.planning import BATCH_TOKENS, HEAD_ELEMENTS, ROWS
from deeper_layers.sweeping.tree import Tree

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}  # of a weight in bitsandbytes; 64 weights share a float32 scale
ADAPTER_BYTES = 16  # of a parameter that learns: itself, its gradient, two averages of AdamW, in float32
LAYER_TENSORS = 8  # that a layer keeps for the backward pass, of its greatest width; attention keeps no scores
NUMBER_OF_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")  # names in configurations
# share of a data sheet's matrix throughput: 38 to 43% in the training of Llama 3.1 405B (arXiv 2407.21783, table 4)
REACHED = 0.4
PRODUCT_SHARE = 0.75  # speed of layers over the speed of one matrix product, measured on two cores in float32


@dataclass(frozen=True)
class Machine:
    """One or several equal devices."""

    name: str
    memory: int | float  # bytes, of each device
    bandwidth: float  # bytes read a second; 0: not known
    throughput: dict[str, float]  # operations a second that are reached, by data type
    source: str  # where the numbers are from
    devices: int = 1


# by device: GB, TB/s, dense TFLOPS in 16 bits and in float32 (PyTorch does not use TF32 for it), source
DATA_SHEETS = {
    "h100": (80, 3.35, 989.4, 67, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
    "h200": (141, 4.8, 989.4, 67, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
    "a100": (80, 2.039, 312, 19.5, "NVIDIA A100 Tensor Core GPU data sheet (80 GB, SXM)"),
    "l40s": (48, 0.864, 362, 91.6, "NVIDIA L40S data sheet"),
    "mi300x": (192, 5.3, 1307.4, 163.4, "AMD Instinct MI300X data sheet"),
    "rtx4090": (24, 1.008, 165.2, 82.6, "NVIDIA Ada GPU architecture white paper, appendix A"),
}


def find_machine(name: str) -> Machine:
    """A machine by its name: a device of DATA_SHEETS, and how many: "h100x8". Raises InputError for other names."""
    match = re.fullmatch(rf"({'|'.join(DATA_SHEETS)})(?:x([1-9][0-9]{{0,5}}))?", name)
    if match is None:
        known = ", ".join(DATA_SHEETS)
        raise InputError(f"machine is {short_repr(name)}, expected 'this' or one of {known}, and how many, like h100x8")
    gigabytes, terabytes, half, single, source = DATA_SHEETS[match[1]]
    reached = {dtype: REACHED * half * 1e12 for dtype in ("bfloat16", "float16")} | {"float32": REACHED * single * 1e12}
    return Machine(name, gigabytes * 1e9, terabytes * 1e12, reached, source, int(match[2] or 1))


@functools.cache
def measure_this_machine(width: int, inner: int, dtype: str, device: str = "auto") -> Machine:
    """This machine, tried with matrix products as wide as a model's: in float32, bfloat16 and `dtype`."""
    import psutil

    from deeper_layers.models.half_precision import measure_product_speed
    from deeper_layers.models.opening import choose_device, device_name, free_memory

    target, dtypes = choose_device(device), dict.fromkeys(["float32", "bfloat16", dtype])
    throughput = {name: PRODUCT_SHARE * measure_product_speed(name, width, inner, target) for name in dtypes}
    source = f"tried on {device_name()} at a load of {psutil.getloadavg()[0]:.1f}"
    return Machine("this", free_memory(target), 0.0, throughput, source)


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that determine its costs."""

    layers: int
    width: int  # of the residual
    inner: int  # the greatest width inside a layer
    vocabulary: int  # tokens
    parameters: int  # of the whole model, tied ones counted once
    in_layers: int  # parameters of all layers
    active: int  # of these, parameters that one token uses: of a mixture, those of the experts that it is sent to
    linear: int  # of those in layers, parameters of linear modules, which quantization changes
    head: int  # parameters of the head
    attention: int | float  # operations a token and key, in all layers
    cache: int | float  # numbers kept for a token, in all layers: keys and values
    adapted_widths: int | None  # sum of both widths of all modules with adapters; None where no adapter can be added


def read_shape(model) -> Shape:
    """The shape of a model of transformers, which may have no weights (`models.load_empty_model`)."""
    import torch
    from torch import nn

    from deeper_layers.healing.adapters import find_ffn_modules
    from deeper_layers.models.configuration import text_config
    from deeper_layers.models.decoder import decoder_layers
    from deeper_layers.models.network import Network

    if model.device.type == "meta":  # some experts run in this format only
        model = model.to(torch.bfloat16)
    config, layers, network = text_config(model.config), decoder_layers(model), Network(model)
    entry = lambda name, default=0: getattr(config, name, None) or default  # noqa: E731
    sizes = {name: parameter.numel() for name, parameter in layers.named_parameters()}
    experts = sum(size for name, size in sizes.items() if "experts" in name.split("."))
    number = max(1, *map(entry, NUMBER_OF_EXPERTS))
    heads = entry("num_attention_heads")
    head_width = entry("head_dim", config.hidden_size // max(heads, 1))
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    try:
        adapted_widths = sum(sum(model.get_submodule(name).weight.shape) for name in find_ffn_modules(model))
    except InputError:
        adapted_widths = None
    return Shape(
        layers=len(layers),
        width=config.hidden_size,
        inner=max([config.hidden_size, *(module.out_features for module in linear)]),
        vocabulary=network.head.weight.shape[0],
        parameters=model.num_parameters(),
        in_layers=sum(sizes.values()),
        active=sum(sizes.values()) - experts + experts * min(entry("num_experts_per_tok", 1), number) // number,
        linear=sum(module.weight.numel() for module in linear),
        head=network.head.weight.numel(),
        attention=2 * heads * (entry("qk_head_dim", head_width) + entry("v_head_dim", head_width)) * len(layers),
        cache=network.token_cache_bytes / network.dtype.itemsize * len(layers),
        adapted_widths=adapted_widths,
    )


@dataclass(frozen=True)
class Cost:
    """The cost of some work."""

    operations: int | float  # in products of matrices
    memory: int | float  # bytes needed at the same time
    weights: int | float  # bytes of the weights among these
    batches: int  # each reads the weights once
    shares: int  # the most parts that the work can be split into

    def devices(self, machine: Machine) -> int:
        """The number of devices that hold one copy of the model, its layers divided among them."""
        return math.ceil(self.memory / machine.memory)

    def seconds(self, machine: Machine, dtype: str) -> float | None:
        """Predicted seconds when all copies that fit the machine share the work; None where no copy fits."""
        copies = min(machine.devices // self.devices(machine), self.shares)
        if not copies:
            return None
        reading = self.batches * self.weights / machine.bandwidth if machine.bandwidth else 0.0
        return max(self.operations / machine.throughput[dtype], reading) / copies


def distances_cost(shape: Shape, tokens: int, length: int | float, dtype: str) -> Cost:
    """The cost of all distances on so many tokens, in sequences of this length: one pass, without the head."""
    return sweep_cost(shape, [UNPRUNED], tokens, 0, length, dtype)


def sweep_cost(shape: Shape, cuts: list[Cut], tokens: int, scored: int, length: int | float, dtype: str) -> Cost:
    """The cost of a sweep over the distinct `tokens` of its requests, in sequences of `length` on average. Each pruned
    model computes the logits of `scored` positions."""
    tree, size, logits = Tree(cuts, shape.layers), ITEMSIZE[dtype], scored * len(cuts)
    batches, passes = math.ceil(tokens / BATCH_TOKENS), tree.nodes / shape.layers  # passes of the whole model
    # a token sees half of its sequence on average
    operations = tokens * passes * (2 * shape.active + shape.attention * length / 2) + 2 * logits * shape.head
    weights, cache = shape.parameters * size, length * passes * shape.cache * size
    states = min(BATCH_TOKENS, tokens) * size * (tree.alive * shape.width + 3 * shape.inner)
    memory = weights + states + cache + 4 * min(HEAD_ELEMENTS, logits * shape.vocabulary)
    return Cost(operations, memory, weights, batches, shares=batches)


def writing_cost(shape: Shape, cuts: list[Cut], answers: int, prompts: int, longest: int, dtype: str) -> Cost:
    """The cost of so many written answers of each pruned model, to prompts of so many tokens in all.

    This is the highest cost: every answer has `longest` tokens. Each new token of a batch reads the weights once.
    """
    tokens, length = prompts + answers * longest, prompts / answers + longest
    cost = sweep_cost(shape, cuts, tokens, answers * longest, length, dtype)
    return dataclasses.replace(cost, batches=longest * math.ceil(answers / ROWS))


def healing_cost(shape: Shape, cut: Cut, config: HealingConfig, dtype: str) -> Cost:
    """The cost of a healing after a cut. Raises InputError where no adapter can be added to the model."""
    if config.last_layers:
        return _last_layers_cost(shape, cut, config)
    if shape.adapted_widths is None:
        raise InputError("its layers have no linear modules outside of attention that adapters could be put on")
    size, share, shares = ITEMSIZE[dtype], 1 - cut.size / shape.layers, config.batch_sequences // config.at_once
    forward = share * (2 * shape.active + shape.attention * config.sequence_length / 2)
    passes = 3 if config.gradient_checkpointing else 2
    operations = config.tokens * (passes * forward + 2 * 2 * shape.head)
    weight_size = QUANTIZED_BYTES.get(config.quantization or "", size)
    weights = (shape.parameters - (1 - share) * shape.in_layers) * size - share * shape.linear * (size - weight_size)
    tokens, layers = config.at_once * config.sequence_length, share * shape.layers
    inside = LAYER_TENSORS * tokens * shape.inner * size
    activations = layers * tokens * shape.width * size + inside if config.gradient_checkpointing else layers * inside
    learning = tokens * shape.vocabulary * (size + 4) + ADAPTER_BYTES * config.rank * share * shape.adapted_widths
    return Cost(operations, weights + activations + learning, weights, config.steps * shares, shares)


def _last_layers_cost(shape: Shape, cut: Cut, config: HealingConfig) -> Cost:
    """The cost of training the last layers and the head with all their weights, which is done in float32."""
    share, trained = 1 - cut.size / shape.layers, config.last_layers / shape.layers
    shares = config.batch_sequences // config.at_once
    all_layers = 2 * shape.active + shape.attention * config.sequence_length / 2
    # gradients pass these layers alone, and go to their weights
    operations = config.tokens * ((share + 2 * trained) * all_layers + 3 * 2 * shape.head)
    weights = 4 * (shape.parameters - (1 - share) * shape.in_layers)
    tokens = config.at_once * config.sequence_length
    activations = 4 * tokens * (config.last_layers * LAYER_TENSORS * shape.inner + 2 * shape.vocabulary)
    learning = ADAPTER_BYTES * (trained * shape.in_layers + shape.head)
    return Cost(operations, weights + activations + learning, weights, config.steps * shares, shares)


def duration(seconds: int | float | None) -> str:
    """Seconds in words, to two digits; None is work whose model does not fit the machine."""
    if seconds is None:
        return "too large"
    for unit, length, smallest in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= smallest:
            return f"{seconds / length:,.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
