"""`deeper-layers prune`: what it says before it writes, the largest model that fits, and where it uploads to."""

import dataclasses
import functools
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.export.lineage import read_lineage
from deeper_layers.healing.adapters import add_adapters, save_adapters
from deeper_layers.models.packaged import EMBEDDED, PACKAGED, QWEN
from deeper_layers.models.sources import Source, find_model
from deeper_layers.package_index import file_hash
from deeper_layers.packing import pack
from deeper_layers.pruning import drop_layers
from deeper_layers_companion.command.measure import _find_half_gone
from deeper_layers_companion.jobs import pruned_checkpoint
from deeper_layers_companion.jobs.options import HealingParameters
from deeper_layers_companion.jobs.pruned_checkpoint import Output, PruningDescription, name_for_others, read_size
from deeper_layers_companion.report import one_cut
from deeper_layers_companion.results.frames import tabulate_scores
from deeper_layers_companion.results.places import results_folder
from deeper_layers_companion.results.store import cut_names, find_model_name, read_results, write_result
from tests.test_command import said, typed
from tests.test_results import KEY
from tests.test_slicing import released, tensors
from tests.tiny import tiny_model

SIMPLE = ["--drop", 2, "--rule", "simple"]


def answered(*words) -> dict:
    return json.loads(typed("prune", *words, "--json").stdout)


def weights(out: Path) -> int:
    return out.stat().st_size if out.is_file() else sum(path.stat().st_size for path in out.glob("*.safetensors"))


# ---- before it writes ------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_and_writes_nothing(tiny_folder, tmp_path):
    words = [tiny_folder, tmp_path / "out", *SIMPLE, "--results", tmp_path / "results", "--dtype", "float16"]
    planned = answered(*words, "--dry-run")
    plan = typed("prune", *words, "--dry-run").stdout
    assert (
        f"`deeper-layers sweep {tiny_folder} --results {tmp_path / 'results'} --layers 2-3 --tasks TASKS` measures"
        in plan
    )
    assert not list(tmp_path.iterdir())
    written = answered(*words)
    assert planned["kept"] == [0, 1, 4] and planned["scores"] == planned["engines"] == planned["ruins"] == []
    assert planned["cut"] == written["cut"] == {"start": 2, "size": 2} and planned["dtype"] == "float16"
    assert planned["bytes"] == weights(tmp_path / "out") < written["bytes"]


def test_the_same_cut_of_another_model_is_that_of_all_steps_of_a_folder(tiny_folder, tmp_path):
    first = answered(tiny_folder, tmp_path / "first", "--start", 3, "--drop", 1)
    second = answered(tmp_path / "first", tmp_path / "second", "--start", 1, "--drop", 2)
    assert (first["kept"], second["kept"]) == ([0, 1, 2, 4], [0, 3])
    like = answered(tiny_folder, tmp_path / "like", "--like", tmp_path / "second")
    assert like["kept"] == [0, 4]
    of_second, of_like = (tensors(tmp_path / name) for name in ("second", "like"))
    assert of_second.keys() == of_like.keys() and all(torch.equal(of_like[name], of_second[name]) for name in of_like)
    refused = said("prune", tmp_path / "first", tmp_path / "out", "--like", tmp_path / "second")
    assert "was cut from a model of 5 layers, and this one has 4" in refused
    assert "has no pruning.json of ours" in said("prune", tiny_folder, tmp_path / "out", "--like", tiny_folder)
    both = typed("prune", tiny_folder, tmp_path / "out", "--like", tmp_path / "second", "--drop", 1, code=2).stderr
    assert "--like and --drop exclude each other" in both


def test_a_cut_that_ruins_the_model_is_told_before_it_is_made(tmp_path):
    """By the published results of the embedded model, whose file need not be here."""
    known = answered("embedded", tmp_path / "out.gguf", "--drop", 4, "--dry-run")
    assert "Capitals in words" in known["ruins"] and not any("MMLU" in topic for topic in known["ruins"])
    scores = {score["topic"]: one_cut.Score(**score) for score in known["scores"]}
    described = PruningDescription(EMBEDDED.name, 30, Cut(2, 4), [], None, [], list(scores.values()))
    able = [score for score in scores.values() if score.largest is not None]
    assert known["cut"]["start"] == 2 and f"ruins {len(known['ruins'])} of {len(able)} " in described.warnings()[0]
    score = scores["Capitals in words"]
    assert score.largest == 2 and score.guessing > 0.25 and score.items == 120
    units = [unit for unit in read_results(results_folder(), "scores", EMBEDDED.name) if unit.name == "capitals"]
    units = [unit for unit in units if "2,4" in cut_names(unit.key) and unit.key["dtype"] == score.how]
    rows = [unit.rows.query("metric == 'acc' and size == 4 and start == 2") for unit in units]  # letters, and words
    assert score.pruned[0] in [found["value"].iloc[0] for found in rows if len(found)]


