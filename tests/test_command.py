"""The command `deeper-layers`: what is typed, what is printed where, and how it ends."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import papermill
import pytest
from click.testing import CliRunner

from deeper_layers import similarity, sweeping
from deeper_layers.command import main
from deeper_layers.command.group import INTERRUPTED, SUBCOMMANDS
from deeper_layers.command.options import asking
from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.experiments import parameters as kinds
from deeper_layers.experiments import scoring
from deeper_layers.experiments.notebook_parameters import ScanParameters
from deeper_layers.experiments.parameters import SweepParameters
from deeper_layers.models import packaged
from deeper_layers.models.opening import load_model
from deeper_layers.report.estimates import Estimate
from deeper_layers.results.places import AROUND as ROOT
from deeper_layers.results.places import results_folder

FIELDS = {
    "plan": (SweepParameters, {"measure"}),
    "distances": (kinds.Parameters, set()),
    "sweep": (SweepParameters, set()),
    "scan": (ScanParameters, set()),
    "prune": (kinds.Parameters, {"dtype"}),  # its --dtype is of what is written
    "heal": (kinds.HealingParameters, {"sizes", "rules"}),
    "report": (kinds.HealingParameters, {"measure"}),
}
SMALL = ["--samples", "8", "--sequence-length", "32", "--limit", "6"]


def typed(*words, code: int = 0):
    """What the command printed on stdout; it ended with this exit status, and never with a traceback."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    print(done.stdout[:2000], done.stderr[-2000:])  # shown where a test fails
    assert done.exit_code == code, done.exception
    assert "Traceback" not in done.stdout + done.stderr
    return done


def said(*words) -> str:
    """The one line on stderr that a mistake ends with."""
    done = typed(*words, code=1)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and done.stdout == ""
    return line


def python(code: str, **options) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, **options)


# ---- help and options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_options_are_the_fields_of_the_parameters_and_help_has_an_example(name):
    kind, without = FIELDS[name]
    assert f"{name} " in typed("--help").stdout and SUBCOMMANDS[name] in typed("--help").stdout
    shown = typed(name, "--help").stdout
    assert f"  deeper-layers {name} embedded" in shown and "--json" in shown
    options = {option.name: option for option in main.get_command(click.Context(main), name).params}
    expected = set(kind.model_fields) - without
    assert expected <= set(options) and (name == "prune" or not without & set(options))
    assert isinstance(options["model"], click.Argument)
    for field in expected - {"model"}:
        words = kind.model_fields[field].description.replace("None", "none").removeprefix("False: ")
        assert options[field].help.startswith(words)


def test_only_what_is_typed_is_given():
    @click.command
    @asking(kinds.HealingParameters)
    def show(given):
        click.echo(json.dumps(given))

    words = ["--limit", "none", "--no-measure", "--learning-rate", "1e-4", "--num-fewshot", "5", "--trust-remote-code"]
    expected = {"limit": None, "measure": False, "learning_rate": 1e-4, "num_fewshot": 5, "trust_remote_code": True}
    for given, found in (([], {}), (words, expected)):
        assert json.loads(CliRunner().invoke(show, ["m", *given]).stdout) == {"model": "m"} | found


LIGHT = """
    prune embedded out --drop 30 | prune /no/such out --drop 3 | prune embedded / --drop 3 | prune / out --drop 1 |
    prune embedded out --drop 1 --dtype fp8 | prune embedded out --drop 1 --adapter /no/such |
    prune embedded out --drop 1 --heal tiny | prune embedded out --drop 1 --for all | heal embedded --drop 30 |
    heal /no/such --drop 3 | sweep /no/such | sweep embedded --limit 0 | distances /no/such | plan none.gguf |
    report embedded --notebooks 99
"""


def test_starting_is_light():
    """Help, and what can be refused without a model, import nothing slow."""
    commands = [[name, "--help"] for name in SUBCOMMANDS] + [line.split() for line in LIGHT.split("|")]
    code = f"""
import sys, click
from deeper_layers.command import main
main(["--help"], standalone_mode=False)
assert not {{"torch", "transformers", "lm_eval", "pandas", "numpy", "pydantic"}} & set(sys.modules)
for words in {commands}:
    try: main(words, standalone_mode=False)
    except click.ClickException as error: print(error.message, file=sys.stderr)
    else: assert words[-1] == "--help", words
    assert not {{"torch", "transformers", "lm_eval", "pandas", "scipy"}} & set(sys.modules), words
print(file=sys.stderr)
for name in ("plan", "sweep", "distances"):
    main([name, "embedded"], standalone_mode=False)
assert not {{"torch", "transformers", "lm_eval", "peft", "datasets"}} & set(sys.modules)
"""
    told = python(code).stderr.partition("\n\n")[0]
    assert len(told.splitlines()) == len(LIGHT.split("|"))


