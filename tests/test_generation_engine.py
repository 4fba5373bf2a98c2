"""Answers by another engine than our tree: what is asked, what it is given, what is kept. vLLM itself is not needed.

What it writes beside our tree and HFLM: python -m benchmarks.generation NAME --engine vllm, where it is installed.
"""

import json

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import parameters as kinds
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import silence_sublayers
from deeper_layers.sweeping import vllm_engine
from deeper_layers.sweeping.sweeps import sweep
from tests.test_command import said, typed

TASK = "sums_one_digit_generated"
CUT = Cut.of([1], mlp=[3])


@pytest.fixture
def opened(tiny_folder):
    return load_model(str(tiny_folder))


@pytest.fixture
def installed(monkeypatch):
    """As where vLLM is installed."""
    for module in (vllm_engine, kinds):
        monkeypatch.setattr(module, "check_installed", lambda engine: None)


def test_an_engine_that_is_not_installed_is_refused(opened, tiny_folder):
    with pytest.raises(InputError, match="engine is 'vllm', which is not installed: pip install vllm"):
        sweep(*opened, [TASK], [CUT], engine="vllm")
    with pytest.raises(InputError, match="engine is 'sglang', expected None or one of 'vllm'"):
        sweep(*opened, [TASK], [CUT], engine="sglang")
    assert "--engine is 'vllm', which is not installed" in said("sweep", tiny_folder, "--engine", "vllm")
    assert "--engine is 'tgi', expected one of none, 'vllm'" in said("sweep", tiny_folder, "--engine", "tgi")


def test_what_it_does_not_do_is_refused(opened, tiny_folder, installed):
    with pytest.raises(InputError, match="'capitals' is scored by log-likelihoods, which pruned models share"):
        sweep(*opened, ["capitals", TASK], [CUT], limit=2, engine="vllm")
    with pytest.raises(InputError, match="its layers are on disk: open it in a data type, and in memory"):
        sweep(*load_model(str(tiny_folder), stream=True), [TASK], [CUT], limit=2, engine="vllm")


def test_the_folder_that_it_opens_is_the_pruned_model(opened, tmp_path):
    vllm_engine.save_pruned(*opened, CUT, tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("The capital of", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
        assert torch.equal(found, silence_sublayers(opened[0], CUT)(ids).logits)


def test_special_tokens_are_left_out_of_its_answers_as_hflm_leaves_them_out(opened):
    _, tokenizer = opened
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    ids = [*tokenizer(" 16.")["input_ids"], special[0], *tokenizer(" A <b> c")["input_ids"], special[-1]]
    written = tokenizer.decode(ids, skip_special_tokens=False)
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    assert vllm_engine.without_special_tokens(tokenizer, written) == plain != written


def test_its_answers_are_scored_and_kept_model_by_model(tiny_folder, tmp_path, installed, monkeypatch):
    """HFLM opens the folders here. What is kept of another engine is no unit of ours, and none of the paper's."""
    asked = [tiny_folder, "--tasks", TASK, "--limit", 6, "--rules", "simple", "--sizes", "0-1", "--results", tmp_path]
    dtypes = []

    def generated(folder, dtype, instances):
        if len(dtypes) == 1:
            dtypes.append(None)
            raise KeyboardInterrupt
        dtypes.append(dtype)
        return HFLM(pretrained=str(folder), batch_size=6, device="cpu").generate_until(instances, disable_tqdm=True)

    monkeypatch.setattr(vllm_engine, "_generated", generated)
    done = typed("sweep", *asked, "--engine", "vllm", code=130)
    assert "vllm: 1 of 2 pruned models" in done.stderr
    rows = json.loads(typed("sweep", *asked, "--engine", "vllm", "--json").stdout)["rows"]
    assert dtypes == ["float32", None, "float32"]  # the first was there
    ours = json.loads(typed("sweep", *asked, "--json").stdout)["rows"]
    assert [row["value"] for row in rows] == [row["value"] for row in ours]
    kinds_of = {json.loads(path.read_text())["kind"] for path in tmp_path.rglob("*.json")}
    assert kinds_of == {"scores"} and not list(tmp_path.rglob("*.npz"))
    monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("measured again"))
    assert json.loads(typed("sweep", *asked, "--engine", "vllm", "--json").stdout)["rows"] == rows
