"""Healed without adapters: the head and the last layers learn with all their weights, and nothing else does."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from deeper_layers.cuts import Cut
from deeper_layers.data.corpora import texts
from deeper_layers.data.tokens import token_sequences
from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import IDENTITY, SETTINGS, WEIGHTS
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.healing.adapters import load_adapters, merge_adapters, save_adapters
from deeper_layers.healing.distillation import draw_sequences
from deeper_layers.healing.training import train
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.experiments import healings
from deeper_layers_companion.report.statistics import parse_healing
from deeper_layers_companion.results import scores
from deeper_layers_companion.results.store import read_results
from tests import faults
from tests.test_command import typed
from tests.test_distributed import TEXTS
from tests.test_healing import SMALL, close
from tests.test_merging import edited
from tests.test_slicing import tensors
from tests.tiny import byte_tokenizer, tiny_model

CUT = Cut(4, 2)  # the last two of six
LAST = dataclasses.replace(SMALL, rank=0, dropout=0.0, last_layers=3, steps=4)
IDS = torch.arange(40)[None]


def fresh(family="llama", **settings):
    return tiny_model(family, layers=6, vocab_size=300, **settings)


def healed(whole, folder=None, **values):
    config = dataclasses.replace(LAST, **values)
    return train(drop_layers(whole, CUT), byte_tokenizer(), TEXTS, config, cut=CUT, folder=folder)


def plain_loop(whole, config, sequences):
    """The same by torch alone: the model, and its losses."""
    model = copy.deepcopy(whole).float().requires_grad_(False)
    del model.model.layers[4:]
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    trained = [*model.lm_head.parameters(), *model.model.layers[1:].parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    descent, losses, warm = torch.optim.AdamW(trained, weight_decay=0.0), [], config.warmup_steps
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(config.seed))
    for step, places in zip(range(config.steps), order.split(config.batch_sequences)):
        ids = torch.stack([sequences[place].long() for place in places])
        loss = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        risen = step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (config.steps - warm))) / 2
        descent.param_groups[0]["lr"] = config.learning_rate * risen
        descent.step()
        losses.append(loss.item())
    return model, losses


WAYS = [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gemma3", {}), ("qwen3_moe", {})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "settings"), WAYS)
def test_these_weights_move_as_in_a_plain_loop_and_no_others_do(family, settings, dtype):
    whole = fresh(family, dtype=dtype, **settings)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    model, record = healed(whole)
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items()), (
        "it was trained itself"
    )
    expected, losses = plain_loop(whole, LAST, draw_sequences(byte_tokenizer(), TEXTS, LAST))
    assert record.losses == pytest.approx(losses, abs=1e-4) and record.losses[-1] < record.losses[0]
    merged = merge_adapters(model, torch.float32)
    found, wanted, pruned = (one.state_dict() for one in (merged, expected, drop_layers(whole, CUT)))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-3)
        is_trained = name == "lm_head.weight" or name.startswith(
            ("model.layers.1.", "model.layers.2.", "model.layers.3.")
        )
        if not is_trained:
            assert torch.equal(tensor, pruned[name].float()), name
        elif tensor.ndim > 1 and "experts" not in name:
            assert not torch.equal(tensor, pruned[name].float()), name
    tied = whole.config.get_text_config().tie_word_embeddings
    assert not merged.config.get_text_config().tie_word_embeddings
    assert (
        record.tuned.startswith("model.layers.1 to model.layers.3, and lm_head") and ("untied" in record.tuned) == tied
    )
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=0, atol=1e-4)
        assert merge_adapters(model, dtype)(IDS).logits.dtype == dtype


def test_killed_at_any_write_the_same_again_ends_as_undisturbed(tmp_path):
    whole = fresh(tie_word_embeddings=True)
    straight, record = healed(whole)
    calls = faults.calls_of(lambda: healed(whole, tmp_path / "counted"))
    for number in (*range(0, len(calls), max(1, len(calls) // 4)), "counted"):
        folder = tmp_path / f"{number}"
        if number != "counted":
            assert faults.killed_at(number, lambda folder=folder: healed(whole, folder))
        again, after = healed(whole, folder)
        assert after.losses == record.losses and after.tuned == record.tuned, f"call {number}"
        assert close(straight, again)


@pytest.fixture
def kept(tmp_path):
    """A model with tied weights on disk, its tokenizer, and what was trained of it."""
    whole, tokenizer = fresh(tie_word_embeddings=True, dtype=torch.bfloat16), byte_tokenizer()
    for part in (whole, tokenizer):
        part.save_pretrained(tmp_path / "whole")
    opened, _ = load_model(str(tmp_path / "whole"))
    model, record = train(drop_layers(opened, CUT), tokenizer, TEXTS, LAST, cut=CUT)
    course = {"config": LAST.settings, "text": "c4"} | dataclasses.asdict(record)
    save_adapters(model, tmp_path / "adapter", find_model(str(tmp_path / "whole")).key, CUT, course)
    return tmp_path, opened, model


def test_from_files_they_are_as_in_memory(kept):
    folder, opened, model = kept
    base = find_model(str(folder / "whole")).key
    loaded = load_adapters(drop_layers(opened, CUT), folder / "adapter", base, CUT)
    merged, again = merge_adapters(model, torch.bfloat16), merge_adapters(loaded)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in merged.state_dict().items())
    merged.save_pretrained(folder / "expected")
    out = slice_checkpoint(folder / "whole", CUT, folder / "out", adapter=folder / "adapter")
    ours, theirs = tensors(out), tensors(folder / "expected")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    reloaded, _ = load_model(str(out))
    with torch.no_grad():
        torch.testing.assert_close(reloaded(IDS).logits, merged(IDS).logits, rtol=0, atol=0)
    card = " ".join((out / "README.md").read_text().split())
    assert "the last 3 layers and the head are trained with all their weights; all others are unchanged" in card


@pytest.mark.parametrize(("spoil", "words"), [
    (edited(SETTINGS, modules_to_save=["model.layers.1.mlp.up_proj"]), "is no tensor of finite numbers of a module"),
    (edited(SETTINGS, target_modules=["up_proj"]), "adapters beside whole modules, expected one of both"),
    (edited(IDENTITY, cut=[1, 2]), "give adapters of that model and cut"),
    (lambda folder: (folder / "adapter" / WEIGHTS).write_bytes(b"torn"), "is no whole file"),
])  # fmt: skip
def test_others_are_refused(spoil, words, kept):
    folder, opened, _ = kept
    spoil(folder)
    with pytest.raises(InputError, match=words):
        load_adapters(drop_layers(opened, CUT), folder / "adapter", find_model(str(folder / "whole")).key, CUT)
    with pytest.raises(InputError, match=words):
        slice_checkpoint(folder / "whole", CUT, folder / "out", adapter=folder / "adapter")


def test_quantized_weights_are_not_trained_themselves(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder), quantization="nf4")
    with pytest.raises(InputError, match="last_layers are trained as they are, and the weights are quantized"):
        train(model, tokenizer, TEXTS, LAST)


def test_the_command_heals_scores_and_writes_it(tiny_folder, tiny_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PRESETS, "head-and-last-3", dataclasses.replace(LAST, steps=2, last_layers=2))
    asked = ["heal", tiny_folder, "--drop", "2", "--text", "wikipedia", "--results", tmp_path / "results"]
    asked += ["--preset", "head-and-last-3", "--tasks", "capitals", "--limit", "4", "--dtype", "float32"]
    asked += ["--loss-sequences", "4", "--loss-length", "32"]
    content = json.loads(typed(*asked, "--start", "3", "--json").stdout)
    assert (
        "all weights of model.layers.1 to model.layers.2, and lm_head, 2 steps" in typed(*asked, "--start", "3").stdout
    )
    (run,) = read_results(tmp_path / "results", "healing")
    assert run.details["tuned"] == "model.layers.1 to model.layers.2, and lm_head"
    assert run.key["healing"]["last_layers"] == 2 and run.key["quantization"] is None
    (healing,) = set(scores(tmp_path / "results")["healing"].dropna())
    assert parse_healing(healing)["healing"].startswith("head and last 2 layers, 256 tokens")
    typed("prune", tiny_folder, tmp_path / "out", "--adapter", content["adapters"])
    model, tokenizer = load_model(str(tmp_path / "out"))
    drawn = token_sequences(tokenizer, texts("wikipedia", split="validation"), length=32, tokens=4 * 32)
    ids = torch.stack(drawn).long()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    (loss,) = (row["value"] for row in content["rows"] if row["metric"] == "loss")
    assert loss == pytest.approx(expected, abs=1e-5)
    for more, words in (["--quantization", "nf4"], "'nf4', expected none"), (["--rank", "4"], "4, expected 0"):
        assert f"{words} with last_layers" in typed(*asked, "--start", "3", *more, code=1).stderr
    refused = typed(
        "prune", tiny_gguf, tmp_path / "out.gguf", "--drop", "2", "--heal", "head-and-last-3", code=1
    ).stderr
    assert "OUT a GGUF file, to which adapters are added: give a folder" in refused