def test_as_a_module_from_a_folder_with_names_of_ours(tmp_path):
    for name in ("lib", "results", "deeper"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    environment = {"PYTHONPATH": str(ROOT / "lib")}
    words = [sys.executable, "-m", "deeper_layers", "distances", "embedded", "--json"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["unit"]).is_relative_to(ROOT / "results")


# ---- what is published -----------------------------------------------------------------------------------


@pytest.fixture
def closed(monkeypatch):
    """No model is opened, and nothing is written."""
    monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("the model was opened"))
    before = {path: path.stat().st_mtime_ns for path in results_folder().rglob("*")}
    yield
    assert before == {path: path.stat().st_mtime_ns for path in results_folder().rglob("*")}


def test_published_results_are_found_by_the_defaults_of_the_notebooks(closed):
    content = json.loads(typed("sweep", "embedded", "--json").stdout)
    assert len(content["units"]) == 5 and not content["not_measured"]
    whole = [row for row in content["rows"] if (row["task"], row["size"], row["metric"]) == ("capitals", 0, "acc")]
    assert [row["rule"] for row in whole] == ["similarity", "simple"] and whole[0]["value"] == pytest.approx(0.85)
    of_whole = r"capitals, acc: 120 items, guessing 0.28\n *n .*\n *0 +0% +0.850 \(0.78 to 0.90\)\n"
    assert re.search(of_whole, told("sweep"))
    assert len(json.loads(typed("distances", "embedded", "--json").stdout)["rows"]) == 30 * 31 // 2
    assert "drops layers 2..5 (" in told("distances")
    healed = told("heal", "--drop", 3, "--no-measure")
    assert "drops layers 9..11" in healed and "at most" not in healed
    assert re.search(r"Capitals, words chosen \(120\) +0\.733 +0\.817 +0\.383 +0\.583  33% \(\d+ to \d+%\)\n", healed)
    assert re.search(r"C4, loss \(128\) +3\.925 +3\.591 +5\.589 +3\.957  78% \(77 to 79%\)\n", healed)
    assert "nothing was dropped" in told("heal", "--drop", 0, "--no-measure")
    of_rank = ("heal", "Gemma-3-270m", "--drop", 4, "--start", 13, "--rank", 2, "--no-measure")
    assert re.search(r"C4, loss \(128\) .*  at most 88%\n\nat most, if .* --drop 0\n", typed(*of_rank).stdout)
    content = json.loads(typed("plan", "embedded", "--json").stdout)
    assert [task["task"] for task in content["tasks"] if Path(task["unit"]).exists()][0] == "capitals"
    assert content["sizes"][4] == {"size": 4, "parameters": 120354624, "bytes": 481418496, "file_bytes": None}
    assert "capitals: 120 items, in results, measured in" in told("plan")


def told(name: str, *words) -> str:
    return typed(name, "embedded", *words).stdout


@pytest.mark.parametrize("name", ["gemma", "qwen", "smollm2"])
def test_parameters_of_packaged_models_are_those_that_were_counted(name):
    measured = json.loads((ROOT / "benchmarks" / "measured" / f"gained-{name}.json").read_text())
    model = packaged.PACKAGED[measured["model"]]
    for row in measured["rows"]:
        assert model.parameters - row["size"] * model.layer_parameters == row["parameters"]


# ---- a model of one's own --------------------------------------------------------------------------------


def test_planned_then_swept_and_the_second_time_read(tiny_folder, tmp_path, monkeypatch):
    tasks = "capitals, sums_one_digit_generated"
    asked = [tiny_folder, *SMALL, "--tasks", tasks, "--sizes", "0-2", "--results", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.models.sources.hash_once", lambda _: pytest.fail("the weights were read"))
        patch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("the model was opened"))
        plan = json.loads(typed("plan", *asked, "--rules", "simple", "--json").stdout)
    assert not list(tmp_path.rglob("*.json"))
    capitals, generated = plan["tasks"]
    model, tokenizer = load_model(str(tiny_folder))
    true = sweeping.plan(model, tokenizer, ["capitals"], [simple_cut(5, size) for size in range(3)], limit=6)
    assert capitals["layer_steps"] == [true.layer_steps] * 2
    assert (capitals["items"], capitals["requests"], capitals["tokens"]) == (6, true.requests, true.tokens)
    assert (generated["generated"], generated["requests"]) == (6, 0)
    assert plan["sizes"][0]["parameters"] == sum(p.numel() for p in model.parameters())
    # where the cuts of a rule are not known, the plan says between what
    least, most = json.loads(typed("plan", *asked, "--json").stdout)["tasks"][0]["layer_steps"]
    first = typed("sweep", *asked, "--json")
    rows = json.loads(first.stdout)["rows"]
    found = {Cut(row["start"], row["size"]) for row in rows}
    true = sweeping.plan(model, tokenizer, ["capitals"], sorted(found), limit=6)
    assert least <= true.layer_steps <= most
    assert "layer-steps" in first.stderr  # the cost and the progress
    monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("measured again"))
    assert json.loads(typed("sweep", *asked, "--json").stdout)["rows"] == rows
    shown = typed("sweep", *asked).stdout
    assert re.search(r"capitals, acc: 6 items.*\nn .*\n(.*\n)*2 +40%  simple +2  \d\.\d+ .*\)  -?\d\.\d+ \(", shown)


