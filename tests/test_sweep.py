"""The shared sweep gives what each pruned model gives by itself."""

import contextlib

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers.results.shards import Shards
from deeper_layers.sweeping import lending, pruned_family, scored_only, walk
from deeper_layers.sweeping.abilities import Abilities
from deeper_layers.sweeping.losses import text_loss
from deeper_layers.sweeping.planning import Sequence, plan_pieces
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.scored_only import ScoredOnly
from deeper_layers.sweeping.sweeps import loglikelihoods, plan, plan_requests, sweep
from tests.plain import one_by_one, requests
from tests.tiny import FAMILIES, tiny_model

LAYERS = 6
# shallow, middle, deep, overlapping, all but one layer, and one that drops the last layer
CUTS = [
    Cut(0, 0), Cut(0, 1), Cut(1, 2), Cut(2, 2), Cut(0, 4),
    simple_cut(LAYERS, 1), simple_cut(LAYERS, 3), simple_cut(LAYERS, 5), Cut(4, 2), Cut.of([0, 3]), Cut.of([1, 4, 5]),
]  # fmt: skip


@pytest.mark.parametrize("few_shot", [0, 60], ids=["zero-shot", "few-shot"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_each_pruned_model_by_itself(family, few_shot):
    model = tiny_model(family, layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=few_shot)
    shape, some = {"max_length": 200, "batch_tokens": 128}, slice(0, None, 5)  # of every length of answer
    logprobs, greedy = loglikelihoods(model, contexts, continuations, CUTS, **shape)
    assert logprobs.shape == greedy.shape == (len(CUTS), len(contexts))
    for cut, found, found_greedy in zip(CUTS, logprobs, greedy, strict=True):
        alone = drop_layers(model, cut)
        expected, expected_greedy = loglikelihoods(alone, contexts, continuations, [Cut(0, 0)], **shape)
        assert np.array_equal(found, expected[0]), f"{cut}: not bit-equal"
        assert np.array_equal(found_greedy, expected_greedy[0])
        plain, plain_greedy = one_by_one(alone, contexts[some], continuations[some])
        np.testing.assert_allclose(found[some], plain, atol=2e-4, rtol=0)
        assert np.array_equal(found_greedy[some], plain_greedy)
    # the pruned models differ, so equality above says something
    assert len({row.round(3).tobytes() for row in logprobs}) == len(CUTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_saving_is_used(family, dtype):
    can = PrunedFamily(tiny_model(family, layers=LAYERS, dtype=dtype), CUTS).can
    assert can.share and can.branch and can.score_only == ScoredOnly(narrow=True) and can.apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_gives_other_numbers_is_left_out(monkeypatch, dtype):
    model = tiny_model("llama", layers=LAYERS, dtype=dtype)
    contexts, continuations = requests(model.config.vocab_size, few_shot=60)
    expected, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    # a family whose last layer hands over no keys and values, whose cache can't be lent, that takes no mask of ours
    monkeypatch.setattr(scored_only.Collecting, "update", lambda self, keys, values, *_, **__: (keys, values))
    monkeypatch.setattr(lending.Lent, "update", lambda self, keys, values, *_, **__: (keys, values))
    monkeypatch.setattr(lending.Lent, "attending", lambda self, _: contextlib.nullcontext())
    monkeypatch.setattr(walk, "attention_masks", lambda *_: None)
    can = PrunedFamily(model, CUTS).can
    assert can == Abilities(split=True)
    found, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=0)


def test_groups_of_cuts_keep_within_the_memory():
    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=60)
    expected, expected_greedy = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    family = PrunedFamily(model, CUTS)
    whole = plan_requests(family, contexts, continuations, 200)
    little = plan_requests(family, contexts, continuations, 200, memory=whole.bytes // 5)
    assert [cuts for cuts, _ in whole.parts] == [CUTS] and len(little.parts) > 1
    assert little.bytes <= whole.bytes // 5 and little.layer_steps > whole.layer_steps
    assert [cut for cuts, _ in little.parts for cut in cuts] == CUTS
    found, greedy = loglikelihoods(model, contexts, continuations, CUTS, max_length=200, memory=whole.bytes // 5)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.array_equal(greedy, expected_greedy)


def test_what_is_kept_is_what_was_planned():
    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=60)
    family = PrunedFamily(model, CUTS)
    pieces = plan_pieces(contexts, continuations, 200)
    (piece,) = pieces
    held = sum(t.numel() * t.element_size() for pair in family.remember(piece.shared).kept.values() for t in pair)
    assert held == len(piece.shared) * family.layer_steps * family.whole.bytes_remembered
    assert family.bytes_needed(CUTS, pieces) > held  # and the residuals


def test_a_plan_tells_the_cost(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder))
    cuts = [Cut(0, 0), Cut(1, 2), Cut(1, 2), Cut(2, 1)]
    found = plan(model, tokenizer, ["capitals", "sums_one_digit_generated"], cuts, limit=9)
    assert found.cuts == [Cut(0, 0), Cut(1, 2), Cut(2, 1)] and found.generated == 9 and found.requests == 36
    # 5 layers, then 2 above either cut
    assert found.layer_steps == found.tokens * (5 + 2 + 2) and found.padding < 0.05
    assert found.seconds == pytest.approx((found.layer_steps + found.head_steps) / found.rate)
    assert "3 pruned models; 36 requests" in str(found) and "9 answers to generate" in str(found)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_progress_adds_up_to_the_plan(few_shot):
    """The head too, which is most of the work where every token is scored."""
    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=few_shot)
    family, done = PrunedFamily(model, CUTS), []
    found = plan_requests(family, contexts, continuations, 200)
    for _, pieces in found.parts:
        for piece in pieces:
            family.run(piece, done.append)
    scored = sum(len(sequence.scored) for piece in found.pieces for batch in piece.batches for sequence in batch)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert found.head_steps == pytest.approx(scored * len(CUTS) * model.lm_head.weight.numel() / layer, rel=0.01)
    assert sum(done) == pytest.approx(found.steps)


