"""Adapters merged into a sliced checkpoint: what merge_adapters and save_pretrained give, without opening the model."""

import json

import click
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from deeper_layers.command import main
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import healings
from deeper_layers.export import adapter_files
from deeper_layers.export.model_card import healing_in_words
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.healing.adapters import add_adapters, load_adapters, merge_adapters, save_adapters
from deeper_layers.models.opening import checkpoint_folder
from deeper_layers.models.sources import model_key
from deeper_layers.presets import PRESETS, HealingConfig
from deeper_layers.pruning import drop_layers
from tests.test_slicing import saved, tensors
from tests.tiny import FAMILIES, tiny_model

CUT = Cut(2, 2)


def healed_adapters(whole, folder, base: dict, cut: Cut = CUT, healing: dict | None = None, **options):
    """Adapters with random values for a model without the layers of a cut, saved; and the model with them."""
    model = add_adapters(drop_layers(whole, cut), **{"rank": 3, "alpha": 5, "dropout": 0.0} | options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    save_adapters(model, folder, base, cut, healing)
    return model


@pytest.fixture
def llama(tmp_path):
    """A model in a folder, and adapters for it."""
    whole = saved("llama", tmp_path / "whole")
    base = model_key(str(tmp_path / "whole"), tmp_path / "whole")
    healed_adapters(whole, tmp_path / "adapter", base)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_merging_and_saving_bit_by_bit(family, dtype, tmp_path):
    whole = tiny_model(family, dtype=dtype)
    whole.save_pretrained(tmp_path / "whole", max_shard_size="40KB")
    base = model_key(str(tmp_path / "whole"), tmp_path / "whole")
    healed_adapters(whole, tmp_path / "adapter", base)
    expected = merge_adapters(load_adapters(drop_layers(whole, CUT), tmp_path / "adapter", base, CUT))
    expected.save_pretrained(tmp_path / "expected")
    slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", adapter=tmp_path / "adapter")
    ours, theirs = tensors(tmp_path / "out"), tensors(tmp_path / "expected")
    plain = tensors(slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "plain"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    changed = {name for name in ours if not torch.equal(ours[name], plain[name])}
    assert len(changed) == len(adapter_files.read_adapter(tmp_path / "adapter").shapes) > 0


def test_weights_that_lie_transposed(tmp_path):
    config = GPT2Config(n_layer=6, n_embd=48, n_head=4, vocab_size=128, n_positions=64, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    whole = GPT2LMHeadModel(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    base = model_key(str(tmp_path / "whole"), tmp_path / "whole")
    healed_adapters(whole, tmp_path / "adapter", base)
    expected = merge_adapters(load_adapters(drop_layers(whole, CUT), tmp_path / "adapter", base, CUT))
    expected.save_pretrained(tmp_path / "expected")
    slice_checkpoint(tmp_path / "whole", CUT, tmp_path / "out", adapter=tmp_path / "adapter")
    ours, theirs = tensors(tmp_path / "out"), tensors(tmp_path / "expected")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_the_bare_decoder_has_shorter_names_than_the_adapters(tmp_path):
    whole = tiny_model("gpt_neox")
    whole.gpt_neox.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text()) | {"architectures": ["GPTNeoXForCausalLM"]}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    base = model_key(str(tmp_path / "bare"), tmp_path / "bare")
    expected = merge_adapters(healed_adapters(whole, tmp_path / "adapter", base)).state_dict()
    slice_checkpoint(tmp_path / "bare", CUT, tmp_path / "out", adapter=tmp_path / "adapter")
    ours = tensors(tmp_path / "out")
    assert ours and all(torch.equal(tensor, expected[f"gpt_neox.{name}"]) for name, tensor in ours.items())


def test_adapters_of_peft_alone_are_taken_at_the_word_of_who_gives_the_cut(llama):
    with_record = slice_checkpoint(llama / "whole", CUT, llama / "one", adapter=llama / "adapter")
    (llama / "adapter" / adapter_files.IDENTITY).unlink()
    without = slice_checkpoint(llama / "whole", CUT, llama / "two", adapter=llama / "adapter")
    one, two = tensors(with_record), tensors(without)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "not recorded" in (without / "README.md").read_text()
    with pytest.raises(click.ClickException, match="--drop says how many"):
        prune(llama / "whole", llama / "three", "--adapter", llama / "adapter")


def test_scaled_by_the_root_of_the_rank_and_ranks_of_their_own(llama):
    """Other settings of peft that decide the update are heeded."""
    path = llama / "adapter" / adapter_files.SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "adapter")
    base = model_key(str(llama / "whole"), llama / "whole")
    expected = merge_adapters(load_adapters(drop_layers(tiny_model("llama"), CUT), llama / "adapter", base, CUT))
    found = tensors(llama / "out")
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.items())


def settings(folder, **values) -> None:
    path = folder / "adapter" / adapter_files.SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder, change) -> None:
    path = folder / "adapter" / adapter_files.WEIGHTS
    save_file(change(load_file(path)), path)


