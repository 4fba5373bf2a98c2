"""What was measured beside others is whole and of committed code; the comparisons run on a tiny model."""

import json
import sys

import pytest

from benchmarks import __main__ as listing
from benchmarks import harness
from benchmarks.engines import __main__ as command
from benchmarks.engines import checkpoints
from benchmarks.engines.checkpoints import CUTS, WORST
from benchmarks.engines.environments import ENGINES
from deeper_layers.export.engines import TABLE
from tests.tiny import ALL_FAMILIES

CONTENTS = {path.stem: json.loads(path.read_text()) for path in sorted(harness.MEASURED.glob("*.json"))}
FEW = ["llama", "gemma3", "gpt_oss"]


def test_every_file_names_the_commit_that_made_it():
    for name, content in CONTENTS.items():
        assert content["command"].startswith("python -m ") and len(content["provenance"]["commit"]) == 40, name
        assert content["provenance"]["dirty"] is False, f"{name} was measured with uncommitted changes"


def test_programs_and_the_rooms_that_they_measure_exist():
    for program, rooms in listing.MEASURES.items():
        assert list((harness.ROOT / "benchmarks").glob(f"{program}*")), program
        for room in rooms:
            assert (harness.ROOT / "lib" / "deeper_layers" / room).exists(), room


def test_the_list_says_what_is_out_of_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "sweep-boolq", "damaged"])
    listing.main()
    said = capsys.readouterr().out
    assert "sweep-boolq: of commit 0af9f01, out of date: changed since are lib/deeper_layers/models" in said
    assert "damaged: of commit 6028ae0, measured once" in said and "times faster than hflm" in said


def test_no_engine_is_silently_wrong_and_all_that_was_warned_of_is_in_the_table():
    lines = {(line.engine, line.family) for line in TABLE}
    assert set(CONTENTS["engines"]["engines"]) <= set(ENGINES)
    for name, engine in CONTENTS["engines"]["engines"].items():
        assert ("not_tried" in engine) != bool(engine.get("families"))
        for family, found in engine.get("families", {}).items():
            assert family in ALL_FAMILIES and found["result"] in WORST[2:], (name, family)
            assert set(found["cuts"]) == {f"{cut.start}-{cut.size}" for cut in CUTS}
            if any(cut["result"].endswith("warned of") for cut in found["cuts"].values()):
                assert (ENGINES[name].counts_as, family) in lines


@pytest.mark.thorough
def test_the_newest_transformers_generates_what_is_expected(tmp_path, monkeypatch):
    """The part of the run across engines that takes seconds: real folders, in a process of their own."""
    monkeypatch.setattr(command, "ALL_FAMILIES", FEW)
    monkeypatch.setattr(command, "python_of", lambda *_: sys.executable)
    monkeypatch.setattr(command, "versions_of", lambda *_: {"transformers": "this"})
    (tmp_path / "answers").mkdir()
    found = command.try_engine("transformers", FEW, tmp_path)
    assert {family: result["result"] for family, result in found["families"].items()} == dict.fromkeys(FEW, "equal")
    # other tokens are noticed
    given = command.read_answers(tmp_path / "answers" / "transformers.jsonl")
    given["llama-2-1"]["tokens"][3] ^= 1
    assert checkpoints.judge(tmp_path, "transformers", "llama", given)["result"] == "silently wrong"
    given["gpt_oss-2-1"]["tokens"][3] ^= 1
    assert checkpoints.judge(tmp_path, "vllm", "gpt_oss", given)["result"] == "wrong, warned of"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("program", "words", "equal"),
    [
        ("sweep", "--tasks capitals,sums_one_digit --limit 6 --rules simple,similarity", {}),
        ("similarity", "--samples 6 12 --length 24 --repeats 2", {}),
        ("generation", "--tasks sums_one_digit_generated --limit 5 --sizes 0,2", {"texts": 10, "texts_equal": 10}),
        (
            "slicing",
            "--layers 4 --hidden 64 --intermediate 96 --vocabulary 128 --drop 2 --shard 0.0001 --repeats 1",
            {"equal_bytes": {"ours": True, "opened": True}},
        ),
    ],
)
def test_a_comparison_runs(program, words, equal, tiny_folder, tmp_path, monkeypatch):
    module = __import__(f"benchmarks.{program}", fromlist=["main"])
    monkeypatch.setattr(harness, "MEASURED", tmp_path)
    monkeypatch.setattr(harness, "THREADS", 1)
    given = ["--model", str(tiny_folder), "--dtype", "float32", *words.split()]
    monkeypatch.setattr(sys, "argv", [module.__file__, "tiny", *given])
    module.main()
    content = json.loads((tmp_path / f"{program}-tiny.json").read_text())
    assert content | equal == content
    for family in content.get("families", {}).values():
        assert family["largest_difference"] < 1e-4 and family["choices_that_differ"] == 0
