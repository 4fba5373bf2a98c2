"""Adapters and healing: found where they belong, trained as asked, resumed exactly, merged without a loss."""

import dataclasses
import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from deeper_layers.cuts import Cut
from deeper_layers.data.tokens import sequences
from deeper_layers.errors import InputError
from deeper_layers.healing import adapters, resuming, training
from deeper_layers.healing.training import heal, train
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.pruning import drop_layers
from tests import faults
from tests.tiny import tiny_model

PAPER = Path(__file__).resolve().parents[2] / "shared" / "paper.md"
CUT = Cut(2, 2)
TEXTS = [f"{i} and {i + 1} are numbers, {'and so are these ' * (i % 7)}{i * i}." for i in range(60)]
FEW = {"rank": 2, "learning_rate": 1e-2, "sequence_length": 32, "batch_sequences": 4, "at_once": 2, "save_every": 2}
SMALL = HealingConfig(**FEW, steps=6, warmup_steps=1, quantization=None, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_model(str(tiny_folder))


def changed(config: HealingConfig, **values) -> HealingConfig:
    return dataclasses.replace(config, **values)


def weights(healed) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in healed.named_parameters() if p.requires_grad}


def equal(some: dict, others: dict) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


# ---- settings --------------------------------------------------------------------------------------------


def test_presets_are_those_of_the_papers_table():
    if not PAPER.exists():
        pytest.skip(f"needs {PAPER.parent.name}/{PAPER.name} beside the project")
    text = PAPER.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "/" in line]
    table = {row[0].replace(" (first generation)", ""): row for row in rows if len(row) == 8 and row[2].isdecimal()}
    assert table.keys() == PRESETS.keys() - {"small", "distill"}
    for name, (_, _, _, _, length, tokens, rate, rank) in table.items():
        preset = PRESETS[name]
        assert preset.sequence_length == int(length)
        assert round(preset.tokens / 1e6) == int(tokens.removesuffix("M"))
        assert preset.learning_rate == float(rate.split()[0])
        assert preset.rank == preset.alpha == int(rank)
    common = re.search(r"Common:.*", text)[0]
    steps, warmup = map(int, re.search(r"(\d+) steps, (\d+) warm-up", common).groups())
    batch = int(re.search(r"global batch (\d+) sequences", common)[1])
    dropout = float(re.search(r"dropout ([\d.]+)", common)[1])
    seed = int(re.search(r"seed (\d+)", common)[1])
    for name in table:
        found = PRESETS[name]
        assert (found.steps, found.warmup_steps, found.batch_sequences) == (steps, warmup, batch)
        assert (found.dropout, found.seed, found.quantization, found.adapters) == (dropout, seed, "nf4", "all")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"sequence_length": 1}, "sequence_length is 1"),
        ({"at_once": 3}, "at_once is 3"),
        ({"warmup_steps": 7}, "warmup_steps is 7"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"adapters": "below"}, "adapters is 'below'"),
        ({"quantization": "fp4"}, "quantization is 'fp4'"),
        ({"auxiliary": -1.0}, "auxiliary is -1"),
        ({"auxiliary": 1.0, "adapters": "above"}, "auxiliary needs"),
    ],
)
def test_an_impossible_setting_is_refused(values, word):
    with pytest.raises(InputError, match=re.escape(word)):
        changed(SMALL, **values)


# ---- where adapters go -----------------------------------------------------------------------------------


def names_in_a_layer(model) -> set[str]:
    return {name.rpartition(".")[2] for name in adapters.ffn_modules(model)}


def test_feed_forward_modules_are_the_papers():
    assert names_in_a_layer(tiny_model("llama")) == {"gate_proj", "up_proj", "down_proj"}
    assert names_in_a_layer(tiny_model("mistral")) == {"gate_proj", "up_proj", "down_proj"}
    assert names_in_a_layer(tiny_model("phi")) == {"fc1", "fc2"}


class FirstQwen(PreTrainedModel):
    """The modules of first-generation Qwen, whose attention and feed-forward part both have a c_proj."""

    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.h = nn.ModuleList(QwenBlock() for _ in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(8, 8)


class QwenBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(8, 24), "c_proj": nn.Linear(8, 8)})
        self.mlp = nn.ModuleDict({"w1": nn.Linear(8, 16), "w2": nn.Linear(8, 16), "c_proj": nn.Linear(16, 8)})
        self.attention_norm = nn.LayerNorm(8)


