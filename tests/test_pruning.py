"""Cuts, and models without some of their layers.

The reference for a dropped layer is the same model in which that layer is the identity.
"""

import copy
import functools
import re

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from accelerate.hooks import ModelHook, add_hook_to_module
from IPython.core.interactiveshell import InteractiveShell
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, decoder_layers_owner, num_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.similarity import similarity_cut
from tests.plain import generate, logits, without
from tests.tiny import FAMILIES, SLIDING_WINDOW, VOCABULARY, tiny_model

LAYERS = 6
# nothing, start, middle, end
CUTS = [Cut(0, 0), Cut(0, 2), Cut(1, 3), Cut(4, 2)]

every_family = pytest.mark.parametrize("family", FAMILIES)
every_cut = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.start}-{cut.size}")
some_cuts = pytest.mark.parametrize("cut", CUTS[1:], ids=["start", "middle", "end"])


@pytest.fixture(scope="module")
def tokens():
    """Two prompts, three times as long as the sliding window."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (2, 3 * SLIDING_WINDOW), generator=generator)


@pytest.fixture
def unchecked(monkeypatch):
    """As users run it: without the checks of annotations, which would come before ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@functools.cache
def original(family):
    return tiny_model(family, layers=LAYERS)


# drop_layers: the eight families


@every_family
@every_cut
def test_logits_are_those_of_identity_layers(family, cut, tokens):
    model = original(family)
    dropped = logits(drop_layers(model, cut), tokens)
    assert torch.equal(dropped, logits(without(model, range(cut.start, cut.stop)), tokens))
    # and that is not the trivial result
    change = (dropped - logits(model, tokens)).abs().max()
    assert change == 0 if cut.size == 0 else change > 0.1


@every_family
@some_cuts
def test_saved_model_reloads_in_plain_transformers(family, cut, tokens, tmp_path):
    model = original(family)
    pruned = drop_layers(model, cut)
    pruned.save_pretrained(tmp_path)
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert reloaded.config.num_hidden_layers == LAYERS - cut.size == len(decoder_layers(reloaded))
    if hasattr(model.config, "layer_types"):
        kinds = model.config.layer_types
        assert reloaded.config.layer_types == [kinds[index] for index in cut.kept(LAYERS)]
    assert torch.equal(logits(reloaded, tokens), logits(pruned, tokens))
    assert torch.equal(generate(reloaded, tokens), generate(pruned, tokens))


@every_family
@every_cut
def test_weights_are_shared_and_modules_are_not(family, cut):
    model = original(family)
    pruned = drop_layers(model, cut)
    owner, name = decoder_layers_owner(model)
    prefix = next(path for path, module in model.named_modules() if module is getattr(owner, name))
    mine = dict([*model.named_parameters(), *model.named_buffers()])
    theirs = dict([*pruned.named_parameters(), *pruned.named_buffers()])
    for path, tensor in theirs.items():
        if path.startswith(prefix):
            index, rest = path.removeprefix(f"{prefix}.").split(".", 1)
            path = f"{prefix}.{cut.kept(LAYERS)[int(index)]}.{rest}"
        assert tensor is mine.pop(path)
    assert all(path.startswith(tuple(f"{prefix}.{index}." for index in range(cut.start, cut.stop))) for path in mine)
    assert not {id(module) for module in pruned.modules()} & {id(module) for module in model.modules()}
    configs = {id(vars(module).get("config")) for module in model.modules()} - {id(None)}
    assert not configs & {id(vars(module).get("config")) for module in pruned.modules()}


@every_family
@every_cut
def test_layers_are_renumbered_with_their_children(family, cut):
    pruned = drop_layers(original(family), cut)
    for position, layer in enumerate(decoder_layers(pruned)):
        found = [vars(module)["layer_idx"] for module in layer.modules() if "layer_idx" in vars(module)]
        assert found and set(found) == {position}
    assert len(decoder_layers(pruned)) == LAYERS - cut.size == num_layers(pruned)


@every_family
def test_the_original_stays_as_it_was(family, tokens):
    model = tiny_model(family, layers=LAYERS, seed=2)

    def state():
        return {
            "modules": [(path, id(module)) for path, module in model.named_modules()],
            "attributes": [
                {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
                for module in model.modules()
            ],
            "tensors": [(path, id(tensor)) for path, tensor in [*model.named_parameters(), *model.named_buffers()]],
            "config": copy.deepcopy(model.config.to_dict()),
            "generation": copy.deepcopy(model.generation_config.to_dict()),
            "random numbers": torch.get_rng_state().tolist(),
        }

    before, values = state(), copy.deepcopy(model.state_dict())
    expected, text = logits(model, tokens), generate(model, tokens)
    pruned = drop_layers(model, Cut(1, 3))
    generate(pruned, tokens)
    pruned.config.vocab_size = 1
    pruned.generation_config.max_new_tokens = 1
    decoder_layers(pruned)[0].register_forward_hook(lambda *_: pytest.fail("a hook of the pruned model"))
    pruned.get_output_embeddings().weight = nn.Parameter(torch.zeros(VOCABULARY, 48))
    assert state() == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, tokens), expected)
    assert torch.equal(generate(model, tokens), text)


