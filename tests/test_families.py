"""Every family of tests/tiny.py: cut, sliced, reloaded, measured, swept, asked and healed.

The reference is the same model with identity layers. A family that can't be cut is refused, and the reason is tested.
"""

import contextlib
import json

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.healing.adapters import merge_adapters
from deeper_layers.healing.training import heal
from deeper_layers.models.decoder import cut_entry, decoder_layers
from deeper_layers.models.network import is_streamed
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers, zero_sublayers
from deeper_layers.similarity import angular_distances
from deeper_layers.sweeping.generation import Decoding
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree_model import Sharing, TreeModel
from deeper_layers_companion.results.places import AROUND as ROOT
from tests.plain import NEW_TOKENS, batch, generate, logits, never, plain_distances, requests, residuals, without
from tests.test_distributed import CONFIG, TEXTS
from tests.tiny import ALL_FAMILIES, FOUR, SLIDING_WINDOW, VOCABULARY, shared_model, tiny_model

LAYERS = 6
CUTS = [Cut(0, 2), Cut(2, 1)]  # of no family do both leave the first layers' kinds, as a shortened list would
# of every shape: blocks first, middle, last but one and last; scattered; sublayers; all of these together
BLOCKS = [Cut(0, 0), Cut(0, 1), Cut(2, 2), Cut(1, 4), Cut(LAYERS - 2, 1), Cut(LAYERS - 1, 1)]
SUBLAYERS = [Cut.of(attention=[2]), Cut.of(attention=[0, 5]), Cut.of(mlp=[1, 4]), Cut.of([3], attention=[1], mlp=[5])]
SHAPES = [*BLOCKS, Cut.of([1, 4]), Cut.of([0, 2, 5]), *SUBLAYERS]
# all others share all
SHARED = dict.fromkeys(("gpt_neo", "bloom", "mpt", "llama4"), Sharing.PREFIXES)
SHARED |= dict.fromkeys(("qwen3_next", "qwen3_5_text", "lfm2", "falcon_h1", "mamba"), Sharing.LAYERS)
UNHEALED = ("mixtral", "qwen3_moe", "gpt_oss", "mamba")  # experts and a Mamba are no feed-forward modules
UNSTREAMED = ("gpt_bigcode",)  # whose head can't be on a disk
# what no configuration of the family can state, as each message must
REFUSED = {"gemma3n": r"changes model\.embed_tokens_per_layer\.weight", "jamba": r"changes model\.layers\.\d\."}
SELDOM = [name for name in ALL_FAMILIES if name not in (*FOUR, *REFUSED)]


@pytest.fixture(scope="module")
def tokens():
    """Two prompts, three times as long as the sliding window."""
    return torch.randint(1, VOCABULARY, (2, 3 * SLIDING_WINDOW), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # of peft, where no layer holds experts
@pytest.mark.parametrize("family", [*FOUR, *(pytest.param(name, marks=pytest.mark.thorough) for name in SELDOM)])
def test_a_family(family, tokens, opened, tmp_path):
    model = shared_model(family, LAYERS)
    check_cut_and_slice(model, tokens, tmp_path)
    check_distances(model, tokens)
    pruned = {}
    for cut in SHAPES:
        with contextlib.suppress(InputError):  # its layers have no such sublayer, or no matrix that ends it
            pruned[cut] = zero_sublayers(model, cut)
            pruned[cut].config.use_cache = False  # which holds no layers of linear attention alone
    assert len(pruned) >= 7
    together = TreeModel(model, list(pruned))
    assert together.sharing == SHARED.get(family, Sharing.MASKS)
    check_sweep(together, pruned, opened[1])
    if together.sharing == Sharing.MASKS:  # else lm-eval generates, see sweeping/generation.py
        check_answers(together, pruned, tokens)
    if family not in UNSTREAMED:
        check_streaming(together, opened[1], tokens, tmp_path / "whole")
    check_healing(family, tokens, opened[1])


def check_cut_and_slice(model, tokens, folder):
    """A dropped layer is an identity layer; slicing and loading is loading and dropping."""
    assert len(decoder_layers(model)) == LAYERS
    model.save_pretrained(folder / "whole")
    for cut in (Cut.of([1, 4]), *CUTS):
        pruned, reference, out = drop_layers(model, cut), without(model, cut.dropped), folder / cut.name
        found = logits(pruned, tokens)
        assert torch.equal(found, logits(reference, tokens)), cut
        assert (found - logits(model, tokens)).abs().max() > 0.1
        slice_checkpoint(folder / "whole", cut, out)
        reloaded, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not any(report.values()), report
        assert torch.equal(logits(reloaded, tokens), found), cut
        assert reloaded.config.num_hidden_layers == LAYERS - cut.size
        # by original index, whatever the length of the list
        kept = cut.kept(LAYERS)
        for name in ("layer_types", "no_rope_layers", "attention_layers"):
            if isinstance(whole := getattr(model.config, name, None), list):
                assert getattr(reloaded.config, name) == [whole[index] for index in kept], name
    cached = generate(pruned, tokens)
    assert torch.equal(cached, generate(pruned, tokens, use_cache=False))
    assert torch.equal(cached, generate(reference, tokens, use_cache=False))
    assert torch.equal(cached, generate(reloaded, tokens))


def check_distances(model, tokens):
    sequences = [tokens[0].tolist(), tokens[1, :5].tolist()]
    each = [plain_distances(residuals(model, sequence)) for sequence in sequences]
    found = angular_distances(model, [batch(sequences)])
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6, rtol=0)
    assert np.nanstd(found) > 1e-3