def test_sizes_are_those_of_a_model_or_of_one_task():
    parameters = kinds.SweepParameters(tasks="capitals, sums:0@20/0-1+3, sums_one_digit/2", sizes="0, 4")
    sizes = {task: parameters.size_list(5, task) for task in parameters.task_list}
    assert sizes == {"capitals": [0, 4], "sums": [0, 1, 3], "sums_one_digit": [0, 2]}
    for written, found in {"all": [0, 1, 2, 3], "4": [0, 4], "3, 1-2,2": [0, 1, 2, 3]}.items():
        assert kinds.SweepParameters(sizes=written).size_list(5) == found


def test_interrupted_it_goes_on_where_it_stopped(tiny_folder, tmp_path, monkeypatch):
    asked = ["sweep", tiny_folder, *SMALL, "--tasks", "sums_one_digit, capitals", "--sizes", "0-1", "--rules", "simple"]
    asked += ["--results", tmp_path]
    measured, sweep = [], sweeping.sweep

    def interrupted(model, tokenizer, tasks, cuts, **options):
        if tasks == ["capitals"] and len(measured) == 1:
            raise KeyboardInterrupt
        measured.extend(tasks)
        return sweep(model, tokenizer, tasks, cuts, **options)

    monkeypatch.setattr(scoring.sweeping, "sweep", interrupted)
    done = typed(*asked, code=INTERRUPTED)
    said = "interrupted: what was measured in full is kept, and the same command goes on from there\n"
    assert done.stdout == "" and done.stderr.endswith(said)
    measured.append("interrupted")
    typed(*asked)
    assert measured == ["sums_one_digit", "interrupted", "capitals"]


