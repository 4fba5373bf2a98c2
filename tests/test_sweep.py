"""The shared sweep gives what each pruned model gives by itself, within the memory that it states."""

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.results.shards import Shards
from deeper_layers.sweeping import forward, generation, last_layer, prefix_cache
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.losses import text_loss
from deeper_layers.sweeping.planning import Sequence, plan_pieces
from deeper_layers.sweeping.sweeps import loglikelihoods, plan, plan_requests, sweep
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers.sweeping.trial import Abilities
from tests.plain import allocated, one_by_one, requests
from tests.tiny import shared_model, tiny_model

LAYERS = 6
# shallow, middle, deep, overlapping, all but one layer, and one that drops the last layer
CUTS = [
    Cut(0, 0), Cut(0, 1), Cut(1, 2), Cut(2, 2), Cut(0, 4),
    simple_cut(LAYERS, 1), simple_cut(LAYERS, 3), simple_cut(LAYERS, 5), Cut(4, 2), Cut.of([0, 3]), Cut.of([1, 4, 5]),
]  # fmt: skip


@pytest.fixture
def llama():
    return shared_model("llama", LAYERS)


def asked(few_shot: int, questions: int = 9) -> dict:
    contexts, continuations = requests(128, few_shot=few_shot, questions=questions)
    return {"contexts": contexts, "continuations": continuations, "max_length": 128}


def check_sweep(model, cuts):
    contexts, continuations = requests(128, few_shot=50, questions=5)
    found, greedy = loglikelihoods(model, contexts, continuations, cuts, max_length=200, batch_tokens=256)
    some = slice(0, None, 5)
    for cut, row, likeliest in zip(cuts, found, greedy, strict=True):
        expected, expected_greedy = one_by_one(drop_layers(model, cut), contexts[some], continuations[some])
        np.testing.assert_allclose(row[some], expected, atol=2e-4, rtol=0, err_msg=str(cut))
        assert (likeliest[some] == expected_greedy).all()


@pytest.mark.parametrize("few_shot", [0, 60], ids=["zero-shot", "few-shot"])
def test_together_is_alone_to_the_bit(llama, few_shot):
    few = asked(few_shot)
    logprobs, greedy = loglikelihoods(llama, cuts=CUTS, batch_tokens=128, **few)
    assert logprobs.shape == greedy.shape == (len(CUTS), len(few["contexts"]))
    for cut, found, found_greedy in zip(CUTS, logprobs, greedy, strict=True):
        expected, expected_greedy = loglikelihoods(drop_layers(llama, cut), cuts=[Cut(0, 0)], batch_tokens=128, **few)
        assert np.array_equal(found, expected[0]) and np.array_equal(found_greedy, expected_greedy[0]), cut


# ---- savings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "olmo2"])
def test_every_saving_is_used(family, dtype):
    can = TreeModel(tiny_model(family, layers=LAYERS, dtype=dtype), CUTS).can
    assert can == Abilities(split=True, share=True, score_only=True, branch=True)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.thorough)])
def test_what_gives_other_numbers_is_left_out(monkeypatch, dtype):
    model = tiny_model("llama", layers=LAYERS, dtype=dtype)
    expected, _ = loglikelihoods(model, cuts=CUTS, **asked(60))
    # a family whose last layer hands over no keys and values, whose cache takes no prefix, that takes no mask of ours
    nothing = lambda self, keys, values, *_, **__: (keys, values)  # noqa: E731
    monkeypatch.setattr(last_layer._Collecting, "update", nothing)
    monkeypatch.setattr(prefix_cache.PrefixCache, "update", nothing)
    monkeypatch.setattr(forward, "attention_masks", lambda *_: None)
    assert TreeModel(model, CUTS).can == Abilities(split=True)
    found, _ = loglikelihoods(model, cuts=CUTS, **asked(60))
    np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=0)


