"""Answers by another engine than our tree: what is asked, what it is given, what is kept. vLLM itself is not needed.

What it writes beside our tree and HFLM: python -m benchmarks.generation NAME --engine vllm, where it is installed.
"""

import json
import sys
import types

import pytest
from lm_eval.models.huggingface import HFLM

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import parameters as kinds
from deeper_layers.models.opening import load_model
from deeper_layers.sweeping import vllm_engine
from deeper_layers.sweeping.sweeps import sweep
from tests.test_command import said, typed

TASK = "sums_one_digit_generated"


def test_what_it_does_not_do_is_refused(tiny_folder, opened, monkeypatch):
    with pytest.raises(InputError, match="engine is 'vllm', which is not installed: pip install vllm"):
        sweep(*opened, [TASK], [Cut(1, 1)], engine="vllm")
    with pytest.raises(InputError, match="engine is 'sglang', expected None or one of 'vllm'"):
        sweep(*opened, [TASK], [Cut(1, 1)], engine="sglang")
    assert "--engine is 'vllm', which is not installed" in said("sweep", tiny_folder, "--engine", "vllm")
    assert "--engine is 'tgi', expected what writes" in said("sweep", tiny_folder, "--engine", "tgi")
    monkeypatch.setattr(vllm_engine, "check_installed", lambda engine: None)
    with pytest.raises(InputError, match="'capitals' is scored by log-likelihoods, which pruned models share"):
        sweep(*opened, ["capitals", TASK], [Cut(1, 1)], limit=2, engine="vllm")
    with pytest.raises(InputError, match="its layers are on disk: open it in a data type, and in memory"):
        sweep(*load_model(str(tiny_folder), stream=True), [TASK], [Cut(1, 1)], limit=2, engine="vllm")


def test_its_answers_are_scored_and_kept_model_by_model(tiny_folder, tmp_path, monkeypatch):
    """HFLM opens the folders here. What is kept of another engine is no result of ours, and none of the paper's."""
    asked = [tiny_folder, "--tasks", TASK, "--limit", 6, "--layers", "1", "--mlp", "3", "--results", tmp_path]
    dtypes = []

    class Stood(HFLM):
        def __init__(self, pretrained, dtype):
            if len(dtypes) == 1:
                dtypes.append(None)
                raise KeyboardInterrupt
            dtypes.append(dtype)
            super().__init__(pretrained=pretrained, batch_size=6, device="cpu")

        def generate_until(self, requests, disable_tqdm=False):
            # which vLLM writes out
            return [f"<pad>{text}<eos>" for text in super().generate_until(requests, disable_tqdm)]

    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", types.SimpleNamespace(VLLM=Stood))
    for module in (vllm_engine, kinds):
        monkeypatch.setattr(module, "check_installed", lambda engine: None)
    done = typed("sweep", *asked, "--engine", "vllm", code=130)
    assert "1/2 [" in done.stderr
    rows = json.loads(typed("sweep", *asked, "--engine", "vllm", "--json").stdout)["rows"]
    assert dtypes == ["float32", None, "float32"]  # the first was there
    ours = json.loads(typed("sweep", *asked, "--json").stdout)["rows"]
    assert [row["value"] for row in rows] == [row["value"] for row in ours]
    kinds_of = {json.loads(path.read_text())["kind"] for path in tmp_path.rglob("*.json")}
    assert kinds_of == {"scores"} and not list(tmp_path.rglob("*.npz"))
    monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("measured again"))
    assert json.loads(typed("sweep", *asked, "--engine", "vllm", "--json").stdout)["rows"] == rows
