"""The examples in the docstrings of the public names, and those of README and the pages, run as they are written."""

import dataclasses
import doctest
import functools
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import deeper_layers
from deeper_layers.errors import InputError
from deeper_layers.models import opening
from deeper_layers_companion.command import main
from deeper_layers_companion.jobs import healings
from deeper_layers_companion.report.names import said
from deeper_layers_companion.results import frames

ROOT = Path(__file__).resolve().parents[1]
README, API, YOURS = ROOT / "README.md", ROOT / "book" / "api.md", ROOT / "book" / "your-model.md"
# in this order: an example may go on from one before it
NAMES = """InputError NotMeasuredError Cut simple_cut similarity_cut load_model decoder_layers angular_distances
drop_layers zero_sublayers slice_checkpoint plan sweep heal merge_adapters""".split()
READING = {"results.scores": frames.scores, "said": said}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


LINES = [line for page in (README, YOURS) for block in blocks(page, "bash") for line in block.splitlines()]
TYPED = {re.split(" +#", line)[0]: shlex.split(line, comments=True)[1:] for line in LINES if line[:7] == "deeper-"}


@pytest.fixture(scope="module")
def names():
    """What the examples share: names that one makes are there for the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "load_model", functools.cache(opening.load_model))  # opened once for all
        try:
            opening.load_model("embedded")
        except InputError as error:
            pytest.skip(str(error))
        yield {}


@pytest.mark.quick
def test_every_public_name_has_an_example_and_every_subcommand_is_typed():
    # values, and what is documented beside these
    others = {"PRESETS", "HealingConfig", "Plan", "measure_distances", "silence_sublayers"}
    assert set(deeper_layers.__all__) - others == set(NAMES)
    assert {words[0] for words in TYPED.values()} == set(main.commands)


@pytest.mark.parametrize("name", [*READING, *(pytest.param(name, marks=pytest.mark.thorough) for name in NAMES)])
def test_examples_print_what_they_say(name, request):
    names = request.getfixturevalue("names") if name in NAMES else {"pd": pd, "said": said}
    of = READING.get(name) or getattr(deeper_layers, name)
    (test,) = [one for one in doctest.DocTestFinder(recurse=False).find(of, name, globs=names) if one.examples]
    runner, printed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE), []
    assert not runner.run(test, out=printed.append, clear_globs=False).failed, "".join(printed)
    names.update(test.globs)


@pytest.mark.thorough
def test_lines_of_python(names):
    """Those of both pages are the same. With texts; the healing for a few steps only."""
    every = [block for page in (README, YOURS) for block in blocks(page, "python") if "from deeper_layers" in block]
    (code,) = {re.sub(" +#.*", "", block) for block in every}
    little = dataclasses.replace(deeper_layers.PRESETS["small"], steps=1, warmup_steps=0, batch_sequences=2, at_once=1)
    found = {"little": little, "texts": ["Some words about the capitals of the world, which are many. " * 40] * 40}
    exec(code.replace('PRESETS["small"]', "little"), found)
    assert found["merged"].config.num_hidden_layers == 26 and set(found["rows"]["size"]) == {0, 4}


def test_a_question_of_a_reader_is_three_lines(capsys):
    """BoolQ of every model against the share dropped, as the page on Python asks it."""
    (code,) = blocks(API, "python")
    exec(code, {})
    shown = capsys.readouterr().out.split()
    assert {"Gemma-3-270m", "Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct", "0.741"} <= {*shown}


INSTEAD = {"0-8": "0-2", "8": "2", "Llama-2 7B": "small", "0-24": "0-2"}
INSTEAD |= dict.fromkeys(("boolq", "boolq, arc_easy", "mmlu:5@20, boolq"), "capitals")
LITTLE = {
    "sweep": ["--limit", "3"],
    "scan": ["--limit", "3"],
    "heal": shlex.split("--text wikipedia --tasks capitals --steps 1 --loss-sequences 2 --limit 3"),
}


# report runs every notebook: minutes, and tests/test_command.py has it for one, and what checks results
@pytest.mark.thorough
@pytest.mark.parametrize("line", [line for line, words in TYPED.items() if words[0] not in ("report", "results")])
def test_commands(line, tiny_folder, tmp_path, monkeypatch):
    """Typed as they stand in a folder of one's own, on a tiny model, with data that need no hub."""
    instead = INSTEAD | {"ORGANISATION/NAME": str(tiny_folder)}
    words = [instead.get(word, word) for word in TYPED[line]]
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    keeps = any(option.name == "results" for option in main.commands[words[0]].params)
    place = ["--results", "results"] if keeps else []
    done = CliRunner().invoke(main, [*words, *LITTLE.get(words[0], []), *place])
    assert done.exit_code == 0 and done.stdout.strip(), done.output
