"""Benchmark items, text, and the mirror they are read from."""

import csv
import hashlib
import json
import shutil

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Config

from deeper_layers.cuts import Cut
from deeper_layers.data import corpora, embedded, hub
from deeper_layers.data.tokens import sequences, text_batches
from deeper_layers.errors import InputError
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.models.opening import load_model
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import sweep

SHARED_MIRROR = ROOT.parent / "shared" / "datasets"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No hub, no mirror unless named, and a cache of data sets of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("DATASETS_MIRROR", raising=False)


# --- items -----------------------------------------------------------------------------------------------


def test_items_have_a_version():
    """Units in results/ are keyed by ITEMS_VERSION: raise it, and set the hash anew, when this fails."""
    items = [embedded.capitals(), embedded.sums(1), embedded.sums(2)]
    digest = hashlib.sha256(json.dumps(items, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    assert (embedded.ITEMS_VERSION, digest[:16]) == (1, "c8cf1ab8eabc7896"), "raise ITEMS_VERSION in data/embedded.py"


def test_fingerprint_follows_items_and_task(tmp_path, monkeypatch):
    first = embedded.embedded_fingerprint("capitals")
    assert embedded.embedded_fingerprint("capitals") == first != embedded.embedded_fingerprint("sums_one_digit")
    monkeypatch.setattr(embedded, "TASKS", shutil.copytree(embedded.TASKS, tmp_path / "tasks"))
    assert embedded.embedded_fingerprint("capitals") == first
    prompt = tmp_path / "tasks" / "capitals.yaml"
    prompt.write_text(prompt.read_text().replace("Question:", "Q:"))
    assert embedded.embedded_fingerprint("capitals") != first


def test_capitals():
    with open(embedded.TASKS / "capitals.csv", encoding="utf-8") as file:
        countries = {row["country"]: row for row in csv.DictReader(file)}
    items = embedded.capitals()
    assert len(items) == len(countries) > 150 and {item["country"] for item in items} == set(countries)
    continent = {row["capital"]: row["continent"] for row in countries.values()}
    assert len(continent) == len(countries)  # no capital twice, so no question has two right answers
    for item in items:
        row = countries[item["country"]]
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["answer"]] == row["capital"]
        assert {continent[choice] for choice in item["choices"]} == {row["continent"]}
    # neither the place of the answer nor the order of the items gives anything away
    assert np.bincount([item["answer"] for item in items], minlength=4).min() > len(items) / 6
    assert len({countries[item["country"]]["continent"] for item in items[:12]}) > 3


@pytest.mark.parametrize(("digits", "number"), [(1, 81), (2, 400)])
def test_sums(digits, number):
    items = embedded.sums(digits)
    assert len(items) == len({(item["a"], item["b"]) for item in items}) == number
    for item in items:
        assert len(str(item["a"])) == len(str(item["b"])) == digits
        assert item["choices"][item["answer"]] == item["sum"] == str(item["a"] + item["b"])
        assert len(set(item["choices"])) == 4 and all(int(choice) > 0 for choice in item["choices"])
    assert np.bincount([item["answer"] for item in items], minlength=4).min() > number / 8


def test_every_embedded_task_is_known_without_a_hub(offline):
    assert {"capitals", "sums", "sums_generated", "embedded_mmlu"} <= set(embedded.embedded_tasks())
    loaded = harness.load_tasks(["capitals", "sums"])
    assert set(loaded["tasks"]) == {"capitals", "sums_one_digit", "sums_two_digits"}


# --- text ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def documents():
    draw = np.random.default_rng(0)
    return ["", "x", *("".join(draw.choice(list("abc de"), size)) for size in draw.integers(2, 200, 300))]


def rows_of(batches):
    """The sequences of some batches, without their padding."""
    pairs = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def test_text_comes_in_full_batches_with_little_padding(tokenizer, documents):
    batches = text_batches(tokenizer, documents, samples=200, length=150, batch_tokens=2000)
    for batch in batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ids.shape == mask.shape and ids.numel() <= 2000
        assert mask.sum(dim=1).max() == mask.shape[1]  # no column of padding alone
        assert (mask.diff(dim=1) <= 0).all()  # padded on the right
    found = rows_of(batches)
    lengths = [len(row) for row in found]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == 200
    assert max(lengths) == 150 and min(lengths) > 1
    assert sum(lengths) > 0.9 * sum(batch["input_ids"].numel() for batch in batches)  # 0.63 in the order of the draw
    # each is a document of its own, cut after so many tokens
    expected = [tokenizer(document)["input_ids"][:150] for document in documents]
    assert all(row in expected for row in found) and len({tuple(row) for row in found}) > 190


def test_the_same_seed_draws_the_same_text(tokenizer, documents):
    def draw(**options):
        return rows_of(text_batches(tokenizer, documents, **{"samples": 50, "length": 64} | options))

    assert draw() == draw(seed=0) != draw(seed=1)
    # how they are batched does not change which are drawn, and fewer are some of the same
    assert sorted(draw(batch_tokens=1)) == sorted(draw(batch_tokens=100_000)) == sorted(draw())
    assert all(row in draw() for row in draw(samples=20))


def test_too_little_text_is_one_line(tokenizer, documents, tiny_folder, tmp_path, monkeypatch):
    usable = len(documents) - 2  # neither the empty one nor the one of a single token
    assert len(rows_of(text_batches(tokenizer, documents, samples=usable, length=9))) == usable
    with pytest.raises(InputError, match=f"samples is {usable + 1}, but the corpus has {usable} usable documents"):
        text_batches(tokenizer, documents, samples=usable + 1, length=9)
    # what transformers opens for a folder that lacks the tokenizer's files, of most families
    GPT2Config(n_layer=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="knows no words: its files, like tokenizer.json, are missing"):
        sequences(AutoTokenizer.from_pretrained(tmp_path), documents, length=9)
    # before the model is opened
    monkeypatch.setattr("deeper_layers.data.texts", lambda *_, **__: ["a text"] * 3)
    parameters = Parameters(model=str(tiny_folder), samples=4, results=str(tmp_path / "results"))
    with pytest.raises(InputError, match="samples is 4, but the corpus has 3 documents: ask for fewer"):
        measure_distances(Experiment(parameters, opened=lambda: pytest.fail("opened")))


def test_code_and_problems_are_texts_too():
    """A text for every key: the modules of a wheel, the problems of a mirror."""
    train, validation = (corpora.texts("code", split=split) for split in ("train", "validation"))
    assert len(train) > 4 * len(validation) - 5 > 400 and not set(train) & set(validation)
    assert all("import" in text or "def " in text or "class " in text for text in validation[:20])
    assert corpora.text_fingerprint("code").startswith("sympy 1.14.0, sha256:e091cc3e")


# --- mirror ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_mirror(tmp_path):
    """A folder laid out as the hub is, with one data set."""
    c4 = tmp_path / "mirror" / "allenai" / "c4"
    (c4 / "en").mkdir(parents=True)
    files = ""
    for split, numbers in (("train", range(2)), ("validation", range(2, 5))):
        lines = [json.dumps({"text": f"Document {i} of a corpus.", "url": ""}) for i in numbers]
        (c4 / "en" / f"{split}.jsonl").write_text("\n".join(lines))
        files += f"  - split: {split}\n    path: en/{split}.jsonl\n"
    (c4 / "README.md").write_text(f"---\nconfigs:\n- config_name: en\n  data_files:\n{files}---\n")
    return tmp_path / "mirror"


def test_data_is_read_from_a_mirror_and_anew_where_it_changed(offline, small_mirror, tmp_path, monkeypatch):
    """The cache of `datasets` takes folders of one name and README for the same, whatever their data."""
    load = datasets.load_dataset
    assert corpora.texts("c4", datasets=str(small_mirror)) == [f"Document {i} of a corpus." for i in (2, 3, 4)]
    assert len(corpora.texts("c4", split="train", datasets=str(small_mirror))) == 2
    first = corpora.text_fingerprint("c4", datasets=str(small_mirror))
    other = shutil.copytree(small_mirror, tmp_path / "other")
    assert corpora.text_fingerprint("c4", datasets=str(other)) == first  # the same text, wherever it lies
    for mirror in (other, small_mirror):
        with (mirror / "allenai" / "c4" / "en" / "validation.jsonl").open("a") as file:
            file.write(f'\n{{"text": "One more, in {mirror.name}.", "url": ""}}')
        monkeypatch.setenv("DATASETS_MIRROR", str(mirror))  # named by the variable just as by the parameter
        assert corpora.texts("c4")[3:] == [f"One more, in {mirror.name}."]
        assert corpora.text_fingerprint("c4") != first
    with pytest.raises(InputError, match="'/none', which is no folder"), hub.mirrored("/none"):
        pytest.fail("no such folder")
    with pytest.raises(InputError, match=r"can't read the data of it \(.*\): connect to the hub, or name a mirror"):
        with hub.mirrored(str(small_mirror)), hub.reachable("it"):
            datasets.load_dataset("someone/else")
    assert datasets.load_dataset is load


@pytest.mark.parametrize("content", ["\x00\xff{{", '{"url": "x"}', ""], ids=["garbage", "no text", "empty"])
def test_a_spoilt_mirror_is_one_line(content, offline, small_mirror):
    (small_mirror / "allenai" / "c4" / "en" / "validation.jsonl").write_text(content)
    with pytest.raises(InputError, match="c4") as caught:
        corpora.texts("c4", datasets=str(small_mirror))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SHARED_MIRROR.is_dir(), reason="no mirror of the hub at ../shared/datasets")
@pytest.mark.thorough
def test_a_task_of_lm_eval_reads_the_mirror_unchanged(offline, tiny_folder):
    table = sweep(*load_model(str(tiny_folder)), ["boolq"], [Cut(2, 2)], limit=4, datasets=str(SHARED_MIRROR))
    found = table[table["metric"] == "acc"]
    assert found[["task", "start", "size", "items"]].values.tolist() == [["boolq", 2, 2, 4]]
    assert table.attrs["levels"]["boolq"]["chance"] == 0.5
