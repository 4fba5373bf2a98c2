"""Healing by two processes (torchrun, gloo) beside one: the same losses, and each goes on where the other stopped."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from deeper_layers.models import devices
from deeper_layers.results.places import AROUND as ROOT
from tests.distributed import healed

WAYS = {
    "text": {},
    "packed, checkpointed": {"packed": True, "gradient_checkpointing": True},
    "distilled": {"objective": "distill"},
    "auxiliary": {"auxiliary": 0.5},
    "above": {"adapters": "above"},
}
REFUSED = {"odd": {"batch_sequences": 3}}


@pytest.fixture(scope="module")
def both(tiny_folder, tmp_path_factory):
    """The folders and the results of one process, and of each of two; "begun" was begun by the other."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    of_one = healed(str(tiny_folder), alone, WAYS)
    healed(str(tiny_folder), together, {"begun": {}})
    interrupt(together / "begun")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [str(tiny_folder), str(together), json.dumps(WAYS | {"begun": {}} | REFUSED)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'lib'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*start, "-m", "tests.distributed", *words], cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return together, of_one, [json.loads((together / f"{rank}.json").read_text()) for rank in (0, 1)]


def interrupt(folder) -> None:
    """As if it had been killed before its last checkpoint."""
    (path,) = folder.rglob("checkpoint-4")
    shutil.rmtree(path)


@pytest.mark.thorough
def test_two_processes_give_the_losses_of_one_and_each_goes_on_where_the_other_stopped(both, tiny_folder):
    together, of_one, of_two = both
    for name in WAYS:
        for found in of_two:
            assert len(found[name]["losses"]) == 4 and found[name]["tokens"] == of_one[name]["tokens"]
            assert found[name]["losses"] == pytest.approx(of_one[name]["losses"], abs=1e-5), name
            assert found[name]["adapters"] == pytest.approx(of_one[name]["adapters"], rel=1e-4), name
        assert of_two[0][name] == of_two[1][name], "both hold the same adapters"
    assert of_two[0]["begun"]["losses"] == pytest.approx(of_one["text"]["losses"], abs=1e-5)
    interrupt(together / "text")
    resumed = healed(str(tiny_folder), together, {"text": {}})["text"]
    assert resumed["losses"][:2] == of_two[0]["text"]["losses"][:2], "it began anew"
    assert resumed["losses"] == pytest.approx(of_one["text"]["losses"], abs=1e-5)
    assert all("2 processes were started for steps of 3 batches" in found["odd"]["error"] for found in of_two)


def test_a_model_in_pieces_is_refused(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "ACCELERATE_USE_FSDP is set" in healed(str(tiny_folder), tmp_path, {"text": {}})["text"]["error"]


def test_each_of_several_processes_has_an_accelerator_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.choose_device("auto") == "cuda:1"
