"""Open a model: a hub id, a local folder, a `.gguf` file, or the embedded default.

The embedded model and the others in `models.packaged` come from the Python package index.
"""

import contextlib
import math
import os
import weakref
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hub_logging

from deeper_layers.checks import shown
from deeper_layers.errors import InputError, first_line, ran_out
from deeper_layers.files import passing_dir
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_shards
from deeper_layers.models.configuration import auto_class, check_model_name, check_whole, read_config
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.devices import choose_device, free_memory
from deeper_layers.models.gguf_conversion import converted_gguf
from deeper_layers.models.half_precision import multiplies_sixteen_bits, widen
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import Source, find_model
from deeper_layers.models.streaming import on_disk
from deeper_layers.models.weight_check import check_folder
from deeper_layers.package_index import cache_folder

OF_MEMORY = 0.7  # of what is free, that weights may take in it


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
    if stream not in (True, False, "auto"):
        raise InputError(f"stream is {shown(stream)}, expected 'auto', True or False")
    if stream is True and quantization is not None:
        raise InputError(f"quantization is {quantization!r} with stream, expected None: layers are read as stored")
    given = isinstance(model, Source)
    source = model if given else find_model(model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    where, number_type = choose_device(device), getattr(torch, source.dtype)
    how: dict = {"quantization_config": _quantization(quantization, number_type), "device_map": where}
    hub_logging.disable_progress_bar()
    folder = checkpoint_folder(source.folder, source.revision)
    if not source.is_gguf:
        check_folder(folder)
    rewritten = contextlib.ExitStack()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        config = read_config(str(folder), None, trust_remote_code)
        opening = auto_class(config)
        numbers = sum(math.prod(tensor.entry["shape"]) for shard in read_shards(folder) for tensor in shard.tensors)
        large = numbers * number_type.itemsize > OF_MEMORY * free_memory(where)
        if stream is True or stream == "auto" and quantization is None and large:
            with torch.device("meta"):
                empty = opening.from_config(config, trust_remote_code=trust_remote_code)
            # of mixtures whose experts are stored one by one transformers writes the layers anew, as it runs them
            anew = rewritten.enter_context(passing_dir(cache_folder() / "offloaded"))
            how |= {"device_map": on_disk(empty, where), "offload_folder": str(anew)}
        network, report = opening.from_pretrained(  # ty: ignore[not-iterable]
            folder,
            output_loading_info=True,
            dtype=number_type,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **how,
        )
    except InputError:
        raise
    except Exception as error:  # what strangers write into a checkpoint fails at any line that reads it
        if ran_out(error):  # the model may be whole
            raise MemoryError(first_line(error)) from error
        raise InputError(
            f"can't open the model {source.name!r} ({first_line(error)}): mend that, or give a whole model with its "
            "tokenizer, as save_pretrained writes them"
        ) from error
    weakref.finalize(network, rewritten.close)
    check_whole(report, source.name)
    decoder_layers(network)  # refuses what can't be pruned, before anything is measured
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack weights of four bits at the first answer, on some processors: their scales are
            # rounded then, and no gradient goes through them any more
            module.support_avx512bf16_for_cpu = False
    if where == "cpu" and not multiplies_sixteen_bits():
        widen(network)
    return network.eval(), tokenizer  # ty: ignore[invalid-explicit-return]


def checkpoint_folder(model: str, revision: str | None = None) -> Path:
    """The folder that holds a model's checkpoint: fetched from the hub, or converted from GGUF, where it must be.

    Raises InputError as `find_model` does, and where the hub does not give the files.
    """
    check_model_name(model, revision)
    path = local_path(model)
    if packaged := PACKAGED.get(model):
        return converted_gguf(packaged.file(), packaged.sha256)
    if is_gguf(path):
        source = find_model(model, revision=revision)
        return converted_gguf(path, source.weights.removeprefix("sha256:"))
    if os.path.isdir(path):
        return path
    try:
        # of the first folder, without the same weights in a form of their own
        kinds = ["*.safetensors", "*.json", "*.txt", "*.model", "*.py", "*.jinja", "LICENSE*"]
        others = ["*/*", "consolidated*"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=kinds, ignore_patterns=others))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(f"can't fetch {model!r} ({first_line(error)}): check the name and the connection") from error


def _quantization(name: str | None, compute: torch.dtype) -> BitsAndBytesConfig | None:
    if name not in (None, "nf4", "int8"):
        raise InputError(f"quantization is {name!r}, expected None, 'nf4' or 'int8'")
    if name == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    return BitsAndBytesConfig(load_in_8bit=True) if name else None
