"""Rules: each against a plain reading of its formula, on distances made by hand, and on models with harmless layers."""

import jaxtyping
import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.sublayers import is_parallel, writers
from deeper_layers.rules import greedy
from deeper_layers.rules.choosing import REGISTERED, SEEDS, cuts_of_rule
from deeper_layers.rules.similarity import distance_matrix, distance_table, similarity_cut
from deeper_layers.similarity import residuals_of, saliences, sublayer_cosines, token_cosines
from deeper_layers.sweeping.searching import losses_on
from deeper_layers.sweeping.tree import Tree
from tests.tiny import search, tiny_model

LAYERS, NAN = 6, np.nan
WITHOUT_LAST = ("similarity", "simple", "greedy", "window-cosine", *(f"random-{seed}" for seed in SEEDS))
DISTANCES = np.array([
    [0.5, 0.2, 0.2, 0.1],  # that of the last layer is the smallest, and is none to drop
    [0.3, 0.4, 0.1, NAN],
    [0.6, 0.1, NAN, NAN],
    [0.1, NAN, NAN, NAN],
])  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", layers=LAYERS)


@pytest.fixture(scope="module")
def sequences():
    return list(torch.randint(1, 128, (3, 20), generator=torch.Generator().manual_seed(0)))


# --- the paper's, on distances made by hand ---------------------------------------------------------------


def test_the_most_similar_block_without_the_last_layer_and_the_first_of_equals():
    cuts = [Cut(0, 0), Cut(1, 1), Cut(0, 2), Cut(0, 3)]
    assert cuts_of_rule("similarity", [0, 1, 2, 3], 4, DISTANCES) == cuts
    assert [similarity_cut(DISTANCES.tolist(), size) for size in range(4)] == cuts
    assert cuts_of_rule("simple", [2, 0, 3], 4) == [Cut(1, 2), Cut(0, 0), Cut(0, 3)]


