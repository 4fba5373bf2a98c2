"""The sweep's rows are those that lm-eval gives for each pruned model by itself."""

import itertools

import lm_eval
import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import embedded
from deeper_layers.errors import InputError
from deeper_layers.packing import unpack, unpack_halves
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.parts import Parts
from deeper_layers.sweeping.sweeps import sweep

LAYERS, LIMIT = 5, 12
CUTS = [Cut(0, 0), Cut(1, 2), simple_cut(LAYERS, 3)]
TASKS = ["capitals", "sums_one_digit_generated"]
FIRST_NUMBER = "exact_match,first_number"


def evaluated(opened, cut, tasks, **how):
    """lm-eval's own report of a pruned model."""
    lm = HFLM(pretrained=drop_layers(opened[0], cut), tokenizer=opened[1], batch_size=1)
    manager = TaskManager(include_path=str(embedded.TASKS), include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, log_samples=True, **how)


def test_rows_and_outcomes_are_those_of_lm_eval(opened):
    table, items = sweep(*opened, TASKS, CUTS, limit=LIMIT, batch_tokens=256), embedded.capitals()
    assert table.columns.tolist() == ["task", "metric", "start", "size", "value", "stderr", "items"]
    for cut in CUTS:
        report, outcomes = evaluated(opened, cut, TASKS, limit=LIMIT), table.attrs["outcomes"][cut.name]
        rows = table[(table["start"] == cut.start) & (table["size"] == cut.size)].set_index(["task", "metric"])
        row, expected = rows.loc["capitals", "acc"], report["results"]["capitals"]
        assert (row["value"], row["items"]) == (expected["acc,none"], LIMIT)
        assert row["stderr"] == pytest.approx(expected["acc_stderr,none"], abs=1e-12)
        samples = sorted(report["samples"]["capitals"], key=lambda sample: sample["doc_id"])
        logprobs = np.array([[response[0][0] for response in sample["resps"]] for sample in samples])
        of_items = {
            "acc": [sample["acc"] for sample in samples],
            "chosen": logprobs.argmax(axis=1).tolist(),
            "target": [item["answer"] for item in items[:LIMIT]],
        }
        for name, values in of_items.items():
            assert unpack(outcomes["capitals"][name], LIMIT).tolist() == values
        assert unpack_halves(outcomes["capitals"]["logprobs"], LIMIT) == pytest.approx(logprobs, rel=5e-4, abs=1e-4)
        generated = report["results"][TASKS[1]][FIRST_NUMBER]
        assert rows.loc[(TASKS[1], FIRST_NUMBER), "value"] == generated
        assert unpack(outcomes[TASKS[1]][FIRST_NUMBER], LIMIT).mean() == generated
        assert {"written", "ended"} <= set(outcomes[TASKS[1]])
    # the pruned models differ, so equality says something
    assert table[table["metric"] == "acc"]["value"].nunique() > 1
    answers = np.bincount([item["answer"] for item in items[:LIMIT]])
    assert table.attrs["levels"]["capitals"] == {"chance": 0.25, "majority": answers.max() / LIMIT}


def test_other_types_of_tasks_are_refused_once_they_are_loaded(monkeypatch):
    monkeypatch.setattr(harness, "SCORED", ("loglikelihood",))
    with pytest.raises(InputError, match="'capitals' is of type multiple_choice, expected loglikelihood or .* choose"):
        harness.load_tasks(["capitals"])


def test_the_first_number_of_an_answer_is_its_sum():
    first, task = embedded.sums(1)[0], harness.load_tasks(TASKS[1:])["tasks"][TASKS[1]]
    for answer, expected in ((f" {first['sum']}\n", 1), (f" {first['sum']}. And", 1), (" 99", 0), (" none", 0)):
        task.build_all_requests(limit=1)
        task.instances[0].resps = [answer]
        task.apply_filters()
        filtered = task.instances[0].filtered_resps["first_number"]
        assert task.process_results(first, [filtered])["exact_match"] == expected, answer


def test_groups_and_examples_in_the_prompt_are_those_of_lm_eval(opened, tmp_path, monkeypatch):
    """A group of tasks of different sizes, summed up from its tasks' results and by lm-eval in one go."""
    for path in embedded.TASKS.iterdir():
        if path.is_file():  # our tasks, without the number of examples that they fix
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8").replace("num_fewshot: 0\n", ""))
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [capitals, sums_one_digit]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    monkeypatch.setattr(embedded, "TASKS", tmp_path)
    # a task that says nothing, and of which nothing is asked, gets none
    for own in ({}, {"num_fewshot": 0}):
        assert harness.load_tasks(["capitals"], **own)["tasks"]["capitals"].get_config("num_fewshot") == 0
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness, "check_names", lambda _: manager)
    how = {"num_fewshot": 1, "limit": 90}
    report = evaluated(opened, CUTS[0], ["both"], bootstrap_iters=10, **how)
    expected, arguments = report["results"]["both"], [i["arguments"] for i in report["samples"]["capitals"]]
    asked = harness.collect_requests(harness.load_tasks(["capitals"], num_fewshot=1), *opened, limit=90)
    assert [instance.args for instance in asked.instances] == [tuple(a) for of_item in arguments for a in of_item]
    item, (prompts, choices) = embedded.capitals()[0], zip(*(instance.args for instance in asked.instances[:4]))
    prompt = f"Question: What is the capital of {item['country']}?\nAnswer: The capital of {item['country']} is"
    assert all(given.endswith(f"\n\n{prompt}") and given.count("Question:") == 2 for given in prompts)
    assert list(choices) == [f" {name}" for name in item["choices"]]
    table = sweep(*opened, ["both"], CUTS[:1], **how)
    found, leaves = table.set_index(["task", "metric"]).loc[("both", "acc")], table.attrs["outcomes"][CUTS[0].name]
    assert found["items"] == expected["sample_len"] == 90 + 81 and [*leaves] == ["capitals", "sums_one_digit"]
    assert found["value"] == expected["acc,none"]
    assert found["stderr"] == pytest.approx(expected["acc_stderr,none"])


def test_a_group_that_is_interrupted_says_what_it_has(opened, monkeypatch, capsys):
    found, known, calls = sweep(*opened, ["sums_one_digit"], CUTS[:2], limit=4), Parts.read_or_run, itertools.count()

    def interrupted(*given):
        if next(calls):
            raise KeyboardInterrupt
        return known(*given)

    monkeypatch.setattr(Parts, "read_or_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(*opened, ["sums"], CUTS[:2], limit=4)
    without = found.query("size == 2 and metric == 'acc'")["value"].item()
    said = capsys.readouterr().err
    assert "sums: 1 of 2 tasks, mean accuracy" in said and f"n = 2, l = 1: {without:.3f}" in said
