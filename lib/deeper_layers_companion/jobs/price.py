"""The price of a job on any machine: operations, bytes, seconds. Nothing is run.

A multiplication and an addition are two operations, so each weight costs two operations a token. In a sweep a token
passes each node of the tree once. In a healing the weights do not learn, so a backward pass costs as much as a forward
pass, and gradient checkpointing adds a forward pass. Attention costs each token and key in proportion to the width of
the heads. Norms, activation functions, adapters, a head whose logits are not needed, and transfers are left out.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from deeper_layers import data, models
from deeper_layers.checks import short_repr
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, format_bytes
from deeper_layers.models.sources import CONFIG_ONLY, Source
from deeper_layers.presets import HealingConfig
from deeper_layers.sweeping.planning import BATCH_TOKENS, HEAD_ELEMENTS, ROWS
from deeper_layers.sweeping.tree import Tree
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.jobs.subject import Subject

USUAL_ANSWER = 256  # lm-eval's limit of tokens in an answer, for tasks that set none
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# of a weight in bitsandbytes; 64 weights share a float32 scale
QUANTIZED_BYTES = {
    "nf4": 0.5 + 4 / 64,
    "int8": 1.0,
}
ADAPTER_BYTES = (
    16  # of a parameter that learns: itself, its gradient, two averages of AdamW, in float32
)
LAYER_TENSORS = (
    8  # that a layer keeps for the backward pass, of its greatest width; attention keeps no scores
)
# names in configurations
NUMBER_OF_EXPERTS = (
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
)
# share of a data sheet's matrix throughput: 38 to 43% in the training of Llama 3.1 405B (arXiv 2407.21783, table 4)
REACHED = 0.4
# from one launch to the next: a small addition on an A100 (github.com/flagos-ai/Torch-FL, pull request 27)
LAUNCH_SECONDS = 8e-6
PRODUCT_SHARE = (
    0.75  # speed of layers over the speed of one matrix product, measured on two cores in float32
)


@dataclass(frozen=True)
class Machine:
    """One or several equal devices."""

    name: str
    memory: int | float  # bytes, of each device
    bandwidth: float  # bytes read a second; 0: not known
    throughput: dict[str, float]  # operations a second that are reached, by data type
    source: str  # where the numbers are from
    devices: int = 1
    launch_seconds: float = 0.0  # from one operator to the next; 0: part of the throughput


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
        raise InputError(
            f"machine is {short_repr(name)}, expected 'this' or one of {known}, and how many, like h100x8"
        )
    gigabytes, terabytes, half, single, source = DATA_SHEETS[match[1]]
    reached = {dtype: REACHED * half * 1e12 for dtype in ("bfloat16", "float16")} | {
        "float32": REACHED * single * 1e12
    }
    return Machine(
        name,
        gigabytes * 1e9,
        terabytes * 1e12,
        reached,
        source,
        int(match[2] or 1),
        LAUNCH_SECONDS,
    )


@functools.cache
def measure_this_machine(width: int, inner: int, dtype: str, device: str = "auto") -> Machine:
    """This machine, tried with matrix products as wide as a model's: in float32, bfloat16 and `dtype`."""
    import psutil

    from deeper_layers.models.half_precision import measure_product_speed
    from deeper_layers.models.opening import choose_device, device_name, free_memory

    target = choose_device(device)
    dtypes = dict.fromkeys(["float32", "bfloat16", dtype])
    throughput = {
        name: PRODUCT_SHARE * measure_product_speed(name, width, inner, target) for name in dtypes
    }
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
    # sum of both widths of all modules with adapters; None where no adapter can be added
    adapted_widths: int | None
    launches: int | None = None  # of one pass, without the head; None where they are not known


