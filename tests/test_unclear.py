"""What was unclear once: what is typed or given, and the one line that says what is wrong with it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import deeper_layers
from deeper_layers import Cut, InputError, models, slice_checkpoint
from deeper_layers.command import main
from deeper_layers.models.opening import load_model
from deeper_layers.results import all_units
from deeper_layers.results.units import content_hash
from tests.test_bad_input import change_config, write_gguf
from tests.test_results import KEY, Measure, measure_or_load

LIB = Path(deeper_layers.__file__).parents[1]
NOTEBOOK = LIB.parent / "notebooks" / "01-similarity.ipynb"
PRUNE = "prune tiny out --drop 1 --rule simple"
PYTHON = "python -m deeper_layers"
# root may read what nobody may, unless it gives that right away
WITHOUT_RIGHTS = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search "
WITHOUT_RIGHTS = WITHOUT_RIGHTS if os.geteuid() == 0 else ""


# ---- what is done to the folder that one stands in, before -----------------------------------------------------------


def named(name: str):
    """One more tensor, of this name."""

    def change(place, patch):
        path = place / "tiny" / "model.safetensors"
        save_file(load_file(path) | {name: torch.zeros(3)}, path, metadata={"format": "pt"})

    return change


def written(file: str, content: str):
    def change(place, patch):
        (place / file).write_text(content)

    return change


def unreadable(file: str):
    def change(place, patch):
        if WITHOUT_RIGHTS and shutil.which("setpriv") is None:
            pytest.skip("root reads all, and setpriv is not there")
        (place / file).chmod(0)

    return change


def gguf(name: str):
    def change(place, patch):
        write_gguf(place / name)

    return change


def failing(name: str, error: Exception):
    """A function fails, and there is a GGUF file."""

    def fail(*_, **__):
        raise error

    def change(place, patch):
        write_gguf(place / "m.gguf")
        patch.setattr(name, fail)

    return change


def little_room(place, patch):
    patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 50_000))


def no_number(place, patch):
    change_config(place / "tiny", rms_norm_eps=float("nan"))


def no_mirror(place, patch):
    patch.setenv("DATASETS_MIRROR", "/no/where")


def interrupted(place, patch):
    """Ctrl-C while the first of the packages is imported."""
    (place / "click.py").write_text("raise KeyboardInterrupt")


# ---- what is done in Python ------------------------------------------------------------------------------------------


def refusal(action, *arguments, **options):
    def done(place):
        with pytest.raises(InputError) as caught:
            action(*arguments, **options)
        return str(caught.value)

    return done


def left_out(change, *, signed: bool = True):
    """What is said of a result that was changed, and signed anew where it is to be, and which then is none."""

    def done(place):
        path = measure_or_load("sweep", "a", KEY, Measure(), place).path
        content = json.loads(path.read_text())
        change(content)
        content |= {"sha256": content_hash(content)} if signed else {}
        path.write_text(json.dumps(content))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert all_units(place) == []
        return "\n".join(str(warning.message) for warning in caught)

    return done


# ---- the table -------------------------------------------------------------------------------------------------------

NOTHING = None
# what is done before, what is typed or done, the exit status, words of the line (" ... ": and some between)
CASES = {
    "a revision of a folder": (NOTHING, f"{PRUNE} --revision main", 1, "--revision is 'main', and 'tiny' is a folder"),
    "the same in Python": (
        NOTHING, refusal(slice_checkpoint, "tiny", Cut(1, 1), "out", revision="main"), 1, "revision is 'main', and"
    ),
    "a name with a control character": (named("a\x1b[31m"), PRUNE, 1, "a character that can't be printed"),
    "a name over two lines": (named("model.layers.0.a\nb"), PRUNE, 1, "a character that can't be printed"),
    "a layer of no number": (named("model.layers.01.mlp.up_proj.weight"), PRUNE, 1, "called like those of layers"),
    "a layer below the first": (named("model.layers.-1.mlp.up_proj.weight"), PRUNE, 1, "called like those of layers"),
    "layers of another name": (named("x.model.layers.1.mlp.up_proj.weight"), PRUNE, 1, "of no known name"),
    "help without docstrings": (NOTHING, f"env PYTHONOPTIMIZE=2 {PYTHON} --help", 0, "Exit status: 0 done"),
    "help of a subcommand": (NOTHING, f"env PYTHONOPTIMIZE=2 {PYTHON} prune --help", 0, "MODEL is"),
    "weights without rights": (
        unreadable("tiny/model.safetensors"), f"{WITHOUT_RIGHTS}{PYTHON} {PRUNE}", 1, "no permission to read tiny/model"
    ),
    "a folder without rights": (
        unreadable("tiny"), f"{WITHOUT_RIGHTS}{PYTHON} {PRUNE}", 1, "no permission to read tiny/config.json"
    ),
    "a broken tokenizer": (written("tiny/tokenizer.json", "{"), PRUNE, 0, "warning: the tokenizer of tiny does not"),
    "a full disk": (
        failing("transformers.PreTrainedModel.save_pretrained", RuntimeError("No space left on device (os error 28)")),
        "prune m.gguf out --drop 1 --rule simple", 1, "of m.gguf at CACHE/deeper-layers/ ... (No space left on device",
    ),
    "a file that is no model": (
        NOTHING, "prune tiny/config.json out --drop 1 --rule simple", 1, "is a file that is no GGUF"
    ),
    "the same, to be measured": (NOTHING, "distances tiny/config.json", 1, "is a file that is no GGUF"),
    "capitals": (gguf("M.GGUF"), "prune M.GGUF OUT.GGUF --drop 1 --rule simple", 0, "OUT.GGUF: 0 MB"),
    "capitals, previewed": (gguf("M.GGUF"), "prune M.GGUF OUT.GGUF --drop 1 --rule simple --dry-run", 0, "in F32"),
    "capitals of what is none": (NOTHING, "prune tiny OUT.GGUF --drop 1 --rule simple", 1, "which is no GGUF file"),
    "a device that torch knows by name": (NOTHING, refusal(load_model, "tiny", device="hpu"), 1, "device is 'hpu' ("),
    "no room on stdout": (NOTHING, f"sh -c '{PYTHON} {PRUNE} > /dev/full'", 1, "make room"),
    "memory that ends in an import": (
        failing("deeper_layers.models.stated_config", ImportError("x.so: failed to map segment from shared object")),
        PRUNE, 1, "out of memory (x.so: failed to map segment",
    ),
    "Ctrl-C at once": (interrupted, f"{PYTHON} {PRUNE}", 130, "interrupted"),
    "a mirror of the environment": (no_mirror, "plan tiny --tasks capitals", 1, "DATASETS_MIRROR is '/no/where'"),
    "no number in a configuration": (no_number, PRUNE, 1, "it holds NaN, which is no number"),
    "a tag of YAML": (NOTHING, "papermill -y 'model: !!python/name:os.system'", 1, "can't read the parameters (could"),
    "a date of YAML": (NOTHING, "papermill -y 'model: !!timestamp 2020-01-01'", 1, "(Object of type date is not JSON"),
    "a list of YAML": (NOTHING, "papermill -y '[1, 2]'", 1, "can't read the parameters (cannot convert dictionary"),
    "examples for a text": (NOTHING, "scan tiny --tasks wikipedia:5@2", 1, "--tasks has 5 examples for wikipedia"),
    "little room": (little_room, PRUNE, 1, "needs 0.20 MB more, where 0.05 MB are free"),
    "a result without its hash": (
        NOTHING, left_out(lambda unit: unit.pop("sha256"), signed=False), 1, "content is not that of its SHA-256"
    ),
    "a result against its outcomes": (
        NOTHING, left_out(lambda unit: unit["rows"][0].update(value=0.5)), 1, "its acc of a is 0.5, and that of its"
    ),
}  # fmt: skip


def started(typed: str, place: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process of its own."""
    if typed.startswith("papermill"):
        typed = f"python -m papermill --no-progress-bar --log-level ERROR {NOTEBOOK} made.ipynb {typed[10:]}"
    path = os.pathsep.join([str(place), str(LIB), str(LIB.parent)])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    words = shlex.split(typed.replace("python -m", f"{sys.executable} -m"))
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(case, tiny_folder, tmp_path, monkeypatch):
    before, typed, status, words = CASES[case]
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("DATASETS_MIRROR", raising=False)
    assert callable(models.stated_config)  # loaded, so that it can be replaced
    if before is not NOTHING:
        before(tmp_path, monkeypatch)
    if callable(typed):
        code, shown, said = 1, "", typed(tmp_path)
    elif " -m " in typed or typed.startswith("papermill"):
        code, shown, said = started(typed, tmp_path)
    else:
        result = CliRunner().invoke(main, shlex.split(typed))
        code, shown, said = result.exit_code, result.stdout, result.stderr
    for path in ("tiny", "cache"):  # root removes it all the same, and others may not
        (tmp_path / path).exists() and (tmp_path / path).chmod(0o700)
    print(said)  # shown where a test fails
    assert code == status and "Traceback" not in said
    parts = words.replace("CACHE", str(tmp_path / "cache")).split(" ... ")
    lines = [line for line in (said if status else said + shown).splitlines() if all(part in line for part in parts)]
    assert len(lines) == 1, said
    assert status != 1 or callable(typed) or said.splitlines()[-1] == lines[0]
