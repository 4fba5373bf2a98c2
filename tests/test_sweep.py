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
from deeper_layers.sweeping import forward, prefix_cache
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.losses import text_loss
from deeper_layers.sweeping.memory import run_in_halves
from deeper_layers.sweeping.planning import Requests, Sequence, plan_pieces
from deeper_layers.sweeping.sweeps import loglikelihoods, plan, plan_requests, sweep
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers.sweeping.trial import Sharing
from tests.plain import allocated, one_by_one, requests
from tests.tiny import shared_model, tiny_model

LAYERS = 6
# shallow, middle, deep, overlapping, all but one layer, and one that drops the last layer
CUTS = [
    Cut(0, 0), Cut(0, 1), Cut(1, 2), Cut(2, 2), Cut(0, 4),
    simple_cut(LAYERS, 1), simple_cut(LAYERS, 3), simple_cut(LAYERS, 5), Cut(4, 2), Cut.of([0, 3]), Cut.of([1, 4, 5]),
]  # fmt: skip


never = lambda rows: [False] * len(rows)  # noqa: E731


@pytest.fixture
def llama():
    return shared_model("llama", LAYERS)


def asked(few_shot: int, questions: int = 9) -> Requests:
    return requests(128, few_shot=few_shot, questions=questions, max_length=128)


def swept(model, cuts, *requests, **how):
    return loglikelihoods(TreeModel(model, cuts), *requests, **how)


def check_sweep(model, cuts):
    few, some = requests(128, few_shot=50, questions=5), slice(0, None, 5)
    found, greedy = swept(model, cuts, few, batch_tokens=256)
    for cut, row, likeliest in zip(cuts, found, greedy, strict=True):
        expected, expected_greedy = one_by_one(drop_layers(model, cut), few, some)
        np.testing.assert_allclose(row[some], expected, atol=2e-4, rtol=0, err_msg=str(cut))
        assert (likeliest[some] == expected_greedy).all()


@pytest.mark.parametrize("few_shot", [0, 60], ids=["zero-shot", "few-shot"])
def test_together_is_alone_to_the_bit(llama, few_shot):
    few = asked(few_shot)
    logprobs, greedy = swept(llama, CUTS, few, batch_tokens=128)
    assert logprobs.shape == greedy.shape == (len(CUTS), len(few.contexts))
    for cut, found, found_greedy in zip(CUTS, logprobs, greedy, strict=True):
        expected, expected_greedy = swept(drop_layers(llama, cut), [Cut(0, 0)], few, batch_tokens=128)
        assert np.array_equal(found, expected[0]) and np.array_equal(found_greedy, expected_greedy[0]), cut


# ---- what is shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "gpt2"])
def test_all_is_shared(family, dtype):
    assert TreeModel(tiny_model(family, layers=LAYERS, dtype=dtype), CUTS).sharing == Sharing.MASKS


def test_what_gives_other_numbers_is_left_out(monkeypatch):
    model = tiny_model("llama", layers=LAYERS)
    expected, _ = swept(model, CUTS, asked(60))
    # a family that takes no mask of ours, then one whose cache takes no prefix either
    for module, name, wrong, left in (
        (forward, "attention_masks", lambda *_: None, Sharing.PREFIXES),
        (prefix_cache, "behind", lambda prefix, own: own, Sharing.LAYERS),
    ):
        monkeypatch.setattr(module, name, wrong)
        family = TreeModel(model, CUTS)
        assert family.sharing == left
        np.testing.assert_allclose(loglikelihoods(family, asked(60))[0], expected, atol=1e-4, rtol=0)


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
    assert TreeModel(model, cuts).sharing == Sharing.NOTHING
    check_sweep(model, cuts)


def test_a_window_of_another_name_is_left_to_the_model():
    """Wider than the few tokens on which savings are tried, narrower than what is then run."""
    model, cuts = tiny_model("gpt_neo", window_size=40), [Cut(0, 2), Cut(2, 1)]
    assert TreeModel(model, cuts).sharing < Sharing.MASKS
    check_sweep(model, cuts)


def test_a_cut_is_swept_though_the_layers_above_it_alone_are_no_model():
    # every second layer is a mixture, so one that has lost an odd number of layers at its beginning can't be stated
    settings = {"mlp_only_layers": [], "decoder_sparse_step": 2}
    model, cuts = tiny_model("qwen3_moe", layers=LAYERS, **settings), [Cut(1, 2), Cut(3, 2)]
    with pytest.raises(InputError):
        drop_layers(model, Cut(0, 3))
    assert TreeModel(model, cuts).sharing == Sharing.MASKS
    check_sweep(model, cuts)


# ---- memory


