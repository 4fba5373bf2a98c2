"""Geometry of residuals: formulas on clouds of known value, and what a pass records beside a plain reading of it."""

import math

import numpy as np
import pytest
import torch

from deeper_layers.cuts import ATTENTION, MLP, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.rules import geometry as measures
from deeper_layers.rules.geometry import (
    kept_tokens,
    measure_layers,
    measure_pairs,
    measure_states,
    record_passes,
    skip_each_layer,
)
from tests.plain import batch
from tests.tiny import FAMILIES, VOCABULARY, tiny_model

pytestmark = pytest.mark.quick

LAYERS, TOKENS = 4, 3
LENGTHS = (9, 14, 2, 11)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(width, seed=1):
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


@pytest.fixture(scope="module")
def sequences():
    draw = np.random.default_rng(3)
    return [draw.integers(1, VOCABULARY, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", layers=LAYERS)


# ---- clouds of known value -------------------------------------------------------------------------------


def cka(first, second):
    return measures.linear_cka(measures.gram(first), measures.gram(second))


def test_cka_sees_no_turn_no_scale_and_no_shift():
    points = normal(60, 8)
    assert cka(points, 3 * points @ turned(8) + 5) == pytest.approx(1, abs=1e-12)
    # of clouds that are white and share some of their coordinates it is the share of those
    white = torch.linalg.qr(points - points.mean(dim=0)).Q
    assert cka(white[:, :4], white[:, 4:]) == pytest.approx(0, abs=1e-12)
    assert cka(white[:, :4], white[:, 2:6]) == pytest.approx(0.5, abs=1e-12)
    # by features, as the paper has it: |Y'X|^2 / (|X'X| |Y'Y|)
    x, y = points - points.mean(dim=0), (normal(60, 5, seed=2) + points[:, :5]) @ turned(5)
    y = y - y.mean(dim=0)
    norms = [torch.linalg.norm(one.T @ other) for one, other in ((y, x), (x, x), (y, y))]
    assert cka(x, y) == pytest.approx(float(norms[0] ** 2 / norms[1] / norms[2]), rel=1e-12)


@pytest.mark.parametrize(("points", "rank"), [
    (torch.eye(6), 6), (torch.ones(5, 3), 1), (torch.diag(torch.tensor([3.0, 3.0, 0.0])), 2),
    (torch.diag(torch.tensor([1.0, math.sqrt(3)])), math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))),
    (turned(7)[:4], 4), (turned(7)[:, :4], 4),
])  # fmt: skip
def test_effective_rank_is_the_number_of_directions(points, rank):
    assert math.exp(measures.spectral_entropy(points)) == pytest.approx(rank, rel=1e-6)