# drop_layers: what a configuration holds


@pytest.mark.parametrize(
    ("cut", "boundary", "kinds"),
    [
        (Cut(0, 0), 3, "fffsss"),
        (Cut(0, 2), 1, "fsss"),
        (Cut(2, 1), 2, "ffsss"),
        (Cut(3, 2), 3, "fffs"),
        (Cut(1, 4), 1, "fs"),
        (Cut(3, 3), 3, "fff"),
        (Cut(0, 3), 0, "sss"),
    ],
)
def test_boundary_of_sliding_windows_moves_with_the_cut(cut, boundary, kinds, tokens):
    model = original("qwen2")
    pruned = drop_layers(model, cut)
    assert pruned.config.max_window_layers == boundary
    assert [kind[0] for kind in pruned.config.layer_types] == list(kinds)
    assert pruned.model.has_sliding_layers == ("s" in kinds)
    # an engine that reads the boundary alone, as older configurations have no list, builds the same layers
    config = pruned.config.to_dict()
    del config["layer_types"]
    assert type(pruned.config).from_dict(config).layer_types == pruned.config.layer_types


def test_every_per_layer_entry_is_cut_and_nothing_else():
    model = tiny_model("llama", layers=LAYERS)
    model.config.intermediate_size_per_layer = [10, 11, 12, 13, 14, 15]
    model.config.kinds = ("a", "b", "c", "d", "e", "f")
    model.config.eos_token_id = [1, 2, 3, 4, 5, 6]
    model.config.architectures = ["A", "B", "C", "D", "E", "F"]
    model.config.other = [1, 2, 3]
    before = model.config.to_dict()
    config = drop_layers(model, Cut(1, 3)).config
    assert config.kinds == ("a", "e", "f")  # a tuple as before
    after = config.to_dict()
    assert model.config.to_dict() == before
    assert model.config.kinds == ("a", "b", "c", "d", "e", "f")
    changed = {name: after[name] for name in after if after[name] != before[name]}
    assert changed == {
        "num_hidden_layers": 3,
        "intermediate_size_per_layer": [10, 14, 15],
        "kinds": ["a", "e", "f"],
    }


def test_text_layers_of_a_model_with_a_vision_tower_of_the_same_depth(tokens, tmp_path):
    text = original("gemma3").config.to_dict()
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0)
    model = Gemma3ForConditionalGeneration(config).eval()
    cut = Cut(1, 2)
    pruned = drop_layers(model, cut)
    assert pruned.config.text_config.num_hidden_layers == LAYERS - 2 == len(decoder_layers(pruned))
    assert pruned.config.vision_config.num_hidden_layers == LAYERS
    kinds = model.config.text_config.layer_types
    assert pruned.config.text_config.layer_types == [kinds[index] for index in cut.kept(LAYERS)]
    assert torch.equal(logits(pruned, tokens), logits(without(model, [1, 2]), tokens))
    assert torch.equal(generate(pruned, tokens), generate(pruned, tokens, use_cache=False))
    pruned.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded, tokens), logits(pruned, tokens))


def test_hooks_that_replace_forward_follow_to_the_new_modules(tokens):
    class Recorder(ModelHook):
        def __init__(self):
            self.seen = []

        def pre_forward(self, module, *arguments, **keywords):
            self.seen.append(module)
            return arguments, keywords

    model = tiny_model("llama", layers=LAYERS)
    recorder = Recorder()
    for layer in decoder_layers(model):
        add_hook_to_module(layer, recorder)
    pruned = drop_layers(model, Cut(2, 2))
    logits(pruned, tokens)
    assert [id(layer) for layer in recorder.seen] == [id(layer) for layer in decoder_layers(pruned)]


# what is refused


def test_depth_that_a_configuration_cannot_describe_is_refused():
    config = GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=32, scale_attn_by_inverse_layer_idx=True)
    model = GPT2LMHeadModel(config)
    message = re.escape("drops layers 1..2 (0-based, 2 of 4), keeps [0:1] and [3:4]")
    with pytest.raises(InputError, match=rf"{message} changes transformer\.h\.1\.attn\.scaling of GPT2LMHeadModel"):
        drop_layers(model, Cut(1, 2))
    assert num_layers(drop_layers(model, Cut(2, 2))) == 2  # no kept layer changes its place


