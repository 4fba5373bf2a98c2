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
from deeper_layers.command import main
from deeper_layers.command.group import SUBCOMMANDS
from deeper_layers.errors import InputError
from deeper_layers.experiments import healings
from deeper_layers.models import opening
from deeper_layers.report import prose
from deeper_layers.results import frames

ROOT = Path(__file__).resolve().parents[1]
README, API, YOURS = ROOT / "README.md", ROOT / "book" / "api.md", ROOT / "book" / "your-model.md"
# in this order: an example may go on from one before it
NAMES = [
    "InputError", "NotMeasuredError", "Cut", "simple_cut", "similarity_cut", "load_model", "decoder_layers",
    "angular_distances", "drop_layers", "silence_sublayers", "slice_checkpoint", "plan", "sweep", "heal",
    "merge_adapters",
]  # fmt: skip


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
def test_every_public_name_has_an_example():
    others = {"PRESETS", "HealingConfig", "Plan", "measure_distances"}  # values, and what is documented beside these
    assert set(deeper_layers.__all__) - others == set(NAMES)


READING = {"results.scores": frames.scores, "said": prose.said}


@pytest.mark.parametrize("name", [*READING, *(pytest.param(name, marks=pytest.mark.thorough) for name in NAMES)])
def test_examples_print_what_they_say(name, request):
    """What an example defines is there for the next."""
    names = request.getfixturevalue("names") if name in NAMES else {"pd": pd, "said": prose.said}
    of = READING.get(name) or getattr(deeper_layers, name)
    found = doctest.DocTestFinder(recurse=False).find(of, name, globs=names)
    (test,) = [one for one in found if one.examples]
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not runner.run(test, out=printed.append, clear_globs=False).failed, "".join(printed)
    names.update(test.globs)


@pytest.mark.thorough
@pytest.mark.parametrize("page", [README, YOURS], ids=["README", "your-model"])
def test_lines_of_python(page, names):
    """With texts; the healing for a few steps only."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "from deeper_layers" in block]
    little = dataclasses.replace(deeper_layers.PRESETS["small"], steps=1, warmup_steps=0, batch_sequences=2, at_once=1)
    found = {"texts": ["Some words about the capitals of the world, which are many. " * 40] * 40}
    exec(code.replace('PRESETS["small"]', "little"), {"little": little} | found, found)
    assert found["merged"].config.num_hidden_layers == 26
    assert set(found["rows"]["size"]) == {0, 4}


def test_a_question_of_a_reader_is_three_lines(capsys):
    """BoolQ of every model against the share dropped, as the page on Python asks it."""
    (code,) = re.findall(r"```python\n(.*?)```", API.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.split("\n\n")[1].splitlines()) + 1 == 3, "and a blank one"
    exec(code, {})
    shown = capsys.readouterr().out
    assert {"Gemma-3-270m", "Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct"} <= set(shown.split())
    assert "0.741" in shown, "of the whole Qwen on 1,000 questions"


def typed(page: Path) -> list[list[str]]:
    """Lines of the page's blocks that begin with deeper-layers, as words."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [words for words in lines if words[:1] == ["deeper-layers"]]


@pytest.mark.quick
def test_a_page_types_every_subcommand():
    assert {words[1] for words in typed(YOURS)} == set(SUBCOMMANDS)


ONCE = {" ".join(words): words for page in (README, YOURS) for words in typed(page)}


# report runs every notebook: minutes, and tests/test_command.py has it for one, and what checks results
@pytest.mark.thorough
@pytest.mark.parametrize("words", [own for own in ONCE.values() if own[1] not in ("report", "results")], ids=" ".join)
def test_commands(words, tiny_folder, tmp_path, monkeypatch):
    """Typed as they stand in a folder of one's own, on a tiny model, with data that need no hub."""
    instead = {"ORGANISATION/NAME": str(tiny_folder), "0-8": "0-2", "8": "2", "Llama-2 7B": "small", "0-24": "0-2"}
    instead |= dict.fromkeys(("boolq", "boolq, arc_easy", "mmlu:5@20, boolq"), "capitals")
    words = [instead.get(word, word) for word in words[1:]]
    words += ["--text", "wikipedia"] if words[0] == "heal" or (words[0] == "prune" and "--heal" in words) else []
    words += ["--tasks", "capitals"] if words[0] == "heal" and "--tasks" not in words else []
    words += ["--steps", "1", "--loss-sequences", "2"] if words[0] == "heal" else []
    words += ["--limit", "3"] if words[0] in ("sweep", "scan", "heal") else []
    words += ["--results", "results"]
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(tiny_folder, "config.json"), tmp_path)
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
