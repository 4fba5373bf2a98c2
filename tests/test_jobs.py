"""Results as jobs: what is typed for each, what it needs by the plan, and what is done again."""

import json
from pathlib import Path

import click
import pytest
import yaml

from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.models.sources import Source
from deeper_layers.presets import FIELDS, PRESETS
from deeper_layers_companion.command import main
from deeper_layers_companion.command.report import make_workflow_config
from deeper_layers_companion.jobs import listing, notebook_options, subject
from deeper_layers_companion.jobs import options as kinds
from deeper_layers_companion.jobs.job import Data, Job, distances_job, rounded_job
from deeper_layers_companion.jobs.options import SETTINGS, HealingParameters
from deeper_layers_companion.jobs.scoring import sweep_options
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.places import AROUND as ROOT
from tests.test_command import typed
from workflow import jobs

pytestmark = pytest.mark.quick

CONFIG = {"models": [], "options": {"limit": 10, "quantization": None, "text": "wikipedia"}, "results": "units"}
HEALING = {"healing": PRESETS["small"].settings}
PLAN = [
    {"kind": "distances", "name": "wikipedia", "unit": None, "operations": 10**12, "memory": 2 * 10**9},
    {"kind": "scores", "name": "mmlu", "unit": None, "operations": 1200 * 10**12, "memory": 2 * 10**9},
    {"kind": "scores", "name": "gsm8k", "unit": None, "operations": None, "memory": 2 * 10**9},
    {"kind": "scores", "name": "boolq", "unit": "there.json", "operations": 10**20, "memory": 2 * 10**9},
    {"kind": "healing", "name": "2,2", "unit": None, "operations": 60 * 10**12, "memory": 10**9, "key": HEALING},
]


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
    (plan := tmp_path / "plan.jsonl").write_text("\n".join(map(json.dumps, PLAN)))
    asked = jobs.asked_of(CONFIG, "a/b", {"options": {"memory": 2}})
    line = jobs.find_line(plan, "distances")
    assert jobs.megabytes(line, asked) == 2600 + 2148 + jobs.PROGRAM and jobs.megabytes(line, asked, 2) > 13000
    # 1,200 s at 10^12 products a second; what is measured takes none, and how long answers are is not known
    known = {"mmlu:5@20": jobs.START + 20 * jobs.SAFETY, "boolq": jobs.START, "gsm8k": 99}
    lines = {task: jobs.find_line(plan, "scores", task) for task in known}
    assert {task: jobs.minutes(line, 1e12, 99) for task, line in lines.items()} == known
    healing, tokens = jobs.find_line(plan, "healing"), PRESETS["small"].tokens
    assert jobs.minutes(healing, 1e12, 99, 30 * tokens) == jobs.START + 30 * jobs.SAFETY


def test_a_plan_in_lines_is_one_job_a_line(tiny_folder, tmp_path):
    words = [tiny_folder, "--tasks", "capitals, boolq:5@20", "--sizes", "0-2", "--limit", 6, "--results", tmp_path]
    lines = [json.loads(line) for line in typed("plan", *words, "--jobs").stdout.splitlines()]
    assert [(line["kind"], line["name"]) for line in lines] == [
        ("distances", "wikipedia"), ("scores", "capitals"), ("scores", "boolq"), ("healing", "2,2"),
    ]  # fmt: skip
    distances, capitals, boolq, healing = lines
    assert distances["operations"] > capitals["operations"] > 0 and healing["memory"] > distances["memory"] > 0
    assert boolq["operations"] is None and boolq["unknown"].startswith("its items are on the hub")
    assert capitals["key"]["cuts"]["similarity"] == ["0,0", "similarity 1", "similarity 2"], "not chosen yet"
    assert {line["unit"] for line in lines} == {None}
    words += ["--samples", 8, "--sequence-length", 32]
    typed("distances", *words[:1], *words[-4:], "--results", tmp_path)
    distances, capitals, *_ = [json.loads(line) for line in typed("plan", *words, "--jobs").stdout.splitlines()]
    assert Path(distances["unit"]).is_file(), "what is there is named"
    assert not any("similarity" in name for name in capitals["key"]["cuts"]["similarity"]), "chosen by it"


def test_an_answer_whose_result_is_gone_is_forgotten(tmp_path):
    (tmp_path / "unit.json").touch()
    kept, lost = {"unit": str(tmp_path / "unit.json")}, {"units": [str(tmp_path / "unit.json"), "gone.json"]}
    for name, content in {"kept": kept, "lost": lost, "plan": PLAN[0]}.items():
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
    monkeypatch.setattr(kinds.sweeping, "check_names", checked.extend)
    kinds.TaskParameters(tasks="capitals, mmlu, hellaswag, sums")
    assert checked == ["hellaswag"]