def test_the_attention_of_first_generation_qwen_gets_no_adapter():
    found = adapters.ffn_modules(FirstQwen(PreTrainedConfig(num_hidden_layers=3)))
    assert found == [f"h.{i}.mlp.{name}" for i in range(3) for name in ("w1", "w2", "c_proj")]


def test_a_model_without_feed_forward_modules_is_refused():
    model = FirstQwen(PreTrainedConfig(num_hidden_layers=3))
    model.h[1].mlp = nn.Identity()
    with pytest.raises(InputError, match="layer 1 of FirstQwen has no feed-forward modules"):
        adapters.ffn_modules(model)


def test_adapters_above_a_cut_that_ends_the_model_are_refused(tiny):
    model, _ = tiny
    layers = model.config.num_hidden_layers
    with pytest.raises(InputError, match=f"adapters go on layers from {layers} on, and {layers} are left, 0 to"):
        adapters.add_adapters(model, rank=2, alpha=2, dropout=0.0, first_layer=layers)


def test_a_rank_above_the_width_is_refused(tiny):
    model, _ = tiny
    with pytest.raises(InputError, match="rank is 33, expected 1 to 32"):
        adapters.add_adapters(drop_layers(model, CUT), rank=33, alpha=33, dropout=0.0)


# ---- training --------------------------------------------------------------------------------------------


# by the names of their feed-forward modules, their norms and windows; the others have those of one of these
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi", "gpt_neox"])
def test_every_family_heals_and_keeps_its_weights(family, tiny):
    model, (_, tokenizer) = tiny_model(family), tiny
    before = {name: p.clone() for name, p in model.state_dict().items()}
    config = changed(SMALL, steps=12, learning_rate=5e-2)
    ids = [[int(x) % 128 for x in tokenizer(text)["input_ids"]] for text in TEXTS]
    tokens = [torch.tensor(sum(ids, [])[i * 32 : i * 32 + 32], dtype=torch.int32) for i in range(24)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "sequences_to_learn", lambda *_, **__: tokens)
        healed, record = train(drop_layers(model, CUT), tokenizer, TEXTS, config)
    assert min(record.losses[-3:]) < record.losses[0]
    assert record.tokens == 12 * 4 * 32
    assert not healed.training
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_adapters_and_another_does_not(tiny):
    model, tokenizer = tiny
    first, second, third = (
        weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, changed(SMALL, seed=seed))) for seed in (0, 0, 1)
    )
    assert equal(first, second)
    assert not equal(first, third)


def test_what_healing_sets_globally_is_set_back(tiny):
    model, tokenizer = tiny
    before, torch_state = dict(os.environ), torch.get_rng_state()
    heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL)
    assert dict(os.environ) == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_sequences_run_together_or_apart_give_one_result(tiny):
    model, tokenizer = tiny
    config = changed(SMALL, dropout=0.0)
    one, two = (
        weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, changed(config, at_once=at_once))) for at_once in (1, 4)
    )
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_the_auxiliary_loss_of_a_step_is_a_mean_over_its_parts(tiny):
    """Each part divides by its own residuals, so the means differ a little."""
    model, tokenizer = tiny

    def added(at_once: int) -> float:
        config = changed(SMALL, dropout=0.0, steps=1, warmup_steps=0, at_once=at_once)
        with_it, without = (
            train(drop_layers(model, CUT), tokenizer, TEXTS, changed(config, auxiliary=weight), cut=CUT, whole=model)[1]
            for weight in (2.0, 0.0)
        )
        return with_it.losses[0] - without.losses[0]

    assert added(1) > 0.1 and added(1) == pytest.approx(added(4), rel=0.2)


def test_truncated_documents_count_no_padding(tiny):
    model, tokenizer = tiny
    config = changed(SMALL, packed=False, steps=15, sequence_length=200)
    _, record = train(drop_layers(model, CUT), tokenizer, TEXTS, config)
    # 15 steps of 4 are every document once
    assert record.tokens == record.distinct_tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


