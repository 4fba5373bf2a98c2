"""Healing by two processes (torchrun, gloo) beside one: the same losses, and each goes on where the other stopped.

Each of the two runs this file: MODEL OUT HEALINGS, the last in JSON, and writes what came out of them to OUT/RANK.json.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.healing.training import train
from deeper_layers.models import opening
from deeper_layers.models.opening import load_model
from deeper_layers.presets import HealingConfig
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.results.places import AROUND as ROOT

TEXTS, CUT = [f"{i} and {i + 1} are numbers, {'and so are these ' * (i % 7)}{i * i}." for i in range(60)], Cut(2, 2)
CONFIG = HealingConfig(
    rank=2, learning_rate=1e-2, sequence_length=32, batch_sequences=4, at_once=1, save_every=2, steps=4, warmup_steps=1,
    quantization=None, gradient_checkpointing=False, dropout=0.0, packed=False,
)  # fmt: skip
WAYS = {
    "text": {},
    "packed, checkpointed": {"packed": True, "gradient_checkpointing": True},
    "distilled": {"objective": "distill"},
    "auxiliary": {"auxiliary": 0.5},
    "above": {"adapters": "above"},
}


def healed(model, out, healings: dict[str, dict]) -> dict[str, dict]:
    """What each healing gave, by its name: losses, tokens, and what its adapters sum up to; or what was wrong."""
    whole, tokenizer = load_model(str(model), dtype="float32", device="cpu")
    found = {}
    for name, settings in healings.items():
        how = {"cut": CUT, "whole": whole, "folder": out / name}
        try:
            config = dataclasses.replace(CONFIG, **settings)
            adapted, record = train(drop_layers(whole, CUT), tokenizer, TEXTS, config, **how)
        except InputError as error:
            found[name] = {"error": str(error)}
            continue
        sums = [float(p.detach().double().abs().sum()) for p in adapted.parameters() if p.requires_grad]
        found[name] = {"losses": record.losses, "tokens": record.tokens, "adapters": sums}
    return found


def interrupt(folder) -> None:
    """As if it had been killed before its last checkpoint."""
    (path,) = folder.rglob("checkpoint-4")
    shutil.rmtree(path)


@pytest.mark.thorough
def test_two_processes_give_the_losses_of_one_and_each_goes_on_where_the_other_stopped(tiny_folder, tmp_path):
    of_one, together = healed(tiny_folder, tmp_path / "alone", WAYS), tmp_path / "together"
    healed(tiny_folder, together, {"begun": {}})
    interrupt(together / "begun")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(tiny_folder), str(together), json.dumps(WAYS | {"begun": {}, "odd": {"batch_sequences": 3}})]
    environment = {"PYTHONPATH": f"{ROOT / 'lib'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    how = {"cwd": ROOT, "env": os.environ | environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*start, "-m", "tests.test_distributed", *words], **how)
    assert done.returncode == 0, done.stderr
    of_two = [json.loads((together / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name in WAYS:
        for found in of_two:
            assert len(found[name]["losses"]) == 4 and found[name]["tokens"] == of_one[name]["tokens"]
            assert found[name]["losses"] == pytest.approx(of_one[name]["losses"], abs=1e-5), name
            assert found[name]["adapters"] == pytest.approx(of_one[name]["adapters"], rel=1e-4), name
        assert of_two[0][name] == of_two[1][name], "both hold the same adapters"
    assert of_two[0]["begun"]["losses"] == pytest.approx(of_one["text"]["losses"], abs=1e-5)
    assert all("2 processes were started for steps of 3 batches" in found["odd"]["error"] for found in of_two)
    interrupt(together / "text")
    resumed = healed(tiny_folder, together, {"text": {}})["text"]
    assert resumed["losses"][:2] == of_two[0]["text"]["losses"][:2], "it began anew"
    assert resumed["losses"] == pytest.approx(of_one["text"]["losses"], abs=1e-5)


def test_a_model_in_pieces_is_refused(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "ACCELERATE_USE_FSDP is set" in healed(tiny_folder, tmp_path, {"text": {}})["text"]["error"]


def test_each_of_several_processes_has_an_accelerator_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert opening.choose_device("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert opening.choose_device("auto") == "cuda:1"


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, model, out, healings = sys.argv
    (Path(out) / f"{os.environ['RANK']}.json").write_text(json.dumps(healed(model, Path(out), json.loads(healings))))