class Alternating(LlamaForCausalLM):
    """Layers that differ by position, in ways that no configuration states and no weight shows."""

    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.is_second = index == 1
            layer.mlp.act_fn = nn.ReLU() if index % 2 else nn.GELU()


@pytest.mark.parametrize(("cut", "changed"), [(Cut(0, 1), r"0\.is_second"), (Cut(2, 1), r"2\.mlp\.act_fn")])
def test_position_that_shows_only_in_attributes_is_refused(cut, changed):
    model = Alternating(tiny_model("llama", layers=4).config)
    with pytest.raises(InputError, match=rf"changes model\.layers\.{changed} of Alternating"):
        drop_layers(model, cut)


def mixture(**settings):
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            hidden_size=32, num_attention_heads=4, num_hidden_layers=4, vocab_size=128, eos_token_id=None,
            num_key_value_heads=2, head_dim=8, intermediate_size=32, moe_intermediate_size=16,
            num_experts=4, num_experts_per_tok=2, **settings,
        )
    ).eval()  # fmt: skip


def test_dense_layers_among_mixtures_of_experts(tokens):
    model = mixture(decoder_sparse_step=2)  # layers 1 and 3 are mixtures
    assert torch.equal(logits(drop_layers(model, Cut(1, 2)), tokens), logits(without(model, [1, 2]), tokens))
    with pytest.raises(InputError, match=r"changes model\.layers\.1\.mlp\..* of Qwen3MoeForCausalLM"):
        drop_layers(model, Cut(1, 1))


def test_configuration_that_cannot_be_rebuilt_is_refused():
    model = tiny_model("gemma3", layers=4)
    # such a model runs, and cannot be saved
    model.config.layer_types = [*model.config.layer_types, "full_attention"]
    with pytest.raises(InputError, match=r"drops layer 1 .* does not fit the configuration of Gemma3ForCausalLM \("):
        drop_layers(model, Cut(1, 1))


def test_other_than_decoder_only_models_are_refused():
    model = T5ForConditionalGeneration(T5Config(num_layers=2, d_model=16, d_kv=4, num_heads=4, d_ff=16, vocab_size=32))
    with pytest.raises(InputError, match="^t5 is an encoder-decoder model; expected a decoder-only"):
        drop_layers(model, Cut(0, 1))
    with pytest.raises(InputError, match="^the model is a Linear; expected a transformers PreTrainedModel; unwrap"):
        drop_layers(nn.Linear(2, 2), Cut(0, 1))
    with pytest.raises(InputError, match="^the model is a Linear without a configuration"):
        decoder_layers(nn.Linear(2, 2))


def test_layers_must_be_found_exactly_once():
    model = tiny_model("llama", layers=4)
    layers = model.model.layers
    del layers[3:]
    with pytest.raises(InputError, match=r"holds 0 lists .*LlamaModel\.layers of 3\); expected .* = 4 related"):
        decoder_layers(model)
    layers.append(nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"holds 0 lists .*LlamaModel\.layers of 4\); expected .* = 4 related"):
        decoder_layers(model)
    layers[3] = layers[2]
    assert decoder_layers(model) is layers
    model.model.adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))  # without attention: no candidate
    assert decoder_layers(model) is layers
    model.model.others = nn.ModuleList(layers)
    with pytest.raises(InputError, match=r"holds 2 lists .*layers of 4, LlamaModel\.others of 4"):
        decoder_layers(model)


# cuts


def test_a_cut_in_numbers_and_words():
    cut = Cut(3, 5)
    assert cut.stop == 8
    assert cut.kept(10) == [0, 1, 2, 8, 9]
    assert cut.describe(30) == "drops layers 3..7 (0-based, 5 of 30), keeps [0:3] and [8:30]"
    assert Cut(3, 1).describe(30) == "drops layer 3 (0-based, 1 of 30), keeps [0:3] and [4:30]"
    assert Cut(0, 2).describe(30) == "drops layers 0..1 (0-based, 2 of 30), keeps [2:30]"
    assert Cut(28, 2).describe(30) == "drops layers 28..29 (0-based, 2 of 30), keeps [0:28]"
    assert Cut(7, 0).describe(30) == "drops no layers (0 of 30), keeps [0:30]"
    assert sorted([Cut(2, 1), Cut(1, 5), Cut(1, 2)]) == [Cut(1, 2), Cut(1, 5), Cut(2, 1)]


def test_numbers_of_numpy_become_plain(unchecked):
    cut = Cut(np.int64(3), torch.tensor(2))
    assert cut == Cut(3, 2) and type(cut.start) is int and type(cut.size) is int


