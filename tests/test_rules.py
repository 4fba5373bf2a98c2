"""Rules: each against a plain reading of its formula, on distances made by hand, and on models with harmless layers."""

import contextlib
import copy

import jaxtyping
import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut, similarity_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.similarity import iterate_residuals
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import text_loss
from deeper_layers.sweeping.tree import Tree
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.report.names import rule_title
from deeper_layers_companion.results.frames import CHANGED
from deeper_layers_companion.rules import change_model
from deeper_layers_companion.rules.changing import bridge_cut, build_likeness, merge_layers
from deeper_layers_companion.rules.choosing import choose_merges, target_layer
from deeper_layers_companion.rules.needs import measure_rule_needs, saliences, sublayer_cosines, token_cosines
from deeper_layers_companion.rules.table import DESCRIBED, REGISTERED, RETIRED, SEEDS
from tests.plain import logits_of_all, loss_of_all, parts, parts_of_all
from tests.tiny import search, shared_model, tiny_model

LAYERS, NAN, CUT = 6, np.nan, Cut(2, 2)
WITHOUT_LAST = ("similarity", "simple", "greedy", "window-cosine", *(f"random-{seed}" for seed in SEEDS))
DISTANCES = np.array([
    [0.5, 0.2, 0.2, 0.1],  # that of the last layer is the smallest, and is none to drop
    [0.3, 0.4, 0.1, NAN],
    [0.6, 0.1, NAN, NAN],
    [0.1, NAN, NAN, NAN],
])  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return shared_model("llama", LAYERS)


