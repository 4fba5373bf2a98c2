"""Scans of every block, distances by sequence, and what rules drop: beside plain ways, measured once and read back."""

import functools

import numpy as np
import pytest
import torch

from deeper_layers import similarity
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.data import embedded
from deeper_layers.data.corpora import texts
from deeper_layers.data.tasks.items import begins_with_the_answer
from deeper_layers.data.tokens import token_sequences
from deeper_layers.errors import InputError
from deeper_layers.packing import unpack_halves
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping.sweeps import answer_requests, request_loss, sweep, text_loss
from deeper_layers_companion.experiments.choosing import choose_cuts_for_tasks, compare_rules
from deeper_layers_companion.experiments.distances import find_or_measure_distances
from deeper_layers_companion.experiments.experiment import Experiment
from deeper_layers_companion.experiments.notebook_parameters import ScanParameters, WhichLayersParameters
from deeper_layers_companion.experiments.parameters import Parameters
from deeper_layers_companion.experiments.scoring import plan_each, score_each
from deeper_layers_companion.report.statistics import nearest
from deeper_layers_companion.results.frames import tabulate_distances, tabulate_scores
from deeper_layers_companion.results.store import read_results
from deeper_layers_companion.rules.changing import bridge_cut

LIMIT = 6
SOLVED = [("Question: What is 2 + 3?\nAnswer:", " 2 + 3 = 5\n#### 5"), ("Question: And 1 + 1?\nAnswer:", " 2\n#### 2")]


@pytest.fixture
def asked(tiny_folder, opened, tmp_path):
    """An experiment with parameters of a kind on the tiny model, opened already."""

    def of(kind=ScanParameters, results="results", **given):
        usual = {"dtype": "float32"} | ({"blocks": 2} if kind is ScanParameters else {})
        places = {"model": str(tiny_folder), "results": str(tmp_path / results)}
        return Experiment(kind(**usual | places | given), open_model=lambda: opened)

    return of


def test_every_block_is_scanned_once_and_keeps_every_choice(asked, opened):
    experiment = asked(tasks=f"capitals@{LIMIT}, lettered_capitals@{LIMIT}")
    own = [UNPRUNED, Cut(0, 2), Cut(1, 2), Cut(2, 2), Cut(3, 2)]
    cuts = choose_cuts_for_tasks(experiment)
    assert cuts == dict.fromkeys(("capitals", "lettered_capitals"), {"blocks of 2": own})
    found = score_each(cuts, experiment)
    plain = sweep(*opened, ["capitals"], own, limit=LIMIT)
    assert found["capitals"].rows["value"].tolist() == plain["value"].tolist()
    rows = tabulate_scores(found.values())
    assert set(rows["rule"]) == {"blocks of 2"} and len(rows) == 2 * len(own)
    for row in rows.to_dict("records"):  # words and letters ask the same of the same items
        assert row["target"].tolist() == [item["answer"] for item in embedded.capitals()[:LIMIT]]
        assert row["logprobs"].shape == (LIMIT, 4) and (row["logprobs"] < 0).all()
        assert np.array_equal(row["chosen"] == row["target"], row["outcome"])
    experiment.open_model = pytest.fail
    assert score_each(cuts, experiment)["capitals"].path == found["capitals"].path


def test_the_loss_on_answers_is_that_of_the_plain_model(opened):
    """Each token of an answer, predicted by the model without the layers; what is given is not scored."""
    model, tokenizer = opened
    cuts = [UNPRUNED, Cut(1, 2)]
    rows, of_answers = request_loss(model, cuts, answer_requests(model, tokenizer, SOLVED))
    for cut, value in zip(cuts, rows["value"], strict=True):
        losses = []
        for prompt, answer in SOLVED:
            given = len(tokenizer(prompt)["input_ids"])
            ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
            with torch.inference_mode():
                logprobs = drop_layers(model, cut)(ids).logits[0, given - 1 : -1].log_softmax(-1)
            losses.append(-logprobs.gather(1, ids[0, given:, None]))
        assert of_answers[cut.name] == pytest.approx([float(loss.mean()) for loss in losses], abs=1e-4)
        assert value == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)
    with pytest.raises(InputError, match="after 0, expected 1 to"):
        answer_requests(model, tokenizer, [(" ", "b")])


def test_a_loss_under_the_cuts_of_rules_is_measured_and_has_a_price(asked):
    experiment = asked(tasks="wikipedia@2", blocks=None, rules="simple", sizes="0-2", loss_length=16)
    cuts = choose_cuts_for_tasks(experiment)
    assert cuts == {"wikipedia": {"simple": [UNPRUNED, Cut(3, 1), Cut(2, 2)]}}
    (plan,) = plan_each(cuts, experiment).values()
    assert plan.layer_steps == 2 * 15 * (5 + 1 + 1) and plan.seconds > 0  # the whole model, then the last layer twice
    found = score_each(cuts, experiment)["wikipedia"]
    assert [len(row["outcome"]) for row in found.records] == [2, 2, 2] and plan_each(cuts, experiment) == {}
    # how many examples are in the prompts of tasks is nothing to a loss on text
    assert score_each(cuts, experiment.replace(num_fewshot=5))["wikipedia"].path == found.path


@pytest.mark.parametrize(("wrong", "said"), [
    ({"blocks": 5}, "size is 5; expected 0 to 4 for a model of 5 layers"),
    ({"starts": "2-9"}, "the cut is of layer 5"),
    ({"tasks": ","}, "tasks is ','"),
    ({"tasks": "capitals, c4", "limit": None}, "limit is None, expected how many sequences of c4"),
])  # fmt: skip
def test_what_cannot_be_scanned_is_refused_in_one_line(wrong, said, asked):
    with pytest.raises(InputError, match=said):
        choose_cuts_for_tasks(asked(**wrong))


