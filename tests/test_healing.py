"""Healing: adapters where they belong, trained as asked, killed and gone on with, merged without a loss."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from deeper_layers.cuts import Cut
from deeper_layers.data.tokens import sequences
from deeper_layers.errors import InputError
from deeper_layers.healing import adapters
from deeper_layers.healing.partial_forward import residual_entering
from deeper_layers.healing.training import heal, train
from deeper_layers.models.decoder import num_layers
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.pruning import drop_layers
from tests import faults
from tests.tiny import tiny_model

PAPER = Path(__file__).resolve().parents[2] / "shared" / "paper.md"
CUT, SELDOM = Cut(2, 2), pytest.mark.thorough
TEXTS = [f"{i} and {i + 1} are numbers, {'and so are these ' * (i % 7)}{i * i}." for i in range(60)]
SMALL = HealingConfig(
    rank=2, learning_rate=1e-2, sequence_length=32, batch_sequences=4, at_once=2, save_every=2, steps=6, warmup_steps=1,
    quantization=None, gradient_checkpointing=False,
)  # fmt: skip


def changed(config: HealingConfig, **values) -> HealingConfig:
    return dataclasses.replace(config, **values)


@pytest.fixture
def healed(opened):
    """What heals the tiny model, with settings other than SMALL's and options of `train`."""

    def run(config=SMALL, cut=CUT, whole=None, folder=None, **values):
        model = drop_layers(opened[0], cut)
        return train(model, opened[1], TEXTS, changed(config, **values), cut=cut, whole=whole, folder=folder)

    return run


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def close(some, others, atol: float = 0.0) -> bool:
    some, others = weights(some), weights(others)
    return some.keys() == others.keys() and all(torch.allclose(some[n], others[n], rtol=0, atol=atol) for n in some)


# ---- settings --------------------------------------------------------------------------------------------


def test_presets_are_those_of_the_papers_table():
    if not PAPER.exists():
        pytest.skip(f"needs {PAPER.parent.name}/{PAPER.name} beside the project")
    text = PAPER.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "/" in line]
    table = {row[0].replace(" (first generation)", ""): row for row in rows if len(row) == 8 and row[2].isdecimal()}
    assert table.keys() == PRESETS.keys() - {"small", "distill"}
    common = re.search(r"Common:.*", text)[0]
    said = [r"(\d+) steps", r"(\d+) warm-up", r"global batch (\d+) sequences", r"dropout ([\d.]+)", r"seed (\d+)"]
    shared = [float(re.search(words, common)[1]) for words in said]
    for name, (_, _, _, _, length, tokens, rate, rank) in table.items():
        one = PRESETS[name]
        assert (one.sequence_length, one.rank, one.alpha) == (int(length), int(rank), int(rank))
        assert (round(one.tokens / 1e6), one.learning_rate) == (int(tokens.removesuffix("M")), float(rate.split()[0]))
        assert [one.steps, one.warmup_steps, one.batch_sequences, one.dropout, one.seed] == shared
        assert (one.quantization, one.adapters) == ("nf4", "all")


REFUSED = [
    ({"rank": "8"}, "rank is '8', expected a valid integer"),
    ({"steps": True}, "steps is True, expected"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0, expected"),
    ({"learning_rate": float("nan")}, "learning_rate is nan, expected a finite number"),
    ({"quantization": "fp4"}, "quantization is 'fp4', expected 'nf4' or 'int8'"),
    ({"at_once": 3}, "at_once is 3, expected a divisor of batch_sequences, which is 4"),
    ({"warmup_steps": 7}, "warmup_steps is 7, expected some of the 6 steps"),
    ({"auxiliary": 1.0, "adapters": "above"}, "auxiliary needs adapters below the cut"),
    ({"temperature": 2.0}, "temperature is 2.0, which only the objective 'distill' has"),
    ({"width": 3}, "width is 3, "),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_an_impossible_setting_is_refused(values, said):
    with pytest.raises((InputError, TypeError)) as caught:
        HealingConfig(**dataclasses.asdict(SMALL) | values)
    assert str(caught.value).startswith(said)


# ---- where adapters go -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "names"), [
    ("llama", {"gate_proj", "up_proj", "down_proj"}), ("phi", {"fc1", "fc2"}),
])  # fmt: skip
def test_feed_forward_modules_are_the_papers(family, names):
    assert {name.rpartition(".")[2] for name in adapters.ffn_modules(tiny_model(family))} == names


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


