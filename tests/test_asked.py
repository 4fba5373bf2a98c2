"""What a measurement reads: which examples stand in a prompt, in which order, and which half of a text."""

import random

import pytest

from deeper_layers import data
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.data import embedded
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import sweep
from deeper_layers_companion.experiments import choosing, healings, scoring
from deeper_layers_companion.experiments.distances import draw_batches
from deeper_layers_companion.experiments.experiment import Experiment
from deeper_layers_companion.experiments.notebook_parameters import WhichLayersParameters
from deeper_layers_companion.experiments.parameters import HealingParameters, TaskParameters
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
def experiment(tiny_folder, opened, tmp_path):
    """An experiment with parameters of a kind on the tiny model, opened already."""

    def of(kind, **given):
        usual = {"dtype": "float32", "text": "wikipedia", "loss_sequences": 3, "loss_length": 24}
        usual = {name: value for name, value in usual.items() if name in kind.model_fields}
        places = {"model": str(tiny_folder), "results": str(tmp_path / "results")}
        return Experiment(kind(**usual | places | given), open_model=lambda: opened)

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


def test_an_order_that_is_asked_for_is_measured_under_a_key_of_its_own(opened, with_examples, experiment):
    asked, cuts = experiment(TaskParameters, tasks=f"capitals@{ITEMS}"), [UNPRUNED, Cut(1, 2)]
    found = {}
    for order in (0, 2):
        prompt = {"shots": SHOTS} | ({"order": order} if order else {})
        result = scoring.score(["capitals"], {"given": cuts}, asked, prompt=prompt)
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
    opened, halves, experiment, monkeypatch
):
    asked = experiment(HealingParameters, steps=2)
    ((name, settings),) = asked.parameters.texts.items()
    requests = scoring.make_requests(name, settings, *opened, None)
    scored = read(opened, [[*context, *scored] for context, scored in requests.pairs])
    assert "validation" in scored and "train" not in scored
    given = []

    def train(model, tokenizer, texts, *_, **__):
        given.extend(texts)
        raise KeyboardInterrupt

    monkeypatch.setattr(healings.healing, "train", train)
    with pytest.raises(KeyboardInterrupt):
        healings.Healing(Cut(1, 2), asked.parameters.make_config(), asked).heal()
    assert given == TEXTS["train"]
    calibrated = experiment(WhichLayersParameters, corpus="wikipedia", samples=60, sequence_length=24, skip_sequences=1)
    seen = read(opened, choosing._read_calibration_text(calibrated, 3))
    assert "train" in seen and "validation" not in seen
    seen = read(opened, [row for batch in draw_batches(calibrated) for row in batch["input_ids"]])
    assert "train" in seen and "validation" in seen, "distances are of all embedded documents"


def test_a_key_holds_the_fingerprint_of_the_half_that_was_read(tmp_path, experiment):
    documents = [{"text": f"Document {i} of a corpus.", "url": ""} for i in range(5)]
    write_dataset(tmp_path / "allenai" / "c4", "en", {"train": documents[:2], "validation": documents[2:]})
    of_half = {half: data.text_fingerprint("c4", split=half, datasets=str(tmp_path)) for half in TEXTS}
    assert len(set(of_half.values())) == 2
    (of_loss,) = scoring.list_data({"c4": {"limit": 9, "length": 24}})
    assert of_loss.fingerprint(str(tmp_path)) == of_half["validation"]
    assert choosing.Data("c4", choosing.CALIBRATION).fingerprint(str(tmp_path)) == of_half["train"]
    healed = experiment(HealingParameters, text="c4")
    of_healing = healings.Healing(Cut(1, 2), healed.parameters.make_config(), healed).text
    assert of_healing.fingerprint(str(tmp_path)) == of_half["train"]
