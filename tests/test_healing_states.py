"""What a healing finds and leaves: models, modes, gradients and random numbers; and models that it refuses."""

import dataclasses
import os
import random

import numpy as np
import pytest
import scipy
import torch
from torch import nn
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.healing.adapters import add_adapters, load_adapters, merge_adapters, save_adapters
from deeper_layers.healing.distillation import divergence
from deeper_layers.healing.state import hash_model
from deeper_layers.healing.training import heal, train
from deeper_layers.models.opening import load_model
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.jobs import healings
from deeper_layers_companion.jobs.job import healed_job
from deeper_layers_companion.jobs.options import HealingParameters
from deeper_layers_companion.jobs.session import Session
from tests import faults
from tests.test_distributed import TEXTS
from tests.test_healing import CUT, DISTILL, SMALL, close
from tests.tiny import tiny_model

LITTLE = dataclasses.replace(SMALL, steps=2)
TAUGHT = dataclasses.replace(LITTLE, **DISTILL)
LAST = dataclasses.replace(LITTLE, rank=0, dropout=0.0, last_layers=2)


def fresh(**settings):
    """A model of five layers for the byte tokenizer, the same each time."""
    return tiny_model("llama", layers=5, vocab_size=300, **settings)


def changed(model, name: str):
    """The model with other numbers in one matrix: its shapes and vectors are the same."""
    with torch.no_grad():
        model.get_parameter(name).mul_(1.5)
    return model


# ---- whose folder it is ----------------------------------------------------------------------------------


OTHERS = [  # which of both models is another one, and how
    ("pruned", lambda: changed(fresh(), "model.layers.0.mlp.up_proj.weight")),
    ("pruned", lambda: fresh(rope_parameters={"rope_type": "default", "rope_theta": 100.0})),
    ("teacher", lambda: changed(fresh(), "model.layers.3.mlp.up_proj.weight")),
]


@pytest.mark.parametrize(("which", "other"), OTHERS)
def test_a_folder_hands_no_adapters_to_another_model(which, other, opened, tmp_path):
    def healed(folder, another):
        model = other() if another and which == "pruned" else fresh()
        whole = other() if another and which == "teacher" else fresh()
        config = TAUGHT if which == "teacher" else LITTLE
        return train(drop_layers(model, CUT), opened[1], TEXTS, config, cut=CUT, whole=whole, folder=folder)

    (first, _), (second, of_second), (alone, of_alone) = (
        healed(tmp_path, False),
        healed(tmp_path, True),
        healed(None, True),
    )
    assert of_second.losses == of_alone.losses and close(second, alone) and not close(first, second)
    assert len(list(tmp_path.glob("healing-*"))) == 2
    again, of_again = healed(tmp_path, True)
    assert of_again.losses == of_second.losses and close(again, second)


# ---- as it was found -------------------------------------------------------------------------------------


def state_of(*models):
    """All that is not to change: modules, modes, gradients asked for, settings; random numbers of three kinds."""
    of_python = None if os.environ.get("CHECK_SHAPES") else random.getstate()  # the checker of types draws from it
    draws = of_python, str(np.random.get_state()), torch.get_rng_state().tolist()
    return draws, [
        (
            [(name, type(module), module.training) for name, module in model.named_modules()],
            [(name, parameter.requires_grad, parameter.sum().item()) for name, parameter in model.named_parameters()],
            model.config.to_dict(),
        )
        for model in models
    ]


def mixed(model):
    """The model with every other module in training mode, and every third parameter without gradients."""
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    return model


def kept(pruned, whole, tokenizer, folder):
    save_adapters(add_adapters(pruned, rank=2, alpha=2, dropout=0.0), folder, {"name": "a", "weights": "b"}, CUT)
    return load_adapters(pruned, folder, {"name": "a", "weights": "b"}, CUT)


def damaged(pruned, whole, tokenizer, folder):
    kept(pruned, whole, tokenizer, folder)
    return load_adapters(drop_layers(pruned, Cut(2, 1)), folder, {"name": "a", "weights": "b"}, CUT)