def test_what_is_no_rule_or_no_distances(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what is no array comes to the rule itself
    lost = DISTANCES.copy()
    lost[1, 1] = NAN
    shape = r"expected an array of numbers \(L, L\) for a model of L layers"
    for function, arguments, said in [
        (cuts_of_rule, ("best", [1], 4), "rule is 'best', expected one of 'similarity', 'simple', '"),
        (cuts_of_rule, ("similarity", [1], 4), "needs distances, got None: measure them with angular_distances"),
        (similarity_cut, (DISTANCES, 4), "size is 4"),
        (similarity_cut, (["a"], 1), r"distances is \['a'\]; expected an array of numbers"),
        (similarity_cut, ([[1.0], [1.0, 2.0]], 1), "expected an array of numbers"),
        (similarity_cut, (DISTANCES[:3], 1), shape),
        (similarity_cut, (lost, 2), "holds nan for size 2 at start 1; expected a number for every start from 0 to 1"),
    ]:
        with pytest.raises(InputError, match=said):
            function(*arguments)


def test_rows_and_back():
    table = distance_table(DISTANCES, DISTANCES / 10, 7)
    assert list(zip(table["start"], table["size"])) == [(s, size) for size in range(1, 5) for s in range(5 - size)]
    row = {"start": 2, "size": 2, "distance": 0.1, "stderr": 0.01, "samples": 7}
    assert table.iloc[6].to_dict() == pytest.approx(row)
    np.testing.assert_array_equal(distance_matrix(table.sample(frac=1, random_state=0)), DISTANCES)


# --- all of them ------------------------------------------------------------------------------------------


def known_by_hand(layers: int) -> dict:
    """Something of everything that a rule can ask for."""
    draw = np.random.default_rng(0).random
    return {
        "": None,
        "distances": draw((layers, layers)),
        "losses": lambda cuts: [sum(cut.dropped) + sum(cut.attention) + 2 * sum(cut.mlp) for cut in cuts],
        "cosines": draw((layers + 1, layers + 1)),
        "sublayers": draw((2, layers)),
        "saliences": draw(layers),
        "likeness": lambda merged: len(merged) / layers,
    }


@pytest.mark.parametrize("rule", REGISTERED.values(), ids=lambda rule: rule.name)
def test_a_rule_says_where_it_is_from_and_chooses_cuts_that_fit(rule):
    assert "arXiv" in rule.source and rule.words
    layers, known = 11, known_by_hand(11)[rule.needs]
    cuts = rule.choose([0, 2, 3], layers, known)
    assert cuts[0] == Cut(0, 0) and rule.passes(3, layers) >= 0
    for size, cut in zip([0, 2, 3], cuts, strict=True):
        cut.check(layers)
        parts = 2 * cut.size + len(cut.attention) + len(cut.mlp)
        assert parts == size * (1 if rule.name in ("llm-drop-attention", "llm-drop-mlp") else 2)
        assert rule.name not in WITHOUT_LAST or layers - 1 not in cut.dropped
    if rule.name.endswith("-plus"):  # the first four and the last two stay
        assert set(rule.choose([5], layers, known)[0].dropped) == set(range(4, 9))
    with pytest.raises(InputError, match=r"size is \d+; expected 0 to "):
        rule.choose([6 if rule.name.endswith("-plus") else 11], layers, known)
    if rule.needs:
        with pytest.raises(InputError, match=f"needs {rule.needs}, got None"):
            rule.choose([1], layers)
    if rule.needs not in ("", "distances"):
        bad = lambda asked: [NAN] * len(asked)  # noqa: E731
        with pytest.raises(InputError, match=f"the {rule.needs} of the model hold what is not a number"):
            rule.choose([1], layers, bad if callable(known) else known * NAN)


def test_random_draws_differ_and_are_nested():
    assert len({cuts_of_rule(f"random-{seed}", [4], 20)[0] for seed in SEEDS}) == 5
    small, large = cuts_of_rule("random-0", [3, 7], 20)
    assert set(small.dropped) < set(large.dropped)


@pytest.mark.parametrize("layers", [3, 5, 8])
def test_prices_are_nodes_of_trees(layers):
    def nodes_of(rule: str, size: int) -> list[int]:
        """Of each step of a search, in which the last candidates lose least."""

        def losses(cuts):
            nodes.append(Tree(cuts, layers).nodes)
            return [-sum(cut.dropped) - sum(cut.attention) for cut in cuts]

        nodes: list[int] = []
        REGISTERED[rule].choose([size], layers, losses)
        return nodes

    for rule, size in (("block-pruner", layers - 1), ("greedy", layers - 2)):
        assert sum(nodes_of(rule, size)) / layers <= REGISTERED[rule].passes(size, layers)
    first = nodes_of("block-pruner", layers - 1)[0] / layers
    assert first == pytest.approx(greedy.passes_by_sublayer(1, layers) / 2, rel=0.3)
    assert nodes_of("greedy", 1) == [pytest.approx(layers * greedy.passes_by_layer(1, layers))]
    assert nodes_of("perplexity", 1) == [pytest.approx(layers * greedy.passes_alone(1, layers))]


def test_of_equal_losses_the_lowest_layer_goes_and_the_ends_stay():
    losses = lambda cuts: [1.0] * len(cuts)  # noqa: E731
    assert cuts_of_rule("greedy", [2, 4], LAYERS, losses) == [Cut(1, 2), Cut(1, 4)]


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
    expected, windows, tokens = np.zeros(LAYERS), np.zeros(LAYERS - 1), sum(map(len, sequences))
    for sequence in sequences:
        states = plain_residuals(model, sequence)
        torch.testing.assert_close(residuals_of(model, sequence), torch.stack(states), rtol=1e-6, atol=1e-6)
        for layer in range(LAYERS):
            for step, found, sign in ((1, expected, -1), (2, windows, 1)):
                for one, other in zip(states[layer].numpy(), states[min(layer + step, LAYERS)].numpy()):
                    if layer + step <= LAYERS:
                        found[layer] += (sign < 0) + sign * one @ other / np.sqrt(one @ one) / np.sqrt(other @ other)
    cosines = token_cosines(model, sequences)
    np.testing.assert_allclose(1 - np.diagonal(cosines, 1), expected / tokens, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(cosines, 2), windows / tokens, atol=1e-6)
    order = sorted(range(LAYERS), key=lambda layer: expected[layer])
    assert search(model, "block-influence", [1, 3], sequences) == [Cut.of(order[:1]), Cut.of(order[:3])]
    # the block of two that ends with the last layer is no candidate
    assert search(model, "window-cosine", [2], sequences) == [Cut(int(np.argmax(windows[:-1])), 2)]


def summed_cosine(one, other) -> float:
    return torch.cosine_similarity(one.double(), other.double(), dim=-1).sum().item()


def test_cosines_of_sublayers_are_those_of_what_each_adds(model, sequences):
    expected, layers = np.zeros((2, LAYERS)), decoder_layers(model)
    with torch.no_grad():
        for sequence in sequences:
            hidden = model.model.embed_tokens(sequence[None])
            rotary = model.model.rotary_emb(hidden, torch.arange(len(sequence))[None])
            mask = torch.full((len(sequence), len(sequence)), -torch.inf).triu(1)[None, None]
            for number, layer in enumerate(layers):
                added = layer.self_attn(layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=mask)
                between = hidden + added[0]
                after = between + layer.mlp(layer.post_attention_layernorm(between))
                expected[:, number] += [summed_cosine(hidden, between), summed_cosine(between, after)]
                hidden = after
    expected /= sum(map(len, sequences))
    np.testing.assert_allclose(sublayer_cosines(model, sequences), expected, atol=1e-6)
    assert not is_parallel(layers[0], lambda layer, hidden: layer(hidden, position_embeddings=rotary), hidden)
    attentions = [int(layer) for layer in np.argsort(1 - expected[0])]
    assert search(model, "llm-drop-attention", [2], sequences) == [Cut.of(attention=attentions[:2])]
    assert search(model, "llm-drop-mlp", [1], sequences) == [Cut.of(mlp=[int(np.argmax(expected[1]))])]


def test_where_both_sublayers_read_one_residual_the_mlp_is_compared_with_that(sequences):
    model, expected = tiny_model("phi", layers=LAYERS), np.zeros((2, LAYERS))
    for sequence in sequences:
        states = plain_residuals(model, sequence)
        for number, layer in enumerate(decoder_layers(model)):
            with torch.no_grad():
                of_mlp = layer.mlp(layer.input_layernorm(states[number].float()))
            of_attention = states[number + 1] - states[number] - of_mlp
            expected[:, number] += [summed_cosine(states[number], states[number] + x) for x in (of_attention, of_mlp)]
    np.testing.assert_allclose(sublayer_cosines(model, sequences), expected / sum(map(len, sequences)), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # qwen2 has biases, which have no salience
def test_saliences_are_sums_of_weights_times_gradients(family, sequences):
    model, copy = (tiny_model(family, layers=LAYERS) for _ in range(2))
    batch = torch.stack(sequences)
    copy(batch, labels=batch).loss.backward()
    expected = [
        sum((p * p.grad).abs().sum().item() for name, p in layer.named_parameters() if not name.endswith("bias"))
        for layer in decoder_layers(copy)
    ]
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
        silent += [layers[i].mlp for i in (*cut.dropped, *cut.mlp)]
        handles = [part.register_forward_hook(nothing) for part in silent]
        with torch.no_grad():
            found = model(batch, labels=batch).loss.item()
        for handle in handles:
            handle.remove()
        return found

    return lambda cuts: [loss(cut) for cut in cuts]


def test_searches_by_loss_are_loops_over_candidates(model, sequences):
    losses = plain_losses(model, sequences)
    greedily: list[int] = []
    for _ in range(4):
        left = [layer for layer in range(1, LAYERS - 1) if layer not in greedily]
        greedily.append(left[int(np.argmin(losses([Cut.of([*greedily, layer]) for layer in left])))])
    sizes = list(range(5))
    assert search(model, "greedy", sizes, sequences) == [Cut.of(greedily[:size]) for size in sizes]
    order = [int(layer) for layer in np.argsort(losses([Cut(layer, 1) for layer in range(LAYERS)]))]
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


@pytest.mark.parametrize(
    "rule",
    [
        rule.name
        for rule in REGISTERED.values()
        if rule.needs not in ("", "distances") and not rule.changes and "plus" not in rule.name
    ],
)
def test_each_rule_finds_the_harmless_layers(rule, harmless):
    (cut,) = search(harmless[0], rule, [2], harmless[1])
    expected = {"llm-drop-attention": Cut.of(attention=[2, 3]), "llm-drop-mlp": Cut.of(mlp=[2, 3])}
    assert cut == expected.get(rule, Cut(2, 2))
    np.testing.assert_allclose(losses_on(*harmless)([cut]), losses_on(*harmless)([Cut(0, 0)]), rtol=1e-5)


def test_there_is_text_to_look_at(model):
    for measured in (token_cosines, sublayer_cosines, saliences):
        with pytest.raises(InputError, match="no sequence to calibrate on"):
            measured(model, [])
