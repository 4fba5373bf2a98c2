"""Healing equals a plain loop of peft and torch, goes on after a kill, learns from a teacher, and merges exactly."""

import copy
import dataclasses
import math
import random
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.healing import distillation
from deeper_layers.healing.adapters import find_ffn_modules, merge_adapters
from deeper_layers.healing.distillation import Teacher, check_final_states, divergence, draw_sequences
from deeper_layers.healing.training import heal, train
from deeper_layers.models.decoder import decoder_layers
from deeper_layers.models.opening import load_model
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.results.places import results_folder
from deeper_layers_companion.results.store import read_results
from tests import faults
from tests.test_distributed import TEXTS
from tests.tiny import ALL_FAMILIES, FOUR, shared_model, tiny_model

CUT, DISTILL = Cut(2, 2), {"objective": "distill"}
SMALL = HealingConfig(
    rank=2, learning_rate=1e-2, sequence_length=32, batch_sequences=4, at_once=2, save_every=2, steps=6, warmup_steps=1,
    quantization=None, gradient_checkpointing=False,
)  # fmt: skip


def healed(opened, folder=None, *, whole=None, texts=TEXTS, **values):
    """The model with adapters, and the record of its training, with settings other than SMALL's."""
    model, config = drop_layers(opened[0], CUT), dataclasses.replace(SMALL, **values)
    return train(model, opened[1], texts, config, cut=CUT, whole=whole or opened[0], folder=folder)


def close(some, others, atol: float = 0.0) -> bool:
    some, others = ({name: p for name, p in one.named_parameters() if p.requires_grad} for one in (some, others))
    return some.keys() == others.keys() and all(torch.allclose(some[n], others[n], rtol=0, atol=atol) for n in some)


# ---- settings --------------------------------------------------------------------------------------------

PAPER = {  # appendix A.1: sequence length, millions of tokens, peak learning rate, rank
    "Llama-2 7B": (2048, 164, 3e-4, 2),
    "Llama-2 13B": (4096, 328, 3e-4, 64),
    "Llama-2 70B": (4096, 328, 3e-5, 8),
    "Qwen 7B": (2048, 164, 3e-4, 64),
    "Qwen 14B": (4096, 328, 3e-4, 64),
    "Mistral 7B": (2048, 164, 3e-6, 4),
    "Phi-2 2.7B": (2048, 164, 2e-4, 64),
}


def test_presets_are_those_of_the_paper_and_of_published_results():
    assert PRESETS.keys() == {*PAPER, "small", "distill", "head-and-last-3"}
    for name, expected in PAPER.items():
        one = PRESETS[name]
        assert (one.sequence_length, round(one.tokens / 1e6), one.learning_rate, one.rank) == expected
        common = one.steps, one.warmup_steps, one.batch_sequences, one.dropout, one.seed, one.quantization, one.adapters
        assert common == (5000, 100, 16, 0.05, 0, "nf4", "all") and one.alpha == one.rank
    keys = [run.key["healing"] for run in read_results(results_folder(), "healing")]
    assert PRESETS["small"].settings in keys and PRESETS["distill"].settings in keys


REFUSED = [  # settings, what is given beside them, and words of the line
    ({"rank": "8"}, {}, "rank is '8', expected a valid integer"),
    ({"learning_rate": math.nan}, {}, "learning_rate is nan, expected a finite number"),
    ({"warmup_steps": 7}, {}, "warmup_steps is 7, expected some of the 6 steps"),
    ({"auxiliary": 1.0, "adapters": "above"}, {}, "auxiliary needs adapters below the cut"),
    ({"temperature": 2.0}, {}, "temperature is 2.0, which only the objective 'distill' has"),
    ({"adapters": "above"}, {"cut": None}, "adapters 'above' need cut=: pass what was dropped"),
    ({"auxiliary": 1.0}, {"cut": None}, "needs cut= and whole=, the unpruned model itself: pass them"),
    ({"auxiliary": 1.0}, {"cut": Cut(3, 2)}, "is of a block below the last layer, the cut is .*: leave it out"),
    ({"auxiliary": 1.0}, {"cut": Cut.of([1, 3])}, "is of a block below the last layer"),
    ({"adapters": "above"}, {"cut": Cut(3, 2)}, "adapters go on layers from 3 on, and 3 are left, 0 to 2"),
    ({}, {"texts": TEXTS[:1]}, r"fill \d sequences .* one step needs 4 of 32 tokens"),
    ({}, {"config": "small"}, "config is 'small', expected a HealingConfig"),
    ({"learning_rate": 1e25, "steps": 30, "warmup_steps": 25}, {}, r"at step \d+ of 30, with learning_rate .*: lower"),
    (
        DISTILL,
        {"whole": None},
        "whole is a NoneType, expected the unpruned model, .* layers that Cut.* drops",
    ),
    (
        DISTILL,
        {"whole": shared_model("llama", 5)},
        "is a LlamaForCausalLM, expected .* with the same head and the layers that Cut",
    ),
    (DISTILL, {"whole": shared_model("llama", 3), "cut": None}, "the layers that a cut drops"),
    (DISTILL, {"whole": "states"}, "whole is 'states', expected the unpruned model: load_model gives it"),
]