def test_of_sizes_that_were_not_measured_nothing_is_said_for_sure(tmp_path):
    """Of 12 layers 0, 4 and 8 were dropped: half is gone somewhere from 1 to 4, or nobody knows where."""
    key = KEY | {"cuts": {"simple": ["0,0", "7,4", "3,8"]}}
    row = {"metric": "acc", "items": 100, "stderr": None}
    for task, numbers in {"lost": (100, 30, 0), "kept": (100, 97, 95)}.items():
        rows = [
            row | {"task": task, "cut": cut, "value": right / 100, "outcome": pack(np.arange(100) < right)}
            for cut, right in zip(key["cuts"]["simple"], numbers, strict=True)
        ]
        details = {"levels": {task: {"chance": 0.0}}, "num_layers": 12, "weights": "none"}
        run = {"measured": "2026-01-01T00:00:00", "device": "", "commit": None, "seconds": 1, "peak_memory_bytes": 1}
        write_result("scores", key | {"tasks": {task: {}}}, run, rows, details, tmp_path)
    (kept, lost), table = read_results(tmp_path), tabulate_scores(read_results(tmp_path))
    content, words = _find_half_gone([lost, kept])
    assert re.search(r"lost +simple +1 to 4\n", words) and re.search("kept +simple +more than 8, the most meas", words)
    assert [(row["value"], row["sizes"]) for row in content] == [(4, (0, 4, 8)), (None, (0, 4, 8))]
    scores = one_cut.find_scores(table, Cut(7, 4))
    (message,) = PruningDescription("a", 12, Cut(7, 4), [], None, [], scores).warnings()
    assert "ruins 1 of 2 tasks" in message
    assert message.endswith("guessing 0.00; largest measured n that keeps it: 0, and it is ruined from 1 to 4 on")
    (score,) = (score for score in scores if score.topic == "kept")
    assert (score.largest, score.smallest) == (8, None)


def test_a_card_of_a_healed_checkpoint_does_not_have_the_scores_of_the_unhealed_cut_as_its_own():
    cut, measured = Cut(2, 4), read_results(results_folder(), model=EMBEDDED.name)
    scores = one_cut.find_scores(tabulate_scores(measured), cut)
    described = PruningDescription(EMBEDDED.name, 30, cut, [], None, measured, scores)
    own, of_strangers = described.card(), described.card(mock.Mock(healing=None))
    healing = {"config": HealingParameters(steps=7).make_config().settings, "text": "c4"}  # nobody measured that
    for healed in (of_strangers, described.card(mock.Mock(healing=healing))):
        assert "| the same cut, not healed |" in healed and "this one" not in healed
        assert "Of the same cut, not healed, surely less than half" in healed and "its answers have" not in healed
    assert "| this one |" in own and "not healed" not in own and "\nSurely less than half of what the whole" in own


def test_criterion_of_ruin_is_that_of_its_words():
    """Against a plain count of what is left above guessing, with and without doubt."""
    before = np.repeat([1.0, 0.0], [90, 10])
    for right, ruined in ((90, False), (60, False), (50, False), (40, True), (25, True), (0, True)):
        after = np.repeat([1.0, 0.0], [right, 100 - right])
        assert one_cut.is_surely_ruined(before, after, 0.25) is ruined, right  # half of it is left at 0.575
    assert not one_cut.is_surely_ruined(before[80:83], 0 * before[80:83], 0.25)  # of 3 items nothing is sure


