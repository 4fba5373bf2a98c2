"""Tiny random decoder models of the families that the project is tested on."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "phi": (PhiConfig, PhiForCausalLM),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM),
}
FAMILIES = list(CLASSES)

VOCABULARY = 128
SLIDING_WINDOW = 8


def tiny_model(family: str, *, layers: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model of a family (one of FAMILIES), in evaluation mode, the same for the same seed.

    It has 128 tokens, and sliding windows of 8 tokens where its family has any. Its weights are large and
    none is constant, so that a wrong mask, rotary table or norm shows in the logits.
    """
    config_class, model_class = CLASSES[family]
    config = config_class(**_settings(family, layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # gains of norms and biases, which start as constants
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.to(dtype).eval()


def _settings(family: str, layers: int) -> dict:
    settings = {
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family not in ("phi", "gpt_neox"):
        settings["num_key_value_heads"] = 2
    if family in ("qwen3", "gemma2", "gemma3"):
        settings["head_dim"] = 12
    if family in ("mistral", "gemma2", "gemma3"):
        settings["sliding_window"] = SLIDING_WINDOW
    if family == "qwen2":
        settings |= {
            "use_sliding_window": True,
            "sliding_window": SLIDING_WINDOW,
            "max_window_layers": layers // 2,
        }
    if family == "gemma3":
        # not periodic: what is left after a cut is not the pattern of a shallower model
        kinds = ["full_attention" if index % 5 in (1, 4) else "sliding_attention" for index in range(layers)]
        settings["layer_types"] = kinds
    return settings


def write_gguf(model: PreTrainedModel, tokenizer, path: Path) -> Path:
    """A Llama with a byte-level tokenizer as a GGUF file in float32, as llama.cpp's converter would write it."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(tokens["vocab"], key=tokens["vocab"].get))
    writer.add_token_types([3 if i in tokenizer.all_special_ids else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokens["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, number in heads.items():
            if name.endswith(part):  # llama.cpp rotates neighbours, transformers the two halves of a head
                values = values.reshape(number, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
