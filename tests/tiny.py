"""Tiny random decoder models of many families: the settings that all have, and what each needs besides."""

import functools
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 128
SLIDING_WINDOW = 8
WINDOW = {"sliding_window": SLIDING_WINDOW}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
RECURRENT = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_ssm": 48, "mamba_chunk_size": 8, "mamba_n_groups": 1}


def kinds(near: str, far: str = "full_attention"):
    """Settings from the number of layers: no period, so what a cut leaves is not the pattern of a shallower model."""
    return lambda layers: [far if index % 5 in (1, 4) else near for index in range(layers)]


LINEAR: dict = {
    "head_dim": 12, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 12,
    "linear_value_head_dim": 12, "layer_types": kinds("linear_attention"),
}  # fmt: skip
# Settings by family; a function is given the number of layers. The first eight are tested all over the suite.
SETTINGS: dict[str, dict] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": lambda layers: layers // 2},
    "qwen3": {"head_dim": 12},
    "gemma2": {**WINDOW, "head_dim": 12},
    "gemma3": {**WINDOW, "head_dim": 12, "layer_types": kinds("sliding_attention")},
    "phi": {},
    "gpt_neox": {},
    "gemma": {"head_dim": 12},
    "gpt2": {},
    "gpt_neo": {"window_size": SLIDING_WINDOW, "attention_types": lambda layers: [[["global", "local"], layers // 2]]},
    "gptj": {"rotary_dim": 8},
    "gpt_bigcode": {},
    "opt": {"word_embed_proj_dim": 48, "ffn_dim": 64},
    "falcon": {},
    "bloom": {},
    "mpt": {"max_seq_len": 128},
    "olmo2": {},
    "olmo3": {**WINDOW, "layer_types": kinds("sliding_attention")},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    "stablelm": {"partial_rotary_factor": 0.5},
    "starcoder2": WINDOW,
    "cohere": {"logit_scale": 0.5},
    "cohere2": {**WINDOW, "logit_scale": 0.5, "layer_types": kinds("sliding_attention")},
    "smollm3": {
        **WINDOW, "use_sliding_window": True, "no_rope_layers": kinds(1, 0), "layer_types": kinds("sliding_attention"),
    },
    "glm": {"head_dim": 12},
    "phi3": WINDOW,
    "nemotron": {},
    "exaone4": {**WINDOW, "layer_types": kinds("sliding_attention")},
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, "head_dim": 12, "mlp_only_layers": lambda layers: [0, layers - 2]},
    "gpt_oss": {**WINDOW, **EXPERTS, "head_dim": 12, "layer_types": kinds("sliding_attention")},
    "deepseek_v3": {
        **EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "num_mtp_layers": 0, "first_k_dense_replace": lambda layers: layers // 2,
    },
    "llama4": {
        **EXPERTS, "head_dim": 12, "intermediate_size_mlp": 64, "attention_chunk_size": SLIDING_WINDOW,
        "no_rope_layers": kinds(1, 0), "moe_layers": lambda layers: [1, 2, layers - 1],
    },
    "qwen3_next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": LINEAR,
    **dict.fromkeys(("apertus", "ernie4_5", "glm4", "hunyuan_v1_dense", "ministral3", "seed_oss"), {"head_dim": 12}),
    "lfm2": {"layer_types": kinds("conv"), "block_auto_adjust_ff_dim": False},
    "falcon_h1": RECURRENT,
    "jamba": {**EXPERTS, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 8},
    "mamba": {"state_size": 8},
    "gemma3n": {
        **WINDOW, "head_dim": 12, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0, "laurel_rank": 8, "layer_types": kinds("sliding_attention"),
    },
    "gemma4": {
        **WINDOW, "head_dim": 12, "global_head_dim": 24, "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 0,
        "layer_types": lambda layers: [*kinds("sliding_attention")(layers - 1), "full_attention"],
    },
}  # fmt: skip
ALL_FAMILIES = list(SETTINGS)
FAMILIES = ALL_FAMILIES[:8]
# what `make test` takes: plain layers, windows, experts, a recurrent part beside attention
FOUR = ["llama", "gemma3", "qwen3_moe", "falcon_h1"]
TEXT_PART = ("gemma3", "gemma3n", "gemma4", "llama4")  # models that see images too: the part that reads


def model_type(family: str) -> str:
    """What a configuration of a family is called; of one that sees images too, of the part that reads."""
    return f"{family}_text" if family in TEXT_PART else family


def settings_of(family: str, layers: int, **others) -> dict:
    """The settings of a family's configuration, with `others` in place of its own."""
    settings = {
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **SETTINGS[family],
        **others,
    }
    return {name: value(layers) if callable(value) else value for name, value in settings.items()}


def tiny_model(
    family: str, *, layers: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0, **others
) -> PreTrainedModel:
    """A random model of a family (one of ALL_FAMILIES), in evaluation mode, the same for the same seed.

    It has 128 tokens, and sliding windows of 8 tokens where its family has any. Its weights are large and
    none is constant, so that a wrong mask, rotary table or norm shows in the logits. `others` are settings of
    its configuration.
    """
    config = AutoConfig.for_model(model_type(family), **settings_of(family, layers, **others))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # gains of norms and biases, which start as constants
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.to(dtype).eval()


@functools.cache
def shared_model(family: str, layers: int = 6) -> PreTrainedModel:
    """tiny_model in float32, made once a process: whoever changes it takes a copy."""
    return tiny_model(family, layers=layers)


def byte_tokenizer():
    """A byte-level tokenizer with few words of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokens.train_from_iterator(["Question: What is the capital of this country?\nAnswer: The capital is"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<eos>", pad_token="<pad>")


def write_folder(family: str, folder: Path) -> None:
    """A folder as save_pretrained writes it: a random model of 5 layers with a byte-level tokenizer."""
    tokenizer = byte_tokenizer()
    # large weights, so that the answers of two pruned models differ
    size = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 1024, "initializer_range": 0.2}
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = settings_of(family, 5, vocab_size=len(tokenizer), **size, **special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type(family), **settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_gguf(model: PreTrainedModel, tokenizer, path: Path, begins: bool = False) -> Path:
    """A Llama as a GGUF file in float32, as llama.cpp's converter writes it; `begins`: a text does with a token."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    tokens, end = json.loads(tokenizer.backend_tokenizer.to_str())["model"], tokenizer.eos_token_id
    for name, value in {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "rope_dimension_count": config.head_dim,
        "rope_freq_base": config.rope_parameters["rope_theta"],
        "layer_norm_rms_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "gpt-2",
        "token_list": sorted(tokens["vocab"], key=tokens["vocab"].get),
        "token_types": [3 if i in tokenizer.all_special_ids else 1 for i in range(len(tokenizer))],
        "token_merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in tokens["merges"]],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
        "add_bos_token": begins,
    }.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, number in heads.items():
            if name.endswith(part):  # llama.cpp rotates neighbours, transformers the two halves of a head
                values = values.reshape(number, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    write_out(writer)
    return path


def write_out(writer: gguf.GGUFWriter) -> None:
    """All of a GGUF file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def search(model, rule: str, sizes: list[int], sequences: list[torch.Tensor]) -> list:
    """The cut of each size under a rule, which looks at sequences of tokens, each [T], for what it needs to know."""
    from deeper_layers_companion.rules.needs import measure_rule_needs  # slow
    from deeper_layers_companion.rules.table import REGISTERED

    return REGISTERED[rule].choose(sizes, model.config.num_hidden_layers, measure_rule_needs(model, rule, sequences))


if __name__ == "__main__":  # python -m tests.tiny FAMILY FOLDER
    write_folder(sys.argv[1], Path(sys.argv[2]))
