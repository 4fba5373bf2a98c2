"""The command `deeper-layers`: what is typed, what is printed where, and how it ends."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
import torch
from click.testing import CliRunner
from nbclient.exceptions import DeadKernelError

from deeper_layers import sweeping
from deeper_layers.cuts import simple_cut
from deeper_layers.models import opening
from deeper_layers.models.decoder import decoder_layers
from deeper_layers_companion.command import main
from deeper_layers_companion.command.group import INTERRUPTED
from deeper_layers_companion.jobs import options as kinds
from deeper_layers_companion.jobs import scoring
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.report.names import TOPICS
from deeper_layers_companion.results.places import AROUND as ROOT
from deeper_layers_companion.results.places import VARIABLE
from tests.test_results import KEY, Measure, signed

DONE = subprocess.CompletedProcess([], 0)
SMALL = ["--samples", "8", "--sequence-length", "32", "--limit", "6"]


def typed(*words, code: int = 0):
    """What the command printed; it ended with this exit status, and never with a traceback."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    print(done.stdout[:2000], done.stderr[-2000:])  # shown where a test fails
    assert done.exit_code == code, done.exception
    assert "Traceback" not in done.stdout + done.stderr
    return done


def answer(*words) -> dict:
    return json.loads(typed(*words, "--json").stdout)


def said(*words) -> str:
    """The one line on stderr that a mistake ends with."""
    done = typed(*words, code=1)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ") and done.stdout == ""
    return line


# ---- help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", main.commands)
def test_help_has_an_example(name):
    assert main.commands[name].short_help in typed("--help").stdout
    assert f"\n  deeper-layers {name} " in typed(name, "--help").stdout


REFUSED = "prune embedded out --drop 30 | plan none.gguf | heal /no/such --drop 3 | sweep embedded --limit 0"