@pytest.mark.parametrize(
    ("cut", "ranges"),
    [(Cut(3, 5), [[0, 3], [8, 30]]), (Cut(0, 2), [[2, 30]]), (Cut(28, 2), [[0, 28]]), (Cut(0, 0), [[0, 30]])],
)
def test_mergekit_configuration(cut, ranges):
    name = 'organisation/a "name": with # signs'
    assert yaml.safe_load(cut.mergekit_yaml(30, name)) == {
        "slices": [{"sources": [{"model": name, "layer_range": pair}]} for pair in ranges],
        "merge_method": "passthrough",
    }


def test_simple_heuristic():
    assert simple_cut(32, 10) == Cut(21, 10)  # layers 21 to 30 go, layer 31 stays
    assert simple_cut(32, 1) == Cut(30, 1)
    assert simple_cut(32, 31) == Cut(0, 31)
    assert simple_cut(32, 0) == Cut(0, 0)
    assert simple_cut(1, 0) == Cut(0, 0)
    assert all(simple_cut(6, size).kept(6)[-1] == 5 for size in range(6))


NAN = float("nan")
DISTANCES = np.array(
    [
        [0.30, 0.20, 0.10, 0.05],  # of size 1 the last start is the nearest, and contains the last layer
        [0.25, 0.40, 0.01, NAN],
        [0.50, 0.02, NAN, NAN],
        [0.60, NAN, NAN, NAN],
    ]
)


def test_similarity_takes_the_smallest_distance_that_keeps_the_last_layer():
    assert similarity_cut(DISTANCES, 0) == Cut(0, 0)
    assert similarity_cut(DISTANCES, 1) == Cut(2, 1)
    assert similarity_cut(DISTANCES, 2) == Cut(0, 2)
    assert similarity_cut(DISTANCES, 3) == Cut(0, 3)
    assert similarity_cut(DISTANCES.astype(np.float32), 1) == Cut(2, 1)
    assert type(similarity_cut(DISTANCES, 1).start) is int


@torch.no_grad()
def test_identity_layers_are_found_and_dropped_without_a_trace(tokens):
    """Off by one in start or size, in the choice or in the cut, cannot pass here."""
    model = tiny_model("llama", layers=LAYERS)
    for layer in decoder_layers(model)[2:4]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    states = torch.stack(model(tokens, output_hidden_states=True).hidden_states)[:, :, -1].double()
    unit = states / states.norm(dim=-1, keepdim=True)
    distances = np.full((LAYERS, LAYERS), NAN)
    for size in range(1, LAYERS + 1):
        for start in range(LAYERS - size + 1):
            cosine = (unit[start] * unit[start + size]).sum(-1).clamp(-1, 1)
            distances[size - 1, start] = (cosine.arccos() / torch.pi).mean()
    assert similarity_cut(distances, 2) == Cut(2, 2)
    expected = logits(model, tokens)
    assert torch.equal(logits(drop_layers(model, Cut(2, 2)), tokens), expected)
    for wrong in (Cut(1, 2), Cut(3, 2), Cut(2, 3), Cut(1, 3)):
        assert (logits(drop_layers(model, wrong), tokens) - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Cut(0, -1), "size is -1; expected a whole number from 0 to 10000"),
        (lambda: Cut(1.5, 2), "start is 1.5; expected a whole number from 0"),
        (lambda: Cut(0, 4).check(4), "size is 4; expected 0 to 3 for a model of 4 layers"),
        (lambda: Cut(0, 0).check(0), "num_layers is 0; expected a whole number from 1 to 10000"),
        (lambda: Cut(3, 2).kept(4), "start is 3 with size 2; expected layers 0 to 3"),
        (lambda: drop_layers(original("llama"), Cut(4, 3)), "start is 4 with size 3; expected layers 0 to 5"),
        (lambda: simple_cut(4, 4), "size is 4; expected 0 to 3 for a model of 4 layers"),
        (lambda: similarity_cut(DISTANCES, 4), "size is 4; expected 0 to 3 for a model of 4 layers"),
        (lambda: similarity_cut(DISTANCES[:3], 1), "distances is array("),
        (lambda: similarity_cut(np.full((4, 4), NAN), 2), "distances holds nan for size 2 at start 0; expected"),
    ],
)
def test_messages_name_value_and_expectation_on_one_line(wrong, message, unchecked):
    with pytest.raises(InputError) as caught:
        wrong()
    text = str(caught.value)
    assert text.startswith(message)
    assert "\n" not in text
    assert text.count("; ") == 2  # what was received; what was expected; what to do next


def test_a_notebook_shows_one_line(capsys):
    error = InputError("size is 9;\n  expected 0 to 3")
    assert str(error) == "size is 9; expected 0 to 3"
    shell = InteractiveShell()
    shell.user_ns["error"] = error
    shell.run_cell("raise error")
    assert capsys.readouterr().out.strip() == "InputError: size is 9; expected 0 to 3"
