"""Generated answers are those of lm-eval's HFLM on each pruned model. Of every family: tests/test_families.py."""

import contextlib
import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import generation
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
        question = "What is it? " * (i % 3) + "abcdefg"[i % 7] * (i + 1)
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


def test_a_stop_string_within_a_token_ends_an_answer_where_hflm_ends_it(opened):
    """Tokens of several letters, as those of real tokenizers: the string is neither their beginning nor their end."""
    (model, tokenizer), free = opened, requests(until=["<eos>"], max_gen_toks=12)
    texts = [answer.text for answers in generate(TreeModel(model, CUTS), tokenizer, free) for answer in answers]
    written = {token for text in texts for token in tokenizer.tokenize(text)}
    inner = sorted({token[1:-1] for token in written if len(token) > 2 and token.isascii() and token.isalpha()})
    assert inner, "a token of three letters"
    asked = requests(until=inner, max_gen_toks=12)
    found = generate(TreeModel(model, CUTS), tokenizer, asked)
    for cut, answers in zip(CUTS, found, strict=True):
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=1, max_length=1024)
        assert [answer.text for answer in answers] == lm.generate_until(asked, disable_tqdm=True), cut
    shorter = [(one.tokens, one.ended) for answers in found for one in answers if one.tokens < 12]
    assert shorter and all(ended for _, ended in shorter)


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


def test_a_kill_loses_one_part_and_nothing_is_written_twice(opened, tmp_path, monkeypatch):
    """On a processor a part has few answers, whatever memory holds."""
    (model, tokenizer), asked = opened, requests(number=13)
    how, shards, written = (TreeModel(model, CUTS), tokenizer, asked), Shards(tmp_path / "unit.partial"), []
    expected, write = generate(*how), Decoding.write
    monkeypatch.setattr(generation, "PART_OPERATIONS", 0)
    monkeypatch.setattr(generation, "LEAST_ANSWERS", 12)

    def killed_once(self, *given):
        if len(written) == 4:
            written.append(0)
            raise KeyboardInterrupt
        written.append(len(self.all_models) * len(self.prompts))
        return write(self, *given)

    monkeypatch.setattr(Decoding, "write", killed_once)
    with pytest.raises(KeyboardInterrupt):
        generate(*how, shards=shards)
    assert generate(*how, shards=shards) == expected
    assert max(written) <= 12 and sum(written) == len(CUTS) * len(asked), "none of them twice"


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


SETTINGS = {  # a value for each entry of a generation configuration that asks for something
    "max_length": 40, "max_new_tokens": 2, "min_length": 60, "min_new_tokens": 5, "early_stopping": True,
    "max_time": 60.0, "stop_strings": ["e"], "do_sample": True, "num_beams": 2, "use_mtp": True, "use_cache": False,
    "cache_implementation": "static", "cache_config": {"backend": "quanto"}, "max_cache_len": 9, "temperature": 0.5,
    "top_k": 2, "top_p": 0.5, "min_p": 0.2, "top_h": 0.4, "typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1,
    "repetition_penalty": 1.5, "encoder_repetition_penalty": 1.5, "length_penalty": 2.0, "no_repeat_ngram_size": 2,
    "bad_words_ids": [[70]], "renormalize_logits": True, "forced_bos_token_id": 5, "forced_eos_token_id": 6,
    "remove_invalid_values": True, "exponential_decay_length_penalty": (2, 1.5), "suppress_tokens": [70],
    "begin_suppress_tokens": [70], "sequence_bias": [[[70], -9.0]], "token_healing": True, "guidance_scale": 2.0,
    "watermarking_config": {"bias": 2.0}, "num_return_sequences": 2, "output_attentions": True,
    "output_hidden_states": True, "output_scores": True, "output_logits": True, "return_dict_in_generate": True,
    "pad_token_id": 7, "bos_token_id": 7, "eos_token_id": [*range(100)], "encoder_no_repeat_ngram_size": 2,
    "decoder_start_token_id": 7, "is_assistant": True, "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.5, "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 2, "assistant_early_exit": 2, "assistant_lookbehind": 2, "target_lookbehind": 2,
    "assistant_ensemble_weight": 0.5, "speculation_type": "ngram", "compile_config": {"dynamic": True},
    "disable_compile": True, "continuous_batching_config": {"block_size": 9}, "low_memory": True, "penalty_alpha": 0.6,
    "dola_layers": "high", "diversity_penalty": 0.5, "num_beam_groups": 2, "constraints": [1],
    "force_words_ids": [[70]], "prefill_chunk_size": 2, "_from_model_config": True, "transformers_version": "4.0.0",
}  # fmt: skip


def test_every_entry_of_a_generation_configuration_is_tried():
    assert GenerationConfig().to_dict().keys() <= SETTINGS.keys()


@pytest.mark.filterwarnings("ignore")  # of transformers, about what it is asked for here
@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_hflm_under_any_generation_configuration_or_its_entry_is_named(name, opened):
    model, tokenizer = copy.deepcopy(opened[0]), opened[1]
    setattr(model.generation_config, name, SETTINGS[name])
    asked, expected = requests(number=2), None
    torch.manual_seed(0)
    with contextlib.suppress(Exception):  # whatever a library raises for what it can't do
        expected = HFLM(copy.deepcopy(model), tokenizer=tokenizer, batch_size=1).generate_until(asked, True)
    torch.manual_seed(0)
    if expected is None:
        with pytest.raises(InputError, match=f"generation_config has .*{name}.*, which lm-eval's HFLM or this model"):
            generate(TreeModel(model, CUTS[:1]), tokenizer, asked)
    else:
        assert [answer.text for answer in generate(TreeModel(model, CUTS[:1]), tokenizer, asked)[0]] == expected


def test_an_interrupted_model_by_model_run_goes_on(opened, tmp_path, monkeypatch):
    model, tokenizer = copy.deepcopy(opened[0]), opened[1]
    model.generation_config.repetition_penalty = 1.5
    how, shards = (TreeModel(model, CUTS[:3]), tokenizer, requests(number=3)), Shards(tmp_path / "unit.partial")
    expected, models, write = generate(*how), [], HFLM.generate_until
    monkeypatch.setattr(generation, "LEAST_ROWS", 2)  # two parts a model

    def interrupted_once(self, *given, **options):
        if type(self) is not HFLM:  # what records the requests
            return write(self, *given, **options)
        models.append(self.model)
        if len(models) == 4:
            raise KeyboardInterrupt
        return write(self, *given, **options)

    monkeypatch.setattr(HFLM, "generate_until", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        generate(*how, shards=shards)
    assert generate(*how, shards=shards) == expected
    assert len(models) == 7, "three of six parts were there"
