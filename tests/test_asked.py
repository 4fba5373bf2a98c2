"""What a measurement reads: which examples stand in a prompt, in which order, and which half of a text."""

import random

import pytest

from deeper_layers import data
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.data import embedded
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import sweep
from deeper_layers_companion.jobs import healings, scoring
from deeper_layers_companion.jobs.job import CALIBRATION, Data, healing_job, list_data, scores_job
from deeper_layers_companion.jobs.measure import draw_batches, read_training_text
from deeper_layers_companion.jobs.notebook_options import WhichLayersParameters
from deeper_layers_companion.jobs.options import HealingParameters, TaskParameters
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.frames import tabulate_scores
from tests.mirror import write_dataset

SHOTS, ITEMS = 4, 4
TEXTS = {split: [f"{split} has document {i}." * 9 for i in range(40)] for split in ("train", "validation")}


@pytest.fixture
def with_examples(tmp_path, monkeypatch):
    """Our tasks, with examples in their prompts where they are asked for."""
    for path in embedded.TASKS.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8").replace("num_fewshot: 0\n", ""))
    monkeypatch.setattr(embedded, "TASKS", tmp_path)


@pytest.fixture
def session(tiny_folder, opened, tmp_path):
    """A session with options of a kind on the tiny model, opened already."""

    def of(kind, **given):
        usual = {"dtype": "float32", "text": "wikipedia", "loss_sequences": 3, "loss_length": 24}
        usual = {name: value for name, value in usual.items() if name in kind.model_fields}
        places = {"model": str(tiny_folder), "results": str(tmp_path / "results")}
        session = Session(kind(**usual | places | given))
        session.open = lambda *_: opened
        return session

    return of


# --- the order of examples --------------------------------------------------------------------------------


def prompts_of(opened, order: int) -> list[list[str]]:
    """The parts of the prompt of each item: the examples, then what is asked."""
    loaded = harness.load_tasks(["capitals"], num_fewshot=SHOTS, fewshot_order=order)
    asked = harness.collect_requests(loaded, *opened, limit=ITEMS).instances[::4]
    return [instance.args[0].split("\n\n") for instance in asked]


def test_an_order_shuffles_the_examples_of_every_prompt_alike_and_changes_none(opened, with_examples):
    usual = prompts_of(opened, 0)
    assert len(usual) == ITEMS and {len(parts) for parts in usual} == {SHOTS + 1}
    places = {}
    for order in (1, 2, 3):
        places[order] = [*range(SHOTS)]
        random.Random(order).shuffle(places[order])
        wanted = [[examples[place] for place in places[order]] + [asked] for *examples, asked in usual]
        assert prompts_of(opened, order) == wanted == prompts_of(opened, order)
    assert len(set(map(tuple, places.values()))) > 1, "the seeds give several orders"


def test_an_order_that_is_asked_for_is_measured_under_a_key_of_its_own(opened, with_examples, session):
    asked, cuts = session(TaskParameters, tasks=f"capitals@{ITEMS}"), [UNPRUNED, Cut(1, 2)]
    found = {}
    for order in (0, 2):
        prompt = {"shots": SHOTS} | ({"order": order} if order else {})
        result = asked.get(scores_job(asked.source, asked.options, ["capitals"], {"given": cuts}, prompt))
        assert result.key["tasks"] == {"capitals": {"limit": ITEMS} | prompt}
        plain = sweep(*opened, ["capitals"], cuts, num_fewshot=SHOTS, fewshot_order=order, limit=ITEMS)
        outcomes = plain.attrs["outcomes"][cuts[1].name]["capitals"]
        found[order] = next(row["logprobs"] for row in result.records if row["cut"] == cuts[1].name)
        assert found[order] == outcomes["logprobs"]
        assert tabulate_scores([result])["order"].fillna(0).tolist() == [order] * 2
    assert found[0] != found[2]


# --- the half of a text -----------------------------------------------------------------------------------


@pytest.fixture
def halves(monkeypatch):
    """A text whose halves say which they are."""

    def texts(corpus, *, split=None, documents=99, **_):
        return [text for name in ([split] if split else TEXTS) for text in TEXTS[name]][:documents]

    monkeypatch.setattr(data, "texts", texts)


def read(opened, rows) -> str:
    return " ".join(opened[1].decode(row) for row in rows)


def test_losses_are_of_the_validation_half_and_what_heals_or_calibrates_of_the_other(
    opened, halves, session, monkeypatch
):
    asked = session(HealingParameters, steps=2)
    ((name, settings),) = asked.options.texts.items()
    requests = scoring.make_requests(name, settings, *opened, None)
    scored = read(opened, [[*context, *scored] for context, scored in requests.pairs])
    assert "validation" in scored and "train" not in scored
    given = []

    def train(model, tokenizer, texts, *_, **__):
        given.extend(texts)
        raise KeyboardInterrupt

    monkeypatch.setattr(healings.healing, "train", train)
    with pytest.raises(KeyboardInterrupt):
        asked.get(healing_job(asked.source, Cut(1, 2), asked.options.make_config(), "wikipedia", None))
    assert given == TEXTS["train"]
    calibrated = session(WhichLayersParameters, corpus="wikipedia", samples=60, sequence_length=24, skip_sequences=1)
    seen = read(opened, read_training_text(opened[1], "wikipedia", 3, 24, None))
    assert "train" in seen and "validation" not in seen
    batches = draw_batches(opened[1], calibrated.options.model_dump(), None)
    seen = read(opened, [row for batch in batches for row in batch["input_ids"]])
    assert "train" in seen and "validation" in seen, "distances are of all embedded documents"


def test_a_key_holds_the_fingerprint_of_the_half_that_was_read(tmp_path, session):
    documents = [{"text": f"Document {i} of a corpus.", "url": ""} for i in range(5)]
    write_dataset(tmp_path / "allenai" / "c4", "en", {"train": documents[:2], "validation": documents[2:]})
    of_half = {half: data.text_fingerprint("c4", split=half, datasets=str(tmp_path)) for half in TEXTS}
    assert len(set(of_half.values())) == 2
    (of_loss,) = list_data({"c4": {"limit": 9, "length": 24}})
    assert of_loss.fingerprint(str(tmp_path)) == of_half["validation"]
    assert Data("c4", CALIBRATION).fingerprint(str(tmp_path)) == of_half["train"]
    healed = session(HealingParameters, text="c4")
    (of_healing,) = healing_job(healed.source, Cut(1, 2), healed.options.make_config(), "c4", None).reads
    assert of_healing.fingerprint(str(tmp_path)) == of_half["train"]