def test_each_cut_is_healed_under_the_rules_that_chose_it_in_each_way_once(monkeypatch, tmp_path):
    shared, own, simple = Cut(3, 3), Cut(1, 2), Cut(5, 2)
    by_rule = {"similarity": [UNPRUNED, own, shared], "simple": [UNPRUNED, simple, shared]}
    monkeypatch.setattr(listing, "select_cuts_by_rule", lambda *_: by_rule)
    asked = notebook_options.ComparedHealingsParameters(sizes="0-3", ranks="2, 8", seeds="0, 1", results=str(tmp_path))
    listed = [job for job in listing.jobs_of("04-healing", Session(asked, SOURCE)) if job.form == "healed"]
    healed = [(job.key["healing"]["rank"], job.key["healing"]["seed"], *job.cuts, [*job.key["cuts"]]) for job in listed]
    both, one, other = ["similarity", "simple"], ["similarity"], ["simple"]
    rules = {UNPRUNED: both, own: one, shared: both, simple: other}
    ways = [(8, 0), (2, 0), (8, 1)]  # rank 8 and seed 0 are the preset's
    assert healed == [(*way, cut, rules[cut]) for way in ways for cut in sorted(rules, key=lambda cut: cut.start)]


def test_a_notebook_measures_once_and_only_what_it_may(monkeypatch):
    measured = []
    monkeypatch.setattr(notebook_options, "Session", lambda asked: asked)
    monkeypatch.setattr(listing, "get_all", lambda _, asked: measured.append(asked.model))
    for given in ({}, {"model": "a/b", "measure": False}, {"model": "c/d"}):
        asked = notebook_options.SimilarityParameters(**given)
        asked.measure_missing()
        asked.measure_missing()
    assert measured == ["c/d"]


def test_a_sweep_takes_the_memory_that_is_asked_for_in_gib():
    options = sweep_options({"shots": 2, "limit": 9, "order": 1}, kinds.TaskParameters(memory=3))
    assert options == {
        "num_fewshot": 2, "limit": 9, "fewshot_order": 1, "datasets": None, "memory": 3 * 1024**3,
    }  # fmt: skip


def test_weights_of_few_bits_are_measured_in_the_number_format_they_compute_in(tmp_path):
    """Of llama.cpp's types in float32, as it is them dequantized that are asked."""
    asked = notebook_options.TakeAwayParameters(results=str(tmp_path), tasks="capitals", measure=False)
    formats = {"bfloat16": "bfloat16", "float16": "float16", "int8": "bfloat16", "nf4": "bfloat16", "Q2_K": "float32"}
    for bits, dtype in formats.items():
        job = rounded_job(SOURCE, asked, bits, {"simple": [UNPRUNED]})
        assert (job.form, job.key["bits"], job.key["dtype"]) == ("rounded", bits, dtype)


def test_one_model_is_open_at_a_time_and_data_are_fingerprinted_once(tmp_path, monkeypatch):
    opened, read = [], []

    def load_model(source, quantization, **_):
        opened.append((source.dtype, quantization))
        return object(), object()

    class Text(Data):
        def fingerprint(self, datasets):
            read.append(self.name)
            return "made up"

    monkeypatch.setattr(subject.models, "load_model", load_model)
    monkeypatch.setattr(subject.data, "check_tokenizer", lambda _: None)
    session = Session(kinds.Parameters(results=str(tmp_path), measure=False), SOURCE)
    first, healed = session.open(), {"dtype": "bfloat16", "quantization": "nf4"}
    assert session.open() is first is session.open({"dtype": "bfloat16", "quantization": None})
    assert session.open(healed) is session.open(healed) is not first and session.open() is not first
    assert opened == [("bfloat16", None), ("bfloat16", "nf4"), ("bfloat16", None)]
    job = distances_job(SOURCE, session.options)
    job = Job(job.kind, job.key, (Text("wikipedia"), Text("wikipedia")))
    assert session.get(job) is session.find(job) is None and session.find_key(job)["data"] == "made up"
    assert read == ["wikipedia"] and [*session.missing.values()] == [job]
    with pytest.raises(NotMeasuredError, match="^not measured: the distances of a/b in bfloat16"):
        session.get(job, needed="the distances")
