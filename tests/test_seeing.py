"""Models that see images: the language part is cut, and the rest stays as it is, in memory and on disk."""

import functools
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from deeper_layers.cuts import Cut
from deeper_layers.export.config_text import set_dtype
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.opening import load_model
from deeper_layers.models.sizes import find_sizes
from deeper_layers.models.sources import find_model
from deeper_layers.pruning import drop_layers
from tests.plain import without
from tests.test_slicing import stated

CUT, LAYERS, IMAGE = Cut(3, 1), 5, 9
SIZES = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.2, "num_attention_heads": 4}
TEXT = SIZES | {"vocab_size": 64, "num_hidden_layers": LAYERS, "num_key_value_heads": 2, "head_dim": 8}
TEXT |= {"max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
# as deep as the language part, so that nothing tells them apart by their number
VISION = SIZES | {"num_hidden_layers": LAYERS, "patch_size": 4, "image_size": 8}
BLOCKS = {"depth": LAYERS, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4}
BLOCKS |= {"spatial_merge_size": 2, "temporal_patch_size": 1, "out_hidden_size": 32}
ROTARY = {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 10, "vision_start_token_id": 11, "vision_end_token_id": 12}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]}


def of_two(text: str, vision: dict, **about) -> dict:
    """A configuration of a language part, and one that sees."""
    return {"text_config": TEXT | {"model_type": text}, "vision_config": vision, "image_token_index": IMAGE} | about


SEEING = {
    "llava": of_two("llama", VISION | {"model_type": "clip_vision_model"}, vision_feature_select_strategy="default"),
    "mistral3": of_two("mistral", VISION | {"model_type": "pixtral"}, spatial_merge_size=1),
    "gemma3": of_two("gemma3_text", VISION | {"model_type": "siglip_vision_model"}, mm_tokens_per_image=4),
    "qwen2_5_vl": of_two("qwen2_5_vl_text", BLOCKS | {"window_size": 8, "fullatt_block_indexes": [1, 3]}, **TOKENS),
    "qwen3_vl": of_two(
        "qwen3_vl_text", BLOCKS | {"num_position_embeddings": 16, "deepstack_visual_indexes": [1, 3]}, **TOKENS
    ),
}
SEEING["gemma3"] |= {"boi_token_index": 11, "eoi_token_index": 12}
SEEING["gemma3"]["text_config"] |= WINDOWS
SEEING["qwen2_5_vl"]["text_config"] |= ROTARY
SEEING["qwen3_vl"]["text_config"] |= ROTARY


@functools.cache
def seeing(family: str):
    """A model of a family (one of SEEING), in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SEEING[family])
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@torch.no_grad()
def answers(family: str, model) -> list[torch.Tensor]:
    """Logits after text alone, and after text with a picture: four tokens, or one where a model joins them."""
    draw, is_qwen = torch.Generator().manual_seed(1), family.startswith("qwen")
    text = torch.randint(13, 64, (1, 12), generator=draw)
    ids = torch.cat([text[:, :3], torch.full((1, 1 if is_qwen else 4), IMAGE), text[:, 3:]], dim=1)
    pixels = torch.randn((4, 3 * 4 * 4) if is_qwen else (1, 3, 8, 8), generator=draw)
    is_image = (ids == IMAGE).int()
    more = {"mistral3": {"image_sizes": torch.tensor([[8, 8]])}, "gemma3": {"token_type_ids": is_image}}.get(family, {})
    more |= {"image_grid_thw": torch.tensor([[1, 2, 2]]), "mm_token_type_ids": is_image} if is_qwen else {}
    picture = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **more}
    return [model(**inputs, use_cache=False).logits for inputs in ({"input_ids": text}, picture)]


@pytest.mark.parametrize("family", SEEING)
def test_the_language_part_is_cut_and_the_rest_stays(family, tiny_folder, tmp_path):
    model, whole = seeing(family), shutil.copytree(tiny_folder, tmp_path / "whole")
    before, expected = answers(family, model), answers(family, without(model, CUT.dropped))
    assert all((one - other).abs().max() > 0.01 for one, other in zip(expected, before, strict=True))
    assert all(map(torch.equal, answers(family, drop_layers(model, CUT)), expected))
    model.save_pretrained(whole)
    out = slice_checkpoint(whole, CUT, tmp_path / "out")
    reloaded, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert all(map(torch.equal, answers(family, reloaded), expected))
    torch.testing.assert_close(answers(family, load_model(str(whole))[0]), before, atol=1e-5, rtol=0)
    assert [len(find_sizes(find_model(str(folder))).layers) for folder in (whole, out)] == [LAYERS, LAYERS - 1]


def test_a_configuration_with_the_decoder_at_its_top_as_qwen_released_it(tmp_path):
    seeing("qwen2_5_vl").save_pretrained(tmp_path / "whole")
    text = stated(tmp_path / "whole")["text_config"]
    own = {"model_type": "qwen2_5_vl", "rope_theta": 1e6, "rope_parameters": None, "layer_types": None}
    own["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    flat = stated(tmp_path / "whole", **text | own, text_config=None)
    found = stated(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out"))
    assert found.pop("vision_config").items() > flat.pop("vision_config").items()  # and words of older versions
    assert found == flat | {"num_hidden_layers": LAYERS - 1, "max_window_layers": LAYERS - 1, "torch_dtype": "float32"}
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    expected = answers("qwen2_5_vl", without(seeing("qwen2_5_vl"), CUT.dropped))
    assert all(map(torch.equal, answers("qwen2_5_vl", reloaded), expected))


def test_pictures_that_enter_after_layers_of_certain_numbers_are_warned_of(tmp_path):
    seeing("qwen3_vl").save_pretrained(tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"after its layers 0\.\.1 is added after the first 2 layers that stay"):
        slice_checkpoint(tmp_path / "whole", Cut(1, 1), tmp_path / "out")


def test_a_data_type_is_stated_where_it_was():
    nested = {"text_config": {"dtype": "float32", "a": 1}, "vision_config": {}}
    expected = {"text_config": {"dtype": "float16", "a": 1}, "vision_config": {}, "torch_dtype": "float16"}
    set_dtype(nested, "float16")
    assert nested == expected
