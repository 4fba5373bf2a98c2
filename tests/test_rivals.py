"""Rival rules: each against a plain reading of its formula, and on models whose harmless layers are known."""

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.sublayers import is_parallel, writers
from deeper_layers.rules.block_influence import block_influence
from deeper_layers.rules.block_pruner import candidate_passes, sublayer_order
from deeper_layers.rules.chance import SEEDS
from deeper_layers.rules.choosing import REGISTERED, cuts_of_rule
from deeper_layers.rules.perplexity import alone_nodes
from deeper_layers.rules.rule import Known
from deeper_layers.similarity import residuals_of, saliences, sublayer_cosines, token_cosines
from deeper_layers.sweeping.searching import losses_on
from deeper_layers.sweeping.tree import Tree
from tests.tiny import search, tiny_model

LAYERS = 6
WITHOUT_LAST = ("similarity", "simple", "greedy", "window-cosine", *(f"random-{seed}" for seed in SEEDS))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", layers=LAYERS)


@pytest.fixture(scope="module")
def sequences():
    return list(torch.randint(1, 128, (3, 20), generator=torch.Generator().manual_seed(0)))


def known_by_hand(layers: int) -> Known:
    """Something of everything that a rule can ask for."""
    draw = np.random.default_rng(0).random
    losses = lambda cuts: [sum(cut.dropped) + sum(cut.attention) + 2 * sum(cut.mlp) for cut in cuts]  # noqa: E731
    return Known(
        layers, draw((layers, layers)), losses, draw((layers + 1, layers + 1)), draw((2, layers)), draw(layers),
        lambda merged: len(merged) / layers,
    )  # fmt: skip


@pytest.mark.parametrize("rule", REGISTERED.values(), ids=lambda rule: rule.name)
def test_a_rule_says_where_it_is_from_and_chooses_cuts_that_fit(rule):
    assert "arXiv" in rule.source and rule.words
    layers = 11
    cuts = rule.choose([0, 2, 3], known_by_hand(layers))
    assert cuts[0] == Cut(0, 0) and rule.passes(3, layers) >= 0
    for size, cut in zip([0, 2, 3], cuts, strict=True):
        cut.check(layers)
        parts = 2 * cut.size + len(cut.attention) + len(cut.mlp)
        assert parts == size * (1 if rule.name in ("llm-drop-attention", "llm-drop-mlp") else 2)
        assert rule.name not in WITHOUT_LAST or layers - 1 not in cut.dropped
    if rule.needs:
        with pytest.raises(InputError, match=f"needs {rule.needs}, got None"):
            rule.choose([1], Known(layers))
    with pytest.raises(InputError, match="size is 11"):
        rule.choose([11], known_by_hand(layers))


def test_what_stays_under_the_plus_variants():
    for name in ("perplexity-plus", "taylor-plus"):
        cuts = cuts_of(name, [5], 11)
        assert set(cuts[0].dropped) == set(range(4, 9))
        with pytest.raises(InputError, match="size is 6; expected 0 to 5"):
            cuts_of(name, [6], 11)


def cuts_of(rule: str, sizes: list[int], layers: int) -> list[Cut]:
    return REGISTERED[rule].choose(sizes, known_by_hand(layers))


def test_random_draws_differ_and_are_nested():
    draws = {cuts_of_rule(f"random-{seed}", [4], 20)[0] for seed in SEEDS}
    assert len(draws) == 5
    small, large = cuts_of_rule("random-0", [3, 7], 20)
    assert set(small.dropped) < set(large.dropped)


# --- formulas, read plainly -------------------------------------------------------------------------------


def plain_residuals(model, tokens):
    """By transformers' own hidden states, whose last entry lies after the norm: that one from the last layer itself."""
    last = []
    handle = decoder_layers(model)[-1].register_forward_hook(
        lambda *given: last.append(given[-1][0] if isinstance(given[-1], tuple) else given[-1])
    )
    with torch.no_grad():
        hidden = model(tokens[None], output_hidden_states=True).hidden_states
    handle.remove()
    assert not torch.allclose(hidden[-1], last[0])
    return [state[0].double() for state in (*hidden[:-1], last[0])]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_block_influence_is_a_loop_over_hidden_states(family, sequences):
    model = tiny_model(family, layers=LAYERS)
    expected, windows, tokens = np.zeros(LAYERS), np.zeros(LAYERS - 1), 0
    for sequence in sequences:
        states = plain_residuals(model, sequence)
        torch.testing.assert_close(residuals_of(model, sequence), torch.stack(states), rtol=1e-6, atol=1e-6)
        for place in range(len(sequence)):
            tokens += 1
            for layer in range(LAYERS):
                one, other = states[layer][place].numpy(), states[layer + 1][place].numpy()
                expected[layer] += 1 - one @ other / np.sqrt(one @ one) / np.sqrt(other @ other)
            for layer in range(LAYERS - 1):
                one, other = states[layer][place].numpy(), states[layer + 2][place].numpy()
                windows[layer] += one @ other / np.sqrt(one @ one) / np.sqrt(other @ other)
    cosines = token_cosines(model, sequences)
    np.testing.assert_allclose(block_influence(cosines), expected / tokens, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(cosines, 2), windows / tokens, atol=1e-6)
    order = sorted(range(LAYERS), key=lambda layer: expected[layer])
    assert search(model, "block-influence", [1, 3], sequences) == [Cut.of(order[:1]), Cut.of(order[:3])]
    # the block of two that ends with the last layer is no candidate
    assert search(model, "window-cosine", [2], sequences) == [Cut(int(np.argmax(windows[:-1])), 2)]