@pytest.fixture
def healing(tiny_folder, tmp_path, monkeypatch):
    """Heals the tiny model, where it keeps adapters and from text of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [f"Document {i} speaks of {i * i} other things." * 4 for i in range(200)]
    of_split = lambda corpus, *, split=None, **_: [f"{split} {text}" for text in texts]  # noqa: E731
    monkeypatch.setattr("deeper_layers.data.texts", of_split)
    asked = ["--text", "wikipedia", "--tasks", "capitals", "--steps", 2, "--dtype", "float32", "--loss-sequences", 4]
    asked += ["--loss-length", 32, "--results", tmp_path / "results"]
    return lambda *cut: typed("heal", tiny_folder, *SMALL, *cut, *asked)


def test_healed_scored_and_the_adapters_are_where_it_says(healing, tiny_folder, tmp_path, monkeypatch):
    asked = ["--drop", 2, "--rule", "simple"]
    content = json.loads(healing(*asked, "--json").stdout)
    assert content["cut"] == {"start": 2, "size": 2}
    assert {row["task"] for row in content["rows"]} == {"wikipedia", "capitals"}
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.healing.train", lambda *_, **__: pytest.fail("healed again"))
        again = healing(*asked).stdout
        assert f"adapters: {content['adapters']}" in again and content["given_back"] == []
        assert "surely above guessing; `deeper-layers sweep` with the same --dtype and" in again
        # the tiny model knows nothing, here it is said to
        typed("sweep", tiny_folder, "--tasks", "capitals", "--rules", "simple", "--sizes", 2, "--limit", 6, "--dtype",
              "float32", "--quantization", "nf4", "--results", tmp_path / "results")  # fmt: skip
        assert "not tested" in healing(*asked).stdout
        patch.setattr("deeper_layers.report.statistics.recovery", lambda *_, **__: Estimate(0.5, 0.4, 0.6))
        assert re.search(r"Capitals, words chosen \(6\) +[01]\.\d+ +[01]\.\d+ +[01]\.\d+  ", healing(*asked).stdout)
        # a list that says the same is the same cut, healed once
        assert json.loads(healing("--layers", "2-3", "--json").stdout)["unit"] == content["unit"]
    done = json.loads(typed("prune", tiny_folder, tmp_path / "out", "--adapter", content["adapters"], "--json").stdout)
    assert done["kept"] == [0, 1, 4] and (tmp_path / "out" / "config.json").exists()
    content = json.loads(healing("--layers", "0, 3", "--json").stdout)
    assert content["cut"]["layers"] == [0, 3] and len(content["healing"]["losses"]) == 2


@pytest.mark.thorough
def test_two_at_once_on_one_folder_of_results(tiny_folder, tmp_path, monkeypatch):
    """The second begins while the first one measures, and waits for it: both say the same, and leave one unit."""
    words = ["distances", str(tiny_folder), *map(str, SMALL[:4]), "--results", str(tmp_path), "--json"]
    measure, started = similarity.distances_by_batch, []

    def meanwhile(*arguments, **options):
        command = [sys.executable, "-m", "deeper_layers", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert "waiting for another process" in started[0].stderr.readline()
        return measure(*arguments, **options)

    monkeypatch.setattr(similarity, "distances_by_batch", meanwhile)
    first = json.loads(typed(*words).stdout)
    assert json.loads(started[0].communicate(timeout=100)[0]) == first and len(started) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [Path(first["unit"])]


def test_results_are_where_the_user_stands(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = ["distances", tiny_folder, *SMALL[:4], "--json", "--results"]
    first = json.loads(typed(*words, "mine").stdout)
    assert (tmp_path / "here" / first["unit"]).is_relative_to(tmp_path / "here" / "mine")
    monkeypatch.setattr(kinds.Parameters, "open", lambda *_: pytest.fail("measured again"))
    monkeypatch.chdir(tmp_path)
    assert json.loads(typed(*words, "here/mine").stdout)["rows"] == first["rows"]


def test_a_preview_of_no_cut_or_of_a_healing_measures_nothing(tiny_folder, tmp_path):
    words = ["prune", tiny_folder, tmp_path / "out", "--dry-run", "--results", tmp_path / "results", "--drop"]
    done = typed(*words, 0)
    assert "drops no layers" in done.stdout and "distances" not in done.stderr
    shown = typed(*words, 1, "--rule", "simple", "--heal", "small").stdout
    assert f"--results {tmp_path / 'results'} --tasks TASKS`" in shown
    assert "would be healed first (small): 60 steps, 122,880 tokens of c4" in shown and not (tmp_path / "out").exists()
    of_heal = ["--rule", "simple", "--steps", 5]
    shown = typed(*words, 1, *of_heal, "--heal", "small").stdout
    assert "would be healed first (small): 5 steps, 10,240 tokens of c4" in shown
    assert "--steps is of --heal" in typed(*words, 1, *of_heal, code=2).stderr


# ---- report ----------------------------------------------------------------------------------------------


def test_a_report_without_what_it_needs(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install 'deeper-layers[book]'" in said("report", "embedded")
    monkeypatch.setattr("deeper_layers.results.places.AROUND", Path("/nowhere"))
    monkeypatch.chdir("/")
    assert "clone the repository" in said("report", "embedded")


def test_a_report_goes_on_after_a_notebook_that_can_not_be_made(tiny_folder, tmp_path, monkeypatch):
    def execute(source, out, *, parameters, **options):
        assert source.exists() and options["cwd"] == tmp_path
        if source.stem == "03-reasoning":
            raise papermill.PapermillExecutionError(0, 0, "", "NotMeasuredError", "not measured: piqa", [])
        out.write_text(json.dumps({name: str(value) for name, value in parameters.items()}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    asked = ["report", tiny_folder, "--samples", 8, "--steps", 4, "--results", tmp_path / "results", "--notebooks"]
    done = typed(*asked, "01, 03-reasoning, 04", code=1)
    assert "1 of 3 notebooks were not made: 03-reasoning: not measured: piqa; mend that" in done.stderr
    assert "5 layers" in done.stderr  # the plan, before anything runs
    out = tmp_path / "report" / tiny_folder.name
    given = {"model": str(tiny_folder), "samples": "8", "results": str(tmp_path / "results")}
    assert json.loads((out / "01-similarity.ipynb").read_text()) == given
    assert json.loads((out / "04-healing.ipynb").read_text()) == given | {"steps": "4"}
    # the site shows the results of the repository, and these are elsewhere
    made = {"01-similarity": f"report/{tiny_folder.name}/01-similarity.ipynb"}
    done = json.loads(typed(*asked, "01", "--json").stdout)
    assert done == {"model": tiny_folder.name, "notebooks": made, "site": None}


def test_a_folder_of_results_is_checked_before_it_is_sent(tmp_path):
    of_model = tmp_path / "SmolLM2-135M-Instruct"
    of_model.mkdir()
    copies = [shutil.copy(path, of_model) for path in (ROOT / "results" / of_model.name).glob("distances-*")]
    told = typed("results", "check", tmp_path).stdout
    assert "all files are whole" in told
    assert re.search("The last layer is unlike the others +SmolLM2-135M-Instruct +supported", told)
    damaged = Path(copies[0])
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert damaged.name in typed("results", "check", tmp_path, code=1).stdout
    shutil.rmtree(of_model)
    assert "no results" in typed("results", "check", tmp_path, code=1).stdout
