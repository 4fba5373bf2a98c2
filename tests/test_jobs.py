"""Results as jobs: what is typed for each, what it needs by the plan, and what is done again."""

import json
from pathlib import Path

import click
import pytest
import yaml

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.models.sources import Source
from deeper_layers.presets import FIELDS
from deeper_layers_companion.command import main
from deeper_layers_companion.command.report import make_workflow_config
from deeper_layers_companion.experiments import notebook_parameters, parameters, take_away
from deeper_layers_companion.experiments.experiment import Experiment
from deeper_layers_companion.experiments.parameters import SETTINGS, HealingParameters
from deeper_layers_companion.results.places import AROUND as ROOT
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


# --- what a notebook asks for -----------------------------------------------------------------------------

SOURCE = Source("a/b", "sha256:0", num_layers=8, dtype="bfloat16", quantized="bfloat16", folder="")


def test_settings_of_a_healing_say_what_they_mean():
    fields = HealingParameters.model_fields
    assert all(fields[name].description.startswith(FIELDS[name].description) for name in SETTINGS)
    assert {fields[name].default for name in SETTINGS} == {None}, "the preset's own"


def test_only_names_that_neither_results_nor_the_library_know_are_checked_by_lm_eval(monkeypatch):
    checked = []
    monkeypatch.setattr(parameters.sweeping, "check_names", checked.extend)
    parameters.TaskParameters(tasks="capitals, mmlu, hellaswag, sums")
    assert checked == ["hellaswag"]


def test_each_cut_is_healed_under_the_rules_that_chose_it_in_each_way_once(monkeypatch, tmp_path):
    shared, own, simple = Cut(3, 3), Cut(1, 2), Cut(5, 2)
    by_rule = {"similarity": [UNPRUNED, own, shared], "simple": [UNPRUNED, simple, shared]}
    healed = []

    class Recorded(notebook_parameters.Healing):
        def heal_and_score(self, rules):
            healed.append((self.config.rank, self.config.seed, self.cut, rules))

    monkeypatch.setattr(notebook_parameters, "Healing", Recorded)
    monkeypatch.setattr(notebook_parameters, "choose_cuts", lambda sizes, _: by_rule)
    monkeypatch.setattr(notebook_parameters, "score_each", lambda cuts, _: None)
    asked = notebook_parameters.ComparedHealingsParameters(
        sizes="0-3", ranks="2, 8", seeds="0, 1", results=str(tmp_path)
    )
    asked.run(Experiment(asked, SOURCE))
    both, one, other = ["similarity", "simple"], ["similarity"], ["simple"]
    rules = {UNPRUNED: both, own: one, shared: both, simple: other}
    ways = [(8, 0), (2, 0), (8, 1)]  # rank 8 and seed 0 are the preset's
    assert healed == [(*way, cut, rules[cut]) for way in ways for cut in sorted(rules, key=lambda cut: cut.start)]


def test_weights_of_few_bits_are_measured_in_the_number_format_they_compute_in(tmp_path):
    """Of llama.cpp's types in float32, as it is them dequantized that are asked."""
    asked = notebook_parameters.TakeAwayParameters(results=str(tmp_path), tasks="capitals", measure=False)
    formats = {"bfloat16": "bfloat16", "float16": "float16", "int8": "bfloat16", "nf4": "bfloat16", "Q2_K": "float32"}
    for bits, dtype in formats.items():
        experiment = Experiment(asked, SOURCE, pytest.fail, missing={})
        assert take_away.score_rounded(bits, {"simple": [UNPRUNED]}, experiment) is None
        ((kind, key),) = experiment.missing.values()
        assert (kind, key["bits"], key["dtype"]) == ("scores", bits, dtype)
