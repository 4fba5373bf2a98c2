"""The sweep's rows are those that lm-eval gives for each pruned model by itself."""

import lm_eval
import numpy as np
import pandas as pd
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import embedded
from deeper_layers.errors import InputError
from deeper_layers.pruning import drop_layers
from deeper_layers.results.packing import unpack, unpack_halves
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.harness import reference_levels
from deeper_layers.sweeping.sweeps import sweep

LAYERS = 5
LIMIT = 12
CUTS = [Cut(0, 0), Cut(1, 2), simple_cut(LAYERS, 3)]


@pytest.fixture(scope="module")
def manager():
    return lm_eval.tasks.TaskManager(include_path=str(embedded.TASKS), include_defaults=False)


@pytest.fixture(scope="module")
def naive(opened, manager):
    """For each cut what lm-eval makes of the pruned model: its whole report."""
    model, tokenizer = opened
    reports = {}
    for cut in CUTS:
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=4)
        reports[cut] = lm_eval.simple_evaluate(
            lm, tasks=["capitals"], task_manager=manager, limit=LIMIT, log_samples=True
        )
    return reports


@pytest.fixture(scope="module")
def table(opened):
    return sweep(*opened, ["capitals"], CUTS, limit=LIMIT, batch_tokens=256)


def test_rows_are_those_of_lm_eval(table, naive):
    assert table.columns.tolist() == ["task", "metric", "start", "size", "value", "stderr", "items"]
    assert len(table) == len(CUTS)
    for cut, row in zip(CUTS, table.itertuples(), strict=True):
        expected = naive[cut]["results"]["capitals"]
        assert (row.task, row.metric, row.start, row.size, row.items) == ("capitals", "acc", cut.start, cut.size, LIMIT)
        assert row.value == expected["acc,none"]
        assert row.stderr == pytest.approx(expected["acc_stderr,none"], abs=1e-12)
    assert table["value"].nunique() > 1  # the pruned models differ, so equality says something


def test_outcomes_by_item_are_those_of_lm_eval(table, naive):
    assert set(table.attrs["outcomes"]) == {f"{cut.start},{cut.size}" for cut in CUTS}
    for cut, value in zip(CUTS, table["value"], strict=True):
        outcomes = table.attrs["outcomes"][f"{cut.start},{cut.size}"]["capitals"]
        samples = sorted(naive[cut]["samples"]["capitals"], key=lambda sample: sample["doc_id"])
        assert unpack(outcomes["acc"], LIMIT).tolist() == [sample["acc"] for sample in samples]
        assert unpack(outcomes["acc"], LIMIT).mean() == pytest.approx(value, abs=1e-12)
        chosen = [int(np.argmax([response[0][0] for response in sample["resps"]])) for sample in samples]
        assert unpack(outcomes["chosen"], LIMIT).tolist() == chosen
        right = np.array(chosen) == [item["answer"] for item in embedded.capitals()[:LIMIT]]
        assert np.array_equal(unpack(outcomes["acc"], LIMIT), right)
        assert np.array_equal(unpack(outcomes["target"], LIMIT) == chosen, right)
        logprobs = [[response[0][0] for response in sample["resps"]] for sample in samples]
        assert unpack_halves(outcomes["logprobs"], LIMIT) == pytest.approx(np.array(logprobs), rel=5e-4, abs=1e-4)


def test_answers_of_a_perfect_model_are_all_right(opened):
    model, tokenizer = opened
    loaded = harness.load_tasks(["capitals", "sums"])
    asked = harness.collect_requests(loaded, model, tokenizer, limit=LIMIT)
    answer = np.array([float(i.idx == i.doc["answer"]) for i in asked.instances])
    no = np.zeros(len(answer), dtype=bool)
    for logprobs, expected in ((answer, 1.0), (-answer, 0.0), (answer, 1.0)):  # scored again and again
        rows, outcomes = harness.score(asked, logprobs, no)
        values = rows[rows["metric"] == "acc"].set_index("task")["value"]
        assert values[["capitals", "sums_one_digit", "sums_two_digits"]].eq(expected).all()
        assert set(outcomes) == {"capitals", "sums_one_digit", "sums_two_digits"}
        assert all(unpack(packed["acc"], LIMIT).mean() == expected for packed in outcomes.values())


def test_prompts_and_continuations(opened):
    model, tokenizer = opened
    with pytest.raises(InputError, match="task 'capitals' has no examples for its prompt, 2 are asked for"):
        harness.load_tasks(["capitals"], num_fewshot=2)  # lm-eval would ask without any
    loaded = harness.load_tasks(["capitals"], num_fewshot=0)
    asked = harness.collect_requests(loaded, model, tokenizer, limit=1)
    item = embedded.capitals()[0]
    prompt = f"Question: What is the capital of {item['country']}?\nAnswer: The capital of {item['country']} is"
    assert [tokenizer.decode(tokens) for tokens in asked.contexts] == [prompt] * 4
    assert [tokenizer.decode(tokens) for tokens in asked.continuations] == [f" {name}" for name in item["choices"]]


