"""Would the tests notice? One small change of the code at a time, drawn by a seed, and which of them no test fails for.

    python -m tests.mutants                               # 220 of all parts of PARTS, of each as it is large
    python -m tests.mutants --seconds 600                 # in pieces: the last line says what to skip next time
    python -m tests.mutants cuts export --count 25

Each runs in a copy of this checkout, against the files of tests named with its part (of them what `make test` runs),
in a process that begins with what is slow to import. What survives and is not the same program in other words is a
missing test.
"""

import argparse
import ast
import importlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

NO_CHANGE, SECONDS, ROOT = "nothing", 900, Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "lib" / "deeper_layers"
SLOW = "torch transformers pandas scipy.stats peft datasets lm_eval.evaluator gguf matplotlib.pyplot papermill"
# of report/ what makes numbers: the others draw them
STATISTICS = "report/statistics.py report/estimates.py report/pairing.py report/measured.py report/one_cut.py"
LEAST = 4  # mutants of a part, however small it is
PARTS = {  # of each part its files below deeper_layers and its tests: first what is quick, or most about it
    "cuts": ("cuts.py", "tree pruning jobs rules any_cut"),
    "checks": ("checks.py errors.py markup.py", "edges refused names corpora rules results"),
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


def changes_of(part: str) -> list[tuple]:
    """Every change of a part: the file, its tree, and the change."""
    files = sorted({path for glob in PARTS[part][0].split() for path in LIBRARY.glob(glob)})
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in files]
    return [(path, tree, *change) for path, tree in trees for change in changes(tree)]


def draw(parts: list[str], count: int) -> Iterator[tuple[str, Path, str, str]]:
    """So many mutants of all parts: the part, the file, its text, and what was changed. First of a part is none."""
    every = {part: changes_of(part) for part in parts}
    total = sum(map(len, every.values()))
    for part, of_part in every.items():
        path, tree, *_ = of_part[0]
        yield part, path, ast.unparse(tree), NO_CHANGE
        share = max(LEAST, round(count * len(of_part) / total))
        for path, tree, node, name, value in random.Random(0).sample(of_part, min(share, len(of_part))):
            held, before = getattr(node, name), ast.unparse(node)
            setattr(node, name, value)
            said = f"{path.relative_to(LIBRARY)}:{node.lineno}: {before:.60} is {ast.unparse(node):.60}"
            yield part, path, ast.unparse(tree), said
            setattr(node, name, held)


def fails(folder: Path, part: str) -> bool:
    """Whether one of a part's files of tests fails in a folder, or hangs: in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()  # what it starts ends with it
            os._exit(run_tests(folder, part))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    for _ in range(SECONDS * 10):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run_tests(folder: Path, part: str) -> int:
    os.chdir(folder)
    paths = [f"{folder}/lib", str(folder)]
    sys.path[:0] = paths
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    tests = [f"tests/test_{name}.py" for name in PARTS[part][1].split()]
    imported = "ignore:Module already imported"  # some are plugins of pytest
    return pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-W", imported, "-m", "not thorough", *tests])


def import_slow_modules() -> None:
    """What tests import takes longer than most of them: it is imported once, and none of it is of this checkout."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with warnings.catch_warnings(action="ignore"):
        for name in SLOW.split():
            importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("deeper_layers", "tests")]:
        del sys.modules[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all by default")
    parser.add_argument("--count", type=int, default=220, help="of all these parts")
    parser.add_argument("--skip", type=int, default=0, help="so many of the first, which were tried")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other after so many")
    options = parser.parse_args()
    import_slow_modules()
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as place:
        left_out = shutil.ignore_patterns(".git", ".venv", "_build", "executed", "__pycache__")
        folder = Path(shutil.copytree(ROOT, f"{place}/checkout", symlinks=True, ignore=left_out))
        drawn = enumerate(draw(options.parts or list(PARTS), options.count))
        for number, (part, path, text, said) in itertools.islice(drawn, options.skip, None):
            if time.monotonic() > end:
                print(f"go on with --skip {number}", flush=True)
                return
            (folder / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
            is_killed = fails(folder, part)
            if is_killed and said == NO_CHANGE:
                raise SystemExit(f"tests of {part} fail without a change: {PARTS[part][1]}")
            print("killed  " if is_killed else "survived", f"{number} {part}: {said}", flush=True)
            shutil.copyfile(path, folder / path.relative_to(ROOT))


if __name__ == "__main__":
    main()