@pytest.mark.wrong_types
@pytest.mark.parametrize(("values", "given", "said"), REFUSED)
def test_what_can_not_be_healed_so_is_said_in_one_line(values, given, said, opened):
    asked = {"texts": TEXTS, "cut": CUT, "whole": opened[0]} | given
    with pytest.raises(InputError, match=said):
        asked = {"config": dataclasses.replace(SMALL, **values)} | asked
        heal(drop_layers(opened[0], asked["cut"] or CUT), opened[1], **asked)


def test_the_attention_of_first_generation_qwen_gets_no_adapter():
    model = tiny_model("llama", layers=3)
    for layer in model.model.layers:
        del layer.self_attn
        layer.attn, layer.mlp = (
            nn.ModuleDict({name: nn.Linear(8, 8) for name in names.split()})
            for names in ("c_attn c_proj", "w1 w2 c_proj")
        )
    assert find_ffn_modules(model) == [
        f"model.layers.{i}.mlp.{name}" for i in range(3) for name in ("w1", "w2", "c_proj")
    ]
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(InputError, match="layer 1 of LlamaForCausalLM has no feed-forward modules"):
        find_ffn_modules(model)


# ---- training --------------------------------------------------------------------------------------------


def plain_sequences(tokenizer, texts, config):
    """The sequences of a healing: each text alone, or all of them in one row that is cut every so many tokens."""
    order, length = random.Random(config.seed).sample(texts, len(texts)), config.sequence_length
    if not config.packed:
        return [torch.tensor(tokenizer.encode(text)[:length]) for text in order]
    row = [token for text in order for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
    return list(torch.tensor(row[: len(row) // length * length]).split(length))


def plain_loop(whole, learnt, config, names):
    """The same by peft and torch alone, one sequence after another, all logits at once: the model, and its losses."""
    without = copy.deepcopy(whole)
    layers = without.base_model.layers
    del layers[CUT.start : CUT.stop]
    for number, layer in enumerate(layers):
        (getattr(layer, "self_attn", None) or layer.attention).layer_idx = number
    without.config.num_hidden_layers = len(layers)
    if getattr(without.config, "layer_types", None):
        del without.config.layer_types[CUT.start : CUT.stop]

    def loss_of(rows):
        total, squares = 0.0, []
        for ids in rows:
            found = healed(ids[None], output_hidden_states=True)
            with torch.no_grad():
                wanted = whole(ids[None], output_hidden_states=True)
            ours, theirs = ((one.logits[0, :-1] / config.temperature).log_softmax(-1) for one in (found, wanted))
            own = -ours.gather(1, ids[1:, None]) if config.objective == "text" else theirs.exp() * (theirs - ours)
            total = total + config.temperature**2 * own.sum()
            x, y = found.hidden_states[CUT.start], wanted.hidden_states[CUT.stop]
            squares.append(torch.stack([(x - y).square().sum(), y.square().sum()]))
        parts = torch.stack(squares).unflatten(0, (-1, config.at_once)).sum(dim=1)
        return total / sum(len(ids) - 1 for ids in rows) + config.auxiliary * (parts[:, 0] / parts[:, 1]).mean()

    torch.manual_seed(config.seed)
    lora = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=names, task_type="CAUSAL_LM")
    healed = get_peft_model(without, lora).train()
    trained = [parameter for parameter in healed.parameters() if parameter.requires_grad]
    descent = torch.optim.AdamW(trained, weight_decay=0.0)
    draws = (torch.Generator().manual_seed(config.seed + epoch) for epoch in range(config.steps))
    order = torch.cat([torch.randperm(len(learnt), generator=draw) for draw in draws]).split(config.batch_sequences)
    losses, warm = [], config.warmup_steps
    for step, places in zip(range(config.steps), order):
        loss = loss_of([learnt[place].long() for place in places])
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        risen = step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (config.steps - warm))) / 2
        descent.param_groups[0]["lr"] = config.learning_rate * risen
        descent.step()
        losses.append(loss.item())
    return healed, losses


GATED = ["gate_proj", "up_proj", "down_proj"]
UNPACKED = {"packed": False, "sequence_length": 200}
WAYS = [
    ("llama", GATED, {"seed": 1, "at_once": 1}),
    ("llama", GATED, UNPACKED),
    ("llama", [f"layers.2.mlp.{name}" for name in GATED], {"adapters": "above", **DISTILL, **UNPACKED}),
    ("gemma3", GATED, {**DISTILL, "temperature": 2.0, "gradient_checkpointing": True}),
    ("gemma3", GATED, {"auxiliary": 2.0, "gradient_checkpointing": True}),
    pytest.param("phi", ["fc1", "fc2"], {"auxiliary": 2.0, "at_once": 1, **DISTILL}, marks=pytest.mark.thorough),
    pytest.param("gpt_neox", ["dense_h_to_4h", "dense_4h_to_h"], {}, marks=pytest.mark.thorough),
]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # which peft asks for
@pytest.mark.parametrize(("family", "names", "values"), WAYS)
def test_training_is_a_plain_loop(family, names, values, opened):
    whole, texts = tiny_model(family, layers=5, vocab_size=300), TEXTS[:8]  # which are read again when they end
    before, drawn = copy.deepcopy(whole.state_dict()), torch.get_rng_state()
    model, record = healed((whole, opened[1]), texts=texts, dropout=0.0, **values)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())
    kept = {parameter.data_ptr() for parameter in model.parameters() if not parameter.requires_grad}
    assert kept <= {parameter.data_ptr() for parameter in whole.parameters()}, "weights are there once"
    config = dataclasses.replace(SMALL, dropout=0.0, **values)
    learnt = plain_sequences(opened[1], texts, config)
    whole_steps = min(len(learnt) // config.batch_sequences, config.steps)
    learnt = learnt[: whole_steps * config.batch_sequences]
    assert len(draw_sequences(opened[1], texts, dataclasses.replace(config, steps=1))) == config.batch_sequences
    assert record.distinct_tokens == sum(map(len, learnt)) and not model.training
    assert record.tokens == record.distinct_tokens * config.steps * config.batch_sequences / len(learnt)
    expected, losses = plain_loop(whole, learnt, config, names)
    assert record.losses == pytest.approx(losses, abs=1e-5) and close(model, expected, atol=1e-4)


# ---- interruptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [
    {}, pytest.param(DISTILL | {"adapters": "above"}, marks=pytest.mark.thorough)
])  # fmt: skip
def test_killed_at_any_write_the_same_again_ends_as_undisturbed(values, opened, tmp_path):
    asked = {"steps": 4} | values
    straight, record = healed(opened, **asked)
    calls = faults.calls_of(lambda: healed(opened, tmp_path / "counted", **asked))
    assert len(list((tmp_path / "counted").rglob("checkpoint-*"))) == 2
    for number in (*range(0, len(calls), max(1, len(calls) // 3)), "counted"):  # of the last all is there
        folder = tmp_path / f"{number}"
        if number != "counted":
            assert faults.killed_at(number, lambda folder=folder: healed(opened, folder, **asked))
        again, after = healed(opened, folder, **asked)
        assert (after.losses, after.tokens) == (record.losses, record.tokens), f"call {number}"
        assert close(straight, again) and after.seconds > 0


def test_each_healing_has_a_folder_of_its_own_and_a_torn_checkpoint_is_named(opened, tmp_path):
    (mine := tmp_path / "checkpoint-7").mkdir()
    (mine / "optimizer.pt").write_text("mine")
    first, other, alone = (
        healed(opened, folder, learning_rate=rate)[0]
        for folder, rate in ((tmp_path, 1e-2), (tmp_path, 1e-3), (None, 1e-3))
    )
    assert not close(first, other) and close(other, alone)
    assert (mine / "optimizer.pt").read_text() == "mine"
    for folder in tmp_path.glob("healing-*"):
        (folder / "checkpoint-6" / "optimizer.pt").write_bytes(b"torn")  # which only training reads
    assert close(first, healed(opened, tmp_path)[0]), "what is complete is only loaded"
    for folder in tmp_path.glob("healing-*"):
        shutil.rmtree(folder / "checkpoint-6")
        (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="checkpoint-4 is no whole checkpoint .*: delete it, and the one before"):
        healed(opened, tmp_path)
    with pytest.raises(InputError, match="can't write in .*optimizer.pt"):
        healed(opened, mine / "optimizer.pt")


# ---- a teacher -------------------------------------------------------------------------------------------


# gemma2 caps its logits, cohere scales them: what the forward pass does after its head is part of the loss
OFTEN = (*FOUR, "gemma2", "cohere")
TIERS = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.thorough) for name in ALL_FAMILIES]


@pytest.mark.parametrize("family", TIERS)
def test_of_every_family_the_loss_in_pieces_and_its_gradients_are_those_of_all_logits(family, monkeypatch):
    whole = shared_model(family)
    student = copy.deepcopy(whole).requires_grad_(False)
    learning = [one.requires_grad_(True) for one in decoder_layers(student)[1].parameters() if one.is_floating_point()]
    with torch.no_grad():
        for parameter in learning:
            parameter.mul_(1.1)
    ids = torch.arange(3, 99).reshape(3, 32)
    ours, theirs = (model(ids, use_cache=False).logits[:, :-1].flatten(0, 1) for model in (student, whole))
    plain = divergence(ours, theirs.detach(), 2.0) / len(ours)
    expected = torch.autograd.grad(plain, learning, allow_unused=True)
    monkeypatch.setattr(distillation, "PIECE", 4 * whole.config.vocab_size * 7)
    config = dataclasses.replace(SMALL, temperature=2.0, **DISTILL)
    loss = Teacher(whole, student, config, UNPRUNED).loss(student, {"input_ids": ids, "labels": ids})
    assert loss.item() == pytest.approx(plain.item(), rel=1e-4) and plain.item() > 1e-4
    for one, other in zip(torch.autograd.grad(loss, learning, allow_unused=True), expected, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_a_model_that_makes_its_logits_otherwise_is_refused(monkeypatch):
    model = tiny_model("llama")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, **given: forward(input_ids=input_ids.flip(1), **given))
    with pytest.raises(InputError, match="LlamaForCausalLM makes its logits in a way that is not known here"):
        check_final_states(model)


def test_without_a_cut_a_teacher_has_at_least_one_layer_more():
    five = tiny_model("llama", layers=5)
    four = drop_layers(five, Cut(1, 1))
    config = dataclasses.replace(SMALL, **DISTILL)
    assert Teacher(five, four, config).whole is five
    for whole, student, cut in ((five, five, None), (four, five, None), (five, four, Cut(1, 2))):
        with pytest.raises(InputError, match="whole is a LlamaForCausalLM, expected the unpruned model"):
            Teacher(whole, student, config, cut)


# ---- merged ----------------------------------------------------------------------------------------------


def test_adapters_merged_into_weights_in_four_bits_give_the_same_answers(tiny_folder, tmp_path):
    """Of plain weights: tests/test_families.py."""
    model, tokenizer = load_model(str(tiny_folder), quantization="nf4")
    ids, (adapted, _) = torch.arange(40)[None], healed((model, tokenizer), quantization="nf4")
    with torch.inference_mode():
        merged, expected = merge_adapters(adapted), adapted(ids).logits
        assert not torch.allclose(expected, drop_layers(model, CUT)(ids).logits, atol=1e-2)
        assert merge_adapters(adapted, torch.bfloat16)(ids).logits.dtype == torch.bfloat16
        merged.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        reloaded, _ = load_model(str(tmp_path))
        assert len(decoder_layers(reloaded)) == 3 and not any("lora" in name for name, _ in merged.named_modules())
        for one in (merged, reloaded):
            torch.testing.assert_close(one(ids).logits, expected, rtol=0, atol=1e-4)
