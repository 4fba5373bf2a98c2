"""Maps in the place of the last layers, each against a plain reading of its formula."""

import numpy as np
import pytest
import torch
from torch import nn

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.pruning import drop_layers
from deeper_layers.similarity import iterate_residuals
from deeper_layers.sweeping.sweeps import text_loss
from deeper_layers_companion.rules import end_maps
from tests.plain import logits
from tests.tiny import shared_model

LAYERS, SIZE = 6, 2


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request):
    return shared_model(request.param, LAYERS)


@pytest.fixture(scope="module")
def sequences():
    return list(torch.randint(1, 128, (12, 24), generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def residuals(model, sequences):
    return end_maps.EndResiduals(model, sequences, 3)


def plain_residuals(model, sequences) -> torch.Tensor:
    """What enters each layer and leaves the last, without first tokens: [L + 1, N, D]."""
    return torch.cat([residuals[:, 1:] for residuals in iterate_residuals(model, sequences)], dim=1)


def test_residuals_are_those_around_the_last_layers_without_first_tokens(model, sequences, residuals):
    every = plain_residuals(model, sequences)
    for size in range(4):
        torch.testing.assert_close(residuals.entering(size).double(), every[LAYERS - size])
    assert residuals.lengths == [23] * 12


def test_the_affine_map_is_the_least_squares_one(model, sequences, residuals):
    every = plain_residuals(model, sequences)
    entering = torch.cat([every[LAYERS - SIZE], torch.ones(every.shape[1], 1)], dim=1)
    solution = torch.linalg.lstsq(entering, every[LAYERS]).solution
    fitted = end_maps.fit_affine_map(residuals, SIZE)
    torch.testing.assert_close(fitted(residuals.entering(SIZE)).double(), entering @ solution, atol=1e-3, rtol=1e-3)


def test_the_mapped_model_hands_its_last_output_through_the_map_and_can_be_swept(model, sequences, residuals):
    before = [parameter.clone() for parameter in model.parameters()]
    fitted = end_maps.fit_affine_map(residuals, SIZE)
    mapped = end_maps.replace_last_layers(model, SIZE, fitted)
    pruned = drop_layers(model, Cut(LAYERS - SIZE, SIZE))
    (leaving,) = iterate_residuals(pruned, sequences[:1])
    norm_and_head = nn.Sequential(model.base_model.norm, model.lm_head)
    with torch.no_grad():
        expected = norm_and_head(fitted(leaving[-1].float()))
    torch.testing.assert_close(logits(mapped, sequences[0][None])[0], expected, atol=1e-4, rtol=1e-4)
    table, _ = text_loss(mapped, [UNPRUNED], sequences[:2])
    scores = torch.log_softmax(torch.cat([logits(mapped, ids[None])[0, :-1] for ids in sequences[:2]]), dim=-1)
    targets = torch.cat([ids[1:] for ids in sequences[:2]])
    assert table["value"].iloc[0] == pytest.approx(-scores[range(len(targets)), targets].mean().item(), abs=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_the_low_rank_map_starts_at_the_identity_and_brings_the_distribution_nearer(model, residuals, monkeypatch):
    def divergence(map_residual) -> float:
        head = nn.Sequential(model.base_model.norm, model.lm_head)
        with torch.no_grad():
            wanted = torch.log_softmax(head(residuals.entering(0)), dim=-1)
            given = torch.log_softmax(head(map_residual(residuals.entering(SIZE))), dim=-1)
        return nn.functional.kl_div(given, wanted, log_target=True, reduction="batchmean").item()

    monkeypatch.setattr(end_maps, "STEPS", 0)
    untrained = end_maps.train_low_rank_map(model, residuals, SIZE)
    assert torch.equal(untrained(residuals.entering(SIZE)), residuals.entering(SIZE))
    for name, value in {"STEPS": 100, "RANK": 16, "RATE": 0.01}.items():
        monkeypatch.setattr(end_maps, name, value)
    trained = end_maps.train_low_rank_map(model, residuals, SIZE)
    down, up = trained.matrices
    assert np.linalg.matrix_rank((down @ up).numpy(), tol=1e-4) == 16
    assert divergence(trained) < 0.8 * divergence(nn.Identity())
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_can_not_be_fitted_is_refused(model, sequences, residuals):
    for most in (0, LAYERS):
        with pytest.raises(InputError, match=f"size is {most}; expected 1 to {LAYERS - 1}"):
            end_maps.EndResiduals(model, sequences, most)
    with pytest.raises(InputError, match="no sequence"):
        end_maps.EndResiduals(model, [], 1)
    few = end_maps.EndResiduals(model, sequences[:1], 1)
    with pytest.raises(InputError, match="there are 23 tokens"):
        end_maps.fit_affine_map(few, 1)
