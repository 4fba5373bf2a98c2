"""What the machine at hand reaches: two layers of a model's own kind, with random weights, timed for a moment."""

import dataclasses
import statistics
import time

import torch

from deeper_layers import models
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.costs import Shape, distances_cost, healing_cost, shape_of
from deeper_layers.healing.adapters import add_adapters
from deeper_layers.models.configuration import auto_class
from deeper_layers.models.devices import choose_device, device_name, free_memory
from deeper_layers.models.half_precision import multiplies_sixteen_bits, widen
from deeper_layers.models.machines import Machine
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers

LAYERS, SEQUENCES, LENGTH, TIMES = 2, 8, 256, 5
WORDS = 512  # of the vocabulary: what the head costs is no part of it
BEGINNING = dataclasses.replace(
    PRESETS["small"], steps=1, warmup_steps=0, batch_sequences=SEQUENCES, at_once=SEQUENCES,
    sequence_length=LENGTH, quantization=None,
)  # fmt: skip


def this_machine(empty, dtype: str, device: str = "auto", *, training: bool = False) -> Machine:
    """The machine at hand, by the operations a second that layers like those of an empty model reach on it.

    Where `training`, there and back with adapters, as in a healing. Raises InputError where such layers don't fit.
    """
    where = choose_device(device)
    memory = free_memory(where)
    few = _few_layers(empty, dtype, where, memory)
    shape = shape_of(few)
    ids = torch.randint(1, WORDS, (SEQUENCES, LENGTH), device=where)
    run = _there_and_back(few, ids) if training else _there(few, ids)
    seconds = _median_seconds(run, where)
    operations = _operations(shape, dtype, training=training)
    return Machine("this", memory, 0.0, {dtype: operations / seconds}, f"tried on {device_name()}")


def _operations(shape: Shape, dtype: str, *, training: bool) -> float:
    if training:
        return healing_cost(shape, UNPRUNED, BEGINNING, dtype).operations
    return distances_cost(shape, SEQUENCES * LENGTH, LENGTH, dtype).operations


def _few_layers(empty, dtype: str, where: str, memory: int):
    """A model of the first layers alone, with random weights and few words."""
    layers = len(models.decoder_layers(empty))
    few = min(LAYERS, layers)
    config = drop_layers(empty, Cut(few, layers - few)).config
    text = models.text_config(config)
    text.vocab_size, text.pad_token_id, text.bos_token_id, text.eos_token_id = WORDS, None, None, None
    of_layers = sum(p.numel() for layer in models.decoder_layers(empty)[:few] for p in layer.parameters())
    needed = of_layers * getattr(torch, dtype).itemsize
    if 2 * needed > memory:
        raise InputError(
            f"machine is 'this', which has {memory / 1e9:,.1f} GB free for layers of {needed / few / 1e9:,.1f} GB, "
            "expected twice what two take: name another machine"
        )
    with torch.random.fork_rng(), torch.device(where):
        torch.manual_seed(0)
        model = auto_class(config).from_config(config, dtype=getattr(torch, dtype))
    if where == "cpu" and not multiplies_sixteen_bits():
        widen(model)
    return model.eval()


def _there(model, ids: torch.Tensor):
    @torch.inference_mode()
    def run():
        model.base_model(input_ids=ids, use_cache=False)

    return run


def _there_and_back(model, ids: torch.Tensor):
    adapted = add_adapters(model, rank=BEGINNING.rank, alpha=BEGINNING.alpha, dropout=BEGINNING.dropout).train()

    def run():
        adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return run


def _median_seconds(run, where: str) -> float:
    seconds = []
    for _ in range(1 + TIMES):
        begin = time.perf_counter()
        run()
        if where.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])  # the first pass of a process is slow
