"""What nobody should type: every bad word for every option ends in one line, before anything of a model is read."""

import math
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from deeper_layers.checks import shown
from deeper_layers.command import main
from deeper_layers.command.group import SUBCOMMANDS
from deeper_layers.errors import LONGEST, InputError
from deeper_layers.experiments import parameters as kinds
from tests.fuzz import words as fuzz

HUGE = "9" * 5000  # more digits than Python makes a number of
TEXTS = ["", "  ", "nul\0l", "lone \ud800", "x" * 5000]
NO_NUMBERS = ["", "²", "0x10"]
NO_WHOLE_NUMBERS = ["1.5", HUGE]
SIZES = ["-1", "0-99999999999", "8-0", "0-8-9", "²", "٣", "1.5", HUGE, f"0-{HUGE}", ",", "10001", "0..8", "all, 3"]
LISTS = [word for word in SIZES if word != "all, 3"] + ["all"]
TASKS = [",", "capitals:five", "capitals:٣", f"capitals@{HUGE}", "capitals@0", "capitals:1001",
         "capitals:1, capitals:2", "capitals/0-99999999999", "capitals/", "../../x", "*", "no such task",
         "nothing_of_this_name"]  # fmt: skip
NO_FOLDERS = ["FILE", "FILE/below", "PIPE", "/dev/null", "/dev/zero/x", "y" * 300, "~no such user/x"]
WORDS = {  # of options and arguments; those of numbers and the texts above come beside them
    "model": ["PIPE", "/dev/zero", "y" * 300, "~no such user/x"],
    "dtype": ["fp8", "Float32", "torch.float32"],
    "device": ["cuda:99999", "cpu:0:0", "tpu", "meta", "cuda:-1", "cuda:٣", "CUDA"],
    "quantization": ["int4", "4"],
    "datasets": [*NO_FOLDERS, "/no/such/folder"],
    "results": NO_FOLDERS,
    "out": [*NO_FOLDERS[1:4], *NO_FOLDERS[5:]],
    "adapter": [*NO_FOLDERS, "/no/such/folder"],
    "corpus": ["bible", "c4, wikipedia"],
    "text": ["bible", "C4"],
    "preset": ["Llama-3", "SMALL"],
    "heal": ["Llama-3", "SMALL"],
    "adapters": ["some", "ALL"],
    "rule": ["best", "random"],
    "rules": ["best", ",", "simple; similarity"],
    "sizes": SIZES,
    "starts": SIZES,
    "blocks": ["-1", "0", "9" * 40],
    "layers": LISTS,
    "attention": LISTS,
    "mlp": LISTS,
    "engine": ["ollama", "VLLM", "vllm, none"],
    "model_config": [*NO_FOLDERS, "/no/such/config.json"],
    "machine": ["h100x0", "h100x", "x8", "abacus", "h100x-1", f"h100x{'9' * 40}", "h100x8x8"],
    "cluster": ["pbs", "SLURM"],
    "tasks": TASKS,
    "notebooks": ["99", ",", "01, 99", "../x"],
    "kind": ["q2_k", "f64"],
    "engines": ["ollama", ",", "vllm; llama.cpp", "VLLM"],
    "repository": ["name", "/name", "a/b/c", "../../x", "a b/c", "me/x?y", "me/" + "x" * 200],
    "samples": ["-1", "0", "1", "20001", "9" * 40],
    "sequence_length": ["-1", "0", "1", "9" * 40],
    "seed": ["-1", "4294967296", "9" * 40],
    "limit": ["-1", "0", "9" * 40],
    "num_fewshot": ["-1", "1001", "9" * 40],
    "memory": ["-1", "0", "9" * 40],
    "rank": ["-1", "0", "65537"],
    "steps": ["-1", "0", "9" * 40],
    "healing_seed": ["-1", "4294967296"],
    "learning_rate": ["-1", "0", "inf", "nan", "-inf", "1e400", "2"],
    "auxiliary": ["-1", "inf", "nan", "1e400"],
    "objective": ["teach", "DISTILL"],
    "temperature": ["-1", "0", "101", "inf", "nan", "1e400"],
    "loss_sequences": ["-1", "0", "9" * 40],
    "loss_length": ["-1", "0", "1", "9" * 40],
    "drop": ["-1", "10001", "9" * 40],
    "start": ["-1", "10001", "9" * 40],
}
# a branch or commit can be any name
ANY = {"revision"}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty folder to stand in, with a file and a pipe: whoever reads the pipe waits for ever."""
    (tmp_path / "FILE").write_text("{}")
    os.mkfifo(tmp_path / "PIPE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATASETS_MIRROR", raising=False)
    return tmp_path


def bad_words(asked: click.Parameter) -> list[str]:
    kind = getattr(asked.type, "kind", asked.type)  # of a value, or the word none
    if isinstance(kind, click.types.FloatParamType):
        return [*WORDS[asked.name], *NO_NUMBERS]
    if isinstance(kind, click.types.IntParamType):
        return [*WORDS[asked.name], *NO_NUMBERS, *NO_WHOLE_NUMBERS]
    return [*WORDS[asked.name], *TEXTS]


def calls():
    """Every subcommand with one bad word; all else is right."""
    for name in SUBCOMMANDS:
        command = main.get_command(click.Context(main), name)
        for asked in command.params:
            if asked.name in ANY or getattr(asked, "is_flag", False):
                continue
            for bad in bad_words(asked):
                given = {"model": "embedded", "out": "new.gguf" if asked.name == "kind" else "new", asked.name: bad}
                options = {"--drop": "3"} if name in ("heal", "prune") else {}
                options |= {} if isinstance(asked, click.Argument) else {asked.opts[0]: bad}
                arguments = [given[one.name] for one in command.params if isinstance(one, click.Argument)]
                yield [name, *(f"{option}={word}" for option, word in options.items()), "--", *arguments]


def test_every_bad_word_of_every_option_ends_in_one_line(places):
    asked, wrong = list(calls()), {}
    assert len(asked) > 600
    with fuzz.closed():
        for words in asked:
            done = CliRunner().invoke(main, words)
            read = "a model would have been read" if fuzz.REACHED in done.stderr else None
            if said := fuzz.fault(done) or read:
                wrong[shown(words)] = said
    assert not wrong, "\n".join(f"{words}: {said}" for words, said in wrong.items())
    assert sorted(path.name for path in places.iterdir()) == ["FILE", "PIPE"]


def test_words_that_were_drawn_end_in_one_line_too(places):
    """Many more are drawn by `python -m tests.fuzz.words --count 10000`."""
    assert fuzz.faults(count=1500, seed=27) == {}


# ---- parameters of notebooks -----------------------------------------------------------------------------

ODD = [None, True, 7, -7, 0, 10**30, -(10**30), 10**5000, 1.5, math.nan, math.inf, -math.inf, [], ["capitals"], {},
       (1,), b"capitals", object(), Path("x"), "7", "", "x" * 5000, "nul\0l", "\ud800", "²"]  # fmt: skip
CLASSES = [kind for name, kind in vars(kinds).items() if name.endswith("Parameters")]


def test_every_bad_value_of_every_parameter_is_one_line(places):
    tried, wrong = 0, []
    with fuzz.closed():
        for kind in CLASSES:
            for name in kind.model_fields:
                bad = WORDS.get(name, []) if kind.model_fields[name].annotation in (str, str | None) else []
                for value in [*ODD, *bad]:
                    tried += 1
                    try:
                        kind(**{name: value})
                    except InputError as error:
                        if "\n" in str(error) or len(str(error)) > LONGEST or "Traceback" in str(error):
                            wrong.append((kind.__name__, name, str(error)))
                    else:
                        if value in bad:
                            wrong.append((kind.__name__, name, shown(value)))
    assert tried > 3000 and wrong == []
