"""The real model and the real data that come without a hub."""

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import corpora
from deeper_layers.data import embedded as embedded_data
from deeper_layers.errors import InputError
from deeper_layers.models import find_sizes, opening, sources
from deeper_layers.models.half_precision import Float32Matmul
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import harness, planning
from deeper_layers.sweeping.sweeps import loglikelihoods
from deeper_layers.sweeping.tree_model import Sharing, TreeModel
from tests.mirror import write_dataset

CUTS = [Cut(0, 0), simple_cut(30, 6), Cut(4, 20)]


@pytest.fixture(scope="module")
def embedded():
    try:
        return opening.load_model("embedded")
    except InputError as error:
        pytest.skip(f"needs a package index: {error}")


def test_is_the_real_model(embedded):
    model, tokenizer = embedded
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answers = (
        each.generate(**prompt, max_new_tokens=1, do_sample=False) for each in (model, drop_layers(model, CUTS[2]))
    )
    assert [tokenizer.decode(answer[0]).endswith(" Paris") for answer in answers] == [True, False]


@pytest.mark.parametrize(
    ("name", "layers"), [("embedded", 30), ("Gemma-3-270m", 18), ("Qwen2.5-Coder-1.5B-Instruct", 28)]
)
def test_published_models_are_known_by_name_and_what_is_stated_of_them_is_true(name, layers):
    source, stated = sources.find_model(name), PACKAGED[name]
    assert (source.num_layers, source.name, source.weights) == (layers, stated.name, f"sha256:{stated.sha256}")
    if stated.path.exists():
        assert find_sizes(source).layers == find_sizes(sources.find_model(str(stated.path))).layers


def test_every_saving_is_used_in_sixteen_bits(embedded):
    """Rounding, which differs between processors, must not pass for a fault: MMLU would take ten times as long."""
    rounded = copy.deepcopy(embedded[0]).to(torch.bfloat16)
    for cuts in ([simple_cut(30, size) for size in range(29)], [Cut(2, 4)]):
        assert TreeModel(rounded, cuts).sharing == Sharing.MASKS


@pytest.mark.parametrize(("capability", "expected"), [("AVX2", 30 * 7 + 1), ("AVX512", 0)])
def test_linear_layers_are_widened_on_processors_without_arithmetic_of_sixteen_bits(
    embedded, monkeypatch, capability, expected
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model, _ = opening.load_model("embedded", dtype="bfloat16")
    for each, number in ((model, expected), (drop_layers(model, Cut(2, 4)), max(0, expected - 28))):
        assert sum(isinstance(module, Float32Matmul) for module in each.modules()) == number


@pytest.mark.thorough
def test_log_likelihoods_are_those_of_hflm(embedded, tmp_path, monkeypatch):
    """A lent beginning, its branches and the last layer in part, on the real model: within rounding."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = embedded_data.mmlu_sample()[:8]
    write_dataset(tmp_path / "mirror" / "cais" / "mmlu", "anatomy", {"dev": rows[:5], "test": rows[5:]})
    loaded = harness.load_tasks(["mmlu_anatomy"], num_fewshot=5, datasets=str(tmp_path / "mirror"))
    asked = harness.collect_requests(loaded, *embedded, limit=2)
    monkeypatch.setattr(planning, "SHARED_BY", 2)  # a beginning is lent though few share it
    family = TreeModel(embedded[0], CUTS)
    assert family.sharing == Sharing.MASKS
    assert any(batch.prefix for batch in planning.plan_batches(asked.requests))
    found, _ = loglikelihoods(family, asked.requests)
    for cut, ours in zip(CUTS, found, strict=True):
        lm = HFLM(pretrained=drop_layers(embedded[0], cut), tokenizer=embedded[1], batch_size=4)
        theirs = [logprob for logprob, _ in lm.loglikelihood(asked.instances, disable_tqdm=True)]
        # a sum of many tokens of a ruined model reaches -858 nats, where float32 itself is that coarse
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=5e-6)


def test_embedded_items_are_those_that_were_measured(embedded):
    items = [embedded_data.boolq(), embedded_data.mmlu_sample(), embedded_data.piqa()]
    digest = hashlib.sha256(json.dumps(items, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    assert [len(one) for one in items] == [3270, 2850, 1500] and digest[:16] == "03dd7a3da4a5bd12"


@pytest.mark.parametrize(("corpus", "holds"), [("wikipedia", " "), ("code", "\n")])
def test_text_to_calibrate_on_is_no_text_to_measure_on(corpus, holds, embedded):
    train, validation = (corpora.texts(corpus, split=split) for split in ("train", "validation"))
    assert len(train) > 4 * len(validation) - 5 > 400 and all(holds in text for text in train)
    assert not {*train, *(item["passage"] for item in embedded_data.boolq())} & set(validation)