def check_sweep(together, pruned, tokenizer):
    """HFLM, which wants a tokenizer, gives the same of each pruned model by itself, of what is too long the end."""
    few, some = requests(VOCABULARY, few_shot=50, questions=12, max_length=68), slice(0, None, 13)
    found, greedy = loglikelihoods(together, few, batch_tokens=256)
    asked = [(("", ""), *one) for one in few.pairs[some]]
    for cut, row, likeliest in zip(pruned, found, greedy, strict=True):
        lm = HFLM(pretrained=pruned[cut], tokenizer=tokenizer, batch_size=4, max_length=68)
        expected, expected_greedy = zip(*lm._loglikelihood_tokens(asked, disable_tqdm=True), strict=True)
        np.testing.assert_allclose(row[some], expected, atol=2e-4, rtol=0, err_msg=str(cut))
        assert tuple(likeliest[some]) == expected_greedy
    assert len({row.round(3).tobytes() for row in found}) == len(pruned)


def check_answers(together, pruned, tokens):
    """Generated together is generated alone."""
    cuts = [cut for cut in (SHAPES[2], *SHAPES[-2:]) if cut in pruned]
    rows = [tokens[0].tolist(), tokens[1, :9].tolist(), tokens[0, 5:22].tolist()]
    written = Decoding(together.for_cuts(cuts), rows, NEW_TOKENS).write(never)
    for cut, found in zip(cuts, written, strict=True):
        for row, new in zip(rows, found, strict=True):
            assert row + new == generate(pruned[cut], torch.tensor([row]), use_cache=False)[0].tolist()


def check_streaming(together, tokenizer, tokens, folder):
    """Layers that stay on disk give what those in memory do, to the bit."""
    tokenizer.save_pretrained(folder)
    disk, few = load_model(str(folder), stream=True)[0], requests(VOCABULARY, few_shot=50)
    assert np.array_equal(loglikelihoods(TreeModel(disk, together.cuts), few), loglikelihoods(together, few))
    found, expected = (angular_distances(model, [batch(tokens.tolist())]) for model in (disk, together.network.model))
    np.testing.assert_array_equal(found, expected)
    assert is_streamed(disk)


def check_healing(family, tokens, tokenizer):
    """Adapters learn, the weights below them stay, and merged they give the same answers."""
    model = tiny_model(family, layers=LAYERS, vocab_size=len(tokenizer))
    before, expected = logits(model, tokens), logits(pruned := drop_layers(model, CUTS[1]), tokens)
    if family in UNHEALED:
        with pytest.raises(InputError, match="has no feed-forward modules that an adapter can"):
            heal(pruned, tokenizer, TEXTS, CONFIG)
        return
    found = logits(healed := heal(pruned, tokenizer, TEXTS, CONFIG), tokens)
    assert (found - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(merge_adapters(healed), tokens), found, atol=1e-3, rtol=0)
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("family", list(REFUSED))
def test_what_no_configuration_can_state_is_refused(family, tmp_path):
    model = shared_model(family, LAYERS)
    model.save_pretrained(tmp_path / "whole")
    for refuse in (drop_layers, lambda model, cut: slice_checkpoint(tmp_path / "whole", cut, tmp_path / "out")):
        for cut in CUTS:
            with pytest.raises(InputError, match=REFUSED[family]):
                refuse(model, cut)
    with pytest.raises(InputError, match=REFUSED[family]):
        TreeModel(model, CUTS)
    assert not (tmp_path / "out").exists()


def test_distances_of_several_residuals_are_refused(tokens):
    with pytest.raises(InputError, match=r"Gemma3nTextDecoderLayer hands on a residual of shape \(4, 2, 24, 48\)"):
        angular_distances(shared_model("gemma3n", LAYERS), [batch(tokens.tolist())])


def test_ours_is_right_or_refused_for_every_family():
    content = json.loads((ROOT / "benchmarks" / "measured" / "families.json").read_text())["families"]
    assert set(content) <= set(ALL_FAMILIES)
    refused = {family for family, ways in content.items() if ways["ours"]["result"] == "refused"}
    assert refused == {*REFUSED, "gemma4"}  # the last for one of its cuts
    assert {ways["ours"]["result"] for ways in content.values()} == {"right", "refused"}


def test_entries_of_a_configuration_without_layers_0_and_1():
    """What decides whether a family is cut, whatever its name."""
    for name, value, expected in [
        ("mlp_only_layers", [0, 4], [2]),  # indices of layers, renumbered
        ("full_attn_idxs", (3, 5), (1, 3)),
        ("per_layer_config", {"1": "one", "05": "five"}, {"3": "five"}),
        ("per_layer_config", {5: "five"}, {3: "five"}),
        ("layer_widths", [10, 11, 12, 13, 14, 15], [12, 13, 14, 15]),  # a value for each layer, cut
        ("eos_token_id", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),  # none of these
        ("mrope_section", [1, 2, 3], [1, 2, 3]),
        ("layer_norms", [0.1, 0.2], [0.1, 0.2]),
        ("mlp_only_layers", [], []),
    ]:
        assert cut_entry(name, value, [2, 3, 4, 5], 6) == expected, name
    # of two layers yes or no for each is no list of indices
    assert cut_entry("no_rope_layers", [0, 1], [1], 2) == [1]
