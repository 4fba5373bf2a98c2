"""The benchmarks run, on a tiny model, and find that ours gives what the others give."""

import json
import shutil
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer

from benchmarks import (
    cutters,
    damaged,
    families,
    gained,
    generation,
    healing,
    rebuilt,
    searching,
    side_by_side,
    similarity,
    slicing,
    sweep,
    table,
    unasked,
    widened,
)
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import loglikelihoods


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_folder):
    def main(benchmark, *options, model=True):
        monkeypatch.setattr(side_by_side, "MEASURED", tmp_path)
        monkeypatch.setattr(side_by_side, "THREADS", 1)
        of_model = ["--model", str(tiny_folder), "--dtype", "float32"] if model else []
        monkeypatch.setattr(sys, "argv", [benchmark.__file__, "tiny", *of_model, *options])
        benchmark.main()
        (path,) = tmp_path.glob("*.json")
        return json.loads(path.read_text())

    return main


def test_sweep(run):
    found = run(sweep, "--tasks", "capitals,sums_one_digit", "--limit", "6", "--rules", "simple,similarity", "--loop")
    assert found["items"] == 12 and found["padding"] < 0.05 and found["seconds_bare"] > 0
    assert found["command"].startswith("python -m benchmarks.sweep tiny")
    assert list(found["families"]) == ["simple", "similarity", "simple and similarity"]
    for family in found["families"].values():
        assert family["largest_difference"] < 1e-4 and family["choices_that_differ"] == 0
        assert family["choices"] == 12 * family["cuts"]
        assert family["times_faster_than_hflm"] > 0 and family["times_faster_than_loop"] > 0
    assert found["families"]["simple"]["layer_steps_a_token"] == 5 + 3  # 5 layers, one above each of three cuts
    assert found["cost_against_cuts"][-1] | {"seconds": 0} == {"cuts": 4, "layer_steps_a_token": 8, "seconds": 0}


def test_unasked(run, monkeypatch, tiny_folder):
    """What is run has no question: it begins where the choices do."""
    asked = []

    def noted(model, contexts, *given, **named):
        asked.extend(contexts)
        return loglikelihoods(model, contexts, *given, **named)

    monkeypatch.setattr(unasked, "loglikelihoods", noted)
    found = run(unasked, "--task", "embedded_mmlu", "--metric", "acc", "--limit", "30")
    assert found["items"] == 30 and found["chance"] == 0.25
    low, high = found["interval"]
    assert found["guessing"] == found["right"] / 30 and low <= found["guessing"] <= high
    decode = AutoTokenizer.from_pretrained(tiny_folder).decode
    assert len(asked) == 120 and all(decode(tokens, skip_special_tokens=True)[:3] == "\nA." for tokens in asked)


def test_what_is_left_out_is_the_question_of_the_item_and_of_no_example():
    (task,) = harness.load_tasks(["embedded_mmlu"])["tasks"].values()
    first, second, *_ = documents = list(task.eval_docs)
    task.sampler.sample = lambda **_: [second]
    shown = task.fewshot_context(first, num_fewshot=1)
    unasked.unask(task)
    assert task.fewshot_context(first, num_fewshot=1) == shown.replace(first["question"].strip(), "")
    assert first["question"].strip() in shown and second["question"].strip() in shown
    assert all(document["question"] for document in documents), "the items themselves stay as they are"


def test_agreement(run):
    found = run(sweep, "--tasks", "capitals", "--limit", "6", "--rules", "simple,similarity", "--agreement")
    (family,) = found["families"].values()
    worst = family["where_furthest"]
    assert worst["log_likelihoods"] == found["requests"] == 24 and worst["largest_size"] > 1
    assert worst["largest_difference"] == family["largest_difference"] < 1e-4
    assert all(0 < error < 1e-4 for error in worst["largest_from_float64"].values())
    assert worst["further_from_float64_than_a_tie"] == {"sweep": 0, "hflm": 0}
    (line,) = table._agreement([found])
    assert "0 of 24 answers differ" in line and "of float64 and HFLM within" in line


def test_generation(run):
    found = run(generation, "--tasks", "sums_one_digit_generated", "--limit", "5", "--sizes", "0,2")
    assert found["texts_equal"] == found["texts"] == 10


def test_searching(run, capsys):
    found = run(searching, "--size", "2", "--tokens", "64", "--length", "32", "--repeats", "1")
    assert list(found["rules"]) == ["greedy", "block-pruner"] and found["tokens"] == 64
    assert all(rule["same_layers"] and rule["times_faster"] > 0 for rule in found["rules"].values())
    assert 2.8 < found["rules"]["greedy"]["bare_passes_priced"] < 5  # with the head
    said = capsys.readouterr().out
    price = "greedy: at most 2.8 passes of all layers and 5 of the head"
    assert said.index(price) < said.index("block-pruner: at most")
    lines = table._lines("searching", found)
    assert "down to 3 of 5 layers" in lines[0] and "the same layers" in lines[0]


def test_another_engine_than_that_of_the_checkout_is_refused(tmp_path):
    rebuilt.check_own(loglikelihoods, rebuilt.ROOT)
    with pytest.raises(RuntimeError, match=f"not of {tmp_path}"):
        rebuilt.check_own(loglikelihoods, tmp_path)


def test_similarity(run):
    found = run(similarity, "--samples", "6", "12", "--length", "24", "--repeats", "2")
    assert found["largest_difference_from_float64_loop"] < 1e-6
    assert found["largest_difference_from_one_run_a_size"] < 1e-6
    assert found["tokens"] > 0 and found["bare_passes"] > 0