@pytest.mark.parametrize(("family", "few_shot"), [("llama", 0), ("llama", 90), ("gemma2", 90), ("falcon_h1", 0)])
def test_no_more_is_taken_than_is_estimated(family, few_shot):
    model = TreeModel(shared_model(family, LAYERS), CUTS)
    planned = plan_requests(model, asked(few_shot))
    with allocated() as taken:
        loglikelihoods(model, asked(few_shot))
    assert planned.bytes / 5 < taken[0] <= planned.bytes


def test_answers_take_no_more_than_is_estimated(llama):
    model, most = TreeModel(llama, CUTS), 12
    prompts = [list(range(1, 60 + 3 * n)) for n in range(1, 7)]
    with allocated() as taken:
        Decoding(model, prompts, most).write(never)
    stated = model.estimate.writing(model.tree, len(prompts), max(map(len, prompts)), most)
    assert stated / 5 < taken[0] <= stated


def test_little_memory_makes_groups_of_cuts_and_gives_the_same_numbers(llama):
    model, few = TreeModel(llama, CUTS), asked(60, 16)
    expected, expected_greedy = loglikelihoods(model, few)
    whole = plan_requests(model, few)
    little = plan_requests(model, few, memory=whole.bytes // 3)
    assert [cuts for cuts, _ in whole.parts] == [CUTS] and len(little.parts) > 1
    assert little.bytes <= whole.bytes // 3 and little.layer_steps > whole.layer_steps
    assert [cut for cuts, _ in little.parts for cut in cuts] == CUTS
    with allocated() as taken:
        found, greedy = loglikelihoods(model, few, memory=whole.bytes // 3)
    assert taken[0] <= whole.bytes // 3
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.array_equal(greedy, expected_greedy)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_memory_that_runs_out_halves_sequences_then_cuts(llama, monkeypatch, few_shot):
    expected, _ = swept(llama, CUTS, asked(few_shot))
    run, sizes = TreeModel._run, []

    def small(self, sequences, cuts, progress):
        sizes.append((len(cuts), len(sequences)))
        if len(cuts) > (3 if few_shot else 11) or len(sequences) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, sequences, cuts, progress)

    monkeypatch.setattr(TreeModel, "_run", small)
    found, _ = swept(llama, CUTS, asked(few_shot))
    assert max(sizes)[1] > 3 and min(sizes)[0] <= (3 if few_shot else 11)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_answers_are_written_in_halves_of_prompts_and_of_models(llama):
    model, rows, sizes = TreeModel(llama, CUTS), [list(range(1, 9 + n)) for n in range(6)], []

    def write(some, cuts):
        sizes.append((len(cuts), len(some)))
        if len(cuts) * len(some) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return Decoding(model.part(cuts), some, 4).write(never)

    limit = 4
    assert run_in_halves(write, rows, CUTS).tolist() == Decoding(model, rows, 4).write(never).tolist()
    assert max(sizes) == (len(CUTS), 6) and (1, 6) in sizes and (1, 3) in sizes
    limit = 0
    with pytest.raises(InputError, match="out of memory on one sequence"):
        run_in_halves(write, rows, CUTS)


# ---- plans


def test_a_plan_tells_the_cost(opened):
    cuts = [Cut(0, 0), Cut(1, 2), Cut(1, 2), Cut(2, 1)]
    found = plan(*opened, ["capitals", "sums_one_digit_generated"], cuts, limit=9)
    assert found.cuts == [Cut(0, 0), Cut(1, 2), Cut(2, 1)] and found.generated == 9 and found.requests == 36
    # 5 layers, then 2 above either cut
    assert found.layer_steps == found.tokens * (5 + 2 + 2) and found.seconds > 0
    assert "3 pruned models; 36 requests" in str(found) and "9 answers to generate" in str(found)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_progress_adds_up_to_the_plan(llama, few_shot):
    model, done = TreeModel(llama, CUTS), []
    found = plan_requests(model, asked(few_shot))
    for _, pieces in found.parts:
        list(model.answer(pieces, done.append))
    assert sum(done) == found.layer_steps


def test_what_is_given_twice_is_run_once_and_rows_tell_cuts_of_any_shape_apart(opened):
    rows = sweep(*opened, ["capitals"], [Cut(0, 0), Cut(1, 2), Cut(1, 2)], limit=3)
    assert len(rows) == 2 and "cut" not in rows and set(rows.attrs["outcomes"]) == {"0,0", "1,2"}
    rows = sweep(*opened, ["capitals"], [Cut.of([1, 3]), Cut.of([0, 2]), Cut.of(mlp=[1])], limit=3)
    assert list(rows["cut"]) == list(rows.attrs["outcomes"]) == ["layers 1 3", "layers 0 2", "mlp 1"]


def sequences(*arguments, max_length=1000, **how):
    """The lengths of the batches' sequences."""
    pieces = plan_pieces(Requests(*arguments, max_length), **how)
    return [[len(s.tokens) for s in batch] for piece in pieces for batch in piece.batches]


@pytest.mark.quick
def test_texts_that_only_begin_alike_are_not_one_sequence():
    """After a context of one token, hundreds of texts: joined, each token would attend across all of them."""
    texts = np.random.default_rng(0).integers(1, 100, (40, 60)).tolist()
    assert max(map(max, sequences([[0]] * 40, texts))) == 60
    # answers to one question still are, unless there are too many for a batch
    short = [text[:9] for text in texts]
    assert sequences([[0] * 50] * 4, short[:4]) == [[50 + 4 * 8]]
    assert max(map(max, sequences([[0] * 50] * 40, short, batch_tokens=300))) == 58


@pytest.mark.quick
@pytest.mark.parametrize("few_shot", [0, 60])
def test_little_padding(few_shot):
    draw = np.random.default_rng(1)
    beginning = draw.integers(1, 100, few_shot).tolist()
    contexts = [beginning + draw.integers(1, 100, draw.integers(3, 300)).tolist() for _ in range(200)]
    pieces = plan_pieces(Requests(contexts, [[1]] * 200, 1000))
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
    few = requests(100, few_shot=60)
    pieces = plan_pieces(few, batch_tokens=128)
    assert any(piece.prefix for piece in pieces) and all(len(piece.prefix) >= 60 for piece in pieces if piece.prefix)
    assert sorted(n for piece in pieces for n in piece.requests) == list(range(len(few.contexts)))
    assert sum(len(piece.sequences) for piece in pieces) == 9  # all choices of a question are one sequence
    assert plan_pieces(few, batch_tokens=128) == pieces
    # no prefix reaches past the first scored position: texts that go on alike for long, each scored from another place
    text, places = list(range(1, 101)), range(60, 80)
    (piece,) = plan_pieces(Requests([text[:n] for n in places], [[*text[n:], n] for n in places], 500))
    assert len(piece.prefix) == 59 and all(s.scored[0] >= 59 for s in piece.sequences)


def test_long_sequences_lose_tokens_on_the_left(llama):
    context, continuation = list(range(1, 60)), [5, 6]
    short, long = (
        swept(llama, [Cut(1, 2)], Requests([some], [continuation], 20))[0] for some in (context[-19:], context)
    )
    assert np.array_equal(short, long)


# ---- numbers that are none, and what was finished before


def test_what_is_not_a_number_is_refused_and_not_kept(tmp_path):
    """A layer whose output is too large for float16, and neither for a model without it nor for bfloat16."""
    model, without = tiny_model("llama", layers=LAYERS, dtype=torch.float16), Cut(3, 1)
    decoder_layers(model)[3].mlp.down_proj.weight.data.fill_(6e4)
    assert np.isfinite(swept(model, [without], asked(0))[0]).all()
    said = r"float16 of the model that drops no layers \(0 of 6\), keeps \[0:6\]: measure in another data type"
    with pytest.raises(InputError, match=said):
        swept(model, [without, Cut(0, 0)], asked(0), shards=Shards(tmp_path / "unit.partial"))
    assert not list(tmp_path.rglob("*.npz"))
    with pytest.raises(InputError, match=said):
        text_loss(model, [without, Cut(0, 0)], [torch.arange(20)])
    assert np.isfinite(swept(model.to(torch.bfloat16), [Cut(0, 0)], asked(0))[0]).all()


def test_a_token_that_a_model_rules_out_is_the_least_likely_and_has_no_loss():
    model = tiny_model("llama", layers=LAYERS)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf))
    found, _ = swept(model, [Cut(1, 2)], Requests([[1, 2]] * 2, [[7, 3], [8, 3]], 200))
    assert found[0, 0] == -np.inf and np.isfinite(found[0, 1])
    with pytest.raises(InputError, match=r"a loss is not a finite number in float32 of the model that drops layers 1"):
        text_loss(model, [Cut(1, 2)], [torch.arange(20)])
    rows, _ = text_loss(model, [Cut(1, 2)], [torch.arange(7)])
    assert np.isfinite(rows["value"]).all()


def test_goes_on_from_shards(llama, tmp_path, monkeypatch):
    model, how = TreeModel(llama, CUTS), {"batch_tokens": 32, "shards": Shards(tmp_path / "unit.partial")}
    expected, _ = loglikelihoods(model, asked(0), **how)
    stored = sorted((tmp_path / "unit.partial").glob("*.npz"))
    assert len(stored) > 2
    stored[1].unlink()
    stored[2].write_bytes(stored[2].read_bytes()[:100])
    ran, answer = [], TreeModel.answer
    monkeypatch.setattr(TreeModel, "answer", lambda self, pieces, bar: ran.extend(pieces) or answer(self, pieces, bar))
    with pytest.warns(UserWarning, match=stored[2].name):
        found, _ = loglikelihoods(model, asked(0), **how)
    assert len(ran) == 2
    assert np.array_equal(found, expected)