class Reaching(LlamaDecoderLayer):
    """A layer that takes more than the residual: what entered the layer that ran before it, too."""

    def forward(self, hidden_states, **named):
        before = Reaching.before if self.self_attn.layer_idx else torch.zeros_like(hidden_states)
        Reaching.before = hidden_states
        return super().forward(hidden_states + 0.5 * before, **named)


def test_pruned_models_whose_layers_take_more_than_the_residual_run_by_themselves():
    model, cuts = tiny_model("llama", layers=LAYERS), [Cut(0, 2), Cut(2, 1)]
    for layer in decoder_layers(model):
        layer.__class__ = Reaching
    assert not TreeModel(model, cuts).can.split
    check_sweep(model, cuts)


def test_a_window_of_another_name_is_left_to_the_model():
    """Wider than the few tokens on which savings are tried, narrower than what is then run."""
    model, cuts = tiny_model("gpt_neo", window_size=40), [Cut(0, 2), Cut(2, 1)]
    assert not TreeModel(model, cuts).can.branch
    check_sweep(model, cuts)


def test_a_cut_is_swept_though_the_layers_above_it_alone_are_no_model():
    # every second layer is a mixture, so one that has lost an odd number of layers at its beginning can't be stated
    settings = {"mlp_only_layers": [], "decoder_sparse_step": 2}
    model, cuts = tiny_model("qwen3_moe", layers=LAYERS, **settings), [Cut(1, 2), Cut(3, 2)]
    with pytest.raises(InputError):
        drop_layers(model, Cut(0, 3))
    assert TreeModel(model, cuts).can.split
    check_sweep(model, cuts)


# ---- memory


@pytest.mark.parametrize(("family", "few_shot"), [("llama", 0), ("llama", 90), ("gemma2", 90), ("falcon_h1", 0)])
def test_no_more_is_taken_than_is_estimated(family, few_shot):
    model = TreeModel(shared_model(family, LAYERS), CUTS)
    planned = plan_requests(model, **asked(few_shot))
    with allocated() as taken:
        loglikelihoods(model.network.model, cuts=CUTS, family=model, **asked(few_shot))
    assert planned.bytes / 5 < taken[0] <= planned.bytes


def test_answers_take_no_more_than_is_estimated(llama):
    model, most = TreeModel(llama, CUTS), 12
    prompts = [list(range(1, 60 + 3 * n)) for n in range(1, 7)]
    with allocated() as taken:
        Decoding(model, prompts, most).write(lambda rows: [False] * len(rows))
    stated = model.estimate.writing(model.tree, len(prompts), max(map(len, prompts)), most)
    assert stated / 5 < taken[0] <= stated


