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
from deeper_layers.sweeping.sweeps import sweep

LAYERS, LIMIT = 5, 12
CUTS = [Cut(0, 0), Cut(1, 2), simple_cut(LAYERS, 3)]
TASKS = ["capitals", "sums_one_digit_generated"]
FIRST_NUMBER = "exact_match,first_number"


def manager(*folders):
    return TaskManager(include_path=[*map(str, folders), str(embedded.TASKS)], include_defaults=False)


@pytest.fixture(scope="module")
def table(opened):
    return sweep(*opened, TASKS, CUTS, limit=LIMIT, batch_tokens=256)


def test_rows_and_outcomes_are_those_of_lm_eval(opened, table):
    assert table.columns.tolist() == ["task", "metric", "start", "size", "value", "stderr", "items"]
    assert set(table.attrs["outcomes"]) == {cut.name for cut in CUTS}
    model, tokenizer = opened
    for cut in CUTS:
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=tokenizer, batch_size=1)
        report = lm_eval.simple_evaluate(lm, tasks=TASKS, task_manager=manager(), limit=LIMIT, log_samples=True)
        rows = table[(table["start"] == cut.start) & (table["size"] == cut.size)].set_index(["task", "metric"])
        row, expected = rows.loc["capitals", "acc"], report["results"]["capitals"]
        assert (row["value"], row["items"]) == (expected["acc,none"], LIMIT)
        assert row["stderr"] == pytest.approx(expected["acc_stderr,none"], abs=1e-12)
        outcomes = table.attrs["outcomes"][cut.name]
        samples = sorted(report["samples"]["capitals"], key=lambda sample: sample["doc_id"])
        logprobs = np.array([[response[0][0] for response in sample["resps"]] for sample in samples])
        found = {name: unpack(outcomes["capitals"][name], LIMIT) for name in ("acc", "chosen", "target")}
        assert found["acc"].tolist() == [sample["acc"] for sample in samples]
        assert np.array_equal(found["chosen"], logprobs.argmax(axis=1))
        assert np.array_equal(found["target"], [item["answer"] for item in embedded.capitals()[:LIMIT]])
        assert unpack_halves(outcomes["capitals"]["logprobs"], LIMIT) == pytest.approx(logprobs, rel=5e-4, abs=1e-4)
        generated = report["results"][TASKS[1]][FIRST_NUMBER]
        assert rows.loc[(TASKS[1], FIRST_NUMBER), "value"] == generated
        assert unpack(outcomes[TASKS[1]][FIRST_NUMBER], LIMIT).mean() == generated
        assert {"written", "ended"} <= set(outcomes[TASKS[1]])
    # the pruned models differ, so equality says something
    assert table[table["metric"] == "acc"]["value"].nunique() > 1


def test_answers_of_a_perfect_model_are_all_right(opened):
    asked = harness.collect_requests(harness.load_tasks(["capitals", "sums"]), *opened, limit=LIMIT)
    answer = np.array([float(i.idx == i.doc["answer"]) for i in asked.instances])
    for logprobs, expected in ((answer, 1.0), (-answer, 0.0), (answer, 1.0)):  # scored again and again
        rows, outcomes = harness.score(asked, logprobs, np.zeros(len(answer), dtype=bool))
        values = rows[rows["metric"] == "acc"].set_index("task")["value"]
        assert set(values.index) >= set(outcomes) == {"capitals", "sums_one_digit", "sums_two_digits"}
        assert values.eq(expected).all()
        assert all(unpack(packed["acc"], LIMIT).mean() == expected for packed in outcomes.values())


def test_prompts_and_continuations(opened):
    model, tokenizer = opened
    with pytest.raises(InputError, match="task 'capitals' has no examples for its prompt, 2 are asked for"):
        harness.load_tasks(["capitals"], num_fewshot=2)  # lm-eval would ask without any
    asked = harness.collect_requests(harness.load_tasks(["capitals"], num_fewshot=0), model, tokenizer, limit=1)
    item = embedded.capitals()[0]
    prompt = f"Question: What is the capital of {item['country']}?\nAnswer: The capital of {item['country']} is"
    assert [tokenizer.decode(tokens) for tokens in asked.requests.contexts] == [prompt] * 4
    continuations = [tokenizer.decode(tokens) for tokens in asked.requests.continuations]
    assert continuations == [f" {name}" for name in item["choices"]]