HIGH = {"learning_rate": 1e25, "steps": 30, "warmup_steps": 25}
CALLS = [  # a call, of a pruned model, the whole one, the tokenizer and a folder; and how it ends
    (lambda p, w, t, f: heal(p, t, TEXTS, LITTLE), None),
    (lambda p, w, t, f: heal(p, t, TEXTS, LAST), None),
    (lambda p, w, t, f: heal(p, t, TEXTS, TAUGHT, whole=w, cut=CUT, folder=f), None),
    (lambda p, w, t, f: heal(p, t, TEXTS, dataclasses.replace(LITTLE, auxiliary=1.0), whole=w, cut=CUT), None),
    (lambda p, w, t, f: heal(p, t, TEXTS, dataclasses.replace(LITTLE, gradient_checkpointing=True)), None),
    (lambda p, w, t, f: heal(p, t, TEXTS, dataclasses.replace(LITTLE, **HIGH)), "the loss is"),
    (lambda p, w, t, f: heal(p, t, TEXTS, TAUGHT, whole=p, cut=CUT), "whole is a"),
    (lambda p, w, t, f: merge_adapters(heal(p, t, TEXTS, LITTLE)), None),
    (kept, None),
    (damaged, "do not fit the pruned model"),
]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # which peft asks for
@pytest.mark.parametrize(("call", "error"), CALLS)
def test_models_and_random_numbers_are_as_they_were(call, error, opened, tmp_path):
    whole = mixed(fresh())
    pruned = drop_layers(whole, CUT)
    before, raised = state_of(whole, pruned), None
    try:
        call(pruned, whole, opened[1], tmp_path / "folder")
    except InputError as refused:
        raised = str(refused)
    assert (raised is None) == (error is None) and (error or "") in (raised or "")
    assert state_of(whole, pruned) == before


def test_a_model_in_training_mode_is_taught_by_a_teacher_without_dropout(opened):
    def taught(training: bool):
        torch.manual_seed(3)
        whole = fresh(attention_dropout=0.5)
        return train(drop_layers(whole, CUT).train(training), opened[1], TEXTS, TAUGHT, whole=whole.train(training))[1]

    assert taught(True).losses == taught(False).losses


# ---- adapters that are not in use as heal left them ------------------------------------------------------


def spread(model):
    """Adapters on a model, none of them zero."""
    healed = add_adapters(model, rank=2, alpha=3, dropout=0.0)
    for name, parameter in healed.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return healed.eval()


@pytest.mark.parametrize(("switch", "back", "said"), [
    (lambda h: h.merge_adapter(), lambda h: h.unmerge_adapter(), "are merged into the weights already: unmerge"),
    (lambda h: h.base_model.disable_adapter_layers(), lambda h: h.base_model.enable_adapter_layers(),
     "are switched off"),
    (lambda h: h.base_model.model.model.layers[1].mlp.up_proj.merge(),
     lambda h: h.base_model.model.model.layers[1].mlp.up_proj.unmerge(), "are merged into the weights already"),
    (lambda h: (h.add_adapter("other", h.peft_config["default"]), h.set_adapter("other")),
     lambda h: h.set_adapter("default"), r"in use are \['other'\], which heal has not added"),
])  # fmt: skip
def test_adapters_that_are_switched_off_or_merged_are_not_merged(switch, back, said):
    healed, ids = spread(fresh()), torch.arange(12)[None]
    with torch.no_grad():
        before = healed(ids).logits
        switch(healed)
        with pytest.raises(InputError, match=f"^healed is a PeftModelForCausalLM whose adapters {said}"):
            merge_adapters(healed)
        back(healed)
        torch.testing.assert_close(merge_adapters(healed)(ids).logits, before, rtol=0, atol=1e-4)


def test_merged_is_what_peft_makes_of_it():
    ids, whole = torch.arange(12)[None], fresh()
    with torch.no_grad():
        ours = merge_adapters(spread(whole)).state_dict()
        torch.manual_seed(0)
        merged = merge_adapters(healed := spread(whole))
        expected = healed(ids).logits
        theirs = healed.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-4)
        assert ours.keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=0, atol=1e-6)


# ---- refused ---------------------------------------------------------------------------------------------