def test_examples_in_the_prompt_are_those_of_lm_eval(opened, tmp_path, monkeypatch):
    model, tokenizer = opened
    for path in embedded.TASKS.iterdir():
        if path.is_file():  # our tasks, without the number of examples that they fix
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8").replace("num_fewshot: 0\n", ""))
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    report = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer), tasks=["capitals"], task_manager=manager, num_fewshot=2,
        limit=3, log_samples=True,
    )  # fmt: skip
    arguments = [tuple(a) for sample in report["samples"]["capitals"] for a in sample["arguments"]]
    monkeypatch.setattr(embedded, "TASKS", tmp_path)
    # a task that says nothing, and of which nothing is asked, gets none
    assert harness.load_tasks(["capitals"])["tasks"]["capitals"].get_config("num_fewshot") == 0
    asked = harness.collect_requests(
        harness.load_tasks(["capitals"], num_fewshot=2), model, tokenizer, limit=3
    )  # fmt: skip
    assert [tuple(instance.args) for instance in asked.instances] == arguments
    assert all(context.count("Question:") == 3 for context, _ in arguments)
    rows = sweep(model, tokenizer, ["capitals"], [Cut(0, 0)], limit=3, num_fewshot=2)
    assert rows["value"].tolist() == [report["results"]["capitals"]["acc,none"]]


def test_levels_of_guessing(opened, table):
    levels = table.attrs["levels"]["capitals"]
    answers = [item["answer"] for item in embedded.capitals()[:LIMIT]]
    assert levels["chance"] == 0.25
    assert levels["majority"] == np.bincount(answers).max() / LIMIT
    loaded = harness.load_tasks(["capitals"])
    assert reference_levels(harness.collect_requests(loaded, *opened))["capitals"]["majority"] < 0.35


# --- generation ------------------------------------------------------------------------------------------


def test_other_types_of_tasks_are_refused_once_they_are_loaded(monkeypatch):
    monkeypatch.setattr(harness, "SCORED", ("loglikelihood",))
    with pytest.raises(InputError, match="'capitals' is of type multiple_choice, expected loglikelihood or .* choose"):
        harness.load_tasks(["capitals"])


def test_generated_and_chosen_answers_in_one_sweep(opened, manager):
    names = ["capitals", "sums_one_digit_generated"]
    rows = sweep(*opened, names, CUTS, limit=6)
    model, tokenizer = opened
    for cut in CUTS:
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=1)
        report = lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, limit=6, bootstrap_iters=0)
        found = rows[(rows["start"] == cut.start) & (rows["size"] == cut.size)].set_index(["task", "metric"])["value"]
        generated = report["results"]["sums_one_digit_generated"]["exact_match,first_number"]
        assert found["sums_one_digit_generated", "exact_match,first_number"] == generated
        assert found["capitals", "acc"] == report["results"]["capitals"]["acc,none"]
        outcomes = rows.attrs["outcomes"][f"{cut.start},{cut.size}"]["sums_one_digit_generated"]
        assert unpack(outcomes["exact_match,first_number"], 6).mean() == generated
        assert (unpack_halves(outcomes["written"], 6) >= 1).all() and unpack(outcomes["ended"], 6).max() <= 1


def test_the_first_number_of_an_answer_is_its_sum(manager):
    first = embedded.sums(1)[0]
    task = manager.load(["sums_one_digit_generated"])["tasks"]["sums_one_digit_generated"]
    for answer, expected in ((f" {first['sum']}\n", 1), (f" {first['sum']}. And", 1), (" 99", 0), (" none", 0)):
        task.build_all_requests(limit=1)
        task.instances[0].resps = [answer]
        task.apply_filters()
        filtered = task.instances[0].filtered_resps["first_number"]
        assert task.process_results(first, [filtered])["exact_match"] == expected, answer


# --- groups ----------------------------------------------------------------------------------------------


def test_groups_are_those_of_lm_eval(opened, tmp_path):
    """A group of tasks of different sizes, summed up from its tasks' units and by lm-eval in one go."""
    model, tokenizer = opened
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [capitals, sums_one_digit]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    manager = TaskManager(include_path=[str(tmp_path), str(embedded.TASKS)], include_defaults=False)
    loaded = manager.load(["both"])
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    lm = HFLM(pretrained=model, tokenizer=tokenizer)
    expected = lm_eval.evaluate(lm, loaded, limit=90, bootstrap_iters=10)["results"]["both"]
    rows = pd.concat([sweep(model, tokenizer, [name], CUTS[:1], limit=90) for name in ("capitals", "sums_one_digit")])
    found = harness.group_rows(loaded["groups"], rows).set_index("metric")
    assert list(found["task"].unique()) == ["both"] and found.loc["acc", "items"] == expected["sample_len"] == 90 + 81
    assert found.loc["acc", "value"] == expected["acc,none"]
    assert found.loc["acc", "stderr"] == pytest.approx(expected["acc_stderr,none"])
    each = rows[rows["metric"] == "acc"]["value"]
    assert len(each) == 2 and found.loc["acc,macro", "value"] == each.mean() != found.loc["acc", "value"]
    # the standard error of a mean over tasks is unknown where that of a task is
    of_acc = rows[rows["metric"] == "acc"]
    for errors, mean in (([np.nan, np.nan], np.nan), ([0.3, np.nan], np.nan), ([0.3, 0.4], 0.25)):
        found = harness.group_rows(loaded["groups"], of_acc.assign(stderr=errors)).set_index("metric")
        assert found.loc["acc,macro", "stderr"] == pytest.approx(mean, nan_ok=True)


def test_a_group_without_a_metric_is_its_tasks(opened):
    rows = sweep(*opened, ["sums"], CUTS[:1], limit=3)
    assert harness.is_group("sums") and not harness.is_group("capitals")
    assert harness.group_rows(harness.load_tasks(["sums"])["groups"], rows) is rows
