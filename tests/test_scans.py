"""Scans: every block of so many layers, on tasks and as loss, against plain ways; what is kept of answers."""

import functools

import numpy as np
import pytest
import torch

from deeper_layers import similarity
from deeper_layers.cuts import Cut
from deeper_layers.data import embedded
from deeper_layers.data.tasks.items import begins_with_the_answer
from deeper_layers.errors import InputError
from deeper_layers.experiments.distances import measure_distances
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.losses import plan_scan, scan, scan_cuts
from deeper_layers.experiments.notebook_parameters import ScanParameters
from deeper_layers.experiments.parameters import Parameters
from deeper_layers.pruning import drop_layers
from deeper_layers.report.statistics import nearest
from deeper_layers.results.frames import distances_of, scores_of
from deeper_layers.results.packing import pack_halves, unpack
from deeper_layers.results.store import Result
from deeper_layers.rules.similarity import distance_matrix, similarity_cut
from deeper_layers.sweeping.losses import answer_requests, request_loss
from deeper_layers.sweeping.sweeps import sweep

LIMIT = 6
SOLVED = [("Question: What is 2 + 3?\nAnswer:", " 2 + 3 = 5\n#### 5"), ("Question: And 1 + 1?\nAnswer:", " 2\n#### 2")]


@pytest.fixture
def asked(tiny_folder, opened, tmp_path):
    def of(**given):
        small = {"dtype": "float32", "blocks": 2, "tasks": f"capitals@{LIMIT}, lettered_capitals@{LIMIT}"}
        parameters = ScanParameters(model=str(tiny_folder), **small | {"results": str(tmp_path / "results")} | given)
        return Experiment(parameters, opened=lambda: opened)

    return of


def test_every_block_is_scanned_once_and_keeps_every_choice(asked, opened):
    experiment, blocks = asked(), [Cut(0, 0), Cut(0, 2), Cut(1, 2), Cut(2, 2), Cut(3, 2)]
    cuts = scan_cuts(experiment)
    assert cuts == dict.fromkeys(("capitals", "lettered_capitals"), {"blocks of 2": blocks})
    found = scan(cuts, experiment)
    plain = sweep(*opened, ["capitals"], blocks, limit=LIMIT)
    assert found["capitals"].rows["value"].tolist() == plain["value"].tolist()
    rows = scores_of(found.values())
    assert set(rows["rule"]) == {"blocks of 2"} and len(rows) == 2 * len(blocks)
    for row in rows.to_dict("records"):
        assert row["logprobs"].shape == (LIMIT, 4) and (row["logprobs"] < 0).all()
        assert np.array_equal(row["chosen"] == row["target"], row["outcome"])
    # a second time nothing is measured
    experiment.opened = functools.partial(pytest.fail, "opened again")
    assert scan(cuts, experiment)["capitals"].path == found["capitals"].path


def test_a_price_is_of_what_results_lack(asked):
    experiment = asked(tasks=f"sums@{LIMIT}, wikipedia@2")
    cuts = scan_cuts(experiment)
    plans = plan_scan(cuts, experiment)
    assert list(plans) == ["sums", "wikipedia"] and all(plan.layer_steps > 0 for plan in plans.values())
    scan({"sums": cuts["sums"]}, experiment)
    assert list(plan_scan(cuts, experiment)) == ["wikipedia"]
    scan(cuts, experiment)
    assert plan_scan(cuts, experiment) == {}


def test_a_scan_of_all_capitals_is_kept_in_several_parts(asked):
    experiment = asked(tasks="capitals@181")
    (plan,) = plan_scan(scan_cuts(experiment), experiment).values()
    pieces = [piece for _, run in plan.parts for piece in run]
    assert len(pieces) >= 4 and max(piece.tokens for piece in pieces) <= plan.tokens / 3


def test_both_forms_ask_the_same_of_the_same_items(opened):
    letters, words = (
        sweep(*opened, [task], [Cut(0, 0)], limit=LIMIT).attrs["outcomes"]["0,0"][task]
        for task in ("lettered_capitals", "capitals")
    )
    answers = [item["answer"] for item in embedded.capitals()[:LIMIT]]
    assert unpack(letters["target"], LIMIT).tolist() == unpack(words["target"], LIMIT).tolist() == answers


def test_an_answer_longer_than_the_model_reads_is_refused(opened):
    model, tokenizer = opened
    window = model.config.max_position_embeddings
    with pytest.raises(InputError, match=f"an answer of {window + 1} tokens after 1, expected 1 to {window},"):
        answer_requests(model, tokenizer, [("a", "b" * (window + 1))])
    with pytest.raises(InputError, match="after 0, expected"):
        answer_requests(model, tokenizer, [(" ", "b")])


def test_the_loss_on_answers_is_that_of_the_plain_model(opened):
    """Each token of an answer, predicted by the model without the layers; what is given is not scored."""
    model, tokenizer = opened
    cuts = [Cut(0, 0), Cut(1, 2)]
    rows, of_answers = request_loss(model, cuts, answer_requests(model, tokenizer, SOLVED))
    for cut, value in zip(cuts, rows["value"], strict=True):
        pruned, losses, tokens = drop_layers(model, cut), [], []
        for prompt, answer in SOLVED:
            given = len(tokenizer(prompt)["input_ids"])
            ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
            with torch.inference_mode():
                logprobs = pruned(ids).logits[0, given - 1 : -1].log_softmax(-1)
            losses.append(-logprobs.gather(1, ids[0, given:, None]).sum().item())
            tokens.append(ids.shape[1] - given)
        assert of_answers[cut.name] == pytest.approx(np.array(losses) / np.array(tokens), abs=1e-4)
        assert value == pytest.approx(sum(losses) / sum(tokens), abs=1e-4)


