"""Distillation: the divergence is torch's, in pieces it is the plain one, and the teacher stays as it was."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from deeper_layers.command import main
from deeper_layers.cuts import Cut
from deeper_layers.data.tokens import sequences as sequences_of
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.healing import distillation, training
from deeper_layers.healing.adapters import add_adapters
from deeper_layers.healing.distillation import Teacher, check_states, divergence, final_states, keep_teacher
from deeper_layers.healing.learning_text import sequences_to_learn
from deeper_layers.healing.resuming import identity_of
from deeper_layers.healing.training import heal, train
from deeper_layers.models.opening import load_model
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from deeper_layers.results.units import all_units
from tests.test_healing import CUT, SMALL, TEXTS, changed, equal, weights
from tests.tiny import ALL_FAMILIES, tiny_model

DISTILL = changed(SMALL, objective="distill", steps=3)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_model(str(tiny_folder))


@pytest.fixture
def batch(tiny):
    return training._collate([{"input_ids": t} for t in sequences_of(tiny[1], TEXTS, length=32)[:3]])


def random_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the loss ------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_teacher_from_the_student():
    student, teacher = random_logits(7, 50), random_logits(7, 50, seed=1)
    wanted, found = (torch.softmax(logits.double() / 2, -1) for logits in (teacher, student))
    by_hand = 4 * float((wanted * (wanted / found).log()).sum())
    assert float(divergence(student, teacher, 2.0)) == pytest.approx(by_hand, rel=1e-5)
    plain = functional.kl_div(torch.log_softmax(student, -1), torch.softmax(teacher, -1), reduction="sum")
    assert float(divergence(student, teacher)) == pytest.approx(float(plain), rel=1e-5)


def test_a_student_that_is_the_teacher_has_neither_loss_nor_gradient():
    student = random_logits(5, 50).requires_grad_()
    loss = divergence(student, student.detach(), 3.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5) and float(student.grad.abs().max()) < 1e-5


def test_gradients_keep_their_size_where_the_temperature_is_high():
    """Hinton et al., equation 4: at high temperatures (z - v) / V for logits of mean zero, whatever the temperature."""
    student, teacher = (random_logits(4, 50, seed=seed) for seed in (0, 1))
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in (student, teacher))
    for temperature in (300.0, 1000.0):
        at = student.clone().requires_grad_()
        divergence(at, teacher, temperature).backward()
        assert torch.allclose(at.grad, (student - teacher) / 50, rtol=0.05, atol=2e-3)
    at = student.clone().requires_grad_()
    divergence(at, teacher, 2.0).backward()
    assert torch.allclose(at.grad, 2 * (torch.softmax(student / 2, -1) - torch.softmax(teacher / 2, -1)), atol=1e-5)


@pytest.mark.parametrize("family", ALL_FAMILIES)
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
@pytest.mark.parametrize("family", ["gemma2", "cohere", "mixtral", "opt"])
def test_in_pieces_the_loss_and_its_gradients_are_those_of_all_logits(family, monkeypatch, batch):
    whole = tiny_model(family).float()
    batch = batch | {"input_ids": batch["input_ids"] % 100}
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][1, 20:] = training.IGNORED
    student = drop_layers(whole, CUT)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    ids, scored = batch["input_ids"], batch["labels"][:, 1:] != training.IGNORED
    with torch.no_grad():
        wanted = whole(ids).logits[:, :-1][scored]
    named = [(name, p) for name, p in student.named_parameters() if "layers.1." in name and p.requires_grad]
    plain = divergence(student(ids).logits[:, :-1][scored], wanted, 2.0) / scored.sum()
    expected = torch.autograd.grad(plain, [p for _, p in named], allow_unused=True)
    for parameter in [*student.get_output_embeddings().parameters()]:
        parameter.requires_grad_(False)  # as in healing
    monkeypatch.setattr(distillation, "PIECE", 4 * wanted.shape[-1] * 5)  # 5 positions
    found = Teacher(whole, student, changed(DISTILL, temperature=2.0)).loss(student, batch)
    assert float(found.detach()) == pytest.approx(float(plain.detach()), rel=1e-4) and float(plain.detach()) > 0
    gradients = torch.autograd.grad(found, [p for _, p in named], allow_unused=True)
    assert any(gradient is not None for gradient in expected)
    for one, other in zip(expected, gradients, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-5)
    assert float(
        Teacher(whole, student, changed(DISTILL, temperature=2.0)).loss(student, batch, items=2 * scored.sum()).detach()
    ) == pytest.approx(float(found.detach()) / 2)
    assert "forward" not in vars(student.base_model)


def test_no_more_logits_than_a_piece_are_there_at_once(tiny, batch, monkeypatch):
    whole, _ = tiny
    monkeypatch.setattr(distillation, "PIECE", 4 * whole.config.vocab_size * 5)
    rows, scored = [], distillation.divergence

    def counted(student, teacher, temperature):
        rows.append(len(student))
        return scored(student, teacher, temperature)

    monkeypatch.setattr(distillation, "divergence", counted)
    student = drop_layers(whole, CUT)
    Teacher(whole, student, DISTILL).loss(student, batch)
    assert max(rows) == 5 and sum(rows) == 3 * 31


# ---- in training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_pruned_model_comes_nearer_to_the_whole_one_which_stays_as_it_was(quantization, tiny_folder, batch):
    whole, tokenizer = load_model(str(tiny_folder), quantization=quantization)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    with torch.no_grad():
        answers = whole(batch["input_ids"]).logits
    config = changed(DISTILL, steps=20, quantization=quantization)
    pruned = drop_layers(whole, CUT)
    own = {p.data_ptr() for p in whole.parameters()}
    healed, record = train(pruned, tokenizer, TEXTS, config, whole=whole)
    assert record.losses[-1] < 0.8 * record.losses[0]
    assert record.tokens == 20 * 4 * 32
    trained = {p.data_ptr() for p in healed.parameters() if p.requires_grad}
    others = {p.data_ptr() for p in healed.parameters() if not p.requires_grad}
    assert others <= own and not trained & own, "the teacher's weights are the student's, once"
    after = whole.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    with torch.no_grad():
        assert torch.equal(whole(batch["input_ids"]).logits, answers)
    assert not whole.training


def test_the_whole_model_has_nothing_to_learn_from_itself(tiny):
    whole, tokenizer = tiny
    config = changed(DISTILL, steps=2, dropout=0.0)
    _, record = train(drop_layers(whole, Cut(0, 0)), tokenizer, TEXTS, config, cut=Cut(0, 0), whole=whole)
    assert all(abs(loss) < 1e-5 for loss in record.losses)


def test_the_first_loss_is_the_mean_over_a_steps_tokens_however_they_run(tiny):
    whole, tokenizer = tiny
    for packed in (True, False):
        losses = [
            train(drop_layers(whole, CUT), tokenizer, TEXTS, config, whole=whole)[1].losses
            for at_once in (1, 4)
            for config in [
                changed(DISTILL, dropout=0.0, at_once=at_once, steps=1, warmup_steps=0, packed=packed, temperature=2.0)
            ]
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_variants_distill_too(tiny, monkeypatch):
    """Above the cut with kept residuals as without; and with the loss of hidden states."""
    whole, tokenizer = tiny
    config = changed(DISTILL, adapters="above")
    kept = weights(heal(drop_layers(whole, CUT), tokenizer, TEXTS, config, cut=CUT, whole=whole))
    with monkeypatch.context() as patch:
        patch.setattr(training, "MEMORY", 0)
        run = weights(heal(drop_layers(whole, CUT), tokenizer, TEXTS, config, cut=CUT, whole=whole))
    assert all(torch.allclose(kept[name], run[name], atol=1e-5) for name in kept)
    one, two = (
        train(
            drop_layers(whole, CUT), tokenizer, TEXTS, changed(DISTILL, auxiliary=weight, steps=1), cut=CUT, whole=whole
        )[1].losses[0]
        for weight in (0.0, 1.0)
    )
    assert two > one + 0.1


def test_gradient_checkpointing_changes_nothing(tiny):
    whole, tokenizer = tiny
    plain, again = (
        weights(heal(drop_layers(whole, CUT), tokenizer, TEXTS, config, whole=whole))
        for config in (DISTILL, changed(DISTILL, gradient_checkpointing=True))
    )
    assert all(torch.allclose(plain[name], again[name], atol=1e-5) for name in plain)


def test_interrupted_it_goes_on_and_ends_with_the_same_losses_and_adapters(tiny, tmp_path):
    whole, tokenizer = tiny
    straight, record = train(drop_layers(whole, CUT), tokenizer, TEXTS, DISTILL, whole=whole, folder=tmp_path / "one")
    train(drop_layers(whole, CUT), tokenizer, TEXTS, DISTILL, whole=whole, folder=tmp_path / "two")
    for path in (tmp_path / "two").glob("checkpoint-3-*"):
        path.unlink()
    again, after = train(drop_layers(whole, CUT), tokenizer, TEXTS, DISTILL, whole=whole, folder=tmp_path / "two")
    assert after.losses == record.losses and after.tokens == record.tokens
    assert equal(weights(straight), weights(again))
    with pytest.raises(InputError, match="checkpoints of another healing"):  # a teacher of other layers
        other = drop_layers(whole, Cut(3, 1))
        train(drop_layers(whole, CUT), tokenizer, TEXTS, DISTILL, whole=other, folder=tmp_path / "two")


# ---- a teacher that is not there -----------------------------------------------------------------------------


def test_states_kept_on_disk_teach_as_the_model_does(tiny, tmp_path):
    whole, tokenizer = tiny
    config = changed(DISTILL, packed=False)
    keep_teacher(whole, tokenizer, TEXTS, changed(config, steps=1, warmup_steps=0), tmp_path)  # a part of it
    keep_teacher(whole, tokenizer, TEXTS, config, tmp_path)
    sequences = sequences_to_learn(tokenizer, TEXTS, config)
    assert len(list(tmp_path.iterdir())) == len(sequences) == 12
    beside, record = train(drop_layers(whole, CUT), tokenizer, TEXTS, config, whole=whole)
    kept, after = train(drop_layers(whole, CUT), tokenizer, TEXTS, config, whole=tmp_path)
    assert after.losses == pytest.approx(record.losses, abs=1e-4)
    beside, kept = weights(beside), weights(kept)
    assert all(torch.allclose(beside[name], kept[name], atol=1e-3) for name in kept)
    head, path = distillation._of_head(whole), distillation._place(tmp_path, sequences[0])
    assert len(distillation.read_states(tmp_path, sequences[0], head)) == len(sequences[0])
    with pytest.raises(InputError, match="of a model with another head"):
        distillation.read_states(tmp_path, sequences[0], "of another")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=rf"{path.name} holds no states .*keep_teacher"):
        distillation.read_states(tmp_path, sequences[0], head)


# ---- settings ------------------------------------------------------------------------------------------------


def test_without_distillation_nothing_is_named_otherwise(tiny):
    """Keys of units, folders of the cache and checkpoints under way are those of before."""
    before = {
        "rank": 8, "learning_rate": 0.005, "sequence_length": 256, "steps": 60, "warmup_steps": 6, "batch_sequences": 8,
        "at_once": 4, "dropout": 0.05, "quantization": "nf4", "seed": 0, "packed": True,
        "gradient_checkpointing": False, "adapters": "all", "auxiliary": 0.0,
    }  # fmt: skip
    assert PRESETS["small"].settings == before
    assert PRESETS["distill"].settings == before | {"objective": "distill", "temperature": 1.0}
    published = [unit for unit in all_units() if unit.kind == "healing" and "objective" not in unit.key["healing"]]
    assert published and all(unit.key["healing"].keys() == before.keys() for unit in published)
    healed = add_adapters(drop_layers(tiny[0], CUT), rank=2, alpha=2, dropout=0.0)
    said = json.loads(identity_of(healed, PRESETS["small"], CUT, []))["config"]
    names = [*before]
    names.insert(names.index("adapters"), "save_every")
    assert said == before | {"save_every": None} and list(said) == names


def test_asked_for_by_parameter_or_preset():
    one, two = HealingParameters(objective="distill"), HealingParameters(preset="distill")
    assert one.config() == two.config() == PRESETS["distill"]
    assert HealingParameters(preset="Llama-2 7B", objective="distill", temperature=2.0).config().temperature == 2
    for values, said in [
        ({"objective": "teach"}, "objective is 'teach', expected 'text' or 'distill'"),
        ({"temperature": 2.0}, "temperature is 2.0, which only the objective 'distill' has"),
        ({"objective": "distill", "temperature": 0.0}, "temperature is 0.0, expected"),
    ]:
        with pytest.raises(InputError, match=said):
            HealingParameters(**values)


def test_what_it_needs_is_asked_for(tiny, tmp_path):
    whole, tokenizer = tiny
    other = tiny_model("llama", vocab_size=whole.config.vocab_size, seed=3)
    for teacher, config, said in [
        (None, DISTILL, "whole is None, expected the unpruned model, or a folder"),
        (other, DISTILL, "another head than the pruned model's"),
        (tmp_path, changed(DISTILL, auxiliary=1.0), "the auxiliary loss needs the unpruned model itself"),
        (tmp_path, DISTILL, "holds no states of the unpruned model .*keep_teacher"),
    ]:
        with pytest.raises(InputError, match=said):
            heal(drop_layers(whole, CUT), tokenizer, TEXTS, config, cut=CUT, whole=teacher)


def test_a_model_that_was_not_pruned_to_the_student_is_no_teacher(tiny):
    whole, tokenizer = tiny
    pruned = drop_layers(whole, CUT)
    for teacher, cut, said in [
        (pruned, None, "whole has 3 layers beside a pruned model of 3, expected more, or that cut= says what was"),
        (pruned, CUT, r"whole has 3 layers beside a pruned model of 3, expected 5 for Cut\("),
        (drop_layers(whole, Cut(3, 1)), CUT, "whole has 4 layers beside a pruned model of 3, expected 5 for"),
    ]:
        with pytest.raises(InputError, match=said):
            heal(pruned, tokenizer, TEXTS, DISTILL, cut=cut, whole=teacher)


def test_prune_heals_so_by_its_presets_name(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("deeper_layers.experiments.healings.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PRESETS, "distill", changed(DISTILL, steps=2))
    asked = ["--drop", "2", "--start", "2", "--heal", "distill", "--text", "wikipedia", "--json"]
    done = CliRunner().invoke(main, ["prune", str(tiny_folder), str(tmp_path / "out"), *asked])
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    said = json.loads((Path(content["adapters"]) / "healing.json").read_text())["healing"]
    assert said["config"]["objective"] == "distill" and len(said["losses"]) == 2
    pruned, _ = load_model(content["out"])
    assert pruned.config.num_hidden_layers == 3
    card = (Path(content["out"]) / "README.md").read_text()
    assert "Distilled: it learned what the unpruned model expects (temperature 1)." in card
