"""Would the tests notice? One small change of the code at a time, drawn by a seed, and which of them no test fails for.

    python -m tests.mutants                               # 220 of all parts of PARTS, of each as it is large
    python -m tests.mutants --csv FILE --seconds 600      # in pieces: what stands in FILE is not tried again
    python -m tests.mutants cuts export --count 25

Each runs in a copy of this checkout, against the tests that run the changed function, as a first run of all has found
and HITS keeps: the quickest file first, until one fails or hangs. A process of tests begins with what is slow to
import. What survives and is not the same program in other words is a missing test.
"""

import argparse
import ast
import collections
import contextlib
import csv
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lib"
SLOW = "torch transformers pandas scipy.stats peft datasets lm_eval.evaluator gguf matplotlib.pyplot papermill"
# of report/ what makes numbers: the others draw them
STATISTICS = """report/statistics.py report/estimates.py report/pairing.py report/measured.py report/one_cut.py
    report/stopping.py report/calibration.py report/keeping.py"""
HITS = ROOT / ".mutants-hits.json"  # by file of tests and function of lib/ the tests that run it, and their seconds
# of tests/ what builds a site or an environment, reads the text of lib/, or needs a browser
LEFT_OUT = "book wheel cluster notebooks house explorer"
MOST = 240  # seconds of tests for a mutant: what would take longer is not run
NOTE = """import os
log, seen = os.open(os.environ.get("HITS_LOG", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT), set()
write, environ = os.write, os.environ
def note(function):
    line = f"{environ.get('PYTEST_CURRENT_TEST', '')}\\t{function}\\n"
    if line not in seen:
        seen.add(line)
        write(log, line.encode(errors="replace"))
"""
LEAST = 4  # mutants of a part, however small it is
PARTS = {  # of each part its files in either package
    "cuts": "cuts.py",
    "checks": "checks.py errors.py markup.py schema.py packing.py",
    "files": "files.py",
    "package_index": "package_index.py",
    "models": "models/*.py",
    "data": "data/*.py data/tasks/*.py",
    "similarity": "similarity.py",
    "pruning": "pruning.py",
    "rules": "rules/*.py",
    "sweeping": "sweeping/*.py",
    "healing": "healing/*.py presets.py",
    "export": "export/*.py",
    "results": "results/*.py",
    "jobs": "jobs/*.py",
    "statistics": STATISTICS,
    "claims": "report/claims.py report/paper.py",
    "studies": "studies/*.py",
    "command": "command/*.py __main__.py",
}
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, Add Sub, Mult Div, And Or"
SWAPS = {getattr(ast, one): getattr(ast, other) for one, other in map(str.split, PAIRS.split(", "))}
SWAPS |= {other: one for one, other in SWAPS.items()}


def changes(tree: ast.Module) -> list[tuple[ast.AST, str, object]]:
    """Every change of a file's functions: a node, the name of what it holds, and what it holds instead."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    code = dict.fromkeys(node for function in functions for line in function.body for node in ast.walk(line))
    found = []
    for node in code:
        match node:
            case ast.Compare(ops=[operator, *more]) if type(operator) in SWAPS:
                found.append((node, "ops", [SWAPS[type(operator)](), *more]))
            case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPS:
                found.append((node, "op", SWAPS[type(operator)]()))
            case ast.Constant(bool(value)):
                found.append((node, "value", not value))
            case ast.Constant(int(value) | float(value)):
                found.append((node, "value", value + 1))
            case ast.Return(ast.AST() as value) | ast.Assign(value=value) if ast.unparse(value) != "None":
                found.append((node, "value", ast.Constant(None)))
    return found


def function_of(path: Path, line: int, tree: ast.Module) -> str:
    """The innermost function that holds a line, by its file and its own line."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    around = [node.lineno for node in functions if node.lineno <= line <= (node.end_lineno or line)]
    return f"{path.relative_to(LIBRARY)}:{max(around)}"


def draw(parts: list[str], count: int) -> Iterator[tuple[str, Path, str, str, str]]:
    """So many mutants of all parts: the part, the file, the function, its text, and what was changed."""
    every = {}
    for part in parts:
        files = sorted({path for glob in PARTS[part].split() for path in LIBRARY.glob(f"*/{glob}")})
        trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in files]
        every[part] = [(path, tree, *change) for path, tree in trees for change in changes(tree)]
    total = sum(map(len, every.values()))
    for part, of_part in every.items():
        share = max(LEAST, round(count * len(of_part) / total))
        for path, tree, node, name, value in random.Random(0).sample(of_part, min(share, len(of_part))):
            held, before, function = getattr(node, name), ast.unparse(node), function_of(path, node.lineno, tree)
            setattr(node, name, value)
            said = f"{path.relative_to(LIBRARY)}:{node.lineno}: {before:.80} is {ast.unparse(node):.80}"
            yield part, path, function, ast.unparse(tree), said
            setattr(node, name, held)


class Only:
    """A plugin of pytest: of all tests only those that are wanted, by their names; what each took goes to a file."""

    def __init__(self, wanted: list[str], took: Path):
        self.wanted, self.took = set(wanted), took

    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = [item for item in items if {item.nodeid, item.nodeid.partition("::")[0]} & self.wanted]

    def pytest_runtest_logreport(self, report) -> None:
        with self.took.open("a") as file:
            file.write(f"{report.nodeid}\t{report.duration}\n")