def circle(angles):
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_torus(dimension):
    """In whatever space it lies. A torus has no edge, which would lower the dimension."""
    angles = 2 * math.pi * torch.rand(1500, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torus = torch.cat([circle(of_one) for of_one in angles.T], dim=1)
    assert measures.two_nn(torus) == pytest.approx(dimension, rel=0.06)
    wide = torch.nn.functional.pad(torus, (0, 20)) @ turned(2 * dimension + 20)
    assert measures.two_nn(wide) == pytest.approx(measures.two_nn(torus), rel=1e-6)
    assert measures.two_nn(wide.repeat(2, 1)) == pytest.approx(
        measures.two_nn(wide), rel=1e-6
    )  # each point counts once


def test_shuffled_coordinates_fill_the_space_that_they_span():
    line = normal(1500, 1).repeat(1, 4)
    assert measures.two_nn(line) == pytest.approx(1, rel=0.06)
    apart = measures.shuffled(line)
    assert torch.equal(apart.sort(dim=0).values, line.sort(dim=0).values)
    assert measures.two_nn(apart) == pytest.approx(4, rel=0.1)
    assert math.isnan(measures.two_nn(torch.ones(9, 2)))


def overlap(first, second, number):
    nearest = [measures.nearest(points, number).indices for points in (first, second)]
    return measures.neighbour_overlap(*nearest)


def test_no_more_neighbours_than_other_points():
    """Short sequences may give fewer points than were asked for."""
    points = torch.eye(4)
    assert measures.nearest(points, 3).indices.shape == (4, 3)
    with pytest.raises(InputError, match="neighbours is 4 of 4 points, expected fewer than there are"):
        measures.nearest(points, 4)


def test_neighbours_in_common():
    points = normal(300, 4)
    assert overlap(points, 2 * points @ turned(4) + 1, 10) == 1
    assert overlap(points, normal(300, 4, seed=9), 10) == pytest.approx(10 / 299, abs=0.02)  # by chance
    line, moved = torch.arange(5.0)[:, None] ** 2, torch.tensor([0.0, 1, 4, 9, 2.4])[:, None]
    # nearest: 1, 0, 1, 2, 3; and then 1, 0, 4, 2, 1: at three of five
    assert overlap(line, moved, 1) == pytest.approx(3 / 5)


def test_divergence_of_distributions():
    first, second = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    apart, common = measures.divergence(first, second)
    assert apart.item() == pytest.approx(0.25 * math.log(2), rel=1e-6) and common.item() == 1
    tops = torch.arange(10.0)[None]
    assert measures.divergence(tops, tops.roll(3))[1].item() == pytest.approx(2 / 5)  # 5 to 9, and 5, 6 and lower ones


# ---- what a pass records ---------------------------------------------------------------------------------


def test_tokens_are_evenly_spaced_up_to_the_last(sequences):
    rows, columns = kept_tokens(batch(sequences)["attention_mask"], TOKENS)
    of_each = [columns[rows == row].tolist() for row in range(len(LENGTHS))]
    assert of_each == [[3, 5, 8], [4, 9, 13], [1], [3, 7, 10]]


def plain(model, tokens, kept):
    """Residuals [L+1, N, D], and what attention and MLP add [L, N, D], from one sequence alone and hooks."""
    states, added = [], {ATTENTION: [], MLP: []}

    def entering(_, arguments, named):
        states.append(arguments[0] if arguments else named["hidden_states"])

    layers = decoder_layers(model)
    handles = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(lambda _, given, left: states.append(left)))
    for layer in layers:
        for part, name in ((ATTENTION, "self_attn"), (MLP, "mlp")):
            keep = added[part].append
            handles.append(getattr(layer, name).register_forward_hook(
                lambda _, given, left, keep=keep: keep(left[0] if isinstance(left, tuple) else left)
            ))  # fmt: skip
    with torch.no_grad():
        output = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    for handle in handles:
        handle.remove()
    stacked = [torch.stack(one)[:, 0, kept].double() for one in (states, added[ATTENTION], added[MLP])]
    return *stacked, output, torch.stack(states)[:, 0]


def test_one_pass_records_a_plain_reading_of_the_formulas(llama, sequences):
    (found,) = record_passes(llama, [batch(sequences)], tokens=TOKENS)
    start = 0
    for number, (tokens, kept) in enumerate(zip(sequences, [[3, 5, 8], [4, 9, 13], [1], [3, 7, 10]])):
        x, a, m, output, everywhere = plain(llama, tokens, kept)
        own = slice(start, start := start + len(kept))
        np.testing.assert_allclose(found["residuals"][:, own], x, atol=2e-5)
        for place, (added, to) in enumerate(((a, x[:-1]), (m, x[:-1] + a), (a + m, x[:-1]))):
            lengths = added.norm(dim=-1), to.norm(dim=-1)
            cosine = (added * to).sum(-1) / lengths[0] / lengths[1]
            np.testing.assert_allclose(found["cosines"][own, :, place], cosine.T, atol=2e-5)
            np.testing.assert_allclose(found["norms"][own, :, place], (lengths[0] / lengths[1]).T, rtol=1e-4)
        for state, residual in enumerate(everywhere):
            values = np.linalg.eigvalsh((residual @ residual.T).double().numpy()).clip(1e-12)
            shares = values / values.sum()
            assert found["entropy"][number, state] == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-5)
            with torch.no_grad():
                lens = llama.lm_head(llama.model.norm(residual[-1:]))
            expected = [one.item() for one in measures.divergence(output[None], lens)]
            np.testing.assert_allclose(found["lens"][number, state], expected, atol=1e-4)
    # what leaves the last layer gives the output itself
    np.testing.assert_allclose(found["lens"][:, -1], [[0, 1]] * len(sequences), atol=1e-9)
    assert found["lens"][:, 0, 0].min() > 0.01


