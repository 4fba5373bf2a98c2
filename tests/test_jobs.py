"""Results as jobs: what is typed for each, what it needs by the plan, and what is done again."""

import json
from pathlib import Path

import click
import pytest
import yaml

from deeper_layers.command import main
from deeper_layers.command.report import make_workflow_config
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.results.places import AROUND as ROOT
from workflow import jobs

pytestmark = pytest.mark.quick

CONFIG = {"models": [], "options": {"limit": 10, "quantization": None, "text": "wikipedia"}, "results": "units"}
PLAN = {
    "layers": 10,
    "sizes": [{"size": 0, "parameters": 10**9, "bytes": 2 * 10**9}],
    "distances": {"tokens_at_most": 1000, "layer_steps_at_most": 10**4},
    "tasks": [
        {"task": "mmlu", "generated": 0, "layer_steps": [10**6, 6 * 10**6]},
        {"task": "gsm8k", "generated": 5, "layer_steps": None},
        {"task": "boolq", "unit": "there.json"},
    ],
}


def test_each_command_gets_the_options_that_it_takes():
    asked = jobs.asked_of(CONFIG, "a/b", {"model": "a/b", "options": {"limit": None, "tasks": "capitals, sums@5"}})
    assert asked.command("distances") == "distances a/b --quantization none --results units --json"
    assert list(asked.tasks.values()) == ["capitals", "sums@5"]
    typed = asked.command("sweep", tasks="sums@5", measure=False, trust_remote_code=True)
    limit = "--limit none --quantization none --tasks sums@5 --results units --no-measure --trust-remote-code --json"
    assert typed == f"sweep a/b {limit}"
    sweep = main.get_command(click.Context(main), "sweep").make_context("sweep", typed.split()[1:]).params
    assert (sweep["limit"], sweep["measure"], sweep["trust_remote_code"]) == (None, False, True)
    assert "measure" not in asked.command("sweep", measure=True), "it is on by itself"
    assert "--text wikipedia" in asked.command("heal", drop=3) and "--sizes" not in asked.command("heal", drop=3)


@pytest.mark.parametrize(("config", "said"), [
    ({"options": {"limits": 1}}, "unknown parameter 'limits'"),
    ({"options": {"measure": False}, "notebooks": "01"}, "measure: false, and notebooks measure what they show"),
])  # fmt: skip
def test_what_no_command_takes_is_refused(config, said):
    with pytest.raises(InputError, match=said):
        jobs.asked_of(config, "a/b", {})


def test_memory_and_time_are_those_of_the_plan(tmp_path):
    (plan := tmp_path / "plan.json").write_text(json.dumps(PLAN))
    asked = jobs.asked_of(CONFIG, "a/b", {"options": {"memory": 2}})
    assert jobs.megabytes(plan, asked) == 2600 + 2148 + jobs.PROGRAM and jobs.megabytes(plan, asked, 2) > 13000
    # 6 million layer-steps of 100 million parameters at 10^12 products a second are 1200 s; what is measured takes
    # none, and how long answers are is not known
    known = {"mmlu:5@20": jobs.START + 20 * jobs.SAFETY, "boolq": jobs.START, "gsm8k": 99, None: jobs.START + 1}
    assert {task: jobs.minutes(plan, 1e12, 99, task) for task in known} == known
    assert jobs.minutes(plan, 1e12, 99, tokens=10**6) > 4 * jobs.START


def test_an_answer_whose_result_is_gone_is_forgotten(tmp_path):
    (tmp_path / "unit.json").touch()
    kept, lost = {"unit": str(tmp_path / "unit.json")}, {"units": [str(tmp_path / "unit.json"), "gone.json"]}
    for name, content in {"kept": kept, "lost": lost, "plan": PLAN}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "half.json").write_text('{"unit": ')
    assert [path.stem for path in jobs.forget_lost(sorted(tmp_path.glob("*.json")))] == ["lost"]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["half", "kept", "plan", "unit"]


def test_one_model_typed_for_report_is_a_configuration(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    given = HealingParameters(model="a/b", datasets="mirror", sizes="0, 2-3")
    config = make_workflow_config(given, "02, 04", tmp_path, True)
    assert config["heal"] == [0, 2, 3] and config["options"]["datasets"] == str(Path("mirror").absolute())
    others = {"heal": [], "notebooks": "01, 02", "site": True}
    assert make_workflow_config(given, "01, 02", tmp_path, False) == config | others


def test_the_schema_and_the_configurations_know_the_same_words():
    schema, *configs = sorted((ROOT / "workflow" / "config").glob("*.yml"), key=lambda path: path.name != "schema.yml")
    known = yaml.safe_load(schema.read_text())["properties"].keys()
    for config in (yaml.safe_load(path.read_text()) for path in configs):
        assert config.keys() <= known and config.get("options", {}).keys() <= HealingParameters.model_fields.keys()