def test_engines_that_would_misread_it_are_named_and_a_cut_for_them_is_chosen(tmp_path):
    model = tiny_model("gpt_oss", layer_types=["sliding_attention", "full_attention"] * 3)
    model.save_pretrained(tmp_path / "whole")
    words = [tmp_path / "whole", tmp_path / "out", "--results", tmp_path / "results"]
    odd = answered(*words, "--rule", "simple", "--drop", 1, "--dry-run")
    assert "vllm" in {engine["engine"] for engine in odd["engines"]}
    assert odd["engines"][0]["nearest_safe"]["size"] == 2
    even = answered(*words, "--rule", "simple", "--drop", 2, "--for", "vllm, llama.cpp", "--dry-run")
    assert even["engines"] == [] and even["cut"] == {"start": 3, "size": 2}
    for given in (["--start", 3, "--drop", 2], ["--layers", "3-4"]):  # a cut that is given is not replaced, but judged
        kept = answered(*words, *given, "--for", "vllm, llama.cpp", "--dry-run")
        assert kept["engines"] == [] and kept["cut"] == {"start": 3, "size": 2}
    for given in (["--start", 2, "--drop", 1], ["--layers", "2"], ["--layers", "0, 3"]):
        refused = said("prune", *words, *given, "--for", "vllm")
        assert "--for is vllm, and vllm would read it wrongly" in refused
        assert "it wrongly" in typed("prune", *words, *given, "--dry-run").stdout, "told, where nobody asks for it"
    assert not (tmp_path / "out").exists()
    assert "--drop is 1, and no block" in said("prune", *words, "--rule", "simple", "--drop", 1, "--for", "vllm")
    assert "vllm would read it wrongly" in typed("prune", *words, "--rule", "simple", "--drop", 1).stderr


def test_what_is_known_is_of_these_weights_whatever_they_are_called(tiny_folder, tiny_gguf, tmp_path):
    unit, results = read_results(results_folder(), "distances", EMBEDDED.name)[0], tmp_path / "results"
    for name, sha256 in ((tiny_folder.name, "another's"), ("A name", file_hash(tiny_gguf))):
        key = unit.key | {"model": {"name": name, "weights": f"sha256:{sha256}"}}
        write_result("distances", key, unit.provenance, unit.records, unit.details, results)
    typed("prune", tiny_folder, tmp_path / "out", *SIMPLE, "--results", results)
    assert "Angular distance" not in (tmp_path / "out" / "README.md").read_text()
    assert answered(tiny_gguf, tmp_path / "out.gguf", *SIMPLE, "--dry-run", "--results", results)["model"] == "A name"
    assert find_model_name(f"sha256:{QWEN.sha256}") == QWEN.name and find_model_name("sha256:0") is None


def test_layers_for_multi_token_prediction_are_left_out_where_that_is_asked_for(tmp_path):
    released("deepseek_v3", tmp_path / "whole")
    words = [tmp_path / "whole", tmp_path / "out", *SIMPLE]
    kept, planned = (answered(*words, *more, "--dry-run")["bytes"] for more in ([], ["--without-mtp"]))
    typed("prune", *words, "--without-mtp")
    assert weights(tmp_path / "out") == planned < kept
    assert "--without-mtp" in (tmp_path / "out" / "README.md").read_text()


