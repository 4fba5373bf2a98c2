"""Low-rank adapters on the feed-forward modules of a decoder: found, added, saved, opened and merged.

Source: Gromov et al., arXiv 2403.17887, appendix A.1: LoRA on the feed-forward modules only, alpha = rank. The adapters
are peft's, and so are their files.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, first_line
from deeper_layers.export.adapter_files import WEIGHTS, read_adapter, write_identity
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.models.half_precision import Widened
from deeper_layers.pruning import drop_layers


def ffn_modules(model: nn.Module, first_layer: int = 0) -> list[str]:
    """Full names of the feed-forward modules of the decoder layers from `first_layer` (0-based) on.

    They are found by structure: the linear modules of a layer that are neither part of its attention or of a Mamba,
    nor a gate of its experts. In the families of the paper these are gate_proj, up_proj and down_proj (Llama,
    Mistral), fc1 and fc2 (Phi-2), w1, w2 and c_proj (first-generation Qwen, whose attention has a c_proj too,
    which is not among them).

    Raises:
        InputError: a layer has none.
    """
    layers = decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    found = []
    for number in range(first_layer, len(layers)):
        names = [
            f"{prefix}.{number}.{name}"
            for name, module in layers[number].named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not _is_something_else(layers[number], name)
        ]
        if not names:
            inside = ", ".join(sorted({type(module).__name__ for module in layers[number].modules()}))
            raise InputError(
                f"layer {number} of {type(model).__name__} has no feed-forward modules that an adapter can be put on "
                f"(it holds {inside}); expected linear modules outside of attention: heal a model that has them"
            )
        found += names
    return found


def _is_something_else(layer: nn.Module, name: str) -> bool:
    """Whether a linear module of a layer belongs to attention or a Mamba, or chooses among experts."""
    parts = name.split(".")
    path = [".".join(parts[: i + 1]) for i in range(len(parts))]
    words = " ".join(f"{part} {type(layer.get_submodule(part)).__name__}" for part in path).lower()
    is_gate = re.search(r"(^|_)(gate|router)$", parts[-1]) is not None
    return is_gate or any(kind in words for kind in ("attn", "attention", "mamba"))


def add_adapters(
    model: PreTrainedModel, *, rank: int, alpha: int | float, dropout: int | float, first_layer: int = 0, seed: int = 0
) -> PeftModel:
    """The model with new LoRA adapters on its feed-forward modules, the only parameters that will train.

    Args:
        rank: of the update of each weight.
        alpha: the update is scaled by alpha / rank.
        dropout: share of the inputs to an adapter that is dropped in training.
        first_layer: the layers below it (0-based) get none.
        seed: of the first values; another draws other ones, and the model computes the same until it is trained.

    Raises:
        InputError: no layer is left that would get one, or a layer has no feed-forward modules.
    """
    if first_layer >= (layers := num_layers(model)):
        raise InputError(
            f"adapters go on layers from {first_layer} on, and {layers} are left, 0 to {layers - 1}: put them on all "
            "layers, or drop layers below the last ones"
        )
    names = ffn_modules(model, first_layer)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
        task_type="CAUSAL_LM",
    )
    with _quietly():
        torch.manual_seed(seed)
        healed = get_peft_model(model, config)
    # a pruned model has no name, and peft would ask the hub for it whenever adapters are saved
    healed.peft_config["default"].base_model_name_or_path = ""
    return healed


def save_adapters(healed: PeftModel, folder: Path, base: dict, cut: Cut, healing: dict | None = None) -> None:
    """Write the adapters, of which base and cut they are, and how they were healed; `base` is the key of a `Source`."""
    healed.save_pretrained(folder)
    write_identity(Path(folder), base, cut, healing)


def load_adapters(pruned: PreTrainedModel, folder: Path, base: dict, cut: Cut) -> PeftModel:
    """A pruned model with the adapters that `save_adapters` wrote for it, ready to answer.

    Raises:
        InputError: the folder holds none, or those of another base or another cut; or they are damaged: not for all
            of their modules, of other shapes, not finite.
    """
    adapter = read_adapter(folder)
    adapter.check(base, cut)
    modules = {name: module for name, module in pruned.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    ranks = {name: shapes["A"][0] for name, shapes in adapter.shapes.items()}
    # nothing of the file but what was checked: peft would import what some settings name
    config = LoraConfig(
        r=max(ranks.values()),
        rank_pattern=ranks,
        lora_alpha=adapter.settings["lora_alpha"],
        use_rslora=bool(adapter.settings.get("use_rslora")),
        fan_in_fan_out=bool(adapter.settings.get("fan_in_fan_out")),
        target_modules=list(ranks),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    try:
        if odd := sorted(ranks.keys() - modules.keys()):
            raise ValueError(f"it has no {odd[0]}")
        with _quietly():
            healed = get_peft_model(pruned, config)
            set_peft_model_state_dict(healed, load_file(adapter.folder / WEIGHTS))
    except (ValueError, RuntimeError) as error:  # of other modules, or other shapes
        raise InputError(
            f"the adapters in {folder} do not fit the pruned model ({first_line(error)}): give adapters that were "
            "trained on this model after this cut"
        ) from error
    return healed.eval()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """While it lasts, nothing is said of a name that peft asks transformers for, and no draw changes later ones."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def merge_adapters(healed: PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A plain model that computes what the healed one does, its adapters added to its weights.

    What is quantized becomes plain first: adapters are trained on the rounded weights, and rounding their sum
    again would undo part of them. The healed model stays as it was, as does the model that it shares weights
    with.

    Args:
        healed: what `heal` gave.
        dtype: of the weights; None is the one in which the healed model computes.

    Returns:
        A transformers model without adapters: `save_pretrained` writes a checkpoint that any tool opens.

    Raises:
        InputError: a weight with its adapters added is not finite.

    Example:
        >>> from deeper_layers import merge_adapters
        >>> merged = merge_adapters(healed)  # of the example of `heal`
        >>> type(merged).__name__
        'LlamaForCausalLM'
    """
    if not isinstance(healed, PeftModel):
        raise InputError(
            f"healed is a {type(healed).__name__}, expected a model with adapters: give what heal returned"
        )
    base = healed.get_base_model()
    dtype = dtype or base.dtype
    merged = drop_layers(base, UNPRUNED)  # modules of its own over the same weights
    for name, module in list(merged.named_modules()):
        if ".base_layer" in name:
            continue
        if isinstance(module, ParamWrapper):
            merged.set_submodule(name, _merged_experts(module, name, dtype))
        elif isinstance(module, LoraLayer):
            merged.set_submodule(name, _plain(module.get_base_layer(), _merged_weight(module, name, dtype)))
        elif isinstance(module, Widened) or type(module).__module__.startswith("bitsandbytes."):
            merged.set_submodule(name, _plain(module, dequantize_module_weight(module).detach().float().to(dtype)))
    tied: dict = {}
    for module in merged.modules():  # parameters of its own where the type changes: the others are shared
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != dtype:
                plain = tied.setdefault(id(parameter), nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
                module._parameters[name] = plain
    merged.config.dtype = dtype
    for entry in ("peft_config", "hf_quantizer", "quantization_method"):
        vars(merged).pop(entry, None)
    merged.is_quantized, merged._hf_peft_config_loaded = False, False
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    return merged.eval()


def _merged_experts(module: ParamWrapper, name: str, dtype: torch.dtype) -> nn.Module:
    """Experts whose weights are parameters of one module: peft puts a wrapper around it for each of them."""
    experts, wrapper = module.get_base_layer(), module
    while isinstance(wrapper, ParamWrapper):
        merged = _sum(wrapper, wrapper.get_param().detach().float(), name, dtype)
        experts._parameters[wrapper.parameter_name] = nn.Parameter(merged, requires_grad=False)
        wrapper = wrapper.base_layer
    return experts


def _merged_weight(module: LoraLayer, name: str, dtype: torch.dtype) -> torch.Tensor:
    """The weight with its adapters added."""
    return _sum(module, dequantize_module_weight(module.get_base_layer()).detach().float(), name, dtype)


def _sum(module: LoraLayer, weight: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
    """A weight in float32 with what its adapters add, then rounded. Raises InputError where it overflows."""
    merged = (weight + module.get_delta_weight(module.active_adapters[0]).float()).to(dtype)
    if torch.isfinite(weight).all() and not torch.isfinite(merged).all():
        raise InputError(
            f"with its adapters {name} holds numbers that are not finite in {dtype}: merge in a type of a larger "
            "range, or heal anew with a lower learning_rate"
        )
    return merged


def _plain(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    """A linear module with this weight, of the orientation that the layer's own has."""
    if isinstance(layer, Conv1D):
        plain = Conv1D(weight.shape[1], weight.shape[0])
    else:
        plain = nn.Linear(*weight.shape[::-1], bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().to(weight), requires_grad=False)
    return plain