def mixed_types():
    model = fresh().to(torch.bfloat16)
    model.lm_head.weight.data = model.lm_head.weight.data.float()
    return model


def without_numbers():
    config = fresh().config
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def of_inference():
    with torch.inference_mode():
        return fresh()


REFUSED = [  # a model, what is given otherwise, and words of the line
    (fresh, {"texts": None}, "texts is None, expected a list of documents"),
    (fresh, {"texts": {"text": "a"}}, "texts is {'text': 'a'}, expected a list of documents"),
    (fresh, {"tokenizer": None}, "tokenizer is None, expected that of the model"),
    (fresh, {"cut": (1, 2)}, "expected a Cut"),
    (lambda: None, {}, "the model is a NoneType, expected one of transformers"),
    (lambda: spread(fresh()), {}, "the model is a PeftModelForCausalLM with adapters, expected none"),
    (lambda: spread(fresh()).get_base_model(), {}, "is a LlamaForCausalLM with adapters, expected none"),
    (mixed_types, {}, "LlamaForCausalLM can't run on 32 tokens of .*: give a language model in one data type"),
    (without_numbers, {}, "has weights that are on disk, missing, or made in inference_mode"),
    (of_inference, {}, "has weights that are on disk, missing, or made in inference_mode"),
    (lambda: AutoModel.from_config(fresh().config), {}, "is a LlamaModel, which has no head, expected one"),
    (lambda: tiny_model("llama", layers=5), {}, r"the tokenizer gives token \d+, and the model has 128"),
    (lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=300, n_positions=16)), {},
     "a sequence has 32 tokens, and GPT2LMHeadModel has 16 positions"),
    (fresh, {"config": dataclasses.replace(LAST, last_layers=6)}, "last_layers is 6, and 5 are left: train these"),
]  # fmt: skip


@pytest.mark.wrong_types
@pytest.mark.parametrize(("make", "given", "said"), REFUSED)
def test_a_model_that_can_not_learn_is_refused_in_one_line(make, given, said, opened):
    asked = {"tokenizer": opened[1], "texts": TEXTS, "config": LITTLE} | given
    with pytest.raises(InputError, match=said):
        heal(make(), **asked)


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_healed(switch, opened):
    with switch(), pytest.raises(InputError, match=r"gradients are switched off \(torch.no_grad or inference_mode\)"):
        heal(drop_layers(opened[0], CUT), opened[1], TEXTS, LITTLE)


# ---- settings and losses ---------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("steps", [1, 7, 30, 60, 600])
def test_other_steps_keep_the_share_of_warm_up_in_python_as_on_the_command_line(steps):
    by_hand = dataclasses.replace(PRESETS["small"], steps=steps)
    assert by_hand == HealingParameters(preset="small", steps=steps, quantization="nf4").make_config()
    assert by_hand.warmup_steps == by_hand.settings["warmup_steps"] == round(steps / 10)
    assert dataclasses.replace(PRESETS["small"], seed=5).warmup_steps == 6
    with pytest.raises(InputError, match="warmup_steps is 6, expected some of the 1 steps"):
        dataclasses.replace(PRESETS["small"], steps=1, warmup_steps=6)


@pytest.mark.quick
@pytest.mark.parametrize(("values", "said"), [
    ({"rank": 0}, "rank is 0, expected 1 or more, or last_layers"),
    ({"last_layers": 3}, "rank is 2, expected 0 with last_layers"),
    ({"last_layers": 3, "rank": 0}, "dropout is 0.05, expected 0 with last_layers"),
    ({"last_layers": 3, "rank": 0, "dropout": 0.0, "quantization": "nf4"}, "quantization is 'nf4', expected None"),
    ({"last_layers": 3, "rank": 0, "dropout": 0.0, "objective": "distill"}, "objective is 'distill', expected 'text'"),
    ({"last_layers": 3, "rank": 0, "dropout": 0.0, "adapters": "above"}, "adapters is 'above', expected 'all'"),
    ({"last_layers": -1}, "last_layers is -1, expected"),
])  # fmt: skip
def test_settings_of_adapters_and_of_whole_layers_exclude_each_other(values, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALL, **values)


