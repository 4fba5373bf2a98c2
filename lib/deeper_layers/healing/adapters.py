"""Low-rank adapters on the feed-forward modules of a decoder: where they go, how they are added, saved and merged.

Source: Gromov et al., arXiv 2403.17887, appendix A.1: LoRA on the feed-forward modules only, alpha = rank. The adapters
and their files are peft's. In place of adapters the last layers and the head can be trained with all their weights, as
peft's `modules_to_save` (Lu et al., arXiv 2411.15558).

Who heals a model keeps it as it was: adapters are added to a copy of its modules, whose frozen parameters share memory
with its own.
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
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, as_input_error
from deeper_layers.export.adapter_files import read_adapter, write_identity
from deeper_layers.models.configuration import text_config
from deeper_layers.models.decoder import decoder_layers, layers_path, num_layers
from deeper_layers.models.half_precision import Float32Matmul
from deeper_layers.pruning import drop_layers


def find_ffn_modules(model: nn.Module, first_layer: int = 0) -> list[str]:
    """Full names of the feed-forward modules of the decoder layers from `first_layer` (0-based) on.

    They are the linear modules of a layer outside of its attention and Mamba blocks, except the gates that choose
    experts. In the paper's families these are gate_proj, up_proj and down_proj (Llama, Mistral), fc1 and fc2 (Phi-2),
    w1, w2 and the second c_proj (Qwen). Raises InputError where a layer has none.
    """
    layers = decoder_layers(model)
    full_names = []
    prefix = layers_path(model)
    for number, layer in list(enumerate(layers))[first_layer:]:
        modules = [
            name for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)
        ]
        names = [
            f"{prefix}.{number}.{name}" for name in modules if not _is_outside_ffn(layer, name)
        ]
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
    return bool(
        re.search("attn|attention|mamba", words) or re.search(r"(^|[_.])(gate|router)$", name)
    )


def add_adapters(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: int | float,
    dropout: int | float,
    first_layer: int = 0,
    seed: int = 0,
) -> PeftModel:
    """A copy of the model with new LoRA adapters on its feed-forward modules. Only the adapters' parameters will train.

    Layers below `first_layer` (0-based) get none. `seed` draws the initial values, which leave the model's output
    unchanged. Raises InputError where no layer would get an adapter, or a layer has no feed-forward modules.
    """
    layers = num_layers(model)
    if first_layer >= layers:
        raise InputError(
            f"adapters go on layers from {first_layer} on, and {layers} are left, 0 to {layers - 1}: put them on all "
            "layers, or drop layers below the last ones"
        )
    copied = _copy_frozen(model)
    names = find_ffn_modules(copied, first_layer)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=isinstance(copied.get_submodule(names[0]), Conv1D),
        task_type="CAUSAL_LM",
    )
    return _adapt(copied, config, seed)


def release_last_layers(model: PreTrainedModel, layers: int) -> PeftModel:
    """A copy of the model of which the last `layers` and the head will train, with all their weights.

    It is in float32: in 16 bits most updates of a weight are too small to change it. The head gets weights of its own
    where it shares them with the embedding, which stays as it is. Raises InputError where there are fewer layers.
    """
    if layers > num_layers(model):
        raise InputError(
            f"last_layers is {layers}, and {num_layers(model)} are left: train these, or drop fewer"
        )
    copied = _copy_frozen(model, torch.float32)
    names = [_untie_head(copied)]
    prefix = layers_path(copied)
    for number, layer in list(enumerate(decoder_layers(copied)))[-layers:]:
        names += _list_owners(layer, f"{prefix}.{number}")
    return _adapt(copied, _make_full_config(names), seed=0)


def _make_full_config(names: list[str], **settings) -> LoraConfig:
    """peft's settings for modules that are trained with all their weights, beside no adapters."""
    targets = {"target_modules": DUMMY_TARGET_MODULES, "modules_to_save": names}
    return LoraConfig(**targets, task_type="CAUSAL_LM", **settings)


def _list_owners(module: nn.Module, name: str) -> list[str]:
    """The names of the outermost modules in a module that own parameters."""
    if module._parameters:
        return [name]
    children = module.named_children()
    return list(
        itertools.chain.from_iterable(
            _list_owners(child, f"{name}.{part}") for part, child in children
        )
    )


def _untie_head(copied: PreTrainedModel) -> str:
    """Give the head of a copy parameters that are not the embedding's, with the same values. Returns its name."""
    head = copied.get_output_embeddings()
    head._parameters = dict(head._parameters)  # not the embedding's
    for name, value in head._parameters.items():
        if value is not None:
            head._parameters[name] = _freeze(value)
    for config in (copied.config, text_config(copied.config)):  # often one and the same
        config.tie_word_embeddings = False
    return next(name for name, module in copied.named_modules() if module is head)