def test_cosines_of_sublayers_are_those_of_what_each_adds(model, sequences):
    expected = np.zeros((2, LAYERS))
    with torch.no_grad():
        for sequence in sequences:
            hidden = model.model.embed_tokens(sequence[None])
            rotary = model.model.rotary_emb(hidden, torch.arange(len(sequence))[None])
            mask = torch.full((len(sequence), len(sequence)), -torch.inf).triu(1)[None, None]
            for number, layer in enumerate(decoder_layers(model)):
                added = layer.self_attn(layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=mask)
                between = hidden + added[0]
                after = between + layer.mlp(layer.post_attention_layernorm(between))
                for row, pair in enumerate([(hidden, between), (between, after)]):
                    expected[row, number] += torch.cosine_similarity(*(x.double() for x in pair), dim=-1).sum().item()
                hidden = after
    expected /= sum(map(len, sequences))
    np.testing.assert_allclose(sublayer_cosines(model, sequences), expected, atol=1e-6)
    assert not is_parallel(
        decoder_layers(model)[0], lambda layer, hidden: layer(hidden, position_embeddings=rotary), hidden
    )
    attentions = [int(layer) for layer in np.argsort(1 - expected[0])]
    assert search(model, "llm-drop-attention", [2], sequences) == [Cut.of(attention=attentions[:2])]
    assert search(model, "llm-drop-mlp", [1], sequences) == [Cut.of(mlp=[int(np.argmax(expected[1]))])]


def test_where_both_sublayers_read_one_residual_the_mlp_is_compared_with_that(sequences):
    model = tiny_model("phi", layers=LAYERS)
    expected = np.zeros((2, LAYERS))
    for sequence in sequences:
        states = plain_residuals(model, sequence)
        for number, layer in enumerate(decoder_layers(model)):
            with torch.no_grad():
                entering = states[number].float()
                of_mlp = layer.mlp(layer.input_layernorm(entering))
            parts = (states[number + 1] - states[number] - of_mlp, of_mlp)
            for row, added in enumerate(parts):
                expected[row, number] += (
                    torch.cosine_similarity(entering.double(), entering + added, dim=-1).sum().item()
                )
    expected /= sum(map(len, sequences))
    np.testing.assert_allclose(sublayer_cosines(model, sequences), expected, atol=1e-5)


def test_biases_have_no_salience(sequences):
    model = tiny_model("qwen2", layers=LAYERS)
    before = saliences(model, sequences)
    with torch.no_grad():
        for layer in decoder_layers(model):
            assert layer.self_attn.v_proj.bias is not None
    counted = [name for name, _ in decoder_layers(model)[0].named_parameters() if not name.endswith("bias")]
    model.zero_grad()
    losses = [model(input_ids=ids[None], labels=ids[None]).loss * (len(ids) - 1) for ids in sequences]
    (sum(losses) / sum(len(ids) - 1 for ids in sequences)).backward()
    plain = [
        sum((p * p.grad).abs().sum().item() for name, p in layer.named_parameters() if name in counted)
        for layer in decoder_layers(model)
    ]
    np.testing.assert_allclose(before, plain, rtol=1e-4)


def test_saliences_are_sums_of_weights_times_gradients(model, sequences):
    copy = tiny_model("llama", layers=LAYERS)
    batch = torch.stack(sequences)
    copy(batch, labels=batch).loss.backward()
    expected = [sum((p * p.grad).abs().sum().item() for p in layer.parameters()) for layer in decoder_layers(copy)]
    np.testing.assert_allclose(saliences(model, sequences), expected, rtol=1e-4)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    order = sorted(range(LAYERS), key=lambda layer: expected[layer])
    assert search(model, "taylor", [2], sequences) == [Cut.of(order[:2])]


def plain_losses(model, sequences):
    """By silencing, for each cut, both parts of its layers and its sublayers one by one."""
    batch, layers = torch.stack(sequences), decoder_layers(model)

    def nothing(_, __, output):
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    def loss(cut):
        silent = [layers[i].self_attn for i in (*cut.dropped, *cut.attention)]
        handles = [part.register_forward_hook(nothing) for part in silent]
        handles += [layers[i].mlp.register_forward_hook(nothing) for i in (*cut.dropped, *cut.mlp)]
        with torch.no_grad():
            found = model(batch, labels=batch).loss.item()
        for handle in handles:
            handle.remove()
        return found

    return lambda cuts: [loss(cut) for cut in cuts]