def test_the_attention_of_first_generation_qwen_gets_no_adapter():
    model = FirstQwen(PreTrainedConfig(num_hidden_layers=3))
    expected = [f"h.{i}.mlp.{name}" for i in range(3) for name in ("w1", "w2", "c_proj")]
    assert adapters.ffn_modules(model) == expected
    model.h[1].mlp = nn.Identity()
    with pytest.raises(InputError, match="layer 1 of FirstQwen has no feed-forward modules"):
        adapters.ffn_modules(model)


# ---- training --------------------------------------------------------------------------------------------


# by the names of their feed-forward modules, their norms and windows; the others have those of one of these
@pytest.mark.parametrize(
    "family", ["llama", "gemma3", *(pytest.param(name, marks=SELDOM) for name in ("phi", "gpt_neox"))]
)
def test_every_family_heals_and_keeps_its_weights(family, opened, monkeypatch):
    model = tiny_model(family, vocab_size=300)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    healed, record = train(drop_layers(model, CUT), opened[1], TEXTS, changed(SMALL, steps=12, learning_rate=5e-2))
    assert min(record.losses[-3:]) < record.losses[0]
    assert record.tokens == 12 * 4 * 32 and len(record.losses) == 12 and record.seconds > 0
    assert not healed.training
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_seed_draws_the_same_and_nothing_is_left_set(healed):
    before, state = dict(os.environ), torch.get_rng_state()
    first, second, third = (healed(seed=seed)[0] for seed in (0, 0, 1))
    assert close(first, second) and not close(first, third)
    assert dict(os.environ) == before and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("one", "other"), [
    ({"at_once": 1}, {"at_once": 4}),
    pytest.param({"gradient_checkpointing": False}, {"gradient_checkpointing": True}, marks=SELDOM),
    ({"objective": "distill", "gradient_checkpointing": True}, {"objective": "distill"}),
    pytest.param({"objective": "distill", "packed": False, "at_once": 1},
                 {"objective": "distill", "packed": False, "at_once": 4}, marks=SELDOM),
])  # fmt: skip
def test_what_changes_memory_and_speed_alone(one, other, healed, opened):
    some, others = (healed(**{"dropout": 0.0, "steps": 4} | values, whole=opened[0]) for values in (one, other))
    assert some[1].losses == pytest.approx(others[1].losses, abs=1e-5) and close(some[0], others[0], atol=1e-4)


@SELDOM
def test_the_auxiliary_loss_of_a_step_is_a_mean_over_its_parts(healed, opened):
    """Each part divides by its own residuals, so the means differ a little."""

    def added(at_once: int) -> float:
        step = {"dropout": 0.0, "steps": 1, "warmup_steps": 0, "at_once": at_once}
        with_it, without = (healed(auxiliary=weight, whole=opened[0], **step)[1].losses[0] for weight in (2.0, 0.0))
        return with_it - without

    assert added(1) > 0.1 and added(1) == pytest.approx(added(4), rel=0.2)


def test_truncated_documents_count_no_padding(healed, opened):
    record = healed(packed=False, steps=15, sequence_length=200)[1]
    # 15 steps of 4 are every document once
    assert record.tokens == record.distinct_tokens == sum(len(opened[1](text)["input_ids"]) for text in TEXTS)


# ---- variants --------------------------------------------------------------------------------------------


def test_above_the_cut_alone_are_adapters(healed):
    assert all(".layers.2." in name for name in weights(healed(adapters="above", steps=1)[0]))


def test_the_auxiliary_loss_brings_the_residual_at_the_cut_nearer(healed, opened):
    batch = {"input_ids": torch.stack(sequences(opened[1], TEXTS, length=32)[:4]).long()}
    target = residual_entering(opened[0], CUT.stop, batch)

    def distance(weight):
        base = healed(steps=20, auxiliary=weight, whole=opened[0])[0].get_base_model()
        return float((residual_entering(base, CUT.start, batch) - target).square().sum() / target.square().sum())

    assert distance(10.0) < 0.9 * distance(0.0)