def test_a_loss_under_the_cuts_of_rules_is_measured_and_has_a_price(asked):
    experiment = asked(tasks="wikipedia@2", blocks=None, rules="simple", sizes="0-2", loss_length=16)
    cuts = scan_cuts(experiment)
    assert cuts == {"wikipedia": {"simple": [Cut(0, 0), Cut(3, 1), Cut(2, 2)]}}
    (plan,) = plan_scan(cuts, experiment).values()
    assert plan.layer_steps == 2 * 15 * (5 + 1 + 1) and plan.seconds > 0  # the whole model, then the last layer twice
    found = scan(cuts, experiment)["wikipedia"]
    assert [len(row["outcome"]) for row in found.records] == [2, 2, 2]
    # how many examples are in the prompts of tasks is nothing to a loss on text
    assert scan(cuts, experiment.but(num_fewshot=5))["wikipedia"].path == found.path


@pytest.mark.parametrize(("wrong", "said"), [
    ({"blocks": 5}, "blocks is 5, expected less than the model's 5 layers"),
    ({"starts": "2-9"}, "start is 4 with size 2"),
    ({"tasks": ","}, "tasks is ','"),
    ({"tasks": "capitals, c4", "limit": None}, "limit is None, expected how many sequences of c4 .* write c4@32"),
])  # fmt: skip
def test_what_cannot_be_scanned_is_refused_in_one_line(wrong, said, asked):
    with pytest.raises(InputError, match=said):
        scan_cuts(asked(**wrong))


def test_facts_to_be_written_begin_with_their_answer():
    """200 of them, each with one answer; what is written may go on behind it, and not in the same word."""
    items, tin = embedded.written_facts(), {"asked": "the chemical symbol of tin", "answer": "Sn"}
    assert len(items) == 200 == len({item["asked"] for item in items}) and tin in items
    right = {" Sn": 1.0, ' "Sn", which': 1.0, " sn\n": 1.0, " Snow": 0.0, " Ti": 0.0, "": 0.0, " the Sn": 0.0}
    for written, expected in right.items():
        assert begins_with_the_answer(tin, [written]) == {"exact_match": expected}


# --- distances by sequence --------------------------------------------------------------------------------


@pytest.fixture
def distances(tiny_folder, opened, tmp_path):
    def of(results: str, **given):
        parameters = Parameters(model=str(tiny_folder), results=str(tmp_path / results), dtype="float32", **given)
        return Experiment(parameters, opened=lambda: opened)

    return of


def test_distances_of_each_sequence_have_the_published_mean(distances):
    """Kept in 16 bits, in a result of its own; and how surely a block is the most similar follows from them."""
    experiment = distances("", samples=12, sequence_length=24)
    plain, found = (measure_distances(experiment, by_sequence=by_sequence) for by_sequence in (False, True))
    assert plain.path != found.path and plain.rows.equals(found.rows)
    experiment.opened = pytest.fail
    assert measure_distances(experiment).path == plain.path
    each = np.stack(list(distances_of([found])["by_sequence"]), axis=1)
    assert each.shape == (12, 15)
    assert each.mean(axis=0) == pytest.approx(found.rows["distance"].to_numpy(), abs=5e-4)
    table = nearest(distances_of([found]))
    best = [similarity_cut(distance_matrix(found.rows), size).start for size in table["size"]]
    assert table["start"].tolist() == best and table["agrees"].between(0, 1).all()
    assert (table["low"] <= table["high"]).all() and (table["high"] <= 4 - table["size"]).all()


def test_interrupted_distances_go_on_to_the_same_numbers(distances, tmp_path, monkeypatch, capsys):
    """Batches that have run are not run again."""

    def measured(results):
        return measure_distances(distances(results, samples=40, sequence_length=300))

    plain, ran, every = measured("plain"), [], similarity.distances_by_batch

    def counted(model, batches, stop=None):
        for found in every(model, batches):
            if len(ran) == stop:
                raise KeyboardInterrupt
            ran.append(len(found))
            yield found

    monkeypatch.setattr(similarity, "distances_by_batch", functools.partial(counted, stop=1))
    with pytest.raises(KeyboardInterrupt):
        measured("later")
    (first,) = (tmp_path / "later").rglob("*.partial/000000.npz")
    monkeypatch.setattr(similarity, "distances_by_batch", counted)
    assert len(ran) == 1 and measured("later").rows.equals(plain.rows)
    assert sum(ran) == 40 and len(ran) > 2, "the first batch ran once"
    assert not first.exists() and "distances: 100%" in capsys.readouterr().err


def test_one_sequence_that_decides_is_drawn_with_the_others():
    """Two blocks of one layer, alike but for one sequence of ten: the choice follows how often that one is drawn."""
    rows = [{"start": start, "size": size, "distance": 0.5, "stderr": 0.1, "samples": 10}
            for size in (1, 2, 3) for start in range(4 - size)]  # fmt: skip
    each = np.full((10, 6), 0.25)
    each[0, 1] = 0.75  # without this sequence, in a third of all draws, both are alike, and the first is taken
    each[:, 0] += 0.01
    key = {"model": {"name": "tiny", "weights": "x"}, "dtype": "float32", "corpus": "wikipedia", "seed": 0}
    details = {"num_layers": 3, "by_sequence": pack_halves(each)}
    unit = Result("distances", key | {"sequence_length": 9}, {"measured": "2026"}, rows, details)
    (first, second) = nearest(distances_of([unit])).itertuples()
    assert (first.start, first.low, first.high) == (0, 0, 1)
    assert first.agrees == pytest.approx(1 - 0.9**10, abs=0.04)  # of draws that hold it
    assert (second.start, second.agrees) == (0, 1.0)  # the only block that keeps the last layer
