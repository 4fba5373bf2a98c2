"""Generated answers of a family are those that lm-eval's HFLM gives for each pruned model."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.pruning import drop_layers
from deeper_layers.results.shards import Shards
from deeper_layers.sweeping.decoding import Decoding
from deeper_layers.sweeping.generation import ROWS, generate
from deeper_layers.sweeping.tree_model import TreeModel
from tests.tiny import tiny_model

LAYERS = 6
CUTS = [Cut(0, 0), Cut(1, 2), Cut(0, 1), simple_cut(LAYERS, 3), Cut(4, 2)]
EXAMPLES = "Question: What is the capital of this country?\nAnswer: The capital is here.\n\n" * 2


def requests(*, shared: bool, until=("a",), most=12, number=7):
    """Questions of different lengths, longer than the sliding windows; `shared`: after the same examples."""
    asked = []
    for i in range(number):
        beginning = EXAMPLES if shared else EXAMPLES[i * 5 :]
        context = beginning + "Question: " + "What is it? " * (i % 3) + "abcdefg"[i] * (i + 1) + "\nAnswer:"
        options = {"until": list(until), "max_gen_toks": most, "do_sample": False}
        asked.append(Instance("generate_until", {}, (context, options), i))
    return asked


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(tiny_folder)


def opened(family, tokenizer):
    """A tiny model that speaks the tokenizer's 300 tokens."""
    model = tiny_model(family, layers=LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        # a head of its own: one that is the embedding repeats the last token for ever
        model.config.tie_word_embeddings = False
        for embedding in (model.get_output_embeddings(), model.get_input_embeddings()):
            embedding.weight = torch.nn.Parameter(torch.randn_like(embedding.weight) / 2)
    model.config.max_position_embeddings = 2048
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


class Counting(HFLM):
    """HFLM, which keeps how many tokens each answer has, and whether it ended by itself."""

    def _model_generate(self, context, max_length, stop, **how):
        found = super()._model_generate(context, max_length, stop, **how)
        new = found[0, context.shape[1] :].tolist()
        ended = new[-1] == self.tokenizer.eos_token_id or any(s in self.tokenizer.decode(new) for s in stop)
        self.lengths = [*getattr(self, "lengths", []), (len(new), ended)]
        return found


def texts_of(answers):
    return [[answer.text for answer in of_cut] for of_cut in answers]


@pytest.mark.parametrize("shared", [False, True], ids=["own examples", "shared examples"])
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("gemma3", "gpt_neox"))]
)  # of every family: tests/test_families.py
def test_equals_hflm_on_each_pruned_model(family, shared, tokenizer, monkeypatch):
    model = opened(family, tokenizer)
    asked = requests(shared=shared)
    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", lambda **_: pytest.fail("left to transformers"))
        answers = generate(TreeModel(model, CUTS), tokenizer, asked)
    found = texts_of(answers)
    assert len(found) == len(CUTS)
    for cut, texts in zip(CUTS, found, strict=True):
        # one by one: padding on the left moves what a sliding window of transformers sees
        lm = Counting(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=1, max_length=1024)
        assert texts == lm.generate_until(asked, disable_tqdm=True), cut
        # HFLM asks the longest first
        of_answers = [(answer.tokens, answer.ended) for answer in answers[CUTS.index(cut)]]
        assert sorted(of_answers) == sorted(lm.lengths)
    # the answers differ between models and questions, so equality says something
    assert len({tuple(texts) for texts in found}) == len(CUTS) and len({t for texts in found for t in texts}) > 8


def test_a_limit_of_memory_makes_smaller_batches(tokenizer, monkeypatch):
    model = opened("llama", tokenizer)
    asked = requests(shared=True)
    expected = generate(TreeModel(model, CUTS), tokenizer, asked)
    seen = []
    init = Decoding.__init__
    monkeypatch.setattr(
        Decoding, "__init__", lambda self, family, prompts, most: (
            seen.append((len(family.cuts), len(prompts))), init(self, family, prompts, most))[1],
    )  # fmt: skip
    for memory in (2_000_000, 400_000):  # fewer pruned models at once, then fewer prompts too
        seen.clear()
        assert generate(TreeModel(model, CUTS), tokenizer, asked, memory=memory) == expected
        assert max(cuts for cuts, _ in seen) < len(CUTS)
    assert 1 <= max(rows for _, rows in seen) < len(asked)


def test_goes_on_from_shards(tokenizer, tmp_path, monkeypatch):
    model = opened("llama", tokenizer)
    shards, memory = Shards(tmp_path / "unit.partial"), 2_000_000  # in groups of cuts
    expected = generate(TreeModel(model, CUTS), tokenizer, requests(shared=False), shards=shards, memory=memory)
    stored = sorted((tmp_path / "unit.partial").glob("*.npz"))
    assert len(stored) > 1
    stored[1].unlink()
    written, write = [], Decoding.write
    monkeypatch.setattr(Decoding, "write", lambda self, *how: written.append(self.model.cuts) or write(self, *how))
    found = generate(TreeModel(model, CUTS), tokenizer, requests(shared=False), shards=shards, memory=memory)
    assert found == expected and len(written) == 1


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 0.5}, {"repetition_penalty": 1.5}])
def test_more_than_greedy_is_left_to_hflm(tokenizer, options, monkeypatch):
    model = opened("llama", tokenizer)
    asked = requests(shared=False, number=3)
    for instance in asked:
        instance.arguments[1].update(options)
    monkeypatch.setattr(Decoding, "write", lambda *_: pytest.fail("decoded greedily"))
    torch.manual_seed(0)
    found = generate(TreeModel(model, CUTS[:1]), tokenizer, asked)
    torch.manual_seed(0)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=ROWS)
    assert texts_of(found)[0] == lm.generate_until(asked, disable_tqdm=True)
    assert found[0][0].tokens is None


def test_a_generation_configuration_is_obeyed(tokenizer, monkeypatch):
    model = opened("llama", tokenizer)
    plain = generate(TreeModel(model, CUTS[:1]), tokenizer, requests(shared=False))
    model.generation_config.repetition_penalty = 2.0
    monkeypatch.setattr(Decoding, "write", lambda *_: pytest.fail("decoded greedily"))
    assert generate(TreeModel(model, CUTS[:1]), tokenizer, requests(shared=False)) != plain
