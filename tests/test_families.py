"""Every family of tests/tiny.py: cut, swept, sliced and reloaded as the same model with identity layers has it.

A family that can't be cut is refused, and the reason is tested.
"""

import contextlib
import functools
import json

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.per_layer import cut_entry
from deeper_layers.pruning import drop_layers, silence_sublayers
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping.abilities import alone
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.planning import Sequence
from deeper_layers.sweeping.pruned_family import PrunedFamily
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.walk import Batch, Walk
from tests.plain import NEW_TOKENS, batch, generate, logits, one_by_one, plain_distances, requests, residuals, without
from tests.tiny import ALL_FAMILIES, SLIDING_WINDOW, VOCABULARY, tiny_model

LAYERS = 6
CUTS = [Cut(0, 2), Cut(2, 1)]  # of no family do both leave the first layers' kinds, as a shortened list would
# what no configuration of the family can state, as each message must
# of every shape: blocks first, middle, last but one and last; scattered; sublayers; all of these together
SHAPES = [
    Cut(0, 0), Cut(0, 1), Cut(2, 2), Cut(1, 4), Cut(LAYERS - 2, 1), Cut(LAYERS - 1, 1), Cut.of([1, 4]),
    Cut.of([0, 2, 5]), Cut.of(attention=[2]), Cut.of(attention=[0, 5]), Cut.of(mlp=[1, 4]),
    Cut.of([3], attention=[1], mlp=[5]),
]  # fmt: skip
# where what runs together rounds otherwise than what runs alone, experts and scans: by up to 1.6e-5, depending on
# the processor, while no two of these cuts give logits that are less than 1.7 apart
ROUNDED = ("qwen3_moe", "deepseek_v3", "llama4", "qwen3_next", "falcon_h1")
REFUSED = {
    "gemma3n": r"changes model\.embed_tokens_per_layer\.weight",
    "jamba": r"changes model\.layers\.\d\.",
}

every_family = pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if name not in REFUSED])


@functools.cache
def original(family):
    return tiny_model(family, layers=LAYERS)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    """HFLM wants one; what it is asked are tokens."""
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def tokens():
    """Two prompts, three times as long as the sliding window."""
    return torch.randint(1, VOCABULARY, (2, 3 * SLIDING_WINDOW), generator=torch.Generator().manual_seed(1))


@every_family
def test_a_dropped_layer_is_an_identity_layer(family, tokens):
    model = original(family)
    assert len(decoder_layers(model)) == LAYERS
    for cut in CUTS:
        pruned, reference = drop_layers(model, cut), without(model, range(cut.start, cut.stop))
        found = logits(pruned, tokens)
        assert torch.equal(found, logits(reference, tokens)), cut
        assert (found - logits(model, tokens)).abs().max() > 0.1
    cached = generate(pruned, tokens)
    assert torch.equal(cached, generate(pruned, tokens, use_cache=False))
    assert torch.equal(cached, generate(reference, tokens, use_cache=False))


@every_family
def test_slicing_and_loading_is_loading_and_dropping(family, tokens, tmp_path):
    model = original(family)
    model.save_pretrained(tmp_path / "whole")
    for cut in CUTS:
        pruned, out = drop_layers(model, cut), tmp_path / f"{cut.start}-{cut.size}"
        slice_checkpoint(tmp_path / "whole", cut, out)
        reloaded, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not any(report.values()), report
        assert torch.equal(logits(reloaded, tokens), logits(pruned, tokens)), cut
        assert reloaded.config.num_hidden_layers == LAYERS - cut.size
        # by original index, whatever the length of the list
        kept = cut.kept(LAYERS)
        for name in ("layer_types", "no_rope_layers", "attention_layers"):
            if isinstance(whole := getattr(model.config, name, None), list):
                assert getattr(reloaded.config, name) == [whole[index] for index in kept], name
    assert torch.equal(generate(reloaded, tokens), generate(pruned, tokens))


@every_family
def test_distances_are_those_of_a_plain_loop(family, tokens):
    model = original(family)
    sequences = [tokens[0].tolist(), tokens[1, :5].tolist()]
    each = [plain_distances(residuals(model, sequence)) for sequence in sequences]
    found = angular_distances(model, [batch(sequences)])
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6, rtol=0)
    assert np.nanstd(found) > 1e-3