def test_examples_in_the_prompt_are_those_of_lm_eval(opened, tmp_path, monkeypatch):
    model, tokenizer = opened
    for path in embedded.TASKS.iterdir():
        if path.is_file():  # our tasks, without the number of examples that they fix
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8").replace("num_fewshot: 0\n", ""))
    report = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer), tasks=["capitals"], num_fewshot=2, limit=3, log_samples=True,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )  # fmt: skip
    arguments = [tuple(a) for sample in report["samples"]["capitals"] for a in sample["arguments"]]
    monkeypatch.setattr(embedded, "TASKS", tmp_path)
    # a task that says nothing, and of which nothing is asked, gets none
    assert harness.load_tasks(["capitals"])["tasks"]["capitals"].get_config("num_fewshot") == 0
    asked = harness.collect_requests(harness.load_tasks(["capitals"], num_fewshot=2), model, tokenizer, limit=3)
    assert [tuple(instance.args) for instance in asked.instances] == arguments
    assert all(context.count("Question:") == 3 for context, _ in arguments)
    rows = sweep(model, tokenizer, ["capitals"], [Cut(0, 0)], limit=3, num_fewshot=2)
    assert rows["value"].tolist() == [report["results"]["capitals"]["acc,none"]]


def test_levels_of_guessing(opened, table):
    levels, answers = table.attrs["levels"]["capitals"], [item["answer"] for item in embedded.capitals()[:LIMIT]]
    assert levels == {"chance": 0.25, "majority": np.bincount(answers).max() / LIMIT}
    asked = harness.collect_requests(harness.load_tasks(["capitals"]), *opened)
    assert harness.reference_levels(asked)["capitals"]["majority"] < 0.35


def test_other_types_of_tasks_are_refused_once_they_are_loaded(monkeypatch):
    monkeypatch.setattr(harness, "SCORED", ("loglikelihood",))
    with pytest.raises(InputError, match="'capitals' is of type multiple_choice, expected loglikelihood or .* choose"):
        harness.load_tasks(["capitals"])


def test_the_first_number_of_an_answer_is_its_sum():
    first = embedded.sums(1)[0]
    task = manager().load([TASKS[1]])["tasks"][TASKS[1]]
    for answer, expected in ((f" {first['sum']}\n", 1), (f" {first['sum']}. And", 1), (" 99", 0), (" none", 0)):
        task.build_all_requests(limit=1)
        task.instances[0].resps = [answer]
        task.apply_filters()
        filtered = task.instances[0].filtered_resps["first_number"]
        assert task.process_results(first, [filtered])["exact_match"] == expected, answer


def test_groups_are_those_of_lm_eval(opened, tmp_path):
    """A group of tasks of different sizes, summed up from its tasks' results and by lm-eval in one go."""
    model, tokenizer = opened
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [capitals, sums_one_digit]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    loaded = manager(tmp_path).load(["both"])
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    lm = HFLM(pretrained=model, tokenizer=tokenizer)
    expected = lm_eval.evaluate(lm, loaded, limit=90, bootstrap_iters=10)["results"]["both"]
    rows = pd.concat([sweep(model, tokenizer, [name], CUTS[:1], limit=90) for name in ("capitals", "sums_one_digit")])
    found = harness.group_rows(loaded["groups"], rows).set_index("metric")
    assert list(found["task"].unique()) == ["both"] and found.loc["acc", "items"] == expected["sample_len"] == 90 + 81
    assert found.loc["acc", "value"] == expected["acc,none"]
    assert found.loc["acc", "stderr"] == pytest.approx(expected["acc_stderr,none"])
    of_acc = rows[rows["metric"] == "acc"]
    assert found.loc["acc,macro", "value"] == of_acc["value"].mean() != found.loc["acc", "value"]
    # the standard error of a mean over tasks is unknown where that of a task is
    for errors, mean in (([np.nan, np.nan], np.nan), ([0.3, np.nan], np.nan), ([0.3, 0.4], 0.25)):
        found = harness.group_rows(loaded["groups"], of_acc.assign(stderr=errors)).set_index("metric")
        assert found.loc["acc,macro", "stderr"] == pytest.approx(mean, nan_ok=True)


def test_a_group_without_a_metric_is_its_tasks(opened):
    rows = sweep(*opened, ["sums"], CUTS[:1], limit=3)
    assert harness.is_group("sums") and not harness.is_group("capitals")
    assert harness.group_rows(harness.load_tasks(["sums"])["groups"], rows) is rows