def test_one_shot_perplexity_and_block_pruner_are_loops_over_candidates(model, sequences):
    losses = plain_losses(model, sequences)
    alone = losses([Cut(layer, 1) for layer in range(LAYERS)])
    order = [int(layer) for layer in np.argsort(alone)]
    assert search(model, "perplexity", [1, 3], sequences) == [Cut.of(order[:1]), Cut.of(order[:3])]

    chosen: list[tuple[str, int]] = []
    cut_of = lambda some: Cut.of(**{part: [i for name, i in some if name == part] for part in ("attention", "mlp")})  # noqa: E731
    for _ in range(4):
        left = [(part, i) for part in ("attention", "mlp") for i in range(LAYERS) if (part, i) not in chosen]
        chosen.append(left[int(np.argmin(losses([cut_of([*chosen, one]) for one in left])))])
    assert search(model, "block-pruner", [1, 2], sequences) == [cut_of(chosen[:2]), cut_of(chosen)]


# --- known answers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harmless():
    """A model whose layers 2 and 3 add nothing, and text of which each token is the one that it finds likeliest."""
    model = tiny_model("llama", layers=LAYERS, seed=3)
    with torch.no_grad():
        for layer in (2, 3):
            for part in ("attention", "mlp"):
                for name, module in writers(decoder_layers(model)[layer], part):
                    getattr(module, name).zero_()
    start = torch.randint(1, 128, (4, 2), generator=torch.Generator().manual_seed(0))
    written = model.generate(start, max_new_tokens=22, do_sample=False, attention_mask=torch.ones_like(start))
    return model, list(written)


LOOKING = [name for name, rule in REGISTERED.items() if rule.needs not in ("", "distances") and "plus" not in name]


@pytest.mark.parametrize("rule", [name for name in LOOKING if not REGISTERED[name].changes])
def test_each_rule_finds_the_harmless_layers(rule, harmless):
    (cut,) = search(harmless[0], rule, [2], harmless[1])
    expected = {"llm-drop-attention": Cut.of(attention=[2, 3]), "llm-drop-mlp": Cut.of(mlp=[2, 3])}
    assert cut == expected.get(rule, Cut(2, 2))
    np.testing.assert_allclose(losses_on(*harmless)([cut]), losses_on(*harmless)([Cut(0, 0)]), rtol=1e-5)


# --- prices and refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [2, 4, 7])
def test_prices_are_nodes_of_trees(layers):
    def losses(cuts):
        nodes.append(Tree(cuts, layers).nodes)
        return [-sum(cut.dropped) - sum(cut.attention) for cut in cuts]

    nodes: list[int] = []
    sublayer_order(2 * (layers - 1), layers, losses)
    assert sum(nodes) / layers <= candidate_passes(layers - 1, layers)
    assert nodes[0] / layers == pytest.approx(candidate_passes(1, layers) / 2, rel=0.3)
    nodes.clear()
    REGISTERED["perplexity"].choose([1], Known(layers, losses=losses))
    assert nodes == [pytest.approx(layers * alone_nodes(1, layers))]


def test_what_is_not_a_number_is_refused(model):
    nan = lambda cuts: [float("nan")] * len(cuts)  # noqa: E731
    with pytest.raises(InputError, match="the attention of layer 0, keeps .* is not a number"):
        sublayer_order(1, LAYERS, nan)
    with pytest.raises(InputError, match="score of layer 0 is not a number"):
        REGISTERED["perplexity"].choose([1], Known(LAYERS, losses=nan))
    with pytest.raises(InputError, match="score of layer 4 is not a number"):
        REGISTERED["perplexity-plus"].choose([1], Known(8, losses=nan))
    sublayers = np.full((2, LAYERS), 0.5)
    sublayers[1, 2] = np.nan
    with pytest.raises(InputError, match="score of layer 2 is not a number"):
        REGISTERED["llm-drop"].choose([1], Known(LAYERS, sublayers=sublayers))
    cosines = np.full((LAYERS + 1, LAYERS + 1), 0.5)
    cosines[3, 5] = np.nan
    for rule, size in (("window-cosine", 2), ("replaceme", 2), ("streamline", 1)):
        with pytest.raises(InputError, match="layer 3 and layer 5 is not a number"):
            REGISTERED[rule].choose([size], Known(LAYERS, cosines=cosines))
    with pytest.raises(InputError, match="merged layers is not a number"):
        REGISTERED["laco"].choose([1], Known(LAYERS, likeness=lambda layers: float("nan")))
    for measured in (token_cosines, sublayer_cosines, saliences):
        with pytest.raises(InputError, match="no sequence to calibrate on"):
            measured(model, [])
