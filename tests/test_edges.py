"""What nobody foresaw, at the command's edge: one line."""

import errno
import tempfile
import warnings

import pytest
from click.testing import CliRunner

from deeper_layers import errors
from deeper_layers.errors import InputError, as_input_error, one_line
from deeper_layers_companion.command import main
from deeper_layers_companion.jobs.options import Parameters

pytestmark = pytest.mark.quick

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def written_to(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.delenv(errors.TRACEBACK_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def ends_with(monkeypatch):
    """How the command ends where something warns and raises this error."""

    def of(error: BaseException):
        def raising(*_):
            warnings.warn("a unit\ncan't be read", stacklevel=2)
            raise error

        monkeypatch.setattr(Parameters, "check", raising)
        with warnings.catch_warnings(action="default"):
            return CliRunner().invoke(main, ["distances", "embedded"])

    return of


WARNED = "warning: a unit can't be read\n"


def line(done) -> str:
    assert done.stdout == "" and done.stderr.startswith(WARNED)
    (only,) = done.stderr.removeprefix(WARNED).splitlines()
    return only


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a mistake\nin two lines"), "Error: a mistake in two lines"),
        (PermissionError(errno.EACCES, "denied", "/a/place"), "Error: can't use /a/place (denied)"),
        (OSError(errno.ENOSPC, "No space left on device"), "Error: can't write any more ([Errno 28] No space left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "Error: out of memory (Default"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "Error: out of memory (CUBLAS"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_says_how(error, message, ends_with, written_to):
    done = ends_with(error)
    assert done.exit_code == 1 and line(done).startswith(message)
    assert not list(written_to.iterdir())


def test_a_fault_is_one_line_and_its_traceback_is_shown_where_asked_for(ends_with, written_to, monkeypatch):
    # not the user's to mend, though it speaks of allocating
    done = ends_with(RuntimeError(f"no weights in /models/allocated with {TOKEN}\nin two lines"))
    said = line(done)
    assert done.exit_code == 70 and said.startswith("Error: RuntimeError: no weights in /models/allocated with hf_...")
    assert said.endswith(f"not of yours: {errors.TRACEBACK_VARIABLE}=1 shows where, report what it shows)")
    assert TOKEN not in said and not list(written_to.iterdir())
    # whoever works on this sees it whole
    monkeypatch.setenv(errors.TRACEBACK_VARIABLE, "1")
    for kind in (KeyError, InputError):
        assert isinstance(ends_with(kind("x")).exception, kind)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (SystemExit(3), 3), (BrokenPipeError(32, ""), 1)]
)
def test_interrupted_left_and_read_no_further_are_no_faults(error, code, ends_with, written_to):
    done = ends_with(error)
    assert done.exit_code == code and "Error" not in done.stderr and not list(written_to.iterdir())


def test_a_message_can_not_move_the_cursor_nor_fill_the_screen():
    assert one_line("a\x1b[2Jb\u202ec\ud800d\r\ne\x00f") == "a\\x1b[2Jb\\u202ec\\ud800d e\\x00f"
    long = str(InputError("begin " + "x" * 10**6 + " end"))
    assert len(long) <= 2000 and long.startswith("begin x") and long.endswith("x end")


def test_what_may_not_be_read_is_not_called_damaged():
    denied = PermissionError(errno.EACCES, "Permission denied", "/a/place")
    for options, words in (((), "/a/place may not be used"), (("fix this", OSError), "/a/place is not whole")):
        with pytest.raises(InputError) as caught, as_input_error("/a/place is not whole", *options):
            raise denied
        message = f"{words} ([Errno 13] Permission denied: '/a/place'): "
        assert str(caught.value).startswith(message) and "fetch it again" not in str(caught.value)