@functools.cache
def pruned_of(family: str) -> dict[Cut, torch.nn.Module]:
    """The pruned models of a family by themselves, those that it has."""
    found = {}
    for cut in SHAPES:
        with contextlib.suppress(InputError):  # its layers have no such sublayer, or no matrix that ends it
            found[cut] = silence_sublayers(original(family), cut)
            found[cut].config.use_cache = False  # which holds no layers of linear attention alone
    return found


@functools.cache
def together_of(family: str) -> PrunedFamily:
    return PrunedFamily(original(family), list(pruned_of(family)))


@every_family
def test_the_tree_without_savings_gives_every_pruned_model_to_the_bit(family):
    together, pruned = together_of(family), pruned_of(family)
    assert len(pruned) >= 7
    contexts, continuations = requests(VOCABULARY, few_shot=20, questions=2)
    asked = zip(contexts[3::4], continuations[3::4], strict=True)
    batch = Batch.of(tuple(Sequence.joined(c, [(n, a)]) for n, (c, a) in enumerate(asked)), 0, together.device)
    if not together.can.split:
        return  # then each runs by itself
    with torch.inference_mode():
        walk = Walk(together.whole, together.tree, batch).through()
        differences = []
        for number, alone_ in zip(together.tree.last, pruned.values(), strict=True):
            difference = together.whole.logits(walk.states[number]) - alone(alone_, Cut(0, 0), batch)
            differences.append(float(difference.abs().max()))
    assert max(differences) <= (1e-4 if family in ROUNDED else 0)


@every_family
def test_a_sweep_gives_what_lm_eval_gives_for_every_pruned_model(family, tokenizer):
    pruned = pruned_of(family)
    contexts, continuations = requests(VOCABULARY, few_shot=50, questions=3)
    shape = {"max_length": 100, "batch_tokens": 256}
    shape["family"] = together_of(family)
    found, greedy = loglikelihoods(original(family), contexts, continuations, list(pruned), **shape)
    some = slice(0, None, 5)  # of every length of answer
    asked = [(("", ""), *one) for one in zip(contexts[some], continuations[some], strict=True)]
    for cut, row, likeliest in zip(pruned, found, greedy, strict=True):
        lm = HFLM(pretrained=pruned[cut], tokenizer=tokenizer, batch_size=4, max_length=100)
        expected, expected_greedy = zip(*lm._loglikelihood_tokens(asked, disable_tqdm=True), strict=True)
        np.testing.assert_allclose(row[some], expected, atol=2e-4, rtol=0, err_msg=str(cut))
        assert tuple(likeliest[some]) == expected_greedy
    assert len({row.round(3).tobytes() for row in found}) == len(pruned)


@every_family
def test_generated_together_is_generated_alone(family, tokens):
    cuts = [cut for cut in (SHAPES[2], *SHAPES[-2:]) if cut in pruned_of(family)]
    together = together_of(family).part(cuts)
    if not together.can.branch:
        return  # then lm-eval generates, see family/generation.py
    rows = [tokens[0].tolist(), tokens[1, :9].tolist(), tokens[0, 5:22].tolist()]
    written = Decoding(together, rows, NEW_TOKENS).write(lambda rows: [False] * len(rows))
    for cut, found in zip(cuts, written, strict=True):
        for row, new in zip(rows, found, strict=True):
            alone_ = generate(pruned_of(family)[cut], torch.tensor([row]), use_cache=False)
            assert row + new == alone_[0].tolist()


@pytest.mark.parametrize("family", list(REFUSED))
def test_what_no_configuration_can_state_is_refused(family, tmp_path):
    model = original(family)
    model.save_pretrained(tmp_path / "whole")
    for cut in CUTS:
        with pytest.raises(InputError, match=REFUSED[family]):
            drop_layers(model, cut)
        with pytest.raises(InputError, match=REFUSED[family]):
            slice_checkpoint(tmp_path / "whole", cut, tmp_path / "out")
        with pytest.raises(InputError, match=REFUSED[family]):
            PrunedFamily(model, [cut])
    assert not (tmp_path / "out").exists()


def test_distances_of_several_residuals_are_refused(tokens):
    with pytest.raises(InputError, match=r"Gemma3nTextDecoderLayer hands on a residual of shape \(4, 2, 24, 48\)"):
        angular_distances(original("gemma3n"), [batch(tokens.tolist())])