def test_what_is_given_twice_is_run_once(tiny_folder, monkeypatch):
    model, tokenizer = load_model(str(tiny_folder))
    seen = []
    init = PrunedFamily.__init__
    monkeypatch.setattr(
        PrunedFamily, "__init__", lambda self, m, cuts, *can: (seen.append(cuts), init(self, m, cuts, *can))[1]
    )
    rows = sweep(model, tokenizer, ["capitals"], [Cut(0, 0), Cut(1, 2), Cut(1, 2)], limit=3)
    assert len(rows) == 2 and {len(cuts) for cuts in seen} == {2}


def test_rows_and_outcomes_tell_cuts_of_any_shape_apart(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder))
    blocks = sweep(model, tokenizer, ["capitals"], [Cut(0, 0), Cut(1, 2)], limit=3)
    assert "cut" not in blocks and set(blocks.attrs["outcomes"]) == {"0,0", "1,2"}
    rows = sweep(model, tokenizer, ["capitals"], [Cut.of([1, 3]), Cut.of([0, 2]), Cut.of(mlp=[1])], limit=3)
    assert list(rows["cut"]) == list(rows.attrs["outcomes"]) == ["layers 1 3", "layers 0 2", "mlp 1"]


def test_texts_that_only_begin_alike_are_not_one_sequence():
    """After a context of one token, hundreds of texts: joined, each token would attend across all of them."""
    texts = np.random.default_rng(0).integers(1, 100, (40, 60)).tolist()
    pieces = plan_pieces([[0]] * 40, texts, 1000)
    assert max(len(s.tokens) for piece in pieces for batch in piece.batches for s in batch) == 60
    # answers to one question still are, unless there are too many for a batch
    (piece,) = plan_pieces([[0] * 50] * 4, [text[:9] for text in texts[:4]], 1000)
    assert [len(s.tokens) for batch in piece.batches for s in batch] == [50 + 4 * 8]
    pieces = plan_pieces([[0] * 50] * 40, [text[:9] for text in texts], 1000, batch_tokens=300)
    assert max(len(s.tokens) for piece in pieces for batch in piece.batches for s in batch) == 58


@pytest.mark.parametrize("few_shot", [0, 60])
def test_little_padding(few_shot):
    draw = np.random.default_rng(1)
    beginning = draw.integers(1, 100, few_shot).tolist()
    contexts = [beginning + draw.integers(1, 100, draw.integers(3, 300)).tolist() for _ in range(200)]
    pieces = plan_pieces(contexts, [[1]] * 200, max_length=1000)
    tokens, padded = sum(piece.tokens for piece in pieces), sum(piece.padded for piece in pieces)
    assert tokens == sum(map(len, contexts)) - 200 * few_shot
    assert 0 <= 1 - tokens / padded < 0.05
    sizes = [len(batch) for piece in pieces for batch in piece.batches]
    assert max(sizes) > 10


def test_branches_see_the_context_and_themselves():
    s = Sequence.joined((1, 2, 3), [(0, (4,)), (1, (5, 6, 7)), (2, (8, 9)), (3, (5, 6, 0))])
    assert s.tokens == (1, 2, 3, 5, 6, 8) and s.branches == (2, 1)
    assert s.depths == [0, 1, 2, 3, 4, 3] and s.scored == (2, 3, 4, 5)
    assert s.requests[1] == (1, (2, 3, 4), (5, 6, 7)) and s.requests[2] == (2, (2, 5), (8, 9))
    assert s.visible.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_plan_shares_beginnings_and_merges_choices():
    contexts, continuations = requests(100, few_shot=60)
    pieces = plan_pieces(contexts, continuations, max_length=200, batch_tokens=128)
    shared = [piece for piece in pieces if piece.shared]
    assert shared and all(len(piece.shared) >= 60 for piece in shared)
    assert sorted(n for piece in pieces for n in piece.requests) == list(range(len(contexts)))
    # all choices of a question are one sequence
    assert sum(len(batch) for piece in pieces for batch in piece.batches) == 9
    assert plan_pieces(contexts, continuations, max_length=200, batch_tokens=128) == pieces