def last_logits(model, sequences):
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([tokens])).logits[0, -1] for tokens in sequences])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skipped_layer_is_a_dropped_one(family, sequences):
    model = tiny_model(family, layers=LAYERS)
    (found,) = skip_each_layer(model, [batch(sequences)], tokens=TOKENS)
    output, (rows, _) = last_logits(model, sequences), kept_tokens(batch(sequences)["attention_mask"], TOKENS)
    ends = (torch.diff(rows, append=torch.tensor([-1])) != 0).numpy()  # the last token of each sequence
    for layer in range(LAYERS):
        expected = measures.divergence(output, last_logits(drop_layers(model, Cut(layer, 1)), sequences))[0]
        np.testing.assert_allclose(found["output"][ends, layer], expected, rtol=1e-3, atol=1e-5)
    assert found["output"].min() > 1e-4
    assert (np.triu(np.ones((LAYERS, LAYERS)), 1) == (found["later"].mean(axis=0) > 1e-3)).all()


def test_what_later_layers_add_without_an_earlier_one(llama, sequences):
    (found,) = skip_each_layer(llama, [batch(sequences[:1])], tokens=TOKENS)
    whole = plain(llama, sequences[0], [3, 5, 8])[0]
    without = plain(drop_layers(llama, Cut(1, 1)), sequences[0], [3, 5, 8])[0]
    added, changed = (whole[3] - whole[2]), (without[2] - without[1])  # by layer 2, after layer 1 or after layer 0
    expected = (changed - added).norm(dim=-1) / added.norm(dim=-1)
    np.testing.assert_allclose(found["later"][:, 1, 2], expected, rtol=1e-4)


def test_a_layer_that_does_nothing_shows_in_every_measure(sequences):
    model = tiny_model("llama", layers=LAYERS)
    with torch.no_grad():
        for part in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
            part.weight.zero_()
    batches = [batch(sequences[:2]), batch(sequences[2:])]
    passes, skips = (list(run(model, batches, tokens=TOKENS)) for run in (record_passes, skip_each_layer))
    layers, states = measure_layers(passes, skips), measure_states(passes)
    pairs = measure_pairs(passes, skips, neighbours=2)
    assert {len(values) for values in layers.values()} == {LAYERS}
    assert {len(values) for values in states.values()} == {LAYERS + 1}
    for name in ("norm_attention", "norm_mlp", "norm_layer", "skip"):
        assert layers[name].argmin() == 2 and layers[name][2] < 1e-3 < layers[name][1]
    for name in ("lens_divergence", "lens_overlap", "prompt_entropy", "effective_rank"):
        assert states[name][2] == pytest.approx(states[name][3], abs=1e-3)
    assert pairs["cka"][2, 3] == pytest.approx(1, abs=1e-4) and pairs["cka"][1, 2] < 0.99
    assert pairs["neighbour_overlap"][2, 3] == 1
    assert pairs["skip_later"][2, 3] < 1e-3 < pairs["skip_later"][1, 3]


def test_layers_without_two_sublayers_are_refused(sequences):
    with pytest.raises(InputError, match="has no mlp"):
        next(record_passes(tiny_model("mamba", layers=2), [batch(sequences)], tokens=TOKENS))