def test_facts_to_be_written_begin_with_their_answer():
    """200 of them, each with one answer; what is written may go on behind it, and not in the same word."""
    items, tin = embedded.written_facts(), {"asked": "the chemical symbol of tin", "answer": "Sn"}
    assert len(items) == 200 == len({item["asked"] for item in items}) and tin in items
    for written in (" Sn", ' "Sn", which', " sn\n", " Snow", " Ti", "", " the Sn"):
        right = float(written in (" Sn", ' "Sn", which', " sn\n"))
        assert begins_with_the_answer(tin, [written]) == {"exact_match": right}


# --- distances by sequence --------------------------------------------------------------------------------


def test_distances_of_each_sequence_have_the_published_mean(asked):
    """Kept in 16 bits, in a result of its own."""
    experiment = asked(Parameters, samples=12, sequence_length=24)
    plain, found = (find_or_measure_distances(experiment, by_sequence=by_sequence) for by_sequence in (False, True))
    assert plain.path != found.path and plain.rows.equals(found.rows)
    experiment.open_model = pytest.fail
    assert find_or_measure_distances(experiment).path == plain.path
    each = np.stack(list(tabulate_distances([found])["by_sequence"]), axis=1)
    assert each.shape == (12, 15)
    assert each.mean(axis=0) == pytest.approx(found.rows["distance"].to_numpy(), abs=5e-4)


def test_interrupted_distances_go_on_to_the_same_numbers(asked, tmp_path, monkeypatch, capsys):
    """Batches that have run are not run again."""

    def measured(results):
        return find_or_measure_distances(asked(Parameters, results, samples=40, sequence_length=300))

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


def test_one_sequence_that_decides_is_drawn_with_the_others(asked):
    """Two blocks of one size, alike but for one sequence of twelve: the choice follows how often that one is drawn."""
    found = find_or_measure_distances(asked(Parameters, samples=12, sequence_length=24), by_sequence=True)
    rows = tabulate_distances([found]).query("size == 3").sort_values("start")
    rows["distance"], decided = 0.5, np.where(np.arange(12) == 0, 0.75, 0.25)
    rows["by_sequence"] = [np.full(12, 0.26), decided, decided]  # the last of these has the last layer
    (row,) = nearest(rows).itertuples()
    assert (row.start, row.low, row.high) == (0, 0, 1)
    assert row.agrees == pytest.approx(1 - (11 / 12) ** 12, abs=0.04), "of draws that hold it"


# --- what rules drop --------------------------------------------------------------------------------------


def test_what_rules_drop_is_measured_once_and_read_back(asked, tmp_path):
    experiment = asked(
        WhichLayersParameters, rules="simple, llm-drop, replaceme", limit=4, samples=4, sequence_length=24,
        text="wikipedia", loss_sequences=2, loss_length=24, percent="20, 40", calibration_sequences=2,
        bridge_sequences=2, tasks="capitals", tokens=2, neighbours=2, skip_sequences=2,
    )  # fmt: skip
    compare_rules(experiment)
    scores = tabulate_scores(read_results(tmp_path / "results", "scores")).query("cut != @UNPRUNED.name")
    losses = scores.query("metric == 'loss'")
    assert losses.groupby("rule")["size"].agg(list).to_dict() == dict.fromkeys(experiment.parameters.rule_list, [1, 2])
    assert losses.set_index("rule")["changed"].dropna().to_dict() == {"replaceme": "bridged"}
    assert scores.query("rule == 'llm-drop' and task == 'capitals'")["size"].tolist() == [1, 2]
    experiment.open_model = pytest.fail
    compare_rules(experiment)


def test_losses_and_scores_of_a_rule_that_changes_weights_are_those_of_the_changed_model(asked, opened, tmp_path):
    experiment = asked(
        WhichLayersParameters, rules="replaceme", limit=4, samples=4, sequence_length=24, text="wikipedia",
        corpus="wikipedia", loss_sequences=3, loss_length=24, percent="20", calibration_sequences=2, bridge_sequences=3,
        tasks="lettered_capitals", tokens=2, neighbours=2, skip_sequences=2,
    )  # fmt: skip
    compare_rules(experiment)
    scores = tabulate_scores(read_results(tmp_path / "results", "scores")).query("size > 0").set_index("metric")
    cut = Cut.named(scores["cut"].unique()[0])
    (train, validation) = (
        token_sequences(opened[1], texts("wikipedia", split=split), length=24, tokens=72)
        for split in ("train", "validation")
    )
    bridged = bridge_cut(opened[0], cut, train)
    expected = text_loss(bridged, [UNPRUNED], validation)[0]["value"][0]
    plain = text_loss(opened[0], [cut], validation)[0]["value"][0]
    assert scores.loc["loss", "value"] == pytest.approx(expected, rel=1e-5) and abs(expected - plain) > 1e-3
    of_task = sweep(bridged, opened[1], ["lettered_capitals"], [UNPRUNED], limit=4)
    kept = of_task.attrs["outcomes"][UNPRUNED.name]["lettered_capitals"]["logprobs"]
    assert scores.loc["acc", "logprobs"] == pytest.approx(unpack_halves(kept, 4))


def test_what_is_asked_of_rules_is_what_is_published():
    usual = WhichLayersParameters()
    assert usual.calibration in [one.key.get("calibration") for one in read_results(kind="scores")]
    assert [usual.list_share_sizes(layers) for layers in (30, 18, 28)] == [[3, 6, 8, 10], [2, 4, 5, 6], [3, 6, 7, 9]]
