"""What nobody foresaw, at the command's and at papermill's edge: one line, and a file for whoever maintains this."""

import errno
import importlib
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import papermill
import pytest
from click.testing import CliRunner
from nbclient.exceptions import DeadKernelError

from deeper_layers import faults
from deeper_layers.command import main
from deeper_layers.errors import InputError, one_line
from deeper_layers.experiments import notebook_parameters
from deeper_layers.experiments import parameters as kinds

pytestmark = pytest.mark.quick

SECRET, TOKEN = "a secret of the environment", "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def written_to(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setenv("SOME_PASSWORD", SECRET)
    monkeypatch.delenv(faults.SHOWN, raising=False)
    monkeypatch.setattr(sys, "argv", ["deeper-layers", "plan", "a model"])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def ends_with(monkeypatch):
    """How the command ends where something raises this error."""

    def of(error, words=("plan", "embedded")):
        def raising(*_):
            raise error

        monkeypatch.setattr(kinds.Parameters, "check", raising)
        monkeypatch.setattr(notebook_parameters.QuestionAnsweringParameters, "check", raising)
        return CliRunner().invoke(main, list(words))

    return of


def line(done, code: int) -> str:
    assert (done.exit_code, done.stdout) == (code, "")
    (only,) = done.stderr.strip().splitlines()
    assert only.startswith("error: ")
    return only


def test_a_fault_is_one_line_and_a_file_that_says_where(ends_with, written_to):
    # not the user's to mend, though it speaks of allocating
    assert "out of memory" not in line(ends_with(RuntimeError("no weights in /models/allocated")), 70)
    (path,) = written_to.iterdir()
    path.unlink()
    said = line(ends_with(KeyError(f"some {TOKEN} thing\nin two lines")), 70)
    assert "KeyError" in said and TOKEN not in said
    (path,) = written_to.iterdir()
    assert str(path) in said and "report it with that" in said
    written = path.read_text()
    assert "Traceback (most recent call last)" in written and Path(__file__).name in written and "KeyError" in written
    assert "command: deeper-layers plan 'a model'" in written and "\ntorch 2" in written and "\npython 3" in written
    assert SECRET not in written and TOKEN not in written and path.stat().st_mode & 0o077 == 0


def test_where_no_file_can_be_written(ends_with, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert f"{faults.SHOWN}=1 shows where" in line(ends_with(KeyError("x")), 70)


def test_whoever_works_on_this_sees_it_whole(ends_with, written_to, monkeypatch):
    monkeypatch.setenv(faults.SHOWN, "1")
    assert isinstance(ends_with(KeyError("x")).exception, KeyError)
    assert isinstance(ends_with(InputError("mistake")).exception, InputError)
    assert not list(written_to.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a mistake\nin two lines"), "error: a mistake in two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/place"), "error: can't use /a/place (No such file)"),
        (PermissionError(errno.EACCES, "denied", "/a/place"), "error: can't use /a/place (denied)"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: can't write any more (No space left on device)"),
        (MemoryError(), "error: out of memory (MemoryError)"),
        (OSError(12, "Cannot allocate memory"), "error: out of memory ("),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "error: out of memory (Default"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "error: out of memory (CUBLAS"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_says_how(error, message, ends_with, written_to):
    assert line(ends_with(error), 1).startswith(message)
    assert not list(written_to.iterdir())


def test_interrupted_and_left_are_no_faults(ends_with, written_to):
    assert ends_with(KeyboardInterrupt()).exit_code == 130
    assert ends_with(SystemExit(3)).exit_code == 3
    done = ends_with(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (done.exit_code, done.stderr) == (1, "") and not list(written_to.iterdir())


def test_a_warning_is_one_line(monkeypatch):
    def warning(*_):
        warnings.warn("a unit\ncan't be read", stacklevel=2)
        raise InputError("then this")

    monkeypatch.setattr(kinds.Parameters, "check", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = CliRunner().invoke(main, ["distances", "embedded"])
    assert done.stderr == "warning: a unit can't be read\nerror: then this\n"


def test_a_message_can_not_move_the_cursor_nor_fill_the_screen():
    assert one_line("a\x1b[2Jb\u202ec\ud800d\r\ne\x00f") == "a\\x1b[2Jb\\u202ec\\ud800d e\\x00f"
    long = str(InputError("begin " + "x" * 10**6 + " end"))
    assert len(long) <= 2000 and long.startswith("begin x") and long.endswith("x end")


def test_a_reader_that_read_enough_is_silent(tmp_path):
    """As `deeper-layers plan embedded | head -1`, whoever is first."""
    code = "import sys; from deeper_layers.command import main; sys.stdin.readline(); main(['plan', 'embedded'])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as process:
        process.stdout.close()
        assert process.stdin and process.stderr
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait() != 0


# ---- papermill -------------------------------------------------------------------------------------------


def test_a_kernel_that_is_killed_does_not_end_a_report(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", killed)
    run = vars(importlib.import_module("deeper_layers.command.report"))["_run"]
    assert run(tmp_path / "x.ipynb", tmp_path / "y.ipynb", {}).startswith("its process was killed")


@pytest.fixture
def report(monkeypatch, capsys):
    """What papermill's command prints of an error of a notebook."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # importing the plug-in sets it
    from deeper_layers.experiments import papermill_engine

    def printed(name: str, value: str, traceback: list[str]) -> str:
        error = papermill.PapermillExecutionError(0, 1, "source", name, value, traceback)
        papermill_engine.report(type(error), error, None)
        return capsys.readouterr().err

    return printed


OURS = ['File "/x/deeper_layers/similarity.py", line 3', "KeyError: 'x'"]


def test_a_fault_in_a_notebook_is_one_line_too(report, written_to, monkeypatch):
    said = report("KeyError", "'x'", OURS)
    (path,) = written_to.iterdir()
    assert said.count("\n") == 1 and said.startswith("KeyError: 'x' (") and str(path) in said
    assert OURS[0] in path.read_text()
    for ours in ("InputError", "NotMeasuredError"):
        assert report(ours, "a mistake", OURS) == f"{ours}: a mistake\n"
    assert "Exception encountered" in report("KeyError", "'x'", ["File elsewhere.py"])  # another's notebook
    monkeypatch.setenv(faults.SHOWN, "1")
    assert OURS[0] in report("KeyError", "'x'", OURS)