@pytest.mark.quick
def test_a_key_names_whole_layers_only_where_they_are_trained():
    assert "last_layers" not in SMALL.settings and LAST.settings["last_layers"] == 2
    assert HealingConfig(**LAST.settings).settings == LAST.settings


@pytest.mark.quick
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_from_the_student_to_the_teacher(temperature):
    """Of distributions that are no mirror images: the other direction is another number."""
    student, teacher = np.array([[15.0, -1.0, 0.5, 0.0]]), np.array([[-0.5, 1.0, 0.0, 1.5]])
    p, q = (scipy.special.softmax(logits / temperature) for logits in (teacher, student))
    forward, backward = scipy.special.rel_entr(p, q).sum(), scipy.special.rel_entr(q, p).sum()
    found = divergence(torch.from_numpy(student), torch.from_numpy(teacher), temperature).item()
    assert found == pytest.approx(temperature**2 * forward, rel=1e-5) and abs(forward / backward - 1) > 0.05


# ---- quantized, and killed -------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_of_quantized_models_the_scales_count_too_and_a_killed_healing_goes_on(quantization, tiny_folder, tmp_path):
    config = dataclasses.replace(LITTLE, quantization=quantization, steps=4)

    def opened_anew():
        model, tokenizer = load_model(str(tiny_folder), quantization=quantization, dtype="float32")
        return drop_layers(model, CUT), tokenizer

    def healed(folder):
        model, tokenizer = opened_anew()
        return train(model, tokenizer, TEXTS, config, folder=folder)

    straight, record = healed(None)
    assert faults.killed_at(8, lambda: healed(tmp_path / "folder")) and len(list((tmp_path / "folder").iterdir())) == 1
    again, after = healed(tmp_path / "folder")
    assert after.losses == record.losses and close(straight, again)
    assert len(list((tmp_path / "folder").iterdir())) == 1, "the same model opened again has the same folder"
    model, _ = opened_anew()
    before = hash_model(model)
    weight = model.model.layers[0].mlp.up_proj.weight  # the same whole numbers, which mean others now
    (weight.quant_state.absmax if quantization == "nf4" else weight.SCB).mul_(2)
    assert hash_model(model) != before


def test_a_weight_beside_modules_is_of_the_model_too():
    model = fresh()
    model.model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    before = hash_model(model)
    assert hash_model(changed(model, "model.scale")) != before


@pytest.mark.parametrize("preset", [pytest.param("small", marks=pytest.mark.thorough), "head-and-last-3"])
def test_the_command_killed_at_any_write_ends_as_undisturbed(preset, tiny_folder, tmp_path, monkeypatch):
    least = {"steps": 2, "warmup_steps": 0, "batch_sequences": 2, "at_once": 2, "sequence_length": 32, "save_every": 1}
    monkeypatch.setitem(PRESETS, preset, dataclasses.replace(PRESETS[preset], quantization=None, **least))
    of_split = lambda corpus, *, split=None, **_: [f"{split} {text}" for text in TEXTS]  # noqa: E731
    monkeypatch.setattr("deeper_layers.data.texts", of_split)

    def healed(folder):
        parameters = HealingParameters(
            model=str(tiny_folder), dtype="float32", quantization=None, text="wikipedia", tasks="capitals", limit=4,
            preset=preset, results=str(folder / "results"), loss_sequences=4, loss_length=32,
        )  # fmt: skip
        monkeypatch.setattr(healings, "cache_folder", lambda: folder / "cache")
        session = Session(parameters)
        healed = healed_job(session.source, parameters, CUT, parameters.make_config())
        run, measured = (session.get(job) for job in (*healed.needs, healed))
        healings.find_adapters(*healed.needs, session)
        return [row["loss"] for row in run.records], measured.records

    expected: list = []
    calls = faults.calls_of(lambda: expected.append(healed(tmp_path / "counted")))
    for number in range(0, len(calls), max(1, len(calls) // 5)):
        folder = tmp_path / f"{number}"
        assert faults.killed_at(number, lambda folder=folder: healed(folder)), f"call {number}"
        assert healed(folder) == expected[0], f"call {number}"
        assert not list(folder.rglob("checkpoint-*")) and not list(folder.rglob("*.lock")), f"call {number}"