def test_packed_sequences_are_the_documents_one_after_another(tiny):
    _, tokenizer = tiny
    found = sequences(tokenizer, TEXTS, length=16, seed=3)
    joined = tokenizer.decode(torch.cat(found))
    assert all(len(tokens) == 16 for tokens in found)
    assert sum(text in joined for text in TEXTS) >= len(TEXTS) - 1  # the last may be cut
    assert len(sequences(tokenizer, TEXTS, length=16, seed=3, tokens=33)) == 3


def test_every_packed_sequence_begins_as_a_text_does(tiny_folder):
    """With Gemma's <bos>, or GLM's two tokens: and none begins with them twice, and no text is lost."""
    for before in (["<a>"], ["<a>", "<b>"]):
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        tokenizer.add_special_tokens({"additional_special_tokens": before})
        begin = tokenizer.convert_tokens_to_ids(before)
        special = list(zip(before, begin, strict=True))
        template = TemplateProcessing(single=" ".join([*before, "$A", before[0]]), special_tokens=special)
        plain = sequences(tokenizer, TEXTS, length=16)
        assert not any(tokens[: len(begin)].tolist() == begin for tokens in plain)
        tokenizer.backend_tokenizer.post_processor = template
        assert tokenizer("")["input_ids"] == [*begin, begin[0]]
        found = sequences(tokenizer, TEXTS, length=16)
        assert all(tokens[: len(begin)].tolist() == begin and len(tokens) == 16 for tokens in found)
        assert all(tokens[len(begin) : 2 * len(begin)].tolist() != begin for tokens in found)
        text, joined = [i for i in torch.cat(found).tolist() if i not in begin], torch.cat(plain).tolist()
        same = min(map(len, (text, joined)))  # of both the end is dropped
        assert text[:same] == joined[:same] and same > len(joined) - 16
        assert sequences(tokenizer, TEXTS, length=2)[0].tolist()[0] == begin[0]  # it ends


def test_gradient_checkpointing_changes_nothing(tiny):
    model, tokenizer = tiny
    plain, again = (
        weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, changed(SMALL, gradient_checkpointing=on)))
        for on in (False, True)
    )
    assert all(torch.allclose(plain[name], again[name], atol=1e-5) for name in plain)


# ---- variants --------------------------------------------------------------------------------------------


def test_above_the_cut_the_kept_residuals_give_what_all_layers_give(tiny, monkeypatch):
    model, tokenizer = tiny
    config = changed(SMALL, adapters="above", steps=20)
    kept = weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, config, cut=CUT))
    monkeypatch.setattr(training, "MEMORY", 0)
    run = weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, config, cut=CUT))
    assert all(".layers.2." in name for name in kept)
    assert all(torch.allclose(kept[name], run[name], atol=1e-5) for name in kept) and kept.keys() == run.keys()


def test_the_auxiliary_loss_brings_the_residual_at_the_cut_nearer(tiny):
    model, tokenizer = tiny
    batch = training._collate([{"input_ids": t} for t in sequences(tokenizer, TEXTS, length=32)[:4]])
    target = training.Joint(model).residual(batch, CUT.stop)

    def distance(config):
        healed = heal(drop_layers(model, CUT), tokenizer, TEXTS, config, cut=CUT, whole=model)
        found = training.Joint(healed.get_base_model()).residual(batch, CUT.start)
        return float((found - target).square().sum() / target.square().sum())

    config = changed(SMALL, steps=20)
    assert distance(changed(config, auxiliary=10.0)) < 0.9 * distance(config)


def test_variants_ask_for_what_they_need(tiny):
    model, tokenizer = tiny
    for config in (changed(SMALL, adapters="above"), changed(SMALL, auxiliary=1.0)):
        with pytest.raises(InputError, match="pass them"):
            heal(drop_layers(model, CUT), tokenizer, TEXTS, config)
    auxiliary, last = changed(SMALL, auxiliary=1.0), Cut(3, 2)
    with pytest.raises(InputError, match=r"there is none above Cut\(start=3, size=2\): leave it out"):
        heal(drop_layers(model, last), tokenizer, TEXTS, auxiliary, cut=last, whole=model)


