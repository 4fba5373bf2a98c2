"""Tiny random models that see images, as deep on one side as on the other, and what they are asked."""

import functools

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

LAYERS, IMAGE = 5, 9
SIZES = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2}
TEXT = SIZES | {"vocab_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT |= {"head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
# as deep as the language part, so that nothing tells them apart by their number
VISION = SIZES | {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "patch_size": 4, "image_size": 8}
BLOCKS = {"depth": LAYERS, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
BLOCKS |= {"spatial_merge_size": 2, "temporal_patch_size": 1, "out_hidden_size": 32}
ROTARY = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 10, "vision_start_token_id": 11, "vision_end_token_id": 12}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]}


def of_two(text: str, vision: str, more: dict, **about) -> dict:
    """A configuration of a language part, and one that sees."""
    text_config, vision_config = TEXT | {"model_type": text}, VISION | {"model_type": vision}
    return {"text_config": text_config | more, "vision_config": vision_config, "image_token_index": IMAGE} | about


def of_qwen(text: str, **about) -> dict:
    text_config = TEXT | {"model_type": text, "rope_scaling": ROTARY}
    return {"text_config": text_config, "vision_config": BLOCKS | about} | TOKENS


SEEING = {
    "llava": of_two("llama", "clip_vision_model", {}, vision_feature_select_strategy="default"),
    "mistral3": of_two("mistral", "pixtral", {}, spatial_merge_size=1),
    "gemma3": of_two(
        "gemma3_text", "siglip_vision_model", WINDOWS, mm_tokens_per_image=4, boi_token_index=11, eoi_token_index=12
    ),
    "qwen2_5_vl": of_qwen("qwen2_5_vl_text", window_size=8, fullatt_block_indexes=[1, 3]),
    "qwen3_vl": of_qwen("qwen3_vl_text", num_position_embeddings=16, deepstack_visual_indexes=[1, 3]),
}


@functools.cache
def seeing(family: str):
    """A model of a family (one of SEEING), in evaluation mode, the same each time."""
    config = AutoConfig.for_model(family, **SEEING[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def given(family: str):
    """Text alone, and text with a picture of four patches, or of one token where a model joins these."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randint(13, 64, (1, 12), generator=draw)
    yield {"input_ids": text}
    tokens = {"qwen2_5_vl": 1, "qwen3_vl": 1}.get(family, 4)
    ids = torch.cat([text[:, :3], torch.full((1, tokens), IMAGE), text[:, 3:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    new = int(transformers.__version__.split(".")[0]) >= 5  # older versions are not told where a picture is
    types = {"mm_token_type_ids": (ids == IMAGE).int()} if new else {}
    if family.startswith("qwen"):
        yield inputs | {"pixel_values": torch.randn(4, 3 * 4 * 4, generator=draw),
                        "image_grid_thw": torch.tensor([[1, 2, 2]])} | types  # fmt: skip
    else:
        size = {"image_sizes": torch.tensor([[8, 8]])} if family == "mistral3" else {}
        types = {"token_type_ids": (ids == IMAGE).int()} if family == "gemma3" else {}
        yield inputs | {"pixel_values": torch.randn(1, 3, 8, 8, generator=draw)} | size | types


@torch.no_grad()
def answers(family: str, model) -> list[torch.Tensor]:
    """Logits after text alone, and after text with a picture."""
    return [model(**inputs, use_cache=False).logits for inputs in given(family)]
