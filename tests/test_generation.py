"""Generated answers are those of lm-eval's HFLM on each pruned model. Of every family: tests/test_families.py."""

import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping.generation import ROWS, Decoding, generate
from deeper_layers.sweeping.shards import Shards
from deeper_layers.sweeping.tree_model import TreeModel

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


def test_an_interrupted_model_by_model_run_goes_on(opened, tmp_path, monkeypatch):
    model, tokenizer = copy.deepcopy(opened[0]), opened[1]
    model.generation_config.repetition_penalty = 1.5
    how, shards = (TreeModel(model, CUTS[:3]), tokenizer, requests(number=3)), Shards(tmp_path / "unit.partial")
    expected, models, write = generate(*how), [], HFLM.generate_until

    def interrupted_once(self, *given, **options):
        if type(self) is not HFLM:  # what records the requests
            return write(self, *given, **options)
        models.append(self.model)
        if len(models) == 2:
            raise KeyboardInterrupt
        return write(self, *given, **options)

    monkeypatch.setattr(HFLM, "generate_until", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        generate(*how, shards=shards)
    assert generate(*how, shards=shards) == expected
    assert len(models) == 4, "the first was there"