def test_starting_is_light():
    """Help, and what can be refused without a model, import nothing slow."""
    commands = [[name, "--help"] for name in main.commands] + [line.split() for line in REFUSED.split("|")]
    code = f"""
import sys, click
from deeper_layers_companion.command import main
def imported(*words):
    try: main(words, standalone_mode=False)
    except click.ClickException: pass
    return set(sys.modules)
for words in {commands}:
    assert not {{"torch", "transformers", "lm_eval", "pandas", "scipy"}} & imported(*words), words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_tasks_lists_what_needs_no_hub_and_what_does():
    listed = json.loads(typed("tasks", "--json").stdout)
    assert {"capitals", "written_facts", "embedded_mmlu"} <= {row["task"] for row in listed["tasks"]}
    assert {row["text"] for row in listed["texts"] if not row["hub"]} == {"wikipedia", "code"}
    in_words = {row["task"]: row["what"] for row in listed["tasks"]}
    assert in_words["capitals"] == TOPICS["capitals"] and None not in in_words.values()
    found = json.loads(typed("tasks", "gsm8k", "--json").stdout)
    assert "gsm8k" in found["lm_eval"] and not found["tasks"] and [row["hub"] for row in found["texts"]] == [True]


# ---- what is published -----------------------------------------------------------------------------------


@pytest.fixture
def closed(monkeypatch):
    """No model is opened, and nothing is measured."""
    monkeypatch.setattr(Session, "open", lambda *_: pytest.fail("the model was opened"))


SWEPT = r"""capitals, acc: 120 items, guessing 0.28
cut .*
0,0 +0 +0 +0\.000 +0\.850 \(0.775 to 0.903\)(?s:.*)
2,4 +2 +4 +0\.133 +0\.450 \(0.364 to 0.539\) +-0\.400 \(-0.492 to -0.308\) +similarity
"""
HEALED = r"""drops layers 9..11(?s:.*)
Capitals in words +120 +0\.733 +0\.817 +0\.383 +0\.583 +0\.33\d (?s:.*)
C4, loss +128 +3\.925 +3\.591 +5\.589 +3\.957 +0\.780 +0\.77\d +0\.78\d
"""


@pytest.mark.parametrize(("words", "shown"), [
    ("sweep embedded", SWEPT),
    ("distances embedded", r"drops layers 2..5 \("),
    ("plan embedded", r" 4 +120,354,624 (?s:.*)capitals +120 +[0-9.]+ "),
    ("sweep embedded --no-measure --tasks capitals", r"gone without so many layers:\n(?s:.*)similarity +2 or 3"),
    ("heal embedded --drop 3 --no-measure", HEALED),
    ("heal embedded --drop 0 --no-measure", "nothing was dropped"),
    ("heal Gemma-3-270m --drop 4 --start 13 --rank 2 --no-measure",
     r"C4, loss +128 .* 0\.88\d  at most\n\nupper bound: "),
])  # fmt: skip
def test_published_results_are_found_by_the_defaults_of_the_notebooks(words, shown, closed):
    assert re.search(shown, typed(*words.split()).stdout)


# ---- a model of one's own --------------------------------------------------------------------------------


def test_a_plan_is_true_and_a_sweep_goes_on_where_it_stopped_and_is_read_the_next_time(
    tiny_folder, tmp_path, monkeypatch
):
    tasks = ["capitals", "sums_one_digit_generated"]
    asked = [tiny_folder, *SMALL, "--tasks", ", ".join(tasks), "--sizes", "0-2", "--results", "mine"]
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.models.origins.hash_once", lambda _: pytest.fail("the weights were read"))
        patch.setattr(Session, "open", lambda *_: pytest.fail("the model was opened"))
        plan = answer("plan", *asked, "--rules", "simple")
    assert not list(tmp_path.rglob("*.json"))
    measured, sweep = [], sweeping.sweep

    def interrupted(model, tokenizer, asked, cuts, **options):
        if asked == tasks[1:] and len(measured) == 1:
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.extend(asked)
        opened[:] = model, tokenizer
        return sweep(model, tokenizer, asked, cuts, **options)

    opened: list = []
    monkeypatch.setattr(scoring.sweeping, "sweep", interrupted)
    done = typed("sweep", *asked, code=INTERRUPTED)
    kept = "interrupted: what was measured in full is kept, and the same command goes on from there\n"
    assert done.stdout == "" and done.stderr.endswith(kept)
    assert "layer-steps" in done.stderr  # the cost and the progress
    rows = answer("sweep", *asked)["rows"]
    assert measured == ["capitals", "interrupted", "sums_one_digit_generated"]
    monkeypatch.setattr(Session, "open", lambda *_: pytest.fail("measured again"))
    assert answer("sweep", *asked)["rows"] == rows
    by_heart = sweeping.plan(*opened, ["capitals"], [simple_cut(5, size) for size in range(3)], limit=6)
    capitals, generated = plan["tasks"]
    assert capitals["layer_steps"] == [by_heart.layer_steps] * 2
    assert (capitals["items"], capitals["requests"], capitals["tokens"]) == (6, by_heart.requests, by_heart.tokens)
    assert (generated["generated"], generated["requests"]) == (6, 0)
    assert plan["sizes"][0]["parameters"] == sum(p.numel() for p in opened[0].parameters())


def test_sizes_are_those_of_a_model_or_of_one_task():
    parameters = kinds.SweepParameters(tasks="capitals, sums:0@20/0-1+3, sums_one_digit/2", sizes="0, 4")
    sizes = {task: parameters.list_sizes(5, task) for task in parameters.task_list}
    assert sizes == {"capitals": [0, 4], "sums": [0, 1, 3], "sums_one_digit": [0, 2]}
    for written, found in {"all": [0, 1, 2, 3], "4": [0, 4], "3, 1-2,2": [0, 1, 2, 3]}.items():
        assert kinds.SweepParameters(sizes=written).list_sizes(5) == found


def test_healed_scored_and_the_adapters_are_where_it_says(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [f"Document {i} speaks of {i * i} other things." * 4 for i in range(200)]
    of_split = lambda corpus, *, split=None, **_: [f"{split} {text}" for text in texts]  # noqa: E731
    monkeypatch.setattr("deeper_layers.data.texts", of_split)
    common = [*SMALL, "--tasks", "capitals", "--dtype", "float32", "--results", tmp_path / "results"]
    words = "--text wikipedia --steps 2 --loss-sequences 4 --loss-length 32".split()
    asked = ["heal", tiny_folder, *common, *words]
    first = typed(*asked, "--drop", 2, "--rule", "simple", "--json")
    assert re.search(r"healing tiny-llama drops .*, [0-9,]+ tokens: about [0-9.]+ s, [0-9.]+ [MG]B", first.stderr)
    content = json.loads(first.stdout)
    assert content["cut"] == {"start": 2, "size": 2} and content["recovery"] == []
    assert {row["task"] for row in content["rows"]} == {"wikipedia", "capitals"}
    with monkeypatch.context() as patch:
        patch.setattr("deeper_layers.healing.train", lambda *_, **__: pytest.fail("healed again"))
        again = typed(*asked, "--layers", "2-3").stdout  # the same cut as a list
        assert f"adapters: {content['adapters']}" in again and content["unit"] in again
    assert answer("prune", tiny_folder, tmp_path / "out", "--adapter", content["adapters"])["kept"] == [0, 1, 4]
    content = answer(*asked, "--layers", "0, 3")
    assert content["cut"]["layers"] == [0, 3] and len(content["healing"]["losses"]) == 2


# ---- check ---------------------------------------------------------------------------------------------


def test_a_machine_is_checked_and_its_report_read(tiny_folder, tmp_path):
    report = tmp_path / "check.json"
    content = answer("check", tiny_folder, "--device", "cpu", "--report", report)
    trials = {(row["trial"], row["dtype"]): row for row in content["trials"]}
    assert len(trials) == 10 and all(row["pace"] > 0 and row["memory_bytes"] > 0 for row in trials.values())
    assert all(row["difference"] < 1e-5 for (_, dtype), row in trials.items() if dtype == "float32")
    assert 1e-5 < trials["distances", "bfloat16"]["difference"] <= trials["distances", "bfloat16"]["stated"]
    assert content["fit"] == "fit for everything on cpu in float32; everything on cpu in bfloat16"
    assert content["fit"] in typed("results", "check", report).stdout
    assert "exists, and nothing is overwritten" in said("check", tiny_folder, "--report", report)
    for words, change in {
        "says 'fit for everything": lambda: trials["choices", "bfloat16"].update(difference=9.0),
        "trials.0.stated: Field required": lambda: content["trials"][0].pop("stated"),
        "is no report of": content.clear,
    }.items():
        change()
        report.write_text(json.dumps(content))
        assert words in said("results", "check", report)


def test_a_weight_that_is_wrong_is_found(tiny_folder, monkeypatch, tmp_path):
    """In one data type alone: in the middle of a matrix, or a whole one, which is not a number."""
    load = opening.load_model

    def load_wrongly(model, **options):
        opened, tokenizer = load(model, **options)
        if opened.dtype == torch.bfloat16:
            weight = decoder_layers(opened)[1].mlp.down_proj.weight
            weight.data.mul_(3) if wrong == "scaled" else weight.data.fill_(torch.nan)
        return opened, tokenizer

    monkeypatch.setattr("deeper_layers.models.load_model", load_wrongly)
    for wrong, words in {"scaled": "all but distances, written answers", "filled": "nothing"}.items():
        report = tmp_path / wrong
        found = typed("check", tiny_folder, "--device", "cpu", "--report", report, code=1).stdout
        assert f"fit for everything on cpu in float32; {words}" in found and "DIFFERS" in found
        assert words in typed("results", "check", report, code=1).stdout


# ---- report ----------------------------------------------------------------------------------------------


def test_a_report_without_what_it_needs(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "papermill", None)
        assert "pip install papermill, or 'deeper-layers[book" in said("report", "embedded")
    monkeypatch.setattr("deeper_layers_companion.results.places.AROUND", Path("/nowhere"))
    monkeypatch.chdir("/")
    assert "clone it, and run this there" in said("report", "embedded")


def test_a_report_goes_on_after_notebooks_that_can_not_be_made(tiny_folder, tmp_path, monkeypatch):
    failing = {
        "03-reasoning": papermill.PapermillExecutionError(0, 0, "", "NotMeasuredError", "not measured: piqa", []),
        "08-take-away": DeadKernelError("Kernel died"),
    }

    def execute(source, out, *, parameters, **options):
        assert source.exists() and options["cwd"] == tmp_path
        if source.stem in failing:
            raise failing[source.stem]
        out.write_text(json.dumps({name: str(value) for name, value in parameters.items()}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    given = {"model": str(tiny_folder), "samples": "8", "results": str(tmp_path / "results")}
    asked = ["report", tiny_folder, "--samples", 8, "--steps", 4, "--results", given["results"], "--notebooks"]
    done = typed(*asked, "01, 03-reasoning, 04, 08", "--no-site", code=1)
    assert "2 of 4 notebooks were not made: 03-reasoning: not measured: piqa; 08-take-away: its process" in done.stderr
    assert "5 layers" in done.stderr  # the plan, before anything runs
    out = Path("report", tiny_folder.name)
    assert json.loads((out / "01-similarity.ipynb").read_text()) == given
    assert json.loads((out / "04-healing.ipynb").read_text()) == given | {"steps": "4"}
    # a site of its own shows these results, and not those of the repository
    built = []
    monkeypatch.setenv(VARIABLE, "another")
    monkeypatch.setattr(subprocess, "run", lambda words, **how: built.append((words[1:], how["env"][VARIABLE])) or DONE)
    content = answer(*asked, "01")
    assert built == [(["build", "book/", "--path-output", str(tmp_path / out / "site")], given["results"])]
    made = {"01-similarity": str(out / "01-similarity.ipynb")}
    site = str(tmp_path / out / "site" / "_build" / "html" / "index.html")
    assert content == {"model": tiny_folder.name, "notebooks": made, "site": site}


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


def test_what_others_put_into_a_folder_of_results_is_told_and_moves_no_terminal(tmp_path):
    odd = "pwned\x1b]0;pwned\x07\x1b[2J"
    measure = Measure(tmp_path)
    paths = [measure(KEY | {"model": {"name": name, "weights": "1"}}).path for name in (odd, "a", "b")]
    assert "all files are whole" in typed("results", "check", tmp_path).stdout
    signed(lambda of: of["rows"][1].update(value=0.5))(paths[2])
    elsewhere = tmp_path / odd
    elsewhere.mkdir()
    paths[1].rename(elsewhere / paths[1].name)
    names = ["notes.txt", f"scores-{odd}.json", "scores-a-123.json", f"tables-a-{'0' * 12}.json"]
    for name in names:
        (elsewhere / name).write_text("{}")
    (tmp_path / f"scores-a-{'0' * 12}.json").write_text("{}")
    (paths[2].parent / f"scores-a-{'1' * 12}.json").symlink_to(tmp_path / "nowhere")
    done = typed("results", "check", tmp_path, code=1)
    said = done.stdout.replace(str(tmp_path), "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout + done.stderr)
    for line in (
        "/notes.txt is no result by its", "scores-a-123.json is not a readable result",
        f"tables-a-{'0' * 12}.json is not a readable", f"/scores-a-{'0' * 12}.json is no result by its",
        "is of the model a: move it into a", "is 0.5, and the mean of its",
        f"scores-a-{'1' * 12}.json is a link to nothing: remove it",
    ):  # fmt: skip
        assert line in said, line
    assert len(json.loads(typed("results", "check", tmp_path, "--json", code=1).stdout)["odd"]) == 8
