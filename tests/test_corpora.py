"""Benchmark items, text, and the mirror they are read from."""

import copy
import hashlib
import json
import random
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GPT2Config

from deeper_layers.data import corpora, embedded
from deeper_layers.data.tokens import text_batches, token_sequences
from deeper_layers.errors import InputError
from deeper_layers_companion.results.places import AROUND as ROOT
from tests.mirror import write_dataset

HUB = ROOT.parent / "shared" / "datasets"


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
    items = [embedded.capitals(), embedded.sums(1), embedded.sums(2), embedded.facts(), embedded.written_facts()]
    items.append(embedded.answers())
    digest = hashlib.sha256(json.dumps(items, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    assert (embedded.ITEMS_VERSION, digest[:16]) == (1, "1d3ad1535e9b7a56"), "raise ITEMS_VERSION in data/embedded.py"


def test_published_results_are_keyed_by_the_fingerprint_of_their_items():
    (path, *_) = sorted((ROOT / "results").glob("*/scores-capitals-*.json"))
    assert json.loads(path.read_text())["key"]["data"] == embedded.embedded_fingerprint("capitals")


def test_fingerprint_follows_items_and_task(tmp_path, monkeypatch):
    first = embedded.embedded_fingerprint("capitals")
    assert first != embedded.embedded_fingerprint("sums_one_digit")
    monkeypatch.setattr(embedded, "TASKS", shutil.copytree(embedded.TASKS, tmp_path / "tasks"))
    assert embedded.embedded_fingerprint("capitals") == first
    prompt = tmp_path / "tasks" / "capitals.yaml"
    prompt.write_text(prompt.read_text().replace("Question:", "Q:"))
    assert embedded.embedded_fingerprint("capitals") != first


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
    pairs = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"])]
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def test_text_comes_in_full_batches_with_little_padding(tokenizer, documents):
    batches = text_batches(tokenizer, documents, samples=200, length=150, batch_tokens=2000)
    masks, found = [batch["attention_mask"] for batch in batches], rows_of(batches)
    assert all(mask.numel() <= 2000 and (mask.diff(dim=1) <= 0).all() for mask in masks), "padded on the right"
    lengths = [len(row) for row in found]
    assert len(lengths) == 200 and max(lengths) == 150 and min(lengths) > 1
    assert sum(lengths) > 0.9 * sum(mask.numel() for mask in masks)  # 0.63 in the order of the draw
    # each is a document of its own, cut after so many tokens
    expected = [tokenizer(document)["input_ids"][:150] for document in documents]
    assert all(row in expected for row in found) and len({tuple(row) for row in found}) > 190


def test_the_same_seed_draws_the_same_text_however_it_is_batched(tokenizer, documents):
    def draw(**options):
        return sorted(rows_of(text_batches(tokenizer, documents, **{"samples": 50, "length": 64} | options)))

    assert draw() == draw(seed=0, batch_tokens=1) == draw(batch_tokens=100_000) != draw(seed=1)
    assert all(row in draw() for row in draw(samples=20)), "fewer are some of the same"


@pytest.mark.quick
@pytest.mark.parametrize("length", [5, 16])
@pytest.mark.parametrize("begins", [False, True])
def test_packed_sequences_are_the_documents_with_an_end_after_each_and_a_beginning_at_each(
    begins, length, tokenizer, documents
):
    own = copy.deepcopy(tokenizer)
    end, start = own.eos_token_id, own.pad_token_id
    if begins:
        form = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", start)])
        own.backend_tokenizer.post_processor = form
    sequences = [row.tolist() for row in token_sequences(own, documents, length=length)]
    assert len(sequences) > 50 and {len(row) for row in sequences} == {length}
    drawn = random.Random(0).sample(documents, len(documents))
    expected = [token for document in drawn for token in (*tokenizer(document)["input_ids"], end)]
    found = [token for row in sequences for token in row if token != start]
    assert found == expected[: len(found)] and len(expected) - len(found) < length, "the rest at the end goes"
    for row in sequences if begins else ():
        assert row[0] == start and row[1] != start, "never twice"
        assert all(after == start for before, after in zip(row, row[1:]) if before == end)
    # a part of it is the beginning of it
    some = token_sequences(own, documents, length=length, tokens=3 * length)
    assert [row.tolist() for row in some] == sequences[:3]


def test_too_little_text_is_one_line(tokenizer, documents, tmp_path):
    usable = len(documents) - 2  # neither the empty one nor the one of a single token
    with pytest.raises(InputError, match=f"samples is 999, but the corpus has {usable} usable documents"):
        text_batches(tokenizer, documents, samples=999, length=9)
    # what transformers opens for a folder that lacks the tokenizer's files, of most families
    GPT2Config(n_layer=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="knows no words: its files, like tokenizer.json, are missing"):
        token_sequences(AutoTokenizer.from_pretrained(tmp_path), documents, length=9)


# --- the hub and its mirror ------------------------------------------------------------------------------


@pytest.fixture
def c4(tmp_path):
    """C4 in a mirror: two documents to train on, three to validate."""
    documents = [{"text": f"Document {i} of a corpus.", "url": ""} for i in range(5)]
    folder = tmp_path / "mirror" / "allenai" / "c4"
    write_dataset(folder, "en", {"train": documents[:2], "validation": documents[2:]})
    return folder


def test_data_is_read_from_a_mirror_and_anew_where_it_changed(offline, c4, tmp_path, monkeypatch):
    """The cache of `datasets` takes folders of one name and README for the same, whatever their data."""
    mirror, load = tmp_path / "mirror", datasets.load_dataset
    assert corpora.texts("c4", datasets=str(mirror)) == [f"Document {i} of a corpus." for i in (2, 3, 4)]
    assert len(corpora.texts("c4", split="train", datasets=str(mirror))) == 2
    first = corpora.text_fingerprint("c4", datasets=str(mirror))
    other = shutil.copytree(mirror, tmp_path / "other")
    assert corpora.text_fingerprint("c4", datasets=str(other)) == first  # the same text, wherever it lies
    for place in (other, mirror):
        with (place / "allenai" / "c4" / "validation.jsonl").open("a") as file:
            file.write(f'\n{{"text": "One more, in {place.name}.", "url": ""}}')
        monkeypatch.setenv("DATASETS_MIRROR", str(place))  # named by the variable just as by the parameter
        assert corpora.texts("c4")[3:] == [f"One more, in {place.name}."]
        assert corpora.text_fingerprint("c4") != first
    with pytest.raises(InputError, match=r"can't read the data of it \(.*\): connect to the hub, or name a mirror"):
        with corpora.reading_from_mirror(None, "it"):
            datasets.load_dataset("someone/else")
    assert datasets.load_dataset is load


@pytest.mark.parametrize("content", ["\x00\xff{{", '{"url": "x"}', ""], ids=["garbage", "no text", "empty"])
def test_a_spoilt_mirror_is_one_line(content, offline, c4):
    (c4 / "validation.jsonl").write_text(content)
    with pytest.raises(InputError, match="can't read the data of allenai/c4"):
        corpora.texts("c4", datasets=str(c4.parents[1]))


@pytest.mark.skipif(not HUB.is_dir(), reason="no mirror of the hub at ../shared/datasets")
@pytest.mark.thorough
def test_corpora_and_items_are_what_the_files_of_the_hub_say(offline):
    names = "allenai/c4/en/validation", "openai/gsm8k/main/test", "aps/super_glue/boolq/validation"
    c4, gsm8k, boolq = (pd.read_parquet(HUB / f"{name}.parquet").to_dict("records") for name in names)
    assert corpora.texts("c4", datasets=str(HUB), documents=50) == [row["text"] for row in c4[:50]]
    asked = [prompt for prompt, _ in corpora.solved_problems(datasets=str(HUB))]
    assert asked == [f"Question: {row['question']}\nAnswer:" for row in gsm8k]
    found = embedded.boolq()
    assert len(found) == len(boolq)
    for ours, theirs in zip(found, boolq):  # theirs have the page's title before the passage
        assert (ours["question"], ours["label"]) == (theirs["question"], theirs["label"])
        assert theirs["passage"].endswith(ours["passage"])
