"""Generated answers are those that lm-eval's HFLM gives for each pruned model, of our tree and of another engine.

Of every family: tests/test_families.py. vLLM itself is not needed: what it writes beside our tree and HFLM says
`python -m benchmarks.generation NAME --engine vllm`.
"""

import copy
import json
import sys
import types

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.models.opening import load_model
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import vllm_engine
from deeper_layers.sweeping.generation import ROWS, Decoding, generate
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.sweeps import sweep
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers_companion.experiments import parameters as kinds
from tests.test_command import said, typed

TASK = "sums_one_digit_generated"
CUTS = [Cut(0, 0), Cut(1, 2), Cut(0, 1), simple_cut(5, 3), Cut(3, 2)]
EXAMPLES = "Question: What is the capital of this country?\nAnswer: The capital is here.\n\n" * 2


def requests(*, shared=False, number=7, **options):
    """Questions of different lengths, longer than the sliding windows; `shared`: after the same examples."""
    options = {"until": ["a"], "max_gen_toks": 12, "do_sample": False} | options
    asked = []
    for i in range(number):
        question = "What is it? " * (i % 3) + "abcdefg"[i] * (i + 1)
        context = f"{EXAMPLES if shared else EXAMPLES[i * 5 :]}Question: {question}\nAnswer:"
        asked.append(Instance("generate_until", {}, (context, options), i))
    return asked


@pytest.fixture
def written(monkeypatch):
    """Of each batch that the tree wrote how many models and how many prompts."""
    found, write = [], Decoding.write

    def counted(self, *how):
        found.append((len(self.all_models), len(self.prompts)))
        return write(self, *how)

    monkeypatch.setattr(Decoding, "write", counted)
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["own examples", "shared examples"])
def test_equals_hflm_on_each_pruned_model(shared, opened, monkeypatch):
    (model, tokenizer), asked = opened, requests(shared=shared)
    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", lambda **_: pytest.fail("left to transformers"))
        found = generate(TreeModel(model, CUTS), tokenizer, asked)
    for cut, answers in zip(CUTS, found, strict=True):
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=1, max_length=1024)
        assert [answer.text for answer in answers] == lm.generate_until(asked, disable_tqdm=True), cut
    every = [answer for answers in found for answer in answers]
    assert all(answer.tokens == 12 if not answer.ended else 1 <= answer.tokens <= 12 for answer in every)
    # the answers differ between models and questions, so equality says something
    assert len(set(map(str, found))) == len(CUTS) and len({answer.text for answer in every}) > 8
    assert {answer.ended for answer in every} == {True, False}


def test_little_memory_makes_smaller_batches_and_what_is_kept_is_not_written_again(opened, written, tmp_path):
    (model, tokenizer), asked = opened, requests(shared=True)
    how, shards = (TreeModel(model, CUTS), tokenizer, asked), Shards(tmp_path / "unit.partial")
    expected = generate(*how)
    assert set(written) == {(len(CUTS), len(asked))}
    assert generate(*how, memory=2_000_000, shards=shards) == expected
    assert max(written[1:])[0] < len(CUTS), "fewer models"
    next((tmp_path / "unit.partial").glob("*.npz")).unlink()
    written.clear()
    assert generate(*how, memory=2_000_000, shards=shards) == expected and len(written) == 1
    written.clear()
    found = generate(how[0], tokenizer, asked[::-1], memory=400_000)
    assert [answers[::-1] for answers in found] == expected, "each has its own length"
    assert max(rows for _, rows in written) < len(asked), "fewer prompts too"


@pytest.mark.parametrize("asks", ["task", "model"])
def test_more_than_greedy_is_left_to_hflm(asks, opened, written):
    model, tokenizer = copy.deepcopy(opened[0]), opened[1]
    options = {"do_sample": True, "temperature": 0.5} if asks == "task" else {}
    model.generation_config.repetition_penalty = 1.5 if asks == "model" else None
    asked, texts = requests(number=3, **options), []
    rows = 1 if asks == "model" else ROWS  # a penalty would see the padding
    for write in (
        lambda: [answer.text for answer in generate(TreeModel(model, CUTS[:1]), tokenizer, asked)[0]],
        lambda: HFLM(model, tokenizer=tokenizer, batch_size=rows).generate_until(asked, disable_tqdm=True),
    ):
        torch.manual_seed(0)
        texts.append(write())
    assert texts[0] == texts[1] and not written


# ---- by another engine


def test_what_another_engine_does_not_do_is_refused(tiny_folder, opened, monkeypatch):
    def refused(words, model=opened, tasks=(TASK,), engine="vllm"):
        with pytest.raises(InputError, match=words):
            sweep(*model, list(tasks), [Cut(1, 1)], limit=2, engine=engine)

    assert "--engine is 'tgi', expected one of vllm, or none" in said("sweep", tiny_folder, "--engine", "tgi")
    refused("engine is 'sglang', expected None or one of 'vllm'", engine="sglang")
    refused("engine is 'vllm', which is not installed: pip install vllm")
    monkeypatch.setattr(vllm_engine, "check_installed", lambda engine: None)
    refused("'capitals' is scored by log-likelihoods: leave it out", tasks=["capitals", TASK])
    refused("or its layers on disk: leave it out", load_model(str(tiny_folder), stream=True))


def test_its_answers_are_scored_and_kept_model_by_model(tiny_folder, tmp_path, monkeypatch):
    """HFLM opens the folders here."""
    asked = ["sweep", tiny_folder, "--tasks", TASK, "--limit", 6, "--layers", "1", "--mlp", "3", "--results", tmp_path]
    dtypes = []

    class Stood(HFLM):
        def __init__(self, pretrained, dtype):
            dtypes.append(dtype)
            if len(dtypes) == 2:
                raise KeyboardInterrupt
            super().__init__(pretrained=pretrained, batch_size=6, device="cpu")

        def generate_until(self, requests, disable_tqdm=False):
            # which vLLM writes out
            return [f"<pad>{text}<eos>" for text in super().generate_until(requests, disable_tqdm)]

    def rows(*words):
        return json.loads(typed(*asked, *words, "--json").stdout)["rows"]

    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", types.SimpleNamespace(VLLM=Stood))
    for module in (vllm_engine, kinds):
        monkeypatch.setattr(module, "check_installed", lambda engine: None)
    assert "1/2 [" in typed(*asked, "--engine", "vllm", code=130).stderr
    found = rows("--engine", "vllm")
    assert dtypes == ["float32"] * 3, "the first was there"
    assert [row["value"] for row in found] == [row["value"] for row in rows()]
    assert not list(tmp_path.rglob("*.npz"))
    monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("measured again"))
    assert rows("--engine", "vllm") == found
