"""The sweep's rows are those that lm-eval gives for each pruned model by itself."""

import copy
import itertools

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import embedded
from deeper_layers.data.corpora import reading_from_mirror
from deeper_layers.errors import InputError
from deeper_layers.packing import unpack, unpack_halves
from deeper_layers.pruning import drop_layers
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.parts import ResumableProgress
from deeper_layers.sweeping.planning import Requests
from deeper_layers.sweeping.sweeps import loglikelihoods, sweep
from deeper_layers.sweeping.tree_model import TreeModel
from tests.mirror import write_dataset

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


# a task of lm-eval for each form of choice: its data set on the hub, the part of it, and three items
FORMS = {
    "winogrande": ("allenai/winogrande", "winogrande_xl", [  # two beginnings, and one end
        {"sentence": "Ann thanked Bea since _ was kind.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        {"sentence": "The cup fell off the shelf as _ was wet.", "option1": "it", "option2": "the shelf",
         "answer": "1"},
        {"sentence": "Jo ran from Al, and _ laughed.", "option1": "Jo", "option2": "Al", "answer": "1"},
    ]),
    "truthfulqa_mc1": ("truthfulqa/truthful_qa", "multiple_choice", [  # as many choices as an item has
        {"question": "What is it?", name: {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)}}
        for choices in (["A cat", "A dog"], ["No", "Yes", "Often", "Never"], ["Paris", "Rome", "here"])
        for name in ("mc1_targets",)
    ]),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", [  # several are right, and a score is a share
        {"question": "Where is it?", "mc1_targets": {}, "mc2_targets": {"choices": choices, "labels": labels}}
        for choices, labels in ((["A", "B"], [1, 0]), (["C", "D", "E"], [1, 1, 0]), (["F", "G", "H"], [0, 0, 1]))
    ]),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", [  # letters or digits name the choices
        {"question": "What is red?", "choices": {"text": ["sky", "a rose", "ink"], "label": list(labels)},
         "answerKey": answer}
        for labels, answer in (("ABC", "B"), ("123", "3"), ("ABC", "A"))
    ]),
    "hellaswag": ("Rowan/hellaswag", "default", [  # documents that lm-eval makes of rows
        {"ctx_a": "A man sits.", "ctx_b": "he", "activity_label": "Work", "label": f"{right}",
         "endings": ["stands up.", "[title] eats the capital.", "is", "sleeps for a long time."]}
        for right in (0, 3, 1)
    ]),
    "copa": ("aps/super_glue", "copa", [  # the right choice is a text
        {"premise": "It rained.", "question": asked, "choice1": "It was wet.", "choice2": "He was.", "label": label}
        for asked, label in (("cause", 0), ("effect", 1), ("effect", 0))
    ]),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", [  # no choice: one end, greedy or not
        {"text": text} for text in ("The capital of this country", "Question: What is it", "What is the answer")
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_tasks_of_every_form_of_choice_from_a_mirror_are_scored_as_by_lm_eval(name, opened, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path, part, rows = FORMS[name]
    mirror = str(tmp_path / "mirror")
    write_dataset(tmp_path / "mirror" / path, part, dict.fromkeys(("train", "validation", "test"), rows))
    table = sweep(*opened, [name], CUTS, datasets=mirror, batch_tokens=256)
    for cut in CUTS:
        lm = HFLM(pretrained=drop_layers(opened[0], cut), tokenizer=opened[1], batch_size=1)
        with reading_from_mirror(mirror, name):
            manager = harness.check_names([name])
            report = lm_eval.simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=10)
        of_cut = table[(table["start"] == cut.start) & (table["size"] == cut.size)].set_index("metric")["value"]
        theirs = {key.removesuffix(",none"): value for key, value in report["results"][name].items()}
        assert len(of_cut) >= 1 and of_cut.to_dict() == pytest.approx({key: theirs[key] for key in of_cut.index})
        kept = table.attrs["outcomes"][cut.name][name]
        samples = sorted(report["samples"][name], key=lambda sample: sample["doc_id"])
        if name != "lambada_openai":
            width = max(len(sample["resps"]) for sample in samples)
            logprobs = [[one[0][0] for one in sample["resps"]] for sample in samples]
            padded = [row + [np.nan] * (width - len(row)) for row in logprobs]
            found = unpack_halves(kept["logprobs"], len(rows))
            np.testing.assert_allclose(found, padded, rtol=1e-3, atol=1e-3)
            assert unpack(kept["chosen"], len(rows)).tolist() == [int(np.argmax(row)) for row in logprobs]
        if name != "truthfulqa_mc2":
            assert unpack(kept["acc"], len(rows)).tolist() == [sample["acc"] for sample in samples]
    if name.startswith(("truth", "hella", "arc")):
        choices = [len(sample["resps"]) for sample in samples]
        assert table.attrs["levels"][name]["chance"] == pytest.approx(np.mean(1 / np.array(choices)))


