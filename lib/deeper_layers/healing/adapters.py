"""Low-rank adapters on the feed-forward modules of a decoder: where they go, how they are added, saved and merged.

Source: Gromov et al., arXiv 2403.17887, appendix A.1: LoRA on the feed-forward modules only, alpha = rank. The adapters
and their files are peft's.
"""

import contextlib
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.export.adapter_files import read_adapter, write_identity
from deeper_layers.models.decoder import decoder_layers, layers_path, num_layers
from deeper_layers.models.half_precision import Widened
from deeper_layers.pruning import drop_layers


def find_ffn_modules(model: nn.Module, first_layer: int = 0) -> list[str]:
    """Full names of the feed-forward modules of the decoder layers from `first_layer` (0-based) on.

    They are the linear modules of a layer outside of its attention and Mamba blocks, except the gates that choose
    experts. In the paper's families these are gate_proj, up_proj and down_proj (Llama, Mistral), fc1 and fc2 (Phi-2),
    w1, w2 and the second c_proj (Qwen). Raises InputError where a layer has none.
    """
    layers, full_names = decoder_layers(model), []
    prefix = layers_path(model)
    for number, layer in list(enumerate(layers))[first_layer:]:
        modules = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        names = [f"{prefix}.{number}.{name}" for name in modules if not _is_outside_ffn(layer, name)]
        if not names:
            raise InputError(
                f"layer {number} of {type(model).__name__} has no feed-forward modules that an adapter can be put on; "
                "expected linear modules outside of attention: heal a model that has them"
            )
        full_names += names
    return full_names


def _is_outside_ffn(layer: nn.Module, name: str) -> bool:
    """Whether a linear module of a layer belongs to attention or a Mamba block, or chooses among experts."""
    paths = [*itertools.accumulate(name.split("."), "{}.{}".format)]
    words = " ".join(f"{path} {type(layer.get_submodule(path)).__name__}" for path in paths).lower()
    return bool(re.search("attn|attention|mamba", words) or re.search(r"(^|[_.])(gate|router)$", name))


def add_adapters(
    model: PreTrainedModel, *, rank: int, alpha: int | float, dropout: int | float, first_layer: int = 0, seed: int = 0
) -> PeftModel:
    """The model with new LoRA adapters on its feed-forward modules. Only the adapters' parameters will train.

    Layers below `first_layer` (0-based) get none. `seed` draws the initial values, which leave the model's output
    unchanged. Raises InputError where no layer would get an adapter, or a layer has no feed-forward modules.
    """
    if first_layer >= (layers := num_layers(model)):
        raise InputError(
            f"adapters go on layers from {first_layer} on, and {layers} are left, 0 to {layers - 1}: put them on all "
            "layers, or drop layers below the last ones"
        )
    names = find_ffn_modules(model, first_layer)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
        task_type="CAUSAL_LM",
    )
    with _peft_muted():
        torch.manual_seed(seed)
        healed = get_peft_model(model, config)
    # a pruned model has no name on the hub, and peft would look it up there whenever adapters are saved
    healed.peft_config["default"].base_model_name_or_path = ""
    return healed


def save_adapters(healed: PeftModel, folder: Path, base: dict, cut: Cut, healing: dict | None = None) -> None:
    """Write the adapters, and beside them their base (the key of a `Source`), their cut, and how they were healed."""
    healed.save_pretrained(folder)
    write_identity(Path(folder), base, cut, healing)


def load_adapters(pruned: PreTrainedModel, folder: Path, base: dict, cut: Cut) -> PeftModel:
    """A pruned model with the adapters that `save_adapters` wrote for it, in evaluation mode.

    Raises InputError where the folder holds no adapters, damaged ones, or those of another base or cut.
    """
    adapter = read_adapter(folder)
    adapter.check(base, cut)
    ranks = {name: len(a) for name, (a, _) in adapter.factors.items()}
    # only checked settings: peft imports modules that other settings name
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
    advice = "give adapters that were trained on this model after this cut"
    problem = f"the adapters in {folder} do not fit the pruned model"
    with as_input_error(problem, advice), _peft_muted(), _restored_after_errors(pruned):
        if unknown := sorted(ranks.keys() - dict(pruned.named_modules()).keys()):
            raise ValueError(f"it has no {unknown[0]}")
        return PeftModel.from_pretrained(pruned, adapter.folder, config=config).eval()


