"""The real model and the real data that come without a hub."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import corpora
from deeper_layers.data import embedded as embedded_data
from deeper_layers.errors import InputError
from deeper_layers.models import decoder, opening, packaged, sources
from deeper_layers.models.half_precision import Widened
from deeper_layers.models.sizes import sizes_of
from deeper_layers.pruning import drop_layers
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.sweeping import harness, planning
from deeper_layers.sweeping.sweeps import loglikelihoods, plan_requests, sweep
from deeper_layers.sweeping.tree_model import TreeModel
from deeper_layers.sweeping.trial import Sharing


@pytest.fixture(scope="module")
def embedded():
    try:
        return opening.load_model("embedded")
    except InputError as error:
        pytest.skip(f"needs a package index: {error}")


def test_is_the_real_model(embedded):
    model, tokenizer = embedded
    assert model.config.num_hidden_layers == packaged.EMBEDDED.num_layers == len(decoder.decoder_layers(model))
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith(" Paris")


def test_parameters_of_its_parts_are_those_of_the_model_and_of_its_file(embedded):
    whole, *layers = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (embedded[0], *decoder.decoder_layers(embedded[0]))
    )
    found = sizes_of(sources.find_model("embedded"))
    assert found.layers == tuple(layers) and found.rest == whole - sum(layers)
    for model in (packaged.EMBEDDED, packaged.GEMMA, packaged.QWEN):
        if model.path.exists():
            stated, of_file = (sizes_of(sources.find_model(name)) for name in (model.name, str(model.path)))
            assert stated.layers == of_file.layers


def test_knows_capitals_until_layers_go(embedded):
    rows = sweep(*embedded, ["capitals"], [Cut(0, 0), simple_cut(30, 15)], limit=24)
    whole, pruned = rows["value"]
    assert whole > 0.6 > pruned


def test_every_saving_is_used_in_sixteen_bits(embedded):
    """Rounding, which differs between processors, must not pass for a fault: MMLU would take ten times as long."""
    rounded = copy.deepcopy(embedded[0]).to(torch.bfloat16)
    for cuts in ([simple_cut(30, size) for size in range(29)], [Cut(2, 4)]):
        assert TreeModel(rounded, cuts).sharing == Sharing.MASKS


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_linear_layers_are_widened_on_processors_without_arithmetic_of_sixteen_bits(embedded, monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model, _ = opening.load_model("embedded", dtype="bfloat16")
    expected = 30 * 7 + 1 if capability == "AVX2" else 0
    assert sum(isinstance(module, Widened) for module in model.modules()) == expected
    whole = drop_layers(model, Cut(2, 4))
    assert sum(isinstance(module, Widened) for module in whole.modules()) == max(0, expected - 28)


CUTS = [Cut(0, 0), simple_cut(30, 6), Cut(4, 20)]
SHARED = ROOT.parent / "shared" / "datasets"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tasks", "shots", "items"),
    [(["capitals", "sums_two_digits", "embedded_piqa"], None, 3), (["mmlu_anatomy"], 5, 2)],
    ids=["own", "mmlu"],
)
def test_log_likelihoods_are_those_of_hflm(embedded, tasks, shots, items, monkeypatch):
    """Branches, a lent beginning and the last layer in part, on the real model: within rounding, no answer differs."""
    if tasks == ["mmlu_anatomy"] and not SHARED.is_dir():
        pytest.skip("needs ../shared/datasets")
    loaded = harness.load_tasks(tasks, num_fewshot=shots, datasets=str(SHARED) if SHARED.is_dir() else None)
    asked = harness.collect_requests(loaded, *embedded, limit=items)
    monkeypatch.setattr(planning, "SHARED_BY", items)  # a beginning is lent though few share it
    family = TreeModel(embedded[0], CUTS)
    plan = plan_requests(family, asked.requests)
    assert family.sharing == Sharing.MASKS
    assert any(piece.prefix for piece in plan.pieces) == bool(shots)
    found, _ = loglikelihoods(family, asked.requests)
    for cut, ours in zip(CUTS, found, strict=True):
        lm = HFLM(pretrained=drop_layers(embedded[0], cut), tokenizer=embedded[1], batch_size=4)
        theirs = np.array([logprob for logprob, _ in lm.loglikelihood(asked.instances, disable_tqdm=True)])
        # a sum of many tokens of a ruined model reaches -858 nats, where float32 itself is that coarse
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=5e-6)
        answers = pd.DataFrame({"item": [(i.task_name, i.doc_id) for i in asked.instances], "a": ours, "b": theirs})
        for _, choices in answers.groupby("item"):
            assert choices["a"].argmax() == choices["b"].argmax()


def test_embedded_items_are_whole(embedded):
    boolq, mmlu, piqa = embedded_data.boolq(), embedded_data.mmlu_sample(), embedded_data.piqa()
    assert (len(boolq), len(mmlu), len(piqa)) == (3270, 2850, 1500)
    # the share of "yes" that the majority-class line stands on
    assert sum(item["label"] for item in boolq) / len(boolq) == pytest.approx(0.622, abs=0.001)
    assert {len(item["choices"]) for item in mmlu} == {4} and {len(item["choices"]) for item in piqa} == {2}
    assert all(item["choices"][item["answer"]] for item in mmlu + piqa)


def test_calibration_text_holds_no_benchmark_passage(embedded):
    passages = {item["passage"] for item in embedded_data.boolq()}
    texts = corpora.texts("wikipedia")
    assert len(texts) > 5000 and not passages & set(texts)


def test_published_models_are_known_by_name():
    for name, layers in (("Gemma-3-270m", 18), ("Qwen2.5-Coder-1.5B-Instruct", 28), ("embedded", 30)):
        source = sources.find_model(name)
        assert source.num_layers == layers and source.name == packaged.PACKAGED[name].name
        assert source.weights == f"sha256:{packaged.PACKAGED[name].sha256}"
