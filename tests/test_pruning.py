"""Models without some of their layers: what they share, what their configuration holds, what is refused.

Of every family, and reloaded from a folder: tests/test_families.py; that see images: tests/test_seeing.py.
"""

import copy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from IPython.core.interactiveshell import InteractiveShell
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models import decoder
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.pruning import drop_layers
from tests.plain import generate, logits
from tests.tiny import FAMILIES, SLIDING_WINDOW, VOCABULARY, shared_model, tiny_model

LAYERS = 6


@pytest.fixture(scope="module")
def tokens():
    """Two prompts, three times as long as the sliding window."""
    return torch.randint(1, VOCABULARY, (2, 3 * SLIDING_WINDOW), generator=torch.Generator().manual_seed(1))


# ---- what a pruned model shares


def held(*modules):
    """Which parameters and buffers, in order."""
    return [id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [Cut(0, 2), Cut(1, 3), Cut(4, 2)], ids=lambda cut: cut.name)
def test_weights_are_shared_modules_are_not_and_layers_are_renumbered(family, cut):
    model = shared_model(family, LAYERS)
    pruned, layers = drop_layers(model, cut), decoder_layers(model)
    assert held(*decoder_layers(pruned)) == held(*(layers[index] for index in cut.kept(LAYERS)))
    assert set(held(model)) ^ set(held(pruned)) == set(held(*(layers[index] for index in cut.dropped)))
    for kind in (id, lambda module: id(vars(module).get("config", module))):
        assert not set(map(kind, pruned.modules())) & set(map(kind, model.modules()))
    for position, layer in enumerate(decoder_layers(pruned)):
        assert {vars(module).get("layer_idx", position) for module in layer.modules()} == {position}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_original_stays_as_it_was(family, tokens):
    model = tiny_model(family, seed=2)

    def state():
        configs = [model.config.to_dict(), model.generation_config.to_dict(), torch.get_rng_state().tolist()]
        return copy.deepcopy([*configs, logits(model, tokens).tolist(), generate(model, tokens).tolist()])

    before, pruned = state(), drop_layers(model, Cut(1, 3))
    generate(pruned, tokens)
    pruned.config.vocab_size = pruned.generation_config.max_new_tokens = 1
    decoder_layers(pruned)[0].register_forward_hook(lambda *_: pytest.fail("a hook of the pruned model"))
    pruned.get_output_embeddings().weight = nn.Parameter(torch.zeros(VOCABULARY, 48))
    assert state() == before


def test_hooks_that_replace_forward_follow_to_the_new_modules(tokens):
    seen = []

    class Recorder(ModelHook):
        def pre_forward(self, module, *arguments, **keywords):
            seen.append(id(module))
            return arguments, keywords

    model = tiny_model("llama")
    for layer in decoder_layers(model):
        add_hook_to_module(layer, Recorder())
    pruned = drop_layers(model, Cut(2, 2))
    logits(pruned, tokens)
    assert seen == [id(layer) for layer in decoder_layers(pruned)]


@pytest.mark.parametrize(("cut", "kinds"), [(Cut(2, 1), "ffsss"), (Cut(0, 3), "sss")])
def test_boundary_of_sliding_windows_moves_with_the_cut(cut, kinds):
    pruned = drop_layers(shared_model("qwen2", LAYERS), cut)
    assert pruned.config.max_window_layers == kinds.count("f")
    assert [kind[0] for kind in pruned.config.layer_types] == list(kinds) and pruned.model.has_sliding_layers
    # an engine that reads the boundary alone, as older configurations have no list, builds the same layers
    config = pruned.config.to_dict()
    del config["layer_types"]
    assert type(pruned.config).from_dict(config).layer_types == pruned.config.layer_types


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
        (lambda: tiny_model("llama"), Cut.of(attention=[2]), "zero_sublayers gives the same numbers"),
        (lambda: nn.Linear(2, 2), Cut(0, 1), "^the model is a Linear; expected a transformers PreTrainedModel; unwrap"),
    ],
)
def test_what_a_configuration_cannot_describe_is_refused(made, cut, message):
    with pytest.raises(InputError, match=message):
        drop_layers(made(), cut)
    assert num_layers(drop_layers(by_depth(), Cut(2, 2))) == 2, "what keeps the places of layers is not"


def test_the_simple_block_ends_before_the_last_layer():
    assert [simple_cut(5, size) for size in (0, 1, 4)] == [Cut(0, 0), Cut(3, 1), Cut(0, 4)]
    assert simple_cut(1, 0) == Cut(0, 0)


def test_layers_must_be_found_exactly_once():
    model = tiny_model("llama", layers=4)
    layers = model.model.layers

    def refused(words):
        with pytest.raises(InputError, match=words):
            decoder_layers(model)

    del layers[3:]
    refused("has 0 lists that can be its 4 decoder layers")
    layers.append(nn.Linear(2, 2))
    refused("has 0 lists that can be its 4 decoder layers")
    layers[3] = layers[2]
    model.model.adapters = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))  # without attention: no candidate
    assert decoder_layers(model) is layers
    model.model.others = nn.ModuleList(layers)
    refused("has 2 lists that can be its 4 decoder layers")


def test_a_notebook_shows_one_line(capsys):
    shell = InteractiveShell()
    shell.user_ns["cut"] = Cut(3, 2)
    shell.run_cell("cut.kept(4)")
    shown = capsys.readouterr().out.strip()
    assert shown.startswith("InputError: the cut is of layer 4; expected layers 0 to 3") and "\n" not in shown


@pytest.mark.parametrize(
    ("name", "part", "is_last"),
    [
        ("self_attn.o_proj.weight", "attention", True),
        ("self_attn.o_proj.bias", "attention", True),
        ("self_attn.q_proj.weight", "attention", False),
        ("mlp.down_proj.weight", "mlp", True),
        ("mlp.experts.down_proj", "mlp", True),  # matrices of experts that are stored together
        ("mlp.experts.down_proj_bias", "mlp", True),
        ("mlp.experts.gate_up_proj", "mlp", False),
        ("mlp.down_proj.weight", "attention", False),
        ("mlp.down_proj.lora_A.weight", "mlp", False),
    ],
)
def test_the_matrix_that_ends_a_sublayer_is_known_by_its_name(name, part, is_last):
    assert decoder.is_output_parameter(name, part) == is_last
