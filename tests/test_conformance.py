"""The run across engines: what was measured is whole, and nothing in it is wrong without a warning; a part, again."""

import json
import subprocess
import sys

import pytest

from conformance import __main__ as command
from conformance import checkpoints, verdicts
from conformance.checkpoints import CUTS, WHOLE, name_of
from conformance.environments import ENGINES, NEWEST, SCRIPTS
from conformance.measured import MEASURED, read_measured
from deeper_layers.export.engines import TABLE
from tests.tiny import ALL_FAMILIES

SAID = ("refused", "refused by us", "refused, warned of", "not read")
FEW = ["llama", "gemma3", "gpt_oss"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which the newest transformers has saved what else the oldest saves, and answered."""
    folder = tmp_path_factory.mktemp("work")
    jobs = [
        {
            "name": family, "folder": str(folder / "sources" / family), "model_type": checkpoints.model_type(family),
            "settings": checkpoints.settings(family), "vocabulary": checkpoints.VOCABULARY,
        }
        for family in FEW
    ]  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = command.__file__.replace("__main__", "write_sources")
    subprocess.run([sys.executable, script, folder / "jobs.json", folder / "answers.json"], check=True)
    assert json.loads((folder / "answers.json").read_text()) == dict.fromkeys(FEW)
    return folder


def test_the_newest_transformers_generates_what_is_expected(work, monkeypatch, tmp_path):
    """The part of the run that takes seconds: real folders, in a process of their own."""
    monkeypatch.setattr(command, "python_of", lambda name, work: sys.executable)
    monkeypatch.setattr(command, "versions_of", lambda name, work: {"transformers": "this"})
    monkeypatch.setattr(checkpoints, "write_sources", lambda work: dict.fromkeys(FEW, NEWEST))
    found = command.try_engine(NEWEST, FEW, work)
    assert {family: result["result"] for family, result in found["families"].items()} == dict.fromkeys(FEW, "equal")
    # what was answered is not asked again, and other tokens are noticed
    answers = work / "answers" / f"{NEWEST}.jsonl"
    before = answers.read_text()
    assert command.try_engine(NEWEST, FEW, work)["families"] == found["families"] and answers.read_text() == before
    given = command.read_answers(answers, work)
    given["llama-2-1"]["tokens"][3] ^= 1
    assert verdicts.verdict(work, NEWEST, "llama", given)["result"] == "silently wrong"
    given["gpt_oss-2-1"]["tokens"][3] ^= 1
    assert verdicts.verdict(work, "vllm", "gpt_oss", given)["result"] == "wrong, warned of"


def test_an_engine_that_dies_is_asked_for_the_rest(tmp_path):
    script = tmp_path / "engine.py"
    script.write_text(
        "import os\n"
        "def tokens(job):\n"
        "    if job['name'] == 'b': os._exit(3)\n"
        "    if job['name'] == 'c': raise ValueError('no such family\\nmore of it')\n"
        "    print('noise')\n"
        "    return [1, 2]\n"
    )
    engine = ENGINES["vllm"].__class__("Dying", str(script), ())
    jobs = [{"name": name, "folder": "", "prompt": [], "tokens": 2} for name in "abcd"]
    (tmp_path / "answers").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "dying", engine)
        command.run("dying", sys.executable, jobs, tmp_path / "answers" / "dying.jsonl", tmp_path)
    found = command.read_answers(tmp_path / "answers" / "dying.jsonl", tmp_path)
    assert found["a"]["tokens"] == found["d"]["tokens"] == [1, 2]
    assert found["b"]["error"] == "the process ended with 3" and found["c"]["error"] == "ValueError: no such family"


def test_a_slow_engine_gets_both_cuts_only_where_it_counts():
    assert command.cuts_of("vllm", "llama") == CUTS[:1] and command.cuts_of("vllm", "gpt_oss") == CUTS
    assert command.cuts_of("ctranslate2", "llama") == CUTS


# what was measured


def test_nothing_is_silently_wrong_in_any_engine():
    content = read_measured()
    assert content is not None, f"{MEASURED} is missing: python -m conformance"
    assert set(content["engines"]) <= set(ENGINES)
    wrong = [
        (name, family)
        for name, engine in content["engines"].items()
        for family, found in engine.get("families", {}).items()
        if found["result"] in ("silently wrong", "refused")
    ]
    assert wrong == []
    for name, engine in content["engines"].items():
        assert set(engine.get("families", {})) <= set(ALL_FAMILIES)
        assert ("not_tried" in engine) != bool(engine.get("families"))
        for family, found in engine.get("families", {}).items():
            assert found["result"] in verdicts.WORST and set(found["cuts"]) == {f"{c.start}-{c.size}" for c in CUTS}
            assert all("said" in cut for cut in found["cuts"].values() if cut["result"] in SAID), (name, family)


def test_what_was_warned_of_is_in_the_table():
    """Tokens can be equal although layers are taken for others, so nothing is said of what is equal."""
    lines = {(line.engine, line.family) for line in TABLE}
    for name, engine in read_measured()["engines"].items():
        for family, found in engine.get("families", {}).items():
            warned = any(cut["result"].endswith("warned of") for cut in found["cuts"].values())
            assert not warned or (ENGINES[name].counts_as, family) in lines


def test_every_engine_has_its_script():
    assert name_of("llama", WHOLE) == "llama-0-0" and all(
        (SCRIPTS / engine.script).exists() for engine in ENGINES.values()
    )