@contextlib.contextmanager
def _restored_after_errors(model: PreTrainedModel) -> Iterator[None]:
    """After an error inside, the model has its own modules: peft replaces them before it reads any adapter."""
    parts = [(module, name, part) for module in model.modules() for name, part in module.named_children()]
    try:
        yield
    except Exception:
        for module, name, part in parts:
            setattr(module, name, part)
        raise


@contextlib.contextmanager
def _peft_muted() -> Iterator[None]:
    """Hides a deprecation warning that peft causes in transformers, and restores the random state at the end."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def merge_adapters(healed: PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A plain model with the adapters added to its weights: it computes what the healed model does.

    Quantized weights are dequantized first: adapters are trained on rounded weights, and rounding the sum again would
    undo part of them. The healed model stays unchanged, and so does the model that it shares weights with.

    Args:
        healed: the result of `heal`.
        dtype: data type of the weights; None is that in which the healed model computes.

    Returns:
        A transformers model without adapters: `save_pretrained` writes a checkpoint that any tool opens.

    Raises InputError where the sum of a weight and its adapters is not finite.

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
    merged = drop_layers(base, UNPRUNED)  # new modules that share the weights
    for name, module in list(merged.named_modules()):
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        is_rounded = isinstance(layer, Widened) or type(layer).__module__.startswith("bitsandbytes.")
        if ".base_layer" in name or layer is module and not is_rounded:
            continue
        if isinstance(module, ParamWrapper):  # experts are parameters of one module: wrappers around wrappers
            while isinstance(module, ParamWrapper):
                layer._parameters[module.parameter_name] = _merge_weight(module, module.get_param(), name, dtype)
                module = module.base_layer
        else:
            layer = _build_linear(layer, _merge_weight(module, dequantize_module_weight(layer), name, dtype))
        merged.set_submodule(name, layer)
    tied: dict = {}
    for module in merged.modules():  # new parameters where the data type changes; the others stay shared
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != dtype:
                module._parameters[name] = tied.setdefault(id(parameter), _freeze(parameter.to(dtype)))
    merged.config.dtype = dtype
    for entry in ("peft_config", "hf_quantizer", "quantization_method"):
        vars(merged).pop(entry, None)
    merged.is_quantized, merged._hf_peft_config_loaded = False, False
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    return merged.eval()


def _merge_weight(module: nn.Module, weight: torch.Tensor, name: str, dtype: torch.dtype) -> nn.Parameter:
    """The sum, in float32, of a weight and its module's adapters, then rounded. Raises InputError for an overflow."""
    added = module.get_delta_weight(module.active_adapters[0]).float() if isinstance(module, LoraLayer) else 0
    merged = (weight.float() + added).to(dtype)
    if torch.isfinite(weight).all() and not torch.isfinite(merged).all():
        raise InputError(
            f"with its adapters {name} holds numbers that are not finite in {dtype}: merge in a type of a larger "
            "range, or heal anew with a lower learning_rate"
        )
    return _freeze(merged)


def _freeze(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _build_linear(layer: nn.Module, weight: nn.Parameter) -> nn.Module:
    """A linear module with this weight and the layer's bias, of the layer's orientation."""
    if isinstance(layer, Conv1D):
        plain = Conv1D(weight.shape[1], weight.shape[0])
    else:
        plain = nn.Linear(*weight.shape[::-1], bias=layer.bias is not None, device="meta")
    plain.weight = weight
    if layer.bias is not None:
        plain.bias = _freeze(layer.bias.to(weight))
    return plain