def passes(folder: Path, file: str, wanted: list[str], seconds: float) -> bool:
    """Whether tests of a file pass in a folder, in a process of its own, and do not hang."""
    child = os.fork()
    if child == 0:
        os.setsid()  # what it starts ends with it
        with contextlib.suppress(BaseException):
            os._exit(run_tests(folder, file, wanted))
        os._exit(99)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_tests(folder: Path, file: str, wanted: list[str]) -> int:
    os.chdir(folder)
    paths = [f"{folder}/lib", str(folder)]
    sys.path[:0] = paths
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    imported = "ignore:Module already imported"  # some are plugins of pytest
    words = ["-q", "-x", "-p", "no:cacheprovider", "-W", imported, "-m", "not thorough", file]
    return pytest.main(words, plugins=[Only(wanted, folder / f"{Path(file).stem}.seconds")])


def note_calls(folder: Path) -> None:
    """In a copy of the checkout every function of lib/ notes which test runs it."""
    for path in sorted(LIBRARY.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            named = f"{path.relative_to(LIBRARY)}:{node.lineno}"
            call = ast.parse(f"__import__('hits').note({named!r})").body
            node.body[bool(ast.get_docstring(node)) : 0] = call
        target = folder / path.relative_to(ROOT)
        target.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
    (folder / "lib" / "hits.py").write_text(NOTE)


def find_hits(folder: Path, file: str) -> dict[str, dict[str, float]]:
    """Of a file for each function the tests that run it, or the file itself where it runs before a test; seconds."""
    log, took = folder / f"{Path(file).stem}.hits", folder / f"{Path(file).stem}.seconds"
    os.environ["HITS_LOG"] = str(log)
    if not passes(folder, file, [file], 1200):
        print(f"# {file} is left out: it fails, or takes too long, without a change", flush=True)
        return {}
    seconds = collections.Counter()
    for line in took.read_text().splitlines() if took.exists() else []:
        test, _, duration = line.rpartition("\t")
        seconds[test] += float(duration)
        seconds[file] += float(duration)
    hits = collections.defaultdict(dict)
    for line in log.read_text().splitlines() if log.exists() else []:
        test, _, function = line.rpartition("\t")
        name, _, phase = test.rpartition(" (")
        name = name if phase == "call)" else file
        hits[function][name] = seconds[name]
    print(f"# {file} runs {len(hits)} functions in {seconds[file]:.0f} s", flush=True)
    return hits


def read_hits() -> dict[str, dict[str, dict[str, float]]]:
    """HITS, made where it lacks a file of tests."""
    hits = json.loads(HITS.read_text()) if HITS.exists() else {}
    names = sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    files = [f"tests/{name}" for name in names if name[5:-3] not in LEFT_OUT.split()]
    if set(files) - set(hits):
        with tempfile.TemporaryDirectory() as place:
            folder = copy_checkout(place)
            note_calls(folder)
            for file in files:
                if file not in hits:
                    hits[file] = find_hits(folder, file)
                    HITS.write_text(json.dumps(hits))
    return hits


def is_killed(folder: Path, function: str, hits: dict[str, dict[str, dict[str, float]]]) -> str:
    """The file of tests that fails or hangs, of those that run a function: the quickest first."""
    tests_of = {file: functions[function] for file, functions in hits.items() if function in functions}
    seconds = {file: tests.get(file) or sum(tests.values()) for file, tests in tests_of.items()}
    spent = 0.0
    for file in sorted(seconds, key=seconds.__getitem__):
        spent += seconds[file]
        if spent > MOST:
            break
        if not passes(folder, file, list(tests_of[file]), 60 + 5 * seconds[file]):
            return file
    return ""


def import_slow_modules() -> None:
    """What tests import takes longer than most of them: it is imported once, and none of it is of this checkout."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with warnings.catch_warnings(action="ignore"):
        for name in SLOW.split():
            importlib.import_module(name)
    ours = ("deeper_layers", "deeper_layers_companion", "tests")
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]


def copy_checkout(place: str) -> Path:
    left_out = shutil.ignore_patterns(".git", ".venv", "_build", "executed", "__pycache__")
    return Path(shutil.copytree(ROOT, f"{place}/checkout", symlinks=True, ignore=left_out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all by default")
    parser.add_argument("--count", type=int, default=220, help="of all these parts")
    parser.add_argument("--csv", type=Path, default=Path("mutants.csv"), help="the table: one line a mutant")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other after so many")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    import_slow_modules()
    hits = read_hits()
    tried = options.csv.read_text().splitlines() if options.csv.exists() else []
    tried = {row[1] for row in csv.reader(tried)}
    with tempfile.TemporaryDirectory() as place:
        folder, drawn = copy_checkout(place), list(draw(options.parts or list(PARTS), options.count))
        random.Random(0).shuffle(drawn)  # so that any beginning is a sample of all
        for part, path, function, text, said in drawn:
            if said in tried:
                continue
            if time.monotonic() > end:
                return
            (folder / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
            killer = is_killed(folder, function, hits)
            shutil.copyfile(path, folder / path.relative_to(ROOT))
            with options.csv.open("a", newline="") as file:
                csv.writer(file).writerow([part, said, "killed" if killer else "lives", killer, function])


if __name__ == "__main__":
    main()
