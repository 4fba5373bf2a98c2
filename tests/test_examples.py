"""The examples in the docstrings of the public names, and those of README, run as they are written."""

import dataclasses
import doctest
import functools
import re
from pathlib import Path

import pytest

import deeper_layers
from deeper_layers.errors import InputError
from deeper_layers.models import opening

README = Path(__file__).resolve().parents[1] / "README.md"
# in this order: an example may go on from one before it
NAMES = [
    "InputError", "Cut", "simple_cut", "similarity_cut", "load_model", "decoder_layers", "angular_distances",
    "drop_layers", "slice_checkpoint", "plan", "sweep", "heal", "merge_adapters",
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


def test_every_public_name_has_an_example():
    others = {"PRESETS", "HealingConfig", "Plan", "measure_distances"}  # values, and what is documented beside these
    assert set(deeper_layers.__all__) - others == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_examples_print_what_they_say(name, names):
    found = doctest.DocTestFinder(recurse=False).find(getattr(deeper_layers, name), name, globs=names)
    (test,) = [one for one in found if one.examples]
    printed = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        test, out=printed.append, clear_globs=False
    )
    assert not results.failed, "".join(printed)
    names.update(test.globs)


def test_readme_from_python(names):
    """README's lines, with texts; the healing for a few steps only."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    texts = ["Some words about the capitals of the world, which are many. " * 40] * 40
    found = {"texts": texts}
    exec(code.replace('PRESETS["small"]', "little"), {"little": little()} | found, found)
    assert found["merged"].config.num_hidden_layers == 26
    assert set(found["rows"]["size"]) == {0, 4}


def little():
    """The preset of README, for one step."""
    return dataclasses.replace(deeper_layers.PRESETS["small"], steps=1, warmup_steps=0, batch_sequences=2, at_once=1)
