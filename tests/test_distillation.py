"""Distillation: the divergence is torch's, in pieces it is the plain one, and the teacher stays as it was."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.healing import distillation
from deeper_layers.healing.distillation import IGNORED, Teacher, check_states, divergence, final_states, keep_teacher
from deeper_layers.healing.learning_text import sequences_to_learn
from deeper_layers.healing.training import heal, train
from deeper_layers.models.opening import load_model
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from tests.test_command import typed
from tests.test_healing import CUT, SMALL, TEXTS, changed, close, healed  # noqa: F401
from tests.tiny import ALL_FAMILIES, tiny_model

DISTILL = changed(SMALL, objective="distill", steps=3)
OFTEN = ("llama", "gemma3", "qwen3_moe", "falcon_h1")
SELDOM = [pytest.param(name, marks=pytest.mark.thorough) for name in ALL_FAMILIES if name not in OFTEN]


def random_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_that_of_the_teacher_from_the_student():
    student, teacher = random_logits(7, 50), random_logits(7, 50, seed=1)
    wanted, found = (torch.softmax(logits.double() / 2, -1) for logits in (teacher, student))
    by_hand = 4 * float((wanted * (wanted / found).log()).sum())
    assert float(divergence(student, teacher, 2.0)) == pytest.approx(by_hand, rel=1e-5)
    plain = functional.kl_div(torch.log_softmax(student, -1), torch.softmax(teacher, -1), reduction="sum")
    assert float(divergence(student, teacher)) == pytest.approx(float(plain), rel=1e-5)
    assert float(divergence(student, student, 3.0)) == pytest.approx(0, abs=1e-5)


def test_gradients_keep_their_size_where_the_temperature_is_high():
    """Hinton et al., equation 4: at high temperatures (z - v) / V for logits of mean zero, whatever the temperature."""
    student, teacher = (random_logits(4, 50, seed=seed) for seed in (0, 1))
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in (student, teacher))
    for temperature in (300.0, 1000.0):
        at = student.clone().requires_grad_()
        divergence(at, teacher, temperature).backward()
        assert torch.allclose(at.grad, (student - teacher) / 50, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("family", [*OFTEN, *SELDOM])
def test_of_every_family_the_states_make_the_models_own_logits(family):
    model, ids = tiny_model(family), torch.arange(24).reshape(2, 12) + 3
    with torch.no_grad():
        states, logits = final_states(model, {"input_ids": ids})
        assert torch.allclose(logits(states.flatten(0, 1)), model(ids).logits.flatten(0, 1), atol=1e-4)


def test_a_model_that_makes_its_logits_otherwise_is_refused(monkeypatch):
    model = tiny_model("llama")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, **given: forward(input_ids=input_ids.flip(1), **given))
    with pytest.raises(InputError, match="LlamaForCausalLM makes its logits in a way that is not known here"):
        check_states(model)


# gemma2 caps its logits, cohere scales them: what the forward pass does after its head is part of the loss
@pytest.mark.parametrize("family", ["gemma2", "cohere", pytest.param("mixtral", marks=pytest.mark.thorough), "opt"])
def test_in_pieces_the_loss_and_its_gradients_are_those_of_all_logits(family, monkeypatch):
    whole = tiny_model(family)
    student = drop_layers(whole, CUT).requires_grad_(True)
    ids = torch.arange(3, 99).reshape(3, 32)
    batch = {"input_ids": ids, "labels": ids.clone()}
    batch["labels"][1, 20:] = IGNORED
    scored = batch["labels"][:, 1:] != IGNORED
    with torch.no_grad():
        wanted = whole(ids).logits[:, :-1][scored]
    named = [p for name, p in student.named_parameters() if "layers.1." in name]
    plain = divergence(student(ids).logits[:, :-1][scored], wanted, 2.0) / scored.sum()
    expected = torch.autograd.grad(plain, named, allow_unused=True)
    student.get_output_embeddings().requires_grad_(False)
    for piece in (2**30, 4 * whole.config.vocab_size * 7):
        monkeypatch.setattr(distillation, "PIECE", piece)
        loss = Teacher(whole, student, changed(DISTILL, temperature=2.0)).loss(student, batch)
        found = torch.autograd.grad(loss, named, allow_unused=True)
        assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
        for one, other in zip(found, expected, strict=True):
            assert one is other is None or torch.allclose(one, other, rtol=1e-3, atol=1e-6)


# ---- in training -------------------------------------------------------------------------------------------


def test_the_student_learns_and_the_teacher_shares_its_weights_and_stays(healed, opened):  # noqa: F811
    whole, own = opened[0], {p.data_ptr() for p in opened[0].parameters()}
    before = {name: p.clone() for name, p in whole.state_dict().items()}
    model, record = healed(DISTILL, whole=whole, steps=20, learning_rate=2e-2)
    assert record.losses[-1] < 0.8 * record.losses[0] and record.tokens == 20 * 4 * 32
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    others = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
    assert others <= own and not trained & own, "the teacher's weights are the student's, once"
    after = whole.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    itself = healed(DISTILL, cut=Cut(0, 0), whole=whole, steps=2, dropout=0.0)[1]
    assert all(abs(loss) < 1e-5 for loss in itself.losses), "the whole model has nothing to learn from itself"


def test_states_kept_on_disk_teach_as_the_model_does(opened, tmp_path):
    whole, tokenizer = opened
    config = changed(DISTILL, packed=False)
    keep_teacher(whole, tokenizer, TEXTS, changed(config, steps=1, warmup_steps=0), tmp_path)  # a part of it
    keep_teacher(whole, tokenizer, TEXTS, config, tmp_path)
    learnt = sequences_to_learn(tokenizer, TEXTS, config)
    assert len(list(tmp_path.iterdir())) == len(learnt) == 12
    beside, record = train(drop_layers(whole, CUT), tokenizer, TEXTS, config, whole=whole)
    kept, after = train(drop_layers(whole, CUT), tokenizer, TEXTS, config, whole=tmp_path)
    assert after.losses == pytest.approx(record.losses, abs=1e-4) and close(beside, kept, atol=1e-3)
    head, path = distillation.head_of(whole), distillation.states_path(tmp_path, learnt[0])
    with pytest.raises(InputError, match="of a model with another head"):
        distillation.read_states(tmp_path, learnt[0], "of another")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{path.name} holds no states .*keep_teacher"):
        distillation.read_states(tmp_path, learnt[0], head)


# ---- settings ------------------------------------------------------------------------------------------------


def test_without_distillation_nothing_is_named_otherwise():
    """Keys of results are those of before there was another objective."""
    before = {
        "rank": 8, "learning_rate": 0.005, "sequence_length": 256, "steps": 60, "warmup_steps": 6, "batch_sequences": 8,
        "at_once": 4, "dropout": 0.05, "quantization": "nf4", "seed": 0, "packed": True,
        "gradient_checkpointing": False, "adapters": "all", "auxiliary": 0.0,
    }  # fmt: skip
    assert PRESETS["small"].settings == before
    assert PRESETS["distill"].settings == before | {"objective": "distill", "temperature": 1.0}
    one, two = HealingParameters(objective="distill"), HealingParameters(preset="distill")
    assert one.config() == two.config() == PRESETS["distill"]
    for values, said in [
        ({"objective": "teach"}, "objective is 'teach', expected 'text' or 'distill'"),
        ({"objective": "distill", "temperature": 0.0}, "temperature is 0.0, expected"),
    ]:
        with pytest.raises(InputError, match=said):
            HealingParameters(**values)


def test_what_is_no_teacher(opened, tmp_path):
    whole, pruned = opened[0], drop_layers(opened[0], CUT)
    other = tiny_model("llama", vocab_size=whole.config.vocab_size, seed=3)
    for teacher, cut, values, said in [
        (None, CUT, {}, "whole is a NoneType, expected the unpruned model of 5 layers, as Cut.*, or a folder"),
        (
            other,
            CUT,
            {},
            "whole is a LlamaForCausalLM, expected the unpruned model of 5 layers, as Cut.* the same head",
        ),
        (tmp_path, CUT, {"auxiliary": 1.0}, "the auxiliary loss needs cut= and whole=, the unpruned model itself"),
        (tmp_path, CUT, {}, "holds no states of the unpruned model .*keep_teacher"),
        (pruned, None, {}, "expected the unpruned model of more than 3 layers, or cut="),
        (pruned, CUT, {}, "expected the unpruned model of 5 layers, as Cut"),
    ]:
        with pytest.raises(InputError, match=said):
            heal(pruned, opened[1], TEXTS, changed(DISTILL, **values), cut=cut, whole=teacher)


def test_prune_heals_so_by_its_presets_name(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("deeper_layers.experiments.healings.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PRESETS, "distill", changed(DISTILL, steps=2))
    asked = ["--drop", "2", "--start", "2", "--heal", "distill", "--text", "wikipedia", "--json"]
    content = json.loads(typed("prune", tiny_folder, tmp_path / "out", *asked).stdout)
    said = json.loads((Path(content["adapters"]) / "healing.json").read_text())["healing"]
    assert said["config"]["objective"] == "distill" and len(said["losses"]) == 2
    pruned, _ = load_model(content["out"])
    assert pruned.config.num_hidden_layers == 3
    card = (Path(content["out"]) / "README.md").read_text()
    assert "Distilled: it learned what the unpruned model expects (temperature 1)." in card