def test_little_memory_makes_groups_of_cuts_and_gives_the_same_numbers(llama):
    expected, expected_greedy = loglikelihoods(llama, cuts=CUTS, **asked(60, 16))
    model = TreeModel(llama, CUTS)
    whole = plan_requests(model, **asked(60, 16))
    little = plan_requests(model, **asked(60, 16), memory=whole.bytes // 3)
    assert [cuts for cuts, _ in whole.parts] == [CUTS] and len(little.parts) > 1
    assert little.bytes <= whole.bytes // 3 and little.layer_steps > whole.layer_steps
    assert [cut for cuts, _ in little.parts for cut in cuts] == CUTS
    with allocated() as taken:
        found, greedy = loglikelihoods(llama, cuts=CUTS, family=model, memory=whole.bytes // 3, **asked(60, 16))
    assert taken[0] <= whole.bytes // 3
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.array_equal(greedy, expected_greedy)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_memory_that_runs_out_halves_sequences_then_cuts(llama, monkeypatch, few_shot):
    expected, _ = loglikelihoods(llama, cuts=CUTS, **asked(few_shot))
    run, sizes = TreeModel._run, []

    def small(self, batches):
        sizes.append((len(self.cuts), len(batches[0].batches[0])))
        if len(self.cuts) > (3 if few_shot else 11) or sizes[-1][1] > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, batches)

    monkeypatch.setattr(TreeModel, "_run", small)
    found, _ = loglikelihoods(llama, cuts=CUTS, **asked(few_shot))
    assert max(sizes)[1] > 3 and min(sizes)[0] <= (3 if few_shot else 11)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_answers_are_written_in_halves_of_prompts_and_of_models(llama, monkeypatch):
    model, rows, never = TreeModel(llama, CUTS), [list(range(1, 9 + n)) for n in range(6)], lambda r: [False] * len(r)
    write = lambda: generation._write(model, rows, 4, never, lambda answers: None)  # noqa: E731
    expected, sizes, init = write(), [], Decoding.__init__

    def small(self, part, some, most):
        sizes.append((len(part.cuts), len(some)))
        if len(part.cuts) * len(some) > limit:
            raise torch.OutOfMemoryError("out of memory")
        init(self, part, some, most)

    monkeypatch.setattr(Decoding, "__init__", small)
    limit = 4
    assert write() == expected
    assert max(sizes) == (len(CUTS), 6) and (len(CUTS), 1) in sizes and min(sizes)[0] < 5
    limit = 0
    with pytest.raises(InputError, match="out of memory on one sequence of 13 tokens"):
        write()


# ---- plans


def test_a_plan_tells_the_cost(opened):
    cuts = [Cut(0, 0), Cut(1, 2), Cut(1, 2), Cut(2, 1)]
    found = plan(*opened, ["capitals", "sums_one_digit_generated"], cuts, limit=9)
    assert found.cuts == [Cut(0, 0), Cut(1, 2), Cut(2, 1)] and found.generated == 9 and found.requests == 36
    # 5 layers, then 2 above either cut
    assert found.layer_steps == found.tokens * (5 + 2 + 2) and found.padding < 0.05 and found.seconds > 0
    assert "3 pruned models; 36 requests" in str(found) and "9 answers to generate" in str(found)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_progress_adds_up_to_the_plan(llama, few_shot):
    model, done = TreeModel(llama, CUTS), []
    found = plan_requests(model, **asked(few_shot))
    for _, pieces in found.parts:
        list(model.answer(pieces, done.append))
    assert sum(done) == found.layer_steps


def test_what_is_given_twice_is_run_once_and_rows_tell_cuts_of_any_shape_apart(opened):
    rows = sweep(*opened, ["capitals"], [Cut(0, 0), Cut(1, 2), Cut(1, 2)], limit=3)
    assert len(rows) == 2 and "cut" not in rows and set(rows.attrs["outcomes"]) == {"0,0", "1,2"}
    rows = sweep(*opened, ["capitals"], [Cut.of([1, 3]), Cut.of([0, 2]), Cut.of(mlp=[1])], limit=3)
    assert list(rows["cut"]) == list(rows.attrs["outcomes"]) == ["layers 1 3", "layers 0 2", "mlp 1"]


@pytest.mark.quick
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


@pytest.mark.quick
@pytest.mark.parametrize("few_shot", [0, 60])
def test_little_padding(few_shot):
    draw = np.random.default_rng(1)
    beginning = draw.integers(1, 100, few_shot).tolist()
    contexts = [beginning + draw.integers(1, 100, draw.integers(3, 300)).tolist() for _ in range(200)]
    pieces = plan_pieces(contexts, [[1]] * 200, max_length=1000)
    tokens, padded = sum(piece.tokens for piece in pieces), sum(piece.padded for piece in pieces)
    assert tokens == sum(map(len, contexts)) - 200 * few_shot
    assert 0 <= 1 - tokens / padded < 0.05
    assert max(len(batch) for piece in pieces for batch in piece.batches) > 10


@pytest.mark.quick
def test_branches_see_the_context_and_themselves():
    s = Sequence.joined((1, 2, 3), [(0, (4,)), (1, (5, 6, 7)), (2, (8, 9)), (3, (5, 6, 0))])
    assert s.tokens == (1, 2, 3, 5, 6, 8) and s.branches == (2, 1) and s.scored == (2, 3, 4, 5)
    assert s.requests[1] == (1, (2, 3, 4), (5, 6, 7)) and s.requests[2] == (2, (2, 5), (8, 9))
    batch = forward.Batch.of((s,), 0, torch.device("cpu"))
    assert batch.depths.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


@pytest.mark.quick
def test_a_plan_shares_prefixes_and_merges_choices():
    contexts, continuations = requests(100, few_shot=60)
    pieces = plan_pieces(contexts, continuations, max_length=200, batch_tokens=128)
    assert any(piece.prefix for piece in pieces) and all(len(piece.prefix) >= 60 for piece in pieces if piece.prefix)
    assert sorted(n for piece in pieces for n in piece.requests) == list(range(len(contexts)))
    # all choices of a question are one sequence
    assert sum(len(batch) for piece in pieces for batch in piece.batches) == 9
    assert plan_pieces(contexts, continuations, max_length=200, batch_tokens=128) == pieces
    # no prefix reaches past the first scored position: texts that go on alike for long, each scored from another place
    text, places = list(range(1, 101)), range(60, 80)
    pieces = plan_pieces([text[:n] for n in places], [[*text[n:], n] for n in places], max_length=500)
    assert [len(piece.prefix) for piece in pieces] == [59]
    assert all(s.scored[0] >= 59 for batch in pieces[0].batches for s in batch)


def test_long_sequences_lose_tokens_on_the_left(llama):
    context, continuation = list(range(1, 60)), [5, 6]
    short, _ = loglikelihoods(llama, [context[-19:]], [continuation], [Cut(1, 2)], max_length=20)
    long, _ = loglikelihoods(llama, [context], [continuation], [Cut(1, 2)], max_length=20)
    assert np.array_equal(short, long)


# ---- numbers that are none, and what was finished before


def test_what_is_not_a_number_is_refused_and_not_kept(tmp_path):
    """A layer whose output is too large for float16, and neither for a model without it nor for bfloat16."""
    model, without = tiny_model("llama", layers=LAYERS, dtype=torch.float16), Cut(3, 1)
    decoder_layers(model)[3].mlp.down_proj.weight.data.fill_(6e4)
    assert np.isfinite(loglikelihoods(model, cuts=[without], **asked(0))[0]).all()
    said = r"float16 of the model that drops no layers \(0 of 6\), keeps \[0:6\]: measure in another data type"
    with pytest.raises(InputError, match=said):
        loglikelihoods(model, cuts=[without, Cut(0, 0)], shards=Shards(tmp_path / "unit.partial"), **asked(0))
    assert not list(tmp_path.rglob("*.npz"))
    with pytest.raises(InputError, match=said):
        text_loss(model, [without, Cut(0, 0)], [torch.arange(20)])
    found, _ = loglikelihoods(model.to(torch.bfloat16), cuts=[Cut(0, 0)], **asked(0))
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


def test_goes_on_from_shards(llama, tmp_path, monkeypatch):
    how = {"batch_tokens": 32, "cuts": CUTS, **asked(0)}
    expected, _ = loglikelihoods(llama, **how)
    shards = Shards(tmp_path / "unit.partial")
    loglikelihoods(llama, **how, shards=shards)
    stored = sorted((tmp_path / "unit.partial").glob("*.npz"))
    assert len(stored) > 2
    stored[1].unlink()
    stored[2].write_bytes(stored[2].read_bytes()[:100])
    ran, answer = [], TreeModel.answer
    monkeypatch.setattr(TreeModel, "answer", lambda self, pieces, bar: ran.extend(pieces) or answer(self, pieces, bar))
    with pytest.warns(UserWarning, match=stored[2].name):
        found, _ = loglikelihoods(llama, **how, shards=shards)
    assert len(ran) == 2
    assert np.array_equal(found, expected)
