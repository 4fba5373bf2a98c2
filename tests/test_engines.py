"""Engines that take a layer's kind from its number: each line of the table against kinds computed by hand, and against
what became of real folders in them."""

import json

import pytest

from benchmarks.engines.checkpoints import WORST
from benchmarks.engines.environments import ENGINES as TRIED
from benchmarks.harness import MEASURED
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.engines import ENGINES, KINDS, TABLE, find_misreadings, find_nearest_safe, select_safe_cuts

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
OSS = {"model_type": "gpt_oss", "num_hidden_layers": 24}


def told(line, config: dict, cut: Cut) -> list:
    """What one line of the table says of a cut."""
    return [each for each in find_misreadings(config, cut, [line.engine]) if KINDS[line.kind][0] in each.why]


@pytest.mark.parametrize("line", TABLE, ids=lambda line: f"{line.engine}-{line.family}-{line.kind}")
def test_a_line_of_the_table_is_what_counting_by_hand_gives(line):
    kinds = AS_RELEASED[f"{line.family} {line.kind}"]
    bare = {"model_type": line.family, "num_hidden_layers": LAYERS}
    bare |= {"interleave_moe_layer_step": 2} if line.named == "interleave_moe_layer_step" else {}
    indices = [index for index, kind in enumerate(kinds) if kind == "e"]
    config = bare | {KINDS[line.kind][1]: indices or [WORDS[kind] for kind in kinds]}
    assert find_misreadings(config, Cut(0, 0), [line.engine]) == []
    found = set()
    for cut in (Cut(start, size) for size in range(1, LAYERS) for start in range(LAYERS - size + 1)):
        kept = [kinds[layer] for layer in cut.kept(LAYERS)]
        # an engine that counts sees a shallower model as released
        seen = "f" * len(kept) if line.every == 1 and line.named == "-" else kinds[: len(kept)]
        wrong = [old for old, kind, taken in zip(cut.kept(LAYERS), kept, seen, strict=True) if kind != taken]
        assert [each.layers for each in told(line, config, cut)] == ([wrong] if wrong else []), cut
        found.add(bool(wrong))
        if seen[0] != "f":  # nothing stated: then transformers counts in the same way, and the same cuts are wrong
            assert told(line, bare, cut) == told(line, config, cut)
    assert found == {True, False}
    if line.named != "-":  # an entry says the period
        every_3rd = {"model_type": f"{line.family}_text", "num_hidden_layers": 6, line.named: 3}
        for config in (every_3rd, {"model_type": line.family, "text_config": every_3rd}):
            assert find_misreadings(config, Cut(1, 3), [line.engine]) == []
            (wrong,) = told(line, config, Cut(1, 1))
            assert wrong.layers == [2, 3, 5] and "one layer in 3" in wrong.why and line.source in wrong.why
        assert line.period({line.named: "LLLLG"}) == 5


def test_only_engines_that_were_asked_for_and_only_families_of_the_table():
    assert [each.engine for each in find_misreadings(OSS, Cut(5, 1))] == ["llama.cpp", "vllm", "tensorrt-llm"]
    for config in (OSS, OSS | {"model_type": "llama"}, {}):
        assert find_misreadings(config, Cut(5, 1), ["mlx-lm", "mistral.rs"]) == []
    with pytest.raises(InputError, match="the engine \\(--for\\) is 'sglang', expected one of llama.cpp, vllm"):
        find_misreadings(OSS, Cut(5, 1), ["sglang"])


GEMMA = {"model_type": "gemma3_text", "num_hidden_layers": 18}
ODD = {"model_type": "gpt_oss", "num_hidden_layers": 3}  # where not even the whole model is read as it is stated


@pytest.mark.parametrize(
    ("config", "cut", "engines", "expected"),
    [
        (OSS, Cut(15, 8), ENGINES, Cut(15, 8)),
        (OSS, Cut(18, 5), ["vllm"], Cut(19, 4)),  # it still ends before the last layer
        (OSS, Cut(22, 1), ["vllm"], Cut(21, 2)),
        (GEMMA, Cut(12, 5), ["llama.cpp"], Cut(11, 6)),
        (GEMMA, Cut(13, 5), ["llama.cpp", "mlx-lm"], Cut(13, 5)),  # what is before the last layers keeps its number
        (ODD | {"layer_types": ["full_attention"] * 3}, Cut(1, 1), ["vllm"], None),
        (ODD | {"layer_types": ["sliding_attention"] * 3}, Cut(1, 1), ["vllm"], Cut(0, 2)),
    ],
)
def test_the_nearest_safe_cut(config, cut, engines, expected):
    assert find_nearest_safe(config, cut, engines) == expected
    assert select_safe_cuts(config, [cut], engines) == ([cut] if cut == expected else [])


def test_what_was_measured_is_of_committed_code_and_no_engine_is_silently_wrong():
    measured = {path.stem: json.loads(path.read_text()) for path in MEASURED.glob("*.json")}
    for name, content in measured.items():
        assert content["command"].startswith("python -m ") and len(content["provenance"]["commit"]) == 40, name
        assert content["provenance"]["dirty"] is False, f"{name} was measured with uncommitted changes"
    lines = {(line.engine, line.family) for line in TABLE}
    del measured["engines"]["engines"]["llama.cpp-pruned"]  # what llama-quantize cuts by itself
    for name, engine in measured["engines"]["engines"].items():
        for family, found in engine.get("families", {}).items():
            assert found["result"] in WORST[2:], (name, family)
            if any(cut["result"].endswith("warned of") for cut in found["cuts"].values()):  # and it is in the table
                assert (TRIED[name].counts_as, family) in lines
