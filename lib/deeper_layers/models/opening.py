"""Open a model, or only its shape or its tokenizer, and choose where it runs."""

import contextlib
import math
import os
import platform
import weakref
from pathlib import Path

import psutil
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hub_logging

from deeper_layers.checks import check_text, short_repr
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.files import temporary_dir
from deeper_layers.models.checkpoint_files import list_tensors
from deeper_layers.models.configuration import (
    build_empty_model,
    check_docstrings,
    check_loading_report,
    choose_auto_class,
    read_config,
)
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.half_precision import multiplies_sixteen_bits, widen
from deeper_layers.models.network import build_device_map
from deeper_layers.models.origins import find_origin
from deeper_layers.models.sources import CONFIG_ONLY, Source, checkpoint_folder, find_model
from deeper_layers.package_index import cache_folder

ADVICE = "fix this, or give a whole model with its tokenizer, as save_pretrained writes them"
QUANTIZED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
MEMORY_SHARE = 0.7  # of the free memory, which weights may take


def load_model(
    model: str | Source = "embedded",
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
    stream: bool | str = "auto",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a decoder-only language model for measuring.

    Args:
        model: "embedded" or another packaged model (Gemma-3-270m, Qwen2.5-Coder-1.5B-Instruct), a hub id, a folder
            saved by `save_pretrained`, or a `.gguf` file (dequantized); or what `find_model` returned for one.
        revision: hub branch, tag or commit; for a `.gguf` file its expected SHA-256.
        dtype: "auto" (the checkpoint's own; float32 for GGUF and the packaged models), "float32", "bfloat16" or
            "float16".
        device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1", "mps".
        quantization: None, "nf4" or "int8" (bitsandbytes).
        trust_remote_code: run code that comes with the checkpoint; never unless you ask for it.
        stream: leave the layers on disk, and read each when its turn comes: "auto" (where the weights would take more
            than 0.7 of the free memory), True or False. A model on disk is measured, and not healed.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        InputError: the name is neither a file, a folder nor a reachable hub id; the checkpoint is damaged, pickled,
            incomplete or an encoder-decoder model; an unknown dtype, device or quantization.

    Example:
        >>> from deeper_layers import load_model
        >>> model, tokenizer = load_model("embedded")
        >>> model.config.num_hidden_layers, model.dtype
        (30, torch.float32)
    """
    _check_options(quantization, stream)
    trust: dict = {"trust_remote_code": trust_remote_code}
    if isinstance(model, Source):
        source = model
    else:
        source = find_model(model, revision=revision, dtype=dtype, **trust)
    place = choose_device(device)
    number_type = getattr(torch, source.dtype)
    options: dict = {"device_map": place, **trust}
    if quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            **QUANTIZED[quantization], bnb_4bit_compute_dtype=number_type
        )
    hub_logging.disable_progress_bar()
    folder = checkpoint_folder(source.folder, source.revision)
    parameters = sum(math.prod(tensor.shape) for tensor in list_tensors(folder))
    is_large = parameters * number_type.itemsize > MEMORY_SHARE * free_memory(place)
    if stream == "auto":
        stream = quantization is None and is_large
    config = read_config(folder, **trust)
    with (
        contextlib.ExitStack() as stack,
        as_input_error(f"can't open the model {source.name!r}", ADVICE),
    ):
        if stream:
            empty = build_empty_model(config, folder, **trust)
            options["device_map"] = build_device_map(empty, place)
            # where experts are stored one by one, transformers writes the layers again, in the form that it runs
            offload_folder = stack.enter_context(temporary_dir(cache_folder() / "offloaded"))
            options["offload_folder"] = str(offload_folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        network, report = choose_auto_class(config).from_pretrained(
            folder, output_loading_info=True, dtype=number_type, use_safetensors=True, **options
        )
        weakref.finalize(network, stack.pop_all().close)
    check_loading_report(report, source.name)
    decoder_layers(network)  # refuses what can't be pruned, before anything is measured
    _choose_products(network, place)
    return network.eval(), tokenizer  # ty: ignore[invalid-explicit-return]


def _choose_products(network, place: str) -> None:
    """Have a model multiply its matrices in the way that suits them on this device."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # on some processors bitsandbytes would repack 4-bit weights in the first forward pass: that rounds their
            # scales, and no gradient goes through them any more
            module.support_avx512bf16_for_cpu = False
    if place == "cpu" and not multiplies_sixteen_bits():
        widen(network)


def _check_options(quantization: str | None, stream: bool | str) -> None:
    """Raise InputError for what no model is opened with."""
    check_docstrings()
    if stream not in (True, False, "auto"):
        raise InputError(f"stream is {short_repr(stream)}, expected 'auto', True or False")
    if quantization not in (None, *QUANTIZED) or stream is True and quantization is not None:
        addition = " with stream, where layers are read as stored" * (stream is True)
        raise InputError(
            f"quantization is {quantization!r}{addition}, expected None, 'nf4' or 'int8'"
        )


def load_empty_model(source: Source, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of the same shape without weights, on the device "meta"."""
    config = _open_without_weights(AutoConfig, source, trust_remote_code)
    return build_empty_model(config, source.folder, trust_remote_code=trust_remote_code)


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, without the model."""
    return _open_without_weights(AutoTokenizer, source, trust_remote_code)


def _open_without_weights(auto_class, source: Source, trust_remote_code: bool):
    """Open the configuration or the tokenizer of a model, without fetching or converting weights."""
    folder = source.folder
    with as_input_error(f"can't open the model {source.name!r}", ADVICE):
        if source.weights != CONFIG_ONLY:
            folder = find_origin(source.folder, source.revision).metadata(source.weights)
        return auto_class.from_pretrained(folder, trust_remote_code=trust_remote_code)


def choose_device(name: str) -> str:
    """The device for a model: an accelerator for "auto" where there is one, else the named one, which has to exist."""
    if name == "auto":
        if torch.cuda.is_available():
            # of several processes started together (torchrun), each has its own
            if "LOCAL_RANK" in os.environ:
                return f"cuda:{os.environ['LOCAL_RANK']}"
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    with as_input_error(f"device is {name!r:.60}", "use 'auto', 'cpu' or an existing one"):
        torch.empty(1, device=check_text("device", name)).item()  # "meta" holds no numbers
    return name


def device_name() -> str:
    """The name of the accelerator, or else the processor, its instructions and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    # how 16-bit numbers are rounded on the way depends on what the processor can do
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{platform.machine()} processor ({capability}), {threads} thread{'s' if threads > 1 else ''}"


def free_memory(device: str) -> int:
    """Free bytes on a device; in a container at most what its limit leaves."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError):  # no Linux
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, kind, path = line.split(":", 2)
            if number == "0":
                root = ""
                limit = "memory.max"
            else:
                root = kind
                limit = "memory.limit_in_bytes"
            for group in (path, ""):  # a container sees its own group as the root
                with contextlib.suppress(OSError, ValueError):  # none is there, or it says "max"
                    free = min(
                        free, int(Path(f"/sys/fs/cgroup/{root}/{group}/{limit}").read_text())
                    )
    return free