def test_healing(run):
    small = "--quantization none --size 2 --start 1 --text wikipedia --length 48 --steps 2".split()
    found = run(healing, *small, "--repeats", "2")
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found["useful_tokens_a_second"].values())
    ratios = ("of_bare", "times_faster_than_padded", "auxiliary_of_ours", "above_of_ours", "distill_of_ours")
    assert all(found[name] > 0 for name in ratios) and found["cut"].startswith("drops layers 1..2 ")


def test_widened(run, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    found = run(widened, "--length", "48", "--repeats", "2", "--limit", "4", "--dtype", "bfloat16")
    assert all(len(each) == 2 and min(each) > 0 for ways in found["seconds"].values() for each in ways.values())
    assert list(found["times_faster"]) == ["forwards", "there_and_back", "sweep"] and found["items"] == 4
    assert abs(found["losses"]["plain"] - found["losses"]["widened"]) < 0.02 and found["cosine_of_gradients"] > 0.99
    assert found["log_likelihoods_median_difference"] < 0.1
    (line,) = table._lines("widened", found)
    assert "a step of healing on 48 tokens; a sweep, Capitals, words chosen, 4 items" in line


def test_families(tmp_path):
    jobs = families.prepare(["qwen2", "gemma3n"], tmp_path)
    versions, errors = families.cut_all("ours", sys.executable, jobs, tmp_path)
    assert set(versions) == {"transformers", "torch"}

    def results(of_errors, chosen=jobs):
        return [families.judge(job, of_errors[job["name"]], str(tmp_path)) for job in chosen]

    expected = ["right", "refused"]
    assert [result["result"] for result in results(errors)] == [r for r in expected for _ in families.CUTS]
    assert all(str(tmp_path) not in json.dumps(result) for result in results(errors))
    qwen2 = [job for job in jobs if job["family"] == "qwen2"]
    for job in qwen2:
        job["out"] += "-deleted"
        cutters.delete(job)
        # its list of kinds of layers is longer than the model is deep
        with pytest.raises(StrictDataclassError, match="layer_types"):
            cutters.delete_and_count(job)
    for result in results(dict.fromkeys(errors), qwen2):
        assert result["result"] == "silently wrong" and result["largest_difference"] > 0.1
        assert result["random_weights"] > 0
    worst = families.worst([{"result": "right"}, {"result": "fails", "error": "e"}, {"result": "right"}])
    assert worst == {"result": "fails", "error": "e", "cuts": 1}


def test_a_message_is_its_first_line_without_folders():
    assert families.plain("KeyError: 'layers'\n at /home/me/x.py", "/tmp/a") == "KeyError: 'layers'"
    assert (
        families.plain("Strict:\n    ValueError: 5 of 6 in /home/me/x.py", "/tmp/a")
        == "Strict: ValueError: 5 of 6 in x.py"
    )
    assert families.plain("No file /tmp/a/model/config.json", "/tmp/a") == "No file FOLDER/model/config.json"


def test_damaged(tmp_path):
    """By a tool that only deletes layers, which a missing shard or a wrong count stops and little else."""
    jobs = [job for job in damaged.prepare(8, tmp_path) if job["what"] != "files: pipe"]  # which it would wait for
    errors = damaged.cut("delete", sys.executable, jobs, tmp_path)
    results = [damaged.judged(job, "delete", error) for job, error in zip(jobs, errors, strict=True)]
    assert len(results) > 4 and set(results) <= set(damaged.RESULTS) and {"refuses", "wrong"} <= set(results)


def test_slicing(run):
    shape = ["--layers", "4", "--hidden", "64", "--intermediate", "96", "--vocabulary", "128", "--drop", "2"]
    found = run(slicing, *shape, "--shard", "0.0001", "--repeats", "1", model=False)
    assert found["shards"] > 1 and found["bytes"] > found["kept_bytes"] > 0 and found["cut"] == [1, 2]
    assert found["equal_bytes"] == {"ours": True, "opened": True}
    assert found["of_plain_copy"] > 0 and found["times_faster_than_mergekit"] is None
    assert 0 < found["peak_bytes"]["copy"] < found["peak_bytes"]["ours"]
    if torch.version.cuda is None:  # the libraries of a graphics card are larger than all else
        assert found["peak_bytes"]["ours"] < 500e6
    (line,) = table._lines("slicing", found)
    assert "without 2 of its 4 layers" in line and "save_pretrained's: yes" in line


def test_other_bytes_are_not_the_same_tensors(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    assert slicing.same_tensors(tiny_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert not slicing.same_tensors(tiny_folder, tmp_path / "copy")


def test_gained(run):
    small = ["--sizes", "0,2,4", "--prompt", "24", "--tokens", "4", "--batch", "2", "--repeats", "2"]
    found = run(gained, *small)
    assert [row["ideal"] for row in found["rows"]] == [1, 0.6, 0.2]
    parameters = [row["parameters"] for row in found["rows"]]
    assert parameters[0] - parameters[1] == parameters[1] - parameters[2] > 0
    assert [row["bytes"] for row in found["rows"]] == [4 * number for number in parameters]
    assert found["rows"][0]["share_of_time"]["decode"] == [1, 1, 1]
    assert all(len(rates) == 2 for row in found["rows"] for rates in row["tokens_a_second"].values())
    for row in found["rows"]:
        for middle, least, most in row["share_of_time"].values():
            assert 0 < least <= middle <= most


def test_the_measured_ratios_are_of_committed_code():
    assert len(table.rows()) > len(table.HEAD), "nothing is measured"
    for path in side_by_side.MEASURED.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["provenance"]["dirty"] is False, f"{path.name} was measured with uncommitted changes"
