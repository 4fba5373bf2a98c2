"""A trace is read rightly, and reading damaged results connects to nothing and runs nothing.

`python -m tests.strace` reads everything else, and takes about a minute.
"""

import pytest

from tests.strace import PYTHON, can_trace, parsed, passes, traced, unexpected

CODE = """
import socket, subprocess, sys
subprocess.run(["true"])
subprocess.run([sys.executable, "-c", ""])
for family, address in ((socket.AF_INET, ("127.0.0.1", 9)), (socket.AF_UNIX, "/none")):
    try:
        socket.socket(family).connect(address)
    except OSError:
        pass
"""
QUERY = r'7 sendto(3, "\220\221\1\0\0\1\0\0\0\0\0\0\5files\7example\3org\0\0\1\0\1", 35, MSG_NOSIGNAL, NULL, 0) = 35'
traces = pytest.mark.skipif(not can_trace(), reason="strace is not here, or may not be used")


@traces
def test_programs_and_connections_of_a_process_and_its_children_are_seen(tmp_path, capsys):
    asked = traced(["-c", CODE], tmp_path)
    assert asked.programs.pop(PYTHON) == 2 and "true" in asked.programs
    assert asked.reached == {("127.0.0.1", 9): 1} and not asked.names
    assert not passes("this", asked) and "reached 127.0.0.1, port 9" in capsys.readouterr().out


def test_names_that_a_name_server_is_asked_for():
    asked = parsed(QUERY)
    assert asked.names == {"files.example.org": 1}
    assert unexpected(asked) == ["asked for the address of files.example.org"]
    assert unexpected(asked, frozenset(["files.example.org"])) == []


@traces
def test_reading_damaged_units_asks_for_nothing(tmp_path):
    (tmp_path / "read").mkdir()
    words = ["-m", "tests.strace", "units", "--cases", "15", "--read", str(tmp_path / "read")]
    assert passes("units", traced(words, tmp_path))