def test_no_beginning_is_lent_past_the_first_scored_position():
    """Texts that go on alike for long, each scored from another place."""
    text = list(range(1, 101))
    places = range(60, 80)
    pieces = plan_pieces([text[:n] for n in places], [[*text[n:], n] for n in places], max_length=500)
    assert [len(piece.shared) for piece in pieces] == [59]
    assert all(s.scored[0] >= 59 for batch in pieces[0].batches for s in batch)


def test_long_sequences_lose_tokens_on_the_left():
    model = tiny_model("llama", layers=LAYERS)
    context, continuation = list(range(1, 60)), [5, 6]
    short, _ = loglikelihoods(model, [context[-19:]], [continuation], [Cut(1, 2)], max_length=20)
    long, _ = loglikelihoods(model, [context], [continuation], [Cut(1, 2)], max_length=20)
    assert np.array_equal(short, long)


def test_memory_running_out_halves_the_batch(monkeypatch):
    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=0)
    expected, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    run = pruned_family.PrunedFamily._run_batch
    sizes = []

    def small(self, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, batch, *rest)

    monkeypatch.setattr(pruned_family.PrunedFamily, "_run_batch", small)
    found, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    assert max(sizes) > 3 and min(sizes) <= 3
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_a_beginning_too_large_for_all_runs_for_half_of_the_cuts(monkeypatch):
    model = tiny_model("llama", layers=LAYERS)
    contexts, continuations = requests(model.config.vocab_size, few_shot=60)
    expected, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    remembering, sizes = pruned_family.remembering, []

    def small(network, tree, *rest, **how):
        sizes.append(len(tree.cuts))
        if len(tree.cuts) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return remembering(network, tree, *rest, **how)

    monkeypatch.setattr(pruned_family, "remembering", small)
    found, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    assert max(sizes) > 3 and min(sizes) <= 3
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_what_is_not_a_number_is_refused_and_not_kept(tmp_path):
    """A layer whose output is too large for float16, and neither for a model without it nor for bfloat16."""
    model = tiny_model("llama", layers=LAYERS, dtype=torch.float16)
    decoder_layers(model)[3].mlp.down_proj.weight.data.fill_(6e4)
    contexts, continuations = requests(model.config.vocab_size, few_shot=0)
    shape, without = {"max_length": 200}, Cut(3, 1)
    assert np.isfinite(loglikelihoods(model, contexts, continuations, [without], **shape)[0]).all()
    said = r"float16 of the model that drops no layers \(0 of 6\), keeps \[0:6\]: measure in another data type"
    shards = Shards(tmp_path / "unit.partial")
    with pytest.raises(InputError, match=said):
        loglikelihoods(model, contexts, continuations, [without, Cut(0, 0)], **shape, shards=shards)
    assert not list(tmp_path.rglob("*.npz"))
    with pytest.raises(InputError, match=said):
        text_loss(model, [without, Cut(0, 0)], [torch.arange(20)])
    found, _ = loglikelihoods(model.to(torch.bfloat16), contexts, continuations, [Cut(0, 0)], **shape)
    assert np.isfinite(found).all()


def test_a_token_that_a_model_rules_out_is_the_least_likely_and_has_no_loss():
    model = tiny_model("llama", layers=LAYERS)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf))
    found, _ = loglikelihoods(model, [[1, 2]] * 2, [[7, 3], [8, 3]], [Cut(1, 2)], max_length=200)
    assert found[0, 0] == -np.inf and np.isfinite(found[0, 1])
    with pytest.raises(InputError, match=r"a loss is not a finite number in float32 of the model that drops layers 1"):
        text_loss(model, [Cut(1, 2)], [torch.arange(20)])
    rows, _ = text_loss(model, [Cut(1, 2)], [torch.arange(7)])
    assert np.isfinite(rows["value"]).all()


def test_goes_on_from_shards(tmp_path, monkeypatch):
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
    run = pruned_family.PrunedFamily.run
    monkeypatch.setattr(
        pruned_family.PrunedFamily, "run", lambda self, piece, bar: ran.append(piece) or run(self, piece)
    )
    with pytest.warns(UserWarning, match=stored[2].name):
        found, _ = loglikelihoods(model, contexts, continuations, CUTS, **shape, shards=shards)
    assert len(ran) == 2
    assert np.array_equal(found, expected)
