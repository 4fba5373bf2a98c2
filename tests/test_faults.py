"""The faults themselves: every call is seen, a kill comes just before one, and a torn write leaves half."""

import errno
import os
import shutil

import pytest

from deeper_layers.files import write_file
from tests.faults import FAULTS, calls_of, failing_at, in_child, killed_at, snapshot


def test_the_calls_of_a_file_that_is_written_whole(tmp_path):
    calls = calls_of(lambda: write_file(tmp_path / "there" / "file", b"content"))
    assert {"mkdir", "open", "write", "fsync", "link", "unlink", "rmdir"} <= set(calls)
    assert snapshot(tmp_path) == {"there": None, "there/file": b"content"}


def test_text_copies_and_plain_calls_are_seen(tmp_path):
    def step():
        (tmp_path / "a").write_text("text")
        shutil.copyfile(tmp_path / "a", tmp_path / "b")
        with open(tmp_path / "c", "wb", buffering=0) as file:
            os.write(file.fileno(), b"bytes")
        (tmp_path / "a").read_text()

    assert [name for name in calls_of(step) if name != "sendfile"] == ["open", "write", "open", "open", "write"]
    assert snapshot(tmp_path) == {"a": b"text", "b": b"text", "c": b"bytes"}


def test_a_kill_comes_before_its_call_and_may_tear_a_write(tmp_path):
    def step():
        (tmp_path / "file").write_bytes(b"12345678")
        os.rename(tmp_path / "file", tmp_path / "there")

    assert calls_of(step) == ["open", "write", "rename"]
    (tmp_path / "there").unlink()
    left = []
    for number, share in ((0, 0), (1, 0), (1, 0.5), (2, 0)):
        assert killed_at(number, step, share)
        left.append(snapshot(tmp_path))
    assert left == [{}, {"file": b""}, {"file": b"1234"}, {"file": b"12345678"}]
    assert not killed_at(3, step)
    assert snapshot(tmp_path) == {"there": b"12345678"}


@pytest.mark.parametrize("code", FAULTS)
def test_a_call_that_fails(code, tmp_path):
    with pytest.raises(OSError) as raised, failing_at(1, code):
        (tmp_path / "file").write_bytes(b"12345678")
    assert raised.value.errno == code
    with failing_at(9, errno.EIO):
        (tmp_path / "file").write_bytes(b"87654321")
    assert snapshot(tmp_path) == {"file": b"87654321"}


def test_a_step_that_fails_by_itself_is_told_apart():
    assert in_child(lambda: None) == (0, "")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        killed_at(0, lambda: 1 / 0)
