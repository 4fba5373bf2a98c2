"""Models that see images: the language part is cut, and the rest stays as it is, in memory and on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from deeper_layers.cuts import Cut
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.opening import load_model
from deeper_layers.models.sizes import sizes_of
from deeper_layers.models.sources import find_model
from deeper_layers.pruning import drop_layers
from tests.plain import without
from tests.tiny_seeing import LAYERS, SEEING, answers, seeing

CUT = Cut(3, 1)


@pytest.mark.parametrize("family", SEEING)
def test_the_language_part_is_cut_and_the_rest_stays(family, tmp_path):
    model = seeing(family)
    assert len(decoder_layers(model)) == LAYERS and "language" in next(
        name for name, module in model.named_modules() if module is decoder_layers(model)
    )
    expected = answers(family, without(model, range(CUT.start, CUT.stop)))
    assert all((one - other).abs().max() > 0.01 for one, other in zip(expected, answers(family, model), strict=True))
    assert all(map(torch.equal, answers(family, drop_layers(model, CUT)), expected))
    model.save_pretrained(tmp_path / "whole")
    out = slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out")
    reloaded, report = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert all(map(torch.equal, answers(family, reloaded.eval()), expected))
    whole, ours = load_file(tmp_path / "whole" / "model.safetensors"), load_file(out / "model.safetensors")
    rest = [name for name in whole if "vis" in name or "projector" in name]
    assert rest and all(torch.equal(whole[name], ours[name]) for name in rest)


def test_a_configuration_with_the_decoder_at_its_top_as_qwen_released_it(tmp_path):
    model, folder = seeing("qwen2_5_vl"), tmp_path / "whole"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    text = {key: value for key, value in config.pop("text_config").items() if key != "model_type"}
    rope = text.pop("rope_parameters")
    flat = config | text | {"rope_theta": rope["rope_theta"], "layer_types": None}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(flat))
    out = slice_checkpoint(folder, CUT, tmp_path / "out")
    found = json.loads((out / "config.json").read_text())
    assert found.pop("vision_config").items() > flat.pop("vision_config").items()  # and words of older versions
    assert found == flat | {"num_hidden_layers": LAYERS - 1, "max_window_layers": LAYERS - 1, "torch_dtype": "float32"}
    reloaded = AutoModelForImageTextToText.from_pretrained(out).eval()
    expected = answers("qwen2_5_vl", without(model, range(CUT.start, CUT.stop)))
    assert all(map(torch.equal, answers("qwen2_5_vl", reloaded), expected))


def test_pictures_that_enter_after_layers_of_certain_numbers_are_warned_of(tmp_path):
    seeing("qwen3_vl").save_pretrained(tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"after its layers 0\.\.1 is added after the first 2 layers that stay"):
        slice_checkpoint(tmp_path / "whole", Cut(1, 1), tmp_path / "out")


def test_it_is_opened_and_its_layers_are_counted(tiny_folder, tmp_path):
    model = seeing("llava")
    model.save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "whole" / name).write_bytes((tiny_folder / name).read_bytes())
    opened, _ = load_model(str(tmp_path / "whole"))
    assert all(map(torch.equal, answers("llava", opened), answers("llava", model)))
    assert len(sizes_of(find_model(str(tmp_path / "whole"))).layers) == LAYERS