def moved(folder, old: str, new: str) -> None:
    """Adapters that are whole, for other modules."""
    weights(folder, renamed(old, new))
    modules = json.loads((folder / "adapter" / adapter_files.SETTINGS).read_text())["target_modules"]
    settings(folder, target_modules=[name.replace(old, new) for name in modules])


def renamed(old: str, new: str):
    return lambda found: {name.replace(old, new): tensor for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: moved(folder, "layers.3", "layers.4"), "for a model.layers.4.*no such tensor"),
        (lambda folder: moved(folder, "model.layers.3.mlp.up_proj", "lm_head"), "lm_head .* no such tensor"),
        (lambda folder: weights(folder, renamed("layers.3", "layers.4")), "no adapters of model.layers.3"),
        (lambda folder: weights(folder, renamed("3.mlp.up_proj.lora_A", "3.mlp.up_proj.lora_B")), "A and B of model"),
        (lambda folder: settings(folder, use_dora=True), "no plain LoRA .*use_dora = True"),
        (lambda folder: settings(folder, bias="all"), "no plain LoRA .*bias.*'all'"),
        (lambda folder: settings(folder, init_lora_weights="pissa"), "no plain LoRA .*init_lora_weights.*'pissa'"),
        (lambda folder: settings(folder, peft_type="IA3"), "no plain LoRA .*'IA3'"),
        (lambda folder: (folder / "adapter" / adapter_files.WEIGHTS).unlink(), "lacks adapter_config.json or"),
        (lambda folder: (folder / "adapter" / adapter_files.IDENTITY).write_text("{"), "no plain LoRA"),
        (lambda folder: saved("mistral", folder / "whole"), "were trained on whole .sha256:.*, not on whole .sha256"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_belong_here(spoil, message, llama):
    spoil(llama)
    with pytest.raises(InputError, match=message):
        slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "adapter")
    assert not (llama / "out").exists()


def test_another_cut_quantized_weights_and_a_folder_without_adapters(llama):
    with pytest.raises(InputError, match=r"trained for Cut\(start=2, size=2\), not for Cut\(start=1, size=2\)"):
        slice_checkpoint(llama / "whole", Cut(1, 2), llama / "out", adapter=llama / "adapter")
    with pytest.raises(InputError, match="lacks adapter_config.json"):
        slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "none")
    (llama / "adapter" / adapter_files.IDENTITY).unlink()
    file = llama / "whole" / "model.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match="in F8_E4M3: give adapters .* weights in one of F32"):
        slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "adapter")


def test_what_was_begun_with_other_adapters_is_begun_anew(llama, monkeypatch):
    whole, base = tiny_model("llama"), model_key(str(llama / "whole"), llama / "whole")
    healed_adapters(whole, llama / "other", base, alpha=50)
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.export.slicing.write_lineage_text", lambda *_: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception):
            slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "other")
    assert list(llama.glob("out.*.partial/made/model.safetensors"))
    slice_checkpoint(llama / "whole", CUT, llama / "out", adapter=llama / "adapter")
    slice_checkpoint(llama / "whole", CUT, llama / "straight", adapter=llama / "adapter")
    one, two = tensors(llama / "out"), tensors(llama / "straight")
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---- the command -----------------------------------------------------------------------------------------


def prune(*words) -> None:
    main(["prune", *map(str, words)], standalone_mode=False)


def test_the_command_takes_the_cut_from_the_adapters(llama, capsys):
    prune(llama / "whole", llama / "out", "--adapter", llama / "adapter")
    assert "drops layers 2..3 (0-based, 2 of 6)" in capsys.readouterr().out
    expected = slice_checkpoint(llama / "whole", CUT, llama / "expected", adapter=llama / "adapter")
    one, two = tensors(llama / "out"), tensors(expected)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    for options, message in [
        (["--drop", "3", "--start", "1"], r"not for Cut\(start=1, size=3\)"),
        (["--start", "2"], "--drop says how many layers go"),
    ]:
        with pytest.raises(click.ClickException, match=message):
            prune(llama / "whole", llama / "more", "--adapter", llama / "adapter", *options)