def read_shape(model) -> Shape:
    """The shape of a model of transformers, which may have no weights (`models.load_empty_model`)."""
    import torch
    from torch import nn

    from deeper_layers.healing.adapters import find_ffn_modules
    from deeper_layers.models.configuration import text_config
    from deeper_layers.models.decoder import decoder_layers
    from deeper_layers.models.launches import count_launches
    from deeper_layers.models.network import Network

    launches = None
    if model.device.type == "meta":
        model = model.to(torch.bfloat16)  # some experts run in this format only
        launches = count_launches(model)
    config = text_config(model.config)
    layers = decoder_layers(model)
    network = Network(model)
    entry = lambda name, default=0: getattr(config, name, None) or default  # noqa: E731
    sizes = {name: parameter.numel() for name, parameter in layers.named_parameters()}
    experts = sum(size for name, size in sizes.items() if "experts" in name.split("."))
    number = max(1, *map(entry, NUMBER_OF_EXPERTS))
    heads = entry("num_attention_heads")
    head_width = entry("head_dim", config.hidden_size // max(heads, 1))
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    try:
        adapted_widths = sum(
            sum(model.get_submodule(name).weight.shape) for name in find_ffn_modules(model)
        )
    except InputError:
        adapted_widths = None
    return Shape(
        layers=len(layers),
        width=config.hidden_size,
        inner=max([config.hidden_size, *(module.out_features for module in linear)]),
        vocabulary=network.head.weight.shape[0],
        parameters=model.num_parameters(),
        in_layers=sum(sizes.values()),
        active=sum(sizes.values())
        - experts
        + experts * min(entry("num_experts_per_tok", 1), number) // number,
        linear=sum(module.weight.numel() for module in linear),
        head=network.head.weight.numel(),
        attention=2
        * heads
        * (entry("qk_head_dim", head_width) + entry("v_head_dim", head_width))
        * len(layers),
        cache=network.token_cache_bytes / network.dtype.itemsize * len(layers),
        adapted_widths=adapted_widths,
        launches=launches,
    )


@dataclass(frozen=True)
class Cost:
    """The cost of some work."""

    operations: int | float  # in products of matrices
    memory: int | float  # bytes needed at the same time
    weights: int | float  # bytes of the weights among these
    batches: int  # each reads the weights once
    shares: int  # the most parts that the work can be split into
    launches: int | float | None = None  # of each batch; None where they are not known

    def devices(self, machine: Machine) -> int:
        """The number of devices that hold one copy of the model, its layers divided among them."""
        return max(1, math.ceil(self.memory / machine.memory))

    def parts(self, machine: Machine, dtype: str) -> dict[str, float]:
        """Seconds that one copy would take for its products, for reading weights, and for launches, where known."""
        reading = self.batches * self.weights / machine.bandwidth if machine.bandwidth else 0.0
        return {
            "compute": self.operations / machine.throughput[dtype],
            "memory": reading,
            "launches": self.batches * (self.launches or 0) * machine.launch_seconds,
        }

    def bound(self, machine: Machine, dtype: str) -> str:
        """Which of the parts takes longest, so that the others are done meanwhile."""
        parts = self.parts(machine, dtype)
        return max(parts, key=parts.__getitem__)

    def seconds(self, machine: Machine, dtype: str) -> float | None:
        """Predicted seconds when all copies that fit the machine share the work; None where no copy fits."""
        copies = min(machine.devices // self.devices(machine), self.shares)
        if not copies:
            return None
        return max(self.parts(machine, dtype).values()) / copies


def smallest_batch(shape: Shape, machine: Machine, dtype: str) -> int | None:
    """The tokens of a batch from which on its products take longer than its launches, or None."""
    if shape.launches is None:
        return None
    launching = shape.launches * machine.launch_seconds
    return math.ceil(launching * machine.throughput[dtype] / (2 * shape.active))


def distances_cost(shape: Shape, tokens: int, length: int | float, dtype: str) -> Cost:
    """The cost of all distances on so many tokens, in sequences of this length: one pass, without the head."""
    return sweep_cost(shape, [UNPRUNED], tokens, 0, length, dtype)


def sweep_cost(
    shape: Shape, cuts: list[Cut], tokens: int, scored: int, length: int | float, dtype: str
) -> Cost:
    """The cost of a sweep over the distinct `tokens` of its requests, in sequences of `length` on average. Each pruned
    model computes the logits of `scored` positions."""
    tree = Tree(cuts, shape.layers)
    size = ITEMSIZE[dtype]
    logits = scored * len(cuts)
    # passes of the whole model
    batches, passes = (
        math.ceil(tokens / BATCH_TOKENS),
        tree.nodes / shape.layers,
    )
    # a token sees half of its sequence on average
    operations = (
        tokens * passes * (2 * shape.active + shape.attention * length / 2)
        + 2 * logits * shape.head
    )
    weights = shape.parameters * size
    cache = length * passes * shape.cache * size
    states = min(BATCH_TOKENS, tokens) * size * (tree.alive * shape.width + 3 * shape.inner)
    memory = weights + states + cache + 4 * min(HEAD_ELEMENTS, logits * shape.vocabulary)
    launches = None if shape.launches is None else passes * shape.launches
    return Cost(operations, memory, weights, batches, batches, launches)


def writing_cost(
    shape: Shape, cuts: list[Cut], answers: int, prompts: int, longest: int, dtype: str
) -> Cost:
    """The cost of so many written answers of each pruned model, to prompts of so many tokens in all.

    This is the highest cost: every answer has `longest` tokens. Each new token of a batch reads the weights once.
    """
    tokens = prompts + answers * longest
    length = prompts / answers + longest
    cost = sweep_cost(shape, cuts, tokens, answers * longest, length, dtype)
    return dataclasses.replace(cost, batches=longest * math.ceil(answers / ROWS))


def healing_cost(shape: Shape, cut: Cut, config: HealingConfig, dtype: str) -> Cost:
    """The cost of a healing after a cut. Raises InputError where no adapter can be added to the model."""
    if config.last_layers:
        return _last_layers_cost(shape, cut, config)
    if shape.adapted_widths is None:
        raise InputError(
            "its layers have no linear modules outside of attention that adapters could be put on"
        )
    size = ITEMSIZE[dtype]
    share = 1 - cut.size / shape.layers
    shares = config.batch_sequences // config.at_once
    forward = share * (2 * shape.active + shape.attention * config.sequence_length / 2)
    passes = 3 if config.gradient_checkpointing else 2
    operations = config.tokens * (passes * forward + 2 * 2 * shape.head)
    weight_size = QUANTIZED_BYTES.get(config.quantization or "", size)
    weights = (shape.parameters - (1 - share) * shape.in_layers) * size - share * shape.linear * (
        size - weight_size
    )
    tokens = config.at_once * config.sequence_length
    layers = share * shape.layers
    inside = LAYER_TENSORS * tokens * shape.inner * size
    activations = (
        layers * tokens * shape.width * size + inside
        if config.gradient_checkpointing
        else layers * inside
    )
    learning = (
        tokens * shape.vocabulary * (size + 4)
        + ADAPTER_BYTES * config.rank * share * shape.adapted_widths
    )
    # a backward pass has about as many as a forward pass
    launches = None if shape.launches is None else passes * share * shape.launches
    memory = weights + activations + learning
    return Cost(operations, memory, weights, config.steps * shares, shares, launches)


def _last_layers_cost(shape: Shape, cut: Cut, config: HealingConfig) -> Cost:
    """The cost of training the last layers and the head with all their weights, which is done in float32."""
    share = 1 - cut.size / shape.layers
    trained = config.last_layers / shape.layers
    shares = config.batch_sequences // config.at_once
    all_layers = 2 * shape.active + shape.attention * config.sequence_length / 2
    # gradients pass these layers alone, and go to their weights
    operations = config.tokens * ((share + 2 * trained) * all_layers + 3 * 2 * shape.head)
    weights = 4 * (shape.parameters - (1 - share) * shape.in_layers)
    tokens = config.at_once * config.sequence_length
    activations = (
        4 * tokens * (config.last_layers * LAYER_TENSORS * shape.inner + 2 * shape.vocabulary)
    )
    learning = ADAPTER_BYTES * (trained * shape.in_layers + shape.head)
    launches = None if shape.launches is None else (share + trained) * shape.launches
    memory = weights + activations + learning
    return Cost(operations, memory, weights, config.steps * shares, shares, launches)


# ---- of a job ----------------------------------------------------------------------------------------------------


def price_job(job: Job, subject: Subject) -> Iterator[tuple[str, Cost | str]]:
    """Yield what is done for a job, and its cost, or why the cost is not known."""
    shape = find_shape(subject)
    key = job.key
    dtype = subject.source.dtype
    if job.kind in ("distances", "geometry"):
        sequences = key["samples"]
        tokens = count_calibration_tokens(key, subject)
        # a sequence that is run without each layer passes half of the layers again
        if job.kind == "geometry":
            tokens += tokens * key["skip_sequences"] * (shape.layers + 1) // (2 * sequences)
        yield job.kind, distances_cost(shape, tokens, tokens / sequences, dtype)
        return
    if job.form in ("healing", "file"):
        config = HealingConfig(**key["healing"])
        yield (
            f"healing, {config.tokens:,} tokens",
            healing_cost(shape, max(job.cuts, key=_size), config, dtype),
        )
    for task, settings in key.get("tasks", {}).items():
        yield from price_task(task, settings, job.cuts, subject)


def price_task(
    task: str, settings: dict, cuts: list[Cut], subject: Subject
) -> Iterator[tuple[str, Cost | str]]:
    """Yield the work for a task or text under some cuts, and its cost, or why it is not known."""
    shape = find_shape(subject)
    dtype = subject.source.dtype
    models_swept = f"{len(cuts)} models"
    if "length" in settings:
        length = settings["length"] or USUAL_ANSWER
        tokens = settings["limit"] * length
        yield f"loss on {task}", sweep_cost(shape, cuts, tokens, tokens, length, dtype)
        return
    counts = count_requests(task, settings, subject)
    if counts["unknown"]:
        yield task, counts["unknown"]
    if counts["requests"]:
        cost = sweep_cost(
            shape, cuts, counts["tokens"], counts["requests"], counts["length"], dtype
        )
        yield f"sweep of {task}, {models_swept}", cost
    if counts["generated"]:
        cost = writing_cost(
            shape, cuts, counts["generated"], counts["prompts"], counts["longest"], dtype
        )
        yield f"answers of {task}, {models_swept}, each of at most {counts['longest']} tokens", cost


def _size(cut: Cut) -> int:
    return cut.size


def count_calibration_tokens(settings: dict, subject: Subject) -> int:
    """The tokens of the sequences of the distances, for the settings of a key; where their text is not at hand, or of
    the model there is a configuration alone, as many as there would be if every sequence were full."""
    sequences = settings["samples"]
    length = settings["sequence_length"]
    datasets = subject.options.datasets
    if subject.source.weights != CONFIG_ONLY and data.is_available_offline(
        settings["corpus"], datasets
    ):
        where = subject.source, subject.options.trust_remote_code
        with contextlib.suppress(InputError):  # the tokenizer is not on this machine yet
            return _count_drawn_tokens(
                settings["corpus"], sequences, length, settings["seed"], datasets, *where
            )
    return sequences * length


@functools.lru_cache
def _count_drawn_tokens(
    corpus: str,
    samples: int,
    length: int,
    seed: int,
    datasets: str | None,
    source: Source,
    trust_remote_code: bool,
) -> int:
    tokenizer = _load_tokenizer(source, trust_remote_code)
    documents = data.texts(corpus, datasets=datasets)
    batches = data.text_batches(tokenizer, documents, samples=samples, length=length, seed=seed)
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


REQUEST_COUNTS = (
    "items",
    "requests",
    "generated",
    "longest",
    "prompts",
    "tokens",
    "length",
    "unknown",
)


def count_requests(task: str, settings: dict, subject: Subject) -> dict:
    """Counts of lm-eval's requests for a task, tokenized; or only "unknown", the reason why there are no counts."""
    where = subject.source, subject.options.datasets, subject.options.trust_remote_code
    counts = _load_and_count(task, settings["shots"], settings["limit"], *where)
    return dict.fromkeys(REQUEST_COUNTS) | counts


@functools.lru_cache
def _load_and_count(
    task: str,
    shots: int | None,
    limit: int | None,
    source: Source,
    datasets: str | None,
    trust_remote_code: bool,
) -> dict:
    if not data.is_available_offline(task, datasets):
        return {
            "unknown": "its items are on the hub: name a mirror with --datasets to have them counted"
        }
    from deeper_layers.sweeping import harness  # slow to import
    from deeper_layers.sweeping.planning import count_tokens, plan_batches

    try:
        loaded = harness.load_tasks([task], num_fewshot=shots, datasets=datasets)
        # a configuration alone has no tokenizer: use that of the embedded model
        counted = models.find_model(hashed=False) if source.weights == CONFIG_ONLY else source
        tokenizer = _load_tokenizer(counted, trust_remote_code)
        gathered = harness.collect_requests(
            loaded, _build_empty(counted, trust_remote_code), tokenizer, limit=limit
        )
    except InputError as error:
        return {"unknown": str(error)}
    generations = [instance.args for instance in gathered.generations]
    batches = plan_batches(gathered.requests)
    sequences = itertools.chain.from_iterable(batch.sequences for batch in batches)
    lengths = [len(sequence.tokens) for sequence in sequences]
    instances = gathered.instances + gathered.generations
    return {
        "items": len({(instance.task_name, instance.doc_id) for instance in instances}),
        "requests": len(gathered.requests.pairs),
        "generated": len(generations),
        "longest": max(
            (kwargs.get("max_gen_toks", USUAL_ANSWER) for _, kwargs in generations), default=None
        ),
        "prompts": sum(len(tokenizer.encode(prompt)) for prompt, _ in generations),  # tokens
        "tokens": count_tokens(batches),
        "length": round(statistics.mean(lengths), 1) if lengths else None,
    }


@functools.lru_cache(maxsize=2)
def _build_empty(source: Source, trust_remote_code: bool):
    return models.load_empty_model(source, trust_remote_code=trust_remote_code)


@functools.lru_cache(maxsize=2)
def _load_tokenizer(source: Source, trust_remote_code: bool):
    return models.load_tokenizer(source, trust_remote_code=trust_remote_code)


def find_shape(subject: Subject) -> Shape:
    """The shape of a subject's model."""
    return _read_shape_once(subject.source, subject.options.trust_remote_code)


@functools.lru_cache(maxsize=2)
def _read_shape_once(source: Source, trust_remote_code: bool) -> Shape:
    return read_shape(_build_empty(source, trust_remote_code))


def measure_caches(subject: Subject, tokens: int, sequences: int) -> list[float]:
    """Bytes that each layer of a subject's model keeps of so many tokens in each of so many sequences."""
    import torch

    from deeper_layers.models.network import Network

    empty = _build_empty(subject.source, subject.options.trust_remote_code)
    network = Network(empty.to(torch.bfloat16))  # some experts run in this format only
    in_dtype = ITEMSIZE[subject.source.dtype] / ITEMSIZE["bfloat16"]
    return [kept * in_dtype for kept in network.measure_caches(tokens, sequences)]


def describe_healing(job: Job, subject: Subject) -> str:
    """Time on this machine and memory of a healing in words; "" where they can not be known."""
    try:
        ((_, cost),) = price_job(job, subject)
    except InputError:  # of a model that adapters do not fit, which the healing itself says better
        return ""
    if isinstance(cost, str):
        return ""
    # whole layers are trained in float32, whatever the model was opened in
    dtype = "float32" if job.key["healing"].get("last_layers") else job.key["dtype"]
    seconds = cost.seconds(time_this_machine(subject), dtype)
    return f"about {duration(seconds)}, {format_bytes(int(cost.memory))}"


def time_this_machine(subject: Subject) -> Machine:
    """This machine, tried with matrix products as wide as those of a subject's model."""
    shape = find_shape(subject)
    return measure_this_machine(
        shape.width, shape.inner, subject.source.dtype, subject.options.device
    )


def duration(seconds: int | float | None) -> str:
    """Seconds in words, to two digits; None is work whose model does not fit the machine."""
    if seconds is None:
        return "too large"
    for unit, length, smallest in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= smallest:
            return f"{seconds / length:,.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
