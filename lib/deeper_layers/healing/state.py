"""The states of models, and of random numbers, that a healing checks, names and leaves as it found them."""

import contextlib
import json
import random
from collections.abc import Iterator

import numpy as np
import torch
import xxhash
from accelerate.utils import align_module_device
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from deeper_layers.errors import InputError, as_input_error
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.measuring import check_predicts
from deeper_layers.models.network import check_length

# entries of a configuration that change no number
UNIMPORTANT = ("_name_or_path", "transformers_version", "use_cache")


def check_model(model: PreTrainedModel, sequences: list[torch.Tensor]) -> None:
    """Raise InputError where the model, or torch, is in a state in which nothing can learn from these sequences."""
    if not torch.is_grad_enabled():
        raise InputError(
            "gradients are switched off (torch.no_grad or inference_mode): heal outside of that"
        )
    layers = num_layers(model)
    if any(
        isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in model.modules()
    ):
        raise InputError(
            f"the model is a {type(model).__name__} with adapters, expected none: heal what merge_adapters makes of it"
        )
    if any(parameter.is_meta or parameter.is_inference() for parameter in model.parameters()):
        raise InputError(
            f"the model of {layers} layers has weights that are on disk, missing, or made in inference_mode; expected "
            "all in memory: open it outside of that, with stream=False"
        )
    check_predicts(model)
    longest = max(sequences, key=len)
    check_length(model, len(longest))
    rows = model.get_input_embeddings().weight.shape[0]
    most = max(int(tokens.max()) for tokens in sequences)
    if most >= rows:
        raise InputError(
            f"the tokenizer gives token {most}, and the model has {rows}: give the model's own tokenizer"
        )
    problem = f"{type(model).__name__} can't run on {len(longest)} tokens of the texts"
    advice = "give a language model in one data type, or a lower sequence_length"
    with as_input_error(problem, advice), torch.no_grad():
        model(
            input_ids=longest[None].long().to(model.device), use_cache=False
        ).logits.float().sum().item()


def hash_model(model: nn.Module) -> str:
    """A hash of a model's configuration and all its weights, those too that accelerate keeps on disk."""
    config = {
        name: value for name, value in model.config.to_dict().items() if name not in UNIMPORTANT
    }
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True, default=str).encode())
    for path, module in model.named_modules():
        children = tuple(f"{name}." for name, _ in module.named_children())
        with align_module_device(module):
            for name, tensor in module.state_dict().items():  # with the scales of quantized weights
                if not children or not name.startswith(children):
                    digest.update(f"{path}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                    digest.update(
                        tensor.detach()
                        .cpu()
                        .contiguous()
                        .reshape(-1)
                        .view(torch.uint8)
                        .numpy()
                        .data
                    )
    return digest.hexdigest()


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Inside, random numbers are drawn from a state that is taken back at the end, of torch, numpy and Python."""
    of_python = random.getstate()
    of_numpy = np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