# ---- interruptions and faults ----------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tiny, tmp_path):
    model, tokenizer = tiny
    config = changed(SMALL, steps=30, learning_rate=1e25, warmup_steps=25, save_every=1)
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+ of 30.*last good checkpoint: step \d+"):
        heal(drop_layers(model, CUT), tokenizer, TEXTS, config, folder=tmp_path)
    (last, _) = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    found = {name: tensor for name, tensor in load_file(last).items() if name.startswith("adapter.")}
    assert found and all(torch.isfinite(tensor).all() for tensor in found.values())


def test_a_full_disk_is_said_before_and_while_it_is_written(tiny, tmp_path, monkeypatch):
    model, tokenizer = tiny
    with monkeypatch.context() as patch:
        patch.setattr(resuming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(InputError, match="checkpoints need .* MiB are free"):
            heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL, folder=tmp_path)

    calls = faults.calls_of(lambda: heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL, folder=tmp_path / "counted"))
    last = max(number for number, name in enumerate(calls) if name == "open")
    with faults.failing_at(last + 1, errno.ENOSPC, times=9):
        with pytest.raises(InputError, match="can't write .*checkpoint.*No space left on device"):
            heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL, folder=tmp_path / "full")
    assert {path.name.split("-")[1] for path in (tmp_path / "full").glob("checkpoint-*")} >= {"4"}
    resumed = weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL, folder=tmp_path / "full"))
    assert equal(resumed, weights(heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL)))


def test_another_healings_checkpoints_are_not_gone_on_with(tiny, tmp_path):
    model, tokenizer = tiny
    heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL, folder=tmp_path)
    with pytest.raises(InputError, match="checkpoints of another healing"):
        heal(drop_layers(model, CUT), tokenizer, TEXTS, changed(SMALL, learning_rate=1e-3), folder=tmp_path)
    with pytest.raises(InputError, match="checkpoints of another healing"):
        heal(drop_layers(model, Cut(1, 2)), tokenizer, TEXTS, SMALL, folder=tmp_path, cut=Cut(1, 2))


def test_too_little_text_for_a_step_is_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(InputError, match=r"fill \d sequences .* one step needs 4 of 32 tokens"):
        heal(drop_layers(model, CUT), tokenizer, TEXTS[:1], SMALL)


# ---- kept and merged -------------------------------------------------------------------------------------


def test_adapters_are_opened_on_their_own_base_and_cut_only(tiny, tiny_folder, tmp_path):
    model, tokenizer = tiny
    base = find_model(str(tiny_folder)).key
    healed = heal(drop_layers(model, CUT), tokenizer, TEXTS, SMALL)
    adapters.save_adapters(healed, tmp_path, base, CUT)
    again = adapters.load_adapters(drop_layers(model, CUT), tmp_path, base, CUT)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(healed(ids).logits, again(ids).logits)
    with pytest.raises(InputError, match="were trained on tiny-llama"):
        adapters.load_adapters(drop_layers(model, CUT), tmp_path, base | {"weights": "sha256:0"}, CUT)
    with pytest.raises(InputError, match=r"trained for Cut\(start=2, size=2\), not for Cut\(start=1, size=2\)"):
        adapters.load_adapters(drop_layers(model, Cut(1, 2)), tmp_path, base, Cut(1, 2))
    with pytest.raises(InputError, match="holds no adapters of ours"):
        adapters.load_adapters(drop_layers(model, CUT), tmp_path / "none", base, CUT)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_merged_adapters_give_the_same_answers(quantization, tiny_folder, tmp_path):
    model, tokenizer = load_model(str(tiny_folder), quantization=quantization)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        before = model(ids).logits
    healed = heal(drop_layers(model, CUT), tokenizer, TEXTS, changed(SMALL, quantization=quantization))
    merged = adapters.merge_adapters(healed)
    with torch.inference_mode():
        expected = healed(ids).logits
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
        assert torch.equal(model(ids).logits, before)
    assert not any("lora" in name for name, _ in merged.named_modules())
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    reloaded, _ = load_model(str(tmp_path / "merged"))
    assert num_layers(reloaded) == 3
    with torch.inference_mode():
        assert torch.allclose(reloaded(ids).logits, expected, atol=1e-4)
        half = adapters.merge_adapters(healed, torch.bfloat16)
        assert half(ids).logits.dtype == torch.bfloat16
        assert torch.equal(model(ids).logits, before)