# what decides whether a family is cut, whatever its name


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mlp_only_layers", [0, 4], [2]),  # indices of layers, renumbered
        ("moe_layers", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3]),
        ("full_attn_idxs", (3, 5), (1, 3)),
        ("per_layer_config", {"1": "one", "05": "five"}, {"3": "five"}),
        ("per_layer_config", {5: "five"}, {3: "five"}),
        ("no_rope_layers", [1, 0, 1, 1, 0, 1], [1, 1, 0, 1]),  # a value for each layer, cut
        ("layer_widths", [10, 11, 12, 13, 14, 15], [12, 13, 14, 15]),
        ("first_k_dense_replace", 3, 1),
        ("eos_token_id", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),  # none of these
        ("mrope_section", [1, 2, 3], [1, 2, 3]),
        ("layer_norms", [0.1, 0.2], [0.1, 0.2]),
        ("num_hidden_layers", 6, 6),
        ("mlp_only_layers", [], []),
    ],
)
def test_an_entry_of_a_configuration_without_layers_0_and_1(name, value, expected):
    assert cut_entry(name, value, [2, 3, 4, 5], 6) == expected


def test_of_two_layers_yes_or_no_for_each_is_no_list_of_indices():
    assert cut_entry("no_rope_layers", [0, 1], [1], 2) == [1]


def test_a_window_of_another_name_is_left_to_the_model():
    """Wider than the few tokens on which savings are tried, narrower than what is then run."""
    model = tiny_model("gpt_neo", window_size=40)
    assert not PrunedFamily(model, CUTS).can.branch
    contexts, continuations = requests(VOCABULARY, few_shot=60, questions=2)
    found, _ = loglikelihoods(model, contexts, continuations, CUTS, max_length=200)
    for cut, row in zip(CUTS, found, strict=True):
        expected, _ = one_by_one(drop_layers(model, cut), contexts, continuations)
        np.testing.assert_allclose(row, expected, atol=2e-4, rtol=0)


class Reaching(LlamaDecoderLayer):
    """A layer that takes more than the residual: what entered the first layer, too."""

    def forward(self, hidden_states, **named):
        if self.self_attn.layer_idx == 0:
            Reaching.first = hidden_states
        return super().forward(hidden_states + 0.5 * Reaching.first, **named)


def test_pruned_models_whose_layers_take_more_than_the_residual_run_by_themselves():
    model = tiny_model("llama", layers=LAYERS)
    assert PrunedFamily(model, CUTS).can.split
    for layer in decoder_layers(model):
        layer.__class__ = Reaching
    assert not PrunedFamily(model, CUTS).can.split
    check_sweep(model, CUTS)


def test_a_cut_is_swept_though_the_layers_above_it_alone_are_no_model():
    # every second layer is a mixture, so one that has lost an odd number of layers at its beginning can't be stated
    settings = {"mlp_only_layers": [], "decoder_sparse_step": 2}
    model, cuts = tiny_model("qwen3_moe", layers=LAYERS, **settings), [Cut(1, 2), Cut(3, 2)]
    with pytest.raises(InputError):
        drop_layers(model, Cut(0, 3))
    assert PrunedFamily(model, cuts).can.split
    check_sweep(model, cuts)


def check_sweep(model, cuts):
    contexts, continuations = requests(VOCABULARY, few_shot=50, questions=5)
    found, greedy = loglikelihoods(model, contexts, continuations, cuts, max_length=200, batch_tokens=256)
    some = slice(0, None, 5)
    for cut, row, likeliest in zip(cuts, found, greedy, strict=True):
        expected, expected_greedy = one_by_one(drop_layers(model, cut), contexts[some], continuations[some])
        np.testing.assert_allclose(row[some], expected, atol=2e-4, rtol=0, err_msg=str(cut))
        assert (likeliest[some] == expected_greedy).all()


def test_ours_is_right_or_refused_for_every_family():
    content = json.loads((ROOT / "benchmarks" / "measured" / "families.json").read_text())["families"]
    assert list(content) == ALL_FAMILIES
    refused = {family for family, ways in content.items() if ways["ours"]["result"] == "refused"}
    assert refused == {*REFUSED, "gemma4"}  # the last for one of its cuts
    assert {ways["ours"]["result"] for ways in content.values()} == {"right", "refused"}
