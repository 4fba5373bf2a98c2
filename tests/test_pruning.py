"""Cuts, and models without some of their layers.

The reference for a dropped layer is the same model in which that layer is the identity; of every family, and reloaded
from a folder: tests/test_families.py.
"""

import copy

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from accelerate.hooks import ModelHook, add_hook_to_module
from IPython.core.interactiveshell import InteractiveShell
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.rules.similarity import similarity_cut
from tests.plain import generate, logits, without
from tests.tiny import FAMILIES, SLIDING_WINDOW, VOCABULARY, shared_model, tiny_model

LAYERS = 6
NAN = float("nan")
DISTANCES = np.array(
    [
        [0.30, 0.20, 0.10, 0.05],  # of size 1 the last start is the nearest, and contains the last layer
        [0.25, 0.40, 0.01, NAN],
        [0.50, 0.02, NAN, NAN],
        [0.60, NAN, NAN, NAN],
    ]
)


@pytest.fixture(scope="module")
def tokens():
    """Two prompts, three times as long as the sliding window."""
    return torch.randint(1, VOCABULARY, (2, 3 * SLIDING_WINDOW), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unchecked(monkeypatch):
    """As users run it: without the checks of annotations, which would come before ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# ---- what a pruned model shares


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [Cut(0, 0), Cut(0, 2), Cut(1, 3), Cut(4, 2)], ids=lambda cut: cut.name)
def test_weights_are_shared_modules_are_not_and_layers_are_renumbered(family, cut):
    model = shared_model(family, LAYERS)
    pruned, layers = drop_layers(model, cut), decoder_layers(model)
    prefix = next(path for path, module in model.named_modules() if module is layers)
    mine = dict([*model.named_parameters(), *model.named_buffers()])
    for path, tensor in [*pruned.named_parameters(), *pruned.named_buffers()]:
        if path.startswith(prefix):
            index, rest = path.removeprefix(f"{prefix}.").split(".", 1)
            path = f"{prefix}.{cut.kept(LAYERS)[int(index)]}.{rest}"
        assert tensor is mine.pop(path)
    assert all(path.startswith(tuple(f"{prefix}.{index}." for index in cut.dropped)) for path in mine)
    for kind in (id, lambda module: id(vars(module).get("config", module))):
        assert not set(map(kind, pruned.modules())) & set(map(kind, model.modules()))
    for position, layer in enumerate(decoder_layers(pruned)):
        found = [vars(module)["layer_idx"] for module in layer.modules() if "layer_idx" in vars(module)]
        assert found and set(found) == {position}
    assert len(decoder_layers(pruned)) == LAYERS - cut.size == num_layers(pruned)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_stays_as_it_was(family, tokens):
    model = tiny_model(family, layers=LAYERS, seed=2)

    def state():
        plain = lambda module: {n: v for n, v in vars(module).items() if isinstance(v, int | float | str)}  # noqa: E731
        named = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
        return copy.deepcopy(
            [[(path, id(one)) for path, one in named], [plain(module) for module in model.modules()],
             model.config.to_dict(), model.generation_config.to_dict(), torch.get_rng_state().tolist()]
        )  # fmt: skip

    before, expected, text = state(), logits(model, tokens), generate(model, tokens)
    pruned = drop_layers(model, Cut(1, 3))
    generate(pruned, tokens)
    pruned.config.vocab_size = pruned.generation_config.max_new_tokens = 1
    decoder_layers(pruned)[0].register_forward_hook(lambda *_: pytest.fail("a hook of the pruned model"))
    pruned.get_output_embeddings().weight = nn.Parameter(torch.zeros(VOCABULARY, 48))
    assert state() == before
    assert torch.equal(logits(model, tokens), expected) and torch.equal(generate(model, tokens), text)


def test_hooks_that_replace_forward_follow_to_the_new_modules(tokens):
    class Recorder(ModelHook):
        seen: list = []  # noqa: RUF012

        def pre_forward(self, module, *arguments, **keywords):
            self.seen.append(module)
            return arguments, keywords

    model = tiny_model("llama", layers=LAYERS)
    for layer in decoder_layers(model):
        add_hook_to_module(layer, Recorder())
    pruned = drop_layers(model, Cut(2, 2))
    logits(pruned, tokens)
    assert [id(layer) for layer in Recorder.seen] == [id(layer) for layer in decoder_layers(pruned)]


# ---- what a configuration holds


@pytest.mark.parametrize(
    ("cut", "boundary", "kinds"),
    [(Cut(0, 0), 3, "fffsss"), (Cut(2, 1), 2, "ffsss"), (Cut(3, 3), 3, "fff"), (Cut(0, 3), 0, "sss")],
)
def test_boundary_of_sliding_windows_moves_with_the_cut(cut, boundary, kinds):
    pruned = drop_layers(shared_model("qwen2", LAYERS), cut)
    assert pruned.config.max_window_layers == boundary
    assert [kind[0] for kind in pruned.config.layer_types] == list(kinds)
    assert pruned.model.has_sliding_layers == ("s" in kinds)
    # an engine that reads the boundary alone, as older configurations have no list, builds the same layers
    config = pruned.config.to_dict()
    del config["layer_types"]
    assert type(pruned.config).from_dict(config).layer_types == pruned.config.layer_types


def test_text_layers_of_a_model_with_a_vision_tower_of_the_same_depth(tokens, tmp_path):
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    text = shared_model("gemma3", LAYERS).config.to_dict()
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0)
    model, cut = Gemma3ForConditionalGeneration(config).eval(), Cut(1, 2)
    pruned = drop_layers(model, cut)
    assert pruned.config.text_config.num_hidden_layers == LAYERS - 2 == len(decoder_layers(pruned))
    assert pruned.config.vision_config.num_hidden_layers == LAYERS
    kinds = model.config.text_config.layer_types
    assert pruned.config.text_config.layer_types == [kinds[index] for index in cut.kept(LAYERS)]
    assert torch.equal(logits(pruned, tokens), logits(without(model, [1, 2]), tokens))
    assert torch.equal(generate(pruned, tokens), generate(pruned, tokens, use_cache=False))
    pruned.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(tmp_path), tokens), logits(pruned, tokens))


def test_silent_sublayers_are_a_model_that_any_tool_loads(tmp_path):
    model, ids = tiny_model("llama", layers=LAYERS), torch.arange(20)[None]
    silenced = silence_sublayers(model, Cut.of([0], attention=[2]))
    silenced.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, dtype="float32")
    assert torch.equal(logits(reloaded, ids), logits(silenced, ids))
    assert not torch.equal(logits(silenced, ids), logits(drop_layers(model, Cut(0, 1)), ids))
    assert len(decoder_layers(reloaded)) == 5 and sum(p.abs().sum() == 0 for p in reloaded.parameters()) == 1
    assert all(p.abs().sum() > 0 for p in model.parameters())  # the original stays as it was


# ---- what is refused


class Alternating(LlamaForCausalLM):
    """Layers that differ by position, in ways that no configuration states and no weight shows."""

    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.is_second = index == 1
            layer.mlp.act_fn = nn.ReLU() if index % 2 else nn.GELU()


def alternating():
    return Alternating(tiny_model("llama", layers=4).config)


def encoding():
    return T5ForConditionalGeneration(T5Config(num_layers=2, d_model=16, d_kv=4, num_heads=4, d_ff=16))


def dense_among_mixtures():
    return tiny_model("qwen3_moe", layers=4, mlp_only_layers=[], decoder_sparse_step=2)  # layers 1 and 3 are mixtures


def by_depth():
    return GPT2LMHeadModel(
        GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=32, scale_attn_by_inverse_layer_idx=True)
    )


def unstated():
    model = tiny_model("gemma3", layers=4)  # such a model runs, and cannot be saved
    model.config.layer_types = [*model.config.layer_types, "full_attention"]
    return model


@pytest.mark.parametrize(
    ("made", "cut", "message"),
    [
        (by_depth, Cut(1, 2), r"^a cut that drops layers 1..2 .* changes transformer\.h\.1\.attn\.scaling of GPT2LMH"),
        (alternating, Cut(0, 1), r"changes model\.layers\.0\.is_second"),
        (alternating, Cut(2, 1), r"changes model\.layers\.2\.mlp\.act_fn"),
        (dense_among_mixtures, Cut(1, 1), r"changes model\.layers\.1\.mlp\..* of Qwen3MoeForCausalLM"),
        (unstated, Cut(1, 1), r"drops layer 1 .* does not fit the configuration of Gemma3ForCausalLM \("),
        (lambda: tiny_model("llama"), Cut.of(attention=[2]), "silence_sublayers gives a model of the same numbers"),
        (encoding, Cut(0, 1), "^t5 is an encoder-decoder model; expected a decoder-only"),
        (lambda: nn.Linear(2, 2), Cut(0, 1), "^the model is a Linear; expected a transformers PreTrainedModel; unwrap"),
    ],
)
def test_what_a_configuration_cannot_describe_is_refused(made, cut, message):
    with pytest.raises(InputError, match=message):
        drop_layers(made(), cut)


def test_what_keeps_the_places_of_layers_is_not_refused(tokens):
    assert num_layers(drop_layers(by_depth(), Cut(2, 2))) == 2
    model = dense_among_mixtures()
    assert torch.equal(logits(drop_layers(model, Cut(1, 2)), tokens), logits(without(model, [1, 2]), tokens))


def test_layers_must_be_found_exactly_once():
    with pytest.raises(InputError, match="^the model is a Linear without a configuration"):
        decoder_layers(nn.Linear(2, 2))
    model = tiny_model("llama", layers=4)
    layers = model.model.layers
    del layers[3:]
    with pytest.raises(InputError, match=r"holds 0 lists .*LlamaModel\.layers of 3\); expected .* = 4 related"):
        decoder_layers(model)
    layers.append(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"holds 0 lists .*LlamaModel\.layers of 4\); expected .* = 4 related"):
        decoder_layers(model)
    layers[3] = layers[2]
    model.model.adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))  # without attention: no candidate
    assert decoder_layers(model) is layers
    model.model.others = nn.ModuleList(layers)
    with pytest.raises(InputError, match=r"holds 2 lists .*layers of 4, LlamaModel\.others of 4"):
        decoder_layers(model)


# ---- cuts


@pytest.mark.parametrize(
    ("cut", "layers", "words"),
    [
        (Cut(3, 5), 30, "drops layers 3..7 (0-based, 5 of 30), keeps [0:3] and [8:30]"),
        (Cut(3, 1), 30, "drops layer 3 (0-based, 1 of 30), keeps [0:3] and [4:30]"),
        (Cut(0, 2), 30, "drops layers 0..1 (0-based, 2 of 30), keeps [2:30]"),
        (Cut(28, 2), 30, "drops layers 28..29 (0-based, 2 of 30), keeps [0:28]"),
        (Cut(7, 0), 30, "drops no layers (0 of 30), keeps [0:30]"),
        (Cut.of([1, 3, 4]), 6, "drops layers 1, 3..4 (0-based, 3 of 6), keeps [0:1], [2:3] and [5:6]"),
        (Cut.of(attention=[2]), 6, "drops the attention of layer 2, keeps [0:6]"),
        (Cut.of(mlp=[2, 3]), 6, "drops the MLP of layers 2..3, keeps [0:6]"),
        (Cut.of([0], mlp=[3]), 6, "drops layer 0 (0-based, 1 of 6) and the MLP of layer 3, keeps [1:6]"),
    ],
)
def test_a_cut_in_words(cut, layers, words):
    assert cut.describe(layers) == words


def test_a_cut_in_numbers(unchecked):
    assert Cut(3, 5).stop == 8 and Cut(3, 5).kept(10) == [0, 1, 2, 8, 9]
    assert sorted([Cut(2, 1), Cut(1, 5), Cut(1, 2)]) == [Cut(1, 2), Cut(1, 5), Cut(2, 1)]
    cut = Cut(np.int64(3), torch.tensor(2))
    assert cut == Cut(3, 2) and type(cut.start) is int and type(cut.size) is int


@pytest.mark.parametrize(
    ("cut", "ranges"),
    [(Cut(3, 5), [[0, 3], [8, 30]]), (Cut(28, 2), [[0, 28]]), (Cut.of([1, 3]), [[0, 1], [2, 3], [4, 30]])],
)
def test_mergekit_configuration(cut, ranges):
    name = 'organisation/a "name": with # signs'
    assert yaml.safe_load(cut.mergekit_yaml(30, name)) == {
        "slices": [{"sources": [{"model": name, "layer_range": pair}]} for pair in ranges],
        "merge_method": "passthrough",
    }


def test_the_paper_s_two_rules():
    found = [simple_cut(32, 10), simple_cut(32, 1), simple_cut(32, 31), simple_cut(32, 0), simple_cut(1, 0)]
    assert found == [Cut(21, 10), Cut(30, 1), Cut(0, 31), Cut(0, 0), Cut(0, 0)]  # layer 31 stays
    assert [similarity_cut(DISTANCES, size) for size in range(4)] == [Cut(0, 0), Cut(2, 1), Cut(0, 2), Cut(0, 3)]
    cut = similarity_cut(DISTANCES.astype(np.float32), 1)
    assert cut == Cut(2, 1) and type(cut.start) is int


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Cut(0, -1), "size is -1; expected a whole number from 0 to 10000"),
        (lambda: Cut(1.5, 2), "start is 1.5; expected a whole number from 0"),
        (lambda: Cut(0, 4).check(4), "size is 4; expected 0 to 3 for a model of 4 layers"),
        (lambda: Cut(0, 0).check(0), "num_layers is 0; expected a whole number from 1 to 10000"),
        (lambda: Cut(3, 2).kept(4), "start is 3 with size 2; expected layers 0 to 3"),
        (lambda: Cut.of([1, 6]).check(6), "the cut is of layer 6; expected layers 0 to 5"),
        (lambda: Cut.of(mlp=[9]).check(6), "the cut is of layer 9; expected layers 0 to 5"),
        (lambda: Cut.of(mlp=[1]).mergekit_yaml(5, "m"), "the cut drops the MLP of layer 1, keeps [0:5]: mergekit's"),
        (lambda: drop_layers(shared_model("llama"), Cut(4, 3)), "start is 4 with size 3; expected layers 0 to 5"),
        (lambda: simple_cut(4, 4), "size is 4; expected 0 to 3 for a model of 4 layers"),
        (lambda: similarity_cut(DISTANCES, 4), "size is 4; expected 0 to 3 for a model of 4 layers"),
        (lambda: similarity_cut(DISTANCES[:3], 1), "distances is array("),
        (lambda: similarity_cut(np.full((4, 4), NAN), 2), "distances holds nan for size 2 at start 0; expected"),
    ],
)
def test_messages_name_value_and_expectation_on_one_line(wrong, message, unchecked):
    with pytest.raises(InputError) as caught:
        wrong()
    assert str(caught.value).startswith(message) and "; " in str(caught.value) and "\n" not in str(caught.value)


def test_a_notebook_shows_one_line(capsys):
    shell = InteractiveShell()
    shell.user_ns["error"] = InputError("size is 9;\n  expected 0 to 3")
    shell.run_cell("raise error")
    assert capsys.readouterr().out.strip() == "InputError: size is 9; expected 0 to 3"
