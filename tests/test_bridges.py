"""Rules that change weights: merges and bridges against plain formulas, what they refuse, and what opens elsewhere."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.rules.bridges import bridged
from deeper_layers.rules.laco import THRESHOLDS, first_of, merged_layers
from deeper_layers.rules.merging import likeness_on, merged_model
from deeper_layers.rules.rule import COSINE, LAST_TAKEN, LEAST_SQUARES, SCALED, TRAINED
from deeper_layers.similarity import residuals_of
from tests.tiny import search, tiny_model

LAYERS = 6
WAYS = (LEAST_SQUARES, COSINE, TRAINED)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", layers=LAYERS)


@pytest.fixture(scope="module")
def sequences():
    return list(torch.randint(1, 128, (8, 24), generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def harmless():
    """A model whose layers 2 and 3 add nothing."""
    model = tiny_model("llama", layers=LAYERS, seed=3)
    with torch.no_grad():
        for layer in (2, 3):
            decoder_layers(model)[layer].self_attn.o_proj.weight.zero_()
            decoder_layers(model)[layer].mlp.down_proj.weight.zero_()
    return model


def logits(model, sequences) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.stack(sequences)).logits


# --- merges -----------------------------------------------------------------------------------------------


def matrix(model, layer: int) -> torch.Tensor:
    return decoder_layers(model)[layer].mlp.up_proj.weight.detach()


def test_merged_layers_are_sums_of_differences_from_the_first(model):
    zero, one, two, three, four, five = (matrix(model, layer) for layer in range(LAYERS))
    merged = merged_model(model, [0, (1, 2, 3), 4, 5])
    torch.testing.assert_close(matrix(merged, 1), one + (two - one) + (three - one))
    assert merged.config.num_hidden_layers == 4
    gain = decoder_layers(merged)[1].input_layernorm.weight
    torch.testing.assert_close(gain, decoder_layers(model)[1].input_layernorm.weight)
    assert matrix(merged, 2).data_ptr() == four.data_ptr(), "what stays is shared"
    torch.testing.assert_close(matrix(model, 1), one)
    # in the authors' code each is taken from what the sum has become, and it telescopes
    torch.testing.assert_close(matrix(merged_model(model, [0, (1, 2, 3), 4, 5], LAST_TAKEN), 1), three)
    inner = three + (four - three)  # merged layers are merged again
    torch.testing.assert_close(
        matrix(merged_model(model, [0, 1, (2, (3, 4), 5)]), 2), two + (inner - two) + (five - two)
    )


def test_likeness_is_the_cosine_of_all_final_states(model, sequences):
    tried = [0, 1, 2, (3, 4), 5]
    expected = []
    for sequence in sequences:
        whole, other = (
            one(sequence[None], output_hidden_states=True).hidden_states[-1].detach().double().flatten()
            for one in (model, merged_model(model, tried))
        )
        expected.append(float(whole @ other / whole.norm() / other.norm()))
    likeness = likeness_on(model, sequences)
    assert likeness(tried) == pytest.approx(np.mean(expected), abs=1e-6)
    assert likeness(list(range(LAYERS))) == pytest.approx(1, abs=1e-9)


def test_laco_walks_down_and_merges_where_states_stay_alike():
    def likeness(layers):
        trials.append(layers)
        return 0.9 if layers[1:3] == [(1, 2), 3] else 0.2

    trials: list = []
    # two layers become one at a time, the walk begins where two are left above
    assert merged_layers(1, 6, likeness) == [0, (1, 2), 3, 4, 5]
    first = [[0, 1, 2, (3, 4), 5], [0, 1, (2, 3), 4, 5], [0, (1, 2), 3, 4, 5], [(0, 1), 2, 3, 4, 5]]
    assert trials[:4] == first and len(trials) == 4 + 4 + 3, "thresholds of 0.95, 0.9 and 0.85"
    for layers in (2, 5, 20):
        for size in range(layers):
            found = merged_layers(size, layers, lambda _: -1.0)
            assert len(found) == layers - size and first_of(found[0]) == 0
    assert THRESHOLDS[0] == 0.95 and THRESHOLDS[-1] == 0


@pytest.mark.parametrize("rule", ["laco", "laco-code"])
def test_laco_merges_the_harmless_layers(rule, harmless, sequences):
    assert search(harmless, rule, [0, 1], sequences) == [Cut(0, 0), Cut(3, 1)]
    merged = merged_model(harmless, [0, 1, (2, 3), 4, 5])
    torch.testing.assert_close(logits(merged, sequences), logits(harmless, sequences), rtol=1e-4, atol=1e-4)


# --- bridges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "size", "cut"), [("replaceme", 2, Cut(2, 2)), ("streamline", 1, Cut(3, 1))])
def test_bridges_are_over_the_harmless_layers(rule, size, cut, harmless, sequences):
    assert search(harmless, rule, [0, size], sequences) == [Cut(0, 0), cut]
    with pytest.raises(InputError, match="size is 5; expected 0 to 4"):
        search(harmless, rule, [5], sequences)


@pytest.mark.parametrize("how", [*WAYS, SCALED])
def test_a_bridge_over_nothing_is_nothing(how, harmless, sequences):
    bridge = bridged(harmless, Cut(2, 2), sequences, how)
    torch.testing.assert_close(logits(bridge, sequences), logits(harmless, sequences), rtol=0.02, atol=0.02)


def test_least_squares_leave_nothing_that_the_mlp_could_explain(model, sequences):
    cut = Cut(2, 2)
    bridge = bridged(model, cut, sequences)
    added = []
    down = decoder_layers(model)[1].mlp.down_proj
    handle = down.register_forward_hook(lambda _, __, output: added.append(output[0].double()))
    wanted = torch.cat([residuals_of(model, sequence)[4] for sequence in sequences])
    handle.remove()
    left = torch.cat([residuals_of(bridge, sequence)[2] for sequence in sequences]) - wanted
    added = torch.cat(added)
    assert (added.mT @ left).abs().max() < 1e-3 * (added.mT @ wanted).abs().max()
    without = torch.cat([residuals_of(drop_layers(model, cut), sequence)[2] for sequence in sequences]) - wanted
    assert left.square().mean() < without.square().mean()
    torch.testing.assert_close(matrix(bridge, 2), matrix(model, 4))


def test_what_follows_is_scaled_as_if_what_comes_before_were(model, sequences):
    cut, plain = Cut(2, 2), copy.deepcopy(model)
    found = [residuals_of(model, sequence) for sequence in sequences]
    gap = torch.stack([one[4].abs().mean(dim=0) / one[2].abs().mean(dim=0) for one in found]).mean()
    with torch.no_grad():  # the authors' way
        plain.get_input_embeddings().weight *= gap
        for layer in decoder_layers(plain)[: cut.start]:
            layer.self_attn.o_proj.weight *= gap
            layer.mlp.down_proj.weight *= gap
    bridge = bridged(model, cut, sequences, SCALED)
    torch.testing.assert_close(
        logits(bridge, sequences), logits(drop_layers(plain, cut), sequences), rtol=1e-3, atol=1e-3
    )
    assert (logits(bridge, sequences) - logits(drop_layers(model, cut), sequences)).abs().max() > 0.01


def test_each_way_comes_nearer_in_its_own_terms(model, sequences):
    cut = Cut(2, 2)
    wanted = torch.cat([residuals_of(model, sequence)[4] for sequence in sequences])
    plain = {"none": drop_layers(model, cut)} | {how: bridged(model, cut, sequences, how) for how in WAYS}
    left = {how: torch.cat([residuals_of(one, sequence)[2] for sequence in sequences]) for how, one in plain.items()}
    cosine = {how: torch.cosine_similarity(found, wanted, dim=-1).mean().item() for how, found in left.items()}
    squares = {how: (found - wanted).square().mean().item() for how, found in left.items()}
    assert cosine["cosine"] > cosine["least squares"] > cosine["none"]
    assert squares["least squares"] < squares["none"] and squares["trained"] < squares["none"]
    assert torch.equal(logits(model, sequences), logits(tiny_model("llama", layers=LAYERS), sequences))


@pytest.mark.parametrize("how", [LEAST_SQUARES, TRAINED, SCALED, "merged"])
def test_it_opens_in_plain_transformers(how, model, sequences, tmp_path):
    cut = Cut(2, 2)
    made = merged_model(model, [0, 1, (2, 3, 4), 5]) if how == "merged" else bridged(model, cut, sequences, how)
    made.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(opened) is type(model) and opened.config.num_hidden_layers == 4
    torch.testing.assert_close(logits(opened, sequences), logits(made, sequences))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_what_is_normalized_or_scaled_afterwards_takes_no_linear_map(family, dtype, sequences):
    other = tiny_model(family, layers=4, dtype=dtype)
    with pytest.raises(InputError, match="normalized or scaled on its way .*choose another rule"):
        bridged(other, Cut(1, 2), sequences)
    trained = bridged(other, Cut(1, 2), sequences[:2], TRAINED)
    assert trained.config.num_hidden_layers == 2 and matrix(trained, 0).dtype == dtype
    half = tiny_model("llama", layers=4, dtype=dtype)
    assert matrix(bridged(half, Cut(1, 2), sequences), 0).dtype == dtype


def test_what_can_not_be_bridged_or_merged(model, sequences):
    experts, mixed = tiny_model("mixtral", layers=4), tiny_model("qwen3_moe", layers=4)
    no_layer = [
        (bridged, (model, cut, sequences)) for cut in (Cut(0, 2), Cut(0, 0), Cut.of([1, 3]), Cut.of([2], mlp=[4]))
    ]
    for function, arguments, said in [
        *((*one, "drop a block from layer 1 on") for one in no_layer),
        (bridged, (model, Cut(2, 2), sequences[:1]), "there are 24 tokens to fit a map of 48 by 48 on"),
        (bridged, (model, Cut(2, 2), [], TRAINED), "no sequence to train"),
        (bridged, (experts, Cut(1, 1), sequences), "ends in no single matrix"),
        (merged_model, (mixed, [0, (1, 2), 3]), "layer 2 has other matrices than 1"),
    ]:
        with pytest.raises(InputError, match=said):
            function(*arguments)
