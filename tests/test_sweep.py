"""The shared sweep gives what each pruned model gives by itself."""

import numpy as np
import pytest
import torch

from lib.planning import plan_pieces
from lib.pruning import Cut, drop_layers, simple_cut
from lib.results import Shards
from lib.sweep import loglikelihoods
from tests.tiny import FAMILIES, tiny_model

LAYERS = 6
# shallow, middle, deep, overlapping, all but one layer, and one that drops the last layer
CUTS = [
    Cut(0, 0), Cut(0, 1), Cut(1, 2), Cut(2, 2), Cut(0, 4),
    simple_cut(LAYERS, 1), simple_cut(LAYERS, 3), simple_cut(LAYERS, 5), Cut(4, 2),
]  # fmt: skip


def requests(vocabulary, *, few_shot, questions=9, seed=0):
    """Questions with four choices of one token and two of several, after a beginning that all share or none."""
    draw = np.random.default_rng(seed)
    beginning = draw.integers(1, vocabulary, few_shot).tolist()
    contexts, continuations = [], []
    for _ in range(questions):
        question = draw.integers(1, vocabulary, draw.integers(3, 20)).tolist()
        for length in (1, 1, 1, 1, 2, 4):
            contexts.append(beginning + question)
            continuations.append(draw.integers(1, vocabulary, length).tolist())
    return contexts, continuations


def one_by_one(model, contexts, continuations):
    """The definition: a forward pass a request, nothing shared, nothing batched."""
    sums, greedy = [], []
    for context, continuation in zip(contexts, continuations, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([context + continuation[:-1]]), use_cache=False).logits[0]
        scored = torch.log_softmax(logits[-len(continuation) :].float(), dim=-1)
        target = torch.tensor(continuation)
        sums.append(scored.gather(1, target[:, None]).sum().item())
        greedy.append(bool((scored.argmax(dim=-1) == target).all()))
    return np.array(sums), np.array(greedy)


@pytest.mark.parametrize("few_shot", [0, 60], ids=["zero-shot", "few-shot"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_each_pruned_model_by_itself(family, few_shot):
    model = tiny_model(family, layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=few_shot)
    shape = {"max_length": 200, "batch_tokens": 128}
    logprobs, greedy = loglikelihoods(model, contexts, continuations, CUTS, **shape)
    assert logprobs.shape == greedy.shape == (len(CUTS), len(contexts))
    for cut, found, found_greedy in zip(CUTS, logprobs, greedy, strict=True):
        alone = drop_layers(model, cut)
        expected, expected_greedy = loglikelihoods(alone, contexts, continuations, [Cut(0, 0)], **shape)
        assert np.array_equal(found, expected[0]), f"{cut}: not bit-equal"
        assert np.array_equal(found_greedy, expected_greedy[0])
        plain, plain_greedy = one_by_one(alone, contexts, continuations)
        np.testing.assert_allclose(found, plain, atol=2e-4, rtol=0)
        assert (found_greedy == plain_greedy).mean() > 0.99
    # the pruned models differ, so equality above says something
    assert len({row.round(3).tobytes() for row in logprobs}) == len(CUTS)


def test_plan_shares_beginnings_and_merges_choices():
    contexts, continuations = requests(100, few_shot=60)
    pieces = plan_pieces(contexts, continuations, max_length=200, batch_tokens=128)
    shared = [piece for piece in pieces if piece.shared]
    assert shared and all(len(piece.shared) >= 60 for piece in shared)
    assert sorted(n for piece in pieces for n in piece.requests) == list(range(len(contexts)))
    # all choices of a question are one sequence
    assert sum(len(batch) for piece in pieces for batch in piece.batches) == 9
    assert plan_pieces(contexts, continuations, max_length=200, batch_tokens=128) == pieces


def test_long_sequences_lose_tokens_on_the_left():
    model = tiny_model("llama", layers=LAYERS)
    context, continuation = list(range(1, 60)), [5, 6]
    short, _ = loglikelihoods(model, [context[-19:]], [continuation], [Cut(1, 2)], max_length=20)
    long, _ = loglikelihoods(model, [context], [continuation], [Cut(1, 2)], max_length=20)
    assert np.array_equal(short, long)


def test_memory_running_out_halves_the_batch(monkeypatch):
    from lib import family

    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=0)
    expected, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    run = family.PrunedFamily._run_batch
    sizes = []

    def small(self, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, batch, *rest)

    monkeypatch.setattr(family.PrunedFamily, "_run_batch", small)
    found, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    assert max(sizes) > 3 and min(sizes) <= 3
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_goes_on_from_shards(tmp_path, monkeypatch):
    from lib import family

    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=0)
    shape = {"max_length": 200, "batch_tokens": 32}
    expected, _ = loglikelihoods(model, contexts, continuations, CUTS, **shape)
    shards = Shards(tmp_path / "unit.partial")
    loglikelihoods(model, contexts, continuations, CUTS, **shape, shards=shards)
    stored = sorted((tmp_path / "unit.partial").glob("*.npz"))
    assert len(stored) > 2
    stored[1].unlink()
    stored[2].write_bytes(stored[2].read_bytes()[:100])
    ran = []
    run = family.PrunedFamily.run
    monkeypatch.setattr(family.PrunedFamily, "run", lambda self, piece, bar: ran.append(piece) or run(self, piece))
    with pytest.warns(UserWarning, match=stored[2].name):
        found, _ = loglikelihoods(model, contexts, continuations, CUTS, **shape, shards=shards)
    assert len(ran) == 2
    assert np.array_equal(found, expected)
