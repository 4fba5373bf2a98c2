"""Would the tests notice? One small change of the code at a time, drawn by a seed, and which of them no test fails for.

    python -m tests.mutants                               # 220 of all parts of PARTS, of each as it is large
    python -m tests.mutants --seconds 600                 # in pieces: the last line says what to skip next time
    python -m tests.mutants cuts export --count 25

Each runs in a copy of this checkout, against the files of tests named with its part (of them what `make test` runs): of
these the tests that run the function, as a first run of all has found and HITS keeps. A process of tests begins with
what is slow to import. What survives and is not the same program in other words is a missing test.
"""

import argparse
import ast
import collections
import contextlib
import importlib
import itertools
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

SECONDS, ROOT = 600, Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lib"
SLOW = "torch transformers pandas scipy.stats peft datasets lm_eval.evaluator gguf matplotlib.pyplot papermill"
# of report/ what makes numbers: the others draw them
STATISTICS = "report/statistics.py report/estimates.py report/pairing.py report/measured.py report/one_cut.py"
HITS = ROOT / ".mutants-hits.json"  # by function of lib/ the tests that run it
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
PARTS = {  # of each part its files in either package and its tests: first what is quick, or most about it
    "cuts": ("cuts.py", "tree pruning jobs rules any_cut"),
    "checks": ("checks.py errors.py markup.py schema.py packing.py", "edges refused names corpora rules results"),
    "files": ("files.py", "files results prune"),
    "package_index": ("package_index.py", "package_index embedded"),
    "models": ("models/*.py", "bits widened devices pruning embedded gguf streaming families damage refused"),
    "data": ("data/*.py data/tasks/*.py", "corpora embedded evaluation healed refused scans"),
    "similarity": ("similarity.py", "similarity rules"),
    "pruning": ("pruning.py", "pruning slicing any_cut"),
    "rules": ("rules/*.py", "rules geometry scans"),
    "sweeping": ("sweeping/*.py", "tree sweep evaluation generation streaming scans rules families"),
    "healing": ("healing/*.py presets.py", "healing healed merging distributed"),
    "export": ("export/*.py", "slicing quantized seeing gguf merging prune model_card engines damage files"),
    "results": ("results/*.py", "results frames report corpora refused"),
    "prices": ("prices.py", "prices"),
    "experiments": ("experiments/*.py", "jobs prices results scans geometry healed generation edges command examples"),
    "statistics": (STATISTICS, "estimates report claims examples"),
    "claims": ("report/claims.py report/paper.py", "claims report"),
    "studies": ("studies/*.py", "last_layers report geometry claims"),
    "command": ("command/*.py __main__.py", "command edges refused jobs prices prune examples"),
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
        files = sorted({path for glob in PARTS[part][0].split() for path in LIBRARY.glob(f"*/{glob}")})
        trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in files]
        every[part] = [(path, tree, *change) for path, tree in trees for change in changes(tree)]
    total = sum(map(len, every.values()))
    for part, of_part in every.items():
        share = max(LEAST, round(count * len(of_part) / total))
        for path, tree, node, name, value in random.Random(0).sample(of_part, min(share, len(of_part))):
            held, before, function = getattr(node, name), ast.unparse(node), function_of(path, node.lineno, tree)
            setattr(node, name, value)
            said = f"{path.relative_to(LIBRARY)}:{node.lineno}: {before:.60} is {ast.unparse(node):.60}"
            yield part, path, function, ast.unparse(tree), said
            setattr(node, name, held)


class Only:
    """A plugin of pytest: of all tests only those that are wanted, by their names."""

    def __init__(self, wanted: list[str]):
        self.wanted = set(wanted)

    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = [item for item in items if {item.nodeid, item.nodeid.partition("::")[0]} & self.wanted]


def passes(folder: Path, files: list[str], wanted: list[str]) -> bool:
    """Whether files of tests pass in a folder, in a process of its own, and do not hang."""
    child = os.fork()
    if child == 0:
        os.setsid()  # what it starts ends with it
        with contextlib.suppress(BaseException):
            os._exit(run_tests(folder, files, wanted))
        os._exit(99)
    for _ in range(SECONDS * 10):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run_tests(folder: Path, files: list[str], wanted: list[str]) -> int:
    os.chdir(folder)
    paths = [f"{folder}/lib", str(folder)]
    sys.path[:0] = paths
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    imported = "ignore:Module already imported"  # some are plugins of pytest
    words = ["-q", "-x", "-p", "no:cacheprovider", "-W", imported, "-m", "not thorough", *files]
    return pytest.main(words, plugins=[Only(wanted)])


def find_hits(folder: Path, files: list[str]) -> dict[str, list[str]]:
    """For each function the tests that run it, or whole files where it runs before a test does. One run of all."""
    for path in sorted(LIBRARY.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            named = f"{path.relative_to(LIBRARY)}:{node.lineno}"
            call = ast.parse(f"__import__('hits').note({named!r})").body
            node.body[bool(ast.get_docstring(node)) : 0] = call
        target = folder / path.relative_to(ROOT)
        target.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
    (folder / "lib" / "hits.py").write_text(NOTE)
    hits = collections.defaultdict(dict)
    for file in files:
        os.environ["HITS_LOG"] = str(folder / f"{Path(file).stem}.hits")
        if not passes(folder, [file], [file]):
            raise SystemExit(f"{file} fails without a change")
        for line in Path(os.environ["HITS_LOG"]).read_text().splitlines():
            test, _, function = line.rpartition("\t")
            name, _, phase = test.rpartition(" (")
            hits[function][name if phase == "call)" else file] = None
        print(f"# {file} runs {len(hits)} functions", flush=True)
    return {function: list(tests) for function, tests in hits.items()}


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
    parser.add_argument("--skip", type=int, default=0, help="so many of the first, which were tried")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other after so many")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    files_of = {part: [f"tests/test_{name}.py" for name in PARTS[part][1].split()] for part in PARTS}
    import_slow_modules()
    if not HITS.exists():
        with tempfile.TemporaryDirectory() as place:
            every = dict.fromkeys(file for part in PARTS for file in files_of[part])
            HITS.write_text(json.dumps(find_hits(copy_checkout(place), list(every))))
    hits, end = json.loads(HITS.read_text()), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as place:
        folder, drawn = copy_checkout(place), enumerate(draw(parts, options.count))
        for number, (part, path, function, text, said) in itertools.islice(drawn, options.skip, None):
            if time.monotonic() > end:
                print(f"go on with --skip {number}", flush=True)
                return
            (folder / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
            wanted, hit = hits.get(function, []), False
            for file in files_of[part]:
                own = [test for test in wanted if test.partition("::")[0] == file]
                hit = hit or bool(own and not passes(folder, [file], own))
            print("killed  " if hit else "survived", f"{number} {part}: {said}", flush=True)
            shutil.copyfile(path, folder / path.relative_to(ROOT))


if __name__ == "__main__":
    main()
