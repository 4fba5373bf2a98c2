"""Engines that take a layer's kind from its number: each line of the table against kinds computed by hand."""

import pytest

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.export import gguf_files
from deeper_layers.export.engines import ENGINES, KINDS, TABLE, nearest_safe, safe_cuts, wrong_in
from deeper_layers.models.gguf_header import UNIFORM

pytestmark = pytest.mark.quick

LAYERS = 12
# how transformers sees 12 layers of each family as released, written by hand from its configuration's default:
# f full attention, s sliding, l linear; e experts, d dense; p rotary positions, n none
AS_RELEASED = {
    "gemma2 full": "sfsfsfsfsfsf",
    "gpt_oss full": "sfsfsfsfsfsf",
    "gemma3 full": "sssssfsssssf",
    **dict.fromkeys(("cohere2 full", "olmo3 full", "afmoe full", "exaone4 full"), "sssfsssfsssf"),
    **dict.fromkeys(("qwen3_next full", "qwen3_5 full"), "lllflllflllf"),
    **dict.fromkeys(("smollm3 unrotated", "llama4 unrotated"), "pppnpppnpppn"),
    "llama4 experts": "dededededede",
}
WORDS = {"f": "full_attention", "s": "sliding_attention", "l": "linear_attention", "p": 1, "n": 0}


def wrong_layers(line, config: dict, cut: Cut) -> list[list[int]]:
    """What one line of the table says of a cut."""
    return [each.layers for each in wrong_in(config, cut, [line.engine]) if KINDS[line.kind][0] in each.why]


@pytest.mark.parametrize("line", TABLE, ids=lambda line: f"{line.engine}-{line.family}-{line.kind}")
def test_a_line_of_the_table_is_what_counting_by_hand_gives(line):
    kinds = AS_RELEASED[f"{line.family} {line.kind}"]
    bare = {"model_type": line.family, "num_hidden_layers": LAYERS}
    bare |= {"interleave_moe_layer_step": 2} if line.named == "interleave_moe_layer_step" else {}
    indices = [index for index, kind in enumerate(kinds) if kind == "e"]
    config = bare | {KINDS[line.kind][1]: indices or [WORDS[kind] for kind in kinds]}
    assert wrong_in(config, Cut(0, 0), [line.engine]) == []
    found = set()
    for cut in (Cut(start, size) for size in range(1, LAYERS) for start in range(LAYERS - size + 1)):
        kept = [kinds[layer] for layer in cut.kept(LAYERS)]
        # an engine that counts sees a shallower model as released
        seen = "f" * len(kept) if line.every == 1 and line.named == "-" else kinds[: len(kept)]
        wrong = [old for old, kind, taken in zip(cut.kept(LAYERS), kept, seen, strict=True) if kind != taken]
        assert wrong_layers(line, config, cut) == ([wrong] if wrong else []), cut
        found.add(bool(wrong))
        if seen[0] != "f":  # nothing stated: then transformers counts in the same way, and the same cuts are wrong
            assert wrong_layers(line, bare, cut) == wrong_layers(line, config, cut)
    assert found == {True, False}


@pytest.mark.parametrize("line", [line for line in TABLE if line.named != "-"], ids=lambda line: line.source)
def test_an_entry_can_say_the_period(line):
    config = {"model_type": f"{line.family}_text", "num_hidden_layers": 6, line.named: 3}
    for text in (config, {"model_type": line.family, "text_config": config}):
        assert wrong_in(text, Cut(1, 3), [line.engine]) == [] and wrong_layers(line, text, Cut(1, 1)) == [[2, 3, 5]]
        assert any("every 3rd layer" in each.why and line.source in each.why for each in wrong_in(text, Cut(1, 1)))
    assert line.period({line.named: "LLLLG"}) == 5


def test_only_engines_that_were_asked_for_and_only_families_of_the_table():
    config = {"model_type": "gpt_oss", "num_hidden_layers": 24}
    assert [each.engine for each in wrong_in(config, Cut(5, 1))] == ["llama.cpp", "vllm", "tensorrt-llm"]
    assert wrong_in(config, Cut(5, 1), ["mlx-lm", "mistral.rs"]) == [] == wrong_in({}, Cut(5, 1))
    assert wrong_in({"model_type": "llama", "num_hidden_layers": 24}, Cut(5, 1)) == []
    for engine, cut, message in (("sglang", Cut(5, 1), "the engine is 'sglang', expected one of llama.cpp, vllm"),
                                 ("vllm", Cut(0, 24), "size is 24")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            wrong_in(config, cut, [engine])


def test_the_nearest_safe_cut():
    oss = {"model_type": "gpt_oss", "num_hidden_layers": 24}
    for cut, engines, expected in (
        (simple_cut(24, 8), ENGINES, simple_cut(24, 8)),
        (simple_cut(24, 5), ["vllm"], simple_cut(24, 4)),  # it still ends before the last layer
        (simple_cut(24, 1), ["vllm"], simple_cut(24, 2)),
        (Cut(10, 5), ["mlx-lm"], Cut(10, 5)),
    ):
        assert nearest_safe(oss, cut, engines) == expected
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 18}
    assert nearest_safe(gemma, simple_cut(18, 5), ["llama.cpp"]) == simple_cut(18, 6)
    # the last layers can always go: what is before them keeps its numbers
    assert safe_cuts(gemma, [Cut(3, 6), Cut(3, 5), Cut(13, 5)], ["llama.cpp", "mlx-lm"]) == [Cut(3, 6), Cut(13, 5)]
    # where not even the whole model is read as it is stated, no cut need be
    odd = {"model_type": "gpt_oss", "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    assert nearest_safe(odd, Cut(1, 1), ["vllm"]) is None
    assert nearest_safe(odd | {"layer_types": ["sliding_attention"] * 3}, Cut(1, 1), ["vllm"]) == Cut(0, 2)


def test_gguf_files_take_their_periods_from_the_table():
    counted = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2, "smollm3": 4}
    assert gguf_files.PERIODS == dict.fromkeys([*UNIFORM, *gguf_files.STATED], 1) | counted
