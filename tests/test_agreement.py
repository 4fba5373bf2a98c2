"""How much pruned models predict what the whole one does: beside a plain loop, kept in results, and in the table."""

import numpy as np
import pytest
import torch

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import agreement, sweeps
from deeper_layers.sweeping.agreement import MEASURES
from deeper_layers.sweeping.planning import Sharing
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import loglikelihoods, request_loss, text_loss, text_requests
from deeper_layers.sweeping.tree_model import TreeModel
from tests.plain import allocated
from tests.tiny import shared_model, tiny_model

CUTS = [Cut(2, 2), UNPRUNED, Cut(5, 1), Cut(0, 1), Cut.of([1, 3])]
DRAW = np.random.default_rng(0)
TEXT = [torch.from_numpy(DRAW.integers(1, 128, length)) for length in (40, 33, 25, 9)]


@torch.inference_mode()
def compare_plainly(model, cut: Cut, sequence: torch.Tensor) -> np.ndarray:
    """Means [3] over the tokens of a sequence, from two forwards."""
    both = [one(sequence[None], use_cache=False).logits[0, :-1].double() for one in (model, drop_layers(model, cut))]
    p, q = (logits.softmax(dim=-1) for logits in both)
    same = (p.argmax(dim=-1) == q.argmax(dim=-1)).double()
    kl = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(dim=-1)
    return torch.stack([same, torch.minimum(p, q).sum(dim=-1), kl]).mean(dim=1).numpy()


# two families, of one with windows and softcapped logits; 1 position, 3 and 512 at a time
@pytest.mark.parametrize(("family", "elements"), [("llama", 128), ("llama", 2**24), ("gemma2", 128 * len(CUTS) * 3)])
def test_agreement_is_that_of_a_plain_loop(family, elements, monkeypatch):
    monkeypatch.setattr(agreement, "HEAD_ELEMENTS", elements)
    model = shared_model(family)
    table, losses = text_loss(model, CUTS, TEXT, compares=True)
    without, plain_losses = text_loss(model, CUTS, TEXT)
    np.testing.assert_allclose(table["value"], without["value"], atol=1e-5)
    assert {name: pytest.approx(values, abs=2e-5) for name, values in plain_losses.items()} == losses
    weights = [len(sequence) - 1 for sequence in TEXT]
    for cut, row in zip(CUTS, table.to_dict("records"), strict=True):
        expected = np.stack([compare_plainly(model, cut, sequence) for sequence in TEXT])
        np.testing.assert_allclose(table.attrs["compared"][cut.name], expected, atol=2e-5, err_msg=cut.name)
        means = np.average(expected, axis=0, weights=weights)
        np.testing.assert_allclose([row[name] for name in MEASURES], means, atol=2e-5, err_msg=cut.name)
    whole = table.iloc[CUTS.index(UNPRUNED)]
    assert whole["agreement"] == 1 and whole["overlap"] > 1 - 1e-5 and whole["kl"] < 1e-5
    assert (table["agreement"].drop(CUTS.index(UNPRUNED)) < 1).all()


def test_models_that_run_alone_or_in_halves_are_compared_too(monkeypatch):
    model, requests = shared_model("llama"), text_requests(TEXT)
    family = TreeModel(model, CUTS, compares=True)
    expected = family.answer(sweeps.plan_requests(family, requests).parts[0])
    alone = TreeModel(model, CUTS, Sharing.NOTHING, compares=True)
    answers = np.empty((len(CUTS), len(TEXT)), alone.answer_dtype)
    loglikelihoods(alone, requests, out=answers)
    batches = sweeps.plan_requests(family, requests).parts[0]
    # memory for one cut at a time: the whole model runs beside each of them
    seen = []
    answer = TreeModel._answer_at_once
    monkeypatch.setattr(TreeModel, "_answer_at_once", lambda s, *how: seen.append(s.cuts) or answer(s, *how))
    halved = family.answer(batches, memory=family.for_cuts([UNPRUNED, CUTS[0]]).bytes_needed(batches))
    assert len(seen) > 2 and all(UNPRUNED in cuts and len(cuts) < len(CUTS) for cuts in seen)
    numbers = [number for batch in batches for number in batch.requests]
    for name in ("logprob", *MEASURES):
        np.testing.assert_allclose(halved[name], expected[name], atol=1e-3, err_msg=name)
        np.testing.assert_allclose(answers[name][:, numbers], expected[name], atol=1e-3, err_msg=name)


def test_it_takes_no_more_memory_than_is_planned():
    model = TreeModel(shared_model("llama"), CUTS, compares=True)
    planned = sweeps.plan_requests(model, text_requests(TEXT * 4))
    with allocated() as taken:
        for batches in planned.parts:
            model.answer(batches)
    assert taken[0] <= planned.bytes


def test_a_token_that_models_rule_out_adds_nothing_and_one_that_a_cut_alone_rules_out_is_told():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([0]), -torch.inf))
    table, _ = text_loss(model, CUTS, TEXT, compares=True)
    assert np.isfinite(table[list(MEASURES)].to_numpy()).all() and (table["kl"] >= 0).all()


def test_what_went_on_from_shards_is_the_same_and_shards_of_losses_alone_do_not_serve(tmp_path):
    model, shards = shared_model("llama"), Shards(tmp_path / "unit.partial")
    text_loss(model, CUTS, TEXT, shards=shards, batch_tokens=64)
    first = text_loss(model, CUTS, TEXT, shards=shards, batch_tokens=64, compares=True)[0]
    again = text_loss(model, CUTS, TEXT, shards=shards, batch_tokens=64, compares=True)[0]
    assert first.equals(again) and {*MEASURES} <= set(first)


def test_without_the_whole_model_nothing_is_compared():
    with pytest.raises(InputError, match=r"the whole model is not among the cuts, expected it: add Cut\(0, 0\)"):
        request_loss(shared_model("llama"), [Cut(1, 2)], text_requests(TEXT), compares=True)


def test_a_sequence_of_two_tokens_predicts_one():
    (pair,) = text_requests([torch.tensor([3, 4])]).pairs
    assert pair == ([3], [4])