def begins(tokenizer):
    """A tokenizer that puts a token before every text, as most do."""
    tokenizer = copy.deepcopy(tokenizer)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.bos_token = end
    return tokenizer


def test_a_tokenizer_that_puts_a_token_before_every_text_is_asked_as_by_lm_eval(opened):
    tokenizer = begins(opened[1])
    assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id and len(tokenizer("a")["input_ids"]) == 2
    table = sweep(opened[0], tokenizer, TASKS, CUTS[:2], limit=LIMIT)
    for cut in CUTS[:2]:
        report, outcomes = evaluated((opened[0], tokenizer), cut, TASKS, limit=LIMIT), table.attrs["outcomes"][cut.name]
        samples = sorted(report["samples"]["capitals"], key=lambda sample: sample["doc_id"])
        logprobs = np.array([[response[0][0] for response in sample["resps"]] for sample in samples])
        assert unpack_halves(outcomes["capitals"]["logprobs"], LIMIT) == pytest.approx(logprobs, rel=5e-4, abs=1e-4)
    plain = sweep(*opened, TASKS[:1], CUTS[:1], limit=LIMIT).attrs["outcomes"]["0,0"]["capitals"]["logprobs"]
    assert plain != table.attrs["outcomes"]["0,0"]["capitals"]["logprobs"], "it makes a difference"


def test_of_equal_choices_in_sixteen_bits_that_of_lm_eval_is_chosen(opened):
    """Two rows of the head alike: of equal log-probabilities the first counts, and greedy decoding takes its token."""
    model = copy.deepcopy(opened[0]).to(torch.bfloat16)
    model.lm_head = copy.deepcopy(model.lm_head)
    with torch.no_grad():  # in pairs, so that the likeliest token always has its double
        model.lm_head.weight[1::2] = model.lm_head.weight[::2]
    draw = np.random.default_rng(2)
    pairs = [(draw.integers(2, 298, 9).tolist(), [token]) for token in range(298)]
    logprobs, greedy = loglikelihoods(TreeModel(model, CUTS[:2]), Requests(pairs, 64))
    for cut, row, likeliest in zip(CUTS[:2], logprobs, greedy, strict=True):
        assert np.array_equal(row[::2], row[1::2]) or len({*map(str, pairs[0][0])}) > 1
        lm = HFLM(pretrained=drop_layers(model, cut), tokenizer=opened[1], batch_size=1)
        expected = lm._loglikelihood_tokens([(("", ""), *pair) for pair in pairs], disable_tqdm=True)
        assert likeliest.tolist() == [is_greedy for _, is_greedy in expected]
    # one context, so that exactly one token is the greedy one: the first of two that are alike
    same = [(pairs[0][0], [token]) for token in range(298)]
    ((of_one,), (greedy,)) = loglikelihoods(TreeModel(model, CUTS[:1]), Requests(same, 64))
    assert np.array_equal(of_one[::2], of_one[1::2]) and greedy.sum() == 1
    assert greedy.argmax() % 2 == 0 and of_one.argmax() == greedy.argmax()
    samples = [{"doc_id": 0, "filter": "none", "metrics": [], "target": 1, "resps": [[(-1.5, True)]] * 3}]
    assert unpack(harness._pack_outcomes(samples)["chosen"], 1).tolist() == [0]


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
    found = sweep(*opened, ["sums_one_digit"], CUTS[:2], limit=4)
    known, calls = ResumableProgress.read_or_run, itertools.count()

    def interrupted(*given):
        if next(calls):
            raise KeyboardInterrupt
        return known(*given)

    monkeypatch.setattr(ResumableProgress, "read_or_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(*opened, ["sums"], CUTS[:2], limit=4)
    without = found.query("size == 2 and metric == 'acc'")["value"].item()
    said = capsys.readouterr().err
    assert "sums: 1 of 2 tasks, mean accuracy" in said and f"n = 2, l = 1: {without:.3f}" in said