@pytest.fixture(scope="module")
def sequences():
    """Of different lengths, so that a mean over tokens is none over sequences; the first two fill a square map."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(1, 128, (length,), generator=draw) for length in (24, 24, 9, 31, 17, 40, 12, 28)]


# --- the paper's, on distances made by hand, and what holds of all rules -----------------------------------


def test_the_papers_rules_leave_the_last_layer_and_take_the_first_of_equals_and_random_draws_differ():
    cuts = [Cut(0, 0), Cut(1, 1), Cut(0, 2), Cut(0, 3)]
    assert REGISTERED["similarity"].choose([0, 1, 2, 3], 4, DISTANCES) == cuts
    assert [similarity_cut(DISTANCES, size) for size in range(4)] == cuts
    assert REGISTERED["simple"].choose([2, 0, 3], 4) == [Cut(1, 2), Cut(0, 0), Cut(0, 3)]
    assert REGISTERED["greedy"].choose([2, 4], LAYERS, lambda cuts: [1.0] * len(cuts)) == [Cut(1, 2), Cut(1, 4)]
    assert len({REGISTERED[f"random-{seed}"].choose([4], 20)[0] for seed in SEEDS}) == 5


def known_by_hand(layers: int) -> dict:
    """Something of everything that a rule can ask for."""
    draw = np.random.default_rng(0).random
    return {
        "": None,
        "distances": draw((layers, layers)),
        "losses": lambda cuts: [float(sum(cut.dropped + cut.attention + 2 * cut.mlp)) for cut in cuts],
        "cosines": draw((layers + 1, layers + 1)),
        "sublayers": draw((2, layers)),
        "saliences": draw(layers),
        "likeness": lambda merged: len(merged) / layers,
    }


@pytest.mark.parametrize("rule", REGISTERED.values(), ids=lambda rule: rule.name)
def test_a_rule_says_where_it_is_from_and_chooses_cuts_that_fit(rule):
    assert "arXiv" in rule.source and rule.words and rule.price(3, 11) >= (0, 0)
    known, each = known_by_hand(11)[rule.needs], 1 if rule.name in ("llm-drop-attention", "llm-drop-mlp") else 2
    none, *cuts = rule.choose([0, 2, 3], 11, known)
    assert none == Cut(0, 0) and [2 * cut.size + len(cut.attention + cut.mlp) for cut in cuts] == [2 * each, 3 * each]
    assert rule.name not in WITHOUT_LAST or all(10 not in cut.dropped for cut in cuts)
    if rule.name.endswith("-plus"):  # the ends stay
        assert set(rule.choose([5], 11, known)[0].dropped) == set(range(4, 9))
    assert not rule.name.startswith("random-") or set(cuts[0].dropped) < set(cuts[1].dropped)
    with pytest.raises(InputError, match=r"size is \d+; expected 0 to "):
        rule.choose([12 - rule.spares], 11, known)


@pytest.mark.parametrize("layers", [3, 5, 8])
@pytest.mark.parametrize(("name", "least"), [("perplexity", 1), ("greedy", 1), ("block-pruner", 0.7)])
def test_prices_are_nodes_of_trees(name, least, layers):
    def losses(cuts):
        nodes.append(Tree(cuts, layers).nodes)
        return [-float(sum(cut.dropped + cut.attention)) for cut in cuts]  # the last candidates lose least

    for size in (1, layers - REGISTERED[name].spares):
        nodes: list[int] = []
        REGISTERED[name].choose([size], layers, losses)
        share = sum(nodes) / layers / REGISTERED[name].price(size, layers)[0]
        assert least - 1e-9 <= share <= 1 + 1e-9


def test_a_bridge_costs_a_pass_of_its_own():
    fitted = {name for name, rule in DESCRIBED.items() if rule.fitting_passes}
    assert fitted == {name for name, changed in CHANGED.items() if changed == "bridged"}
    assert {rule.fitting_passes for rule in REGISTERED.values()} == {0, 1}


def test_what_chooses_no_more_is_described_for_its_results():
    for name in RETIRED:
        rule = DESCRIBED[name]
        assert name not in REGISTERED and rule_title(name) != name and rule.price(8, 32)[0] > 0
        with pytest.raises(InputError, match="laco and replaceme-cosine choose no more, and their results are read"):
            rule.choose([1], 11, known_by_hand(11)[rule.needs])


# --- formulas, read plainly -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_block_influence_is_a_mean_of_cosines_over_tokens(family, sequences):
    model = tiny_model(family, layers=LAYERS)
    states, _, _ = parts_of_all(model, sequences)
    found = torch.cat(list(iterate_residuals(model, sequences)), dim=1)
    torch.testing.assert_close(found, states, rtol=1e-6, atol=1e-6)
    cosines = torch.cosine_similarity(states[:, None], states, dim=-1).mean(dim=-1).numpy()
    np.testing.assert_allclose(token_cosines(model, sequences), cosines, atol=1e-6)
    order = np.argsort(1 - np.diagonal(cosines, 1)).tolist()
    assert search(model, "block-influence", [1, 3], sequences) == [Cut.of(order[:1]), Cut.of(order[:3])]
    # the block of two that ends with the last layer is no candidate
    assert search(model, "window-cosine", [2], sequences) == [Cut(int(np.diagonal(cosines, 2)[:-1].argmax()), 2)]


@pytest.mark.parametrize("family", ["llama", "phi"])  # of phi both sublayers read one residual
def test_cosines_of_sublayers_are_those_of_what_each_adds(family, sequences):
    model = tiny_model(family, layers=LAYERS)
    states, attention, mlp = parts_of_all(model, sequences)
    entering, between = states[:-1], states[:-1] + attention
    pairs = (entering, between), (between, between + mlp) if family == "llama" else (entering, entering + mlp)
    expected = np.stack([torch.cosine_similarity(*pair, dim=-1).mean(dim=-1) for pair in pairs])
    np.testing.assert_allclose(sublayer_cosines(model, sequences), expected, atol=1e-5)
    attentions = np.argsort(1 - expected[0]).tolist()
    assert search(model, "llm-drop-attention", [2], sequences) == [Cut.of(attention=attentions[:2])]
    assert search(model, "llm-drop-mlp", [1], sequences) == [Cut.of(mlp=[int(expected[1].argmax())])]


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # qwen2 has biases, which have no salience
def test_saliences_are_sums_of_weights_times_gradients(family, sequences):
    model, other = (tiny_model(family, layers=LAYERS) for _ in range(2))
    loss_of_all(other, sequences).backward()
    expected = [
        sum((p * p.grad).abs().sum().item() for name, p in layer.named_parameters() if not name.endswith("bias"))
        for layer in decoder_layers(other)
    ]
    np.testing.assert_allclose(saliences(model, sequences), expected, rtol=1e-4)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert search(model, "taylor", [2], sequences) == [Cut.of(np.argsort(expected)[:2].tolist())]


def test_searches_by_loss_are_loops_over_candidates(model, sequences):
    few = sequences[:4]

    def cut_of(some) -> Cut:
        return Cut.of(**{part: [i for name, i in some if name == part] for part in ("layers", "attention", "mlp")})

    @torch.no_grad()
    def losses(cuts) -> list[float]:
        found = []
        for cut in cuts:
            silenced = copy.deepcopy(model)
            for i in (*cut.dropped, *cut.attention):
                decoder_layers(silenced)[i].self_attn.o_proj.weight.zero_()
            for i in (*cut.dropped, *cut.mlp):
                decoder_layers(silenced)[i].mlp.down_proj.weight.zero_()
            found.append(loss_of_all(silenced, few).item())
        return found

    def greedily(candidates) -> list[Cut]:
        chosen: list = []
        for _ in range(4):
            left = [one for one in candidates if one not in chosen]
            chosen.append(left[int(np.argmin(losses([cut_of([*chosen, one]) for one in left])))])
        return [cut_of(chosen[:size]) for size in range(5)]

    layers, sublayers = (
        [("layers", i) for i in range(1, 5)],
        [(part, i) for part in ("attention", "mlp") for i in range(6)],
    )
    assert search(model, "greedy", list(range(5)), few) == greedily(layers)
    assert search(model, "block-pruner", [0, 1, 2], few) == greedily(sublayers)[::2]
    order = np.argsort(losses([Cut(layer, 1) for layer in range(LAYERS)])).tolist()
    assert search(model, "perplexity", [1, 3], few) == [Cut.of(order[:1]), Cut.of(order[:3])]


def test_a_search_that_is_interrupted_goes_on_from_its_steps(model, sequences, tmp_path, monkeypatch):
    alike = sequences[:2]  # of one length: a step is one answer
    whole, answer, runs = search(model, "greedy", [3], alike), TreeModel.answer, []

    def run(*arguments):
        if arguments[0].network.model is not model:  # a trial
            return answer(*arguments)
        runs.append(arguments)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(TreeModel, "answer", run)
    for _ in range(2):
        known = measure_rule_needs(model, "greedy", alike, Shards(tmp_path / "kept"))
        with contextlib.suppress(KeyboardInterrupt):
            cuts = REGISTERED["greedy"].choose([3], LAYERS, known)
    assert cuts == whole and len(runs) == 4


# --- merges -----------------------------------------------------------------------------------------------


def matrix(model, layer: int) -> torch.Tensor:
    return decoder_layers(model)[layer].mlp.up_proj.weight.detach()


def test_merged_layers_have_the_matrices_of_the_last_and_the_norms_of_the_first(model):
    _, one, _, three, four, five = (matrix(model, layer) for layer in range(LAYERS))
    merged = merge_layers(model, [0, (1, 2, 3), 4, 5])
    torch.testing.assert_close(matrix(merged, 1), three)
    assert len(decoder_layers(merged)) == 4 and matrix(merged, 2).data_ptr() == four.data_ptr(), "shared"
    torch.testing.assert_close(*(decoder_layers(one)[1].input_layernorm.weight for one in (merged, model)))
    torch.testing.assert_close(matrix(model, 1), one)
    again = merge_layers(model, [0, 1, (2, (3, 4), 5)])  # merged layers are merged again
    torch.testing.assert_close(matrix(again, 2), five)


def test_likeness_is_the_cosine_of_all_final_states(model, sequences):
    tried = [0, 1, 2, (3, 4), 5]
    cosines = []
    for sequence in sequences:
        pair = [one.model(sequence[None]).last_hidden_state for one in (model, merge_layers(model, tried))]
        cosines.append(torch.cosine_similarity(*(states.double().flatten() for states in pair), dim=0).item())
    likeness = build_likeness(model, sequences)
    assert likeness(tried) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert likeness(list(range(LAYERS))) == pytest.approx(1, abs=1e-9)


def test_laco_walks_down_and_merges_where_states_stay_alike():
    def likeness(layers):
        trials.append(layers)
        return 0.9 if layers[1:3] == [(1, 2), 3] else 0.2

    trials: list = []
    # two layers become one at a time, the walk begins where two are left above
    assert choose_merges(1, 6, likeness) == [0, (1, 2), 3, 4, 5]
    first = [[0, 1, 2, (3, 4), 5], [0, 1, (2, 3), 4, 5], [0, (1, 2), 3, 4, 5], [(0, 1), 2, 3, 4, 5]]
    assert trials[:4] == first and len(trials) == 4 + 4 + 3, "thresholds of 0.95, 0.9 and 0.85"
    trials.clear()
    choose_merges(20, 40, likeness)
    assert trials[0] == [*range(32), tuple(range(32, 39)), 39], "7 of 40 layers, as in the authors' notebook"
    for layers in (2, 5, 20):
        for size in range(layers):
            found = choose_merges(size, layers, lambda _: -1.0)
            assert len(found) == layers - size and target_layer(found[0]) == 0


# --- bridges ----------------------------------------------------------------------------------------------


def test_least_squares_fold_into_the_mlp_what_it_lacks(model, sequences):
    states, _, mlp = parts_of_all(model, sequences)
    found = torch.linalg.pinv(mlp[1]) @ (states[4] - (states[2] - mlp[1]))
    bridge = bridge_cut(model, CUT, sequences)
    weight, plain = (decoder_layers(one)[1].mlp.down_proj.weight.detach().double() for one in (bridge, model))
    torch.testing.assert_close(weight, found.T @ plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(matrix(bridge, 2), matrix(model, 4))
    bridge_cut(model, CUT, sequences[:2])  # as many tokens as the map has columns are enough


def test_what_follows_is_scaled_as_if_what_comes_before_were(model, sequences):
    plain = tiny_model("llama", layers=LAYERS)
    magnitudes = [parts(model, sequence[None])[0].abs().mean(dim=1) for sequence in sequences]
    gap = torch.stack([of_one[4] / of_one[2] for of_one in magnitudes]).mean()
    with torch.no_grad():  # the authors' way
        plain.get_input_embeddings().weight *= gap
        for layer in decoder_layers(plain)[: CUT.start]:
            layer.self_attn.o_proj.weight *= gap
            layer.mlp.down_proj.weight *= gap
    assert gap > 1.1
    bridge = bridge_cut(model, CUT, sequences, "scaled")
    ours, expected = (logits_of_all(one, sequences) for one in (bridge, drop_layers(plain, CUT)))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_each_way_comes_nearer_in_its_own_terms(model, sequences):
    cosine, squares = {}, {}
    before = logits_of_all(model, sequences)
    for how in ("none", "least squares", "trained"):
        bridge = drop_layers(model, CUT) if how == "none" else bridge_cut(model, CUT, sequences, how)
        left, wanted = parts_of_all(bridge, sequences)[0][CUT.start], parts_of_all(model, sequences)[0][CUT.stop]
        cosine[how] = torch.cosine_similarity(left, wanted, dim=-1).mean().item()
        squares[how] = (left - wanted).square().mean().item()
    assert cosine["least squares"] > cosine["none"]
    assert max(squares["least squares"], squares["trained"]) < squares["none"]
    assert torch.equal(logits_of_all(model, sequences), before), "the model stays as it was"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_what_is_normalized_or_scaled_afterwards_takes_no_linear_map(family, dtype, sequences):
    other, plain = (tiny_model(name, layers=4, dtype=dtype) for name in (family, "llama"))
    with pytest.raises(InputError, match="normalized or scaled on its way .*choose another rule"):
        bridge_cut(other, Cut(1, 2), sequences)
    for bridge in (bridge_cut(other, Cut(1, 2), sequences[:2], "trained"), bridge_cut(plain, Cut(1, 2), sequences)):
        assert bridge.config.num_hidden_layers == 2 and matrix(bridge, 0).dtype == dtype


# --- known answers, and what there is none of --------------------------------------------------------------


@pytest.fixture(scope="module")
def harmless():
    """A model whose layers 2 and 3 add nothing, and text of which each token is the one that it finds likeliest."""
    model = tiny_model("llama", layers=LAYERS, seed=3)
    for layer in decoder_layers(model)[2:4]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    start = torch.randint(1, 128, (4, 2), generator=torch.Generator().manual_seed(0))
    written = model.generate(start, max_new_tokens=22, do_sample=False, attention_mask=torch.ones_like(start))
    return model, list(written)


# those of one layer merge two, or leave a trained one in the place of two
ONE = dict.fromkeys(("laco-code", "streamline"), Cut(3, 1))
EXPECTED = ONE | {"llm-drop-attention": Cut.of(attention=[2, 3]), "llm-drop-mlp": Cut.of(mlp=[2, 3])}


MEASURED = [rule for rule in REGISTERED.values() if rule.needs not in ("", "distances") and "plus" not in rule.name]


@pytest.mark.parametrize("rule", MEASURED, ids=lambda rule: rule.name)
def test_each_rule_finds_the_harmless_layers_and_what_it_leaves_answers_the_same(rule, harmless):
    model, text = harmless
    (cut,) = search(model, rule.name, [1 if rule.name in ONE else 2], text)
    assert cut == EXPECTED.get(rule.name, CUT)
    if rule.changes:
        left = change_model(model, rule, cut, [0, 1, (2, 3), 4, 5], text)
        torch.testing.assert_close(logits_of_all(left, text), logits_of_all(model, text), rtol=0.02, atol=0.02)
    else:
        with_cut, whole = text_loss(model, [cut, Cut(0, 0)], text)[0]["value"]
        assert with_cut == pytest.approx(whole, rel=1e-5)


REFUSED = [  # a function of the model and its sequences, and words of the line
    (lambda m, s: REGISTERED["taylor"].choose([1], 4, np.full(4, NAN)), "saliences of the model hold what is not a"),
    (lambda m, s: similarity_cut(DISTANCES[:3], 1), r"of shape \(3, 4\); expected \(L, L\) for a model of L layers"),
    (lambda m, s: similarity_cut(np.where(DISTANCES == 0.4, NAN, DISTANCES), 2), "holds nan for size 2 at start 1"),
    (lambda m, s: bridge_cut(m, Cut(0, 2), s), "drop a block from layer 1 on"),
    (lambda m, s: bridge_cut(m, Cut.of([2], mlp=[4]), s), "drop a block from layer 1 on"),
    (lambda m, s: bridge_cut(m, CUT, s[:1]), "there are 24 tokens to fit a map of 48 by 48 on"),
    (lambda m, s: bridge_cut(shared_model("mixtral", 4), Cut(1, 1), s), "ends in no single matrix"),
    (lambda m, s: merge_layers(shared_model("qwen3_moe", 4), [0, (1, 2), 3]), "layer 2 has other matrices than 1"),
]


@pytest.mark.parametrize(("call", "said"), REFUSED)
def test_what_can_not_be_chosen_merged_or_bridged(call, said, model, sequences, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what is no array comes to the rule itself
    with pytest.raises(InputError, match=said):
        call(model, sequences)