def test_what_can_not_be_healed_so_is_said(opened):
    for config, cut, texts, said in [
        (changed(SMALL, adapters="above"), None, TEXTS, "adapters 'above' need cut=: pass what was dropped"),
        (changed(SMALL, auxiliary=1.0), None, TEXTS, "pass them"),
        *((changed(SMALL, auxiliary=1.0), one, TEXTS, "is of a block below the last layer, the cut is .*: leave it out")
          for one in (Cut(3, 2), Cut.of([1, 3]))),
        (changed(SMALL, adapters="above"), Cut(3, 2), TEXTS, "adapters go on layers from 3 on, and 3 are left, 0 to 2"),
        (SMALL, CUT, TEXTS[:1], r"fill \d sequences .* one step needs 4 of 32 tokens"),
        (SMALL, CUT, "a text", "texts is 'a text', expected a list"),
        ("small", CUT, TEXTS, "config is 'small', expected a HealingConfig"),
        (changed(SMALL, steps=30, learning_rate=1e25, warmup_steps=25), CUT, TEXTS,
         r"the loss is (nan|inf) at step \d+ of 30, with learning_rate 1e\+25: lower it"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            heal(
                drop_layers(opened[0], cut or CUT), opened[1], texts, config, cut=cut, whole=opened[0] if cut else None
            )


# ---- interruptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [
    {}, pytest.param({"objective": "distill", "adapters": "above"}, marks=SELDOM)
])  # fmt: skip
def test_killed_at_any_write_the_same_again_ends_as_undisturbed(values, healed, opened, tmp_path):
    asked = {"steps": 4, "whole": opened[0]} | values
    straight, record = healed(**asked)
    calls = faults.calls_of(lambda: healed(**asked, folder=tmp_path / "counted"))
    assert len(list((tmp_path / "counted").rglob("checkpoint-*"))) == 2
    for number in range(0, len(calls), max(1, len(calls) // 3)):
        folder = tmp_path / f"{number}"
        assert faults.killed_at(number, lambda folder=folder: healed(**asked, folder=folder), share=0.5)
        again, after = healed(**asked, folder=folder)
        assert after.losses == record.losses and after.tokens == record.tokens, f"call {number}, {calls[number]}"
        assert close(straight, again) and after.seconds > 0
    again, after = healed(**asked, folder=tmp_path / "counted")  # all of it is there
    assert after.losses == record.losses and close(straight, again)


def test_what_a_folder_of_checkpoints_may_hold(healed, tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "optimizer.pt").write_text("mine")
    first = healed(folder=tmp_path)[0]
    other = healed(folder=tmp_path, learning_rate=1e-3)[0]  # another healing has a folder of its own
    assert not close(first, other) and close(other, healed(learning_rate=1e-3)[0])
    assert (tmp_path / "checkpoint-7" / "optimizer.pt").read_text() == "mine"
    for folder in tmp_path.glob("healing-*"):
        shutil.rmtree(folder / "checkpoint-6")
        (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="checkpoint-4 is no whole checkpoint .*: delete it, and the one before"):
        healed(folder=tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="can't write in .*file"):
        healed(folder=tmp_path / "file")


# ---- kept and merged -------------------------------------------------------------------------------------


def test_adapters_are_opened_on_their_own_base_and_cut_only(healed, opened, tiny_folder, tmp_path):
    base, model = find_model(str(tiny_folder)).key, healed()[0]
    adapters.save_adapters(model, tmp_path, base, CUT)
    again = adapters.load_adapters(drop_layers(opened[0], CUT), tmp_path, base, CUT)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, again(ids).logits)
    for folder, of, cut, said in [
        (tmp_path, base | {"weights": "sha256:0"}, CUT, "were trained on tiny-llama"),
        (tmp_path, base, Cut(1, 2), r"trained for Cut\(start=2, size=2\), not for Cut\(start=1, size=2\)"),
        (tmp_path / "none", base, CUT, "lacks adapter_config.json"),
    ]:
        with pytest.raises(InputError, match=said):
            adapters.load_adapters(drop_layers(opened[0], cut), folder, of, cut)


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
        assert adapters.merge_adapters(healed, torch.bfloat16)(ids).logits.dtype == torch.bfloat16
        assert torch.equal(model(ids).logits, before)
    assert not any("lora" in name for name, _ in merged.named_modules())
    merged.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reloaded, _ = load_model(str(tmp_path))
    assert num_layers(reloaded) == 3
    with torch.inference_mode():
        assert torch.allclose(reloaded(ids).logits, expected, atol=1e-4)