@pytest.mark.thorough
def test_the_command_heals_once_and_merges(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    small = HealingConfig(
        rank=2, learning_rate=5e-2, sequence_length=32, steps=4, warmup_steps=1, batch_sequences=4, at_once=4,
        gradient_checkpointing=False,
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "small", small)
    words = ["--drop", "2", "--rule", "simple", "--heal", "small", "--text", "wikipedia"]
    prune(tiny_folder, tmp_path / "one", *words)
    monkeypatch.setattr("deeper_layers.healing.train", lambda *_, **__: pytest.fail("healed again"))
    prune(tiny_folder, tmp_path / "two", *words)
    (adapter,) = {line for line in capsys.readouterr().out.splitlines() if line.startswith("adapters: ")}
    prune(tiny_folder, tmp_path / "three", "--adapter", adapter.removeprefix("adapters: "))
    one, two, three = (tensors(tmp_path / name) for name in ("one", "two", "three"))
    unhealed = tensors(slice_checkpoint(tiny_folder, Cut(2, 2), tmp_path / "unhealed"))
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], three[name]) for name in one)
    assert any(not torch.equal(one[name], unhealed[name]) for name in one)
    card = (tmp_path / "one" / "README.md").read_text()
    assert ", healed\n" in card and "rank 2 (alpha 2) on down_proj, gate_proj, up_proj" in card
    assert "Trained on 512 tokens of wikipedia" in card and "4 steps" in card and "weights in nf4" in card
    for wrong, message in [
        (["--heal", "tiny"], "'tiny' is not one of"),
        (["--heal", "small", "--text", "pile"], "'pile'"),
    ]:
        with pytest.raises(click.ClickException, match=message):
            prune(tiny_folder, tmp_path / "four", "--drop", "2", *wrong)


def test_a_card_has_the_scores_before_and_after_healing(tmp_path):
    from deeper_layers.experiments.healings import course_of
    from deeper_layers.report import one_cut
    from deeper_layers.results import distances, scores
    from deeper_layers.results.places import results_folder
    from deeper_layers.results.store import all_results, cut_names

    healed_ones = [unit for unit in all_results(results_folder(), "scores") if unit.key.get("healing")]
    unit = next(unit for unit in healed_ones if cut_names(unit.key) == {"25,1"} and "c4" in unit.key["tasks"])
    run = next(run for run in all_results(results_folder(), "healing") if run.key["cut"] == "25,1")
    config, text, name = unit.key["healing"], unit.key["text"], unit.key["model"]["name"]
    table, blocks = (read(results_folder(), name) for read in (scores, distances))
    rows = one_cut.healed_alike(table, Cut(25, 1), config, text)
    assert set(rows["path"]) == {unit.place}
    found = {score.topic: score for score in one_cut.scores_of(table, Cut(25, 1), rows)}
    loss = found["C4, loss"]
    expected = unit.rows.query("task == 'c4' and metric == 'loss'")["value"].iloc[0]
    assert loss.healed[0] == pytest.approx(expected, abs=1e-4) and loss.pruned[0] > loss.whole[0] > 0
    healed = unit.rows.query("task == 'capitals' and metric == 'acc'")["value"].iloc[0]
    capitals = found["Capitals, words chosen"]
    assert capitals.healed[0] == pytest.approx(healed) and capitals.how == "bfloat16, weights in nf4"
    card = one_cut.card_text(table, blocks, Cut(25, 1), rows)
    assert f"| {one_cut.in_words(capitals.healed)} | 0.28 | 120 |" in card and "| pruned | healed, this one |" in card
    # other settings: another healing, whose scores these are not
    assert one_cut.healed_alike(table, Cut(25, 1), config | {"rank": 64}, text).empty
    course = {"config": config, "text": text} | course_of(run)
    healed_adapters(tiny_model("llama"), tmp_path, unit.key["model"], healing=course)
    adapter = adapter_files.read_adapter(tmp_path)
    assert f"{run.details['tokens']:,} tokens of c4" in healing_in_words(adapter)


def test_the_key_of_a_model_is_that_of_its_source(tiny_folder):
    from deeper_layers.models.sources import find_model

    for model in (str(tiny_folder), "embedded"):
        folder = checkpoint_folder(model) if model != "embedded" else tiny_folder
        assert model_key(model, folder) == find_model(model).key