# ---- the command in what is written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("tiny.gguf", SIMPLE),
        ("tiny", SIMPLE + ["--dtype", "float16"]),
        ("tiny", ["--layers", "0, 2", "--mlp", "3", "--silence"]),
        ("tiny", [*SIMPLE[:2], "--rule", "replaceme", "--samples", "6", "--sequence-length", "16", "--seed", "3"]),
        ("tiny", ["--adapter", "ours"]),
    ],
)
def test_the_command_in_a_checkpoint_makes_the_same_once_paths_are_put_in(
    source, words, tiny_folder, tiny_gguf, opened, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("here", "path/to"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copytree(tiny_folder, tmp_path / folder / "tiny")
        shutil.copyfile(tiny_gguf, tmp_path / folder / "tiny.gguf")
        healed = add_adapters(drop_layers(opened[0], Cut(2, 2)), rank=2, alpha=2, dropout=0.0)
        for name, factor in healed.named_parameters():
            if "lora_B" in name:
                factor.data.fill_(0.01)
        save_adapters(
            healed, tmp_path / folder / "ours", find_model(str(tiny_folder)).key | {"name": "tiny"}, Cut(2, 2)
        )
    asked = [str(tmp_path / "here" / word) if word == "ours" else word for word in words]
    out = tmp_path / "here" / "out"
    typed("prune", tmp_path / "here" / source, out, *asked, "--results", tmp_path / "results")
    command = read_lineage(out).steps[-1].command
    looked = "it looked at 6 sequences of 16 tokens of wikipedia"
    assert (looked in (out / "README.md").read_text()) == ("replaceme" in words)
    assert command in (out / "README.md").read_text() and f" path/to/{source} out " in command
    for name in ("README.md", "pruning.json"):
        assert str(tmp_path) not in (out / name).read_text()
    typed(*shlex.split(command)[1:], "--results", tmp_path / "results")
    first, again = (tensors(folder) for folder in (out, tmp_path / "out"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_a_model_that_anybody_can_fetch_is_named_in_the_command(tiny_gguf, tmp_path, monkeypatch):
    known = dataclasses.replace(EMBEDDED, name="Known", sha256=file_hash(tiny_gguf))
    monkeypatch.setitem(PACKAGED, "Known", known)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert name_for_others(str(tiny_gguf)) == ["Known"] and name_for_others("embedded") == ["embedded"]
    of_hub = dataclasses.replace(find_model(str(tiny_gguf)), revision="0123abcd")
    monkeypatch.setattr("deeper_layers.models.find_model", lambda *_, **__: of_hub)
    assert name_for_others("some/one", trust_remote_code=True) == [
        "some/one",
        "--revision",
        "0123abcd",
        "--trust-remote-code",
    ]


# ---- the largest that fits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "how"), [("folder", {"dtype": "bfloat16"}), ("gguf", {}), ("gguf", {"type": "f16"})])
def test_the_file_fits_and_with_one_layer_more_it_would_not(kind, how, tiny_folder, tiny_gguf, tmp_path):
    model, out = (tiny_folder, tmp_path / "out") if kind == "folder" else (tiny_gguf, tmp_path / "out.gguf")
    source, rule, output = find_model(str(model)), functools.partial(simple_cut, 5), Output(out, **how)
    asked = [output.size_function(source)(rule(number))[0] for number in range(5)]
    for number in (1, 3):
        assert output.fit_cut(source, f"{asked[number] / 1e3:.3f}KB", rule) == rule(number)
        assert output.fit_cut(source, f"{(asked[number] - 1) / 1e3:.3f}KB", rule) == rule(number + 1)
    typed("prune", model, out, "--rule", "simple", "--drop", 4, *(f"--{name}={value}" for name, value in how.items()))
    assert weights(out) == asked[4] < asked[3]
    with pytest.raises(InputError, match="no cut of .* fits into 1KB .the smallest is larger"):
        output.fit_cut(source, "1KB", rule)


def test_what_a_rule_can_not_drop_is_the_reason_that_nothing_fits(tiny_folder, tmp_path):
    def rule(number: int) -> Cut:
        if number > 1:
            raise InputError("the rule keeps four layers")
        return simple_cut(5, number)

    with pytest.raises(InputError, match="no cut of .* fits into 1KB .the rule keeps four layers"):
        Output(tmp_path / "out").fit_cut(find_model(str(tiny_folder)), "1KB", rule)


def test_a_model_that_is_not_on_this_machine_is_sized_by_its_parameters(monkeypatch, tmp_path):
    parameters = SimpleNamespace(parameters=lambda cut: 1000 - 100 * cut.size)
    monkeypatch.setattr(pruned_checkpoint.models, "find_sizes", lambda source: parameters)
    source = Source("org/m", "hub:0", num_layers=5, dtype="bfloat16", quantized="bfloat16", folder="/no/such/folder")
    for dtype, width, kind in (("auto", 2, "bfloat16"), ("float32", 4, "float32")):
        assert Output(tmp_path / "out", dtype=dtype).size_function(source)(Cut(1, 2)) == (800 * width, kind)
    packaged = SimpleNamespace(path=tmp_path / "none.gguf", bytes=1500, parameters=1000)
    monkeypatch.setitem(pruned_checkpoint.models.PACKAGED, "A wheel", packaged)
    source = dataclasses.replace(source, folder="A wheel", quantized="Q8_0")
    for how, width, kind in (({}, 1.5, "Q8_0"), ({"type": "f16"}, 2, "f16")):
        assert Output(tmp_path / "out.gguf", **how).size_function(source)(Cut(1, 2)) == (800 * width, kind)


def test_sizes_in_words():
    assert read_size("400MB") == (400e6, True) and read_size("1.5 GiB") == (1.5 * 2**30, True)
    assert read_size("300M") == (300e6, False) and read_size("1.1b") == (1.1e9, False)
    for text in ("", "400", "-1MB", "0MB", "4 XB", "1e3MB"):
        with pytest.raises(InputError, match="expected bytes as 400MB"):
            read_size(text)


def test_a_number_of_parameters_is_typed(tiny_folder, tmp_path):
    most = sum(tensor.numel() for name, tensor in tensors(tiny_folder).items() if ".layers.0." not in name)
    planned = answered(tiny_folder, tmp_path / "out", "--rule", "simple", "--to-size", f"{most / 1e3}K", "--dry-run")
    assert planned["cut"] == {"start": 3, "size": 1}
