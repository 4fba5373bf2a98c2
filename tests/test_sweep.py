"""The shared sweep gives what each pruned model gives by itself, within the memory that it states."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.decoder import decoder_layers, num_layers
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import attention, forward
from deeper_layers.sweeping.generation import Decoding
from deeper_layers.sweeping.planning import Requests, plan_batches
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import loglikelihoods, plan, plan_requests, sweep, text_loss
from deeper_layers.sweeping.tree_model import Sharing, TreeModel
from tests.plain import allocated, logits, never, requests, without
from tests.tiny import shared_model, tiny_model

LAYERS = 6
# shallow, middle, deep, overlapping, all but one layer, one that drops the last layer, scattered
BLOCKS = [Cut(0, 0), Cut(0, 1), Cut(1, 2), Cut(2, 2), Cut(0, 4), Cut(4, 2), *(simple_cut(LAYERS, n) for n in (1, 3, 5))]
CUTS = [*BLOCKS, Cut.of([0, 3]), Cut.of([1, 4, 5])]
ASKED = {few_shot: requests(128, few_shot=few_shot, max_length=128) for few_shot in (0, 60, 90)}


@pytest.fixture
def llama():
    return shared_model("llama", LAYERS)


def swept(model, cuts, *requests, **how):
    return loglikelihoods(TreeModel(model, cuts), *requests, **how)


@pytest.mark.parametrize("few_shot", [0, 60])
def test_together_is_alone_to_the_bit(llama, few_shot):
    logprobs, greedy = swept(llama, CUTS, ASKED[few_shot], batch_tokens=128)
    for cut, *found in zip(CUTS, logprobs, greedy, strict=True):
        alone = swept(drop_layers(llama, cut), [Cut(0, 0)], ASKED[few_shot], batch_tokens=128)
        assert np.array_equal(found, [of_one[0] for of_one in alone]), cut


@pytest.mark.parametrize("few_shot", [0, 60, 110])
def test_a_request_is_scored_as_a_plain_pass_of_the_pruned_model_scores_it(llama, few_shot):
    """The reference plans nothing. With 110 tokens in front some requests exceed the context: their end is scored."""
    asked = requests(128, few_shot=few_shot, max_length=128)
    lengths = [len(context + continuation) for context, continuation in asked.pairs]
    assert (max(lengths) > asked.max_length + 1 > min(lengths)) == (few_shot == 110)
    logprobs, greedy = swept(llama, CUTS, asked, batch_tokens=128)
    for row, cut in enumerate(CUTS):
        reference = without(llama, cut.dropped)
        for column, (context, continuation) in enumerate(asked.pairs):
            tokens = (context + continuation)[-(asked.max_length + 1) :]
            scores = logits(reference, torch.tensor([tokens[:-1]]))[0, -len(continuation) :].log_softmax(-1)
            wanted = torch.tensor(continuation)
            expected = scores[range(len(continuation)), wanted].sum().item()
            assert logprobs[row, column] == pytest.approx(expected, abs=1e-4), (cut, context)
            assert greedy[row, column] == torch.equal(scores.argmax(-1), wanted)


# ---- what is shared


def test_what_gives_other_numbers_is_left_out(llama, monkeypatch):
    expected, _ = swept(llama, CUTS, ASKED[60])
    # a family that takes no mask of ours, then one whose cache takes no prefix either
    for module, name, wrong, left in (
        (forward, "attention_masks", lambda *_: None, Sharing.PREFIXES),
        (attention, "append_states", lambda prefix, own: own, Sharing.LAYERS),
    ):
        monkeypatch.setattr(module, name, wrong)

        family = TreeModel(llama, CUTS)
        assert family.sharing == left
        np.testing.assert_allclose(loglikelihoods(family, ASKED[60])[0], expected, atol=1e-4, rtol=0)


class Reaching(LlamaDecoderLayer):
    """A layer that takes more than the residual: what entered the layer that ran before it, too."""

    def forward(self, hidden_states, **named):
        before = Reaching.before if self.self_attn.layer_idx else torch.zeros_like(hidden_states)
        Reaching.before = hidden_states
        return super().forward(hidden_states + 0.5 * before, **named)


def reaching():
    model = tiny_model("llama")
    for layer in decoder_layers(model):
        layer.__class__ = Reaching
    return model


@pytest.mark.parametrize(
    ("made", "sharing"),
    [
        (reaching, Sharing.NOTHING),
        # a window wider than the few tokens on which savings are tried, narrower than what is then run
        (lambda: tiny_model("gpt_neo", window_size=40), Sharing.PREFIXES),
        # every second layer is a mixture: with an odd number of layers gone at its beginning it can't be stated
        (lambda: tiny_model("qwen3_moe", mlp_only_layers=[], decoder_sparse_step=2), Sharing.MASKS),
    ],
)
def test_as_much_is_shared_as_gives_each_model_s_own_numbers(made, sharing):
    model, cuts, few = made(), [Cut(1, 2), Cut(3, 2)], requests(128, few_shot=50, questions=5)
    family = TreeModel(model, cuts)
    assert family.sharing == sharing
    assert family.sharing or family.layer_steps == 2 * (num_layers(model) - 2)
    for cut, *found in zip(cuts, *loglikelihoods(family, few, batch_tokens=256), strict=True):
        expected = loglikelihoods(TreeModel(drop_layers(model, cut), [Cut(0, 0)], Sharing.NOTHING), few)
        np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-4, rtol=0, err_msg=str(cut))


# ---- memory


@pytest.mark.parametrize(("family", "few_shot"), [("llama", 0), ("llama", 90), ("gemma2", 90), ("falcon_h1", 0)])
def test_no_more_is_taken_than_is_planned_and_progress_adds_up(family, few_shot):
    model, done = TreeModel(shared_model(family, LAYERS), CUTS), []
    planned = plan_requests(model, ASKED[few_shot])
    with allocated() as taken:
        for batches in planned.parts:
            model.answer(batches, done.append)
    assert planned.bytes / 5 < taken[0] <= planned.bytes and sum(done) == planned.layer_steps


def test_answers_take_no_more_than_is_estimated(llama):
    model, prompts = TreeModel(llama, CUTS), [list(range(1, 60 + 3 * n)) for n in range(1, 7)]
    with allocated() as taken:
        Decoding(model, prompts, 12).write(never)
    stated = model.estimate.writing_bytes(model.tree, len(prompts), max(map(len, prompts)), 12)
    assert stated / 5 < taken[0] <= stated


# ---- plans


def test_a_plan_tells_the_cost(opened):
    cuts = [Cut(0, 0), Cut(1, 2), Cut(1, 2), Cut(2, 1)]
    found = plan(*opened, ["capitals", "sums_one_digit_generated"], cuts, limit=9)
    assert found.cuts == [Cut(0, 0), Cut(1, 2), Cut(2, 1)] and found.generated == 9 and found.requests == 36
    # 5 layers, then 2 above either cut
    assert found.layer_steps == found.tokens * (5 + 2 + 2) and found.seconds > 0
    assert "3 pruned models; 36 requests" in str(found) and "9 answers to generate" in str(found)
    assert "; 5 MiB needed; " in str(dataclasses.replace(found, bytes=5 * 1024**2))
    written = plan(*opened, ["sums_one_digit_generated"], cuts, limit=9)
    assert (written.requests, written.layer_steps, written.bytes, written.seconds) == (0, 0, 0, None)


def test_what_is_given_twice_is_run_once_and_rows_tell_cuts_of_any_shape_apart(opened):
    rows = sweep(*opened, ["capitals"], [Cut(0, 0), Cut(1, 2), Cut(1, 2)], limit=3)
    assert len(rows) == 2 and "cut" not in rows and set(rows.attrs["outcomes"]) == {"0,0", "1,2"}
    rows = sweep(*opened, ["capitals"], [Cut.of([1, 3]), Cut.of([0, 2]), Cut.of(mlp=[1])], limit=3)
    assert list(rows["cut"]) == list(rows.attrs["outcomes"]) == ["layers 1 3", "layers 0 2", "mlp 1"]


DRAW = np.random.default_rng(0)
TEXTS = DRAW.integers(1, 100, (40, 60)).tolist()
SHORT = [text[:9] for text in TEXTS]
LONG = [[*range(60), *text, *other[: n * 3]] for n, (text, other) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))]
PLANNED = [  # contexts, continuations, tokens of a batch; number of sequences, tokens of the longest and of the prefix
    # only begin alike, and joined each token would attend across all of them
    ([[0]] * 40, TEXTS, 4096, (40, 60, 0)),
    # answers to one question are joined, unless there are too many for a batch
    ([[0] * 50] * 4, SHORT[:4], 4096, (1, 50 + 4 * 8, 0)),
    ([[0] * 50] * 40, SHORT, 300, (40, 58, 49)),
    (LONG, [[1]] * 40, 4096, (40, 180, 60)),
    # go on alike for long, each scored from another place
    ([list(range(n)) for n in range(60, 80)], [list(range(n, 101)) for n in range(60, 80)], 4096, (20, 100, 59)),
]


@pytest.mark.quick
@pytest.mark.parametrize(("contexts", "continuations", "batch_tokens", "expected"), PLANNED)
def test_a_plan_shares_prefixes_joins_choices_and_pads_little(contexts, continuations, batch_tokens, expected):
    batches = plan_batches(Requests([*zip(contexts, continuations, strict=True)], 1000), batch_tokens)
    assert sorted(n for batch in batches for n in batch.requests) == list(range(len(contexts)))
    sequences, (prefix,) = [s for batch in batches for s in batch.sequences], {batch.prefix for batch in batches}
    assert (len(sequences), max(len(s.tokens) for s in sequences), len(prefix)) == expected
    assert all(s.tokens[: len(prefix)] == prefix and s.scored[0] >= len(prefix) for s in sequences)
    tokens = sum(batch.tokens for batch in batches)
    padded = sum(len(batch.sequences) * batch.width for batch in batches)
    assert tokens == sum(len(s.tokens) - len(prefix) for s in sequences) <= padded < tokens / 0.95
    assert max(len(batch.sequences) for batch in batches) > 2 or len(sequences) == 1


# ---- numbers that are none, and what was finished before


def test_what_is_not_a_number_is_refused_and_not_kept(tmp_path):
    """A layer whose output is too large for float16, and neither for a model without it nor for bfloat16."""
    model, cuts = tiny_model("llama", dtype=torch.float16), [Cut(3, 1), Cut(0, 0)]
    decoder_layers(model)[3].mlp.down_proj.weight.data.fill_(6e4)
    with pytest.raises(InputError, match=r"float16 of the model that drops no layers .*: measure in another data type"):
        swept(model, cuts, ASKED[0], shards=Shards(tmp_path / "unit.partial"))
    assert not list(tmp_path.rglob("*.npz"))
    assert np.isfinite(swept(model, cuts[:1], ASKED[0])[0]).all()
    assert np.isfinite(swept(model.to(torch.bfloat16), cuts, ASKED[0])[0]).all()


def test_a_token_that_a_model_rules_out_is_the_least_likely_and_has_no_loss():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf))
    found, _ = swept(model, [Cut(1, 2)], Requests([([1, 2], [7, 3]), ([1, 2], [8, 3])], 200))
    assert found[0, 0] == -np.inf and np.isfinite(found[0, 1])
    with pytest.raises(InputError, match=r"a loss is not a finite number in float32 of the model that drops layers 1"):
        text_loss(model, [Cut(1, 2)], [torch.arange(20)])


def test_goes_on_from_shards(llama, tmp_path, monkeypatch):
    model, how = TreeModel(llama, CUTS), {"batch_tokens": 32, "shards": Shards(tmp_path / "unit.partial")}
    expected = loglikelihoods(model, ASKED[0], **how)
    _, lost, torn, *_ = sorted((tmp_path / "unit.partial").glob("*.npz"))
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:100])
    ran, answer = [], TreeModel.answer
    monkeypatch.setattr(TreeModel, "answer", lambda self, some, *how: ran.extend(some) or answer(self, some, *how))
    with pytest.warns(UserWarning, match=torn.name):
        found = loglikelihoods(model, ASKED[0], **how)
    assert len(ran) == 2 and np.array_equal(found, expected)
