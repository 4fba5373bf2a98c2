"""The real model and the real data that come without a hub."""

import dataclasses

import pytest
import torch

from lib import corpora, models
from lib.errors import InputError
from lib.pruning import Cut, simple_cut
from lib.sweep import sweep


@pytest.fixture(scope="module")
def embedded():
    try:
        return models.load_model("embedded")
    except InputError as error:
        pytest.skip(f"needs a package index: {error}")


def test_is_the_real_model(embedded):
    model, tokenizer = embedded
    assert model.config.num_hidden_layers == models.EMBEDDED.num_layers == len(models.decoder_layers(model))
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith(" Paris")


def test_knows_capitals_until_layers_go(embedded):
    rows = sweep(*embedded, ["capitals"], [Cut(0, 0), simple_cut(30, 15)], limit=24)
    whole, pruned = rows["value"]
    assert whole > 0.6 > pruned


def test_damage_is_found_by_hash(tmp_path, monkeypatch, embedded):
    path = models.EMBEDDED.file()
    other = dataclasses.replace(models.EMBEDDED, sha256="0" * 64)
    with pytest.raises(InputError, match="has SHA-256"):
        models.check_hash(path, other.sha256, "the embedded model")
    with pytest.raises(InputError, match="fetch it again"):
        models.find_model(str(path), revision="0" * 64)
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="truncated"):
        models.find_model(str(damaged))


def test_embedded_items_are_whole(embedded):
    boolq, mmlu, piqa = corpora.boolq(), corpora.mmlu_sample(), corpora.piqa()
    assert (len(boolq), len(mmlu), len(piqa)) == (3270, 2850, 1500)
    # the share of "yes" that the majority-class line stands on
    assert sum(item["label"] for item in boolq) / len(boolq) == pytest.approx(0.622, abs=0.001)
    assert {len(item["choices"]) for item in mmlu} == {4} and {len(item["choices"]) for item in piqa} == {2}
    assert all(item["choices"][item["answer"]] for item in mmlu + piqa)


def test_calibration_text_holds_no_benchmark_passage(embedded):
    passages = {item["passage"] for item in corpora.boolq()}
    texts = corpora.texts("wikipedia")
    assert len(texts) > 5000 and not passages & set(texts)