def _adapt(copied: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """A copied model with what peft's settings add to it."""
    with _peft_muted():
        torch.manual_seed(seed)
        healed = get_peft_model(copied, config)
    # a pruned model has no name on the hub, and peft would look it up there whenever adapters are saved
    healed.peft_config["default"].base_model_name_or_path = ""
    return healed


def _copy_frozen(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model with modules and frozen parameters of its own. They share memory where the data type stays."""
    copied = drop_layers(model, UNPRUNED)
    _own_parameters(copied, dtype)
    return copied


def _own_parameters(copied: PreTrainedModel, dtype: torch.dtype | None = None) -> None:
    """Give a copy frozen parameters of its own, in a data type. Quantized ones, which no one trains, stay shared."""
    # by the parameter that was shared: those that are tied stay so
    own: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for name, parameter in module._parameters.items():
            is_real = isinstance(parameter, nn.Parameter) and parameter.is_floating_point()
            # bitsandbytes may pack four bits into real numbers
            if is_real and not hasattr(parameter, "quant_state"):
                if id(parameter) not in own:
                    own[id(parameter)] = _freeze(parameter.to(dtype or parameter.dtype))
                module._parameters[name] = own[id(parameter)]


def save_adapters(
    healed: PeftModel, folder: Path, base: dict, cut: Cut, healing: dict | None = None
) -> None:
    """Write the adapters, and beside them their base (the key of a `Source`), their cut, and how they were healed."""
    healed.save_pretrained(folder)
    write_identity(Path(folder), base, cut, healing)


def load_adapters(pruned: PreTrainedModel, folder: Path, base: dict, cut: Cut) -> PeftModel:
    """A copy of a pruned model with the adapters that `save_adapters` wrote for it, in evaluation mode.

    Raises InputError where the folder holds no adapters, damaged ones, or those of another base or cut.
    """
    adapter = read_adapter(folder)
    adapter.check(base, cut)
    ranks = {name: len(a) for name, (a, _) in adapter.factors.items()}
    advice = "give adapters that were trained on this model after this cut"
    problem = f"the adapters in {folder} do not fit the pruned model"
    with as_input_error(problem, advice), _peft_muted():
        copied = _copy_frozen(pruned)
        known = dict(copied.named_modules())
        unknown = sorted({*ranks, *adapter.trained_modules} - known.keys())
        if unknown:
            raise ValueError(f"it has no {unknown[0]}")
        if adapter.trained_modules:
            _untie_head(copied)
            config = _make_full_config(adapter.trained_modules, inference_mode=True)
        else:
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
        return PeftModel.from_pretrained(copied, adapter.folder, config=config).eval()


@contextlib.contextmanager
def _peft_muted() -> Iterator[None]:
    """Hides a deprecation warning that peft causes in transformers, and restores the random state at the end."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def merge_adapters(healed: PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A plain model with the adapters added to its weights: it computes what the healed model does.

    Quantized weights are dequantized first: adapters are trained on rounded weights, and rounding the sum again would
    undo part of them. With weights in int8, bitsandbytes also rounds what enters a layer, and the result does not: its
    numbers are near. The healed model stays unchanged, and so does the model that it shares weights with.

    Args:
        healed: the result of `heal`.
        dtype: data type of the weights; None is that in which the healed model computes.

    Returns:
        A transformers model without adapters: `save_pretrained` writes a checkpoint that any tool opens.

    Raises InputError where the sum of a weight and its adapters is not finite, or the adapters are not in use as `heal`
    left them: they are switched off, merged already, or of another kind.

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
    _check_in_use(healed)
    base = healed.get_base_model()
    dtype = dtype or base.dtype
    merged = drop_layers(base, UNPRUNED)  # new modules that share the weights
    for name, module in list(merged.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # trained with all its weights
            merged.set_submodule(name, module.modules_to_save["default"])
    for name, module in list(merged.named_modules()):
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        is_rounded = isinstance(layer, Float32Matmul) or type(layer).__module__.startswith(
            "bitsandbytes."
        )
        if ".base_layer" in name or layer is module and not is_rounded:
            continue
        # experts are parameters of one module: wrappers around wrappers
        if isinstance(module, ParamWrapper):
            while isinstance(module, ParamWrapper):
                layer._parameters[module.parameter_name] = _merge_weight(
                    module, module.get_param(), name, dtype
                )
                module = module.base_layer
        else:
            layer = _build_linear(
                layer, _merge_weight(module, dequantize_module_weight(layer), name, dtype)
            )
        merged.set_submodule(name, layer)
    _own_parameters(merged, dtype)
    merged.config.dtype = dtype
    for entry in ("peft_config", "hf_quantizer", "quantization_method"):
        vars(merged).pop(entry, None)
    merged.is_quantized = False
    merged._hf_peft_config_loaded = False
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    return merged.eval()


def _check_in_use(healed: PeftModel) -> None:
    """Raise InputError unless a healed model's one set of plain adapters is what it computes with."""
    status = healed.get_model_status()
    config = healed.active_peft_config
    problem = None
    if status.enabled is not True:
        problem = (
            "are switched off, at least in some layers: enable_adapter_layers() switches them on"
        )
    elif status.merged_adapters:
        problem = "are merged into the weights already: unmerge_adapter() takes them out, merge_and_unload() is peft's"
    elif status.active_adapters != ["default"]:
        problem = f"in use are {status.active_adapters}, which heal has not added: merge_and_unload() is peft's"
    elif config.peft_type != "LORA" or config.use_dora or config.lora_bias or config.bias != "none":
        problem = "do more than low-rank updates of weights: merge_and_unload() is peft's"
    if problem:
        raise InputError(f"healed is a {type(healed).__name__} whose adapters {problem}")


def _merge_weight(
    module: nn.Module, weight: torch.Tensor, name: str, dtype: torch.dtype
) -> nn.Parameter:
    """The sum, in float32, of a weight and its module's adapters, then rounded. Raises InputError for an overflow."""
    merged = weight.float()
    if isinstance(module, LoraLayer):
        merged = merged + module.get_delta_weight(module.active_adapters[0]).float()
    merged = merged.to(dtype)
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
