"""Geometry of residuals: formulas on clouds of known value, a pass beside a plain reading of it, the result kept."""

import math

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.experiments.distances import find_or_measure_geometry
from deeper_layers_companion.experiments.experiment import Experiment
from deeper_layers_companion.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers_companion.rules import geometry as measures
from deeper_layers_companion.rules.geometry import record_passes, select_tokens, skip_each_layer
from deeper_layers_companion.studies import which_layers
from tests.plain import batch, logits, parts
from tests.tiny import FAMILIES, VOCABULARY, shared_model, tiny_model

pytestmark = pytest.mark.quick

LAYERS, TOKENS = 4, 3
KEPT = [[3, 5, 8], [4, 9, 13], [1], [3, 7, 10]]  # of each sequence: evenly spaced up to the last, never the first
DRAW = np.random.default_rng(3)
SEQUENCES = [DRAW.integers(1, VOCABULARY, length).tolist() for length in (9, 14, 2, 11)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(width, seed=1):
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


# ---- clouds of known value -------------------------------------------------------------------------------


def test_cka_by_points_is_that_by_features():
    """As the paper has it: |Y'X|^2 / (|X'X| |Y'Y|), of points whose mean is taken away."""
    clouds = normal(60, 8) + 5, (normal(60, 5, seed=2) + normal(60, 8)[:, :5]) @ turned(5)
    x, y = (one - one.mean(dim=0) for one in clouds)
    norms = [torch.linalg.norm(one.T @ other) for one, other in ((y, x), (x, x), (y, y))]
    found = measures.linear_cka(*map(measures.gram_matrix, clouds))
    assert found == pytest.approx(float(norms[0] ** 2 / norms[1] / norms[2]), rel=1e-12)


@pytest.mark.parametrize(("points", "rank"), [
    (turned(7)[:4], 4), (turned(7)[:, :4], 4),
    (torch.diag(torch.tensor([1.0, math.sqrt(3)])), math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))),
])  # fmt: skip
def test_effective_rank_is_the_number_of_directions(points, rank):
    assert math.exp(measures.spectral_entropy(points)) == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_torus(dimension):
    """In whatever space it lies, each point once. A torus has no edge, which would lower the dimension."""
    angles = 2 * math.pi * torch.rand(1500, dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torus = torch.cat([angles.cos(), angles.sin()], dim=1)
    found = measures.two_nn(torus)
    assert found == pytest.approx(dimension, rel=0.06)
    wide = torch.nn.functional.pad(torus, (0, 20)) @ turned(2 * dimension + 20)
    assert measures.two_nn(wide.repeat(2, 1)) == pytest.approx(found, rel=1e-6)


def test_two_nn_of_three_points_by_hand():
    """Their ratios are 3, 2 and 3 / 2, and the largest is left out."""
    logs, heights = np.log([1.5, 2]), -np.log([1 - 1 / 3, 1 - 2 / 3])
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert measures.two_nn(line) == pytest.approx(logs @ heights / (logs @ logs), rel=1e-9)
    assert math.isnan(measures.two_nn(line[:2].repeat(9, 1)))


def overlap(first, second, number):
    return measures.row_overlap(*(measures.nearest(points, number).indices for points in (first, second))).mean().item()


def test_neighbours_in_common():
    points = normal(300, 4)
    assert overlap(points, 2 * points @ turned(4) + 1, 10) == 1
    line, moved = torch.arange(5.0)[:, None] ** 2, torch.tensor([0.0, 1, 4, 9, 2.4])[:, None]
    # nearest: 1, 0, 1, 2, 3; and then 1, 0, 4, 2, 1: at three of five
    assert overlap(line, moved, 1) == pytest.approx(3 / 5)


def test_divergence_of_distributions():
    first, second = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    apart, common = measures.compare_logits(first, second)
    assert apart.item() == pytest.approx(0.25 * math.log(2), rel=1e-6) and common.item() == 1
    tops = torch.arange(10.0)[None]
    # 5 to 9, and 5, 6 and lower ones
    assert measures.compare_logits(tops, tops.roll(3))[1].item() == pytest.approx(2 / 5)


# ---- what a pass records ---------------------------------------------------------------------------------


def test_one_pass_records_a_plain_reading_of_the_formulas():
    llama, given = shared_model("llama", LAYERS), batch(SEQUENCES)
    rows, columns = select_tokens(given["attention_mask"], TOKENS)
    assert [columns[rows == row].tolist() for row in range(len(KEPT))] == KEPT
    (found,) = record_passes(llama, [given], tokens=TOKENS)
    start = 0
    for number, (sequence, kept) in enumerate(zip(SEQUENCES, KEPT, strict=True)):
        states, *added = parts(llama, tokens := torch.tensor([sequence]))
        x, a, m = (one[:, kept] for one in (states, *added))
        own = slice(start, start := start + len(kept))
        np.testing.assert_allclose(found["residuals"][:, own], x, atol=2e-5)
        for place, (added, to) in enumerate(((a, x[:-1]), (m, x[:-1] + a), (a + m, x[:-1]))):
            cosine, ratio = torch.cosine_similarity(added, to, dim=-1), added.norm(dim=-1) / to.norm(dim=-1)
            np.testing.assert_allclose(found["cosines"][own, :, place], cosine.T, atol=2e-5)
            np.testing.assert_allclose(found["norms"][own, :, place], ratio.T, rtol=1e-4)
        entropy = [measures.spectral_entropy(one) for one in states]
        np.testing.assert_allclose(found["entropy"][number], entropy, atol=1e-5)
        with torch.no_grad():
            lens = llama.lm_head(llama.model.norm(states[:, -1].float()))
        expected = torch.stack(measures.compare_logits(logits(llama, tokens)[0, -1:], lens), dim=1)
        np.testing.assert_allclose(found["lens"][number], expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skipped_layer_is_a_dropped_one(family):
    model = shared_model(family, LAYERS)
    (found,) = skip_each_layer(model, [batch(SEQUENCES)], tokens=TOKENS)
    ends = np.cumsum(list(map(len, KEPT))) - 1  # the last token of each sequence
    for layer in range(LAYERS):
        pruned = drop_layers(model, Cut(layer, 1))
        outputs = ([logits(one, torch.tensor([s]))[0, -1] for s in SEQUENCES] for one in (model, pruned))
        expected, _ = measures.compare_logits(*map(torch.stack, outputs))
        np.testing.assert_allclose(found["output"][ends, layer], expected, rtol=1e-3, atol=1e-5)
    assert found["output"].min() > 1e-4
    assert (np.triu(np.ones((LAYERS, LAYERS)), 1) == (found["later"].mean(axis=0) > 1e-3)).all()


def test_what_later_layers_add_without_an_earlier_one():
    llama = shared_model("llama", LAYERS)
    (found,) = skip_each_layer(llama, [batch(SEQUENCES[:1])], tokens=TOKENS)
    tokens = torch.tensor(SEQUENCES[:1])
    states, fewer = (parts(model, tokens)[0][:, KEPT[0]] for model in (llama, drop_layers(llama, Cut(1, 1))))
    added, changed = states[3] - states[2], fewer[2] - fewer[1]  # by layer 2, after layer 1 or after layer 0
    np.testing.assert_allclose(found["later"][:, 1, 2], (changed - added).norm(dim=-1) / added.norm(dim=-1), rtol=1e-4)


def test_a_layer_that_does_nothing_shows_in_every_measure():
    model = tiny_model("llama", layers=LAYERS)
    torch.nn.init.zeros_(decoder_layers(model)[2].self_attn.o_proj.weight)
    torch.nn.init.zeros_(decoder_layers(model)[2].mlp.down_proj.weight)
    batches = [batch(SEQUENCES[:2]), batch(SEQUENCES[2:])]
    passes, skips = (list(run(model, batches, tokens=TOKENS)) for run in (record_passes, skip_each_layer))
    layers, states, pairs = measures.combine_batches(passes, skips, neighbours=2)
    for name in ("norm_attention", "norm_mlp", "norm_layer", "skip"):
        assert layers[name].argmin() == 2 and layers[name][2] < 1e-3 < layers[name][1]
    for name in ("lens_divergence", "lens_overlap", "prompt_entropy", "effective_rank"):
        assert states[name][2] == pytest.approx(states[name][3], abs=1e-3)
    for name, value in (("cka", 1), ("neighbour_overlap", 1), ("skip_later", 0)):
        assert pairs[name][2, 3] == pytest.approx(value, abs=1e-3) != pytest.approx(pairs[name][1, 3], abs=1e-3)


def test_layers_without_two_sublayers_are_refused():
    with pytest.raises(InputError, match="has no mlp"):
        next(record_passes(shared_model("mamba", 2), [batch(SEQUENCES)], tokens=TOKENS))


# ---- the result ------------------------------------------------------------------------------------------

SMALL = {"samples": 40, "sequence_length": 24, "tokens": 2, "neighbours": 4, "skip_sequences": 9}


def measured(folder, results, **others):
    parameters = WhichLayersParameters(model=str(folder), results=str(results), **SMALL | others)
    return find_or_measure_geometry(Experiment(parameters))


def test_what_is_kept_of_a_measurement(tiny_folder, tmp_path):
    layers, result = 5, measured(tiny_folder, tmp_path)
    assert len(result.rows) == 7 * layers + 6 * (layers + 1)
    assert result.details["points"] == SMALL["samples"] * SMALL["tokens"] and result.path.stat().st_size < 30_000
    values = result.rows.pivot_table(index="start", columns="metric", values="value")
    assert values.loc[layers, ["lens_divergence", "lens_overlap"]].tolist() == [0, 1]
    assert np.isfinite(values["two_nn"]).all() and (values["two_nn_shuffled"] > values["two_nn"]).mean() > 0.5
    blocks = which_layers.geometry(tmp_path).query("model == @result.key['model']['name']")
    missing = blocks.pivot(index=["layer", "size"], columns="measure", values="value").isna().sum()
    assert set(missing.index) == set(which_layers.MEASURES.index)
    assert missing[missing > 0].to_dict() == {"later layers without a layer": layers}  # nothing comes after these
    assert measured(tiny_folder, tmp_path, measure=False).path == result.path
    assert measured(tiny_folder, tmp_path, measure=False, tokens=1) is None


def test_passes_with_and_without_a_layer_are_kept_apart(tiny_folder, tmp_path):
    """Where both are of the same single batch."""
    one = measured(tiny_folder, tmp_path, samples=6, skip_sequences=6)
    assert one.rows["value"].notna().all() and one.details["points"] == 6 * SMALL["tokens"]


@pytest.mark.parametrize(("given", "said"), [
    ({"tokens": 100}, "samples times tokens is 25600; expected a whole number from 1 to 4096"),
    ({"samples": 8}, "skip_sequences is 32; expected a whole number from 1 to 8"),
    ({"samples": 2, "tokens": 4, "neighbours": 8, "skip_sequences": 2}, "neighbours is 8; expected .* 1 to 7"),
])  # fmt: skip
def test_no_more_tokens_than_can_be_compared(given, said):
    with pytest.raises(InputError, match=said):
        WhichLayersParameters(**given)
