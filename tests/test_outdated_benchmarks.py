"""`python -m benchmarks`: what is out of date, and what is run again with which paths."""

import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks.outdated import MEASURES, PATHS, ROOT, Measured, measured

BENCHMARK = """
import pathlib, sys
pathlib.Path("again.txt").write_text(" ".join(sys.argv[1:]))
"""


def git(root, *words) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with two benchmarks, measured at its first commit."""
    for name in ("lib/deeper_layers/models/a.py", "lib/deeper_layers/healing/b.py", "benchmarks/gained.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(BENCHMARK)
    (tmp_path / "benchmarks" / "__init__.py").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "benchmarks" / "measured").mkdir()
    for name, at in (("gained-tiny", commit), ("sweep-lost", "0" * 40)):
        words = f"python -m benchmarks.{name.replace('-', ' ')} --datasets FOLDER"
        content = {"command": words, "provenance": {"commit": at}}
        (tmp_path / "benchmarks" / "measured" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def changed(root, path: str) -> None:
    (root / path).write_text(f"{BENCHMARK}# and more\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "more")


def test_what_changed_since(checkout):
    tiny, lost = measured(checkout)
    assert tiny.changed == () and not tiny.outdated and command.state(tiny).endswith("up to date")
    assert lost.changed is None and lost.outdated and "which this clone lacks" in command.state(lost)
    changed(checkout, "lib/deeper_layers/healing/b.py")  # of which it measures nothing
    assert not measured(checkout)[0].outdated
    changed(checkout, "lib/deeper_layers/models/a.py")
    changed(checkout, "benchmarks/gained.py")
    assert measured(checkout)[0].changed == ("models", "itself")
    assert "changed since are models, itself" in command.state(measured(checkout)[0])


def test_what_is_out_of_date_is_run_again(checkout, monkeypatch, capsys):
    def typed(*words) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        return command.main(checkout)

    changed(checkout, "lib/deeper_layers/models/a.py")
    assert typed("gained-tiny") == 0 and "1 of 1 are out of date" in capsys.readouterr().out
    assert not (checkout / "again.txt").exists()
    assert typed("gained-tiny", "--rerun") == 1
    assert "gained-tiny: left out, it needs --datasets FOLDER" in capsys.readouterr().out
    (checkout / "lib" / "deeper_layers" / "models" / "a.py").write_text("# not committed")
    with pytest.raises(SystemExit):
        typed("gained-tiny", "--rerun", "--datasets", "/data")
    assert "commit first" in capsys.readouterr().err
    git(checkout, "checkout", "-q", "--", "lib")
    assert typed("gained-tiny", "--rerun", "--datasets", "/data") == 0
    assert (checkout / "again.txt").read_text() == "tiny --datasets /data"
    with pytest.raises(SystemExit):
        typed("none")


def test_every_measured_file_is_known():
    """Each benchmark that keeps a file says what it measures, and all that it names is there."""
    keep = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "side_by_side.keep(" in path.read_text()}
    assert keep == set(MEASURES)
    for place in {place for places in MEASURES.values() for place in places}:
        assert (ROOT / "lib" / "deeper_layers" / place).exists()
    for one in measured():
        assert isinstance(one, Measured) and one.words(dict.fromkeys(PATHS, "X"))[:2] == ["python", "-m"]
        assert not set(PATHS.values()) & set(one.words(dict.fromkeys(PATHS, "X")))
